"""Recommenders that follow links between items."""

from __future__ import annotations

import numpy as np

from udfs.history import Histories, histories, meet
from udfs.jit import njit
from udfs.links import Links, accompany, follow, links, related
from udfs.models import Array
from udfs.recommenders import Recommender, all_grown


@njit(cache=True)
def _learn_markov(
    users: Array, items: Array, times: Array, met: Histories, of: Links, counts: Array, window: int, reverse: float,
    keep: float,
) -> None:  # fmt: skip
    for event in range(len(users)):
        follow(of, met, users[event], items[event], window, reverse, keep)
        meet(met, users[event], items[event], times[event])
        counts[items[event]] += 1.0


@njit(cache=True)
def _learn_near(
    users: Array, items: Array, times: Array, met: Histories, of: Links, counts: Array, window: int, keep: float
) -> None:
    for event in range(len(users)):
        accompany(of, met, users[event], items[event], window, keep)
        meet(met, users[event], items[event], times[event])
        counts[items[event]] += 1.0


class _Neighbours(Recommender):
    """Items as neighbours of what a user met last."""

    def __init__(self, recent: int, gamma: float, alpha: float, keep: float, neighbours: int, seen: int) -> None:
        super().__init__()
        self.recent, self.gamma, self.alpha, self.keep = recent, gamma, alpha, keep
        self.neighbours, self.seen = neighbours, seen
        self.met = histories(0, seen)
        self.links = links(0, neighbours)

    def fit(self) -> None:
        super().fit()
        self.met = all_grown(self.met, len(self.users.names))
        self.links = all_grown(self.links, len(self.items.names))

    def _related(self, user: int) -> Array:
        scores = np.zeros(len(self.items.names))
        if user >= 0:
            related(self.links, self.met, user, self.recent, self.gamma, self.alpha, scores)
        return scores


class Markov(_Neighbours):
    r"""A windowed Markov chain from item to next items.

    For the last ``window`` distinct items j of the user at distance d: $T_{ji} \leftarrow T_{ji} + 1/d$, and the
    reverse link $T_{ij} \leftarrow T_{ij} + r/d$. The score of i is
    $\sum_d \gamma^d T_{ji} / (\sum_k T_{jk})^\alpha / n_i^\beta$ over the last ``recent`` items.

    Parameters
    ----------
    recent, gamma
        How many items of the user are followed, and what weight is left at each step back.
    window, reverse
        How many items an event is linked to, and the weight r of links back.
    alpha, beta
        How much rows of frequent items, and frequent items, are held back.
    keep
        What is kept of a row each time its item is met.
    neighbours, seen
        How many links a row keeps, and how many items a user's.

    References
    ----------
    Rendle, Freudenthaler and Schmidt-Thieme, "Factorizing personalized Markov chains for next-basket recommendation",
    2010, for the unfactorised chain; Ludewig and Jannach, "Evaluation of session-based recommendation algorithms",
    2018, for weights by distance.

    Examples
    --------
    >>> model = Markov()
    >>> for user in ("ann", "bob"):
    ...     for time, item in enumerate(["tea", "milk", "cake"]):
    ...         model.learn_one(user, item, time)
    >>> model.learn_one("eve", "tea", 9)
    >>> model.rank("eve", k=2), round(model.score("eve", "milk"), 3)
    (['milk', 'cake'], 0.818)
    """

    def __init__(
        self,
        recent: int = 20,
        gamma: float = 0.5,
        window: int = 3,
        reverse: float = 1.0,
        alpha: float = 0.75,
        beta: float = 0.1,
        keep: float = 0.999,
        neighbours: int = 100,
        seen: int = 100,
    ) -> None:
        super().__init__(recent, gamma, alpha, keep, neighbours, seen)
        self.window, self.reverse, self.beta = window, reverse, beta

    def learn_numbers(self, users: Array, items: Array, times: Array) -> None:
        _learn_markov(users, items, times, self.met, self.links, self.counts, self.window, self.reverse, self.keep)

    def scores(self, user: int) -> Array:
        scores = self._related(user)
        scores /= np.maximum(self.counts[: len(scores)], 1.0) ** self.beta
        return scores


class CoOccurrence(_Neighbours):
    r"""Items that the same users met about the same time, recency-weighted: a nearest neighbour recommender.

    Each of the user's last ``window`` distinct items j gets a link to the event's item i and back, $C_{ji}, C_{ij}$, of
    1; rows fade as their items are met. The score of i is
    $\sum_d \gamma^d C_{ji} / (\sum_k C_{jk})^\alpha / \sqrt{\sum_k C_{ik}}$.

    References
    ----------
    Linden, Smith and York, "Amazon.com recommendations: item-to-item collaborative filtering", 2003; Jannach and
    Ludewig, "When recurrent neural networks meet the neighborhood for session-based recommendation", 2017.

    Examples
    --------
    >>> model = CoOccurrence()
    >>> for user in ("ann", "bob"):
    ...     for item in ("tea", "milk"):
    ...         model.learn_one(user, item)
    >>> model.learn_one("eve", "milk")
    >>> model.rank("eve", k=1)
    ['tea']
    """

    def __init__(
        self,
        recent: int = 20,
        gamma: float = 0.9,
        window: int = 20,
        alpha: float = 0.75,
        keep: float = 0.999,
        neighbours: int = 100,
        seen: int = 100,
    ) -> None:
        super().__init__(recent, gamma, alpha, keep, neighbours, seen)
        self.window = window

    def learn_numbers(self, users: Array, items: Array, times: Array) -> None:
        _learn_near(users, items, times, self.met, self.links, self.counts, self.window, self.keep)

    def scores(self, user: int) -> Array:
        scores = self._related(user)
        scores /= np.sqrt(np.maximum(self.links.sums[: len(scores)], 1.0))
        return scores
