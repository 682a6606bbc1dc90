"""Whole runs: stop and go on, the ledger on real streams, windows against an obvious count, bad input."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from rich.console import Console

from flink_jobs.embedded import embedded_redis
from flink_jobs.health import examine
from flink_jobs.republishing import republish
from flink_jobs.settings import SettingsError
from flink_jobs.state import StateFolder
from serving import Client
from serving.connection import connect
from tests.flink.harness import balanced, dead_letters, lines_of, resolved, run_job, stored_rows, write_lines
from udfs.tilefeed import DAY

MODEL = {"model.n_factors": 4, "model.seed": 3}


@pytest.fixture()
def client(tmp_path: Path) -> Iterator[Client]:
    """Look-ups in the embedded Redis of ``tmp_path / state``, which the runs of a test share."""
    with embedded_redis((tmp_path / "state" / "redis").resolve()) as url:
        yield Client(url)


def stop_when(client: Client, learned: int, stop: threading.Event) -> threading.Thread:
    """Sets ``stop`` as soon as so many events are learned, as someone with a finger on Ctrl-C would."""

    def watch() -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            header = client.header(0)
            if header is not None and header.summary["counts"]["learned"] >= learned:
                break
            time.sleep(0.01)
        stop.set()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def rated_events(n: int) -> list[bytes]:
    """Dense, so that windows of all sizes are open at any moment; unordered by up to two seconds."""
    return [
        orjson.dumps(
            {
                "event_id": f"e{k}",
                "user_id": f"r{k * 7919 % 97}",
                "item_id": f"i{k * 104729 % 53}",
                "event_type": "rating",
                "event_value": k % 9 / 2 + 0.5,
                "timestamp": 1_700_000_000_000 + k * 700 - (k * 31 % 5) * 400,
            }
        )
        for k in range(n)
    ]


def all_fields(connection: Any) -> dict[bytes, dict[bytes, bytes]]:
    """Every entity's hash, without its version's epoch and attempt, which differ from run to run."""
    found = {}
    for key in [*connection.scan_iter(match="freshet:user:*"), *connection.scan_iter(match="freshet:item:*")]:
        fields = connection.hgetall(key)
        found[key] = {k: v.rpartition(b".")[2] if k.startswith(b"version") else v for k, v in fields.items()}
    return found


def test_stopped_half_way_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    lines = rated_events(15_000)
    source = write_lines(tmp_path / "events.jsonl", lines)
    # A rate at which the stop comes in the middle; small batches, so that windows and waiting events are open.
    settings = {**MODEL, "source": f"file:{source}", "batch_bytes": 20_000, "ranking.every": 50}
    whole = run_job(tmp_path / "whole", settings, notes=tmp_path / "notes-whole")
    assert whole["ranking"]["all"]["popularity"]["n"] > 100
    with embedded_redis((tmp_path / "whole" / "redis").resolve()) as url:
        expected = all_fields(connect(url))

    with embedded_redis((tmp_path / "state" / "redis").resolve()) as url:
        stop = threading.Event()
        stop_when(Client(url), 3_000, stop)
        first = run_job(tmp_path / "state", settings, notes=tmp_path / "notes-1", stop=stop)
        assert first["stopped"]
        assert balanced(first["events"])
        assert 0 < first["events"]["learned"] < len(lines)
        assert first["events"]["pending"] > 0
        second = run_job(tmp_path / "state", {**settings, "parallelism": 2}, notes=tmp_path / "notes-2")
        assert not second["stopped"]
        assert balanced(second["events"])
        assert second["events"]["pending"] == 0
        assert second["carried"] == first["events"]["pending"]
        assert first["events"]["learned"] + second["events"]["learned"] == len(lines)
        assert second["metrics"] == whole["metrics"] and second["ranking"] == whole["ranking"]
        rows = stored_rows(tmp_path / "notes-1", tmp_path / "notes-2")
        assert rows == stored_rows(tmp_path / "notes-whole")
        # Redis too, to the byte: learned fields, tiles of windows that were open at the stop, sessions.
        assert all_fields(connect(url)) == expected


def test_bounds_hold_over_a_stop(tmp_path: Path) -> None:
    lines = rated_events(9_000)
    source = write_lines(tmp_path / "events.jsonl", lines)
    bounds = {"growth.max_users": 60, "growth.max_items": 30, "growth.min_events": 3, "growth.tail_rows": 8}
    bounds |= {"ranking.every": 50}
    settings = {**MODEL, **bounds, "growth.expire_after": "1h", "source": f"file:{source}", "batch_bytes": 20_000}
    whole = run_job(tmp_path / "whole", settings)
    with embedded_redis((tmp_path / "whole" / "redis").resolve()) as url:
        expected, shared = all_fields(connect(url)), sorted(connect(url).keys("freshet:tail:*"))
    assert whole["published"]["users"] <= 60 and whole["published"]["items"] <= 30 and len(shared) == 16

    with embedded_redis((tmp_path / "state" / "redis").resolve()) as url:
        stop = threading.Event()
        stop_when(Client(url), 3_000, stop)
        first = run_job(tmp_path / "state", settings, stop=stop)
        assert first["stopped"] and 0 < first["events"]["learned"] < len(lines)
        second = run_job(tmp_path / "state", settings)
        assert second["metrics"] == whole["metrics"] and second["ranking"] == whole["ranking"]
        assert balanced(second["events"])
        assert {**second["published"], "writes": 0} == {**whole["published"], "writes": 0}
        assert all_fields(connect(url)) == expected
        assert sorted(connect(url).keys("freshet:tail:*")) == shared
        client = Client(url)
        best = client.recommend("r1", 100, exclude_seen=False)
        assert len(best.items) == whole["published"]["items"] == len(client.known_items())


@pytest.mark.parametrize("stream", ["online-retail", "complete-journey"])
def test_ledger_balances_on_a_real_stream(stream: str, tmp_path: Path, data: Path) -> None:
    folder = data / stream
    lines = lines_of(folder / "events.jsonl.gz")[:100_000]
    settings = {
        **MODEL,
        "source": f"file:{write_lines(tmp_path / 'events.jsonl', lines)}",
        "items": str(folder / "items.jsonl.gz"),
        "tiles.keep.5m": "9999d",
        "tiles.keep.1h": "9999d",
        "tiles.keep.1d": "9999d",
    }
    with embedded_redis((tmp_path / "state" / "redis").resolve()) as url:
        summary = run_job(tmp_path / "state", settings)
        events = summary["events"]
        assert events["read"] == len(lines)
        assert balanced(events)
        assert events["pending"] == 0
        assert events["rejected"] == events["late"] == 0
        client = Client(url)
        assert_tiles_equal(client, [orjson.loads(line) for line in lines])
        item = next(iter(client.known_items()))
        state = client.item(item)
        assert state is not None
        assert state.catalogue is not None
        assert state.catalogue["item_id"] == item


def assert_tiles_equal(client: Client, events: list[dict[str, Any]]) -> None:
    """Every "last hour" and "last day" of every user and item, at several moments, against a count by hand."""
    first, last = events[0]["timestamp"], events[-1]["timestamp"]
    moments = [last - last % DAY + DAY, last - last % 300_000 + 300_000, last + 10 * DAY]
    moments += [moment - moment % 300_000 for moment in range(first, last, (last - first) // 4)]
    for family in ("user", "item"):
        other = "item" if family == "user" else "user"
        by_entity: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for event in events:
            by_entity[event[f"{family}_id"]].append(event)
        states: dict[str, Any] = getattr(client, f"{family}s")(list(by_entity))
        for entity_id, state in states.items():
            mine = by_entity[entity_id]
            ends = {size: [ended(e, size) for e in mine] for size in (300_000, 3_600_000)}
            for as_of in moments:
                for span, length, size in (("1h", 3_600_000, 300_000), ("1d", DAY, 3_600_000)):
                    counted = [e for e, end in zip(mine, ends[size], strict=True) if as_of - length < end <= as_of]
                    tile = state.last(span, as_of)
                    assert tile.events == len(counted), (family, entity_id, span, as_of)
                    assert tile.sum == pytest.approx(sum(e["event_value"] for e in counted), abs=1e-9)
                    assert dict(tile.types) == ({"purchase": len(counted)} if counted else {})
            day = mine[-1]["timestamp"] - mine[-1]["timestamp"] % DAY
            met = {e[f"{other}_id"] for e in mine if day <= e["timestamp"] < day + DAY}
            assert state.tiles["1d"][day].distinct == len(met)
            if family == "user":
                assert_last_session_equal(state.session, mine)


def assert_last_session_equal(session: Any, mine: list[dict[str, Any]]) -> None:
    """A user's last session against the events from the last pause on."""
    events = sorted(mine, key=lambda e: e["timestamp"])
    pauses = [n for n in range(1, len(events)) if events[n]["timestamp"] - events[n - 1]["timestamp"] > 1_800_000]
    last = events[pauses[-1] if pauses else 0 :]
    assert session is not None
    assert (session.start, session.end) == (last[0]["timestamp"], last[-1]["timestamp"])
    assert (session.events, session.distinct) == (len(last), len({e["item_id"] for e in last}))


