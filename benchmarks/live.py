"""A job whose events are created on time, whatever the job does: for measuring how fresh what it writes is."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from udfs.chunk import Chunk
from udfs.generator import GeneratorConfig, GeneratorFeed
from udfs.requests import Place

if TYPE_CHECKING:
    from flink_jobs.topology import Job


def created(began: float, rate: float, number: int) -> float:
    """When event ``number`` is created, in seconds since 1970: its moment on an even time line.

    The built-in generator gives out an event as soon as this moment has passed.
    """
    return began + (number + 1) / rate


class LiveFeed:
    """The built-in generator at its rate, its pauses and its chunks, with the moment of creation as each event's time.

    An event is created at its moment also where nobody comes to read it then, so a reader that was held up is late
    for all that it missed. A replay would give other times: this feed is for a run without faults.

    Parameters
    ----------
    trace
        A file for when events were read: first the moment of the beginning, then of each chunk the number of its
        first event, how many it has, and the moment.
    pause
        Milliseconds between reads; None: as the generator has it.
    """

    def __init__(self, config: GeneratorConfig, run_id: str, trace: str, pause: int | None = None) -> None:
        self._rate = config.rate
        self._feed = GeneratorFeed(config, run_id, clock=self._clock)
        self._began: float | None = None
        self._trace = Path(trace)
        self._pause = pause
        self.ended = False

    def _clock(self) -> float:
        now = time.time()
        if self._began is None:
            self._began = now
        return now

    @property
    def place(self) -> Place:
        return self._feed.place

    def seek(self, position: bytes | None) -> None:
        self._feed.seek(position)
        self.ended = self._feed.ended
        self._note(repr(self._began))

    def position(self) -> bytes:
        return self._feed.position()

    def pause(self) -> int:
        return self._feed.pause() if self._pause is None else self._pause

    def read(self, limit: int | None = None) -> Chunk | None:
        chunk = self._feed.read(limit)
        self.ended = self._feed.ended
        if chunk is None or chunk.ended:
            return chunk
        now, began = time.time(), self._began
        assert began is not None
        first = chunk.runs[0].first
        moments = (int(1_000 * created(began, self._rate, n)) for n in range(first, first + len(chunk.lines)))
        lines = [line[: line.rindex(b":")] + b":%d}" % ms for line, ms in zip(chunk.lines, moments, strict=True)]
        self._note(f"{first} {len(lines)} {now!r}")
        return replace(chunk, lines=lines)

    def _note(self, line: str) -> None:
        with self._trace.open("a") as file:
            file.write(f"{line}\n")


def run_live(values: Mapping[str, Any], trace: str, pause: int | None) -> None:
    """Runs a job that reads a :class:`LiveFeed` until it gets a signal; ``values`` are settings by their names."""
    from rich.console import Console

    from flink_jobs.runner import run
    from flink_jobs.settings import Layer, resolve
    from flink_jobs.sources import FeedSource

    resolved = resolve([Layer("benchmark", values)])
    config = GeneratorConfig(**resolved.settings.generator.model_dump())

    def adapt(job: Job) -> Job:
        assert isinstance(job.source, FeedSource)
        feed = functools.partial(LiveFeed, config, job.intake.run_id, trace, pause)
        return replace(job, source=replace(job.source, open_feed=feed))

    with Path(os.devnull).open("w") as nowhere:
        run(resolved, Console(file=nowhere), adapt)
