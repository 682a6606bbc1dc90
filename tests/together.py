"""Runs tests beside each other: those with a job mostly wait, for Flink to start or for a fault to be noticed.

python -m tests.together [arguments of pytest]
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import IO, Final

# By markers, those that take longest first: what is left when one has ended comes next. The first is shown as it goes.
_PARTS: Final = ("flink and not cluster and not faults", "cluster", "faults", "not flink")
_AT_ONCE: Final = 2
_NOTHING: Final = 5  # pytest's code where it was asked for no test


def _run(which: str, output: IO[str] | None) -> int:
    command = [sys.executable, "-m", "pytest", "-m", which, *sys.argv[1:]]
    return subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=False).returncode


def main() -> int:
    with ExitStack() as stack:
        told = [stack.enter_context(tempfile.TemporaryFile("w+", encoding="utf-8")) for _ in _PARTS[1:]]
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            codes = set(pool.map(_run, _PARTS, [None, *told]))
        for output in told:
            output.seek(0)
            sys.stdout.write(output.read())
    return max(codes - {_NOTHING}, default=_NOTHING)


if __name__ == "__main__":
    sys.exit(main())
