"""Runs tests beside each other: those with a job mostly wait, for Flink to start or for a fault to be noticed.

python -m tests.together [arguments of pytest]
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
from typing import IO, Final

_SHOWN: Final = "flink and not cluster"  # takes longest
_BESIDE: Final = ("not flink", "cluster")
_NOTHING: Final = 5  # pytest's code where it was asked for no test


def _run(which: str, output: IO[str] | None = None) -> int:
    command = [sys.executable, "-m", "pytest", "-m", which, *sys.argv[1:]]
    return subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=False).returncode


def main() -> int:
    codes: set[int] = set()
    with tempfile.TemporaryFile("w+", encoding="utf-8") as told:
        beside = threading.Thread(target=lambda: codes.update([_run(which, told) for which in _BESIDE]))
        beside.start()
        codes.add(_run(_SHOWN))
        beside.join()
        told.seek(0)
        sys.stdout.write(told.read())
    return max(codes - {_NOTHING}, default=_NOTHING)


if __name__ == "__main__":
    sys.exit(main())