def ended(event: dict[str, Any], size: int) -> int:
    """The end of the window of this size that the event is in."""
    time_: int = event["timestamp"]
    return time_ - time_ % size + size


def test_bad_late_and_duplicate_records_leave_with_their_reason(tmp_path: Path) -> None:
    good = rated_events(2_000)
    lines = list(good)
    late = orjson.dumps({**orjson.loads(good[0]), "event_id": "late"})
    bad = [b"{not json", b"[1]", b'{"user_id":"u"}', b"\xff\xfe\x00", late, good[1_499]]
    for number, line in enumerate(bad):
        lines.insert(1_500 + number, line)
    source = write_lines(tmp_path / "events.jsonl", lines)
    with embedded_redis((tmp_path / "state" / "redis").resolve()):
        summary = run_job(tmp_path / "state", {**MODEL, "source": f"file:{source}"})
    assert summary["events"] == {
        "read": 2_006,
        "learned": 2_000,
        "rejected": 4,
        "late": 1,
        "duplicate": 1,
        "pending": 0,
    }
    letters = {letter["position"]["line"]: letter for letter in dead_letters(tmp_path / "state" / "dead-letters")}
    reasons = ["not_json", "not_object", "missing_id", "not_json", "late", "duplicate"]
    assert [letters[1_501 + n]["reason"] for n in range(len(bad))] == reasons
    assert [base64.b64decode(letters[1_501 + n]["raw"]) for n in range(len(bad))] == bad


