"""Other shards on the way: stopped half-way with open windows and waiting events, moved, and gone on with."""

from __future__ import annotations

import functools
import io
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson
import pytest
from rich.console import Console

from flink_jobs import resharding
from flink_jobs.embedded import embedded_redis
from flink_jobs.resharding import Moved, reshard
from flink_jobs.settings import SettingsError
from flink_jobs.state import StateFolder
from serving import Client
from serving.connection import connect
from tests.flink.harness import balanced, resolved, run_job, write_lines
from tests.flink.test_runs import MODEL, all_fields, rated_events, stop_when
from tests.udfs.cases import rows_of
from udfs.building import build
from udfs.intake import shard_of
from udfs.interactions import Interactions
from udfs.learner import Learner, LearnerConfig
from udfs.models import ITEM, USER
from udfs.resharding import Exchange, ShardState

LINES = rated_events(15_000)
TILES = {"tiles.keep.5m": "9999d", "tiles.keep.1h": "9999d", "tiles.keep.1d": "9999d"}


@pytest.fixture()
def url(tmp_path: Path) -> Iterator[str]:
    with embedded_redis((tmp_path / "state" / "redis").resolve()) as url:
        yield url


@pytest.fixture()
def settings(tmp_path: Path) -> dict[str, Any]:
    source = write_lines(tmp_path / "events.jsonl", LINES)
    return {**MODEL, **TILES, "source": f"file:{source}", "batch_bytes": 20_000}


class Kept(Exchange):
    """An exchange whose states a test can look at when all is done."""

    kept: dict[str, list[ShardState]] = {}

    def note_ready(self) -> None:
        for kind, read in (("old", self.old), ("new", self.new)):
            count = len(list(self._folder.glob(f"{kind}-*")))
            self.kept[kind] = [read(shard) for shard in range(count)]
        super().note_ready()


@pytest.fixture(autouse=True)
def kept(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[ShardState]]:
    monkeypatch.setattr(resharding, "Exchange", Kept)
    Kept.kept = {}
    return Kept.kept


def move(state: Path, settings: Mapping[str, Any], shards: int) -> Moved:
    return reshard(resolved(state, {**settings, "shards": shards}), Console(file=io.StringIO()))


