"""How soon a newcomer sees something: the default run, from an installed environment.

    python -m benchmarks.first_state [--rounds 3]

Seconds from the command to the first learned user readable in Redis, and to the end of the run.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.common import median, rounds, scratch, show, store
from flink_jobs.embedded import socket_path
from serving.connection import connect


def measure(folder: Path) -> tuple[float, float]:
    began = time.monotonic()
    command = [str(Path(sys.executable).parent / "freshet"), "run", "--fresh", "--state-dir", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    connection = connect(f"unix://{socket_path(folder / 'redis')}")
    first = None
    while process.poll() is None:
        if first is None and _learned(connection):
            first = time.monotonic() - began
        time.sleep(0.02)
    if process.returncode or first is None:
        raise RuntimeError(f"the run failed with exit code {process.returncode}")
    return first, time.monotonic() - began


def _learned(connection: object) -> bool:
    import redis

    try:
        return bool(connection.exists("freshet:items:0"))  # type: ignore[attr-defined]
    except (redis.exceptions.ConnectionError, redis.exceptions.BusyLoadingError):
        return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    firsts: list[float] = []
    ends: list[float] = []
    with scratch() as name:
        for number in rounds(arguments.rounds):
            first, end = measure(Path(name).resolve() / str(number))
            firsts.append(first)
            ends.append(end)
    show(
        "the default run, from an installed environment",
        [("", "seconds"), ("first learned state in Redis", f"{median(firsts):.1f}"), ("end", f"{median(ends):.1f}")],
    )
    store("first_state", {"first": firsts, "end": ends})


if __name__ == "__main__":
    main()