def test_diverging_records_are_rolled_back(tmp_path: Path) -> None:
    good = rated_events(500)
    wild = orjson.dumps({**orjson.loads(good[200]), "event_id": "wild", "event_value": 1e14})
    source = write_lines(tmp_path / "events.jsonl", [*good[:200], wild, *good[200:]])
    summary = run_job(tmp_path / "wild", {**MODEL, "source": f"file:{source}"}, notes=tmp_path / "notes-wild")
    assert summary["rejected"] == {"diverged": 1}
    assert balanced(summary["events"])
    [letter] = dead_letters(tmp_path / "wild" / "dead-letters")
    assert letter["reason"] == "diverged"
    assert letter["position"] == {"file": str(source), "line": 201}
    assert base64.b64decode(letter["raw"]) == wild
    calm = write_lines(tmp_path / "calm.jsonl", good)
    run_job(tmp_path / "calm", {**MODEL, "source": f"file:{calm}"}, notes=tmp_path / "notes-calm")
    assert stored_rows(tmp_path / "notes-wild") == stored_rows(tmp_path / "notes-calm")


def test_processing_time_learns_late_events(tmp_path: Path) -> None:
    lines = rated_events(3_000)[::-1]  # the newest first: in event time nearly all would be late
    source = write_lines(tmp_path / "events.jsonl", lines)
    settings = {**MODEL, "source": f"file:{source}", "time": "processing"}
    summary = run_job(tmp_path / "state", settings)
    assert summary["events"]["learned"] == 3_000
    assert summary["tile_late"] > 0
    assert not dead_letters(tmp_path / "state" / "dead-letters")


