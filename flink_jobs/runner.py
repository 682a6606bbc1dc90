"""A run on this machine, from its settings to its summary."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import orjson
import redis
from rich.console import Console

from flink_jobs.catalogue import load_catalogue
from flink_jobs.embedded import embedded_redis
from flink_jobs.flink import (
    JobFailed,
    RunningJob,
    StopRefused,
    configuration,
    environments,
    execute_here,
    prepare_process,
)
from flink_jobs.nursery import Nursery, nursery
from flink_jobs.progress import Display, Monitor, Standing, Watchdog, summary_table
from flink_jobs.settings import Resolved, SettingsError
from flink_jobs.state import Manifest, StateError, StateFolder, StateInUse, may_go_on
from serving.client import Client, Unreachable
from serving.connection import connect, without_password
from serving.schema import Field, Keys, sharded, span_ms
from udfs.building import build
from udfs.events import EventFormat
from udfs.generator import SOURCE as GENERATOR
from udfs.generator import GeneratorConfig, GeneratorFeed
from udfs.growth import GrowthConfig
from udfs.intake import IntakeConfig
from udfs.learner import LearnerConfig
from udfs.publisher import Publisher, draw_submission
from udfs.reading import FileFeed, IdleFeed, InputError, input_files, peak_density
from udfs.tilefeed import TileConfig

if TYPE_CHECKING:
    from flink_jobs.topology import Job

_POLL_SECONDS: Final = 0.2
_HUNG_SECONDS: Final = 30.0  # beyond the time that a write may wait for Redis
_STOP_SECONDS: Final = 60.0
_ASK_SECONDS: Final = 2.0  # between questions to Flink that take it some milliseconds
_REPUBLISH_SECONDS: Final = 60.0
_DIVERGED_SHARE: Final = 0.01
_LATE_SHARE: Final = 0.05


def run(
    resolved: Resolved,
    console: Console,
    adapt: Callable[[Job], Job] = lambda job: job,
    interrupted: threading.Event | None = None,
    execute: Callable[[Any], Any] = execute_here,
) -> dict[str, Any]:
    """Runs the job until its input ends or it is interrupted; returns the summary.

    Parameters
    ----------
    adapt
        Changes parts of the job before it is submitted: a model of your own, say, or one that takes notes.
    interrupted
        Stops the run when it is set; by default Ctrl-C and SIGTERM do.
    execute
        Submits what is built in an environment, and returns Flink's client of the job: to another cluster, say.

    Raises
    ------
    SettingsError, InputError
        If the run can't be started as it is set.
    JobFailed, Unreachable
        If it failed.
    """
    began = time.monotonic()
    settings = resolved.settings
    files = _files(resolved)
    with _ready(resolved, console) as ready, _stopping(interrupted) as stopping:
        folder, connection, keys = ready.folder, ready.connection, ready.keys
        manifest, snapshot = ready.manifest, ready.snapshot
        # From here on a job that still writes under this prefix is fenced off.
        submission = draw_submission(connection, keys, time.time_ns() // 1_000_000)
        if snapshot is None:
            _purge(connection, keys)
        if settings.tiles.enabled and not manifest.gather:
            manifest = replace(manifest, gather=_gathering(resolved, manifest, files))
        if settings.items is not None:
            written, skipped = load_catalogue(settings.items, connection, keys)
            console.print(
                f"catalogue: {written:,} items" + (f", {skipped:,} lines without a usable item_id" * bool(skipped))
            )
        folder.store(manifest)
        run_id = f"{manifest.epoch}-{manifest.runs}"
        monitor = Monitor(connection, keys, settings.shards, run_id, submission, settings.metrics)
        prepare_process(folder.logs)
        console.print("starting Flink" + (f" from {Path(snapshot).name}" if snapshot else ""), highlight=False)
        parts = adapt(_job(resolved, manifest, ready.url, files, run_id, submission))
        job = _submit(parts, resolved, folder, snapshot, ready.workers.launcher, execute)
        with Display(console) as display:
            patience = _HUNG_SECONDS + span_ms(settings.redis_client.patience) / 1_000
            watch = _Watch(job, monitor, display, Watchdog(patience), ready.workers, stopping)
            complete, savepoint = watch.until_stopped(folder.savepoints)
        manifest = replace(manifest, savepoint=savepoint, ended=complete, part=manifest.part + complete)
        folder.store(manifest)
        folder.drop_snapshots_but(savepoint)
        standing = monitor.final()
        summary = _summary(resolved, standing, stopped=not complete, total=time.monotonic() - began)
        if settings.summary is not None:
            settings.summary.parent.mkdir(parents=True, exist_ok=True)
            settings.summary.write_bytes(orjson.dumps(summary, option=orjson.OPT_INDENT_2) + b"\n")
        _report(resolved, console, summary, standing, Client(connection, settings.prefix))
        return summary


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
        with _ready(resolved, console) as ready:
            if ready.snapshot is None:
                raise StateError(f"{ready.folder.path} has no state to write")
            sent = _written_by_another_job(resolved, ready)
    except StateInUse:
        console.print("a job is running on this state: it will write all it knows", highlight=False)
        with _redis_url(resolved, StateFolder(settings.state_dir)) as url:
            connection, keys = _reachable(url), Keys(settings.prefix)
            before = _ask_learners(connection, keys, settings.shards)
            sent = _wait_for_learners(connection, keys, settings.shards, lambda: None) - before
    return sent, time.monotonic() - began


def _written_by_another_job(resolved: Resolved, ready: _Ready) -> int:
    settings, connection, keys = resolved.settings, ready.connection, ready.keys
    submission = draw_submission(connection, keys, time.time_ns() // 1_000_000)
    before = _ask_learners(connection, keys, settings.shards)
    prepare_process(ready.folder.logs)
    # Of a run of its own: the next one counts from where the last one ended.
    run_id = f"{ready.manifest.epoch}-{ready.manifest.runs}-republish"
    parts = replace(_job(resolved, ready.manifest, ready.url, None, run_id, submission), windows=None)
    # It leaves no checkpoint that a run could take up: it does not know how far the source was read.
    still = replace(resolved, settings=settings.model_copy(update={"checkpoint_interval": "365d"}))
    job = _submit(parts, still, ready.folder, ready.snapshot, ready.workers.launcher, execute_here)

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
        if time.monotonic() - changed > _REPUBLISH_SECONDS:
            raise JobFailed(f"the job has done nothing for {_REPUBLISH_SECONDS:.0f} s: see freshet health")
        time.sleep(_POLL_SECONDS)


# ------------------------------------------------------------------------------------------------ before


@dataclass(frozen=True)
class _Ready:
    """What a job needs before it can be submitted; nobody else uses the state meanwhile."""

    folder: StateFolder
    workers: Nursery
    url: str
    connection: Any
    keys: Keys
    manifest: Manifest
    snapshot: str | None


@contextlib.contextmanager
def _ready(resolved: Resolved, console: Console) -> Iterator[_Ready]:
    folder = StateFolder(resolved.settings.state_dir)
    with folder.locked(), nursery() as workers, _redis_url(resolved, folder) as url:
        connection = _reachable(url)
        keys = Keys(resolved.settings.prefix)
        if resolved.settings.fresh:
            folder.clear()
        manifest, snapshot = _take_up(resolved, folder, connection, keys, console)
        if manifest.shards_before is not None:
            forget_shards(connection, keys, manifest.shards_before, resolved.settings.shards)
            manifest = replace(manifest, shards_before=None)
        yield _Ready(folder, workers, url, connection, keys, manifest, snapshot)


def _files(resolved: Resolved) -> list[tuple[str, str]]:
    kind, _, path = resolved.settings.source.partition(":")
    if kind != "file":
        return []
    found = input_files(Path(path).expanduser().resolve())
    files = [(str(p), resolved.settings.format or f) for p, f in found]
    unclear = [p for p, f in files if not f]
    if unclear:
        raise InputError(f"{unclear[0]} ends in neither .jsonl nor .csv: say which it is with --format")
    return files


@contextlib.contextmanager
def _redis_url(resolved: Resolved, folder: StateFolder) -> Iterator[str]:
    if resolved.settings.redis == "embedded":
        with embedded_redis(folder.redis) as url:
            yield url
    else:
        yield resolved.settings.redis


@contextlib.contextmanager
def _stopping(given: threading.Event | None) -> Iterator[threading.Event]:
    """An event that Ctrl-C or SIGTERM sets. A second one ends the program at once."""
    if given is not None:
        yield given
        return
    event = threading.Event()

    def on_signal(number: int, frame: Any) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _reachable(url: str) -> Any:
    connection = connect(url)
    try:
        if connection.info("cluster").get("cluster_enabled"):
            raise SettingsError(
                f"redis: {without_password(url)} is a Redis Cluster; freshet compares and sets many keys in one "
                "script, which a cluster can't run: give a single server, or a replicated one"
            )
    except redis.exceptions.AuthenticationError as error:
        raise SettingsError(f"redis: {without_password(url)} refused the login: {error}") from error
    except (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError) as error:
        raise Unreachable(f"Redis at {without_password(url)} does not answer: {error}") from error
    return connection


def _purge(connection: Any, keys: Keys) -> None:
    """Deletes all that is known under the prefix, save who may write."""
    if not connection.exists(keys.ledger):
        return
    batch: list[bytes] = []
    for key in connection.scan_iter(match=keys.everything, count=5_000):
        if key != keys.fence.encode():
            batch.append(key)
        if len(batch) >= 5_000:
            connection.unlink(*batch)
            batch = []
    if batch:
        connection.unlink(*batch)


def forget_shards(connection: Any, keys: Keys, before: int, now: int) -> None:
    """Deletes what only the learners of so many shards before have written; what others wrote of an item stays."""
    learned = (Field.VECTOR, Field.BIAS, Field.COUNT, Field.UPDATED_AT, Field.VERSION, Field.POPULARITY)
    of_now = {sharded(name, shard, now) for name in learned for shard in range(now)}
    fields = [f for name in learned for shard in range(before) if (f := sharded(name, shard, before)) not in of_now]
    for shard in range(before) if fields else ():
        pipe = connection.pipeline(transaction=False)
        for member, _ in connection.zscan_iter(keys.items(shard), count=5_000):
            pipe.hdel(keys.item(member.decode()), *fields)
            if len(pipe) >= 1_000:
                pipe.execute()
        pipe.execute()
    for shard in range(now, before):
        connection.unlink(keys.items(shard), keys.model(shard))
        of_shards = (Field.ALIVE, Field.REPUBLISH, Field.ATTEMPT, Field.REACHED)
        connection.hdel(keys.ledger, *(f"{name}:{shard}" for name in of_shards))


def _fixed(resolved: Resolved) -> dict[str, Any]:
    """What learned state depends on: it can't be read, or would not be the same, under other values."""
    settings = resolved.settings
    tiles, growth = settings.tiles, settings.growth
    tail = [growth.min_events, growth.tail_rows, growth.tail_counters]
    return {
        "prefix": settings.prefix,
        "redis": "embedded" if settings.redis == "embedded" else without_password(settings.redis),
        "shards": settings.shards,
        "model": {"name": resolved.model_name, **resolved.model_params},
        "tiles": [tiles.enabled, tiles.spans, tiles.event_types, tiles.session_gap] if tiles.enabled else [False],
        "serving.half_life": settings.serving.half_life,
        "metrics": sorted(settings.metrics),
        "growth.min_events": tail if growth.min_events > 1 else [1],
    }


