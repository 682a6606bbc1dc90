"""A stack of raters, whose weights are learned by recursive least squares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

from udfs.jit import njit
from udfs.models import Array
from udfs.ratings import KalmanMF, Rater, TasteFilter
from udfs.recommenders import grown

_PAUSE: Final = 600_000  # milliseconds after which a user's ratings are another session
# Columns of what is kept of a user and of an item, besides the raters' rows.
COUNT, RECENT, SLOW, SESSION = range(4)
_CONTEXTS: Final = 9


class Residuals(NamedTuple):
    """What the raters' mean did not explain, by number.

    Attributes
    ----------
    of_users
        Counts, and running means of residuals: of late, of longer, and in the session; shape ``(users, 4)``.
    times
        When the user's last rating was, int64, shape ``(users,)``.
    of_all
        The running mean of all residuals, shape ``(1,)``.
    """

    of_users: Array
    times: Array
    of_all: Array


@njit(cache=True)
def _stack_features(
    predictions: Array, user: int, item: int, time: int, of: Residuals, of_items: Array, out: Array
) -> float:
    """Features of an event into ``out``; returns the mean of predictions, which they correct."""
    n = len(predictions)
    mean = 0.0
    for k in range(n):
        mean += predictions[k] / n
    seen = of.of_users[user, COUNT] if user >= 0 else 0.0
    known = of_items[item, COUNT] if item >= 0 else 0.0
    much, many = np.log1p(seen) / 4.0, np.log1p(known) / 4.0
    for k in range(n):
        apart = predictions[k] - mean
        out[k], out[n + k], out[2 * n + k] = apart, apart * much, apart * many
    session = seen > 0.0 and time - of.times[user] < _PAUSE
    at = 3 * n
    out[at] = 1.0
    out[at + 1], out[at + 2] = much, many
    out[at + 3] = of.of_users[user, RECENT] if user >= 0 else 0.0
    out[at + 4] = of_items[item, RECENT] if item >= 0 else 0.0
    out[at + 5] = of.of_users[user, SESSION] if session else 0.0
    out[at + 6] = 1.0 if session else 0.0
    out[at + 7] = of.of_users[user, SLOW] if user >= 0 else 0.0
    out[at + 8] = of.of_all[0]
    return mean


@njit(cache=True)
def _learn_stack(
    users: Array, items: Array, ys: Array, times: Array, predictions: Array, of: Residuals, of_items: Array,
    weights: Array, inverse: Array, forget: float, stacked: Array,
) -> None:  # fmt: skip
    width = len(weights)
    x, gains = np.empty(width), np.empty(width)
    for event in range(len(ys)):
        user, item, time = users[event], items[event], times[event]
        mean = _stack_features(predictions[event], user, item, time, of, of_items, x)
        prediction = mean
        for a in range(width):
            prediction += weights[a] * x[a]
        stacked[event] = prediction
        total = forget
        for a in range(width):
            gains[a] = 0.0
            for b in range(width):
                gains[a] += inverse[a, b] * x[b]
            total += gains[a] * x[a]
        error = ys[event] - prediction
        for a in range(width):
            weights[a] += gains[a] * error / total
            for b in range(a + 1):
                # Both halves get the same number, so the matrix stays symmetric however long the stream is.
                inverse[a, b] = (inverse[a, b] - gains[a] * gains[b] / total) / forget
                inverse[b, a] = inverse[a, b]
        residual = ys[event] - mean
        row, of_item = of.of_users[user], of_items[item]
        if row[COUNT] == 0.0 or time - of.times[user] >= _PAUSE:
            row[SESSION] = 0.0
        row[COUNT] += 1.0
        row[RECENT] += 0.1 * (residual - row[RECENT])
        row[SLOW] += 0.02 * (residual - row[SLOW])
        of.of_all[0] += 0.01 * (residual - of.of_all[0])
        row[SESSION] += 0.25 * (residual - row[SESSION])
        of_item[COUNT] += 1.0
        of_item[RECENT] += 0.1 * (residual - of_item[RECENT])
        of.times[user] = time


class Stack(Rater):
    r"""Several raters, and how to weigh them, learned by recursive least squares with forgetting.

    The prediction is the mean of the raters' and a correction $w \cdot x$: x holds how far each is from the mean, alone
    and times how much is known of the user and of the item, and how far the mean was off of late for the user, in the
    session and for the item. With $g = P x$ and $S = \lambda + x \cdot g$: $w \leftarrow w + g e / S$ and
    $P \leftarrow (P - g g' / S) / \lambda$.

    Parameters
    ----------
    raters
        They are learned.
    forget
        $\lambda$.
    prior
        The variance of a weight to begin with.

    References
    ----------
    Haykin, "Adaptive filter theory", 2002, for recursive least squares; Wolpert, "Stacked generalization", 1992; Sill,
    Takács, Mackey and Lin, "Feature-weighted linear stacking", 2009, for weights by context.

    Examples
    --------
    >>> model = Stack([KalmanMF(n_factors=2), TasteFilter()])
    >>> for time in range(20):
    ...     model.learn_one("ann", "tea", 5.0, time)
    ...     model.learn_one("bob", "tea", 1.0, time)
    >>> round(model.predict_one("ann", "tea", 20)), round(model.predict_one("eve", "rum", 20))
    (5, 3)
    """

    def __init__(self, raters: Sequence[Rater] | None = None, forget: float = 0.9999, prior: float = 0.02) -> None:
        super().__init__()
        self.raters = list(raters) if raters is not None else default_raters()
        self.forget, self.prior = forget, prior
        for rater in self.raters:
            rater.users, rater.items = self.users, self.items
        self.residuals = Residuals(np.zeros((0, 4)), np.zeros(0, dtype=np.int64), np.zeros(1))
        self.of_items = np.zeros((0, 2))
        width = 3 * len(self.raters) + _CONTEXTS
        self.weights = np.zeros(width)
        self.inverse = np.eye(width) * prior
        self.predictions = np.zeros((0, len(self.raters)))  # of the last call, by each rater

    def fit(self) -> None:
        for rater in self.raters:
            rater.fit()
        of, users = self.residuals, len(self.users.names)
        self.residuals = of._replace(of_users=grown(of.of_users, users), times=grown(of.times, users))
        self.of_items = grown(self.of_items, len(self.items.names))

    def learn_numbers(self, users: Array, items: Array, ys: Array, times: Array) -> Array:
        columns = [rater.learn_numbers(users, items, ys, times) for rater in self.raters]
        self.predictions = np.ascontiguousarray(np.stack(columns, axis=1))
        stacked = np.empty(len(ys))
        _learn_stack(
            users, items, ys, times, self.predictions, self.residuals, self.of_items, self.weights, self.inverse,
            self.forget, stacked,
        )  # fmt: skip
        return stacked

    def predict(self, user: int, item: int, time: int) -> float:
        predictions = np.array([rater.predict(user, item, time) for rater in self.raters])
        x = np.empty(len(self.weights))
        mean = _stack_features(predictions, user, item, time, self.residuals, self.of_items, x)
        return float(mean + self.weights @ x)


def default_raters() -> list[Rater]:
    """Filters that differ in how much they allow for, and how fast they move."""
    return [
        KalmanMF(8),
        KalmanMF(2, 0.65, noise=(0.03, 3e-5, 6e-5, 3e-5)),
        KalmanMF(1, priors=(0.18, 0.01, 0.4, 0.01), noise=(0.001, 0.0, 6e-5, 0.0)),
        KalmanMF(16, 0.65, spread=0.1, seed=1),
        TasteFilter(),
        TasteFilter(noise=0.02),
    ]
