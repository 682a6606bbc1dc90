"""One run of a program that learns a file into a Redis: how fast, and what it costs with all its processes.

Every run has a new Redis of its own, the embedded server. Programs note there when they began, when their last write
was acknowledged, and how much they learned: start-up is left out for all in the same way.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson

from benchmarks.processes import Watch, total
from benchmarks.rivals.shared import Clock, clock
from flink_jobs.embedded import embedded_redis
from serving.connection import connect
from serving.schema import Keys

ROOT: Final = Path(__file__).parents[1]
_SHOWN: Final = 3_000  # characters of the output of what failed
_numbers = itertools.count()


@dataclass(frozen=True)
class Run:
    """
    Attributes
    ----------
    cpu
        Seconds of each process while it learned, by id.
    redis
        The id of the Redis server, which is one of them.
    names
        Of the processes.
    peak
        Bytes of all processes at once, start-up included.
    """

    clock: Clock
    cpu: dict[int, float]
    redis: int
    names: dict[int, str]
    peak: int

    @property
    def seconds(self) -> float:
        return (self.clock.last - self.clock.first) / 1_000

    @property
    def rate(self) -> float:
        """Events a second, from the first event to the last acknowledged write."""
        return self.clock.learned / self.seconds

    def per_event(self, seconds: float) -> float:
        """Microseconds an event, of seconds of the run."""
        return seconds / self.clock.learned * 1e6

    @property
    def cpu_per_event(self) -> float:
        """Microseconds of CPU of all processes an event."""
        return self.per_event(total(self.cpu))


def freshet_clock(connection: Any, summary: Path) -> Clock:
    """What a run of freshet under its default prefix has noted."""
    ledger = connection.hgetall(Keys("freshet").ledger)
    learned = orjson.loads(summary.read_bytes())["events"]["learned"]
    return Clock(float(ledger[b"first_read_at"]), float(ledger[b"published_at"]), learned)


def watched(
    folder: Path,
    command: Callable[[Path, str], Sequence[str]],
    events: int,
    clock_of: Callable[[Any, Path], Clock] = lambda connection, _: clock(connection),
) -> Run:
    """Runs a command, which is made from a new folder and the URL of a new Redis.

    Parameters
    ----------
    events
        How many it must have learned.
    clock_of
        Reads its notes, from the Redis and the folder.

    Raises
    ------
    RuntimeError
        If it failed, or has learned another number of events.
    """
    own = folder / f"run-{next(_numbers)}"
    own.mkdir()
    with embedded_redis(own / "redis") as url:
        connection = connect(url)
        server = int(connection.info("server")["process_id"])
        arguments = [str(word) for word in command(own, url)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        with (own / "output").open("w+") as output:
            process = subprocess.Popen(arguments, stdout=output, stderr=output, env=environment)
            try:
                with Watch(process.pid, server) as watch:
                    code = process.wait()
            finally:
                process.terminate()  # where we were interrupted; otherwise it has ended
            if code:
                output.seek(0)
                raise RuntimeError(f"{' '.join(arguments)} failed:\n{output.read()[-_SHOWN:]}")
        times = clock_of(connection, own)
        connection.close()
    if times.learned != events:
        raise RuntimeError(f"{' '.join(arguments)} learned {times.learned:,} of {events:,} events")
    return Run(times, watch.cpu(times.first, times.last), server, watch.names, watch.peak)


def module(name: str, *arguments: Any) -> list[str]:
    """The command that runs a module of ours."""
    return [sys.executable, "-m", name, *map(str, arguments)]
