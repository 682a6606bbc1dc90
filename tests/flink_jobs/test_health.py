"""A probe: what it says of a job from what the job left behind."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from flink_jobs.health import Health, examine
from flink_jobs.state import StateFolder
from serving.connection import connect
from serving.schema import Keys

KEYS = Keys("p")
NOW = 1_700_000_000_000
ALIVE = {"alive_at": NOW - 1_000, "alive_at:0": NOW - 2_000, "published_at": NOW - 900_000, "counts": '{"read":7}'}


def examined(connection: Any, ledger: Mapping[str, Any], folder: StateFolder | None = None) -> Health:
    if ledger:
        connection.hset(KEYS.ledger, mapping=dict(ledger))
    return examine(connection, KEYS, folder, NOW, 60_000, 600_000)


def test_a_job_without_events_is_healthy(redis_connection: Any) -> None:
    redis_connection.hset(KEYS.model(0), "summary", '{"counts":{"learned":5}}')
    assert examined(redis_connection, ALIVE) == Health(
        True, [], {"read": 7, "learned": 5}, {"intake": 1.0, "shard 0": 2.0, "published": 900.0}
    )


@pytest.mark.parametrize(
    ("ledger", "reason"),
    [
        ({}, "no job has written under the prefix 'p' yet"),
        ({"alive_at": NOW}, "no learner has given a sign of life yet"),
        (ALIVE | {"alive_at": NOW - 61_000}, "intake gave its last sign of life 61 s ago"),
        (ALIVE | {"alive_at:windows": NOW - 99_000}, "windows gave its last sign of life 99 s ago"),
        (ALIVE | {"alive_at:1": NOW - 90_000}, "shard 1 gave its last sign of life 90 s ago"),
        ({"alive_at:0": NOW}, "intake never gave a sign of life"),
    ],
)
def test_reasons(redis_connection: Any, ledger: Mapping[str, Any], reason: str) -> None:
    found = examined(redis_connection, ledger)
    assert not found.healthy and [r for r in found.reasons if r.startswith(reason)]


def test_checkpoints(redis_connection: Any, tmp_path: Path) -> None:
    folder = StateFolder(tmp_path)
    assert examined(redis_connection, ALIVE, folder).ages["checkpoint"] is None
    # None yet, and the run has read for longer than one may take.
    assert not examined(redis_connection, ALIVE | {"first_read_at": NOW - 601_000}, folder).healthy
    done = folder.checkpoints / "job" / "chk-7" / "_metadata"
    done.parent.mkdir(parents=True)
    done.touch()
    os.utime(done, (NOW / 1_000 - 30, NOW / 1_000 - 30))
    found = examined(redis_connection, {}, folder)
    assert found.healthy and found.ages["checkpoint"] == 30.0
    os.utime(done, (NOW / 1_000 - 700, NOW / 1_000 - 700))
    [reason] = examined(redis_connection, {}, folder).reasons
    assert reason.startswith("no checkpoint was completed for 700 s")


def test_a_redis_that_is_away(tmp_path: Path) -> None:
    found = examine(connect(f"unix://{tmp_path}/nobody"), KEYS, None, NOW, 1, 1)
    assert not found.healthy and found.reasons[0].startswith("Redis does not answer")
