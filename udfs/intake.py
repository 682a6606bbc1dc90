"""The intake: decides once, from the log alone, what becomes of each record.

Every record that is read is counted, parsed and judged here, before anything branches: rejected, late,
duplicate, or accepted. All that a decision depends on is in the state, so a replay decides alike. The class
is plain Python; the PyFlink shell around it stores :attr:`Intake.header` and the blobs that it is told to.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import orjson

from serving.schema import shard_of
from udfs.batch import Batch, Deletion
from udfs.chunk import Chunk
from udfs.deadletters import dead_letter
from udfs.events import EventFormat, EventParser, Rejected
from udfs.requests import Request
from udfs.seal import REMEDY, Damaged, check_layout, seal, unseal
from udfs.tilefeed import TileConfig, TileFeed, TileFeeder, owner

LAYOUT: Final = 1
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
        them; otherwise the slowest.
    out_of_orderness, dedup_horizon
        Milliseconds of event time.
    tiles
        What the windows look at; None where there are none.
    position_names
        How a position is called in a dead letter, such as ``("file", "line")``.
    part
        How many inputs ended before this one: windows are new with each.
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
        Must be the same over restarts, save ``run_id`` and ``part``: what changes with a run is only what is counted.
    """

    def __init__(self, config: IntakeConfig) -> None:
        self.config = config
        self.parser = EventParser(config.fmt)
        self.counts = Counts()
        self.base: dict[str, Any] = Counts().as_dict()
        self.run_id = config.run_id
        self.newest: dict[str, int] = {}
        self._reached = 0  # the newest event of this part when its input ended, ms
        self.ended = False
        self.first_read_at: int | None = None  # wall clock, ms, of the first record of this run
        self.blob_number = 0
        self.forgotten = 0  # where the inputs that ended left :attr:`remembered_from`
        self.seen: dict[str, int] = {}
        # Which keys a stored blob holds, so that it can be forgotten whole.
        self._seen_blobs: dict[str, tuple[int, list[str]]] = {}
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
                "blobs": len(self._seen_blobs) + (0 if self.tiles is None else self.tiles.blobs),
                "part": self.config.part,
                "reached": self._reached,
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
        check_layout("the intake's state", stored["layout"], LAYOUT)
        self.counts = Counts(**stored["counts"])
        self.base, self.run_id = stored["base"], stored["run_id"]
        self.newest, self.ended, self.blob_number = stored["newest"], stored["ended"], stored["blob_number"]
        self.first_read_at, self.forgotten = stored["first_read_at"], stored["forgotten"]
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
            if name.startswith("d:"):
                times, keys = orjson.loads(blob)
                for key, time in zip(keys, times, strict=True):
                    self.seen[key] = max(time, self.seen.get(key, time))
                self._seen_blobs[name] = (max(times), keys)
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
        """No accepted event to come is older, in milliseconds; 0 before the first event."""
        if not self.newest:
            return 0
        newest = max(self.newest.values()) if self.config.merged else min(self.newest.values())
        return newest - self.config.out_of_orderness

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
        if self.first_read_at is None and chunk.lines:
            self.first_read_at = now
        config, counts, newest, seen = self.config, self.counts, self.newest, self.seen
        lag, horizon, shards, with_tiles = (
            config.out_of_orderness,
            config.dedup_horizon,
            config.shards,
            self.tiles is not None,
        )
        letters: list[str] = []
        events: list[list[list[Any]]] = [[] for _ in range(shards)]
        raws: list[list[bytes]] = [[] for _ in range(shards)]
        feed: list[tuple[str, str, str, float, int]] = []
        new_times: list[int] = []
        new_keys: list[str] = []
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
                if with_tiles:
                    if behind > lag:
                        counts.tile_late += 1
                    else:
                        feed.append((user_id, item_id, kind, value, time))

        watermark = self.watermark
        result = IntakeResult({}, [], letters)
        if new_keys:
            result.puts[name := f"d:{self.blob_number}"] = orjson.dumps([new_times, new_keys])
            self._seen_blobs[name] = (max(new_times), new_keys)
        if self.tiles is not None and feed:
            user_ids, item_ids, kinds, values, times = zip(*feed, strict=True)
            result.tile_feeds.append(
                self.tiles.feed(
                    user_ids,
                    item_ids,
                    kinds,
                    np.array(values, np.float64),
                    np.array(times, np.int64),
                    watermark,
                    self.blob_number,
                    result.puts,
                )
            )
        if chunk.ended:
            # The next input is another log: its files are judged by their own times.
            self.ended = True
            self._reached = self.reached
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
        if self.tiles is not None:
            self.tiles.forget(
                watermark, ended=chunk.ended, number=self.blob_number, puts=result.puts, removes=result.removes
            )
        self.blob_number += 1
        result.puts = {name: seal(name, blob) for name, blob in result.puts.items()}
        return result

    def delete(self, requests: Sequence[Request]) -> IntakeResult:
        """Forgets what is remembered of users, and tells their shards; counts and clocks stay as they are."""
        result = IntakeResult({}, [], [])
        by_shard: dict[int, list[Deletion]] = {}
        for number, user_id in requests:
            deletion = Deletion(number, user_id, self.config.part, self.reached)
            by_shard.setdefault(shard_of(user_id, self.config.shards), []).append(deletion)
        for shard, deletions in by_shard.items():
            result.batches[shard] = Batch(None, False, [], [], b"", tuple(deletions)).encode()
        user_ids = {request.user_id for request in requests}
        self._drop_event_ids(user_ids, result)
        if self.tiles is not None:
            self.tiles.drop(user_ids, number=self.blob_number, puts=result.puts, removes=result.removes)
        self.blob_number += 1
        result.puts = {name: seal(name, blob) for name, blob in result.puts.items()}
        return result

    def _drop_event_ids(self, user_ids: Set[str], result: IntakeResult) -> None:
        dropped = {key for key in self.seen if owner(key) in user_ids}
        if not dropped:
            return
        for name, (_, keys) in list(self._seen_blobs.items()):
            left = [key for key in keys if key not in dropped]
            if not left:
                del self._seen_blobs[name]
                result.removes.append(name)
            elif len(left) < len(keys):
                times = [self.seen[key] for key in left]
                result.puts[name] = orjson.dumps([times, left])
                self._seen_blobs[name] = (max(times), left)
        for key in dropped:
            del self.seen[key]

    def _letter(self, reason: str, message: str, source: str, position: int, line: bytes) -> str:
        return dead_letter(reason, message, self.position(source, position), line)

    def position(self, source: str, position: int) -> Mapping[str, object]:
        return dict(zip(self.config.position_names, (source, position), strict=True))

    def _forget(self, result: IntakeResult, watermark: int) -> None:
        """Drops the event ids that no later event can meet, so their state is bounded by the horizon."""
        oldest = watermark - self.config.dedup_horizon
        for name in [n for n, (newest, _) in self._seen_blobs.items() if newest < oldest]:
            for key in self._seen_blobs.pop(name)[1]:
                if self.seen.get(key, oldest) < oldest:
                    del self.seen[key]
            result.removes.append(name)


def _stored_at(blob: tuple[str, bytes]) -> tuple[int, ...]:
    """When a blob was stored: all but the kind in its name is numbers, the last ones by the order of writing."""
    kind, *numbers = blob[0].split(":")
    return tuple(map(int, numbers[1:] if kind == "p" else numbers))
