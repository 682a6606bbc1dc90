"""The command line. Its options and outputs are a contract: other programs call it."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar

import click
import numpy as np
import orjson
from redis.exceptions import RedisError

from flink_jobs.embedded import EmbeddedRedisError, embedded_redis
from serving.client import Client, Learned, Recommendation, Unreachable
from serving.connection import connect, has_password
from serving.identity import fingerprint, hidden, key_from, key_of
from serving.schema import Keys, Tile, span_ms

FAILED, UNUSABLE, UNKNOWN = 1, 2, 3
Command = TypeVar("Command", bound=Callable[..., Any])

_RUN_OPTIONS: Final = (
    click.option("--config", type=click.Path(path_type=Path), help="TOML file with any of the settings."),
    click.option("--source", help="generator (default), file:PATH (a file or a folder) or kafka:TOPIC."),
    click.option("--format", help="jsonl or csv; by default the file's ending tells."),
    click.option("--items", help="Catalogue: a file of items with item_id, title and any fields, or kafka:TOPIC."),
    click.option("--field", multiple=True, metavar="NAME=COLUMN", help="Our field name and yours; repeatable."),
    click.option("--timestamp-unit", help="auto (default), ms, s or iso."),
    click.option("--time", help="event or processing; event by default for input that ends."),
    click.option("--model", help="baseline, funk_mf or biased_mf (default)."),
    click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Any setting; repeatable."),
    click.option("--shards", help="How many models the users are spread over; 1 by default."),
    click.option("--parallelism", help="Subtasks of each operator; 1 by default."),
    click.option("--redis", help="A URL, or embedded (default)."),
    click.option("--prefix", help="Of all keys in Redis; freshet by default."),
    click.option("--dead-letters", help="Folder for what could not be learned."),
    click.option("--state-dir", help="Folder of the state and of the embedded Redis; .freshet by default."),
    click.option("--fresh", is_flag=True, default=None, help="Forget the state and start anew."),
    click.option("--summary", help="File to write the summary to, as JSON."),
)
_LOOKUP_OPTIONS: Final = (
    click.option("--redis", default="embedded", envvar="FRESHET_REDIS", help="A URL, or embedded (default)."),
    click.option("--prefix", default="freshet", show_default=True),
    click.option("--state-dir", default=".freshet", show_default=True, type=click.Path(path_type=Path)),
    click.option("--json", "as_json", is_flag=True, help="One JSON object; null if the id is unknown."),
)


def _with(options: tuple[Callable[[Any], Any], ...]) -> Callable[[Command], Command]:
    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


run_options: Final = _with(_RUN_OPTIONS)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="freshet", prog_name="freshet")
def cli() -> None:
    """Recommenders that learn from every event, served from Redis."""


def main() -> None:
    """The console command."""
    cli.main(prog_name="freshet")


# ---------------------------------------------------------------------------------------------------- run


def settings_from(options: dict[str, Any]) -> Any:
    """The settings of a run, from all their origins."""
    from flink_jobs.settings import Layer, SettingsError, assignment, environment_layer, resolve, toml_layer

    flags: dict[str, Any] = {}
    for text in options.pop("field"):
        name, sign, column = text.partition("=")
        if not sign or not name or not column:
            raise SettingsError(f"--field {text}: write NAME=COLUMN")
        flags[f"field.{name}"] = column
    config = options.pop("config")
    assigned = dict(assignment(text) for text in options.pop("assignments"))
    if has_password(flags_redis := str(options.get("redis") or "")) and flags_redis != "embedded":
        click.echo(
            "freshet: warning: --redis holds a password, which all users of this machine can see: put the URL into "
            "FRESHET_REDIS, or the password into a file, --redis 'rediss://USER@HOST?password_file=PATH'",
            err=True,
        )
    names = {"model": "model.name"}
    flags |= {names.get(name, name): value for name, value in options.items() if value is not None}
    layers = [toml_layer(config)] if config is not None else []
    layers += [environment_layer(os.environ), Layer("--set", assigned), Layer("flag", flags)]
    return resolve(layers)


@contextlib.contextmanager
def _job_installed() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        click.echo(f"freshet: {error.name} is not installed: pip install 'freshet[job]' to run jobs", err=True)
        sys.exit(UNUSABLE)


@contextlib.contextmanager
def job_errors() -> Iterator[None]:
    """Ends the program with a sentence and its exit code where a job can't start, or fails."""
    with _job_installed():
        from py4j.protocol import Py4JError, Py4JJavaError

        from flink_jobs.cluster import ClusterError
        from flink_jobs.flink import JavaError, JobFailed
        from flink_jobs.settings import SettingsError
        from flink_jobs.state import StateError
        from udfs.publisher import PublishError
        from udfs.reading import InputError
    # Once its JVM is gone, py4j logs a stack trace for each object that it had there.
    handler = logging.StreamHandler()
    handler.addFilter(lambda record: "py4j" not in record.pathname)
    logging.getLogger().addHandler(handler)
    try:
        yield
    except (SettingsError, InputError, StateError, JavaError) as error:
        _fail(str(error), UNUSABLE)
    except (JobFailed, ClusterError, Unreachable, EmbeddedRedisError, PublishError) as error:
        _fail(str(error), FAILED)
    except RedisError as error:
        _fail(f"Redis failed: {error}", FAILED)
    except Py4JError as error:
        if isinstance(error, Py4JJavaError):
            raise
        _fail(
            "the JVM that Flink runs in ended: killed, or out of memory? Its log is in log/ of the state folder; the "
            "same command goes on from the last checkpoint",
            FAILED,
        )


