"""The command line. Its options and outputs are a contract: other programs call it."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import orjson

from flink_jobs.clustercommands import cluster, submit
from flink_jobs.deletecommand import delete_user
from flink_jobs.embedded import EmbeddedRedisError
from flink_jobs.options import (
    FAILED,
    UNKNOWN,
    UNUSABLE,
    fail,
    id_key,
    job_errors,
    job_installed,
    lookup_options,
    redis_at,
    run_options,
    settings_from,
)
from serving.client import Client, Learned, Recommendation, Unreachable
from serving.connection import connect
from serving.schema import Keys, Tile, span_ms


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="freshet", prog_name="freshet")
def cli() -> None:
    """Recommenders that learn from every event, served from Redis."""


for command in (cluster, submit, delete_user):
    cli.add_command(command)


def main() -> None:
    """The console command."""
    cli.main(prog_name="freshet")


# ---------------------------------------------------------------------------------------------------- run


@cli.command()
@run_options
def run(**options: Any) -> None:
    """Run the job until its input ends, or Ctrl-C; a second run goes on from there."""
    with job_errors():
        from rich.console import Console

        from flink_jobs.runner import run as run_job

        try:
            run_job(settings_from(options), Console(highlight=False, soft_wrap=True))
        except KeyboardInterrupt:
            fail("interrupted before a savepoint was taken; the next run goes on from the last checkpoint", FAILED)


@cli.command("warm-up")
@click.option("--kernels", is_flag=True, help="Only the compiled kernels: for workers of a cluster.")
def warm_up(kernels: bool) -> None:
    """Make later starts of jobs quicker: once, after installation.

    Runs a small job, of which the compiled kernels and the Java classes stay in the Python environment: 150 MB.
    """
    if kernels:
        with job_installed():
            from flink_jobs.nursery import learn_once
        for model in ("biased_mf", "stack", "blend"):
            learn_once(model)
        return
    with job_errors():
        from flink_jobs.warming import warm_up as warm_up_environment

        click.echo("running a small job; half a minute or so", err=True)
        try:
            path = warm_up_environment()
        except OSError as error:
            fail(f"the Java classes can't be archived: {error}; runs start without it, some seconds later", FAILED)
    click.echo(f"jobs start quicker now: {path} ({path.stat().st_size / 1e6:.0f} MB)")


@cli.command()
@run_options
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
@run_options
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
            fail("interrupted: nothing is lost, and the same command goes on", FAILED)
        if moved.before == moved.after:
            click.echo(f"the state had {moved.after} shards already, and Redis was behind it")
        else:
            what = f"{moved.users:,} users and {moved.items:,} items"
            click.echo(f"{what} went from {moved.before} to {moved.after} shards: go on with --shards {moved.after}")
        click.echo(f"{moved.sent:,} entities sent in {moved.seconds:.1f} s")


@cli.command()
@run_options
def check(**options: Any) -> None:
    """Show what would run, with every setting and where it came from; start nothing."""
    with job_installed():
        from flink_jobs.preparing import files_of
        from flink_jobs.settings import SettingsError
        from serving.connection import without_password
        from udfs.reading import InputError
    try:
        resolved = settings_from(options)
        for path, kind in files_of(resolved):
            click.echo(f"input: {path} ({kind})")
    except (SettingsError, InputError) as error:
        fail(str(error), UNUSABLE)
    rows = resolved.rows()
    width = max(len(name) for name, _, _ in rows)
    for name, value, origin in rows:
        shown = without_password(value) if name == "redis" else value
        click.echo(f"{name:<{width}} = {shown}  ({origin})")


# -------------------------------------------------------------------------------------------------- health


@cli.command()
@lookup_options
@click.option("--max-age", default="60s", show_default=True, help="Of the last sign of life of each part.")
@click.option("--max-checkpoint-age", default="10m", show_default=True, help="Of the last snapshot in --state-dir.")
def health(redis: str, prefix: str, state_dir: Path, as_json: bool, max_age: str, max_checkpoint_age: str) -> None:
    """Whether the job makes progress: exits with 0 if so, else with 1 and the reasons."""
    with job_errors(), redis_at(redis, state_dir) as url:
        from flink_jobs.health import examine
        from flink_jobs.settings import SettingsError
        from flink_jobs.state import StateFolder

        try:
            limits = span_ms(max_age), span_ms(max_checkpoint_age)
            connection = connect(url)
        except ValueError as error:
            raise SettingsError(str(error)) from error
        folder = StateFolder(state_dir) if state_dir.exists() else None
        found = examine(connection, Keys(prefix), folder, time.time_ns() // 1_000_000, *limits)
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
def _client(redis: str, prefix: str, state_dir: Path) -> Iterator[Client]:
    try:
        with redis_at(redis, state_dir) as url:
            yield Client(url, prefix, id_key())
    except (Unreachable, EmbeddedRedisError, ValueError) as error:
        fail(str(error), FAILED)


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
@lookup_options
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
@lookup_options
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
@click.option(
    "--exclude-seen/--include-seen",
    default=None,
    help="Without the user's last items, or with them; by default with them of a blend, as it is evaluated.",
)
@lookup_options
def recommend(
    user_id: str, k: int, exclude_seen: bool | None, redis: str, prefix: str, state_dir: Path, as_json: bool
) -> None:
    """The best items for a user; an unknown user gets what is popular now."""
    with _client(redis, prefix, state_dir) as client:
        best = client.recommend(user_id, k, exclude_seen=exclude_seen)
    answer = {"user_id": user_id, "known": best.known, "items": _items_json(best.items)}

    def show(_: dict[str, Any]) -> None:
        if not best.known:
            click.echo(f"user {user_id} is unknown; this is popular now:")
        _show_items(best.items)

    _answer(answer, as_json, "", show)


@cli.command()
@click.argument("item_id", metavar="ITEM")
@click.option("-k", default=10, show_default=True, type=click.IntRange(1), help="How many items.")
@lookup_options
def similar(item_id: str, k: int, redis: str, prefix: str, state_dir: Path, as_json: bool) -> None:
    """The items most like an item."""
    with _client(redis, prefix, state_dir) as client:
        best = client.similar(item_id, k)
    answer = None if best is None else {"item_id": item_id, "items": _items_json(best)}
    _answer(answer, as_json, f"item {item_id} is unknown", lambda _: _show_items(best or ()))


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
