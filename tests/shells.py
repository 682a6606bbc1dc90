"""What the PyFlink shells do between the plain objects, for tests without Flink."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import orjson

from udfs.batch import Batch
from udfs.entities import LearnedEntities, dropped_calls, header_entity
from udfs.interactions import Interactions
from udfs.learner import Learned, Learner
from udfs.packing import pack_lines
from udfs.publisher import Author, Publisher

BACKGROUND = ThreadPoolExecutor(1)


class Late(Future[Any]):
    """What is done when it is asked for, and not before."""

    def __init__(self, call: Callable[[], Any]) -> None:
        super().__init__()
        self._call = call

    def result(self, timeout: float | None = None) -> Any:
        return self._call()


class Background(Executor):
    """Does the last thing it was given when someone asks for it, or as far as it is told to."""

    def submit(self, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.last = Late(partial(call, *args, **kwargs))
        return self.last


def batch_of(
    rows: Sequence[Sequence[Any]],
    lines: Sequence[bytes] | None = None,
    *,
    watermark: int | None = None,
    ended: bool = False,
    sources: Sequence[str] = ("log",),
) -> Batch:
    """A batch of rows as :meth:`Interactions.of` takes them, by default each from an empty object."""
    packed = pack_lines([b"{}" for _ in rows] if lines is None else lines)
    return Batch(watermark, ended, sources, Interactions.of(rows), packed)


def publish(
    publisher: Publisher,
    learner: Learner,
    learned: Learned | None = None,
    *,
    shard: int = 0,
    shards: int = 1,
    epoch: int = 7,
    attempt: int = 0,
) -> None:
    """Writes what was learned, or all that is known, to Redis: as a new attempt, or as the first write of that one."""
    learned = learned or learner.everything()
    author = Author(publisher.keys, shard, shards, epoch, attempt)
    if not attempt:
        publisher.take_over(author)
    drops = dropped_calls(learner, learned.dropped, author)
    entities = LearnedEntities(learner, learner.encode(learned), author)
    header = header_entity(learner, author)
    publisher.learned(author, entities, entities.items(), drops, reached=orjson.dumps(learner.reached), header=header)