def _take_up(
    resolved: Resolved, folder: StateFolder, connection: Any, keys: Keys, console: Console
) -> tuple[Manifest, str | None]:
    """The manifest of this run, and the snapshot that it goes on from."""
    settings = resolved.settings
    source, now = settings.source, time.time_ns() // 1_000_000
    bound = now + span_ms(settings.events.max_future)
    known = folder.load()
    if known is not None:
        manifest = may_go_on(known, _fixed(resolved), source)
        snapshot = folder.newest_snapshot(known)
        if snapshot is not None:
            _not_newer(connection, keys, manifest)
            # The bound on timestamps is drawn where an input begins, not at each restart: a replay decides alike.
            return (replace(manifest, future_bound=bound, gather=0) if known.ended else manifest), snapshot
        console.print("the last run ended before its first checkpoint: starting anew")
    elif connection.exists(keys.ledger) and not settings.fresh:
        raise SettingsError(
            f"prefix: Redis holds state under {settings.prefix!r} that {folder.path} knows nothing of: give the "
            "--state-dir that it belongs to, or another --prefix, or delete it and start anew with --fresh"
        )
    return Manifest(now, settings.prefix, _fixed(resolved), source=source, ended=False, future_bound=bound), None


def _not_newer(connection: Any, keys: Keys, manifest: Manifest) -> None:
    """Refuses to go on under a prefix that a younger state has written: readers would see none of it."""
    versions = [connection.hget(keys.model(shard), Field.VERSION) for shard in range(manifest.fixed["shards"])]
    if any(v is not None and int(v.partition(b".")[0]) > manifest.epoch for v in versions):
        raise SettingsError(
            f"prefix: Redis holds under {keys.prefix!r} what a younger state has written, and would take nothing of "
            "this one: go on with that --state-dir, or start anew with --fresh"
        )


