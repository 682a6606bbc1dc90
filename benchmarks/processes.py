"""What a program costs with all its processes: CPU seconds within a span of time, and the most memory at once."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Sequence
from typing import Final

import numpy as np
import psutil

_INTERVAL: Final = 0.25
_MEMORY_EVERY: Final = 4  # samples: what a process shares with others takes the kernel milliseconds to tell


class Watch:
    """Samples processes and all that they start, also what outlives its parent, while its block runs.

    CPU is that of whole processes, user and system. Memory counts what several share once (PSS).

    Attributes
    ----------
    peak
        Bytes: the most that all had together.
    names
        The name of each process that was met, by its id.
    """

    def __init__(self, *roots: int) -> None:
        self._roots = [psutil.Process(pid) for pid in roots]
        self._known = {root.pid: root for root in self._roots}
        self._cpu: dict[int, list[tuple[float, float]]] = {}
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self.names: dict[int, str] = {}
        self.peak = 0

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._done.set()
        self._thread.join()

    def cpu(self, first: float, last: float) -> dict[int, float]:
        """Seconds of CPU of each process between two moments, wall-clock ms."""
        spent: dict[int, float] = {}
        for pid, samples in self._cpu.items():
            times, seconds = zip(*samples, strict=True)
            before, after = np.interp([first, last], times, seconds)
            spent[pid] = float(after - before)
        return spent

    def _sample(self) -> None:
        for number in range(1_000_000_000):
            self._look(with_memory=number % _MEMORY_EVERY == 0)
            if self._done.wait(_INTERVAL):
                self._look(with_memory=True)
                return

    def _look(self, *, with_memory: bool) -> None:
        for root in self._roots:
            with contextlib.suppress(psutil.Error):
                for child in root.children(recursive=True):
                    self._known.setdefault(child.pid, child)
        memory = 0
        for pid, process in list(self._known.items()):
            try:
                self._note(pid, process)
                if with_memory:
                    memory += process.memory_full_info().pss
            except psutil.NoSuchProcess:
                del self._known[pid]
            except psutil.Error:
                continue
        self.peak = max(self.peak, memory)

    def _note(self, pid: int, process: psutil.Process) -> None:
        if pid not in self._cpu:
            # A parent that was there before counts from now on; a child from its birth, with nothing spent.
            self._cpu[pid] = [] if process in self._roots else [(process.create_time() * 1_000, 0.0)]
        times = process.cpu_times()
        self._cpu[pid].append((time.time() * 1_000, times.user + times.system))
        self.names[pid] = process.name()


def total(spent: dict[int, float], pids: Sequence[int] | None = None) -> float:
    return sum(seconds for pid, seconds in spent.items() if pids is None or pid in pids)
