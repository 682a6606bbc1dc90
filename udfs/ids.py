"""Numbers for ids, so that what is known of rows can lie in tables."""

from __future__ import annotations

import sys
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from itertools import chain, count, repeat

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.intp]


class Ids(Mapping[str, int]):
    """The ids of a family and their numbers, from 0 in the order they came; a number that is free is given again.

    Attributes
    ----------
    names
        The ids by number, empty where a number is free: a table needs as many places as there are names. Whoever
        keeps an id keeps this text and not one of its own: a text is a large thing to have fifty times in a million
        rows.

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
        self._numbers: dict[str, int] = {}
        self._free: list[int] = []

    def __getitem__(self, row_id: str) -> int:
        return self._numbers[row_id]

    def __iter__(self) -> Iterator[str]:
        return iter(self._numbers)

    def __len__(self) -> int:
        return len(self._numbers)

    def __contains__(self, row_id: object) -> bool:
        return row_id in self._numbers

    def find(self, row_ids: Iterable[str]) -> Numbers:
        """The number of each id, -1 of one that is not known."""
        return np.fromiter(map(self._numbers.get, row_ids, repeat(-1)), dtype=np.intp)

    def add(self, row_ids: Sequence[str]) -> Numbers:
        """The number of each id; an id that is not known gets a free one, or the next."""
        found = self.find(row_ids)
        if -1 not in found:
            return found  # as most often
        numbers, names, free = self._numbers, self.names, self._free
        for row_id in row_ids:
            if row_id not in numbers:
                name = sys.intern(row_id)
                if free:
                    numbers[name] = free.pop()
                    names[numbers[name]] = name
                else:
                    numbers[name] = len(names)
                    names.append(name)
        return self.find(row_ids)

    def remove(self, row_ids: Iterable[str]) -> Numbers:
        """Forgets ids, and returns the numbers they had, which are free from now on.

        Raises
        ------
        KeyError
            If one of them is not known.
        """
        removed = [self._numbers.pop(row_id) for row_id in row_ids]
        for number in removed:
            self.names[number] = ""
        self._free += removed
        return np.array(removed, dtype=np.intp)


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
        places, self.slots = placed(row_ids, heirs.values() if heirs else ())
        self.distinct = list(places)
        self.heirs = {places[heir]: places[of] for heir, of in heirs.items()} if heirs else {}
        self.numbers = ids.find(self.distinct)

    def admit(self, diverged: Container[int]) -> None:
        """Makes the ids known of all events but the ``diverged``, which are given by their places."""
        if -1 in self.numbers:
            self.ids.add([row_id for place, row_id in enumerate(self.row_ids) if place not in diverged])
            self.numbers = self.ids.find(self.distinct)