def _gathering(resolved: Resolved, manifest: Manifest, files: list[tuple[str, str]]) -> int:
    from flink_jobs.windows import gathering_span

    settings = resolved.settings
    if files:
        density = peak_density(files, _event_format(resolved, manifest))
    else:
        density = 1 / settings.generator.interval
    return gathering_span(span_ms(settings.tiles.spans[0]), density)


def _event_format(resolved: Resolved, manifest: Manifest) -> EventFormat:
    settings = resolved.settings
    return EventFormat(
        columns=settings.field,
        timestamp_unit=settings.timestamp_unit,
        default_type=settings.events.default_type,
        max_id_bytes=settings.events.max_id_bytes,
        max_value=settings.events.max_value,
        future_bound=manifest.future_bound,
    )


# ---------------------------------------------------------------------------------------------------- job


def _job(
    resolved: Resolved,
    manifest: Manifest,
    url: str,
    files: list[tuple[str, str]] | None,
    run_id: str,
    submission: int,
) -> Job:
    """The topology's parts, from the settings; without ``files``, of a job that reads nothing."""
    # Imported here: PyFlink takes seconds, and settings should be judged without it.
    from flink_jobs.sources import FeedSource
    from flink_jobs.topology import Job
    from flink_jobs.windows import Windows

    settings = resolved.settings
    fmt = _event_format(resolved, manifest)
    journal = StateFolder(settings.state_dir).journal
    if files is None:
        source = FeedSource(settings.source.partition(":")[0], IdleFeed, ("", ""), journal)
    elif files:
        feed: Any = functools.partial(FileFeed, files, fmt, run_id, settings.batch_bytes)
        source = FeedSource("file", feed, ("file", "line"), journal)
    else:
        config = GeneratorConfig(**settings.generator.model_dump())
        feed = functools.partial(GeneratorFeed, config, run_id)
        source = FeedSource(GENERATOR, feed, ("source", "index"), journal)
    serving, tiles, growth = settings.serving, settings.tiles, settings.growth
    ttl = span_ms(serving.expire_after) if serving.expire_after else 0
    patience = span_ms(settings.redis_client.patience) / 1_000
    return Job(
        source=source,
        intake=IntakeConfig(
            fmt=fmt,
            shards=settings.shards,
            event_time=resolved.time == "event",
            merged=source.merged,
            out_of_orderness=span_ms(settings.out_of_orderness),
            dedup_horizon=span_ms(settings.dedup.horizon),
            tiles=TileConfig(tuple(tiles.event_types), span_ms(tiles.session_gap)) if tiles.enabled else None,
            position_names=source.position_names,
            run_id=run_id,
            epoch=manifest.epoch,
            part=manifest.part,
        ),
        learner=LearnerConfig(
            weights=dict(settings.weight),
            clip=resolved.clip,
            metrics=tuple(settings.metrics),
            seen=serving.seen,
            half_life=span_ms(serving.half_life),
            growth=GrowthConfig(
                max_users=growth.max_users,
                max_items=growth.max_items,
                expire_after=span_ms(growth.expire_after) if growth.expire_after else None,
                min_events=growth.min_events,
                tail_rows=growth.tail_rows,
                tail_counters=growth.tail_counters,
            ),
            repeatable=source.merged or resolved.time == "event",
            position_names=source.position_names,
            run_id=run_id,
            part=manifest.part,
        ),
        model=functools.partial(build, resolved.model_name, resolved.model_params, resolved.max_weight),
        publisher=functools.partial(Publisher, url, settings.prefix, submission, ttl, patience),
        windows=Windows(tiles.spans, tiles.event_types, tiles.session_gap, manifest.gather) if tiles.enabled else None,
        keep={span: span_ms(keep) for span, keep in tiles.kept.items()},
        dead_letters=str(resolved.dead_letters.resolve()),
        shards=settings.shards,
        part=manifest.part,
    )


