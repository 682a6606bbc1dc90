"""Python workers of a local run, forked from one process that has imported what they need.

Each Python operator has a worker process of its own, and each worker takes more than a second of CPU to import
Beam, PyFlink and River. Here that is paid once, while the JVM starts; a worker is then there in milliseconds,
also when it takes the place of one that died, and shares the memory of what was imported.

Flink starts a worker by a Python executable of our choice: a script that sends to the nursery what it was called
with, and waits. Anything else it is called for goes to Python itself.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from flink_jobs import attach
from serving.schema import Keys
from udfs.batch import Batch
from udfs.chunk import Chunk, Run
from udfs.entities import LearnedEntities
from udfs.events import EventFormat
from udfs.intake import Intake, IntakeConfig
from udfs.learner import Learner, LearnerConfig, build
from udfs.mapstate import taken_apart
from udfs.models import RankingModel
from udfs.publisher import Author
from udfs.tilefeed import TileConfig

_BOOT: Final = "pyflink.fn_execution.beam.beam_boot"
_PRELOADED: Final = ("pyflink.fn_execution.beam.beam_sdk_worker_main", "udfs.functions")

_END: Final = b"e"  # an order to the nursery

_LAUNCHER: Final = """#!/bin/sh
# Stands in for Python where Flink starts a worker.
if [ "$2" = {boot} ]; then exec {python} -I -S {attach} {address} "$@"; fi
exec {python} "$@"
"""


@dataclass(frozen=True)
class Nursery:
    """A running nursery.

    Attributes
    ----------
    launcher
        The executable for ``python.executable``.
    """

    launcher: Path
    _orders: IO[bytes]

    def end_workers(self) -> None:
        """Ends all workers at once, also those that hang; Flink starts others."""
        self._orders.write(_END)
        self._orders.flush()


@contextlib.contextmanager
def nursery() -> Iterator[Nursery]:
    """Starts a nursery, which ends with the block."""
    with tempfile.TemporaryDirectory(prefix="freshet-") as name:
        folder = Path(name)
        address, launcher = folder / "socket", folder / "python"
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            # Bound before anyone can ask: who comes while it imports waits in the queue.
            listener.bind(str(address))
            listener.listen(128)
            words = {"boot": _BOOT, "python": sys.executable, "attach": attach.__file__, "address": str(address)}
            launcher.write_text(_LAUNCHER.format(**{key: shlex.quote(word) for key, word in words.items()}))
            launcher.chmod(0o700)
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", __name__, str(listener.fileno())],
                stdin=subprocess.PIPE,
                pass_fds=[listener.fileno()],
            )
        assert process.stdin is not None
        try:
            yield Nursery(launcher, process.stdin)
        finally:
            # It ends when its input does, also where this process is killed.
            process.stdin.close()
            process.wait()


def _serve(listener: socket.socket) -> socket.socket | None:
    """Forks a worker for each that asks. Returns in each of them, with what it was asked by; at the end, None."""
    for name in _PRELOADED:
        importlib.import_module(name)
    learn_once()
    # The collector of a worker need not look at, and so copy, what is shared.
    gc.collect()
    gc.freeze()
    orders, workers = sys.stdin.fileno(), set[int]()
    while True:
        ready, _, _ = select.select([listener, orders], [], [])
        # Those that have ended, so that no number is kept that the system may give again.
        workers = {worker for worker in workers if os.waitpid(worker, os.WNOHANG) == (0, 0)}
        if orders in ready:
            # At the end none is left, unless it hangs, or the command was killed, and its JVM with it.
            for worker in workers:
                os.kill(worker, signal.SIGKILL)
            if os.read(orders, 1) != _END:
                return None
            continue
        connection, _ = listener.accept()
        worker = os.fork()
        if worker == 0:
            listener.close()
            return connection
        workers.add(worker)
        connection.close()


def learn_once(model: str = "biased_mf") -> None:
    """Compiles the kernels of intake, windows and a model, or loads them."""
    line = b'{"user_id":"user","item_id":"item","timestamp":100000000000,"event_value":1.0,"event_id":"1"}'
    intake = Intake(IntakeConfig(EventFormat(), 1, False, True, 0, 0, TileConfig((), 1, 1), ("file", "line"), "", 0))
    [batch] = intake.process(Chunk([Run("", 0, 1)], [line], ended=True), 0).batches.values()
    learner = Learner(LearnerConfig(), build(model, {}))
    for learned in learner.process(Batch.decode(batch)):
        for _ in LearnedEntities(learner, learner.encode(learned), Author(Keys(""), 0, 1, 0)).parts():
            pass
    if not isinstance(learner.model, RankingModel):
        learner.model.predicted("user")  # as it is evaluated
    taken_apart(b"")  # for those that go on from a state


def _work(connection: socket.socket) -> None:
    """Takes up what the launcher was called with, and runs Flink's own start of a worker."""
    size = int.from_bytes(_read(connection, 4), "big")
    request = json.loads(_read(connection, size))
    _, descriptors, _, _ = socket.recv_fds(connection, 1, 2)
    for number, descriptor in enumerate(descriptors, start=1):
        os.dup2(descriptor, number)
        os.close(descriptor)
    with Path(os.devnull).open() as nothing:
        os.dup2(nothing.fileno(), sys.stdin.fileno())  # the nursery's orders are not for its workers
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    sys.path[:0] = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p and p not in sys.path]
    sys.argv = request["argv"][1:]
    runpy.run_module(_BOOT, run_name="__main__", alter_sys=True)
    connection.sendall(b"\0")


def _read(connection: socket.socket, size: int) -> bytes:
    body = b""
    while len(body) < size:
        part = connection.recv(size - len(body))
        if not part:
            raise EOFError("the launcher went away")
        body += part
    return body


if __name__ == "__main__":
    # Ctrl-C is for the command line, which then stops the job.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    asked = _serve(socket.socket(fileno=int(sys.argv[1])))
    if asked is not None:
        with asked:
            _work(asked)
