"""What the intake hands to the windows: the accepted events of a chunk, summed to partial tiles and sessions.

What the events of a chunk add to one window is one record, so SQL sums few records in place of many events. Sums of
sums are the same, whatever the order and however the log is cut.

A number of distinct items does not add up, so windows in the JVM would have to keep every item that they met.
Here each record says how many distinct items it adds to its day or to its session. A sum of these is exact,
whatever the order of the events: where events join two sessions that met the same items, they add less than
nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import orjson

from udfs.daypairs import DayPairs, encoded, used
from udfs.ids import placed
from udfs.pieces import Pieces

Longs = npt.NDArray[np.int64]
Whole = TypeVar("Whole", int, npt.NDArray[np.int64])

DAY: Final = 86_400_000

# Events go to SQL, and results come back, as strings: records and their fields are joined by control characters.
# Where an id holds one of these, it goes in with an escape that starts with the third.
RECORD, UNIT, ESCAPE = "\x1e", "\x1f", "\x1d"
_ESCAPES: Final = {ESCAPE: ESCAPE + "e", RECORD: ESCAPE + "r", UNIT: ESCAPE + "u"}

# Values are summed as whole millionths, in two limbs of a 64-bit integer each: a sum of floats would depend on
# order. Exact for up to 2**31 events a window, and for 79 million of the largest value there may be.
_MILLION: Final = 1_000_000
_LIMB: Final = 2**32

# Two counts are summed as one integer: a column less in every window, and in all that goes in and comes out.
_PAIR: Final = 2**32
_HALF: Final = 2**31

# An id in the feed begins with the letter of its family, so that windows of both are one operator.
OF_USER, OF_ITEM = "u", "i"

_LONGEST: Final = len(f"{UNIT}{-(2**63)}")  # bytes that a number takes
_SLACK: Final = 100_000  # stored events beyond which it is worth to look for closed sessions
_ITEMS: Final = 100_000  # in a stored blob of whole sessions, or of a day's pairs
_PAIRS: Final = "q"  # how names of their blobs begin
_PAIRS_OF_1: Final = "p"  # of layout 1: as texts
PAIRS: Final = (_PAIRS, _PAIRS_OF_1)


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


def split_key(key: str) -> tuple[str, str]:
    """The user, and what comes behind, in a key that begins with the length of the user's id, a colon and the id.

    >>> split_key("3:anntea"), split_key("4:a:nntea")
    (('ann', 'tea'), ('a:nn', 'tea'))
    """
    length, _, rest = key.partition(":")
    return rest[: int(length)], rest[int(length) :]


def total(high: int, low: int) -> float:
    """The value that two summed limbs stand for.

    >>> total(0, 2_500_000), total(-1, 2**32 - 500_000)
    (2.5, -0.5)
    """
    return (high * _LIMB + low) / _MILLION


def paired(first: int, second: int) -> int:
    """Two counts as one integer that can be summed; the second may be less than zero.

    >>> split_pair(paired(2, -1) + paired(3, 4))
    (5, 3)
    """
    return first * _PAIR + second


def split_pair(pair: Whole) -> tuple[Whole, Whole]:
    """The two counts in a sum of :func:`paired`, or in each of many; right while each is less than 2**31."""
    second = (pair + _HALF) % _PAIR - _HALF
    return (pair - second) // _PAIR, second


class TileFeed(NamedTuple):
    """What the accepted events of a chunk add to windows, as strings of records, and Flink's watermark (ms) after them.

    Attributes
    ----------
    tiles
        A record for each user and item and each of the smallest windows: the letter of the family and the id; the time
        of its newest event in ms; its events and how many distinct counterparts they add to the day, :func:`paired`;
        both limbs of the sum; and counts by type in the order of :attr:`TileConfig.event_types`, two and two paired.
    sessions
        Records of users. The first of a run of events without a pause holds what they add: id, time, events and
        distinct items paired, both limbs. Others are id and time alone: moments of events that keep the run in one
        session, and its end.
    """

    tiles: str
    sessions: str
    watermark: int


@dataclass(frozen=True)
class TileConfig:
    """
    Attributes
    ----------
    event_types
        The types that are counted apart.
    session_gap
        Milliseconds without an event that end a session: a longer pause does, one of just this length does not.
    span
        Milliseconds of the smallest tile: all others are rolled up from it.
    """

    event_types: tuple[str, ...]
    session_gap: int
    span: int


class _Session:
    __slots__ = ("end", "items", "start")

    def __init__(self, start: int, end: int, items: set[str]) -> None:
        self.start, self.end, self.items = start, end, items


class OpenSessions:
    """The distinct items of each user's sessions, by the rule of a session window: touching spans are one.

    >>> sessions = OpenSessions(gap=10)
    >>> [sessions.add("ann", set(items), *span) for items, *span in [("tr", 0, 5), ("t", 9, 9), ("tg", 25, 30)]]
    [2, 0, 2]
    >>> sessions.add("ann", {"r"}, 17, 17)  # joins both, which met t
    -1
    """

    def __init__(self, gap: int) -> None:
        self._gap = gap
        self._of: dict[str, list[_Session]] = {}  # disjoint, in order of time

    def add(self, user_id: str, items: set[str], start: int, end: int) -> int:
        """How many distinct items a run of events adds to its session, joined ones included.

        Parameters
        ----------
        items
            Of the run, in which no pause is longer than the gap; they belong to the session from here on.
        """
        sessions = self._of.get(user_id)
        if sessions is None:
            self._of[user_id] = [_Session(start, end, items)]
            return len(items)
        last = sessions[-1]
        if last.start <= start <= last.end + self._gap:
            if end > last.end:
                last.end = end
            before = len(last.items)
            last.items |= items
            return len(last.items) - before
        return self._merge(user_id, start, end, items)

    def _merge(self, user_id: str, start: int, end: int, items: set[str]) -> int:
        gap, joined = self._gap, [_Session(start, end, items)]
        others: list[_Session] = []
        for session in self._of.get(user_id, ()):
            touches = session.start - gap <= end and start <= session.end + gap
            (joined if touches else others).append(session)
        merged = _Session(
            min(s.start for s in joined), max(s.end for s in joined), set().union(*(s.items for s in joined))
        )
        self._of[user_id] = sorted([*others, merged], key=lambda s: s.start)
        return len(merged.items) - sum(len(s.items) for s in joined[1:])

    def close(self, watermark: int) -> int:
        """Forgets the sessions that no event from the watermark on can touch; returns how many items are left."""
        left = 0
        for user_id, sessions in list(self._of.items()):
            still = [s for s in sessions if s.end + self._gap >= watermark]
            if still:
                self._of[user_id] = still
                left += sum(len(s.items) for s in still)
            else:
                del self._of[user_id]
        return left

    def drop(self, user_ids: Iterable[str]) -> None:
        for user_id in user_ids:
            self._of.pop(user_id, None)

    def encode(self) -> Iterable[bytes]:
        """All sessions, in pieces of bounded size."""
        rows: list[tuple[str, int, int, list[str]]] = []
        size = 0
        for user_id, sessions in self._of.items():
            for session in sessions:
                rows.append((user_id, session.start, session.end, list(session.items)))
                size += len(session.items)
                if size >= _ITEMS:
                    yield orjson.dumps(rows)
                    rows, size = [], 0
        if rows:
            yield orjson.dumps(rows)

    def decode(self, blob: bytes) -> int:
        """Takes up what :meth:`encode` gave, and returns how many items it holds."""
        rows = orjson.loads(blob)
        for user_id, start, end, items in rows:
            self._merge(user_id, start, end, set(map(sys.intern, items)))
        return sum(len(row[3]) for row in rows)


class TileFeeder:
    """Makes the tile feed, and keeps what a restart needs to go on with it.

    State is written as a log of blobs, by name: ``q:{day}:{n}`` the new pairs of user and item of a day,
    ``s:{n}`` the events of a chunk for their sessions, ``w:{n}:{piece}`` whole sessions, which take the place
    of all ``s`` and ``w`` before them.
    """

    def __init__(self, config: TileConfig) -> None:
        self._types = {name: place for place, name in enumerate(config.event_types)}
        self._span = config.span
        self.pairs: dict[int, DayPairs] = {}  # by day, its start in ms
        self._pair_blobs: dict[str, int] = {}
        self._gap = config.session_gap
        self._sessions = OpenSessions(config.session_gap)
        self._session_blobs: list[str] = []
        self._stored = 0  # events and items in these blobs
        self._kept = 0  # items in open sessions when they were last counted

    @property
    def blobs(self) -> int:
        """How many blobs are stored."""
        return len(self._pair_blobs) + len(self._session_blobs)

    def feed(
        self,
        user_ids: Sequence[str],
        item_ids: Sequence[str],
        event_types: Sequence[str],
        values: npt.NDArray[np.float64],
        times: Longs,
        watermark: int,
        number: int,
        puts: dict[str, bytes],
    ) -> TileFeed:
        """What a chunk's events add to windows; what is to be stored of them goes to ``puts`` under ``number``.

        Parameters
        ----------
        times
            Milliseconds.
        watermark
            The intake's, after the chunk.
        """
        users, items = _Ids(user_ids), _Ids(item_ids)
        limbs = _limbs(values)
        new = self._new_in_day(users, items, times, number, puts)
        counts = np.concatenate([[paired(1, 0) + new], limbs, self._by_type(event_types)])
        by_user = np.lexsort((times, users.places))
        tiles = self._partial_tiles(OF_USER, users, by_user, counts, times)
        tiles += self._partial_tiles(OF_ITEM, items, np.lexsort((times, items.places)), counts, times)
        sessions = self._partial_sessions(users, by_user, items, limbs, times)
        puts[name := f"s:{number}"] = orjson.dumps((user_ids, item_ids, times.tolist()))
        self._session_blobs.append(name)
        self._stored += len(user_ids)
        # To Flink, a watermark of t says that t itself is past as well, and a session is over when its gap is, but
        # an event that comes just then still joins it.
        return TileFeed(tiles[:-1].decode(), sessions[:-1].decode(), watermark - 2)

    def _by_type(self, event_types: Sequence[str]) -> Longs:
        """For each two types in turn, a row of the events' counts of both."""
        known = self._types
        places = np.array([known.get(kind, -1) for kind in event_types])
        rows = np.zeros((-(-len(known) // 2), len(places)), np.int64)
        (at,) = np.nonzero(places >= 0)
        row, second = np.divmod(places[at], 2)
        rows[row, at] = np.where(second, paired(0, 1), paired(1, 0))
        return rows

    def _new_in_day(self, users: _Ids, items: _Ids, times: Longs, number: int, puts: dict[str, bytes]) -> Longs:
        """For each event, how many distinct counterparts it adds to its day: 0 or 1."""
        days = times - times % DAY
        new = np.zeros(len(days), np.int64)
        for day in np.unique(days).tolist():
            at = np.flatnonzero(days == day)
            (user_ids, of_user), (item_ids, of_item) = (used(ids.distinct, ids.places[at]) for ids in (users, items))
            is_new = self.pairs.setdefault(day, DayPairs()).add(user_ids, item_ids, of_user, of_item)
            if is_new.any():
                new[at[is_new]] = 1
                puts[name := f"{_PAIRS}:{day}:{number}"] = encoded(user_ids, item_ids, of_user[is_new], of_item[is_new])
                self._pair_blobs[name] = day
        return new

    def _partial_tiles(self, letter: str, ids: _Ids, order: npt.NDArray[np.intp], counts: Longs, times: Longs) -> bytes:
        """The records of a family's partial tiles; ``order`` is by id and time."""
        places, ordered = ids.places[order], times[order]
        starts = _starts(places, ordered // self._span)
        # The newest event of each stands for its time: like every accepted event, it is not behind the watermark.
        newest = ordered[np.append(starts[1:], len(order)) - 1]
        numbers = np.concatenate([[newest], np.add.reduceat(counts[:, order], starts, axis=1)])
        return _records(ids.in_feed(letter), places[starts], numbers)

    def _partial_sessions(
        self, users: _Ids, order: npt.NDArray[np.intp], items: _Ids, limbs: Longs, times: Longs
    ) -> bytes:
        """The records of partial sessions; ``order`` is by user and time."""
        places, ordered = users.places[order], times[order]
        # A time over all users, in which what a pause or another user parts is further away than the gap.
        pauses = np.diff(ordered, prepend=ordered[:1])
        parted = (np.diff(places, prepend=-1) != 0) | (pauses > self._gap)
        axis = np.cumsum(np.where(parted, self._gap + 1, pauses))
        starts = np.flatnonzero(parted)
        ends = np.append(starts[1:], len(order))
        spans = np.stack([starts, ends, ordered[starts], ordered[ends - 1]], axis=1).tolist()
        user_ids = [users.distinct[place] for place in places[starts].tolist()]
        item_ids = [items.distinct[place] for place in items.places[order].tolist()]
        met = [
            self._sessions.add(user_id, set(item_ids[start:end]), first, last)
            for user_id, (start, end, first, last) in zip(user_ids, spans, strict=True)
        ]
        events = (ends - starts) * paired(1, 0) + met
        sums = np.add.reduceat(limbs[:, order], starts, axis=1)
        ids = users.in_feed(OF_USER)
        records = _records(ids, places[starts], np.concatenate([[ordered[starts]], [events], sums]))
        at = starts
        while len(at):
            # From each moment to the last one that is within the gap: as few as keep the run together.
            ahead = np.searchsorted(axis, axis[at] + self._gap, side="right") - 1
            at = ahead[axis[ahead] > axis[at]]
            records += _records(ids, places[at], ordered[at][np.newaxis])
        return records

    def forget(self, watermark: int, *, ended: bool, number: int, puts: dict[str, bytes], removes: list[str]) -> None:
        """Drops what no later event can meet: state is bounded by two days and by the open sessions."""
        for day in [d for d in self.pairs if d + DAY < watermark]:
            del self.pairs[day]
        for name in [n for n, day in self._pair_blobs.items() if day + DAY < watermark]:
            del self._pair_blobs[name]
            removes.append(name)
        if ended:
            # All windows close with the input.
            self._sessions = OpenSessions(self._gap)
        elif self._stored <= 2 * self._kept + _SLACK:
            return
        self._rewrite_sessions(watermark, number, puts, removes)

    def drop(self, user_ids: Set[str], *, number: int, puts: dict[str, bytes], removes: list[str]) -> None:
        """Forgets what users met, and stores the rest anew."""
        for day, pairs in self.pairs.items():
            if not pairs.drop(user_ids):
                continue
            removes += [name for name, of in self._pair_blobs.items() if of == day]
            new = {f"{_PAIRS}:{day}:{number}:{piece}": blob for piece, blob in enumerate(pairs.encode(_ITEMS))}
            puts |= new
            self._pair_blobs = {k: v for k, v in self._pair_blobs.items() if v != day} | dict.fromkeys(new, day)
        self._sessions.drop(user_ids)
        # Also where no session is open: closed ones are kept for a while.
        self._rewrite_sessions(0, number, puts, removes)

    def _rewrite_sessions(self, watermark: int, number: int, puts: dict[str, bytes], removes: list[str]) -> None:
        """Stores the sessions that are open as a whole, in place of all that was stored of sessions before."""
        self._kept = self._stored = self._sessions.close(watermark)
        # What this chunk has put and nobody has stored yet need not be removed.
        removes += [name for name in self._session_blobs if puts.pop(name, None) is None]
        pieces = {f"w:{number}:{piece}": blob for piece, blob in enumerate(self._sessions.encode())}
        puts |= pieces
        self._session_blobs = list(pieces)

    def restore(self, blobs: Iterable[tuple[str, bytes]]) -> None:
        """Takes up stored blobs, in the order in which they were stored."""
        for name, blob in blobs:
            kind, place, *_ = name.split(":")
            if kind in PAIRS:
                pairs = self.pairs.setdefault(int(place), DayPairs())
                if kind == _PAIRS:
                    pairs.decode(blob)
                else:
                    keys = list(map(split_key, orjson.loads(blob)))
                    users, items = (_Ids([key[side] for key in keys]) for side in (0, 1))
                    pairs.add(users.distinct, items.distinct, users.places, items.places)
                self._pair_blobs[name] = int(place)
                continue
            self._session_blobs.append(name)
            if kind == "w":
                self._stored += self._sessions.decode(blob)
            else:
                user_ids, item_ids, times = orjson.loads(blob)
                self._stored += len(user_ids)
                for user_id, item_id, time in zip(user_ids, item_ids, times, strict=True):
                    self._sessions.add(user_id, {sys.intern(item_id)}, time, time)


class _Ids:
    """A column of ids as their places among the distinct ones."""

    def __init__(self, ids: Sequence[str]) -> None:
        places, self.places = placed(ids)
        self.distinct = list(map(sys.intern, places))

    def in_feed(self, letter: str) -> Pieces:
        """The distinct ids as they stand in the feed."""
        text = "".join(self.distinct)
        clean = not any(char in text for char in _ESCAPES)
        return Pieces.of_texts([letter + text for text in (self.distinct if clean else map(escape, self.distinct))])


def _limbs(values: npt.NDArray[np.float64]) -> Longs:
    """Two rows: both limbs of each value."""
    millionths = np.rint(values * _MILLION)
    high = np.floor(millionths / _LIMB)
    return np.array([high, millionths - high * _LIMB]).astype(np.int64)


def _starts(*columns: Longs) -> npt.NDArray[np.intp]:
    """Where a run of equal rows begins."""
    changes = np.any([np.diff(column) != 0 for column in columns], axis=0)
    return np.flatnonzero(np.append(True, changes))


def _records(ids: Pieces, places: Longs, numbers: Longs) -> bytes:
    """A record for each column of numbers, the id at its place and the numbers, and what ends it.

    >>> _records(Pieces.of_texts(["uann", "ubob"]), np.array([1, 0]), np.array([[7, -(2**63)], [0, 10]]))
    b'ubob\\x1f7\\x1f0\\x1euann\\x1f-9223372036854775808\\x1f10\\x1e'
    """
    from udfs import bytekernels  # here, as numba takes half a second to import

    size = int(ids.lengths[places].sum()) + len(places) * (1 + len(numbers) * _LONGEST)
    out = np.empty(size, dtype=np.uint8)  # more than is needed: pages that are not touched cost nothing
    signs = ord(UNIT), ord(RECORD)
    end = bytekernels.write_records(ids.data, ids.bounds, places, np.ascontiguousarray(numbers), *signs, out)
    return out[:end].tobytes()