@cli.command()
@_with(_RUN_OPTIONS)
def run(**options: Any) -> None:
    """Run the job until its input ends, or Ctrl-C; a second run goes on from there."""
    with job_errors():
        from rich.console import Console

        from flink_jobs.runner import run as run_job

        try:
            run_job(settings_from(options), Console(highlight=False, soft_wrap=True))
        except KeyboardInterrupt:
            _fail("interrupted before a savepoint was taken; the next run goes on from the last checkpoint", FAILED)


@cli.command("warm-up")
@click.option("--kernels", is_flag=True, help="Only the compiled kernels: for workers of a cluster.")
def warm_up(kernels: bool) -> None:
    """Make later starts of jobs quicker: once, after installation.

    Runs a small job, of which the compiled kernels and the Java classes stay in the Python environment: 150 MB.
    """
    if kernels:
        with _job_installed():
            from flink_jobs.nursery import learn_once
        learn_once()
        return
    with job_errors():
        from flink_jobs.warming import warm_up as warm_up_environment

        click.echo("running a small job; half a minute or so", err=True)
        try:
            path = warm_up_environment()
        except OSError as error:
            _fail(f"the Java classes can't be archived: {error}; runs start without it, some seconds later", FAILED)
    click.echo(f"jobs start quicker now: {path} ({path.stat().st_size / 1e6:.0f} MB)")


@cli.command()
@_with(_RUN_OPTIONS)
def republish(**options: Any) -> None:
    """Write all learned state to Redis again: give the options of the run that learned it.

    A job that runs does it; for one that was stopped, its last snapshot is written. Nothing is learned.
    """
    with job_errors():
        from rich.console import Console

        from flink_jobs.republishing import republish as write_again

        sent, seconds = write_again(settings_from(options), Console(highlight=False, soft_wrap=True))
        click.echo(f"{sent:,} entities sent in {seconds:.1f} s")


@cli.command()
@_with(_RUN_OPTIONS)
def reshard(**options: Any) -> None:
    """Move a stopped state to another number of --shards: give the other options of the run that learned it.

    To a multiple of the number before, nothing that was learned changes; else items become means over the shards.
    """
    with job_errors():
        from rich.console import Console

        from flink_jobs.resharding import reshard as move

        try:
            moved = move(settings_from(options), Console(highlight=False, soft_wrap=True))
        except KeyboardInterrupt:
            _fail("interrupted: nothing is lost, and the same command goes on", FAILED)
        if moved.before == moved.after:
            click.echo(f"the state had {moved.after} shards already, and Redis was behind it")
        else:
            what = f"{moved.users:,} users and {moved.items:,} items"
            click.echo(f"{what} went from {moved.before} to {moved.after} shards: go on with --shards {moved.after}")
        click.echo(f"{moved.sent:,} entities sent in {moved.seconds:.1f} s")


