"""The intake: decides once, from the log alone, what becomes of each record.

Every record that is read is counted, parsed and judged here, before anything branches: rejected, late,
duplicate, or accepted. All that a decision depends on is in the state, so a replay decides alike. The class
is plain Python; the PyFlink shell around it stores :attr:`Intake.header` and the blobs that it is told to.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from udfs.batch import Batch
from udfs.chunk import Chunk
from udfs.deadletters import dead_letter
from udfs.events import EventFormat, EventParser, Rejected

LAYOUT: Final = 1
DAY: Final = 86_400_000

# The tile feed is one string a chunk, exploded by SQL: records and their fields are joined by control
# characters, and where an id holds one of these, by an escape that starts with the third.
RECORD, UNIT, ESCAPE = "\x1e", "\x1f", "\x1d"
_ESCAPES: Final = {ESCAPE: ESCAPE + "e", RECORD: ESCAPE + "r", UNIT: ESCAPE + "u"}


def escape(text: str) -> str:
    """
    >>> unescape(escape("a\\x1eb\\x1fc\\x1d")) == "a\\x1eb\\x1fc\\x1d"
    True
    """
    for char, code in _ESCAPES.items():
        text = text.replace(char, code)
    return text


def unescape(text: str) -> str:
    if ESCAPE not in text:
        return text
    for char, code in reversed(_ESCAPES.items()):
        text = text.replace(code, char)
    return text


def shard_of(user_id: str, shards: int) -> int:
    """The shard of a user: CRC-32 of the id's UTF-8 bytes, modulo the number of shards. Fixed for ever.

    >>> shard_of("42", 4)
    0
    """
    return zlib.crc32(user_id.encode()) % shards


@dataclass(frozen=True)
class IntakeConfig:
    """What the decisions depend on besides the log.

    Attributes
    ----------
    event_time
        True: late events are set aside, and learners wait for the watermark. False: learned as they arrive.
    merged
        The partitions (files) of this log arrive merged by time, so the watermark follows the newest of
        them; otherwise the slowest.
    out_of_orderness, dedup_horizon
        Milliseconds of event time.
    tiles
        Whether windows are computed, so whether accepted events are fed to SQL.
    position_names
        How a position is called in a dead letter, such as ``("file", "line")``.
    """

    fmt: EventFormat
    shards: int
    event_time: bool
    merged: bool
    out_of_orderness: int
    dedup_horizon: int
    tiles: bool
    position_names: tuple[str, str]
    run_id: str
    epoch: int


@dataclass
class IntakeResult:
    """What one chunk gave, for the shell to send on and to store."""

    batches: dict[int, bytes]
    tile_feed: str | None
    watermark: int
    dead_letters: list[str]
    puts: dict[str, bytes] = field(default_factory=dict)
    removes: list[str] = field(default_factory=list)


@dataclass
class Counts:
    """The ledger of the log: ``read = accepted + rejected + late + duplicate``.

    ``tile_late`` counts accepted events that came too late for their window (processing time only).
    """

    read: int = 0
    accepted: int = 0
    late: int = 0
    duplicate: int = 0
    tile_late: int = 0
    rejected: dict[str, int] = field(default_factory=dict)

    def reject(self, reason: str) -> None:
        self.rejected[reason] = self.rejected.get(reason, 0) + 1

    def as_dict(self) -> dict[str, Any]:
        return {**vars(self), "rejected": dict(self.rejected)}


class Intake:
    """One log's judge.

    Parameters
    ----------
    config
        Must be the same over restarts, save ``run_id``: what changes with a run is only what is counted.
    """

    def __init__(self, config: IntakeConfig) -> None:
        self.config = config
        self.parser = EventParser(config.fmt)
        self.counts = Counts()
        self.base: dict[str, Any] = Counts().as_dict()
        self.run_id = config.run_id
        self.newest: dict[str, int] = {}
        self.ended = False
        self.first_read_at: int | None = None  # wall clock, ms, of the first record of this run
        self.blob_number = 0
        self.forgotten = 0  # where the inputs that ended left :attr:`remembered_from`
        self.seen: dict[str, int] = {}
        self.pairs: dict[int, set[str]] = {}
        # Which keys a stored blob holds, so that it can be forgotten whole.
        self._seen_blobs: dict[str, tuple[int, list[str]]] = {}
        self._pair_blobs: dict[str, int] = {}

    # ------------------------------------------------------------------------------------------ state

    @property
    def header(self) -> bytes:
        """The small part of the state, written after each chunk."""
        return orjson.dumps(
            {
                "layout": LAYOUT,
                "counts": self.counts.as_dict(),
                "base": self.base,
                "run_id": self.run_id,
                "newest": self.newest,
                "ended": self.ended,
                "first_read_at": self.first_read_at,
                "blob_number": self.blob_number,
                "forgotten": self.forgotten,
            }
        )

    def restore(self, header: bytes, blobs: Iterable[tuple[str, bytes]]) -> None:
        """Takes up the state of an earlier process.

        Raises
        ------
        ValueError
            If the layout is newer than this version reads.
        """
        stored = orjson.loads(header)
        if stored["layout"] != LAYOUT:
            raise ValueError(f"the intake's state has layout {stored['layout']}, this freshet reads {LAYOUT}")
        self.counts = Counts(**stored["counts"])
        self.base, self.run_id = stored["base"], stored["run_id"]
        self.newest, self.ended, self.blob_number = stored["newest"], stored["ended"], stored["blob_number"]
        self.first_read_at, self.forgotten = stored["first_read_at"], stored["forgotten"]
        if self.run_id != self.config.run_id:
            self.run_id, self.base, self.first_read_at = self.config.run_id, self.counts.as_dict(), None
        ordered = sorted((int(name.split(":")[-1]), name, blob) for name, blob in blobs)
        for _, name, blob in ordered:
            if name.startswith("d:"):
                times, keys = orjson.loads(blob)
                for key, time in zip(keys, times, strict=True):
                    self.seen[key] = max(time, self.seen.get(key, time))
                self._seen_blobs[name] = (max(times), keys)
            else:
                day = int(name.split(":")[1])
                self.pairs.setdefault(day, set()).update(orjson.loads(blob))
                self._pair_blobs[name] = day

    def ledger_fields(self) -> dict[str, bytes | int]:
        """The fields of the ledger's hash: counts over the state's life, and as they stood when this run began."""
        return {
            "epoch": self.config.epoch,
            "run_id": self.run_id.encode(),
            "counts": orjson.dumps(self.counts.as_dict()),
            "base": orjson.dumps(self.base),
            "ended": int(self.ended),
            "first_read_at": self.first_read_at or 0,
        }

    # ---------------------------------------------------------------------------------------- records

    @property
    def watermark(self) -> int:
        """No accepted event to come is older, in milliseconds; 0 before the first event."""
        if not self.newest:
            return 0
        newest = max(self.newest.values()) if self.config.merged else min(self.newest.values())
        return newest - self.config.out_of_orderness

    @property
    def remembered_from(self) -> int:
        """Event ids of older events count as forgotten, whether or not their blob is still there."""
        return max(self.forgotten, self.watermark - self.config.dedup_horizon)

    def process(self, chunk: Chunk, now: int) -> IntakeResult:
        """Judges the records of a chunk, in order; ``now`` is the wall clock in ms, for reports only."""
        if self.first_read_at is None and chunk.lines:
            self.first_read_at = now
        config, counts, newest, seen = self.config, self.counts, self.newest, self.seen
        lag, horizon, shards = config.out_of_orderness, config.dedup_horizon, config.shards
        letters: list[str] = []
        events: list[list[list[Any]]] = [[] for _ in range(shards)]
        raws: list[list[bytes]] = [[] for _ in range(shards)]
        feed: list[tuple[str, str, str, float, int, int]] = []
        new_times: list[int] = []
        new_keys: list[str] = []
        new_pairs: dict[int, list[str]] = {}
        self.ended = False

        lines = iter(chunk.lines)
        for source_number, run in enumerate(chunk.runs):
            header = chunk.headers.get(run.source)
            parse_json, parse_csv = self.parser.parse_json, self.parser.parse_csv
            for position, line in zip(range(run.first, run.first + run.count), lines, strict=False):
                if not line or line.isspace():
                    continue
                counts.read += 1
                event = parse_json(line) if header is None else parse_csv(line, header)
                if type(event) is Rejected:
                    counts.reject(event.reason)
                    letters.append(self._letter(event.reason, event.message, run.source, position, line))
                    continue
                time, event_id, user_id, item_id, kind, value = event
                latest = newest.get(run.source, 0)
                behind = latest - time
                if behind > lag and config.event_time:
                    counts.late += 1
                    message = f"{behind} ms behind the newest event before it; out_of_orderness is {lag} ms"
                    letters.append(self._letter("late", message, run.source, position, line))
                    continue
                if behind < 0:
                    # Before duplicates are set aside: the merge of files goes by their timestamps too.
                    newest[run.source] = time
                if event_id:
                    key = f"{len(user_id)}:{user_id}{event_id}"
                    first = seen.get(key)
                    if first is not None and abs(time - first) <= horizon and first >= self.remembered_from:
                        counts.duplicate += 1
                        message = f"event_id {event_id!r} of user_id {user_id!r} came before, at {first}"
                        letters.append(self._letter("duplicate", message, run.source, position, line))
                        continue
                    seen[key] = time if first is None or first < time else first
                    new_times.append(time)
                    new_keys.append(key)
                counts.accepted += 1
                shard = shard_of(user_id, shards) if shards > 1 else 0
                events[shard].append([*event, source_number, position])
                raws[shard].append(line)
                if config.tiles:
                    if behind > lag:
                        counts.tile_late += 1
                        continue
                    day = time - time % DAY
                    pair = f"{len(user_id)}:{user_id}{item_id}"
                    known = self.pairs.get(day)
                    if known is None:
                        known = self.pairs[day] = set()
                    if pair in known:
                        first_of_day = 0
                    else:
                        known.add(pair)
                        new_pairs.setdefault(day, []).append(pair)
                        first_of_day = 1
                    feed.append((user_id, item_id, kind, value, time, first_of_day))

        watermark = self.watermark
        result = IntakeResult({}, _tile_feed(feed) if feed else None, watermark, letters)
        self._remember(result, new_times, new_keys, new_pairs)
        if chunk.ended:
            # The next input is another log: its files are judged by their own times.
            self.ended = True
            self.forgotten = self.remembered_from
            self.newest = {}
        sources = [run.source for run in chunk.runs]
        for shard in range(shards):
            if events[shard] or chunk.ended or config.event_time:
                batch = Batch(
                    watermark if config.event_time else None,
                    chunk.ended,
                    sources,
                    events[shard],
                    b"\n".join(raws[shard]),
                )
                result.batches[shard] = batch.encode()
        self._forget(result, watermark)
        return result

    def _letter(self, reason: str, message: str, source: str, position: int, line: bytes) -> str:
        return dead_letter(reason, message, self.position(source, position), line)

    def position(self, source: str, position: int) -> Mapping[str, object]:
        return dict(zip(self.config.position_names, (source, position), strict=True))

    def _remember(
        self, result: IntakeResult, times: list[int], keys: list[str], pairs: Mapping[int, list[str]]
    ) -> None:
        if keys:
            name = f"d:{self.blob_number}"
            result.puts[name] = orjson.dumps([times, keys])
            self._seen_blobs[name] = (max(times), keys)
        for day, names in pairs.items():
            name = f"p:{day}:{self.blob_number}"
            result.puts[name] = orjson.dumps(names)
            self._pair_blobs[name] = day
        self.blob_number += 1

    def _forget(self, result: IntakeResult, watermark: int) -> None:
        """Drops what no later event can meet, so the state is bounded by the horizon and by two days."""
        oldest = watermark - self.config.dedup_horizon
        for name in [n for n, (newest, _) in self._seen_blobs.items() if newest < oldest]:
            for key in self._seen_blobs.pop(name)[1]:
                if self.seen.get(key, oldest) < oldest:
                    del self.seen[key]
            result.removes.append(name)
        for day in [d for d in self.pairs if d + DAY < watermark]:
            del self.pairs[day]
        for name in [n for n, day in self._pair_blobs.items() if day + DAY < watermark]:
            del self._pair_blobs[name]
            result.removes.append(name)


def _tile_feed(feed: list[tuple[str, str, str, float, int, int]]) -> str:
    """Joins accepted events for SQL; escapes ids only where one holds a separator."""
    text = _joined(feed)
    if text.count(UNIT) == 5 * len(feed) and text.count(RECORD) == len(feed) - 1 and ESCAPE not in text:
        return text
    return _joined([(escape(u), escape(i), escape(k), v, t, d) for u, i, k, v, t, d in feed])


def _joined(feed: list[tuple[str, str, str, float, int, int]]) -> str:
    return RECORD.join([f"{u}{UNIT}{i}{UNIT}{k}{UNIT}{v}{UNIT}{t}{UNIT}{d}" for u, i, k, v, t, d in feed])