def test_state_refuses_other_settings_and_another_source_in_the_middle(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "events.jsonl", rated_events(60_000))
    settings = {**MODEL, "source": f"file:{source}", "batch_bytes": 20_000}
    with embedded_redis((tmp_path / "state" / "redis").resolve()) as url:
        stop = threading.Event()
        stop_when(Client(url), 2_000, stop)
        summary = run_job(tmp_path / "state", settings, stop=stop)
        assert summary["stopped"]
        with pytest.raises(SettingsError, match=r"model: .*n_factors': 4.*n_factors': 8"):
            run_job(tmp_path / "state", {**settings, "model.n_factors": 8})
        with pytest.raises(SettingsError, match="stopped in the middle of"):
            run_job(tmp_path / "state", {**MODEL, "source": "generator"})
        fresh = run_job(tmp_path / "state", {**MODEL, "source": "generator", "generator.events": 1_000, "fresh": True})
        assert fresh["events"]["read"] == 1_000


def test_runs_go_on_with_other_input_and_with_more_of_the_same(tmp_path: Path) -> None:
    lines = rated_events(3_000)
    source = write_lines(tmp_path / "events.jsonl", lines[:2_000])
    with embedded_redis((tmp_path / "state" / "redis").resolve()) as url:
        run_job(tmp_path / "state", {**MODEL, "source": f"file:{source}"})
        nothing = run_job(tmp_path / "state", {**MODEL, "source": f"file:{source}"})
        assert nothing["events"]["read"] == 0
        write_lines(source, lines)
        more = run_job(tmp_path / "state", {**MODEL, "source": f"file:{source}"})
        assert more["events"]["learned"] == 1_000
        other = run_job(tmp_path / "state", {**MODEL, "source": "generator", "generator.events": 2_000})
        assert other["events"]["read"] == 2_000
        assert balanced(other["events"])
        # The day's tile is in parts, one of each input that met it; readers add them up.
        user = Client(url).user("r7")
        assert user is not None
        mine = [e for e in map(orjson.loads, lines) if e["user_id"] == "r7"]
        assert sum(tile.events for tile in user.tiles["1d"].values()) == len(mine)
        counts = defaultdict(set)
        for event in mine:
            counts[event["timestamp"] - event["timestamp"] % DAY].add(event["item_id"])
        assert {start: tile.distinct for start, tile in user.tiles["1d"].items()} == {
            start: len(items) for start, items in counts.items()
        }


def test_a_redis_that_was_wiped_is_filled_again(tmp_path: Path) -> None:
    lines = rated_events(2_000)
    first, second = (
        write_lines(tmp_path / f"{n}.jsonl", part) for n, part in enumerate((lines[:1_900], lines[1_900:]))
    )
    with embedded_redis((tmp_path / "state" / "redis").resolve()) as url:
        run_job(tmp_path / "state", {**MODEL, "source": f"file:{first}", "tiles.enabled": False})
        before = Client(url).user("r7")
        connect(url).flushall()
        run_job(tmp_path / "state", {**MODEL, "source": f"file:{second}", "tiles.enabled": False})
        users = Client(url).users([f"r{n}" for n in range(97)])
        assert before is not None
        assert all(state is not None for state in users.values())


