"""Resharding before and after its job: what is refused, and what goes from Redis."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from flink_jobs.preparing import fixed_settings, forget_shards
from flink_jobs.resharding import reshard
from flink_jobs.settings import Layer, SettingsError, resolve
from flink_jobs.state import Manifest, StateError, StateFolder
from serving import Client
from serving.schema import Keys
from tests.flink.harness import resolved
from tests.shells import batch_of, publish
from udfs.learner import Learner, LearnerConfig, build
from udfs.publisher import Publisher

KEYS = Keys("freshet")


def fill(url: str, shards: int, epoch: int) -> None:
    """What so many learners would have left."""
    publisher = Publisher(url, "freshet")
    for shard in range(shards):
        learner = Learner(LearnerConfig(), build("biased_mf", {"n_factors": 2}))
        events = [[n, "", f"u{shard}", f"i{n}", "rating", 4.0, 0, n] for n in range(3)]
        list(learner.process(batch_of(events)))
        publish(publisher, learner, shard=shard, shards=shards, epoch=epoch)
        publisher.alive(shard)


@pytest.mark.parametrize(("before", "now"), [(1, 4), (4, 1), (4, 2), (2, 4), (3, 5)])
@pytest.mark.parametrize("written", [True, False])
def test_what_only_the_shards_before_have_written_goes(
    before: int, now: int, written: bool, redis_url: str, redis_connection: Any
) -> None:
    fill(redis_url, before, 7)
    redis_connection.hset(KEYS.item("i0"), "catalogue", b'{"item_id":"i0"}')
    redis_connection.hset(KEYS.item("i0"), "t:1h:0", b"{}")
    if written:
        fill(redis_url, now, 8)
        forget_shards(redis_connection, KEYS, before, now)
    else:  # a run that goes on after a command that was interrupted: the other way round
        forget_shards(redis_connection, KEYS, before, now)
        fill(redis_url, now, 8)
    found = set(redis_connection.hgetall(KEYS.item("i1")))
    redis_connection.flushall()
    fill(redis_url, now, 8)
    assert found == set(redis_connection.hgetall(KEYS.item("i1")))
    ledger = {name for name in redis_connection.hgetall(KEYS.ledger) if name.startswith(b"alive_at:")}
    assert ledger == {b"alive_at:%d" % shard for shard in range(now)}


def test_what_others_wrote_of_an_item_stays(redis_url: str, redis_connection: Any) -> None:
    fill(redis_url, 4, 7)
    redis_connection.hset(KEYS.item("i0"), "catalogue", b'{"item_id":"i0"}')
    forget_shards(redis_connection, KEYS, 4, 1)
    fill(redis_url, 1, 8)
    item = Client(redis_url).item("i0")
    assert item is not None and item.catalogue == {"item_id": "i0"} and set(item.learned) == {0}
    assert not any(redis_connection.exists(KEYS.model(s), KEYS.items(s)) for s in (1, 2, 3))
    assert redis_connection.hgetall(KEYS.user("u3"))


def refused(tmp_path: Path, **settings: Any) -> str:
    with pytest.raises((StateError, SettingsError)) as caught:
        reshard(resolved(tmp_path, settings), Console(file=io.StringIO()))
    return str(caught.value)


def test_what_is_refused(tmp_path: Path, redis_url: str, redis_connection: Any) -> None:
    settings = {"redis": redis_url, "shards": 2}
    assert "no state to move" in refused(tmp_path, **settings)
    folder = StateFolder(tmp_path)
    folder.store(Manifest(epoch=7, prefix="freshet", fixed=fixed_settings(resolve([Layer("", settings)])), runs=1))
    assert "has 2 already" in refused(tmp_path, **settings)
    assert "no state to move" in refused(tmp_path, **settings, fresh=True) and folder.load() is not None
    settings["shards"] = 3
    assert "no snapshot to move" in refused(tmp_path, **settings)
    assert refused(tmp_path, **settings, **{"model.n_factors": 3}).startswith("model: the state was learned with")
    with folder.locked():
        assert "another run is using" in refused(tmp_path, **settings)


def test_a_model_that_can_not_be_merged_is_refused_before_anything_starts(
    tmp_path: Path, redis_url: str, redis_connection: Any
) -> None:
    settings = {"redis": redis_url, "shards": 2, "model.latent_optimizer": "Adam"}
    fixed = fixed_settings(resolve([Layer("", settings)]))
    snapshot = tmp_path / "savepoints" / "savepoint-1"
    snapshot.mkdir(parents=True)
    (snapshot / "_metadata").touch()
    StateFolder(tmp_path).store(Manifest(epoch=7, prefix="freshet", fixed=fixed, savepoint=str(snapshot)))
    settings["shards"] = 3
    assert "Adam hold m, v" in (message := refused(tmp_path, **settings)) and "to 4, 6 and so on" in message
