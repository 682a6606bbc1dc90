"""The intake: decides once, from the log alone, what becomes of each record.

Every record that is read is counted, parsed and judged here, before anything branches: rejected, late,
duplicate, or accepted. All that a decision depends on is in the state, so a replay decides alike. The class
is plain Python; the PyFlink shell around it stores :attr:`Intake.header` and the blobs that it is told to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import orjson

from serving.identity import hidden
from serving.schema import shard_of, shards_of
from udfs.batch import Batch, Deletion
from udfs.chunk import Chunk, Run
from udfs.deadletters import dead_letter
from udfs.duplicates import KINDS, EventIds
from udfs.events import EventFormat, EventParser, Parsed, Rejected
from udfs.idle import IdleClock
from udfs.interactions import Interactions, chosen
from udfs.models import Array
from udfs.packing import pack_lines
from udfs.records import value_of
from udfs.requests import Request
from udfs.seal import REMEDY, Damaged, check_layout, seal, unseal
from udfs.tilefeed import PAIRS, TileConfig, TileFeed, TileFeeder

LAYOUT: Final = 2
_LAYOUT_1: Final = 1  # differs in the blobs of pairs and event ids, whose names tell
_PART: Final = "the intake's"


@dataclass(frozen=True)
class IntakeConfig:
    """What the decisions depend on besides the log.

    Attributes
    ----------
    event_time
        True: late events are set aside, and learners wait for the watermark. False: learned as they arrive.
    merged
        The partitions (files) of this log arrive merged by time, so the watermark follows the newest of
        them; otherwise the slowest of those that are not idle.
    out_of_orderness, dedup_horizon
        Milliseconds of event time.
    tiles
        What the windows look at; None where there are none.
    position_names
        How a position is called in a dead letter, such as ``("file", "line")``.
    part
        How many inputs ended before this one: windows are new with each.
    partitions
        The sources that this log is known to have, where it is not merged: before one of them has come, it holds the
        watermark.
    idle_after
        Milliseconds of wall clock after which a source that gives nothing no longer holds the watermark; 0 is never.
    records
        What comes are not lines but records of a topic, as :mod:`udfs.records` has them: one without a value is not
        skipped, as a blank line is, but can't be used.
    id_key
        Gives a key: users go on as :func:`~serving.identity.hidden` ids; their own stay in the original bytes only.
    """

    fmt: EventFormat
    shards: int
    event_time: bool
    merged: bool
    out_of_orderness: int
    dedup_horizon: int
    tiles: TileConfig | None
    position_names: tuple[str, str]
    run_id: str
    epoch: int
    part: int = 0
    partitions: tuple[str, ...] = ()
    idle_after: int = 0
    records: bool = False
    id_key: Callable[[], bytes] | None = None


@dataclass
class IntakeResult:
    """What one chunk gave, for the shell to send on and to store."""

    batches: dict[int, bytes]
    tile_feeds: list[TileFeed]
    dead_letters: list[str]
    puts: dict[str, bytes] = field(default_factory=dict)
    removes: list[str] = field(default_factory=list)


@dataclass
class Counts:
    """The ledger of the log: ``read = accepted + rejected + late + duplicate``.

    ``tile_late`` counts accepted events that came too late for their window: in processing time, or from a source that
    had been idle or is new.
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
        Must be the same over restarts, save ``run_id`` and ``part``: what changes with a run is only what is counted.
    """

    def __init__(self, config: IntakeConfig) -> None:
        self.config = config
        self.parser = EventParser(config.fmt)
        self._id_key = None if config.id_key is None else config.id_key()
        self.counts = Counts()
        self.base: dict[str, Any] = Counts().as_dict()
        self.run_id = config.run_id
        self.newest: dict[str, int] = {}
        self._watermark = 0  # of a log that is not merged: it never goes back
        self._idle = IdleClock(config.partitions, config.idle_after)
        self._reached = 0  # the newest event of this part when its input ended, ms
        self.ended = False
        self.first_read_at: int | None = None  # wall clock, ms, of the first record of this run
        self.blob_number = 0
        self.forgotten = 0  # where inputs that ended, or clocks that went back, left :attr:`remembered_from`
        self.event_ids = EventIds(config.dedup_horizon)
        self.tiles = None if config.tiles is None else TileFeeder(config.tiles)

    # ------------------------------------------------------------------------------------------ state

    @property
    def header(self) -> bytes:
        """The small part of the state, written after each chunk, and how many blobs belong to it."""
        header = orjson.dumps(
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
                "blobs": self.event_ids.blobs + (0 if self.tiles is None else self.tiles.blobs),
                "part": self.config.part,
                "reached": self._reached,
                "watermark": self._watermark,
            }
        )
        return seal("header", header)

    def restore(self, header: bytes | None, blobs: Iterable[tuple[str, bytes]]) -> None:
        """Takes up the state of an earlier process; without a header, nothing else may be there.

        Raises
        ------
        ValueError
            If the layout is newer than this version reads, or anything is damaged or missing.
        """
        blobs = list(blobs)
        if header is None:
            if blobs:
                raise Damaged(f"the intake's state has {len(blobs)} blobs, but no header; {REMEDY}")
            return
        stored = orjson.loads(unseal(_PART, "header", header))
        check_layout("the intake's state", stored["layout"], _LAYOUT_1, LAYOUT)
        self.counts = Counts(**stored["counts"])
        self.base, self.run_id = stored["base"], stored["run_id"]
        self.newest, self.ended, self.blob_number = stored["newest"], stored["ended"], stored["blob_number"]
        self.first_read_at, self.forgotten = stored["first_read_at"], stored["forgotten"]
        self._watermark = stored.get("watermark", 0)
        if stored.get("part") == self.config.part:
            self._reached = stored["reached"]
        if self.run_id != self.config.run_id:
            self.run_id, self.base, self.first_read_at = self.config.run_id, self.counts.as_dict(), None
            self.ended = False  # what has ended is the input of another run
        tiles: list[tuple[str, bytes]] = []
        if len(blobs) != stored["blobs"]:
            raise Damaged(f"the intake's header counts {stored['blobs']} blobs, its state has {len(blobs)}; {REMEDY}")
        for name, sealed in sorted(blobs, key=_stored_at):
            blob = unseal(_PART, name, sealed)
            if name.partition(":")[0] in KINDS:
                self.event_ids.restore(name, blob)
            else:
                tiles.append((name, blob))
        if self.tiles is not None:
            self.tiles.restore(tiles)

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
        """Milliseconds; 0 before the first event. No accepted event to come is older, save from a source that had been
        idle or is new: where files are merged, there is none such."""
        if not self.config.merged:
            return self._watermark
        return max(self.newest.values()) - self.config.out_of_orderness if self.newest else 0

    @property
    def remembered_from(self) -> int:
        """Event ids of older events count as forgotten, whether or not their blob is still there."""
        return max(self.forgotten, self.watermark - self.config.dedup_horizon)

    @property
    def reached(self) -> int:
        """No event of this part is newer so far, in milliseconds, also when its input has ended; 0 before the first."""
        return max([self._reached, *self.newest.values()])

    def process(self, chunk: Chunk, now: int) -> IntakeResult:
        """Judges the records of a chunk, in order; ``now`` is the wall clock in ms, for reports only."""
        config, counts = self.config, self.counts
        if self.first_read_at is None and chunk.lines:
            self.first_read_at = now
        self.ended = False
        result = IntakeResult({}, [], [])
        sources, events, set_aside = self._read(chunk)
        before = dict(self.newest)
        behind = self._advance(sources, events)
        clocks = self._clocks(sources, events, before, now)
        is_late = behind > config.out_of_orderness
        if config.event_time and is_late.any():
            for at in np.flatnonzero(is_late).tolist():
                message = f"{behind[at]} ms behind the newest event before it; "
                message += f"out_of_orderness is {config.out_of_orderness} ms"
                set_aside[int(events.lines[at])] = Rejected("late", message)
            counts.late += int(np.count_nonzero(is_late))
        accepted = ~is_late if config.event_time else np.ones(len(events), dtype=bool)
        oldest = self._remembered_from(clocks)
        at_most = np.flatnonzero(accepted)
        for at, message in self.event_ids.sift(events, at_most, oldest, self.blob_number, result.puts).items():
            accepted[at] = False
            counts.duplicate += 1
            set_aside[int(events.lines[at])] = Rejected("duplicate", message)
        if not config.merged:
            # No window may drop a row in silence.
            is_late = is_late | (events.times < clocks)
        places = np.flatnonzero(accepted)
        events, is_late = events.take(places), is_late[places]
        counts.accepted += len(events)
        result.dead_letters = self._letters(chunk, set_aside)

        watermark = self.watermark
        if self.tiles is not None:
            counts.tile_late += int(np.count_nonzero(is_late))
            fed = events.take(np.flatnonzero(~is_late))
            if len(fed):
                columns = (fed.user_ids, fed.item_ids, fed.event_types, fed.values, fed.times)
                result.tile_feeds.append(self.tiles.feed(*columns, watermark, self.blob_number, result.puts))
        if chunk.ended:
            # The next input is another log: its files are judged by their own times.
            self.ended = True
            self._reached = self.reached
            self.forgotten = self.remembered_from
            self.newest, self._watermark = {}, 0
        for shard, mine in enumerate(self._by_shard(events)):
            if len(mine) or chunk.ended or config.event_time:
                whole = len(mine) == len(chunk.lines)
                lines = chunk.packed if whole and chunk.packed else pack_lines(chosen(chunk.lines, mine.lines))
                clock = watermark if config.event_time else None
                result.batches[shard] = Batch(clock, chunk.ended, sources, mine, lines).encode()
        self.event_ids.forget(watermark, result.removes)
        if self.tiles is not None:
            self.tiles.forget(
                watermark, ended=chunk.ended, number=self.blob_number, puts=result.puts, removes=result.removes
            )
        self.blob_number += 1
        result.puts = {name: seal(name, blob) for name, blob in result.puts.items()}
        return result

    def _read(self, chunk: Chunk) -> tuple[list[str], Interactions, dict[int, Rejected]]:
        """Reads and counts the records of a chunk.

        Returns
        -------
        The names of its sources; the events, with their places in the chunk's lines; and why other lines can't be
        used, by their places.
        """
        sources = list(dict.fromkeys(run.source for run in chunk.runs))
        places = {name: place for place, name in enumerate(sources)}
        parsed: list[Parsed] = []
        odd: dict[int, Rejected | None] = {}
        lines = list(map(value_of, chunk.lines)) if self.config.records else chunk.lines
        start = 0
        # One source's lines at a time only where their format may be another.
        stretches = [(run.source, run.count) for run in chunk.runs] if chunk.headers else [("", len(lines))]
        for source, count in stretches:
            part, others = self.parser.parse_lines(lines[start : start + count], chunk.headers.get(source))
            parsed += part
            odd |= {start + at: verdict for at, verdict in others.items()} if start else others
            start += count
        if self.config.records:
            odd = {at: verdict or Rejected("not_json", "a record without a value") for at, verdict in odd.items()}
        rejected = {at: verdict for at, verdict in odd.items() if verdict is not None}
        for verdict in rejected.values():
            self.counts.reject(verdict.reason)
        self.counts.read += len(parsed) + len(rejected)

        counts = [run.count for run in chunk.runs]
        used = np.delete(np.arange(len(lines)), list(odd))
        steps = np.array([run.first for run in chunk.runs], dtype=np.int64) - (
            np.cumsum(counts, dtype=np.int64) - counts
        )
        positions = np.repeat(steps, counts)[used] + used
        numbers = np.repeat(np.array([places[run.source] for run in chunk.runs], dtype=np.int32), counts)[used]
        events = Interactions(
            np.array([event.timestamp for event in parsed], dtype=np.int64),
            [event.event_id for event in parsed],
            self._known_as([event.user_id for event in parsed]),
            [event.item_id for event in parsed],
            [event.event_type for event in parsed],
            np.array([event.event_value for event in parsed], dtype=np.float64),
            numbers,
            positions,
            np.zeros(len(parsed), dtype=np.int64),
            used,
        )
        return sources, events, rejected

    def _known_as(self, user_ids: list[str]) -> list[str]:
        """The ids that users go by from here on."""
        key = self._id_key
        if key is None:
            return user_ids
        ids = {user_id: hidden(user_id, key) for user_id in set(user_ids)}
        return [ids[user_id] for user_id in user_ids]

    def _advance(self, sources: Sequence[str], events: Interactions) -> Array:
        """Takes the times of events into the clocks of their sources; how far each is behind the one it found."""
        found = np.empty(len(events), dtype=np.int64)
        for number, source in enumerate(sources):
            mine = np.flatnonzero(events.sources == number)
            if len(mine):
                newest = np.maximum.accumulate(np.append(self.newest.get(source, 0), events.times[mine]))
                found[mine] = newest[:-1]
                self.newest[source] = int(newest[-1])
        return found - events.times

    def _remembered_from(self, clocks: Array) -> Array:
        """:attr:`remembered_from` at each event, itself taken in; ``clocks`` are the watermarks there."""
        oldest: Array = np.maximum.accumulate(np.maximum(self.forgotten, clocks - self.config.dedup_horizon))
        if not self.config.merged and len(oldest):
            self.forgotten = int(oldest[-1])
        return oldest

    def _clocks(self, sources: Sequence[str], events: Interactions, before: Mapping[str, int], now: int) -> Array:
        """The watermark at each event, itself taken in; ``before`` are the clocks that the first of them found.

        Where the log is not merged, a source that is new, or was idle, would take the slowest clock back. Learners and
        windows have gone on by then, so the watermark stays where it was.
        """
        if self.config.merged:
            newest = np.maximum.accumulate(np.maximum(events.times, max(before.values(), default=0)))
            return newest - self.config.out_of_orderness
        come = {source: number for number, source in enumerate(sources) if (events.sources == number).any()}
        self._idle.heard(come, now)
        never = np.iinfo(np.int64).max
        # One that is known and has not come yet holds the watermark; another has no clock before it comes.
        unmet = dict.fromkeys(self.config.partitions, 0)
        holding = {s: t for s, t in {**unmet, **before}.items() if s not in come and not self._idle.is_idle(s)}
        if not len(events):
            held = min(holding.values()) if holding else max(self.newest.values(), default=0)
            self._watermark = max(self._watermark, held - self.config.out_of_orderness)
            return np.empty(0, dtype=np.int64)
        slowest = np.full(len(events), min(holding.values(), default=never))
        for source, number in come.items():
            times = np.where(events.sources == number, events.times, before.get(source, 0))
            newest = np.maximum.accumulate(times)
            slowest = np.minimum(slowest, newest if source in unmet else np.where(newest > 0, newest, never))
        clocks: Array = np.maximum.accumulate(np.maximum(self._watermark, slowest - self.config.out_of_orderness))
        self._watermark = int(clocks[-1])
        return clocks

    def tick(self, now: int) -> IntakeResult | None:
        """Nothing came: what is due by the sources that have gone idle; None if nothing is."""
        config = self.config
        if config.merged or not config.event_time or not self.newest:
            return None
        watermark = self._watermark
        self._clocks([], Interactions.of([]), self.newest, now)
        if self._watermark == watermark:
            return None
        return self.process(Chunk([Run(next(iter(self.newest)), 0, 0)], []), now)

    def _by_shard(self, events: Interactions) -> list[Interactions]:
        shards = self.config.shards
        if shards == 1:
            return [events]
        of_events = shards_of(events.user_ids, shards)
        return [events.take(np.flatnonzero(of_events == shard)) for shard in range(shards)]

    def _letters(self, chunk: Chunk, set_aside: Mapping[int, Rejected]) -> list[str]:
        """Dead letters for lines of a chunk, by their places, in their order."""
        letters = []
        ends = np.cumsum([run.count for run in chunk.runs])
        for at, (reason, message) in sorted(set_aside.items()):
            number = int(np.searchsorted(ends, at, side="right"))
            run = chunk.runs[number]
            position = self.position(run.source, run.first + at - int(ends[number]) + run.count)
            letters.append(dead_letter(reason, message, position, chunk.lines[at], record=self.config.records))
        return letters

    def delete(self, requests: Sequence[Request]) -> IntakeResult:
        """Forgets what is remembered of users, and tells their shards; counts and clocks stay as they are."""
        result = IntakeResult({}, [], [])
        by_shard: dict[int, list[Deletion]] = {}
        for number, user_id in requests:
            deletion = Deletion(number, user_id, self.config.part, self.reached)
            by_shard.setdefault(shard_of(user_id, self.config.shards), []).append(deletion)
        for shard, deletions in by_shard.items():
            result.batches[shard] = Batch(None, False, [], Interactions.of([]), b"", tuple(deletions)).encode()
        user_ids = {request.user_id for request in requests}
        self.event_ids.drop(user_ids, result.puts, result.removes)
        if self.tiles is not None:
            self.tiles.drop(user_ids, number=self.blob_number, puts=result.puts, removes=result.removes)
        self.blob_number += 1
        result.puts = {name: seal(name, blob) for name, blob in result.puts.items()}
        return result

    def position(self, source: str, position: int) -> Mapping[str, object]:
        return dict(zip(self.config.position_names, (source, position), strict=True))


def _stored_at(blob: tuple[str, bytes]) -> tuple[int, ...]:
    """When a blob was stored: all but the kind in its name is numbers, the last ones by the order of writing."""
    kind, *numbers = blob[0].split(":")
    return tuple(map(int, numbers[1:] if kind in PAIRS else numbers))
