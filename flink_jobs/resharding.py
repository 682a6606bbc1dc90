"""Moves a stopped state to another number of shards.

    old snapshot -> a job that stands by -> savepoint -> manifest -> Redis

The job is restored from the last snapshot and reads nothing: intake, reader and open windows go along as they are. Its
learners give out what they know, and take up what :mod:`udfs.resharding` made of it. The manifest names the savepoint
only when that is complete, and Redis is written after that. So whatever ends the command, there is one state, the old
or the new; and where Redis is behind it, the manifest says so, and the next run, or a second try, sees to it.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final

from rich.console import Console

from flink_jobs.flink import JobFailed, RunningJob, StopRefused, prepare_process
from flink_jobs.nursery import Nursery
from flink_jobs.preparing import Ready, forget_shards, job_of, prepared, submit
from flink_jobs.republishing import written_by_another_job
from flink_jobs.settings import Resolved, SettingsError
from flink_jobs.shardkeys import shard_keys
from flink_jobs.state import Manifest, StateError, StateFolder
from udfs.models import ModelError
from udfs.publisher import draw_submission
from udfs.resharding import Exchange, check, move, parts

_POLL_SECONDS: Final = 0.1
# It leaves no checkpoint that a run could take up, and does not begin again where its tasks have begun to change.
_ONCE: Final = {"execution.checkpointing.interval": "31536000000 ms", "restart-strategy.type": "disable"}


@dataclass(frozen=True)
class Moved:
    """What was moved: users, distinct items, the shards before and after, entities sent to Redis, and the seconds."""

    users: int
    items: int
    before: int
    after: int
    sent: int
    seconds: float


def reshard(resolved: Resolved, console: Console) -> Moved:
    """Moves the state to ``resolved.settings.shards``, and has Redis written anew.

    Raises
    ------
    SettingsError, StateError
        If there is no state to move, a job is running on it, or it can't be moved to that number.
    JobFailed, Unreachable
        If the job failed.
    """
    began, settings = time.monotonic(), resolved.settings
    folder, after = StateFolder(settings.state_dir), settings.shards
    known = None if settings.fresh else folder.load()
    if known is None:
        raise StateError(f"{folder.path} has no state to move (and with --fresh there is none to keep)")
    before = known.fixed["shards"]
    if before == after and known.shards_before is None:
        raise SettingsError(f"shards: the state in {folder.path} has {after} already; give another --shards")
    if settings.growth.min_events > 1:
        raise SettingsError(
            f"growth.min_events: a state where ids share rows ({settings.growth.min_events}) can't be moved to other "
            "shards; keep its number, or start anew with --fresh"
        )
    if known.source.startswith("kafka:"):
        raise SettingsError(
            f"source: the state reads {known.source}; a state that reads a topic can't be moved to other shards yet, "
            "since the job that moves it does not keep the connector's offsets"
        )
    # The state's own source: its position is kept, whatever source the next run has.
    with prepared(_with(resolved, shards=before, source=known.source), console) as (ready, workers):
        was = ready.resolved
        if ready.snapshot is None:
            raise StateError(f"{folder.path} has no snapshot to move: the last run ended before its first checkpoint")
        prepare_process(folder.logs, resolved.settings.logs)
        manifest, users, items = known, 0, 0
        if before != after:
            manifest, users, items = _move(was, after, known, ready, workers, console)
            folder.store(manifest)
        console.print("writing Redis", highlight=False)
        snapshot = folder.newest_snapshot(manifest)
        now = replace(ready, resolved=_with(was, shards=after), manifest=manifest, snapshot=snapshot)
        sent = written_by_another_job(now, workers)
        if manifest.shards_before is not None:
            forget_shards(ready.connection, ready.keys, manifest.shards_before, after)
        folder.store(replace(manifest, shards_before=None))
        if manifest.savepoint is not None:
            folder.drop_snapshots_but(manifest.savepoint)
    return Moved(users, items, before, after, sent, time.monotonic() - began)


def _with(resolved: Resolved, **changes: object) -> Resolved:
    return replace(resolved, settings=resolved.settings.model_copy(update=changes))


def _move(
    was: Resolved, after: int, known: Manifest, ready: Ready, workers: Nursery, console: Console
) -> tuple[Manifest, int, int]:
    """Makes the savepoint with the new shards; returns the manifest that names it, and how many users and items."""
    from flink_jobs.topology import Move

    folder, before = ready.folder, was.settings.shards
    submission = draw_submission(ready.connection, ready.keys, time.time_ns() // 1_000_000)
    job = job_of(was, ready.manifest, ready.url, None, f"{ready.manifest.run_id}-reshard", submission)
    try:
        check(job.model(), before, after)
    except ModelError as error:
        raise SettingsError(
            f"{error}. So a state of {before} shards can be moved to {2 * before}, {3 * before} and so on, but not to "
            f"{after}: give one of these, or start anew with --fresh"
        ) from error
    job = replace(job, move=Move(after, str(folder.exchange)))
    if known.ended:  # no window is open
        job = replace(job, windows=None)
    with _scratch(folder) as exchange:
        console.print(f"starting Flink, to move {before} to {after} shards", highlight=False)
        running = submit(job, was, folder, ready.snapshot, workers.launcher, changes=_ONCE)
        with _cancelled_on_error(running):
            _wait(running, lambda: all(exchange.given(shard) for shard in range(before)))
            console.print("moving users, and the items that they know", highlight=False)
            users, items = 0, set()
            for olds, targets in parts(before, after):
                states = move([exchange.old(shard) for shard in olds], targets, after, job.model, job.learner)
                for target, state in zip(targets, states, strict=True):
                    exchange.put(target, state)
                    users += sum(name.startswith("user:") for name in state.rows)
                    items |= {name for name in state.rows if name.startswith("item:")}
            exchange.note_ready()
            keys = {*shard_keys(before), *shard_keys(after)}
            _wait(running, lambda: all(map(exchange.taken, keys)))
            console.print("taking the savepoint", highlight=False)
            try:
                savepoint = running.stop(folder.savepoints, drain=False, meanwhile=lambda: time.sleep(_POLL_SECONDS))
            except StopRefused as error:
                raise JobFailed(f"{error}; the state is as it was") from error
    fixed = {**known.fixed, "shards": after}
    epoch = max(time.time_ns() // 1_000_000, known.epoch + 1)
    return (
        replace(known, epoch=epoch, fixed=fixed, savepoint=savepoint, shards_before=before, on_cluster=False),
        users,
        len(items),
    )


@contextlib.contextmanager
def _scratch(folder: StateFolder) -> Iterator[Exchange]:
    """An empty exchange, which goes with the block; one that an interrupted command left goes first."""
    shutil.rmtree(folder.exchange, ignore_errors=True)
    folder.exchange.mkdir()
    try:
        yield Exchange(folder.exchange)
    finally:
        shutil.rmtree(folder.exchange, ignore_errors=True)


@contextlib.contextmanager
def _cancelled_on_error(running: RunningJob) -> Iterator[None]:
    done = False
    try:
        yield
        done = True
    finally:
        if not done and not running.ended:
            running.cancel()


def _wait(running: RunningJob, done: Callable[[], bool]) -> None:
    while not done():
        if running.ended:
            raise running.failure()
        time.sleep(_POLL_SECONDS)
