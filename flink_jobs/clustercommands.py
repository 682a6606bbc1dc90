"""`freshet cluster` and `freshet submit`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import click

from flink_jobs.options import job_errors, run_options, settings_from, with_options


@click.group()
def cluster() -> None:
    """A standalone Flink cluster on this machine, on loopback."""


_cluster_options: Final = with_options(
    (
        click.option("--config", type=click.Path(path_type=Path), help="TOML file with any of the settings."),
        click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="cluster.port, ...; repeatable."),
    )
)


@contextlib.contextmanager
def _cluster(config: Path | None, assignments: tuple[str, ...]) -> Iterator[tuple[Any, Any]]:
    with job_errors():
        from flink_jobs.cluster import Cluster

        settings = settings_from({"config": config, "assignments": assignments, "field": ()}).settings
        yield Cluster(settings.cluster), settings


@cluster.command("start")
@_cluster_options
def cluster_start(**options: Any) -> None:
    """Start one job manager and cluster.task_managers; or, where it runs, task managers in place of those lost."""
    with _cluster(**options) as (local, settings):
        from flink_jobs.flink import reporters

        _show_cluster(local.start(reporters(settings) | settings.flink, settings.logs))
        click.echo(f"for Flink's own commands: export FLINK_CONF_DIR={local.conf}")


@cluster.command("stop")
@_cluster_options
def cluster_stop(**options: Any) -> None:
    """End it, and the jobs that it runs: without a savepoint."""
    with _cluster(**options) as (local, _):
        click.echo("stopped" if local.stop() else f"no cluster of {local.folder} was running")


@cluster.command("status")
@_cluster_options
def cluster_status(**options: Any) -> None:
    """Show its slots and jobs; exits with 1 if it does not answer."""
    with _cluster(**options) as (local, _):
        _show_cluster(local.status())


def _show_cluster(status: Any) -> None:
    click.echo(f"Flink {status.version} at {status.url}")
    click.echo(f"{status.task_managers} task managers, {status.free} of {status.slots} slots free")
    for name, number, state in status.jobs:
        click.echo(f"{number}  {state:<10}  {name}")


@click.command()
@run_options
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
        resolved = settings_from(dict(options), handed_on=True)
        words = entry_options(resolved, options, flags)
        console = Console(highlight=False, soft_wrap=True, stderr=True)
        command = prepare_job(resolved, words, console, restore=restore, once=once)
        click.echo(command)
        if not prepare:
            said = submit_command(command)
            click.echo(said)
            click.echo(f"to stop it with a savepoint that the next submission goes on from:\n{command.stopping(said)}")