def test_windows_close_while_the_run_goes_on(tmp_path: Path) -> None:
    settings = {**MODEL, "source": "generator", "generator.rate": 10_000, "generator.events": 10_000_000}
    with embedded_redis((tmp_path / "state" / "redis").resolve()) as url:
        client, stop = Client(url), threading.Event()
        thread = threading.Thread(target=run_job, args=(tmp_path / "state", settings), kwargs={"stop": stop})
        thread.start()
        deadline, tiles = time.monotonic() + 60, 0
        while not tiles and time.monotonic() < deadline:
            states = client.items(sorted(client.known_items())[:50]).values()
            tiles = sum(len(state.tiles) for state in states if state is not None)
            time.sleep(0.2)
        stop.set()
        thread.join()
        assert tiles


def test_republish_writes_what_a_stopped_job_knows(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "events.jsonl", rated_events(3_000))
    settings = {**MODEL, "source": f"file:{source}", "tiles.enabled": False, "shards": 2}
    with embedded_redis((tmp_path / "state" / "redis").resolve()) as url:
        run_job(tmp_path / "state", settings)
        before = all_fields(connect(url))
        ledger = connect(url).hget("freshet:ledger", "counts")
        connect(url).flushall()
        sent, _ = republish(resolved(tmp_path / "state", settings), Console(file=io.StringIO()))
        assert all_fields(connect(url)) == before and sent >= len(before)
        assert connect(url).hget("freshet:ledger", "counts") == ledger
        # It has changed nothing: the next run finds nothing to read, and all of it counted.
        again = run_job(tmp_path / "state", settings)
        assert again["events"]["read"] == 0 and again["metrics"]["n"] == 3_000
        write_lines(source, rated_events(4_000))
        assert run_job(tmp_path / "state", settings)["events"]["learned"] == 1_000


def test_republish_asks_a_job_that_runs(tmp_path: Path) -> None:
    settings = {**MODEL, "source": "generator", "generator.rate": 1_000, "generator.events": 1_000_000}
    with embedded_redis((tmp_path / "state" / "redis").resolve()) as url:
        connection, client, stop = connect(url), Client(url), threading.Event()
        thread = threading.Thread(target=run_job, args=(tmp_path / "state", settings), kwargs={"stop": stop})
        thread.start()
        while (header := client.header(0)) is None or header.summary["users"] < 50:
            time.sleep(0.05)
        # One that is not met often: nothing but what was asked for brings it back.
        [rare] = sorted(client.known_items(), key=lambda item: connection.hget(f"freshet:item:{item}", "count"))[:1]
        connection.delete(*(f"freshet:item:{item}" for item in client.known_items()))
        republish(resolved(tmp_path / "state", settings), Console(file=io.StringIO()))
        assert all(state is not None for state in client.items(sorted(client.known_items())).values())
        assert client.item(rare) is not None
        folder, now = StateFolder(tmp_path / "state"), time.time_ns() // 1_000_000
        report = examine(connection, client.keys, folder, now, 60_000, 60_000)
        assert report.healthy and report.events["learned"] > 0
        stop.set()
        thread.join()


def test_summary_is_as_documented(tmp_path: Path) -> None:
    path = tmp_path / "out" / "summary.json"
    summary = run_job(tmp_path / "state", {"source": "generator", "generator.events": 2_000, "summary": str(path)})
    assert json.loads(path.read_text()) == json.loads(json.dumps(summary))
    assert set(summary) >= {
        "events", "metrics", "metrics_run", "published", "replayed", "events_per_second",
        "seconds", "model", "shards", "stopped", "version",
    }  # fmt: skip
    assert set(summary["published"]) == {"users", "items", "writes"}
    assert set(summary["seconds"]) == {"total", "running"}
    assert {"mae", "rmse", "n"} <= set(summary["metrics"])
