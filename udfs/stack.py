"""A stack of raters, whose weights are learned by recursive least squares."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np

from udfs.jit import njit
from udfs.models import Array
from udfs.ratings import KalmanMF, Rater, TasteFilter
from udfs.recommenders import grown

_PAUSE: Final = 600_000  # milliseconds after which a user's ratings are another session
_MOST: Final = 1.0  # the variance of a weight
# What is kept of a user besides the raters' rows: a count, running means of what the raters' mean did not explain (of
# late, of longer, and in the session), and when the last rating was. Of an item the first two.
COUNT, RECENT, SLOW, SESSION, LAST = range(5)
OF_USER, OF_ITEM = 5, 2
# Features besides what the raters say, by their places behind these.
BASE, MUCH, MANY, USER_RECENT, ITEM_RECENT, USER_SESSION, IN_SESSION, USER_SLOW, DRIFT = range(9)
CONTEXTS: Final = 9
SLOWLY: Final = 0.01


@njit(cache=True)
def stack_features(predictions: Array, user: Array, item: Array, drift: float, time: float, out: Array) -> float:
    """Features of an event into ``out``; returns the mean of predictions, which they correct."""
    more = len(predictions) - 1
    much, many = np.log1p(user[COUNT]) / 4.0, np.log1p(item[COUNT]) / 4.0
    total = predictions[0]
    for k in range(more):
        # What :func:`contrasts` says, which costs less so.
        apart = (total - (k + 1) * predictions[k + 1]) / math.sqrt((k + 1.0) * (k + 2.0))
        total += predictions[k + 1]
        out[k], out[more + k], out[2 * more + k] = apart, apart * much, apart * many
    session = user[COUNT] > 0.0 and time - user[LAST] < _PAUSE
    at = 3 * more
    out[at + BASE] = 1.0
    out[at + MUCH], out[at + MANY] = much, many
    out[at + USER_RECENT] = user[RECENT]
    out[at + ITEM_RECENT] = item[RECENT]
    out[at + USER_SESSION] = user[SESSION] if session else 0.0
    out[at + IN_SESSION] = 1.0 if session else 0.0
    out[at + USER_SLOW] = user[SLOW]
    out[at + DRIFT] = drift
    return float(total / len(predictions))


def contrasts(n: int) -> Array:
    """How n numbers differ: Helmert's orthonormal contrasts, each number from the mean of those before, shape
    ``(n - 1, n)``. In how far each is from the mean there is one too many, whose weight nothing would hold.

    >>> contrasts(3).round(2).tolist()
    [[0.71, -0.71, 0.0], [0.41, 0.41, -0.82]]
    """
    rows = [[1.0] * k + [-float(k)] + [0.0] * (n - k - 1) for k in range(1, n)]
    return np.array([np.array(row) / np.linalg.norm(row) for row in rows]).reshape(n - 1, n)


@njit(cache=True)
def note_residual(user: Array, item: Array, residual: float, time: float) -> None:
    """Takes what the raters' mean did not explain into what is kept of the user and the item."""
    if user[COUNT] == 0.0 or time - user[LAST] >= _PAUSE:
        user[SESSION] = 0.0
    user[COUNT] += 1.0
    user[RECENT] += 0.1 * (residual - user[RECENT])
    user[SLOW] += 0.02 * (residual - user[SLOW])
    user[SESSION] += 0.25 * (residual - user[SESSION])
    user[LAST] = time
    item[COUNT] += 1.0
    item[RECENT] += 0.1 * (residual - item[RECENT])


@njit(cache=True)
def step(weights: Array, inverse: Array, x: Array, error: float, forget: float, gains: Array, bound: float) -> bool:
    """A step of recursive least squares; nothing, and False, if it would take a weight beyond ``bound``.

    A weight whose feature does not occur is forgotten until its variance is ``_MOST``, and no further.
    """
    width, total = len(weights), forget
    gains[:] = 0.0
    for b in range(width):
        for a in range(width):  # of a symmetric matrix, so that what is summed up side by side lies side by side
            gains[a] += inverse[b, a] * x[b]
    for a in range(width):
        total += gains[a] * x[a]
    for a in range(width):
        if not abs(weights[a] + gains[a] * (error / total)) <= bound:
            return False
    root = math.sqrt(total)
    for a in range(width):
        weights[a] += gains[a] * (error / total)
        gains[a] /= root
    for a in range(width):
        for b in range(width):
            # A product of two is the same either way, so the matrix stays symmetric however long the stream is.
            inverse[a, b] = (inverse[a, b] - gains[a] * gains[b]) * (1.0 / forget)
    for a in range(width):
        if inverse[a, a] > _MOST:
            scale = math.sqrt(_MOST / inverse[a, a])
            for b in range(width):
                inverse[a, b] *= scale
                inverse[b, a] = inverse[a, b]
            inverse[a, a] = _MOST
    return True