def assert_redis_has(client: Client, states: list[ShardState]) -> None:
    """Redis has each row of the states, in its encoding, and of learned fields nothing else."""
    model = functools.partial(build, "biased_mf", {"n_factors": 4, "seed": 3})
    items = Counter[str]()
    for shard, state in enumerate(states):
        learner = Learner(LearnerConfig(), model())
        assert state.header is not None
        rows = [(*name.split(":", 1), blob) for name, blob in state.rows.items()]
        learner.restore(state.header, rows, state.waiting.items())  # type: ignore[arg-type]
        for family, found in ((USER, client.users), (ITEM, client.items)):
            table = rows_of(learner.model, family, *learner.model.ids[family])
            known: dict[str, Any] = found(list(learner.model.ids[family]))
            for row_id, row in zip(learner.model.ids[family], table, strict=True):
                learned = known[row_id].learned if family == USER else known[row_id].learned[shard]
                assert learned.vector.tobytes() == row[1:].astype("<f4").tobytes()
                assert (learned.bias, learned.count) == (row[0], learner.rows[family][row_id].count)
                if family == USER:
                    assert known[row_id].shard == shard == shard_of(row_id, len(states))
                else:
                    items[row_id] += 1
        assert client.header(shard).shards == len(states)  # type: ignore[union-attr]
    assert client.header(len(states)) is None
    assert {name: len(state.learned) for name, state in client.items(list(items)).items() if state} == items


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
def test_half_way_to_other_shards_and_on(
    before: int, after: int, tmp_path: Path, url: str, settings: dict[str, Any], kept: dict[str, list[ShardState]]
) -> None:
    client, state, stop = Client(url), tmp_path / "state", threading.Event()
    stop_when(client, 3_000 // before, stop)
    first = run_job(state, {**settings, "shards": before, "parallelism": 2}, stop=stop)
    assert first["stopped"] and first["events"]["pending"] > 0
    with pytest.raises(SettingsError, match=f"freshet reshard --shards {after}"):
        run_job(state, {**settings, "shards": after})

    # Whatever source is given: the state's own is taken.
    moved = move(state, {**settings, "source": "generator", "parallelism": 2}, after)
    assert (moved.before, moved.after) == (before, after)
    users = {orjson.loads(line)["user_id"] for line in LINES[: first["events"]["learned"]]}
    assert moved.users == len(users) and moved.items == 53
    assert_redis_has(client, kept["new"])
    assert sum(len(learner_waiting(s)) for s in kept["new"]) == first["events"]["pending"]
    if before == 1:  # a copy: of each user to the bit, of each item all but its share of the events
        [old], new = kept["old"], kept["new"]
        assert {n: b for s in new for n, b in s.rows.items() if n.startswith("user:")} == {
            n: b for n, b in old.rows.items() if n.startswith("user:")
        }
    ledger = connect(url).hgetall("freshet:ledger")
    assert b"alive_at:%d" % (after - 1) in ledger and b"alive_at:%d" % after not in ledger

    second = run_job(state, {**settings, "shards": after, "parallelism": after})
    assert balanced(second["events"])
    assert second["carried"] == first["events"]["pending"] and second["events"]["pending"] == 0
    assert first["events"]["learned"] + second["events"]["learned"] == len(LINES) == second["metrics"]["n"]
    assert second["shards"] == after
    # Each event once: of users and items, and of every window that was open.
    events = [orjson.loads(line) for line in LINES]
    by_user, by_item = (Counter(e[name] for e in events) for name in ("user_id", "item_id"))
    assert {u: s.learned.count for u, s in client.users(list(by_user)).items()} == by_user  # type: ignore[union-attr]
    found = client.items(list(by_item))
    assert {i: sum(of.count for of in s.learned.values()) for i, s in found.items()} == by_item  # type: ignore[union-attr]
    for span, length in (("5m", 300_000), ("1h", 3_600_000), ("1d", 86_400_000)):
        tiles = Counter((e["user_id"], e["timestamp"] - e["timestamp"] % length) for e in events)
        assert tiles == {
            (user_id, start): tile.events
            for user_id, user in client.users(list(by_user)).items()
            for start, tile in user.tiles[span].items()  # type: ignore[union-attr]
        }


def learner_waiting(state: ShardState) -> Interactions:
    learner = Learner(LearnerConfig(), build("biased_mf", {"n_factors": 4, "seed": 3}))
    assert state.header is not None
    rows = [(*name.split(":", 1), blob) for name, blob in state.rows.items()]
    learner.restore(state.header, rows, state.waiting.items())  # type: ignore[arg-type]
    return learner.waiting


def test_what_is_interrupted_can_be_done_again(
    tmp_path: Path, url: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    client, state = Client(url), tmp_path / "state"
    settings = {**settings, "tiles.enabled": False, "batch_bytes": 1_000_000}
    source = write_lines(tmp_path / "events.jsonl", LINES[:2_000])
    run_job(state, {**settings, "shards": 2})
    manifest = StateFolder(state).load()
    before = all_fields(connect(url))

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    # Before the savepoint is taken: nothing has changed, in the state or in Redis.
    with monkeypatch.context() as patched:
        patched.setattr(resharding, "move", interrupted)
        with pytest.raises(KeyboardInterrupt):
            move(state, settings, 3)
    assert StateFolder(state).load() == manifest
    assert all_fields(connect(url)) == before
    # After it: the state has moved, and the next run fills Redis and clears it of what was there before.
    with monkeypatch.context() as patched:
        patched.setattr(resharding, "written_by_another_job", interrupted)
        with pytest.raises(KeyboardInterrupt):
            move(state, settings, 3)
    assert StateFolder(state).load().fixed["shards"] == 3  # type: ignore[union-attr]
    assert client.header().shards == 2  # type: ignore[union-attr]
    write_lines(source, LINES[:2_100])
    summary = run_job(state, {**settings, "shards": 3})
    assert summary["events"]["learned"] == 100
    # And back: a second try does what is left, and there is nothing left to do for a third.
    with monkeypatch.context() as patched:
        patched.setattr(resharding, "written_by_another_job", interrupted)
        with pytest.raises(KeyboardInterrupt):
            move(state, settings, 2)
    assert move(state, settings, 2).sent > 0
    with pytest.raises(SettingsError, match="has 2 already"):
        move(state, settings, 2)
    assert client.header().shards == 2 and client.header(2) is None  # type: ignore[union-attr]
    assert set(client.item("i7").learned) == {0, 1}  # type: ignore[union-attr]
    assert sum(u.learned.count for u in client.users([f"r{n}" for n in range(97)]).values()) == 2_100  # type: ignore[union-attr]
