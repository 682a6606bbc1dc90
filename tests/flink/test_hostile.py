"""A hostile file through the whole job: its outcome is that of the plain objects, line by line and bit for bit."""

from __future__ import annotations

import base64
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flink_jobs.embedded import embedded_redis
from serving import Client
from tests.flink.harness import balanced, dead_letters, run_job, stored_rows, write_lines
from tests.fuzz import hostile
from tests.fuzz.hostile import CROWD, Hostile
from tests.fuzz.trial import FORMAT, MAX_WEIGHT, Trial
from udfs.events import EventParser, Interaction
from udfs.tilefeed import DAY

LINES = 20_000
SETTINGS: dict[str, Any] = {
    "model.n_factors": 4,
    "model.latent_optimizer": "SGD",
    "model.latent_optimizer.lr": 0.05,
    "out_of_orderness": "5s",
    "dedup.horizon": "60s",
    "events.max_value": 5.0,
    "tiles.keep.5m": "9999d",
    "tiles.keep.1h": "9999d",
    "tiles.keep.1d": "9999d",
}


def test_a_hostile_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hostile, "HEAVY", 200)  # some ten lines of a megabyte, or of a hundred thousand levels
    source = Hostile(11)
    lines = [source.json_line().removesuffix(b"\r") for _ in range(LINES)]  # which a file has at the end of a line
    assert sum(len(line) > 900_000 for line in lines) > 2
    alone = Trial(0)
    alone.put(lines)
    alone.finish()

    path = write_lines(tmp_path / "events.jsonl", lines)
    with embedded_redis((tmp_path / "state" / "redis").resolve()) as url:
        settings = {**SETTINGS, "source": f"file:{path}", "batch_bytes": 1_000_000}
        events = run_job(tmp_path / "state", settings, notes=tmp_path / "notes")["events"]
        assert balanced(events) and events["read"] == alone.read and events["pending"] == 0
        assert events["learned"] == alone.learner.learned > 0.8 * LINES

        letters = dead_letters(tmp_path / "state" / "dead-letters")
        assert {letter["position"]["line"]: letter["reason"] for letter in letters} == alone.refused
        assert len(letters) == len(alone.refused)
        for letter in letters:
            assert base64.b64decode(letter["raw"]) == lines[letter["position"]["line"] - 1]

        rows = alone.learner.encode(alone.learner.everything())
        expected = {
            (family, row_id): row.tobytes()
            for family, of in rows.items()
            for row_id, row in zip(of.row_ids, of.weights, strict=True)
        }
        assert stored_rows(tmp_path / "notes") == expected
        parser = EventParser(FORMAT)
        usable = [line for at, line in enumerate(lines, 1) if at not in alone.refused and line.strip()]
        accepted = [parser.parse_json(line) for line in usable]
        assert 0.4 < sum(event[2] == CROWD for event in accepted) / len(accepted) < 0.6
        assert_redis_is_right(Client(url), alone, accepted)


def assert_redis_is_right(client: Client, alone: Trial, accepted: list[Any]) -> None:
    """All weights are finite, and each day of each user and item has its events."""
    for family, other in (("user", 3), ("item", 2)):
        of_entity: dict[str, list[Interaction]] = defaultdict(list)
        for event in accepted:
            of_entity[event[5 - other]].append(event)
        states: dict[str, Any] = getattr(client, f"{family}s")(list(of_entity))
        assert set(states) == set(alone.learner.rows[family])
        for entity_id, events in of_entity.items():
            state = states[entity_id]
            learned = state.learned if family == "user" else state.learned[0]
            assert np.isfinite([learned.bias, *learned.vector]).all()
            assert np.abs([learned.bias, *learned.vector]).max() <= MAX_WEIGHT
            assert learned.count == len(events)
            for span, size in (("5m", 300_000), ("1h", 3_600_000), ("1d", DAY)):
                by_window: dict[int, list[Interaction]] = defaultdict(list)
                for event in events:
                    by_window[event[0] - event[0] % size].append(event)
                tiles = state.tiles[span]
                assert {start: tile.events for start, tile in tiles.items()} == {
                    k: len(v) for k, v in by_window.items()
                }
                for start, inside in by_window.items():
                    assert tiles[start].sum == pytest.approx(sum(event[5] for event in inside), abs=1e-6)
            for start, inside in by_window.items():
                assert state.tiles["1d"][start].distinct == len({event[other] for event in inside})