@njit(cache=True)
def _learn_stack(
    users: Array, items: Array, ys: Array, times: Array, predictions: Array, of_users: Array, of_items: Array,
    drift: Array, weights: Array, inverse: Array, forget: float, stacked: Array,
) -> None:  # fmt: skip
    x, gains = np.empty(len(weights)), np.empty(len(weights))
    for event in range(len(ys)):
        user, item, time = of_users[users[event]], of_items[items[event]], float(times[event])
        mean = stack_features(predictions[event], user, item, drift[0], time, x)
        stacked[event] = corrected(mean, weights, x)
        step(weights, inverse, x, ys[event] - stacked[event], forget, gains, np.inf)
        residual = ys[event] - mean
        note_residual(user, item, residual, time)
        drift[0] += SLOWLY * (residual - drift[0])


@njit(cache=True)
def corrected(mean: float, weights: Array, x: Array) -> float:
    prediction = mean
    for a in range(len(weights)):
        prediction += weights[a] * x[a]
    return float(prediction)


class Stack(Rater):
    r"""Several raters, and how to weigh them, learned by recursive least squares with forgetting.

    The prediction is the mean of the raters' and a correction $w \cdot x$: x holds how they differ, alone and times
    how much is known of the user and of the item, and how far the mean was off of late for the user, in the session and
    for the item. With $g = P x$ and $S = \lambda + x \cdot g$: $w \leftarrow w + g e / S$ and
    $P \leftarrow (P - g g' / S) / \lambda$. No variance in P grows beyond 1: what does not occur is not forgotten
    without end.

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
        self.of_users, self.of_items = np.zeros((0, OF_USER)), np.zeros((0, OF_ITEM))
        self.drift = np.zeros(1)
        width = 3 * (len(self.raters) - 1) + CONTEXTS
        self.weights = np.zeros(width)
        self.inverse = np.eye(width) * prior
        self.predictions = np.zeros((0, len(self.raters)))  # of the last call, by each rater

    def fit(self) -> None:
        for rater in self.raters:
            rater.fit()
        self.of_users = grown(self.of_users, len(self.users.names))
        self.of_items = grown(self.of_items, len(self.items.names))

    def learn_numbers(self, users: Array, items: Array, ys: Array, times: Array) -> Array:
        columns = [rater.learn_numbers(users, items, ys, times) for rater in self.raters]
        self.predictions = np.ascontiguousarray(np.stack(columns, axis=1))
        stacked = np.empty(len(ys))
        _learn_stack(
            users, items, ys, times, self.predictions, self.of_users, self.of_items, self.drift, self.weights,
            self.inverse, self.forget, stacked,
        )  # fmt: skip
        return stacked

    def predict(self, user: int, item: int, time: int) -> float:
        predictions = np.array([rater.predict(user, item, time) for rater in self.raters])
        x = np.empty(len(self.weights))
        of_user = self.of_users[user] if user >= 0 else np.zeros(OF_USER)
        of_item = self.of_items[item] if item >= 0 else np.zeros(OF_ITEM)
        mean = stack_features(predictions, of_user, of_item, float(self.drift[0]), time, x)
        return corrected(mean, self.weights, x)


def default_raters(n_factors: int = 16, noise: float = 1.0, seed: int = 0) -> list[Rater]:
    """Filters that differ in how much they allow for, and how fast they move.

    Parameters
    ----------
    n_factors
        Of the longest of them.
    noise
        What their own is multiplied by.
    """

    def scaled(*of: float) -> tuple[float, float, float, float]:
        user_bias, user, item_bias, item = (noise * x for x in of)
        return user_bias, user, item_bias, item

    return [
        KalmanMF(8, noise=scaled(0.005, 3e-5, 6e-5, 3e-5), seed=seed),
        KalmanMF(2, 0.65, noise=scaled(0.03, 3e-5, 6e-5, 3e-5), seed=seed),
        KalmanMF(1, priors=(0.18, 0.01, 0.4, 0.01), noise=scaled(0.001, 0.0, 6e-5, 0.0), seed=seed),
        KalmanMF(n_factors, 0.65, noise=scaled(0.005, 3e-5, 6e-5, 3e-5), spread=0.1, seed=seed + 1),
        TasteFilter(noise=0.003 * noise),
        TasteFilter(noise=0.02 * noise),
    ]
