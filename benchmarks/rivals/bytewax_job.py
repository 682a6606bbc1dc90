"""The same job as a bytewax dataflow, which runs in an environment of its own: see ``bytewax_run.py``.

Lines of a folder's files, parsed, keyed by the user's shard, learned by a stateful step with a River model a shard;
each second what was touched goes to Redis, in one pipeline a shard. A snapshot of the model is its pickle. Unlike
freshet it drops no duplicates, sets nothing late aside and has no windows; after a crash Redis may go backwards.
"""

from __future__ import annotations

import pickle
import zlib
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import bytewax.operators as op
import orjson
from bytewax.connectors.files import DirSource
from bytewax.dataflow import Dataflow
from bytewax.operators import StatefulBatchLogic
from bytewax.outputs import DynamicSink, StatelessSinkPartition

from benchmarks.rivals import shared
from serving.connection import connect

_FLUSH: Final = timedelta(seconds=1)
# bytewax places keys by hash: "0" to "3" would all fall to one of two processes, these fall two and two. And each
# process has a shard of each half of the input: half of the events stay where they are read, as with a partitioned log.
_NAMES: Final = ("0", "4", "5", "1")

Event = tuple[str, str, float]
Flushed = tuple[float, int, list[shared.Row]]  # when the shard began, how many events it has learned, what it touched


class Learn(StatefulBatchLogic[Event, Flushed, bytes]):
    """A shard's model."""

    def __init__(self, resumed: bytes | None, n_factors: int) -> None:
        self._model = shared.new_model(n_factors) if resumed is None else pickle.loads(resumed)
        self._users: set[str] = set()
        self._items: set[str] = set()
        self._first, self._learned = shared.now(), 0
        self._due = datetime.now(UTC) + _FLUSH

    def on_batch(self, values: list[Event]) -> tuple[Iterable[Flushed], bool]:
        model = self._model
        for user, item, rating in values:
            model.predict_one(user, item)
            model.learn_one(user, item, rating)
            self._users.add(user)
            self._items.add(item)
        self._learned += len(values)
        return (), self.RETAIN

    def on_notify(self) -> tuple[Iterable[Flushed], bool]:
        return self._flushed(), self.RETAIN

    def on_eof(self) -> tuple[Iterable[Flushed], bool]:
        return self._flushed(), self.RETAIN

    def notify_at(self) -> datetime:
        return self._due

    def snapshot(self) -> bytes:
        return pickle.dumps(self._model)

    def _flushed(self) -> list[Flushed]:
        rows = shared.rows(self._model, self._users, self._items)
        self._users.clear()
        self._items.clear()
        self._due = datetime.now(UTC) + _FLUSH
        return [(self._first, self._learned, rows)]


class _Partition(StatelessSinkPartition[tuple[str, Flushed]]):
    def __init__(self, redis_url: str, shards: int) -> None:
        self._redis, self._shards = connect(redis_url), shards

    def write_batch(self, items: list[tuple[str, Flushed]]) -> None:
        for shard, (first, learned, rows) in items:
            shared.write(self._redis, rows, _NAMES.index(shard), self._shards)
            shared.note(self._redis, shard, first, learned)


class RedisSink(DynamicSink[tuple[str, Flushed]]):
    def __init__(self, redis_url: str, shards: int) -> None:
        self._redis_url, self._shards = redis_url, shards

    def build(self, step_id: str, worker_index: int, worker_count: int) -> _Partition:
        return _Partition(self._redis_url, self._shards)


def parsed(line: str) -> Event:
    event = orjson.loads(line)
    return event["user_id"], event["item_id"], event["event_value"]


def flow(folder: str, redis_url: str, shards: int, n_factors: int) -> Any:
    """What ``python -m bytewax.run`` runs."""
    dataflow = Dataflow("rival")
    # Named alike in all processes: each file is read by one of them.
    lines = op.input("lines", dataflow, DirSource(Path(folder), get_fs_id=lambda _: "shared"))
    events = op.map("parse", lines, parsed)
    keyed = op.key_on("shard", events, lambda event: _NAMES[zlib.crc32(event[0].encode()) % shards])
    learned = op.stateful_batch("learn", keyed, lambda resumed: Learn(resumed, n_factors))
    op.output("redis", learned, RedisSink(redis_url, shards))
    return dataflow
