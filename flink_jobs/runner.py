"""A run on this machine, from its settings to its summary."""

from __future__ import annotations

import contextlib
import importlib.metadata
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import orjson
from rich.console import Console

from flink_jobs import rankings
from flink_jobs.choosing import chosen
from flink_jobs.flink import JobFailed, execute_here, prepare_process, start_jvm
from flink_jobs.kafka import find_kafka
from flink_jobs.preparing import begin, files_of, job_of, prepared, submit
from flink_jobs.progress import Display, Monitor, Standing, Watchdog, summary_table
from flink_jobs.settings import Resolved
from flink_jobs.state import StateFolder
from flink_jobs.watching import Watch
from serving.client import Client
from serving.connection import without_password
from serving.schema import span_ms

if TYPE_CHECKING:
    from flink_jobs.topology import Job

_HUNG_SECONDS: Final = 30.0  # beyond the time that a write may wait for Redis
_LAST_SECONDS: Final = 10.0
_POLL_SECONDS: Final = 0.1
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
    files = files_of(resolved)

    def start(folder: StateFolder) -> None:
        prepare_process(folder.logs, settings.logs)
        start_jvm()

    with prepared(resolved, console, start) as (ready, workers), _stopping(interrupted) as stopping:
        folder, connection, keys, snapshot = ready.folder, ready.connection, ready.keys, ready.snapshot
        kafka = find_kafka(resolved)  # before anything is changed: it may not be there
        ready = chosen(ready, files, kafka, console)
        resolved = ready.resolved
        marks: dict[str, Any] = {"on_cluster": False}
        if snapshot is not None and Path(snapshot).parent == folder.savepoints:
            marks["savepoint"] = snapshot  # one of a cluster's job is not noted yet
        manifest, submission = begin(ready, files, console, **marks)
        run_id = manifest.run_id
        monitor = Monitor(connection, keys, settings.shards, run_id, submission, settings.metrics)
        console.print("starting Flink" + (f" from {Path(snapshot).name}" if snapshot else ""), highlight=False)
        parts = adapt(job_of(resolved, manifest, ready.url, files, run_id, submission, kafka))
        job = submit(parts, resolved, folder, snapshot, workers.launcher, execute, jar=kafka.jar if kafka else None)
        with Display(console) as display:
            patience = _HUNG_SECONDS + span_ms(settings.redis_client.patience) / 1_000
            watch = Watch(job, monitor, display, Watchdog(patience), workers, stopping)
            complete, savepoint = watch.until_stopped(folder.savepoints)
        manifest = replace(manifest, savepoint=savepoint, ended=complete, part=manifest.part + complete)
        folder.store(manifest)
        folder.drop_snapshots_but(savepoint)
        _await_writes(monitor, console)
        standing = monitor.final()
        summary = _summary(resolved, standing, stopped=not complete, total=time.monotonic() - began)
        if settings.summary is not None:
            settings.summary.parent.mkdir(parents=True, exist_ok=True)
            settings.summary.write_bytes(orjson.dumps(summary, option=orjson.OPT_INDENT_2) + b"\n")
        _report(resolved, console, summary, standing, Client(connection, settings.prefix))
        return summary


def _await_writes(monitor: Monitor, console: Console) -> None:
    """Waits for what learners were writing when the job stopped: their workers end when that is done."""
    deadline = time.monotonic() + _LAST_SECONDS
    while monitor.lacks():
        if time.monotonic() > deadline:
            console.print("warning: what was learned last is not in Redis; the next run writes it before it learns")
            return
        time.sleep(_POLL_SECONDS)


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
        "ranking": standing.ranking,
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
    if standing.ranking is not None:
        console.print(rankings.table(standing.ranking), highlight=False)
        for verdict in rankings.verdicts(standing.ranking):
            console.print(verdict, highlight=False)
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
        # The id that is known is not the user's own, which is what commands take.
        shown_id = "ID" if resolved.id_key is not None else user_id
        best = client.recommend(user_id, 3).items
        console.print(f"\nfreshet user {shown_id}{where}", style="bold", highlight=False)
        if user is not None and user.learned is not None:
            console.print(
                f"  {user.learned.count} events, bias {user.learned.bias:.3f}, last items {list(user.seen[-3:])}"
            )
        console.print(f"freshet item {item_id}{where}", style="bold", highlight=False)
        if item is not None:
            title = (item.catalogue or {}).get("title", "")
            console.print(f"  {sum(s.count for s in item.learned.values())} events {title}")
        console.print(f"freshet recommend {shown_id} -k 3{where}", style="bold", highlight=False)
        for r in best:
            console.print(f"  {r.item_id} {r.score:.3f} {(r.catalogue or {}).get('title', '')}")
    if summary["stopped"]:
        console.print(
            f"\nstopped; what was learned is in Redis. The same command goes on from here ({events['pending']} events "
            "wait in open windows); --fresh starts anew."
        )


__all__ = ["JobFailed", "run"]