def _submit(
    job: Job,
    resolved: Resolved,
    folder: StateFolder,
    snapshot: str | None,
    python: Path,
    execute: Callable[[Any], Any] = execute_here,
    changes: Mapping[str, str] | None = None,
) -> RunningJob:
    """``changes``: to Flink's configuration, by its names."""
    from flink_jobs.topology import build as build_topology

    values = configuration(resolved.settings, folder.checkpoints, snapshot, python)
    env, table_env = environments({**values, **(changes or {})})
    build_topology(env, table_env, job)
    return RunningJob(execute(env))


class _Watch:
    """A job from its submission to its savepoint: shows its progress, and ends workers that hang."""

    def __init__(
        self,
        job: RunningJob,
        monitor: Monitor,
        display: Display,
        watchdog: Watchdog,
        workers: Nursery,
        interrupted: threading.Event,
    ) -> None:
        self._job = job
        self._monitor = monitor
        self._display = display
        self._watchdog = watchdog
        self._workers = workers
        self._interrupted = interrupted
        self._standing = Standing({"read": 0})
        self._checkpointing: tuple[int, int] | None = None
        self._asked_at = 0.0
        self._lacking = False

    def until_stopped(self, savepoints: Path) -> tuple[bool, str]:
        """Whether the whole input was learned, and the savepoint.

        Raises
        ------
        JobFailed
            If the job failed for good, or goes on but gives no savepoint.
        """
        refused: dict[int, float] = {}  # since when, by attempt: what a restart has mended is no reason to give up
        while True:
            complete = self._until_done()
            try:
                return complete, self._job.stop(savepoints, drain=complete, meanwhile=self._while_stopping)
            except StopRefused as error:
                since = refused.setdefault(self._job.attempt, time.monotonic())
                if time.monotonic() - since > _STOP_SECONDS:
                    raise JobFailed(str(error)) from error
                time.sleep(_POLL_SECONDS)

    def _until_done(self) -> bool:
        """True when the input is learned, False when an interrupt came."""
        while True:
            standing = self._look("")
            if standing.fenced:
                self._job.cancel()
                raise JobFailed(
                    "another job, submitted later, writes under the same prefix: this one has ended for good. What it "
                    "learned since its last checkpoint is lost; go on with the other, or give one of them another "
                    "--prefix"
                )
            if self._job.ended:
                raise self._job.failure()
            # After a restart Redis is ahead of the job, until the job has caught up.
            if standing.complete and standing.attempt == self._job.attempt:
                return True
            if self._interrupted.is_set():
                return False
            self._ask_flink()
            self._end_if_hung(standing.alive | self._checkpoint_mark())
            self._interrupted.wait(_POLL_SECONDS)

    def _ask_flink(self) -> None:
        """Looks, now and then, at its checkpoints, and for task managers that are gone."""
        if time.monotonic() - self._asked_at < _ASK_SECONDS:
            return
        self._asked_at, self._checkpointing = time.monotonic(), self._job.checkpointing
        lacking = self._job.lacks_task_managers()
        if lacking and self._lacking:  # not one that is just coming
            self._display.say("a task manager is lost: starting another; the job goes on from its checkpoint")
            self._job.start_task_manager()
        self._lacking = lacking and not self._lacking

    def _checkpoint_mark(self) -> dict[str, object]:
        """What must move while a checkpoint is under way: it finds a worker that hangs and has no beat."""
        return {} if self._checkpointing is None else {"checkpoint": self._checkpointing}

    def _while_stopping(self) -> None:
        standing = self._look(", stopping")
        # Windows that close write; that nobody has beats any more is as it should be.
        self._end_if_hung({"stop": (standing.writes, standing.published_at, standing.alive)})
        time.sleep(_POLL_SECONDS)

    def _look(self, note: str) -> Standing:
        try:
            self._standing = self._monitor.standing()
        except (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError):
            note += ", Redis does not answer"  # the job waits for it, and fails when it has waited too long
        self._display.show(self._standing, self._job.status.lower() + note)
        return self._standing

    def _end_if_hung(self, marks: Mapping[str, object]) -> None:
        if self._watchdog.hung(marks, time.monotonic()):
            self._display.say(
                "no progress: ending the workers, which seem to hang; the job goes on from its checkpoint"
            )
            self._workers.end_workers()


