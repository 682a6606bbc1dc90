"""Jobs that run while something is measured: started, watched and stopped from outside, as a user would."""

from __future__ import annotations

import contextlib
import math
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import orjson
import psutil
import redis

from benchmarks.common import N_FACTORS
from flink_jobs.embedded import socket_path
from serving.connection import connect
from serving.schema import Field, Keys
from udfs.generator import START

ROOT: Final = Path(__file__).parents[1]
KEYS: Final = Keys("freshet")
CLEAN: Final[Mapping[str, Any]] = {
    "generator.malformed": 0,
    "generator.duplicates": 0,
    "generator.late": 0,
    "generator.churn": 0,
}
_STEP: Final = 0.02


def percentile(values: list[float], share: float) -> float:
    """The smallest value that so great a share of them does not exceed.

    >>> percentile([4.0, 1.0, 3.0, 2.0], 0.5), percentile([4.0, 1.0, 3.0, 2.0], 1.0)
    (2.0, 4.0)
    """
    ordered = sorted(values)
    return ordered[max(1, math.ceil(share * len(ordered))) - 1]


def environment() -> dict[str, str]:
    """In which also the workers of a job find what is in this folder."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}


@dataclass(frozen=True)
class Checkpoint:
    """A completed checkpoint, as Flink tells of it.

    Attributes
    ----------
    began
        Seconds since 1970.
    seconds
        From its trigger to its end.
    written, held
        Bytes: of this checkpoint, and of all the state that it makes up.
    """

    number: int
    began: float
    seconds: float
    written: int
    held: int


class Job:
    """A job that runs: a command of its own with a state folder.

    Parameters
    ----------
    process
        Anything with a ``poll`` that gives its exit code, or None.
    """

    def __init__(self, poll: Callable[[], int | None], state: Path, connection: Any) -> None:
        self._poll, self.state, self.connection = poll, state, connection
        self._checkpoints: dict[int, Checkpoint] = {}

    def check(self) -> None:
        """
        Raises
        ------
        RuntimeError
            If it has ended.
        """
        code = self._poll()
        if code is not None:
            raise RuntimeError(f"the run ended with exit code {code}; see {self.state / 'log'}")

    def wait(self, ready: Callable[[], Any], seconds: float = 600.0) -> None:
        """Until ``ready`` gives something true."""
        deadline = time.monotonic() + seconds
        while True:
            with contextlib.suppress(redis.exceptions.ConnectionError, redis.exceptions.BusyLoadingError):
                if ready():
                    return
            self.check()
            if time.monotonic() > deadline:
                raise RuntimeError(f"nothing came in {seconds:g} s")
            time.sleep(_STEP)

    @property
    def learned(self) -> int:
        """Events learned over the state's life, as the header in Redis says."""
        return int(self.connection.hget(KEYS.model(0), "seq") or 0)

    def wait_for_redis(self) -> None:
        """Until Redis answers, which is before a job is submitted."""
        self.wait(self.connection.ping)

    def wait_for_learner(self) -> None:
        """Until the learner has taken up its state; called when the command has just been started."""
        self.wait_for_redis()
        name = f"{Field.ALIVE}:0"
        self.connection.hdel(KEYS.ledger, name)
        self.wait(lambda: self.connection.hexists(KEYS.ledger, name))

    def checkpoints(self) -> list[Checkpoint]:
        """Those completed so far since this was first asked; Flink keeps the last ten."""
        with contextlib.suppress(OSError, LookupError):  # it has not started yet
            self._ask()
        return list(self._checkpoints.values())

    def _ask(self) -> None:
        logs = "".join(path.read_text(errors="replace") for path in sorted((self.state / "log").glob("*.log")))
        address = re.findall(r"Rest endpoint listening at (\S+)", logs)[-1]
        [job] = _get(f"http://{address}/jobs")["jobs"]
        for entry in _get(f"http://{address}/jobs/{job['id']}/checkpoints")["history"]:
            if entry["status"] == "COMPLETED" and not entry["is_savepoint"]:
                self._checkpoints[entry["id"]] = Checkpoint(
                    entry["id"],
                    entry["trigger_timestamp"] / 1_000,
                    entry["end_to_end_duration"] / 1_000,
                    entry["checkpointed_size"],
                    entry["state_size"],
                )


def _get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return orjson.loads(answer.read())


@dataclass
class Process:
    """A process of the job.

    Attributes
    ----------
    resident, cpu
        Bytes, and seconds of CPU so far, of each sample.
    """

    name: str
    process: psutil.Process
    resident: list[int] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def sample(self) -> None:
        self.resident.append(self.process.memory_info().rss)
        times = self.process.cpu_times()
        self.cpu.append(times.user + times.system)


def processes(job: Job, pid: int) -> list[Process]:
    """The command, the JVM, the nursery and the Python workers that it forked, and Redis.

    Not the launchers, which do nothing but wait for their worker.
    """
    command = psutil.Process(pid)
    found = [Process("command", command)]
    for child in sorted(command.children(), key=lambda child: child.pid):
        if "java" in child.name():
            found.append(Process("JVM", child))
        elif "flink_jobs.nursery" in child.cmdline():
            found.append(Process("nursery", child))
            workers = sorted(child.children(), key=lambda worker: worker.pid)
            found += [Process(f"Python worker {n}", worker) for n, worker in enumerate(workers, 1)]
    return [*found, Process("Redis", psutil.Process(job.connection.info("server")["process_id"]))]


def command(state: Path, source: str, settings: Mapping[str, Any], *options: str) -> list[str]:
    words = [str(Path(sys.executable).parent / "freshet"), "run", "--state-dir", str(state), "--source", source]
    for name, value in {"model.n_factors": N_FACTORS, **settings}.items():
        words += ["--set", f"{name}={value}"]
    return [*words, *options]


def finish(state: Path, source: str, settings: Mapping[str, Any], *options: str) -> None:
    """Runs a job to the end of its input."""
    words = command(state, source, settings, *options)
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment())
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)} failed:\n{done.stdout}\n{done.stderr}")


@contextlib.contextmanager
def running(state: Path, source: str, settings: Mapping[str, Any], *options: str) -> Iterator[tuple[Job, int]]:
    """A job, and the number of its process; it is stopped with a savepoint at the end of the block.

    Its Redis is the command's own, and may not be there yet.
    """
    words = command(state, source, settings, *options)
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, env=environment())
    try:
        yield Job(process.poll, state, connect(f"unix://{socket_path(state / 'redis')}", timeout=60.0)), process.pid
    finally:
        process.terminate()
        process.wait()


def every_row(path: Path, users: int, items: int) -> Path:
    """A file with an event of each of so many users, and of as many items, in turn."""
    if not path.exists():
        scratch = path.with_suffix(".new")
        with scratch.open("w") as file:
            for n in range(max(users, items)):
                file.write(
                    f'{{"user_id":"u{n % users}","item_id":"i{n % items}","event_type":"rating",'
                    f'"event_value":{n % 9 / 2 + 0.5},"timestamp":{START + n}}}\n'
                )
        scratch.rename(path)
    return path
