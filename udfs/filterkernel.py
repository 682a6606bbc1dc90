"""Filters of ratings and their stack, learned event by event over rows that hold all of a user or an item."""

from __future__ import annotations

from typing import Final

import numpy as np

from udfs.jit import njit
from udfs.models import Array
from udfs.ratings import (
    FIGURES,
    MEAN,
    add_up,
    filter_factors,
    filter_tastes,
    item_features,
    observe,
    user_features,
    variance_of,
)
from udfs.stack import LAST, OF_ITEM, OF_USER, SLOWLY, corrected, note_residual, stack_features, step

LARGEST: Final = float(np.finfo(np.float32).max)
KNOWN, SEEN = 4, 3  # features of an item and of a user
_LOW: Final = 2.0**21  # milliseconds: a time is two whole numbers that float32 holds


@njit(cache=True, nogil=True)  # what was learned before is written meanwhile
def learn(
    users: Array, items: Array, ys: Array, times: Array, user_rows: Array, item_rows: Array, user_heirs: Array,
    item_heirs: Array, user_known: Array, item_known: Array, means: tuple[Array, Array],
    bounds: tuple[Array, Array], max_weight: float, factors: Array, factor_options: Array, tastes: Array,
    taste_options: Array, figures: Array, drift: Array, weights: Array, inverse: Array, forget: float,
    predictions: Array, learned: Array,
) -> None:  # fmt: skip
    """Learns events in their order; ``learned`` says which.

    A row is taken into doubles, and put back when all of the event is sound: what is stored is what the next event
    begins with, whatever the batch.
    """
    user, item = np.empty(user_rows.shape[1]), np.empty(item_rows.shape[1])
    n, t = len(factors), len(tastes)
    stacked = len(weights) > 0
    of_raters = np.empty(n + t)
    x, gains, scratch = np.empty(len(weights)), np.empty(len(weights)), np.empty(FIGURES)
    known, seen, user_gains, item_gains = np.empty(KNOWN), np.empty(SEEN), np.empty(KNOWN), np.empty(SEEN)
    # What all tastes share lies behind them, and what the stack keeps behind that.
    user_last, item_last = len(user) - OF_USER - 1, len(item) - OF_ITEM
    if not stacked:
        user_last, item_last = len(user), len(item)
    for event in range(len(ys)):
        at, of, y, time = users[event], items[event], ys[event], float(times[event])
        learned[event] = False
        if not abs(y) <= max_weight:
            continue
        _take(user_rows, at, user_heirs[at], user_known, means[0], user)
        _take(item_rows, of, item_heirs[of], item_known, means[1], item)
        scratch[:] = figures
        mean, unit = figures[MEAN], variance_of(figures)
        for k in range(n):
            a, b, width = factors[k]
            of_raters[k] = filter_factors(
                user[a : a + width], user[a + width : a + 2 * width], item[b : b + width],
                item[b + width : b + 2 * width], y, mean, unit, factor_options[k],
            )  # fmt: skip
        if t:
            user_sums, item_sums = user[user_last - 2 : user_last], item[item_last - 2 : item_last]
            item_features(item_sums, figures, known)
            user_features(user_sums, seen)
            for k in range(t):
                a, b, _ = tastes[k]
                of_raters[n + k] = filter_tastes(
                    user[a : a + KNOWN], user[a + KNOWN : a + KNOWN + KNOWN * KNOWN].reshape(KNOWN, KNOWN),
                    item[b : b + SEEN], item[b + SEEN : b + SEEN + SEEN * SEEN].reshape(SEEN, SEEN), seen, known,
                    y, mean, unit, taste_options[k], user_gains, item_gains,
                )  # fmt: skip
            add_up(user_sums, item_sums, seen, known, y, scratch)
        else:
            observe(scratch, y)
        prediction, moved = of_raters[0], drift[0]
        if stacked:
            of_user, of_item = user[user_last : user_last + OF_USER], item[item_last:]
            of_user[LAST] = of_user[LAST] * _LOW + user[-1]
            average = stack_features(of_raters, of_user, of_item, drift[0], time, x)
            prediction = corrected(average, weights, x)
            note_residual(of_user, of_item, y - average, time)
            moved += SLOWLY * (y - average - moved)
            of_user[LAST] = np.floor(time / _LOW)
            user[-1] = time - of_user[LAST] * _LOW
        # A comparison with NaN is false, which is what is wanted here.
        if not (abs(prediction) <= LARGEST and abs(moved) <= max_weight):
            continue
        if not (_sound(user, bounds[0]) and _sound(item, bounds[1])):
            continue
        if stacked and not step(weights, inverse, x, y - prediction, forget, gains, max_weight):
            continue
        user_rows[at, :], item_rows[of, :] = user, item
        figures[:], drift[0] = scratch, moved
        user_known[at] = item_known[of] = learned[event] = True
        predictions[event] = prediction


@njit(cache=True)
def _take(rows: Array, at: int, heir: int, known: Array, means: Array, out: Array) -> None:
    """A row as doubles; of one that is new, with what it inherits."""
    out[:] = rows[at]
    if heir >= 0 and not known[at] and known[heir]:
        for column in range(len(out)):
            if means[column]:
                out[column] = rows[heir, column]


@njit(cache=True)
def _sound(row: Array, bounds: Array) -> bool:
    sound = True
    for column in range(len(row)):
        sound &= abs(row[column]) <= bounds[column]
    return sound
