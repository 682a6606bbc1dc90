"""What the intake hands to the windows: the accepted events of a chunk, as one string.

A number of distinct items does not add up, so windows in the JVM would have to keep every item that they met.
Here each event says how many distinct items it adds to its day and to its session. A sum of these is exact,
whatever the order of the events: where an event joins two sessions that met the same items, it adds less than
nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import orjson

from udfs.models import Array

DAY: Final = 86_400_000

# Events go to SQL, and results come back, as strings: records and their fields are joined by control characters.
# Where an id holds one of these, it goes in with an escape that starts with the third.
RECORD, UNIT, ESCAPE = "\x1e", "\x1f", "\x1d"
_ESCAPES: Final = {ESCAPE: ESCAPE + "e", RECORD: ESCAPE + "r", UNIT: ESCAPE + "u"}

# Values are summed as whole millionths, in two limbs of a 64-bit integer each: a sum of floats would depend on
# order. Exact for up to 2**31 events a window, and for 79 million of the largest value there may be.
_MILLION: Final = 1_000_000
_LIMB: Final = 2**32

_SLACK: Final = 100_000  # stored events beyond which it is worth to look for closed sessions
_ITEMS: Final = 100_000  # in a stored blob of whole sessions


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


def owner(key: str) -> str:
    """The user in a key that begins with the length of the user's id, a colon and the id.

    >>> owner("3:anntea"), owner("4:a:nntea")
    ('ann', 'a:nn')
    """
    length, _, rest = key.partition(":")
    return rest[: int(length)]


def total(high: int, low: int) -> float:
    """The value that two summed limbs stand for.

    >>> total(0, 2_500_000), total(-1, 2**32 - 500_000)
    (2.5, -0.5)
    """
    return (high * _LIMB + low) / _MILLION


class TileFeed(NamedTuple):
    """Accepted events as a string of records, and Flink's watermark (ms) after them.

    Fields of a record: user_id, item_id, place of its type in :attr:`TileConfig.event_types` or -1, time in ms, both
    limbs of its value, and how many distinct counterparts it adds to its day and its session.
    """

    events: str
    watermark: int


_FIELDS: Final = 8


@dataclass(frozen=True)
class TileConfig:
    """
    Attributes
    ----------
    event_types
        The types that are counted apart.
    session_gap
        Milliseconds without an event that end a session: a longer pause does, one of just this length does not.
    """

    event_types: tuple[str, ...]
    session_gap: int


class _Session:
    __slots__ = ("end", "items", "start")

    def __init__(self, start: int, end: int, items: set[str]) -> None:
        self.start, self.end, self.items = start, end, items


class OpenSessions:
    """The distinct items of each user's sessions, by the rule of a session window: touching spans are one.

    >>> sessions = OpenSessions(gap=10)
    >>> [sessions.add("ann", item, time) for item, time in [("tea", 0), ("rum", 5), ("tea", 9), ("tea", 25)]]
    [1, 1, 0, 1]
    >>> sessions.add("ann", "rum", 17)  # joins both, which met tea
    -1
    """

    def __init__(self, gap: int) -> None:
        self._gap = gap
        self._of: dict[str, list[_Session]] = {}  # disjoint, in order of time

    def add(self, user_id: str, item_id: str, time: int) -> int:
        """How many distinct items an event adds to its session, joined ones included."""
        sessions = self._of.get(user_id)
        if sessions is None:
            self._of[user_id] = [_Session(time, time, {sys.intern(item_id)})]
            return 1
        last = sessions[-1]
        if last.start <= time <= last.end + self._gap:
            if time > last.end:
                last.end = time
            if item_id in last.items:
                return 0
            last.items.add(sys.intern(item_id))
            return 1
        return self._merge(user_id, time, time, {sys.intern(item_id)})

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

    State is written as a log of blobs, by name: ``p:{day}:{n}`` the new pairs of user and item of a day,
    ``s:{n}`` the events of a chunk for their sessions, ``w:{n}:{piece}`` whole sessions, which take the place
    of all ``s`` and ``w`` before them.
    """

    def __init__(self, config: TileConfig) -> None:
        self._types = {name: place for place, name in enumerate(config.event_types)}
        self._pairs: dict[int, set[str]] = {}
        self._pair_blobs: dict[str, int] = {}
        self._gap = config.session_gap
        self._sessions = OpenSessions(config.session_gap)
        self._session_blobs: list[str] = []
        self._stored = 0  # events and items in these blobs
        self._kept = 0  # items in open sessions when they were last counted

    @property
    def pairs(self) -> dict[int, set[str]]:
        """The pairs of user and item of each open day (its start, ms)."""
        return self._pairs

    @property
    def blobs(self) -> int:
        """How many blobs are stored."""
        return len(self._pair_blobs) + len(self._session_blobs)

    def feed(
        self,
        user_ids: Sequence[str],
        item_ids: Sequence[str],
        event_types: Sequence[str],
        values: Array,
        moments: Array,
        watermark: int,
        *,
        number: int,
        puts: dict[str, bytes],
    ) -> list[TileFeed]:
        """A chunk's events for SQL; what is to be stored of them goes to ``puts`` under ``number``."""
        kinds, times = event_types, moments.tolist()
        millionths = np.rint(values * _MILLION)
        high = np.floor(millionths / _LIMB)
        low = millionths - high * _LIMB
        new_pairs: dict[int, list[str]] = {}
        new_in_day = [
            self._new_in_day(user_id, item_id, time, new_pairs)
            for user_id, item_id, time in zip(user_ids, item_ids, times, strict=True)
        ]
        for day, pairs in new_pairs.items():
            puts[name := f"p:{day}:{number}"] = orjson.dumps(pairs)
            self._pair_blobs[name] = day
        new_in_session = map(self._sessions.add, user_ids, item_ids, times)
        types = [self._types.get(kind, -1) for kind in kinds]
        limbs = (high.astype(np.int64).tolist(), low.astype(np.int64).tolist())
        numbers = list(zip(types, times, *limbs, new_in_day, new_in_session, strict=True))
        puts[name := f"s:{number}"] = orjson.dumps((list(user_ids), list(item_ids), times))
        self._session_blobs.append(name)
        self._stored += len(times)
        # To Flink, a watermark of t says that t itself is past as well, and a session is over when its gap is, but
        # an event that comes just then still joins it.
        return [TileFeed(_records(user_ids, item_ids, numbers), watermark - 2)]

    def _new_in_day(self, user_id: str, item_id: str, time: int, new_pairs: dict[int, list[str]]) -> int:
        day = time - time % DAY
        known = self._pairs.get(day)
        if known is None:
            known = self._pairs[day] = set()
        pair = f"{len(user_id)}:{user_id}{item_id}"
        if pair in known:
            return 0
        known.add(pair)
        new_pairs.setdefault(day, []).append(pair)
        return 1

    def forget(self, watermark: int, *, ended: bool, number: int, puts: dict[str, bytes], removes: list[str]) -> None:
        """Drops what no later event can meet: state is bounded by two days and by the open sessions."""
        for day in [d for d in self._pairs if d + DAY < watermark]:
            del self._pairs[day]
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
        for day, pairs in self._pairs.items():
            left = {pair for pair in pairs if owner(pair) not in user_ids}
            if len(left) == len(pairs):
                continue
            self._pairs[day] = left
            old = [name for name, of in self._pair_blobs.items() if of == day]
            removes += old
            ordered = sorted(left)
            pieces = [ordered[at : at + _ITEMS] for at in range(0, len(ordered), _ITEMS)]
            new = {f"p:{day}:{number}:{piece}": orjson.dumps(part) for piece, part in enumerate(pieces)}
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
            if kind == "p":
                self._pairs.setdefault(int(place), set()).update(orjson.loads(blob))
                self._pair_blobs[name] = int(place)
                continue
            self._session_blobs.append(name)
            if kind == "w":
                self._stored += self._sessions.decode(blob)
            else:
                columns = orjson.loads(blob)
                self._stored += len(columns[0])
                for event in zip(*columns, strict=True):
                    self._sessions.add(*event)


def _records(user_ids: Sequence[str], item_ids: Sequence[str], numbers: Sequence[tuple[int, ...]]) -> str:
    """Joins fields and records; escapes ids only where one of them holds a separator."""
    text = _joined(user_ids, item_ids, numbers)
    clean = text.count(UNIT) == (_FIELDS - 1) * len(numbers) and text.count(RECORD) == len(numbers) - 1
    if clean and ESCAPE not in text:
        return text
    return _joined(list(map(escape, user_ids)), list(map(escape, item_ids)), numbers)


def _joined(user_ids: Sequence[str], item_ids: Sequence[str], numbers: Sequence[tuple[int, ...]]) -> str:
    return RECORD.join(
        [
            f"{user_id}{UNIT}{item_id}{UNIT}{kind}{UNIT}{time}{UNIT}{high}{UNIT}{low}{UNIT}{day}{UNIT}{session}"
            for user_id, item_id, (kind, time, high, low, day, session) in zip(user_ids, item_ids, numbers, strict=True)
        ]
    )
