"""What is popular of late, and what a user comes back to."""

from __future__ import annotations

import math
from typing import Final, Literal, NamedTuple

import numpy as np

from serving.blend import FADE
from udfs.history import BASKET, SIZE, Histories, histories, meet
from udfs.jit import njit
from udfs.models import Array
from udfs.recommenders import Recommender, all_grown, grown

_BITS: Final = 332
_HIGH: Final = 2.0**_BITS  # a power of two, so that dividing by it loses nothing
_GONE: Final = 6  # after so many divisions by it nothing is left of a weight


class Popularity(NamedTuple):
    """Faded counts of items at several half-lives.

    Attributes
    ----------
    weights
        By half-life and item, shape ``(half_lives, items)``. Later events weigh more, instead of earlier ones less, so
        an event touches one item.
    scales
        What the next event weighs, the sum of all weights, and how often all were divided so that they stay numbers,
        shape ``(half_lives, 3)``.
    growths
        By how much an event weighs more than the one before, shape ``(half_lives,)``.
    """

    weights: Array
    scales: Array
    growths: Array


def popularity(half_lives: tuple[float, ...]) -> Popularity:
    """Empty counts; half-lives are in events."""
    scales = np.zeros((len(half_lives), 3))
    scales[:, 0] = 1.0
    return Popularity(np.zeros((len(half_lives), 0)), scales, np.array([2.0 ** (1.0 / of) for of in half_lives]))


def popularity_grown(of: Popularity, items: int) -> Popularity:
    """The same with places for so many items."""
    return of._replace(weights=np.ascontiguousarray(grown(of.weights.T, items).T))


@njit(cache=True)
def popularise(of: Popularity, item: int) -> None:
    """Counts an event."""
    weights, scales = of.weights, of.scales
    for at in range(len(scales)):
        weights[at, item] += scales[at, 0]
        scales[at, 1] += scales[at, 0]
        scales[at, 0] *= of.growths[at]
        if scales[at, 0] > _HIGH:
            _divide(of, at)


@njit(cache=True)
def _divide(of: Popularity, at: int) -> None:
    """Divides what one half-life has counted."""
    weights, scales = of.weights, of.scales
    for other in range(weights.shape[1]):
        weights[at, other] /= _HIGH
    scales[at, 0] /= _HIGH
    scales[at, 1] /= _HIGH
    scales[at, 2] += 1.0


def divided(weights: Array, times: Array) -> Array:
    """Weights as they are after more divisions, bit for bit.

    Parameters
    ----------
    weights
        As they were, shape ``(items, half_lives)``.
    times
        How many divisions there were since, of the same shape.

    >>> divided(np.array([[2.0**340, 3.0]]), np.array([[1, 0]])).tolist()
    [[256.0, 3.0]]
    """
    for done in range(min(int(times.max(initial=0)), _GONE)):
        weights = np.where(times > done, weights / _HIGH, weights)
    return weights


def logarithms(weights: Array, times: Array) -> Array:
    """The binary logarithms of weights that were divided so often: what they are is told apart for ever.

    >>> logarithms(np.array([8.0]), np.array([1.0])).tolist()
    [335.0]
    """
    with np.errstate(divide="ignore"):
        found: Array = np.log2(weights) + math.log2(_HIGH) * times
    return found


@njit(cache=True)
def _learn_popularity(items: Array, of: Popularity, counts: Array) -> None:
    for event in range(len(items)):
        popularise(of, items[event])
        counts[items[event]] += 1.0


