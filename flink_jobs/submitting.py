"""A job for a cluster: what is drawn once, before it is submitted, and the command of Flink that submits it.

The command runs :mod:`flink_jobs.job`, which builds the job from the same options and from what was drawn. It may run
more than once for a job: Flink runs it again where a job manager fails over.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import shlex
import subprocess
import sys
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from flink_jobs import job
from flink_jobs.choosing import chosen
from flink_jobs.cluster import Cluster, ClusterError, environment, flink_home, rest_url, status_of
from flink_jobs.flink import prepare_process
from flink_jobs.kafka import Kafka, find_kafka
from flink_jobs.preparing import begin, files_of, folder_of, reachable, take_up
from flink_jobs.settings import Resolved, SettingsError
from flink_jobs.state import StateInUse, Submission

_ROOMS: Final = ("flink_jobs", "udfs", "serving")
_CODE: Final = (".py", ".lua", ".properties")
_DONE: Final = ("fresh", "summary")  # by the time that the job is built, or never
_ENDED: Final = ("FAILED", "CANCELED", "FINISHED", "SUSPENDED")
BY_FLINK: Final = "flink"  # in place of a snapshot: whoever submits tells Flink which


@dataclass(frozen=True)
class Command:
    """What submits a job.

    Attributes
    ----------
    words
        The command, and its arguments.
    conf
        For ``FLINK_CONF_DIR``.
    savepoints
        URI of the folder where savepoints of the job are looked for.
    """

    words: Sequence[str]
    conf: Path
    logs: Path
    savepoints: str

    def __str__(self) -> str:
        return re.sub(r"(://[^/@\s]*:)[^@\s]+@", r"\1***@", f"{self._before} {shlex.join(self.words)}")

    def stopping(self, said: str) -> str:
        """The command that stops the job with a savepoint, from what the submission said."""
        number = next(iter(re.findall(r"JobID (\w+)", said)), "JOB")
        return f"{self._before} {shlex.join([self.words[0], 'stop', '--savepointPath', self.savepoints, number])}"

    @property
    def _before(self) -> str:
        java = environment(self.conf, self.logs)["JAVA_HOME"]
        return f"JAVA_HOME={shlex.quote(java)} FLINK_CONF_DIR={shlex.quote(str(self.conf))}"


def prepare(
    resolved: Resolved,
    options: Sequence[str],
    console: Console,
    *,
    restore: str | None = None,
    once: str | None = None,
) -> Command:
    """Draws what a job needs, takes over its prefix in Redis, and gives the command that submits it.

    Parameters
    ----------
    options
        Those of the run, as they were given on the command line.
    restore
        URI of the snapshot that it goes on from; by default the newest; :data:`BY_FLINK`: Flink is told by others.
    once
        What it is prepared for. For the same a second time, nothing is drawn.

    Raises
    ------
    SettingsError, InputError, StateError, Unreachable
        If it can't be prepared as it is set.
    """
    settings = resolved.settings
    if settings.redis == "embedded":
        raise SettingsError(
            "redis: embedded is a server in this process's machine, which ends with it; a cluster's workers need one "
            "that they reach: --redis redis://HOST:PORT"
        )
    files, folder = files_of(resolved), folder_of(resolved)
    conf = Cluster(settings.cluster).conf if settings.cluster.conf is None else settings.cluster.conf.resolve()
    with folder.locked():
        kept = folder.submission()
        if once is not None and kept is not None and kept.once == once:
            console.print(f"prepared before, for {once}", highlight=False)
            return _command(resolved, options, conf, None)
        if restore != BY_FLINK:
            _not_running(conf, settings.prefix)
        connection = reachable(settings.redis)
        ready = take_up(resolved, folder, settings.redis, connection, console, restore)
        prepare_process(folder.logs)
        kafka = find_kafka(resolved)
        ready = chosen(ready, files, kafka, console)
        _, number = begin(ready, files, console, on_cluster=True)
        folder.store_submission(Submission(number, once, _starts(kafka)))
    return _command(resolved, options, conf, None if restore == BY_FLINK else ready.snapshot)


def _starts(kafka: Kafka | None) -> dict[int, int] | None:
    return None if kafka is None or kafka.source is None else dict(kafka.source.starts)


def submit(command: Command) -> str:
    """Runs the command; returns what it says.

    Raises
    ------
    ClusterError
        If it fails.
    """
    done = subprocess.run(
        command.words,
        env=environment(command.conf, command.logs),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise ClusterError(f"flink run failed: {_reason(done.stdout)}")
    return done.stdout.strip()


def _reason(said: str) -> str:
    """What Flink's command says went wrong: a sentence of ours, or its last lines."""
    ours = [line for line in said.splitlines() if line.startswith("freshet: ")]
    return ours[-1].removeprefix("freshet: ") if ours else said.strip()[-3_000:]


