"""Runs ``bytewax_job.py`` with recovery on, in an environment of its own that is made when it is first needed.

    python -m benchmarks.rivals.bytewax_run FILE --redis URL [--processes 2] [--shards 4] [--factors 16]

Snapshots every 10 s into SQLite, a partition a process. With several processes the file is first split by user, as a
partitioned log would be: each process reads its own part, and no shard's order is lost.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import venv
import zlib
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from benchmarks.rivals.shared import clock
from serving.connection import connect

ROOT: Final = Path(__file__).parents[2]
_REQUIREMENTS: Final = Path(__file__).parent / "requirements-bytewax.txt"
_ENVIRONMENT: Final = ROOT / ".venv-bytewax"
_USER: Final = re.compile(rb'"user_id":\s*"([^"]*)"')


def bytewax_python() -> Path:
    """The interpreter of bytewax's environment, which is made if there is none of these requirements.

    Raises
    ------
    SystemExit
        If it can't be made; the message says what failed.
    """
    python = _ENVIRONMENT / "bin" / "python"
    mark = _ENVIRONMENT / "installed"
    wanted = hashlib.sha256(_REQUIREMENTS.read_bytes()).hexdigest()
    if mark.exists() and mark.read_text() == wanted:
        return python
    print(f"making {_ENVIRONMENT.name} from {_REQUIREMENTS.name}: once, a minute or so", file=sys.stderr, flush=True)
    venv.create(_ENVIRONMENT, clear=True, with_pip=True)
    command = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "-r", str(_REQUIREMENTS)]
    done = subprocess.run(command, stdout=sys.stderr, check=False)
    if done.returncode:
        raise SystemExit(
            f"{_ENVIRONMENT.name} can't be made: pip could not install {_REQUIREMENTS.name} (see above). Without a "
            "network, leave bytewax out of the comparison with --only"
        )
    mark.write_text(wanted)
    return python


def split(path: Path, folder: Path, count: int) -> None:
    """Puts the lines of a file into as many files, by user."""
    folder.mkdir()
    if count == 1:
        (folder / path.name).symlink_to(path.resolve())
        return
    with ExitStack() as stack, path.open("rb") as lines:
        files = [stack.enter_context((folder / f"part-{n}.jsonl").open("wb")) for n in range(count)]
        for line in lines:
            user = _USER.search(line)
            assert user is not None
            files[zlib.crc32(user[1]) % count].write(line)


def _addresses(count: int) -> str:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return ";".join(f"127.0.0.1:{one.getsockname()[1]}" for one in sockets)


def _wait(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Returns when all have ended; where one fails, the others, which would wait for it, are ended."""
    while any(process.poll() is None for process in processes):
        if any(process.returncode for process in processes):
            for process in processes:
                process.terminate()
        time.sleep(0.05)
    codes = [process.returncode for process in processes]
    if any(codes):
        raise SystemExit(f"bytewax failed with exit codes {codes}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--redis", required=True)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--shards", type=int, default=1, choices=range(1, 5))
    parser.add_argument("--factors", type=int, default=16)
    arguments = parser.parse_args()
    python, count = str(bytewax_python()), arguments.processes
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryDirectory(prefix="freshet-rival-") as name:
        folder = Path(name)
        split(arguments.file, folder / "input", count)
        (recovery := folder / "recovery").mkdir()
        subprocess.run([python, "-m", "bytewax.recovery", str(recovery), str(count)], env=environment, check=True)
        flow = f"flow({str(folder / 'input')!r}, {arguments.redis!r}, {arguments.shards}, {arguments.factors})"
        command = [
            python, "-m", "bytewax.run", f"benchmarks.rivals.bytewax_job:{flow}",
            "-r", str(recovery), "-s", "10", "-b", "0",
        ]  # fmt: skip
        addresses = _addresses(count)
        of_process = [["-i", str(n), "-a", addresses] for n in range(count)] if count > 1 else [[]]
        processes = [subprocess.Popen([*command, *more], env=environment, cwd=ROOT) for more in of_process]
        _wait(processes)
    print(clock(connect(arguments.redis)))


if __name__ == "__main__":
    main()
