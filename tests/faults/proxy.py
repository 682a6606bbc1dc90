"""A TCP proxy that misbehaves when it is told to: it delays, cuts, halves, resets, and loses replies."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from typing import Final

_SIZE: Final = 65_536
_RESET: Final = struct.pack("ii", 1, 0)  # close with RST: what is on its way is lost

MODES: Final = ("cut", "half_request", "half_reply", "drop_reply")


class Proxy:
    """Stands between clients and a server on the loopback.

    A mode is for one connection: the next one that a client sends on, or is answered on, takes it and is ended by it.

    Attributes
    ----------
    port
        Where clients connect.
    delay
        Seconds that each piece is held back, in both directions.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.delay = 0.0
        self._lock = threading.Lock()
        self._mode: str | None = None
        self._done = threading.Event()
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()

    def __enter__(self) -> Proxy:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        self.reset_all()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def spoil(self, mode: str, timeout: float = 30.0) -> bool:
        """Has one connection ended by ``mode``; returns whether it was used within ``timeout`` seconds.

        ``cut``: closed before a request is passed on. ``half_request``: the server gets half of what the client sent,
        then both get a reset. ``half_reply``: the client gets half of an answer, then a reset. ``drop_reply``: the
        server did what was asked, and the client hears nothing but a reset.
        """
        with self._lock:
            self._mode = mode
            self._done.clear()
        used = self._done.wait(timeout)
        with self._lock:
            self._mode = None
        return used

    def reset_all(self) -> int:
        """Resets every connection; returns how many there were."""
        with self._lock:
            pairs = list(self._pairs)
        for pair in pairs:
            self._reset(pair)
        return len(pairs)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self._target), timeout=5)
            except OSError:
                client.close()
                continue
            server.settimeout(None)
            for end in (client, server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            pair = (client, server)
            with self._lock:
                self._pairs.add(pair)
            for requests in (True, False):
                threading.Thread(target=self._pump, args=(pair, requests), daemon=True).start()

    def _pump(self, pair: tuple[socket.socket, socket.socket], requests: bool) -> None:
        source, sink = pair if requests else pair[::-1]
        try:
            while data := source.recv(_SIZE):
                if self.delay:
                    time.sleep(self.delay)
                mode = self._take("cut", "half_request") if requests else self._take("half_reply", "drop_reply")
                if mode is not None:
                    if mode.startswith("half"):
                        sink.sendall(data[: len(data) // 2])
                        time.sleep(0.05)  # so that it arrives: a reset overtakes what is not read
                    self._reset(pair)
                    self._done.set()
                    return
                sink.sendall(data)
        except OSError:
            pass  # the other direction, or a reset, has closed it
        self._close(pair)

    def _take(self, *modes: str) -> str | None:
        with self._lock:
            mode = self._mode if self._mode in modes else None
            if mode is not None:
                self._mode = None
            return mode

    def _reset(self, pair: tuple[socket.socket, socket.socket]) -> None:
        for end in pair:
            with contextlib.suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._close(pair)

    def _close(self, pair: tuple[socket.socket, socket.socket]) -> None:
        with self._lock:
            self._pairs.discard(pair)
        for end in pair:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RD)  # wakes who waits for it
            end.close()
