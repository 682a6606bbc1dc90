"""Numbers for ids, so that what is known of rows can lie in tables."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from itertools import chain, count
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from udfs.pieces import Pieces

Numbers = npt.NDArray[np.intp]
Hashes = npt.NDArray[np.int64]
Array = npt.NDArray[Any]
_LEAST: Final = 16  # entries, texts, bytes; a power of two
_BYTES: Final = 1_000_000  # beyond which it is worth to look for what nobody uses


class Ids(Mapping[str, int]):
    """The ids of a family and their numbers, from 0 in the order they came; a number that is free is given again.

    Attributes
    ----------
    names
        The ids by number, empty where a number is free: a table needs as many places as there are names. Whoever
        keeps an id keeps this text and not one of its own: a text is a large thing to have fifty times in a million
        rows.

    Notes
    -----
    A dictionary of a million texts waits for memory four times to find one. Here a kernel looks for all at once, by
    Python's own hashes, in arrays, where the waits overlap: a sixth of the time (docs/decisions/0021).

    Examples
    --------
    >>> ids = Ids()
    >>> ids.add(["tea", "rum", "tea"]), ids.names, dict(ids)
    (array([0, 1, 0]), ['tea', 'rum'], {'tea': 0, 'rum': 1})
    >>> ids.remove(["tea"]), ids.add(["gin", "ale"]), ids.names
    (array([0]), array([0, 2]), ['gin', 'rum', 'ale'])
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self._free: list[int] = []
        # Open addressing, linear probing, at most half full: a hash, and the number plus one, 0 where there is none.
        self._table = np.zeros((_LEAST, 2), dtype=np.int64)
        # The texts as bytes, and by number where each begins and how long it is.
        self._bytes = np.empty(_LEAST, dtype=np.uint8)
        self._places = np.zeros((_LEAST, 2), dtype=np.int64)
        self._used = 0
        self._left = 0  # bytes of texts that are gone
        self._slots = np.empty(0, dtype=np.intp)  # room for :meth:`distinct`: all -1

    def __getitem__(self, row_id: str) -> int:
        item, hashed, mask = self._table.item, hash(row_id), len(self._table) - 1
        at = hashed & mask
        while number := item(at, 1):
            if item(at, 0) == hashed and self.names[number - 1] == row_id:
                return int(number - 1)
            at = (at + 1) & mask
        raise KeyError(row_id)

    def __iter__(self) -> Iterator[str]:
        return filter(None, self.names)

    def __len__(self) -> int:
        return len(self.names) - len(self._free)

    def expect(self, count: int) -> None:
        """Makes room for so many ids, which are to come."""
        if 2 * count > len(self._table):
            self._renew(count)

    def find(self, row_ids: Sequence[str]) -> Numbers:
        """The number of each id, -1 of one that is not known."""
        return self._find(row_ids, hashes_of(row_ids))

    def add(self, row_ids: Sequence[str]) -> Numbers:
        """The number of each id; an id that is not known gets a free one, or the next."""
        hashes = hashes_of(row_ids)
        found = self._find(row_ids, hashes)
        unknown = np.flatnonzero(found < 0)
        if len(unknown):
            new, column = placed([row_ids[place] for place in unknown.tolist()])
            names = list(new)
            numbers = self._numbered(names)
            found[unknown] = numbers[column]
            self._enter(names, numbers)
        return found

    def put(self, row_ids: Sequence[str], numbers: Numbers) -> None:
        """Gives new ids the numbers that they had in another process; before they are used, all numbers must be given.

        >>> ids = Ids()
        >>> ids.put(["rum"], np.array([1])), ids.put(["tea"], np.array([0])), ids.names
        (None, None, ['tea', 'rum'])
        """
        self.names += [""] * (int(numbers.max(initial=-1)) + 1 - len(self.names))
        for row_id, number in zip(row_ids, numbers.tolist(), strict=True):
            self.names[number] = row_id
        self._enter(row_ids, numbers)

    def remove(self, row_ids: Iterable[str]) -> Numbers:
        """Forgets ids, and returns the numbers they had, which are free from now on.

        Raises
        ------
        KeyError
            If one of them is not known.
        """
        from udfs import kernels

        removed = []
        for row_id in row_ids:
            number = self[row_id]
            kernels.leave(self._table, hash(row_id), number)
            self._left += int(self._places[number, 1])
            self.names[number] = ""
            self._free.append(number)
            removed.append(number)
        return np.array(removed, dtype=np.intp)

    def distinct(self, row_ids: Sequence[str]) -> tuple[list[str], Numbers, Numbers]:
        """Each id once, in the order they come; of each of ``row_ids``, where it is among these; and their numbers."""
        from udfs import kernels

        numbers, known = self.find(row_ids), len(self.names)
        new: dict[str, int] = {}
        for place in np.flatnonzero(numbers < 0).tolist():
            numbers[place] = new.setdefault(row_ids[place], known + len(new))
        if len(self._slots) < known + len(new):
            self._slots = np.full(2 * (known + len(new)), -1, dtype=np.intp)
        firsts, slots = kernels.distinct(numbers, self._slots)
        numbers = numbers[firsts]
        return [row_ids[place] for place in firsts.tolist()], slots, np.where(numbers < known, numbers, -1)

    def _find(self, row_ids: Sequence[str], hashes: Hashes) -> Numbers:
        from udfs import kernels  # here, as numba takes half a second to import

        text = Pieces.of_texts(row_ids)
        numbers: Numbers = kernels.look_up(self._table, self._places, self._bytes, hashes, text.data, text.lengths)
        return numbers

    def _numbered(self, names: Sequence[str]) -> Numbers:
        """Gives new ids their numbers: free ones first."""
        free = [self._free.pop() for _ in names[: len(self._free)]]
        for number, name in zip(free, names, strict=False):
            self.names[number] = name
        self.names += names[len(free) :]
        return np.array([*free, *range(len(self.names) - len(names) + len(free), len(self.names))], dtype=np.intp)

    def _enter(self, names: Sequence[str], numbers: Numbers) -> None:
        """Puts ids that have got numbers into table and texts."""
        if 2 * len(self) > len(self._table) or self._left > self._used // 2 + _BYTES:
            self._renew(len(self))
        else:
            self._write(names, numbers)

    def _renew(self, room: int) -> None:
        """Writes all ids anew: with room for so many, and without the texts that are gone."""
        self._table = np.zeros((max(len(self._table), 1 << (2 * room).bit_length()), 2), dtype=np.int64)
        self._used = self._left = 0
        self._write(list(self), np.flatnonzero([*map(bool, self.names)]))

    def _write(self, names: Sequence[str], numbers: Numbers) -> None:
        from udfs import kernels

        text = Pieces.of_texts(names)
        lengths = text.lengths
        self._bytes = at_least(self._bytes, self._used, self._used + len(text.data))
        self._places = at_least(self._places, len(self._places), len(self.names))
        self._bytes[self._used : self._used + len(text.data)] = text.data
        self._places[numbers, 0] = self._used + np.cumsum(lengths) - lengths
        self._places[numbers, 1] = lengths
        self._used += len(text.data)
        kernels.enter(self._table, hashes_of(names), numbers)