# --------------------------------------------------------------------------------------------- clusters


@cli.group()
def cluster() -> None:
    """A standalone Flink cluster on this machine, on loopback."""


_CLUSTER_OPTIONS: Final = (
    click.option("--config", type=click.Path(path_type=Path), help="TOML file with any of the settings."),
    click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="cluster.port, ...; repeatable."),
)


@contextlib.contextmanager
def _cluster(config: Path | None, assignments: tuple[str, ...]) -> Iterator[tuple[Any, Any]]:
    with job_errors():
        from flink_jobs.cluster import Cluster

        settings = settings_from({"config": config, "assignments": assignments, "field": ()}).settings
        yield Cluster(settings.cluster), settings


@cluster.command("start")
@_with(_CLUSTER_OPTIONS)
def cluster_start(**options: Any) -> None:
    """Start one job manager and cluster.task_managers; or, where it runs, task managers in place of those lost."""
    with _cluster(**options) as (local, settings):
        _show_cluster(local.start(settings.flink))
        click.echo(f"for Flink's own commands: export FLINK_CONF_DIR={local.conf}")


@cluster.command("stop")
@_with(_CLUSTER_OPTIONS)
def cluster_stop(**options: Any) -> None:
    """End it, and the jobs that it runs: without a savepoint."""
    with _cluster(**options) as (local, _):
        click.echo("stopped" if local.stop() else f"no cluster of {local.folder} was running")


@cluster.command("status")
@_with(_CLUSTER_OPTIONS)
def cluster_status(**options: Any) -> None:
    """Show its slots and jobs; exits with 1 if it does not answer."""
    with _cluster(**options) as (local, _):
        _show_cluster(local.status())


def _show_cluster(status: Any) -> None:
    click.echo(f"Flink {status.version} at {status.url}")
    click.echo(f"{status.task_managers} task managers, {status.free} of {status.slots} slots free")
    for name, number, state in status.jobs:
        click.echo(f"{number}  {state:<10}  {name}")


@cli.command()
@_with(_RUN_OPTIONS)
@click.option("--restore", metavar="URI", help="Go on from this snapshot; by default the newest. flink: Flink is told.")
@click.option("--prepare", is_flag=True, help="Only prepare, and print the command that submits.")
@click.option("--once", metavar="NAME", help="Prepare nothing a second time under this name.")
@click.pass_context
def submit(context: click.Context, /, restore: str | None, prepare: bool, once: str | None, **options: Any) -> None:
    """Submit the job to a cluster, by Flink's own `flink run`: give the options of run."""
    with job_errors():
        from rich.console import Console

        from flink_jobs.submitting import entry_options
        from flink_jobs.submitting import prepare as prepare_job
        from flink_jobs.submitting import submit as submit_command

        flags = {str(parameter.name): parameter.opts[-1] for parameter in context.command.params}
        resolved = settings_from(dict(options))
        words = entry_options(resolved, options, flags)
        console = Console(highlight=False, soft_wrap=True, stderr=True)
        command = prepare_job(resolved, words, console, restore=restore, once=once)
        click.echo(command)
        if not prepare:
            said = submit_command(command)
            click.echo(said)
            click.echo(f"to stop it with a savepoint that the next submission goes on from:\n{command.stopping(said)}")


