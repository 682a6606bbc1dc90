"""Matrix factorisation of implicit feedback as it was published: the references that others are compared to."""

from __future__ import annotations

import math
from abc import abstractmethod

import numpy as np

from udfs.embeddings import draw, initial
from udfs.jit import njit
from udfs.models import Array
from udfs.recommenders import Recommender, grown


@njit(cache=True)
def _towards(user: Array, item: Array, target: float, rate: float, l2: float, moves_item: bool) -> None:
    """One step of stochastic gradient descent on the squared error of a product of two vectors."""
    product = 0.0
    for f in range(len(user)):
        product += user[f] * item[f]
    error = target - product
    for f in range(len(user)):
        of_user, of_item = user[f], item[f]
        user[f] += rate * (error * of_item - l2 * of_user)
        if moves_item:
            item[f] += rate * (error * of_user - l2 * of_item)


@njit(cache=True)
def _learn_isgd(
    users: Array, items: Array, user_vectors: Array, item_vectors: Array, counts: Array, rate: float, l2: float
) -> None:
    for event in range(len(users)):
        _towards(user_vectors[users[event]], item_vectors[items[event]], 1.0, rate, l2, True)
        counts[items[event]] += 1.0


@njit(cache=True)
def _learn_raisgd(
    users: Array, items: Array, user_vectors: Array, item_vectors: Array, counts: Array, rate: float, l2: float,
    negatives: int, older: Array, newer: Array, ends: Array,
) -> None:  # fmt: skip
    for event in range(len(users)):
        user, item = user_vectors[users[event]], items[event]
        # The negatives are the items that occurred longest ago; each moves to the end, so the next are others.
        first = ends[0]
        for drawn in range(negatives):
            oldest = ends[0]
            if oldest < 0 or (drawn and oldest == first):  # there are not so many
                break
            if oldest != item:
                _towards(user, item_vectors[oldest], 0.0, rate, l2, False)
            _move_last(oldest, older, newer, ends)
        _towards(user, item_vectors[item], 1.0, rate, l2, True)
        _move_last(item, older, newer, ends)
        counts[item] += 1.0


@njit(cache=True)
def _move_last(item: int, older: Array, newer: Array, ends: Array) -> None:
    """Makes an item the newest of a list that is linked both ways; -1 is no item, -2 one that is not in the list."""
    if ends[1] == item:
        return
    if older[item] != -2:
        before, after = older[item], newer[item]
        if before >= 0:
            newer[before] = after
        else:
            ends[0] = after
        older[after] = before
    older[item], newer[item] = ends[1], -1
    if ends[1] >= 0:
        newer[ends[1]] = item
    else:
        ends[0] = item
    ends[1] = item


@njit(cache=True)
def _learn_bpr(
    users: Array, items: Array, user_vectors: Array, item_vectors: Array, biases: Array, counts: Array, rate: float,
    l2: float, negatives: int, known: Array, state: Array,
) -> None:  # fmt: skip
    for event in range(len(users)):
        user, item = user_vectors[users[event]], items[event]
        counts[item] += 1.0
        known[0] = max(known[0], item + 1)
        for _ in range(negatives):
            other = draw(state) % known[0]
            if other == item or counts[other] == 0.0:
                continue
            margin = biases[item] - biases[other]
            for f in range(len(user)):
                margin += user[f] * (item_vectors[item, f] - item_vectors[other, f])
            slope = 1.0 / (1.0 + math.exp(min(margin, 700.0)))
            for f in range(len(user)):
                of_user, mine, theirs = user[f], item_vectors[item, f], item_vectors[other, f]
                user[f] += rate * (slope * (mine - theirs) - l2 * of_user)
                item_vectors[item, f] += rate * (slope * of_user - l2 * mine)
                item_vectors[other, f] += rate * (-slope * of_user - l2 * theirs)
            biases[item] += rate * (slope - l2 * biases[item])
            biases[other] += rate * (-slope - l2 * biases[other])


class _Factors(Recommender):
    def __init__(self, n_factors: int, rate: float, l2: float, spread: float, seed: int) -> None:
        super().__init__()
        self.n_factors, self.rate, self.l2, self.spread, self.seed = n_factors, rate, l2, spread, seed
        self.user_vectors = np.zeros((0, n_factors))
        self.item_vectors = np.zeros((0, n_factors))
        self._begun = [0, 0]

    def fit(self) -> None:
        super().fit()
        for at, (ids, name) in enumerate(((self.users, "user_vectors"), (self.items, "item_vectors"))):
            table = grown(getattr(self, name), len(ids.names))
            fresh = ids.names[self._begun[at] :]
            table[self._begun[at] : len(ids.names)] = initial(fresh, self.n_factors, self.spread, self.seed + at)
            self._begun[at] = len(ids.names)
            setattr(self, name, table)

    def scores(self, user: int) -> Array:
        vectors = self.item_vectors[: len(self.items.names)]
        return self._of(vectors @ self.user_vectors[user] if user >= 0 else np.zeros(len(vectors)))

    @abstractmethod
    def _of(self, products: Array) -> Array: ...


