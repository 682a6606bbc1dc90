"""The PyFlink shells: each translates between Flink's elements and state and a plain object, and decides nothing.

State is stored by an element, before the element is done: PyFlink sends the writes when the bundle ends, which
is before the checkpoint barrier.
"""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, Final

from pyflink.common import Row, Types
from pyflink.datastream import KeyedProcessFunction, OutputTag, ProcessFunction, RuntimeContext
from pyflink.datastream.state import MapStateDescriptor, ValueStateDescriptor

from udfs.batch import Batch
from udfs.catalogue import changes
from udfs.chunk import Chunk
from udfs.deadletters import Teller, letter_record
from udfs.entities import tile_entities
from udfs.intake import Intake, IntakeConfig, IntakeResult
from udfs.learner import Learner, LearnerConfig
from udfs.mapstate import items, put
from udfs.memory import keep_trimmed
from udfs.models import RowModel
from udfs.names import State
from udfs.outbox import Outbox
from udfs.pieces import Pieces
from udfs.publisher import Author, Publisher
from udfs.reading import Feed
from udfs.records import Gathered
from udfs.requests import Inbox, Journal
from udfs.resharding import Exchange, ShardState
from udfs.tail import from_state_names, state_name, state_names
from udfs.tally import Tally
from udfs.telemetry import (
    BATCH_BOUNDS,
    BATCH_EVENTS_BUCKET,
    BATCH_EVENTS_COUNT,
    BATCH_EVENTS_SUM,
    ELEMENTS,
    Board,
    Buckets,
    of_buckets,
    of_intake,
    of_learner,
    of_retries,
)
from udfs.tilefeed import TileFeed
from udfs.topics import TopicReader

BYTES: Final = Types.PRIMITIVE_ARRAY(Types.BYTE())

CHUNK: Final = BYTES  # by the name of its log
BATCH: Final = BYTES  # by the key of its shard
TILE_FEED: Final = OutputTag(
    "tile-feed", Types.ROW_NAMED(list(TileFeed._fields), [Types.STRING(), Types.STRING(), Types.LONG()])
)
LETTER: Final = Types.ROW_NAMED(
    ["key", "value", "headers", "time_ms"], [BYTES, BYTES, Types.MAP(Types.STRING(), BYTES), Types.LONG()]
)
DEAD_LETTERS: Final = OutputTag("dead-letters", Types.STRING())

# In place of a chunk or a batch: nothing came, and who sends it is there. The reader sends one when it starts and now
# and then; intake and learners note in Redis that they are there, find out whether Redis still has what it was given,
# and are otherwise as before.
_BEAT: Final = b""
_BEAT_MS: Final = 5_000
_LOG: Final = logging.getLogger("freshet")
_IDLE_MS: Final = 500  # between looks at the journal when the input has ended


