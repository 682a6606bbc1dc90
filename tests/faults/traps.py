"""Functions that throw once, where a test asks for it, and notes of what workers learned and restored.

A trap is a file: whoever removes it throws, so that the restart that follows does not throw again. Workers import this
module; give :func:`fragile` or :func:`reading_back` to :func:`flink_jobs.runner.run` as ``adapt``.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson

from udfs import outbox

LIMIT = "limit"
_CHUNK = 500  # events: by so many may the limit be passed


def spring(folder: str, place: str) -> None:
    """Throws if there is a trap at this place, and removes it."""
    try:
        (Path(folder) / place).unlink()
    except FileNotFoundError:
        return
    raise RuntimeError(f"a trap {place} the update")


class FragileModel:
    """A model that throws before or after an update, and notes how many events it was given to learn."""

    def __init__(self, model: Any, folder: str) -> None:
        self._model, self._folder = model, folder
        self._given = (Path(folder) / f"{os.getpid()}-{id(self)}.given").open("ab", buffering=0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def learn(self, users: Any, items: Any, ys: Any, times: Any = None) -> Any:
        spring(self._folder, "before")
        learned = self._model.learn(users, items, ys, times)
        self._given.write(b"%d\n" % len(ys))
        spring(self._folder, "after")
        return learned


class FragilePublisher:
    """A publisher that throws when Redis has taken what was learned; Flink's state may have it or not."""

    def __init__(self, publisher: Any, folder: str) -> None:
        self._publisher, self._folder = publisher, folder

    def __getattr__(self, name: str) -> Any:
        return getattr(self._publisher, name)

    def learned(self, *arguments: Any, **options: Any) -> None:
        self._publisher.learned(*arguments, **options)
        spring(self._folder, "published")


def fragile_model(make: Callable[[], Any], folder: str) -> FragileModel:
    return FragileModel(make(), folder)


def fragile_publisher(make: Callable[[], Any], folder: str) -> FragilePublisher:
    """In a worker; in every other one small writes are not waited for, either, from now on."""
    outbox._MANY = 1 if os.getpid() % 2 else 5_000
    return FragilePublisher(make(), folder)


class PacedFeed:
    """A generator's feed that reads no further than a file says: by itself it runs ahead of a job that is held up."""

    def __init__(self, feed: Any, folder: str) -> None:
        self._feed, self._limit = feed, Path(folder) / LIMIT

    def __getattr__(self, name: str) -> Any:
        return getattr(self._feed, name)

    def read(self, limit: int | None = None) -> Any:
        if self._feed.place.lines >= int(self._limit.read_text()):
            return None
        return self._feed.read(limit)


def paced_feed(open_feed: Callable[..., Any], folder: str) -> PacedFeed:
    return PacedFeed(open_feed(chunk_events=_CHUNK), folder)


def allow(folder: Path, events: int) -> None:
    """Lets the feed read so many events."""
    scratch = folder / f"{LIMIT}.new"
    scratch.write_text(str(events))
    scratch.replace(folder / LIMIT)


def fragile(job: Any, folder: Path) -> Any:
    """The job with places for traps, which lie in ``folder``, and a feed that reads what :func:`allow` lets it."""
    return replace(
        job,
        source=replace(job.source, open_feed=functools.partial(paced_feed, job.source.open_feed, str(folder))),
        model=functools.partial(fragile_model, job.model, str(folder)),
        publisher=functools.partial(fragile_publisher, job.publisher, str(folder)),
    )


def given(folder: Path) -> int:
    """How many events all workers together were given to learn, those of replays again."""
    return sum(int(count) for file in folder.glob("*.given") for count in file.read_bytes().split())


class ReadBackModel:
    """A model that writes each row that it is restored from to a file of its shard."""

    def __init__(self, model: Any, folder: str) -> None:
        self._model = model
        self._file = (Path(folder) / f"{os.getpid()}-{id(self)}.restored").open("ab")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def decode_rows(self, family: str, row_ids: Sequence[str], blobs: Sequence[bytes]) -> None:
        for row_id, blob in zip(row_ids, blobs, strict=True):
            self._file.write(orjson.dumps([family, row_id, blob.hex()]) + b"\n")
        self._model.decode_rows(family, row_ids, blobs)

    def learn(self, users: Any, items: Any, ys: Any, times: Any = None) -> Any:
        raise AssertionError("what is read back learns nothing")

    def header(self) -> bytes:
        self._file.flush()  # stored after each element, so after all rows
        return bytes(self._model.header())


def read_back_model(make: Callable[[], Any], folder: str) -> ReadBackModel:
    return ReadBackModel(make(), folder)


def reading_back(job: Any, folder: Path) -> Any:
    """The job, noting the rows of its state in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    return replace(job, model=functools.partial(read_back_model, job.model, str(folder)))


def restored(folder: Path) -> Iterator[list[tuple[str, str, bytes]]]:
    """The rows that :func:`reading_back` noted, shard by shard."""
    for file in folder.glob("*.restored"):
        rows = [orjson.loads(line) for line in file.read_bytes().splitlines()]
        yield [(family, row_id, bytes.fromhex(blob)) for family, row_id, blob in rows]