# -------------------------------------------------------------------------------------------------- after


def _summary(resolved: Resolved, standing: Standing, *, stopped: bool, total: float) -> dict[str, Any]:
    """What ``--summary`` writes: a contract with other programs."""
    running = (standing.published_at - standing.first_read_at) / 1_000 if standing.first_read_at else 0.0
    return {
        "events": standing.events,
        "rejected": standing.rejected,
        "carried": standing.carried,
        "tile_late": standing.tile_late,
        "metrics": standing.metrics,
        "metrics_run": standing.metrics_run,
        "published": {"users": standing.users, "items": standing.items, "writes": standing.writes},
        "replayed": standing.replayed,
        "events_per_second": standing.events["read"] / running if running > 0 else None,
        "seconds": {"total": total, "running": max(running, 0.0)},
        "model": resolved.model_name,
        "shards": resolved.settings.shards,
        "stopped": stopped,
        "version": importlib.metadata.version("freshet"),
    }


def _report(resolved: Resolved, console: Console, summary: dict[str, Any], standing: Standing, client: Client) -> None:
    settings, events = resolved.settings, summary["events"]
    console.print(summary_table(summary, standing.rejected))
    if standing.rejected.get("diverged", 0) > _DIVERGED_SHARE * max(events["read"], 1):
        console.print(
            "warning: learning diverged on more than 1% of the records; they were rolled back. Lower the learning "
            "rate (--set model.latent_optimizer=SGD --set model.latent_optimizer.lr=0.005), or scale event_value."
        )
    if events["late"] > _LATE_SHARE * max(events["read"], 1):
        console.print(
            "warning: more than 5% of the records were late. If the input is not in the order of time, sort it, "
            "raise --set out_of_orderness=..., or learn in the order of arrival with --time processing."
        )
    if events["read"] == 0 and not summary["stopped"]:
        console.print("nothing new was read: this state has learned the whole input before (--fresh starts anew).")
    where = "".join(
        f" --{name} {value}"
        for name, value, default in (
            ("redis", without_password(settings.redis), "embedded"),
            ("prefix", settings.prefix, "freshet"),
            ("state-dir", str(settings.state_dir), ".freshet"),
        )
        if value != default and not (name == "state-dir" and settings.redis != "embedded")
    )
    if standing.latest is not None:
        user_id, item_id = standing.latest
        user, item = client.user(user_id), client.item(item_id)
        best = client.recommend(user_id, 3).items
        console.print(f"\nfreshet user {user_id}{where}", style="bold", highlight=False)
        if user is not None and user.learned is not None:
            console.print(
                f"  {user.learned.count} events, bias {user.learned.bias:.3f}, last items {list(user.seen[-3:])}"
            )
        console.print(f"freshet item {item_id}{where}", style="bold", highlight=False)
        if item is not None:
            title = (item.catalogue or {}).get("title", "")
            console.print(f"  {sum(s.count for s in item.learned.values())} events {title}")
        console.print(f"freshet recommend {user_id} -k 3{where}", style="bold", highlight=False)
        for r in best:
            console.print(f"  {r.item_id} {r.score:.3f} {(r.catalogue or {}).get('title', '')}")
    if summary["stopped"]:
        console.print(
            f"\nstopped; what was learned is in Redis. The same command goes on from here ({events['pending']} events "
            "wait in open windows); --fresh starts anew."
        )


__all__ = ["JobFailed", "republish", "run"]
