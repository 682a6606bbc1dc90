"""What users met of late: a bounded row a user, from which all learners of implicit feedback read.

A row holds the last ``size`` distinct items, the newest last: of each how often it was met while it stayed in the row,
and in which of the user's baskets it was met last. A basket is what a user met at one time.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from serving.blend import FADE
from udfs.jit import njit
from udfs.models import Array

# Columns of ``marks``.
SIZE: Final = 0  # items in the row
BASKET: Final = 1  # number of the last basket, from 1
EVENTS: Final = 2
HELD: Final = 3  # distinct items of the last basket
MARKS: Final = 4


class Histories(NamedTuple):
    """Rows of users, by number.

    Attributes
    ----------
    items
        Numbers of items, the newest last, int32, shape ``(users, size)``; -1 where there is none.
    counts
        How often each was met, float32, of the same shape.
    rates
        The same, faded with each basket up to the one it was met in last, float32, of the same shape.
    baskets
        In which basket it was met last, int32, of the same shape.
    marks
        ``SIZE``, ``BASKET``, ``EVENTS`` and ``HELD``, int64, shape ``(users, 4)``.
    times
        When the last event was, int64, shape ``(users,)``.
    """

    items: Array
    counts: Array
    rates: Array
    baskets: Array
    marks: Array
    times: Array


def histories(users: int, size: int) -> Histories:
    """Empty rows."""
    return Histories(
        np.full((users, size), -1, dtype=np.int32),
        np.zeros((users, size), dtype=np.float32),
        np.zeros((users, size), dtype=np.float32),
        np.zeros((users, size), dtype=np.int32),
        np.zeros((users, MARKS), dtype=np.int64),
        np.zeros(users, dtype=np.int64),
    )


@njit(cache=True)
def found(of: Histories, user: int, item: int) -> int:
    """Where an item is in the user's row; -1 if it is not there."""
    row = of.items[user]
    for at in range(of.marks[user, SIZE] - 1, -1, -1):
        if row[at] == item:
            return at
    return -1


@njit(cache=True)
def in_basket(of: Histories, user: int, time: int) -> int:
    """How many distinct items the user's basket of that time holds already."""
    if of.marks[user, EVENTS] == 0 or of.times[user] != time:
        return 0
    return int(of.marks[user, HELD])


@njit(cache=True)
def meet(of: Histories, user: int, item: int, time: int) -> None:
    """Takes an event into the user's row; the item that was met longest ago leaves a full one."""
    items, counts, rates, baskets = of.items[user], of.counts[user], of.rates[user], of.baskets[user]
    marks = of.marks[user]
    if in_basket(of, user, time) == 0:
        marks[BASKET] += 1
        marks[HELD] = 0
    of.times[user] = time
    marks[EVENTS] += 1
    start, count, rate = found(of, user, item), np.float32(1.0), np.float32(1.0)
    if start >= 0:
        count += counts[start]
        rate += np.float32(rates[start] * FADE ** (marks[BASKET] - baskets[start]))
    if start < 0 or baskets[start] < marks[BASKET]:
        marks[HELD] += 1
    if start < 0:
        start = 0
        if marks[SIZE] < len(items):
            start = marks[SIZE]
            marks[SIZE] += 1
    end = marks[SIZE] - 1
    for to in range(start, end):
        items[to], counts[to], rates[to], baskets[to] = items[to + 1], counts[to + 1], rates[to + 1], baskets[to + 1]
    items[end], counts[end], rates[end], baskets[end] = item, count, rate, marks[BASKET]