class ISGD(_Factors):
    r"""Incremental matrix factorisation of positive feedback: one step on $(1 - p_u \cdot q_i)^2$ an event. Items are
    ranked by how near to 1 their product is.

    References
    ----------
    Vinagre, Jorge and Gama, "Fast incremental matrix factorization for recommendation with positive-only feedback",
    2014.

    Examples
    --------
    >>> model = ISGD()
    >>> for _ in range(200):
    ...     model.learn(["ann", "bob"], ["tea", "rum"], np.zeros(2))
    >>> 0.9 < model.score("ann", "tea") + 1.0 <= 1.0, model.rank("bob", k=1)
    (True, ['rum'])
    """

    def __init__(
        self, n_factors: int = 16, rate: float = 0.05, l2: float = 0.01, spread: float = 0.1, seed: int = 0
    ) -> None:
        super().__init__(n_factors, rate, l2, spread, seed)

    def learn_numbers(self, users: Array, items: Array, times: Array) -> None:
        _learn_isgd(users, items, self.user_vectors, self.item_vectors, self.counts, self.rate, self.l2)

    def _of(self, products: Array) -> Array:
        nearness: Array = -np.abs(1.0 - products)
        return nearness


class RAISGD(ISGD):
    r"""ISGD with recency-based negatives: before an event is learned, its user's vector takes a step on
    $(0 - p_u \cdot q_j)^2$ for each of the ``negatives`` items j that occurred longest ago.

    References
    ----------
    Vinagre, Jorge and Gama, "Collaborative filtering with recency-based negative feedback", 2015.

    Examples
    --------
    >>> model = RAISGD(negatives=1)
    >>> for _ in range(200):
    ...     model.learn(["ann", "bob"], ["tea", "rum"], np.zeros(2))
    >>> model.rank("ann"), model.rank("bob")
    (['tea', 'rum'], ['rum', 'tea'])
    """

    def __init__(
        self,
        n_factors: int = 16,
        rate: float = 0.05,
        l2: float = 0.01,
        negatives: int = 1,
        spread: float = 0.1,
        seed: int = 0,
    ) -> None:
        super().__init__(n_factors, rate, l2, spread, seed)
        self.negatives = negatives
        # A list of items by their last event, linked both ways: by number, and its two ends.
        self._older, self._newer = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
        self._ends = np.array([-1, -1])

    def fit(self) -> None:
        super().fit()
        self._older = grown(self._older, len(self.items.names), -2)
        self._newer = grown(self._newer, len(self.items.names), -2)

    def learn_numbers(self, users: Array, items: Array, times: Array) -> None:
        _learn_raisgd(
            users, items, self.user_vectors, self.item_vectors, self.counts, self.rate, self.l2, self.negatives,
            self._older, self._newer, self._ends,
        )  # fmt: skip


class BPR(_Factors):
    r"""Matrix factorisation by Bayesian personalised ranking: steps on $-\ln \sigma(x_{ui} - x_{uj})$ for items j drawn
    evenly from those known, with $x_{ui} = b_i + p_u \cdot q_i$.

    References
    ----------
    Rendle, Freudenthaler, Gantner and Schmidt-Thieme, "BPR: Bayesian personalized ranking from implicit feedback",
    2009.

    Examples
    --------
    >>> model = BPR()
    >>> for _ in range(200):
    ...     model.learn(["ann", "bob"], ["tea", "rum"], np.zeros(2))
    >>> model.rank("ann"), model.rank("bob")
    (['tea', 'rum'], ['rum', 'tea'])
    """

    def __init__(
        self,
        n_factors: int = 16,
        rate: float = 0.05,
        l2: float = 0.01,
        negatives: int = 4,
        spread: float = 0.1,
        seed: int = 0,
    ) -> None:
        super().__init__(n_factors, rate, l2, spread, seed)
        self.negatives = negatives
        self.biases = np.zeros(0)
        self._known = np.zeros(1, dtype=np.int64)
        self._state = np.array([0x9E3779B97F4A7C15 ^ seed], dtype=np.uint64)

    def fit(self) -> None:
        super().fit()
        self.biases = grown(self.biases, len(self.items.names))

    def learn_numbers(self, users: Array, items: Array, times: Array) -> None:
        _learn_bpr(
            users, items, self.user_vectors, self.item_vectors, self.biases, self.counts, self.rate, self.l2,
            self.negatives, self._known, self._state,
        )  # fmt: skip

    def _of(self, products: Array) -> Array:
        scores: Array = products + self.biases[: len(products)]
        return scores
