"""The items that users met last, as numbers in one array.

A user's history is a part of it, and has room to grow; where it needs more, it moves to the end, with twice the
room. Items are numbered in the order in which someone meets them. So learning moves numbers and not texts, and what
is known of a million users is a few objects, which no cycle collector has to look at.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Final

import numpy as np
import orjson

from udfs.ids import Ids, at_least
from udfs.models import Array
from udfs.pieces import Pieces

_LEAST: Final = 4  # items that a history has room for
# Places and names beyond which it is worth to look for what nobody uses.
_PLACES: Final = 1_000_000
_NAMES: Final = 100_000


class Seen:
    """What users met last, by the users' numbers; each item once, the newest last.

    Examples
    --------
    >>> seen = Seen()
    >>> seen.fit(2)
    >>> seen.meet(np.array([0, 1]), np.array([0, 1, 0, 0]), ["tea", "rum"], np.array([0, 1, 1, 0]), size=50)
    >>> seen[0], seen[1], list(seen.json(np.array([0, 1])))
    (('rum', 'tea'), ('rum',), [b'["rum","tea"]', b'["rum"]'])
    """

    def __init__(self) -> None:
        self._names = Ids()
        # The JSON of the names that were asked for, one after the other, and where each ends.
        self._texts = np.empty(1_024, dtype=np.uint8)
        self._ends = np.zeros(1, dtype=np.int64)
        self._items = np.empty(1_024, dtype=np.int32)
        self._used = 0
        # Of each user: where the history begins, how long it is, and how long it may get there.
        self._starts, self._lengths, self._rooms = (np.zeros(0, dtype=np.int64) for _ in range(3))
        self._left = 0  # places that histories have moved away from
        self._in_use = 0  # names, when this was last looked at

    def __getitem__(self, number: int) -> tuple[str, ...]:
        start = self._starts[number]
        names = self._names.names
        return tuple(names[item] for item in self._items[start : start + self._lengths[number]].tolist())

    @property
    def places(self) -> int:
        """For how many users there is room."""
        return len(self._starts)

    def fit(self, places: int) -> None:
        """Makes room for the users up to a number; a new one has met nothing."""
        more = places - len(self._starts)
        if more > 0:
            more = max(more, len(self._starts), 1_024)
            self._starts, self._lengths, self._rooms = (
                np.concatenate([of, np.zeros(more, dtype=np.int64)])
                for of in (self._starts, self._lengths, self._rooms)
            )

    def meet(self, users: Array, slots: Array, names: Sequence[str], items: Array, size: int) -> None:
        """Takes events in, one after the other; of each user the last ``size`` items stay.

        Parameters
        ----------
        users, names
            The numbers of the users, and the items, that are met: each once.
        slots, items
            Of each event, the places of its user and of its item in these.
        """
        from udfs import kernels  # here, as numba takes half a second to import

        numbers, before = self._names.add(names), self._lengths[users]
        met = before + np.bincount(slots, minlength=len(users))
        self._grow(users, np.minimum(met, np.maximum(before, size)))
        kernels.meet(users[slots], numbers[items], self._items, self._starts, self._lengths, size)
        self._tidy()

    def put(self, users: Array, histories: Sequence[Sequence[str]]) -> None:
        """Replaces histories of users, each given once."""
        lengths = np.fromiter(map(len, histories), dtype=np.int64, count=len(histories))
        items = self._names.add(list(chain.from_iterable(histories)))
        self._lengths[users] = 0
        self._grow(users, lengths)
        self._lengths[users] = lengths
        self._items[_places(self._starts[users], lengths)] = items
        self._tidy()

    def clear(self, users: Array) -> None:
        """Forgets what users met."""
        self._lengths[users] = 0

    def json(self, users: Array) -> Pieces:
        """The history of each user as a JSON array of texts."""
        from udfs import kernels

        if new := self._names.names[len(self._ends) - 1 :]:
            self._write(new)
        starts, lengths = self._starts[users], self._lengths[users]
        bounds = np.zeros(len(users) + 1, dtype=np.int64)
        np.cumsum(kernels.json_sizes(starts, lengths, self._items, self._ends), out=bounds[1:])
        text = np.empty(int(bounds[-1]), dtype=np.uint8)
        kernels.write_json(starts, lengths, self._items, self._ends, self._texts, text)
        return Pieces(text, bounds)

    def _grow(self, users: Array, lengths: Array) -> None:
        """Gives users a place that is long enough."""
        from udfs import kernels

        tight = lengths > self._rooms[users]
        moving, rooms = users[tight], np.maximum(lengths[tight], _LEAST)
        if not len(moving):
            return
        rooms = 1 << np.ceil(np.log2(rooms)).astype(np.int64)
        ends = self._used + np.cumsum(rooms)
        self._items = at_least(self._items, self._used, int(ends[-1]))
        kernels.move(moving, ends - rooms, self._items, self._starts, self._lengths)
        self._left += int(self._rooms[moving].sum())
        self._rooms[moving] = rooms
        self._used = int(ends[-1])

    def _tidy(self) -> None:
        """Takes back what nobody uses any more, now and then: each time at most as much work as was done since."""
        if self._left > self._used // 2 + _PLACES:
            self._move_together()
        if len(self._names) > 2 * self._in_use + _NAMES:
            self._forget_names()

    def _move_together(self) -> None:
        items, ends = self._items, np.cumsum(self._rooms)
        self._items = np.empty(int(ends[-1]), dtype=np.int32)
        places = _places(self._starts, self._lengths)
        self._starts = ends - self._rooms
        self._items[_places(self._starts, self._lengths)] = items[places]
        self._used, self._left = int(ends[-1]), 0

    def _forget_names(self) -> None:
        places = _places(self._starts, self._lengths)
        used, self._items[places] = np.unique(self._items[places], return_inverse=True)
        before, self._names = self._names.names, Ids()
        self._names.add([before[number] for number in used.tolist()])
        self._ends = self._ends[:1]
        self._in_use = len(used)

    def _write(self, names: Sequence[str]) -> None:
        """Puts the JSON of more names behind what is there."""
        texts, used = [orjson.dumps(name) for name in names], int(self._ends[-1])
        more = used + np.cumsum(np.fromiter(map(len, texts), dtype=np.int64, count=len(texts)))
        self._texts = at_least(self._texts, used, int(more[-1]))
        self._texts[used : more[-1]] = np.frombuffer(b"".join(texts), dtype=np.uint8)
        self._ends = np.concatenate([self._ends, more])


def _places(starts: Array, lengths: Array) -> Array:
    """The places of parts of an array, one part after the other.

    >>> _places(np.array([5, 0]), np.array([2, 1])).tolist()
    [5, 6, 0]
    """
    before = np.cumsum(lengths) - lengths
    places: Array = np.repeat(starts - before, lengths) + np.arange(int(lengths.sum()))
    return places