def hashes_of(texts: Sequence[str]) -> Hashes:
    """Python's own hashes: no sender of ids can make them fall on each other."""
    return np.fromiter(map(hash, texts), dtype=np.int64, count=len(texts))


def at_least(array: Array, used: int, size: int) -> Array:
    """An array of at least a size that begins with what is used of another: the same one, or one of twice its size."""
    if size <= len(array):
        return array
    larger = np.empty((max(size, 2 * len(array)), *array.shape[1:]), dtype=array.dtype)
    larger[:used] = array[:used]
    return larger


def placed(texts: Sequence[str], more: Iterable[str] = ()) -> tuple[dict[str, int], Numbers]:
    """The place of each text among the distinct ones, in the order they come, then of ``more``; and the places of
    ``texts``, dtype intp.

    >>> places, column = placed(["tea", "rum", "tea"], ["gin"])
    >>> places, column.tolist()
    ({'tea': 0, 'rum': 1, 'gin': 2}, [0, 1, 0])
    """
    places = dict(zip(dict.fromkeys(chain(texts, more)), count(), strict=False))
    return places, np.fromiter(map(places.__getitem__, texts), dtype=np.intp, count=len(texts))


class Group:
    """The rows of a family that a group of events meets.

    Attributes
    ----------
    row_ids
        The id of each event.
    distinct
        Each id once, in the order they come.
    slots
        Of each event, where its id is in ``distinct``: dtype intp.
    numbers
        Of each id in ``distinct``, its number: dtype intp; -1 while it is not known.
    heirs
        By slots: an id that is not known, and whose weights it begins with, where they are known by then.

    Parameters
    ----------
    heirs
        The same by ids. Those whose weights they are need have no event, and come last in ``distinct``.

    Examples
    --------
    >>> ids = Ids()
    >>> group = Group(ids, ["tea", "rum", "tea", "gin"])
    >>> group.distinct, group.slots.tolist(), group.numbers
    (['tea', 'rum', 'gin'], [0, 1, 0, 2], array([-1, -1, -1]))
    >>> group.admit(diverged={1})
    >>> group.numbers, ids.names
    (array([ 0, -1,  1]), ['tea', 'gin'])
    """

    def __init__(self, ids: Ids, row_ids: Sequence[str], heirs: Mapping[str, str] | None = None) -> None:
        self.ids = ids
        self.row_ids = row_ids
        self.heirs: dict[int, int] = {}
        if not heirs:
            self.distinct, self.slots, self.numbers = ids.distinct(row_ids)
            return
        places, self.slots = placed(row_ids, heirs.values())
        self.distinct = list(places)
        self.heirs = {places[heir]: places[of] for heir, of in heirs.items()}
        self.numbers = ids.find(self.distinct)

    def admit(self, diverged: Container[int]) -> None:
        """Makes the ids known of all events but the ``diverged``, which are given by their places."""
        if -1 in self.numbers:
            self.ids.add([row_id for place, row_id in enumerate(self.row_ids) if place not in diverged])
            self.numbers = self.ids.find(self.distinct)

    def heirs_by_slot(self) -> Numbers:
        """Of each id in ``distinct``, where that is whose weights it begins with; -1 for none."""
        heirs = np.full(len(self.distinct), -1, dtype=np.intp)
        for slot, heir in self.heirs.items():
            heirs[slot] = heir
        return heirs
