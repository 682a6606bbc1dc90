"""The tail: ids that came too seldom for a row of their own share rows, and their events are counted in little memory.

An id of the tail is learned on the row that its hash chooses. Its events are counted in a count-min sketch with
conservative update (Estan and Varghese, `New directions in traffic measurement and accounting
<https://doi.org/10.1145/633025.633056>`_, 2002): four counters an id, of which the least is never too low, and only the
least are raised. Counters are halved now and then, as in TinyLFU (`Einziger, Friedman and Manes
<https://arxiv.org/abs/1512.00727>`_, 2015), or with time every id would look frequent.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np

from serving.schema import tail_of
from udfs.pieces import Pieces, side_by_side

# No id of an event begins so: a surrogate stands for half a character, and has no UTF-8.
_MARK: Final = "\ud800tail "
_SHARED: Final = "tail."  # before the family, in names of the state
_WORD: Final = (1 << 64) - 1
_ROWS, _WIDTH = 4, 64
BLOCK: Final = _ROWS * _WIDTH
MOST: Final = 255  # that a counter holds


def tail_id(number: int) -> str:
    """The id, in this process, of a shared row."""
    return f"{_MARK}{number}"


def tail_number(row_id: str) -> int | None:
    """The number of a shared row; None for the id of an event.

    >>> tail_number(tail_id(7)), tail_number("7")
    (7, None)
    """
    return int(row_id[len(_MARK) :]) if row_id.startswith(_MARK) else None


def state_name(family: str, row_id: str) -> str:
    """What a row is called in the state; :func:`from_state_name` is the inverse.

    >>> state_name("user", "a:b"), state_name("user", tail_id(7))
    ('user:a:b', 'tail.user:7')
    """
    number = tail_number(row_id)
    return f"{family}:{row_id}" if number is None else f"{_SHARED}{family}:{number}"


def state_names(family: str, row_ids: Sequence[str], ids: Pieces) -> Pieces:
    """:func:`state_name` of many rows, as UTF-8, given by their ids and the bytes of these.

    >>> names = ["ann", tail_id(7)]
    >>> list(state_names("user", names, Pieces.of_texts(names)))
    [b'user:ann', b'tail.user:7']
    """
    is_ascii = ids.data.max(initial=0) < 128
    if not is_ascii and any(row_id.startswith(_MARK) for row_id in row_ids):
        return Pieces.of_texts([state_name(family, row_id) for row_id in row_ids])
    return side_by_side([f"{family}:".encode(), ids], len(row_ids))


def from_state_name(name: str) -> tuple[str, str]:
    """The family and the id of a row.

    >>> [from_state_name(name) for name in ("user:a:b", "user:7")]
    [('user', 'a:b'), ('user', '7')]
    """
    family, row_id = name.split(":", 1)
    if not family.startswith(_SHARED):
        return family, row_id
    return family.removeprefix(_SHARED), tail_id(int(row_id))


def from_state_names(names: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """The families and the ids of rows, of which there is at least one.

    >>> families, row_ids = from_state_names(["user:a:b", "user:7", "tail.item:7"])
    >>> families, row_ids[:2], tail_number(row_ids[2])
    (('user', 'user', 'item'), ('a:b', '7'), 7)
    """
    families, _, row_ids = zip(*[name.partition(":") for name in names], strict=True)
    if any(family.startswith(_SHARED) for family in set(families)):
        families, row_ids = zip(*map(from_state_name, names), strict=True)
    return families, row_ids


class Tail:
    """The ids of a family that have no row of their own.

    Attributes
    ----------
    rows
        How many rows they share.
    added
        Events counted since the counters were halved.

    Parameters
    ----------
    min_events
        An id has a row of its own from its so many-th event on, if so many come while they are remembered; at most
        one more than :data:`MOST`.
    counters
        Bytes for counting, in whole blocks of :data:`BLOCK`. What is counted is halved after a quarter as many events.

    Examples
    --------
    >>> tail = Tail(min_events=3, rows=16, counters=4_096)
    >>> for _ in range(2):
    ...     tail.count("ann")
    >>> tail.is_due("ann"), tail.is_due("bob"), len(list(tail.changed()))
    (True, False, 1)
    """

    def __init__(self, min_events: int, rows: int, counters: int) -> None:
        self.rows = rows
        self.added = 0
        self._needed = min_events - 1
        self._blocks = -(-counters // BLOCK)
        self._counters = bytearray(self._blocks * BLOCK)
        self._changed: set[int] = set()

    def row_of(self, row_id: str) -> str:
        """The id of the shared row of an id."""
        return tail_id(tail_of(row_id, self.rows))

    def is_due(self, row_id: str) -> bool:
        """Whether the next event of an id is the one that gives it a row of its own."""
        counters = self._counters
        return min(counters[at] for at in self._places(row_id)) >= self._needed

    def count(self, row_id: str) -> None:
        """Counts an event of an id that has no row."""
        counters, places = self._counters, self._places(row_id)
        least = min(counters[at] for at in places)
        if least < MOST:
            for at in places:
                if counters[at] == least:
                    counters[at] = least + 1
        self._changed.add(places[0] // BLOCK)
        self.added += 1

    @property
    def is_full(self) -> bool:
        """Whether the counters must be halved before the next event."""
        return self.added >= self._blocks * _WIDTH

    def age(self) -> None:
        """Halves all counters."""
        counters = np.frombuffer(self._counters, np.uint8)
        self._changed.update(np.flatnonzero(counters.reshape(self._blocks, BLOCK).any(axis=1)).tolist())
        counters >>= 1
        self.added = 0

    def _places(self, row_id: str) -> tuple[int, int, int, int]:
        """The counters of an id: all in one block, so that an event changes one block of the state."""
        # CRC-32, mixed as SplitMix64 does: its bits are not independent of each other over like ids.
        h = (zlib.crc32(row_id.encode()) + 0x9E3779B97F4A7C15) & _WORD
        h = ((h ^ (h >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
        h = ((h ^ (h >> 27)) * 0x94D049BB133111EB) & _WORD
        h ^= h >> 31
        at = (h >> 24) % self._blocks * BLOCK
        return (
            at + (h & 63),
            at + _WIDTH + (h >> 6 & 63),
            at + 2 * _WIDTH + (h >> 12 & 63),
            at + 3 * _WIDTH + (h >> 18 & 63),
        )

    # ------------------------------------------------------------------------------------------ state

    def changed(self) -> Iterator[tuple[int, bytes]]:
        """The blocks that changed since this was last asked, by their numbers."""
        changed, self._changed = self._changed, set()
        for block in changed:
            yield block, bytes(self._counters[block * BLOCK : (block + 1) * BLOCK])

    def restore(self, block: int, counters: bytes) -> None:
        """Takes up a block.

        Raises
        ------
        ValueError
            If there is no such block: the state was written with more counters.
        """
        if not (0 <= block < self._blocks and len(counters) == BLOCK):
            raise ValueError(f"block {block} of {len(counters)} counters has no place among {self._blocks} of {BLOCK}")
        self._counters[block * BLOCK : (block + 1) * BLOCK] = counters