@cli.command()
@_with(_RUN_OPTIONS)
def check(**options: Any) -> None:
    """Show what would run, with every setting and where it came from; start nothing."""
    with _job_installed():
        from flink_jobs.preparing import files_of
        from flink_jobs.settings import SettingsError
        from serving.connection import without_password
        from udfs.reading import InputError
    try:
        resolved = settings_from(options)
        for path, kind in files_of(resolved):
            click.echo(f"input: {path} ({kind})")
    except (SettingsError, InputError) as error:
        _fail(str(error), UNUSABLE)
    rows = resolved.rows()
    width = max(len(name) for name, _, _ in rows)
    for name, value, origin in rows:
        shown = without_password(value) if name == "redis" else value
        click.echo(f"{name:<{width}} = {shown}  ({origin})")


def _fail(message: str, code: int) -> NoReturn:
    click.echo(f"freshet: {message}", err=True)
    sys.exit(code)


# -------------------------------------------------------------------------------------------------- health


@cli.command()
@_with(_LOOKUP_OPTIONS)
@click.option("--max-age", default="60s", show_default=True, help="Of the last sign of life of each part.")
@click.option("--max-checkpoint-age", default="10m", show_default=True, help="Of the last snapshot in --state-dir.")
def health(redis: str, prefix: str, state_dir: Path, as_json: bool, max_age: str, max_checkpoint_age: str) -> None:
    """Whether the job makes progress: exits with 0 if so, else with 1 and the reasons."""
    with job_errors(), _url(redis, state_dir) as url:
        from flink_jobs.health import examine
        from flink_jobs.settings import SettingsError
        from flink_jobs.state import StateFolder

        try:
            limits = span_ms(max_age), span_ms(max_checkpoint_age)
        except ValueError as error:
            raise SettingsError(str(error)) from error
        folder = StateFolder(state_dir) if state_dir.exists() else None
        found = examine(connect(url), Keys(prefix), folder, time.time_ns() // 1_000_000, *limits)
    if as_json:
        click.echo(orjson.dumps(found).decode())
    else:
        for name, seconds in found.ages.items():
            click.echo(f"{name:<16} {'never' if seconds is None else f'{seconds:.1f} s ago'}")
        for name, count in found.events.items():
            click.echo(f"{name:<16} {count:,} events")
        for reason in found.reasons:
            click.echo(f"freshet: {reason}", err=True)
        click.echo("healthy" if found.healthy else "not healthy")
    if not found.healthy:
        sys.exit(FAILED)


# ------------------------------------------------------------------------------------------------ look-ups


@contextlib.contextmanager
def _url(redis: str, state_dir: Path) -> Iterator[str]:
    """Where Redis is; the embedded one runs meanwhile."""
    if redis != "embedded":
        yield redis
        return
    data = state_dir.resolve() / "redis"
    if not data.exists():
        _fail(f"there is no state in {state_dir}; run a job first, or give --redis or --state-dir", FAILED)
    with embedded_redis(data) as url:
        yield url


def _id_key() -> bytes | None:
    """The key that the ids of users are hidden under: of the environment, as a run takes it; it is no flag."""
    if (file := os.environ.get("FRESHET_IDS__KEY_FILE")) is not None:
        return key_from(Path(file).expanduser())
    key = os.environ.get("FRESHET_IDS__KEY")
    return None if key is None else key_of(key)


@contextlib.contextmanager
def _client(redis: str, prefix: str, state_dir: Path) -> Iterator[Client]:
    try:
        with _url(redis, state_dir) as url:
            yield Client(url, prefix, _id_key())
    except (Unreachable, EmbeddedRedisError, ValueError) as error:
        _fail(str(error), FAILED)


def _answer(answer: dict[str, Any] | None, as_json: bool, unknown: str, show: Callable[[dict[str, Any]], None]) -> None:
    """Prints an answer, or that there is none, which exits with 3."""
    if as_json:
        click.echo(orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY).decode())
    elif answer is None:
        click.echo(unknown, err=True)
    else:
        show(answer)
    if answer is None:
        sys.exit(UNKNOWN)


