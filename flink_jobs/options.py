"""What commands share: their options, the settings that come of these, and how they end."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar

import click
from click.core import ParameterSource
from redis.exceptions import RedisError

from flink_jobs.embedded import EmbeddedRedisError, embedded_redis
from serving.client import Unreachable
from serving.connection import has_password
from serving.identity import key_from, key_of

FAILED, UNUSABLE, UNKNOWN = 1, 2, 3
Command = TypeVar("Command", bound=Callable[..., Any])

_SEEN: Final = (
    "--redis holds a password, which all users of this machine can see: put the URL into FRESHET_REDIS or a --config "
    "file, or the password into a file, --redis 'rediss://USER@HOST?password_file=PATH'"
)


def _holds_password(url: str) -> bool:
    try:
        return has_password(url)
    except ValueError:  # no URL at all, as will be said
        return False


def _warned(context: click.Context, parameter: click.Parameter, url: str) -> str:
    """The value of a look-up's flag: of a password in it is warned."""
    is_flag = context.get_parameter_source(str(parameter.name)) is ParameterSource.COMMANDLINE
    if is_flag and _holds_password(url):
        click.echo(f"freshet: warning: {_SEEN}", err=True)
    return url


_RUN_OPTIONS: Final = (
    click.option("--config", type=click.Path(path_type=Path), help="TOML file with any of the settings."),
    click.option("--source", help="generator (default), file:PATH (a file or a folder) or kafka:TOPIC."),
    click.option("--format", help="jsonl or csv; by default the file's ending tells."),
    click.option("--items", help="Catalogue: a file of items with item_id, title and any fields, or kafka:TOPIC."),
    click.option("--field", multiple=True, metavar="NAME=COLUMN", help="Our field name and yours; repeatable."),
    click.option("--timestamp-unit", help="auto (default), ms, s or iso."),
    click.option("--time", help="event or processing; event by default for input that ends."),
    click.option(
        "--model", help="biased_mf (default), funk_mf, baseline, kalman_mf, stack, blend; auto: by the events."
    ),
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
    click.option(
        "--redis",
        default="embedded",
        envvar="FRESHET_REDIS",
        callback=_warned,
        help="A URL, or embedded (default).",
    ),
    click.option("--prefix", default="freshet", show_default=True),
    click.option("--state-dir", default=".freshet", show_default=True, type=click.Path(path_type=Path)),
    click.option("--json", "as_json", is_flag=True, help="One JSON object; null if the id is unknown."),
)


def with_options(options: Sequence[Callable[[Any], Any]]) -> Callable[[Command], Command]:
    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


run_options: Final = with_options(_RUN_OPTIONS)
lookup_options: Final = with_options(_LOOKUP_OPTIONS)


def settings_from(options: dict[str, Any], *, handed_on: bool = False) -> Any:
    """The settings of a run, from all their origins.

    Of a password in a flag is warned; where flags are ``handed_on`` to another command line, it is refused.
    """
    from flink_jobs.settings import (
        COMMAND_LINE,
        Layer,
        SettingsError,
        assignment,
        environment_layer,
        resolve,
        toml_layer,
    )

    flags: dict[str, Any] = {}
    for text in options.pop("field"):
        name, sign, column = text.partition("=")
        if not sign or not name or not column:
            raise SettingsError(f"--field {text}: write NAME=COLUMN")
        flags[f"field.{name}"] = column
    config = options.pop("config")
    assigned = dict(assignment(text) for text in options.pop("assignments"))
    names = {"model": "model.name"}
    flags |= {names.get(name, name): value for name, value in options.items() if value is not None}
    layers = [toml_layer(config)] if config is not None else []
    layers += [environment_layer(os.environ), Layer("--set", assigned), Layer("flag", flags)]
    resolved = resolve(layers)
    if resolved.origins.get("redis") in COMMAND_LINE and _holds_password(resolved.settings.redis):
        if handed_on:
            raise SettingsError(f"{_SEEN}; it would be on the command line of flink run, too")
        click.echo(f"freshet: warning: {_SEEN}", err=True)
    return resolved


@contextlib.contextmanager
def job_installed() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        click.echo(f"freshet: {error.name} is not installed: pip install 'freshet[job]' to run jobs", err=True)
        sys.exit(UNUSABLE)


@contextlib.contextmanager
def job_errors() -> Iterator[None]:
    """Ends the program with a sentence and its exit code where a job can't start, or fails."""
    with job_installed():
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
        fail(str(error), UNUSABLE)
    except (JobFailed, ClusterError, Unreachable, EmbeddedRedisError, PublishError) as error:
        fail(str(error), FAILED)
    except RedisError as error:
        fail(f"Redis failed: {error}", FAILED)
    except Py4JError as error:
        if isinstance(error, Py4JJavaError):
            raise
        fail(
            "the JVM that Flink runs in ended: killed, or out of memory? Its log is in log/ of the state folder; the "
            "same command goes on from the last checkpoint",
            FAILED,
        )


def fail(message: str, code: int) -> NoReturn:
    click.echo(f"freshet: {message}", err=True)
    sys.exit(code)


@contextlib.contextmanager
def redis_at(redis: str, state_dir: Path) -> Iterator[str]:
    """Where Redis is; the embedded one runs meanwhile."""
    if redis != "embedded":
        yield redis
        return
    data = state_dir.resolve() / "redis"
    if not data.exists():
        fail(f"there is no state in {state_dir}; run a job first, or give --redis or --state-dir", FAILED)
    with embedded_redis(data) as url:
        yield url


def id_key() -> bytes | None:
    """The key that the ids of users are hidden under: of the environment, as a run takes it; it is no flag."""
    if (file := os.environ.get("FRESHET_IDS__KEY_FILE")) is not None:
        return key_from(Path(file).expanduser())
    key = os.environ.get("FRESHET_IDS__KEY")
    return None if key is None else key_of(key)
