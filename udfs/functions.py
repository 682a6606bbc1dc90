"""The PyFlink shells: each translates between Flink's elements and state and a plain object, and decides nothing.

State is stored by an element, before the element is done: PyFlink sends the writes when the bundle ends, which
is before the checkpoint barrier.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from pyflink.common import Row, Types
from pyflink.datastream import KeyedProcessFunction, OutputTag, ProcessFunction, RuntimeContext
from pyflink.datastream.state import MapStateDescriptor, ValueStateDescriptor

from serving.schema import version
from udfs.batch import Batch
from udfs.chunk import Chunk
from udfs.intake import Intake, IntakeConfig
from udfs.learner import Learner, LearnerConfig
from udfs.models import RowModel
from udfs.names import State
from udfs.publisher import Publisher, learned_entities, tile_entities
from udfs.reading import Feed
from udfs.rows import EncodedRows

BYTES: Final = Types.PRIMITIVE_ARRAY(Types.BYTE())

CHUNK: Final = BYTES  # by the name of its log
BATCH: Final = BYTES  # by the key of its shard
TILE_FEED: Final = OutputTag("tile-feed", Types.ROW_NAMED(["events", "watermark"], [Types.STRING(), Types.LONG()]))
DEAD_LETTERS: Final = OutputTag("dead-letters", Types.STRING())

# In place of a chunk or a batch: nothing came, and who sends it is there. The reader sends one when it starts and now
# and then; intake and learners note in Redis that they are there, find out whether Redis still has what it was given,
# and are otherwise as before.
_BEAT: Final = b""
_BEAT_MS: Final = 5_000


def _calm_collector() -> None:
    """Makes Python's cycle collector rare: batches are many small objects without cycles, and each pass over
    them and over the rows of a model costs more than learning."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(1_000_000, 10, 100)


class ReadFunction(KeyedProcessFunction):
    """Reads a bounded log that lives outside Flink, chunk by chunk, at its own pace.

    Flink has no Python sources. Here a timer that sets itself again is one: each time it fires, the next
    chunk is read, and the position after it is kept in keyed state, so the two are checkpointed together. The
    element that comes in is only a heartbeat, which sets the first timer of each process.
    """

    def __init__(self, open_feed: Callable[[], Feed]) -> None:
        self._open_feed = open_feed

    def open(self, runtime_context: RuntimeContext) -> None:
        self._position = runtime_context.get_state(ValueStateDescriptor(State.POSITION, BYTES))
        self._feed: Feed | None = None
        self._beat_at = 0

    def process_element(self, value: Any, ctx: KeyedProcessFunction.Context) -> Iterator[Row]:
        if self._feed is None:
            self._feed = self._open_feed()
            self._feed.seek(self._position.value())
            self._again(ctx)
        now = ctx.timer_service().current_processing_time()
        if now - self._beat_at >= _BEAT_MS:
            self._beat_at = now
            yield Row(ctx.get_current_key(), _BEAT)

    def on_timer(self, timestamp: int, ctx: KeyedProcessFunction.OnTimerContext) -> Iterator[Row]:
        feed = self._feed
        if feed is None:
            # A timer of the process before this one; the heartbeat will set ours.
            return
        chunk = feed.read()
        if chunk is not None:
            self._position.update(feed.position())
            yield Row(ctx.get_current_key(), chunk.encode())
        if not feed.ended:
            self._again(ctx)

    def _again(self, ctx: Any) -> None:
        assert self._feed is not None
        service = ctx.timer_service()
        service.register_processing_time_timer(service.current_processing_time() + self._feed.pause())