def _not_running(conf: Path, prefix: str) -> None:
    for name, number, state in status_of(rest_url(conf)).jobs:
        if name == job.name(prefix) and state not in _ENDED:
            raise StateInUse(
                f"job {number} writes under the prefix {prefix!r} already ({state}): stop it first, with a savepoint "
                f"to go on from (flink stop {number}), or give another --prefix and --state-dir"
            )


def _command(resolved: Resolved, options: Sequence[str], conf: Path, snapshot: str | None) -> Command:
    settings = resolved.settings
    cluster, folder = settings.cluster, folder_of(resolved)
    python = cluster.python or sys.executable
    words = [str(flink_home() / "bin" / "flink"), "run", "--detached", "--parallelism", str(settings.parallelism)]
    if snapshot is not None:
        words += ["--fromSavepoint", snapshot]
    words += ["--pyExecutable", python, "--pyClientExecutable", sys.executable]
    if cluster.archives:
        words += ["--pyArchives", ",".join(cluster.archives)]
    if cluster.code == "sent":
        words += ["--pyFiles", str(packed(folder.path / "code"))]
    if resolved.topics:
        from flink_jobs.kafka import connector

        words += ["--jarfile", str(connector(settings.kafka))]
    words += ["--python", str(job.__file__), *options]
    savepoints = f"{cluster.storage}/savepoints" if cluster.storage else folder.savepoints.as_uri()
    return Command(words, conf, folder.logs, savepoints)


@functools.cache
def packed(folder: Path) -> Path:
    """An archive of freshet's own packages, for workers to import it from; its name tells its content."""
    root = Path(__file__).parents[1]
    files = {
        str(path.relative_to(root)): path.read_bytes()
        for room in _ROOMS
        for path in sorted((root / room).rglob("*"))
        if path.suffix in _CODE and path.is_file()
    }
    digest = hashlib.blake2b(digest_size=8)
    for name, content in files.items():
        digest.update(f"{name} {len(content)} ".encode() + content)
    archive = folder / f"freshet-{digest.hexdigest()}.zip"
    if not archive.exists():
        folder.mkdir(parents=True, exist_ok=True)
        scratch = archive.with_suffix(f".{os.getpid()}")
        with zipfile.ZipFile(scratch, "w", zipfile.ZIP_DEFLATED) as file:
            for name, content in files.items():
                file.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), content)
        scratch.replace(archive)
    return archive


def entry_options(resolved: Resolved, given: Mapping[str, Any], flags: Mapping[str, str]) -> list[str]:
    """The options of :mod:`flink_jobs.job`: those of the run, as far as they were given on the command line.

    Paths become absolute, wherever they were given: Flink's client may run the script in a folder of its own.

    Parameters
    ----------
    given
        By the names of parameters.
    flags
        For each of them, how it is written.
    """
    settings, kafka = resolved.settings, resolved.settings.kafka
    paths: dict[str, Path | None] = {"state_dir": settings.state_dir, "config": given["config"]}
    if settings.dead_letters is not None and resolved.letter_topic is None:
        paths["dead_letters"] = resolved.dead_letters
    absolute = {name: str(path.expanduser().resolve()) for name, path in paths.items() if path is not None}
    kind, _, path = settings.source.partition(":")
    if kind == "file":
        absolute["source"] = f"file:{Path(path).expanduser().resolve()}"
    done = _DONE if resolved.items is None else (*_DONE, "items")
    words = [word for name, value in absolute.items() for word in (flags[name], value)]
    for name, value in given.items():
        if name in absolute or name in done or value is None:
            continue
        for one in value if isinstance(value, tuple) else (value,):
            words += [flags[name], str(one)]
    for name, file in (("connector", kafka.connector), ("properties_file", kafka.properties_file)):
        if file is not None:
            words += ["--set", f"kafka.{name}={file.resolve()}"]
    return words
