"""Writes all that is learned to Redis again."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from rich.console import Console

from flink_jobs.flink import JobFailed, prepare_process
from flink_jobs.nursery import Nursery
from flink_jobs.preparing import Ready, job_of, prepared, reachable, redis_url, submit
from flink_jobs.settings import Resolved
from flink_jobs.state import StateError, StateFolder, StateInUse
from serving.schema import Field, Keys
from udfs.publisher import draw_submission

_POLL_SECONDS: Final = 0.2
_PATIENCE_SECONDS: Final = 60.0


def republish(resolved: Resolved, console: Console) -> tuple[int, float]:
    """Has all learned rows written to Redis again: by the job that runs, or else by one that stands by with its state.

    Returns
    -------
    How many entities were sent, and the seconds that it took.

    Raises
    ------
    SettingsError, StateError, JobFailed, Unreachable
        If there is no state to write, or it can't be written.
    """
    began, settings = time.monotonic(), resolved.settings
    try:
        with prepared(resolved, console) as (ready, workers):
            if ready.snapshot is None:
                raise StateError(f"{ready.folder.path} has no state to write")
            sent = written_by_another_job(ready, workers)
    except StateInUse:
        console.print("a job is running on this state: it will write all it knows", highlight=False)
        with redis_url(resolved, StateFolder(settings.state_dir)) as url:
            connection, keys = reachable(url), Keys(settings.prefix)
            before = _ask_learners(connection, keys, settings.shards)
            sent = _wait_for_learners(connection, keys, settings.shards, lambda: None) - before
    return sent, time.monotonic() - began


def written_by_another_job(ready: Ready, workers: Nursery) -> int:
    resolved, settings, connection, keys = ready.resolved, ready.resolved.settings, ready.connection, ready.keys
    submission = draw_submission(connection, keys, time.time_ns() // 1_000_000)
    before = _ask_learners(connection, keys, settings.shards)
    prepare_process(ready.folder.logs, settings.logs)
    # Of a run of its own: the next one counts from where the last one ended.
    run_id = f"{ready.manifest.run_id}-republish"
    parts = replace(job_of(resolved, ready.manifest, ready.url, None, run_id, submission), windows=None)
    # It leaves no checkpoint that a run could take up: it does not know how far the source was read.
    still = replace(resolved, settings=settings.model_copy(update={"checkpoint_interval": "365d"}))
    job = submit(parts, still, ready.folder, ready.snapshot, workers.launcher)

    def check() -> None:
        if job.ended:
            raise job.failure()

    sent = _wait_for_learners(connection, keys, settings.shards, check) - before
    job.cancel()  # nothing has changed that would have to be saved
    return sent


def _ask_learners(connection: Any, keys: Keys, shards: int) -> int:
    """Asks each shard's learner to write all it knows; returns how many entities were sent before."""
    connection.hset(keys.ledger, mapping={f"{Field.REPUBLISH}:{shard}": 1 for shard in range(shards)})
    return int(connection.hget(keys.ledger, "writes") or 0)


def _wait_for_learners(connection: Any, keys: Keys, shards: int, check: Callable[[], None]) -> int:
    """Waits until all have done it; returns how many entities were sent since Redis began to count."""
    names = [*(f"{Field.REPUBLISH}:{shard}" for shard in range(shards)), "writes", Field.ALIVE]
    last, changed = None, time.monotonic()
    while True:
        check()
        now = connection.hmget(keys.ledger, names)
        if not any(now[:shards]):
            return int(now[shards] or 0)
        if now != last:
            last, changed = now, time.monotonic()
        if time.monotonic() - changed > _PATIENCE_SECONDS:
            raise JobFailed(f"the job has done nothing for {_PATIENCE_SECONDS:.0f} s: see freshet health")
        time.sleep(_POLL_SECONDS)