@njit(cache=True)
def _learn_in_time(items: Array, times: Array, newest: Array, half_life: float, of: Popularity, counts: Array) -> None:
    """As :func:`_learn_popularity`, but what an event weighs grows with time; ``newest`` is the newest time so far."""
    for event in range(len(items)):
        item, passed = items[event], 0.0
        if newest[0] >= 0:
            passed = (times[event] - newest[0]) / half_life
        if passed > 0.0:
            for _ in range(min(int(passed // _BITS), _GONE)):
                of.scales[0, 0] *= _HIGH
                _divide(of, 0)
            of.scales[0, 0] *= 2.0 ** (passed % _BITS)
            if of.scales[0, 0] > _HIGH:
                _divide(of, 0)
        weight = of.scales[0, 0] * 2.0 ** min(passed, 0.0)  # what comes late weighs as if it had come in time
        of.weights[0, item] += weight
        of.scales[0, 1] += weight
        counts[item] += 1.0
        newest[0] = max(newest[0], times[event])


@njit(cache=True)
def _learn_repeats(users: Array, items: Array, times: Array, met: Histories, of: Popularity, counts: Array) -> None:
    for event in range(len(users)):
        popularise(of, items[event])
        meet(met, users[event], items[event], times[event])
        counts[items[event]] += 1.0


class DecayedPopularity(Recommender):
    r"""The share of an item in the last events: $\sum_e 2^{-a_e / h}$ over its events, which were $a_e$ events or
    milliseconds ago, divided by the same sum over all.

    Parameters
    ----------
    half_life
        h; infinite for plain popularity.
    unit
        Of h and of ages: ``"events"``, whatever time passes between them, or ``"ms"``, whatever happens meanwhile.

    References
    ----------
    Cormode, Shkapenyuk, Srivastava and Xu, "Forward decay: a practical time decay model for streaming systems", 2009.

    Examples
    --------
    >>> model = DecayedPopularity(half_life=2)
    >>> model.learn(["ann"] * 5, ["tea", "tea", "rum", "rum", "tea"], np.arange(5))
    >>> model.rank("eve"), round(model.score("eve", "rum"), 3)
    (['tea', 'rum'], 0.429)
    >>> model = DecayedPopularity(half_life=60_000, unit="ms")
    >>> model.learn(["ann"] * 3, ["tea", "tea", "rum"], np.array([0, 0, 120_000]))
    >>> model.rank("eve"), round(model.score("eve", "rum"), 3)
    (['rum', 'tea'], 0.667)
    """

    def __init__(self, half_life: float = 10_000.0, unit: Literal["events", "ms"] = "events") -> None:
        super().__init__()
        self.half_life, self.unit = half_life, unit
        self.popularity = popularity((half_life,))
        self.newest = np.full(1, -1, dtype=np.int64)

    def fit(self) -> None:
        super().fit()
        self.popularity = popularity_grown(self.popularity, len(self.items.names))

    def learn_numbers(self, users: Array, items: Array, times: Array) -> None:
        if self.unit == "events":
            _learn_popularity(items, self.popularity, self.counts)
        else:
            _learn_in_time(items, times, self.newest, self.half_life, self.popularity, self.counts)

    def scores(self, user: int) -> Array:
        shares: Array = self.popularity.weights[0, : len(self.items.names)] / max(self.popularity.scales[0, 1], 1e-300)
        return shares


class Repeats(DecayedPopularity):
    r"""What a user comes back to: 1, and how often the user met the item, each time weighing $0.9^b$ after b of the
    user's baskets; to which the item's decayed popularity is added, so that other items follow.

    Parameters
    ----------
    seen
        How many items a user's row keeps.

    References
    ----------
    Hu, He, Gao and Zhang, "Modeling personalized item frequency information for next-basket recommendation", 2020,
    whose personalised item frequencies fade alike.

    Examples
    --------
    >>> model = Repeats()
    >>> model.learn(["ann", "ann", "bob"], ["tea", "tea", "rum"], np.array([1, 2, 3]))
    >>> model.rank("ann"), round(model.score("ann", "tea"), 3)
    (['tea', 'rum'], 3.377)
    """

    def __init__(self, half_life: float = 10_000.0, seen: int = 100) -> None:
        super().__init__(half_life)
        self.seen = seen
        self.met = histories(0, seen)

    def fit(self) -> None:
        super().fit()
        self.met = all_grown(self.met, len(self.users.names))

    def learn_numbers(self, users: Array, items: Array, times: Array) -> None:
        _learn_repeats(users, items, times, self.met, self.popularity, self.counts)

    def scores(self, user: int) -> Array:
        scores = super().scores(user)  # below 1, as are shares
        if user >= 0:
            size, basket = (int(self.met.marks[user, at]) for at in (SIZE, BASKET))
            since = basket + 1 - self.met.baskets[user, :size]
            scores[self.met.items[user, :size]] += self.met.rates[user, :size] * FADE**since + 1.0
        return scores
