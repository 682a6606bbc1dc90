"""Links from an item to others: a bounded row an item, which keeps the strongest.

A row fades each time its item is met, and a full one gives the place of its weakest link to a new one: a streaming
top-K with decay. What was ever added to a row is summed, faded alike, and so counts what was lost.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from udfs.history import SIZE, Histories
from udfs.jit import njit
from udfs.models import Array


class Links(NamedTuple):
    """Rows of items, by number.

    Attributes
    ----------
    items
        Numbers of the linked items, int32, shape ``(items, k)``; -1 where a place is free, and free places come last.
    weights
        Of the links, float32, of the same shape.
    sums
        Of all that was added to a row, faded, shape ``(items,)``.
    """

    items: Array
    weights: Array
    sums: Array


def links(rows: int, k: int) -> Links:
    """Empty rows with places for ``k`` links."""
    return Links(np.full((rows, k), -1, dtype=np.int32), np.zeros((rows, k), dtype=np.float32), np.zeros(rows))


@njit(cache=True)
def strengthen(of: Links, row: int, item: int, amount: float) -> None:
    """Adds to the link from ``row`` to ``item``."""
    items, weights = of.items[row], of.weights[row]
    of.sums[row] += amount
    for at in range(len(items)):
        if items[at] == item:
            weights[at] += np.float32(amount)
            return
        if items[at] < 0:
            items[at], weights[at] = item, amount
            return
    weakest = 0
    for at in range(1, len(weights)):  # NumPy's argmin looks out for what is no number, which takes longer
        if weights[at] < weights[weakest]:
            weakest = at
    items[weakest], weights[weakest] = item, amount


@njit(cache=True)
def fade(of: Links, row: int, by: float) -> None:
    """What is kept of a row from now on."""
    of.sums[row] *= by
    weights, kept = of.weights[row], np.float32(by)
    for at in range(len(weights)):
        weights[at] *= kept


@njit(cache=True)
def follow(of: Links, met: Histories, user: int, item: int, window: int, reverse: float, keep: float) -> None:
    """The item follows the user's last ``window`` others: from one at distance d a link of ``1 / d``, and back to it
    one of ``reverse / d``."""
    size = met.marks[user, SIZE]
    fade(of, item, keep)
    for back in range(min(size, window)):
        other = met.items[user, size - 1 - back]
        if other != item:
            strengthen(of, other, item, 1.0 / (back + 1))
            if reverse > 0.0:
                strengthen(of, item, other, reverse / (back + 1))


@njit(cache=True)
def accompany(of: Links, met: Histories, user: int, item: int, window: int, keep: float) -> None:
    """The item and each of the user's last ``window`` others get a link of 1 to each other."""
    size = met.marks[user, SIZE]
    fade(of, item, keep)
    for back in range(min(size, window)):
        other = met.items[user, size - 1 - back]
        if other != item:
            strengthen(of, other, item, 1.0)
            strengthen(of, item, other, 1.0)


@njit(cache=True)
def add_row(of: Links, row: int, weight: float, alpha: float, marks: Array, found: Array, n: int, sums: Array) -> int:
    """Adds ``weight`` times a row, normalised by its sum, to ``sums``, and notes which items were found.

    Parameters
    ----------
    marks
        Of each item, where it is among those found; -1 if it is not. Written.
    found
        The items found, of which there are ``n``. Written.
    sums
        Of those found, shape ``(items,)``. Written.

    Returns
    -------
    How many items are found now. A new one has the sum 0 before.
    """
    if of.sums[row] <= 0.0:
        return n
    share = weight / of.sums[row] ** alpha
    items, weights = of.items[row], of.weights[row]
    for at in range(len(items)):
        item = items[at]
        if item < 0:
            break
        if marks[item] < 0:
            marks[item], found[n] = n, item
            n += 1
        sums[marks[item]] += share * weights[at]
    return n


@njit(cache=True)
def related(of: Links, met: Histories, user: int, recent: int, gamma: float, alpha: float, out: Array) -> None:
    """The sum over the user's last items j at distance d of ``gamma ** d * link(j, i) / sum(j) ** alpha`` for all items
    i, into ``out``."""
    out[:] = 0.0
    marks = np.arange(len(out))  # all are found, each in its own place
    size, weight = met.marks[user, SIZE], 1.0
    for back in range(min(size, recent)):
        add_row(of, met.items[user, size - 1 - back], weight, alpha, marks, marks, len(out), out)
        weight *= gamma
