"""Runs the real job on a MiniCluster, and notes every row that it stores, bit for bit."""

from __future__ import annotations

import functools
import gzip
import io
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
from rich.console import Console

from flink_jobs.runner import run
from flink_jobs.settings import Layer, Resolved, resolve
from flink_jobs.sources import FeedSource
from udfs.chunk import Chunk
from udfs.models import RowModel
from udfs.reading import Feed
from udfs.rivermodels import RiverRanker

Rows = dict[tuple[str, str], bytes]


class NotedModel:
    """A model that also writes each stored row to a file of its process: the last one of an id is its state."""

    def __init__(self, model: RiverRanker, folder: str) -> None:
        self._model = model
        self._file = (Path(folder) / f"{os.getpid()}-{id(self)}.rows").open("ab", buffering=0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    @property
    def __class__(self) -> Any:  # type: ignore[override]
        return type(self._model)  # a learner asks whether it ranks

    def encode_rows(self, family: str, row_ids: Sequence[str], numbers: Any) -> Any:
        weights = self._model.encode_rows(family, row_ids, numbers)
        for row_id, row in zip(row_ids, weights, strict=True):
            self._file.write(orjson.dumps([family, row_id, row.tobytes().hex()]) + b"\n")
        return weights


def noted(model: Callable[[], RiverRanker], folder: str) -> RowModel:
    noting: Any = NotedModel(model(), folder)
    return noting


class SlowFeed:
    """A feed that reads little at a time and ever more slowly: who stops a run in its middle, once so and so much is
    learned, meets its middle, however long a busy machine takes to see that and to stop.
    """

    def __init__(self, open_feed: Callable[[], Feed]) -> None:
        self._feed = open_feed()
        self._reads = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._feed, name)

    def read(self, limit: int | None = None) -> Chunk | None:
        self._reads += 1
        time.sleep(0.02 * self._reads)
        return self._feed.read(200 if limit is None else min(limit, 200))


def resolved(folder: Path, settings: Mapping[str, Any]) -> Resolved:
    """The settings of a run with its state in ``folder``."""
    return resolve([Layer("test", {"state_dir": str(folder), "checkpoint_interval": "1s", **settings})])


def run_job(
    folder: Path, settings: Mapping[str, Any], *, notes: Path | None = None, stop: threading.Event | None = None
) -> dict[str, Any]:
    """One run with its state in ``folder``; returns the summary. One that is to be stopped reads slowly."""

    def adapt(job: Any) -> Any:
        if stop is not None and isinstance(job.source, FeedSource):
            job = replace(job, source=replace(job.source, open_feed=functools.partial(SlowFeed, job.source.open_feed)))
        if notes is None:
            return job
        notes.mkdir(parents=True, exist_ok=True)
        return replace(job, model=functools.partial(noted, job.model, str(notes)))

    return run(resolved(folder, settings), Console(file=io.StringIO()), adapt, stop or threading.Event())


def stored_rows(*notes: Path) -> Rows:
    """The last stored weights of each row, in the order of the runs; for one shard, or ids that do not meet."""
    rows: Rows = {}
    for folder in notes:
        for file in sorted(folder.glob("*.rows"), key=lambda f: f.stat().st_mtime_ns):
            for line in file.read_bytes().splitlines():
                family, row_id, blob = orjson.loads(line)
                rows[family, row_id] = bytes.fromhex(blob)
    return rows


def lines_of(path: Path, limit: int | None = None) -> list[bytes]:
    with gzip.open(path, "rb") as file:
        return [line.rstrip(b"\n") for _, line in zip(range(limit or 10**9), file, strict=False)]


def write_lines(path: Path, lines: Iterable[bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def dead_letters(folder: Path) -> list[dict[str, Any]]:
    letters = []
    for file in sorted(folder.glob("dead-letters*.jsonl")):
        letters += [orjson.loads(line) for line in file.read_bytes().splitlines()]
    return letters


def balanced(events: Mapping[str, int]) -> bool:
    parts: Sequence[str] = ("learned", "rejected", "late", "duplicate", "pending")
    return events["read"] == sum(events[name] for name in parts)