def _set_up_worker() -> None:
    """What every worker needs that runs one of these.

    Python's cycle collector is made rare: batches are many small objects without cycles, and each pass over them and
    over the rows of a model costs more than learning. And what is free goes back to the system.

    A worker must end when its JVM is gone. Beam's log handler then waits, with its lock, for its reader, which
    prints that it lost the connection; PyFlink has what is printed logged, by that handler, which waits for the lock.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(1_000_000, 10, 100)
    keep_trimmed()
    for handler in logging.getLogger().handlers:
        if _not_by_the_reader not in handler.filters:
            handler.addFilter(_not_by_the_reader)


def _not_by_the_reader(record: logging.LogRecord) -> bool:
    return record.threadName != "read_log_control_messages"


def _log(teller: Teller, letters: Sequence[str]) -> None:
    for sentence in teller.told(letters):
        _LOG.info(sentence)


class ReadFunction(KeyedProcessFunction):
    """Reads a bounded log that lives outside Flink, chunk by chunk, at its own pace.

    Flink has no Python sources. Here a timer that sets itself again is one: each time it fires, the next
    chunk is read, and the position after it is kept in keyed state, so the two are checkpointed together. The
    element that comes in is only a heartbeat, which sets the first timer of each process.

    Requests to delete users come from the journal, and take their place between the chunks.
    """

    def __init__(self, open_feed: Callable[[], Feed], journal: Callable[[], Journal]) -> None:
        self._open_feed = open_feed
        self._open_journal = journal

    def open(self, runtime_context: RuntimeContext) -> None:
        _set_up_worker()
        self._position = runtime_context.get_state(ValueStateDescriptor(State.POSITION, BYTES))
        self._taken = runtime_context.get_state(ValueStateDescriptor(State.TAKEN, Types.LONG()))
        self._feed: Feed | None = None
        self._beat_at = 0
        self._board = Board(runtime_context.get_metrics_group())

    def process_element(self, value: Any, ctx: KeyedProcessFunction.Context) -> Iterator[Row]:
        if self._feed is None:
            self._feed = self._open_feed()
            self._feed.seek(self._position.value())
            journal = self._open_journal()
            self._inbox = Inbox(journal, ctx.get_current_key(), self._taken.value() or 0)
            self._retries = Tally.of_retries(journal.path)
            self._again(ctx)
            if ahead := tuple(self._inbox.ahead()):
                # Before learners see to it that Redis has all they know, which they do at the first beat.
                yield Row(ctx.get_current_key(), Chunk([], [], ahead=ahead).encode())
        now = ctx.timer_service().current_processing_time()
        if now - self._beat_at >= _BEAT_MS:
            self._beat_at = now
            yield Row(ctx.get_current_key(), _BEAT)
        self._board.show(of_retries(self._retries))

    def on_timer(self, timestamp: int, ctx: KeyedProcessFunction.OnTimerContext) -> Iterator[Row]:
        feed = self._feed
        if feed is None:
            # A timer of the process before this one; the heartbeat will set ours.
            return
        deletions = self._inbox.due(feed.place, ended=feed.ended)
        ahead = tuple(self._inbox.ahead())
        if deletions:
            self._taken.update(self._inbox.taken)
            hidden = (*filter(self._inbox.is_new, deletions), *ahead)
            yield Row(ctx.get_current_key(), Chunk([], [], deletions=tuple(deletions), ahead=hidden).encode())
        chunk = None if feed.ended else feed.read(self._inbox.limit(feed.place))
        if chunk is not None:
            self._position.update(feed.position())
            yield Row(ctx.get_current_key(), (replace(chunk, ahead=ahead) if ahead else chunk).encode())
        self._again(ctx)

    def _again(self, ctx: Any) -> None:
        assert self._feed is not None
        service = ctx.timer_service()
        pause = _IDLE_MS if self._feed.ended else self._feed.pause()
        service.register_processing_time_timer(service.current_processing_time() + pause)


class ReadTopicFunction(KeyedProcessFunction):
    """Gathered records of a topic in, chunks out. An empty text is a heartbeat."""

    def __init__(self, journal: Callable[[], Journal]) -> None:
        self._open_journal = journal

    def open(self, runtime_context: RuntimeContext) -> None:
        _set_up_worker()
        self._position = runtime_context.get_state(ValueStateDescriptor(State.POSITION, BYTES))
        self._taken = runtime_context.get_state(ValueStateDescriptor(State.TAKEN, Types.LONG()))
        self._reader: TopicReader | None = None
        self._beat_at = 0
        self._board = Board(runtime_context.get_metrics_group())

    def process_element(self, value: str, ctx: KeyedProcessFunction.Context) -> Iterator[Row]:
        key = ctx.get_current_key()
        if self._reader is None:
            journal = self._open_journal()
            inbox = Inbox(journal, key, self._taken.value() or 0)
            self._reader = TopicReader(inbox, self._position.value())
            self._retries = Tally.of_retries(journal.path)
            if (ahead := self._reader.ahead()) is not None:
                # Before learners see to it that Redis has all they know, which they do at the first beat.
                yield Row(key, ahead.encode())
        reader = self._reader
        if value:
            for chunk in reader.read(value):
                yield Row(key, chunk.encode())
            self._position.update(reader.position())
        elif (requests := reader.requests()) is not None:
            yield Row(key, requests.encode())
        self._taken.update(reader.taken)
        now = ctx.timer_service().current_processing_time()
        if now - self._beat_at >= _BEAT_MS:
            self._beat_at = now
            yield Row(key, _BEAT)
            self._board.show(of_retries(self._retries))


class IntakeFunction(KeyedProcessFunction):
    """Chunks of a log in; batches for the shards, the tile feed and dead letters out."""

    def __init__(self, config: IntakeConfig, shard_keys: list[str], publisher: Callable[[], Publisher]) -> None:
        self._config = config
        self._shard_keys = shard_keys
        self._make_publisher = publisher

    def open(self, runtime_context: RuntimeContext) -> None:
        _set_up_worker()
        self._header = runtime_context.get_state(ValueStateDescriptor(State.INTAKE_HEADER, BYTES))
        self._blobs = runtime_context.get_map_state(MapStateDescriptor(State.INTAKE_BLOBS, Types.STRING(), BYTES))
        self._intake: Intake | None = None
        self._attempt = runtime_context.get_attempt_number()
        self._publisher = self._make_publisher()
        self._board = Board(runtime_context.get_metrics_group())
        self._elements = 0
        self._teller = Teller()

    def close(self) -> None:
        self._publisher.close()

    def process_element(self, value: bytes, ctx: KeyedProcessFunction.Context) -> Iterator[Any]:
        intake = self._intake or self._restored()
        self._elements += 1
        now = time.time_ns() // 1_000_000
        if value == _BEAT:
            self._note(intake)
            for key in self._shard_keys:
                yield Row(key, _BEAT)
            result = intake.tick(now)
        else:
            result = self._decided(intake, Chunk.decode(value), now)
        if result is not None:
            yield from self._sent(intake, result)
        self._board.show({**of_intake(intake), **self._publisher.readings, (ELEMENTS, ()): self._elements})

    def _decided(self, intake: Intake, chunk: Chunk, now: int) -> IntakeResult | None:
        if chunk.ahead:
            self._publisher.hide(chunk.ahead)
        if chunk.deletions:
            # Before what comes after them can be in a window that closes.
            self._publisher.hide([r for r in chunk.deletions if r in chunk.ahead], (self._config.part, intake.reached))
            return intake.delete(chunk.deletions)
        return intake.process(chunk, now) if chunk.runs or chunk.ended else None

    def _sent(self, intake: Intake, result: IntakeResult) -> Iterator[Any]:
        """Stores what is to be stored of a result, and sends it on."""
        for name, blob in result.puts.items():
            self._blobs.put(name, blob)
        for name in result.removes:
            self._blobs.remove(name)
        self._header.update(intake.header)
        self._note(intake)
        if result.dead_letters:
            _log(self._teller, result.dead_letters)
            yield DEAD_LETTERS, "\n".join(result.dead_letters)
        for feed in result.tile_feeds:
            yield TILE_FEED, Row(*feed)
        for shard, batch in result.batches.items():
            yield Row(self._shard_keys[shard], batch)

    def _note(self, intake: Intake) -> None:
        self._publisher.ledger(intake.ledger_fields(), self._attempt)

    def _restored(self) -> Intake:
        self._intake = Intake(self._config)
        self._intake.restore(self._header.value(), self._blobs.items())
        self._board.begin(of_intake(self._intake))
        return self._intake


class _Kept:
    """What a shard keeps in Flink, under its key."""

    def __init__(self, context: RuntimeContext) -> None:
        self.header = context.get_state(ValueStateDescriptor(State.LEARNER_HEADER, BYTES))
        self.rows = context.get_map_state(MapStateDescriptor(State.ROWS, Types.STRING(), BYTES))
        self.waiting = context.get_map_state(MapStateDescriptor(State.WAITING, Types.LONG(), BYTES))
        self.tombstones = context.get_map_state(MapStateDescriptor(State.TOMBSTONES, Types.STRING(), BYTES))


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
        _set_up_worker()
        self._state = _Kept(runtime_context)
        self._learners: dict[str, Learner] = {}
        self._outboxes: dict[str, Outbox] = {}
        self._publisher = self._make_publisher()
        self._background = ThreadPoolExecutor(1, "publish")
        self._metrics = runtime_context.get_metrics_group()
        self._board = Board(self._metrics)
        self._boards: dict[str, Board] = {}
        self._elements, self._sizes = 0, Buckets(BATCH_BOUNDS)
        self._teller = Teller()

    def close(self) -> None:
        for outbox in self._outboxes.values():
            outbox.close()
        self._background.shutdown()
        self._publisher.close()

    def process_element(self, value: bytes, ctx: KeyedProcessFunction.Context) -> Iterator[Any]:
        key = ctx.get_current_key()
        learner = self._learners.get(key) or self._restored(key)
        before = learner.learned
        if value == _BEAT:
            self._settle()
            self._outboxes[key].assure()
        else:
            yield from self._learned(key, learner, Batch.decode(value))
        self._publisher.alive(self._shard_of[key])
        self._show(key, learner, time.time_ns() // 1_000_000 if learner.learned > before else None)

    def _learned(self, key: str, learner: Learner, batch: Batch) -> Iterator[Any]:
        """Learns a batch, and stores and publishes what that changes."""
        number = learner.batch_number
        for learned in learner.process(batch):
            encoded = learner.encode(learned)
            self._settle()
            # Redis takes its time, in which the rows go into the state, and perhaps the next are learned.
            self._outboxes[key].publish(learned, encoded)
            names = [state_names(family, rows.row_ids, rows.ids) for family, rows in encoded.items()]
            put(self._state.rows, [*zip(names, (rows.blobs for rows in encoded.values()), strict=True)])
            for family, row_ids in learned.dropped.items():
                for row_id in row_ids:
                    self._state.rows.remove(state_name(family, row_id))
            for user_id, tombstone in learned.deleted.items():
                self._state.tombstones.put(user_id, tombstone.encode())
            self._outboxes[key].keep_up()
            if learned.dead_letters:
                _log(self._teller, learned.dead_letters)
                yield DEAD_LETTERS, "\n".join(learned.dead_letters)
        for finished in learner.finished_batches():
            if finished != number:
                self._state.waiting.remove(finished)
        for changed in learner.to_store:
            waiting = learner.waiting_of(changed)
            if waiting is not None:
                self._state.waiting.put(changed, waiting)
        for name, counters in learner.counters():
            self._state.rows.put(name, counters)
        self._state.header.update(learner.header())
        if len(batch.events):
            self._sizes.add(len(batch.events))

    def _show(self, key: str, learner: Learner, now: int | None) -> None:
        self._elements += 1
        sizes = of_buckets(self._sizes, BATCH_EVENTS_BUCKET, BATCH_EVENTS_SUM, BATCH_EVENTS_COUNT)
        self._board.show({**sizes, **self._publisher.readings, (ELEMENTS, ()): self._elements})
        self._boards[key].show(of_learner(learner, self._shard_of[key], now))

    def _settle(self) -> None:
        """Of all shards here one writes at a time."""
        for outbox in self._outboxes.values():
            outbox.settle()

    def _restored(self, key: str) -> Learner:
        self._settle()
        learner = self._learners[key] = Learner(self._config, self._make_model())
        header = self._state.header.value()
        stored = items(self._state.rows, self._background)
        rows = chain.from_iterable(zip(*from_state_names(names), blobs, strict=True) for names, blobs in stored)
        learner.restore(header, rows, self._state.waiting.items(), self._state.tombstones.items())
        shard = self._shard_of[key]
        self._boards[key] = Board(self._metrics)
        self._boards[key].begin(of_learner(learner, shard))
        author = Author(self._publisher.keys, shard, len(self._shard_of), self._epoch)
        self._outboxes[key] = Outbox(self._publisher, learner, author, self._background)
        self._publisher.lift(learner.passed_tombstones)
        return learner


class ReshardFunction(KeyedProcessFunction):
    """In the place of :class:`LearnFunction` while nothing is learned: gives out the states of the old shards, and then
    takes up those of the new ones, by way of an :class:`~udfs.resharding.Exchange`. What comes in are beats only."""

    def __init__(self, before: list[str], after: list[str], folder: str) -> None:
        self._before = {key: shard for shard, key in enumerate(before)}
        self._after = {key: shard for shard, key in enumerate(after)}
        self._folder = folder

    def open(self, runtime_context: RuntimeContext) -> None:
        _set_up_worker()
        self._state = _Kept(runtime_context)
        self._exchange = Exchange(Path(self._folder))

    def process_element(self, value: bytes, ctx: KeyedProcessFunction.Context) -> None:
        key = ctx.get_current_key()
        shard = self._before.get(key)
        if shard is not None and not self._exchange.given(shard):
            state = self._state
            maps = (dict(of.items()) for of in (state.rows, state.waiting, state.tombstones))
            self._exchange.give(shard, ShardState(state.header.value(), *maps))
        if self._exchange.ready and not self._exchange.taken(key):
            self._take(self._after.get(key))
            self._exchange.note_taken(key)

    def _take(self, shard: int | None) -> None:
        """Replaces what is stored under the key by a new shard's state; by nothing where the key is none's any more."""
        state = self._state
        for part in (state.header, state.rows, state.waiting, state.tombstones):
            part.clear()
        new = None if shard is None else self._exchange.new(shard)
        if new is None or new.header is None:
            return
        state.header.update(new.header)
        put(state.rows, [(Pieces.of_texts(list(new.rows)), Pieces.of(list(new.rows.values())))])
        for number, batch in new.waiting.items():
            state.waiting.put(number, batch)
        for user_id, tombstone in new.tombstones.items():
            state.tombstones.put(user_id, tombstone)


class LetterFunction(ProcessFunction):
    """Dead letters in, as lines; records for a topic out."""

    def open(self, runtime_context: RuntimeContext) -> None:
        _set_up_worker()

    def process_element(self, value: str, ctx: ProcessFunction.Context) -> Iterator[Row]:
        for line in value.split("\n"):
            record = letter_record(line)
            yield Row(record.key, record.value, record.headers, record.timestamp)


class PublishTilesFunction(ProcessFunction):
    """Gathered windows in, to Redis; nothing out. An empty text is a beat."""

    def __init__(
        self, keep: Mapping[str, int], event_types: list[str], part: int, publisher: Callable[[], Publisher]
    ) -> None:
        self._keep = dict(keep)
        self._event_types = event_types
        self._part = part
        self._make_publisher = publisher

    def open(self, runtime_context: RuntimeContext) -> None:
        _set_up_worker()
        self._publisher = self._make_publisher()
        self._board = Board(runtime_context.get_metrics_group())
        self._elements = 0

    def close(self) -> None:
        self._publisher.close()

    def process_element(self, value: Row, ctx: ProcessFunction.Context) -> None:
        if value[0]:
            entities = tile_entities([value[0]], self._publisher.keys, self._event_types, self._part)
            self._publisher.tiles(entities, self._keep, self._part)
        self._publisher.alive("windows")
        self._elements += 1
        self._board.show({**self._publisher.readings, (ELEMENTS, ()): self._elements})


class PublishItemsFunction(ProcessFunction):
    """Gathered records of the catalogue's topic in, to Redis; nothing out. An empty text is a beat."""

    def __init__(self, publisher: Callable[[], Publisher]) -> None:
        self._make_publisher = publisher

    def open(self, runtime_context: RuntimeContext) -> None:
        _set_up_worker()
        self._publisher = self._make_publisher()
        self._board = Board(runtime_context.get_metrics_group())
        self._elements = self._unusable = 0

    def close(self) -> None:
        self._publisher.close()

    def process_element(self, value: Row, ctx: ProcessFunction.Context) -> None:
        _, text = value
        if text:
            gathered = Gathered(text)
            entries, unusable = changes(gathered)
            self._publisher.catalogue(entries)
            self._tell(gathered.source, unusable)
        self._publisher.alive("items")
        self._elements += 1
        self._board.show({**self._publisher.readings, (ELEMENTS, ()): self._elements})

    def _tell(self, source: str, unusable: Sequence[int]) -> None:
        """Logs where one is, whenever their number has come to another power of ten."""
        before = self._unusable
        self._unusable += len(unusable)
        if before < 10 ** (len(str(self._unusable)) - 1) <= self._unusable:
            _LOG.info(
                "catalogue: %d unusable so far, the last at partition %s, offset %d",
                self._unusable,
                source,
                unusable[-1],
            )