@cli.command()
@click.argument("user_id", metavar="ID")
@_with(_LOOKUP_OPTIONS)
def user(user_id: str, redis: str, prefix: str, state_dir: Path, as_json: bool) -> None:
    """What is known of a user."""
    with _client(redis, prefix, state_dir) as client:
        state = client.user(user_id)
    answer = None
    if state is not None:
        answer = {
            "user_id": user_id,
            "shard": state.shard,
            **_learned_json(state.learned),
            "seen": list(state.seen),
            "session": vars(state.session) if state.session else None,
            "tiles": _tiles_json(state.tiles),
        }
    _answer(answer, as_json, f"user {user_id} is unknown", _show_entity)


@cli.command()
@click.argument("item_id", metavar="ID")
@_with(_LOOKUP_OPTIONS)
def item(item_id: str, redis: str, prefix: str, state_dir: Path, as_json: bool) -> None:
    """What is known of an item."""
    with _client(redis, prefix, state_dir) as client:
        state = client.item(item_id)
    answer = None
    if state is not None:
        only = state.learned.get(0) if len(state.learned) == 1 else None
        answer = {
            "item_id": item_id,
            **_learned_json(only),
            "shards": {str(shard): _learned_json(learned) for shard, learned in state.learned.items()},
            "catalogue": state.catalogue,
            "tiles": _tiles_json(state.tiles),
        }
        answer["count"] = sum(learned.count for learned in state.learned.values())
    _answer(answer, as_json, f"item {item_id} is unknown", _show_entity)


@cli.command()
@click.argument("user_id", metavar="USER")
@click.option("-k", default=10, show_default=True, type=click.IntRange(1), help="How many items.")
@_with(_LOOKUP_OPTIONS)
def recommend(user_id: str, k: int, redis: str, prefix: str, state_dir: Path, as_json: bool) -> None:
    """The best items for a user; an unknown user gets what is popular now."""
    with _client(redis, prefix, state_dir) as client:
        best = client.recommend(user_id, k)
    answer = {"user_id": user_id, "known": best.known, "items": _items_json(best.items)}

    def show(_: dict[str, Any]) -> None:
        if not best.known:
            click.echo(f"user {user_id} is unknown; this is popular now:")
        _show_items(best.items)

    _answer(answer, as_json, "", show)


@cli.command()
@click.argument("item_id", metavar="ITEM")
@click.option("-k", default=10, show_default=True, type=click.IntRange(1), help="How many items.")
@_with(_LOOKUP_OPTIONS)
def similar(item_id: str, k: int, redis: str, prefix: str, state_dir: Path, as_json: bool) -> None:
    """The items most like an item."""
    with _client(redis, prefix, state_dir) as client:
        best = client.similar(item_id, k)
    answer = None if best is None else {"item_id": item_id, "items": _items_json(best)}
    _answer(answer, as_json, f"item {item_id} is unknown", lambda _: _show_items(best or ()))


# --------------------------------------------------------------------------------------------- deletion


