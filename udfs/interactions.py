"""Accepted interactions on their way to a learner, as columns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import itemgetter
from typing import Any

import numpy as np

from udfs.models import ITEM, USER, Array


@dataclass
class Interactions:
    """Interactions, each a place in every column.

    Attributes
    ----------
    times
        Milliseconds, dtype int64.
    event_ids, user_ids, item_ids, event_types
        Texts; an event without an id of its own has an empty one.
    values
        dtype float64.
    sources
        Numbers of the sources in the batch that brought them, dtype int32.
    positions
        Where they stand in their source, dtype int64.
    batches, lines
        The number of the batch that brought them, and which of its lines they were, dtype int64.

    Examples
    --------
    >>> rows = [[8, "", "bob", "tea", "view", 1.0, 0, 1], [7, "", "ann", "rum", "view", 1.0, 0, 2]]
    >>> events = Interactions.of(rows).ordered()
    >>> events.user_ids, events.times.tolist(), len(events)
    (['ann', 'bob'], [7, 8], 2)
    """

    times: Array
    event_ids: Sequence[str]
    user_ids: Sequence[str]
    item_ids: Sequence[str]
    event_types: Sequence[str]
    values: Array
    sources: Array
    positions: Array
    batches: Array
    lines: Array

    @classmethod
    def of(cls, rows: Sequence[Sequence[Any]]) -> Interactions:
        """From rows ``[timestamp, event_id, user_id, item_id, event_type, value, source number, position]``."""
        times, event_ids, user_ids, item_ids, event_types, values, sources, positions = (
            ([row[at] for row in rows]) for at in range(8)
        )
        return cls(
            np.array(times, dtype=np.int64), event_ids, user_ids, item_ids, event_types,
            np.array(values, dtype=np.float64), np.array(sources, dtype=np.int32), np.array(positions, dtype=np.int64),
            np.zeros(len(rows), dtype=np.int64), np.arange(len(rows), dtype=np.int64),
        )  # fmt: skip

    def rows(self) -> list[list[Any]]:
        """What :meth:`of` takes."""
        texts = (self.event_ids, self.user_ids, self.item_ids, self.event_types)
        numbers = (column.tolist() for column in (self.values, self.sources, self.positions))
        return list(map(list, zip(self.times.tolist(), *texts, *numbers, strict=True)))

    def __len__(self) -> int:
        return len(self.times)

    @property
    def ids(self) -> Mapping[str, Sequence[str]]:
        """The ids by family."""
        return {USER: self.user_ids, ITEM: self.item_ids}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Interactions) and all(
            np.array_equal(mine, theirs) if isinstance(mine, np.ndarray) else list(mine) == list(theirs)
            for mine, theirs in zip(vars(self).values(), vars(other).values(), strict=True)
        )

    def part(self, start: int, end: int) -> Interactions:
        """Those from one place up to another."""
        return Interactions(*(column[start:end] for column in vars(self).values()))

    def take(self, places: Array) -> Interactions:
        """Those at some places, in the order of the places."""
        if len(places) == len(self) and np.array_equal(places, np.arange(len(self))):
            return self
        return Interactions(*(chosen(column, places) for column in vars(self).values()))

    @classmethod
    def joined(cls, parts: Iterable[Interactions]) -> Interactions:
        """One after the other."""
        filled = [part for part in parts if len(part)]
        if len(filled) == 1:
            return filled[0]
        if not filled:
            return cls.of([])
        columns: list[Any] = [
            np.concatenate(column) if isinstance(column[0], np.ndarray) else list(chain.from_iterable(column))
            for column in zip(*(vars(part).values() for part in filled), strict=True)
        ]
        return cls(*columns)

    def ordered(self) -> Interactions:
        """In the order that learning is defined in: by time, event id, the remaining fields, source and position."""
        places = np.argsort(self.times, kind="stable")
        times = self.times[places]
        bounds = np.flatnonzero(np.diff(times, prepend=times[:1] - 1))
        if len(bounds) < len(times):  # only where times are equal does the rest decide
            ends = np.append(bounds[1:], len(times))
            several = ends - bounds > 1
            values, sources, positions = self.values.tolist(), self.sources.tolist(), self.positions.tolist()
            rest = list(
                zip(
                    self.event_ids, self.user_ids, self.item_ids, self.event_types, values, sources, positions,
                    self.batches.tolist(), self.lines.tolist(), strict=True,
                )
            )  # fmt: skip
            for start, end in zip(bounds[several].tolist(), ends[several].tolist(), strict=True):
                places[start:end] = sorted(places[start:end].tolist(), key=rest.__getitem__)
        return self.take(places)


def chosen(column: Any, places: Array) -> Any:
    """The values of a column at some places."""
    if isinstance(column, np.ndarray):
        return column[places]
    if len(places) < 2:
        return [column[place] for place in places]
    return list(itemgetter(*places.tolist())(column))
