"""Runs the tests that need no job beside those that do, which mostly wait.

python -m tests.together [arguments of pytest]
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from typing import Final

_NOTHING: Final = 5  # pytest's code where it was asked for no test


def _command(which: str) -> list[str]:
    return [sys.executable, "-m", "pytest", "-m", which, *sys.argv[1:]]


def main() -> int:
    with tempfile.TemporaryFile("w+", encoding="utf-8") as told:
        beside = subprocess.Popen(_command("not flink"), stdout=told, stderr=subprocess.STDOUT)
        codes = {subprocess.run(_command("flink"), check=False).returncode, beside.wait()}
        told.seek(0)
        sys.stdout.write(told.read())
    return max(codes - {_NOTHING}, default=_NOTHING)


if __name__ == "__main__":
    sys.exit(main())