@cli.command("delete-user")
@click.argument("user_ids", metavar="ID...", nargs=-1, required=True)
@_with(_LOOKUP_OPTIONS)
def delete_user(user_ids: tuple[str, ...], redis: str, prefix: str, state_dir: Path, as_json: bool) -> None:
    """Delete users: from Redis at once, and from the state by the job that runs, or with the next run."""
    with _job_installed():
        from flink_jobs.preparing import SILENT_SECONDS, silent_seconds
        from flink_jobs.state import StateError, StateFolder
        from serving.connection import connect, server_of
        from serving.schema import Keys
        from udfs.requests import Journal, JournalError
        from udfs.tombstones import hide
    folder = StateFolder(state_dir)
    try:
        manifest = folder.load()
    except StateError as error:
        _fail(str(error), UNUSABLE)
    if manifest is None:
        _fail(f"there is no state in {state_dir}; run a job first, or give --state-dir", UNUSABLE)
    for option, mine, its in (
        ("redis", server_of(redis), manifest.fixed["redis"]),
        ("prefix", prefix, manifest.prefix),
    ):
        if mine != its:
            _fail(f"the state in {state_dir} writes under another --{option}: give --{option} {its}", UNUSABLE)
    if not all(user_ids) or any(user_id != user_id.encode(errors="ignore").decode() for user_id in user_ids):
        _fail("an ID is empty, or not UTF-8", UNUSABLE)
    try:
        key = _id_key()
    except ValueError as error:
        _fail(str(error), UNUSABLE)
    under = "none" if key is None else f"one with the fingerprint {fingerprint(key)}"
    if under != (its := manifest.fixed.get("ids.key", "none")):
        _fail(
            f"ids.key: the ids in {state_dir} are hidden under {its}, here is {under}: give the key that the job has, "
            "FRESHET_IDS__KEY_FILE=PATH",
            UNUSABLE,
        )
    kept_as = user_ids if key is None else tuple(hidden(user_id, key) for user_id in user_ids)
    away, running = "", False
    try:
        with Journal(folder.journal).requesting(kept_as, time.time_ns() // 1_000_000) as requests:
            # Before its reader may stamp them: what the job leaves in Redis comes after.
            try:
                with contextlib.ExitStack() as stack:
                    url = stack.enter_context(embedded_redis(folder.redis)) if redis == "embedded" else redis
                    connection = connect(url)
                    hide(connection, Keys(prefix), requests)
                    # On a cluster it holds no lock.
                    running = manifest.on_cluster and silent_seconds(connection, Keys(prefix)) < SILENT_SECONDS
            except (RedisError, EmbeddedRedisError) as error:
                away = str(error)
    except JournalError as error:
        _fail(str(error), UNUSABLE)
    running = running or folder.in_use
    if as_json:
        answer = {"requests": dict(zip(user_ids, (r.number for r in requests), strict=True))}
        click.echo(orjson.dumps({**answer, "running": running, "redis": not away}).decode())
    else:
        when = (
            "the running job deletes them from its state within a second or so"
            if running
            else ("no job is running: they leave the state when the next run begins")
        )
        what = "no longer in Redis" if not away else "noted"
        click.echo(f"{', '.join(user_ids)}: {what}; {when}")
    if away:
        _fail(f"Redis failed: {away}; the request is noted, and the job removes them from Redis, too", FAILED)


def _learned_json(learned: Learned | None) -> dict[str, Any]:
    if learned is None:
        return {"vector": None, "bias": None, "count": 0, "updated_at": None, "version": None}
    return {
        "vector": learned.vector.astype(np.float32),
        "bias": learned.bias,
        "count": learned.count,
        "updated_at": learned.updated_at,
        "version": learned.version,
    }


def _tiles_json(tiles: Any) -> dict[str, Any]:
    def one(tile: Tile) -> dict[str, Any]:
        return {"n": tile.events, "sum": tile.sum, "mean": tile.mean, "distinct": tile.distinct, "types": tile.types}

    return {span: {str(start): one(t) for start, t in sorted(of.items())} for span, of in tiles.items()}


def _items_json(items: Any) -> list[dict[str, Any]]:
    return [{"item_id": r.item_id, "score": r.score, "catalogue": r.catalogue} for r in items]


def _show_items(items: Any) -> None:
    for place, r in enumerate(items, 1):
        entry: Recommendation = r
        click.echo(f"{place:>3}  {entry.item_id:<12} {entry.score:8.4f}  {(entry.catalogue or {}).get('title', '')}")


def _show_entity(answer: dict[str, Any]) -> None:
    for name, value in answer.items():
        if name == "tiles":
            for span, of in value.items():
                click.echo(f"{'tiles ' + span:<12} {len(of)}, with {sum(tile['n'] for tile in of.values())} events")
        elif name == "vector" and value is not None:
            click.echo(f"{name:<12} [{', '.join(f'{x:.3f}' for x in value)}]")
        elif name == "shards":
            for shard, of in value.items() if len(value) > 1 else ():
                vector = [round(float(x), 3) for x in of["vector"]]
                click.echo(f"{'shard ' + shard:<12} {of | {'vector': vector}}")
        else:
            click.echo(f"{name:<12} {value}")