class IntakeFunction(KeyedProcessFunction):
    """Chunks of a log in; batches for the shards, the tile feed and dead letters out."""

    def __init__(self, config: IntakeConfig, shard_keys: list[str], publisher: Callable[[], Publisher]) -> None:
        self._config = config
        self._shard_keys = shard_keys
        self._make_publisher = publisher

    def open(self, runtime_context: RuntimeContext) -> None:
        self._header = runtime_context.get_state(ValueStateDescriptor(State.INTAKE_HEADER, BYTES))
        self._blobs = runtime_context.get_map_state(MapStateDescriptor(State.INTAKE_BLOBS, Types.STRING(), BYTES))
        self._intake: Intake | None = None
        self._attempt = runtime_context.get_attempt_number()
        _calm_collector()
        self._publisher = self._make_publisher()

    def close(self) -> None:
        self._publisher.close()

    def process_element(self, value: bytes, ctx: KeyedProcessFunction.Context) -> Iterator[Any]:
        intake = self._intake or self._restored()
        if value == _BEAT:
            self._note(intake)
            for key in self._shard_keys:
                yield Row(key, _BEAT)
            return
        result = intake.process(Chunk.decode(value), time.time_ns() // 1_000_000)
        for name, blob in result.puts.items():
            self._blobs.put(name, blob)
        for name in result.removes:
            self._blobs.remove(name)
        self._header.update(intake.header)
        self._note(intake)
        if result.dead_letters:
            yield DEAD_LETTERS, "\n".join(result.dead_letters)
        for feed in result.tile_feeds:
            yield TILE_FEED, Row(*feed)
        for shard, batch in result.batches.items():
            yield Row(self._shard_keys[shard], batch)

    def _note(self, intake: Intake) -> None:
        self._publisher.ledger(intake.ledger_fields(), self._attempt)

    def _restored(self) -> Intake:
        self._intake = Intake(self._config)
        header = self._header.value()
        if header is not None:
            self._intake.restore(header, self._blobs.items())
        return self._intake


class LearnFunction(KeyedProcessFunction):
    """Batches of a shard in; what was learned out, as a group of touched rows, and dead letters."""

    def __init__(
        self,
        config: LearnerConfig,
        model: Callable[[], RowModel],
        shard_keys: list[str],
        epoch: int,
        publisher: Callable[[], Publisher],
    ) -> None:
        self._config = config
        self._make_model = model
        self._shard_of = {key: shard for shard, key in enumerate(shard_keys)}
        self._epoch = epoch
        self._make_publisher = publisher

    def open(self, runtime_context: RuntimeContext) -> None:
        self._header = runtime_context.get_state(ValueStateDescriptor(State.LEARNER_HEADER, BYTES))
        self._rows = runtime_context.get_map_state(MapStateDescriptor(State.ROWS, Types.STRING(), BYTES))
        self._waiting = runtime_context.get_map_state(MapStateDescriptor(State.WAITING, Types.LONG(), BYTES))
        self._learners: dict[str, Learner] = {}
        self._acknowledged: dict[str, bytes] = {}  # the version of each shard's header that Redis has taken
        _calm_collector()
        self._publisher = self._make_publisher()

    def close(self) -> None:
        self._publisher.close()

    def process_element(self, value: bytes, ctx: KeyedProcessFunction.Context) -> Iterator[Any]:
        key = ctx.get_current_key()
        learner = self._learners.get(key) or self._restored(key)
        if value == _BEAT:
            self._assure(key, learner)
            self._publisher.alive(self._shard_of[key])
            return
        batch = Batch.decode(value)
        number = learner.batch_number
        for learned in learner.process(batch):
            encoded = learner.encode(learned)
            for family, rows in encoded.items():
                for row_id, blob in zip(rows.row_ids, rows.blobs, strict=True):
                    self._rows.put(f"{family}:{row_id}", blob)
            self._publish(key, learner, encoded)
            if learned.dead_letters:
                yield DEAD_LETTERS, "\n".join(learned.dead_letters)
        for finished in learner.finished_batches():
            if finished != number:
                self._waiting.remove(finished)
        waiting = learner.waiting_of(number)
        if waiting is not None:
            self._waiting.put(number, waiting)
        self._header.update(learner.header())
        self._publisher.alive(self._shard_of[key])

    def _publish(self, key: str, learner: Learner, encoded: dict[str, EncodedRows]) -> None:
        before = self._write(key, learner, encoded, self._acknowledged.get(key, b""))
        if self._lost(key, before):
            self._write_everything(key, learner)
        self._acknowledged[key] = version(self._epoch, learner.batch_number)

    def _assure(self, key: str, learner: Learner) -> None:
        """Writes everything where Redis has lost it, which a batch finds by the way, or where someone asks for it."""
        shard = self._shard_of[key]
        known, asked = self._publisher.known(shard)
        if self._lost(key, known) or (asked and key in self._acknowledged):
            self._write_everything(key, learner)
        if asked:
            self._publisher.republished(shard)

    def _lost(self, key: str, known: bytes | None) -> bool:
        """Whether Redis was wiped or put back: the header that it knows is not the one that it has acknowledged."""
        return (known or b"") < self._acknowledged.get(key, b"")

    def _write_everything(self, key: str, learner: Learner) -> None:
        self._write(key, learner, learner.encode(learner.everything()))

    def _write(self, key: str, learner: Learner, encoded: dict[str, EncodedRows], after: bytes = b"") -> bytes | None:
        """Publishes rows, and the header unless Redis has lost the one of version ``after``; returns the version of the
        header that Redis had before."""
        shard = self._shard_of[key]
        return self._publisher.learned(
            *learned_entities(learner, encoded, self._publisher.keys, shard, len(self._shard_of), self._epoch), after
        )

    def _restored(self, key: str) -> Learner:
        learner = self._learners[key] = Learner(self._config, self._make_model())
        header = self._header.value()
        if header is None:
            return learner
        rows = ((*name.split(":", 1), blob) for name, blob in self._rows.items())
        learner.restore(header, rows, self._waiting.items())
        # A checkpoint covers only what Redis has acknowledged.
        self._acknowledged[key] = version(self._epoch, learner.batch_number)
        self._assure(key, learner)
        return learner


class PublishTilesFunction(ProcessFunction):
    """Gathered windows in, to Redis; nothing out."""

    def __init__(
        self, keep: Mapping[str, int], event_types: list[str], part: int, publisher: Callable[[], Publisher]
    ) -> None:
        self._keep = dict(keep)
        self._event_types = event_types
        self._part = part
        self._make_publisher = publisher

    def open(self, runtime_context: RuntimeContext) -> None:
        self._publisher = self._make_publisher()

    def close(self) -> None:
        self._publisher.close()

    def process_element(self, value: Row, ctx: ProcessFunction.Context) -> None:
        entities = tile_entities([value[0]], self._publisher.keys, self._event_types, self._part)
        self._publisher.tiles(entities, self._keep)
