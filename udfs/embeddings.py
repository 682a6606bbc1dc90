"""Embeddings of items, learned from what users meet after each other."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

from udfs.history import SIZE, Histories, histories, meet
from udfs.jit import njit
from udfs.models import Array
from udfs.recommenders import Recommender, all_grown

SEED: Final = 0x9E3779B97F4A7C15


class Vectors(NamedTuple):
    """Rows of items, by number.

    Attributes
    ----------
    inputs, outputs
        What an item says of its user, and what is said of the item, float32, shape ``(items, f)``.
    squares
        Means of squared gradients, summed: of inputs and of outputs, float32, shape ``(items, 2)``.
    """

    inputs: Array
    outputs: Array
    squares: Array


def vectors(rows: int, n_factors: int) -> Vectors:
    """Rows of zeros."""
    inputs, outputs, squares = (np.zeros((rows, width), dtype=np.float32) for width in (n_factors, n_factors, 2))
    return Vectors(inputs, outputs, squares)


def initial(row_ids: Sequence[str], width: int, spread: float, seed: int) -> Array:
    """Numbers of mean 0 and standard deviation ``spread`` that depend on the id and the seed alone: shape
    ``(len(row_ids), width)``. So nothing is drawn, no generator is stored, and all shards begin alike.

    >>> initial(["tea"], 2, 0.1, 0).round(3).tolist() == initial(["rum", "tea"], 2, 0.1, 0)[1:].round(3).tolist()
    True
    """
    # The ids of shared rows begin with half a character, which has no UTF-8 of its own.
    encoded = [row_id.encode("utf-8", "surrogatepass") for row_id in row_ids]
    hashes = np.fromiter(map(zlib.crc32, encoded), dtype=np.uint64, count=len(row_ids))
    x = (hashes << np.uint64(24)) + np.uint64(seed * 0x632BE59BD9B4E019 % 2**64)
    x = x[:, None] + np.arange(1, width + 1, dtype=np.uint64)[None, :] * np.uint64(SEED)
    # The finaliser of splitmix64 (Steele, Lea and Flood, 2014).
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    uniform = ((x ^ (x >> np.uint64(31))) >> np.uint64(11)) / 2.0**53
    numbers: Array = (uniform - 0.5) * math.sqrt(12.0) * spread
    return numbers


@njit(cache=True)
def draw(state: Array) -> int:
    """The next number of a generator whose 64 bits are ``state``: Marsaglia's xorshift, multiplied (Vigna, 2016)."""
    x = state[0]
    x ^= x >> np.uint64(12)
    x ^= x << np.uint64(25)
    x ^= x >> np.uint64(27)
    state[0] = x
    return int((x * np.uint64(0x2545F4914F6CDD1D)) >> np.uint64(33))


@njit(cache=True)
def sample(seed: int, event: int, known: int, out: Array) -> None:
    """Numbers of items, drawn evenly from the first ``known``, into ``out``.

    They follow from the seed and the number of the event, so no generator has a state.
    """
    for at in range(len(out)):
        x = np.uint64(seed) + np.uint64(event * len(out) + at + 1) * np.uint64(SEED)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        out[at] = np.int64(((x >> np.uint64(32)) * np.uint64(known)) >> np.uint64(32))


@njit(cache=True)
def dot(left: Array, right: Array) -> float:
    """A dot product of float32 in eight sums side by side, the same on every machine."""
    zero = np.float32(0.0)
    a, b, c, d, e, f, g, h = zero, zero, zero, zero, zero, zero, zero, zero
    eights = len(left) - len(left) % 8
    for at in range(0, eights, 8):
        a += left[at] * right[at]
        b += left[at + 1] * right[at + 1]
        c += left[at + 2] * right[at + 2]
        d += left[at + 3] * right[at + 3]
        e += left[at + 4] * right[at + 4]
        f += left[at + 5] * right[at + 5]
        g += left[at + 6] * right[at + 6]
        h += left[at + 7] * right[at + 7]
    total = ((a + b) + (c + d)) + ((e + f) + (g + h))
    for at in range(eights, len(left)):
        total += left[at] * right[at]
    return float(total)


@njit(cache=True)
def gather(of: Vectors, met: Histories, user: int, recent: int, gamma: float, out: Array) -> float:
    """The weighted mean of the inputs of the user's last items into ``out``; returns the sum of weights, 0 without."""
    out[:] = 0.0
    size, total, weight = met.marks[user, SIZE], 0.0, 1.0
    for back in range(min(recent, size)):
        vector, share = of.inputs[met.items[user, size - 1 - back]], np.float32(weight)
        for f in range(len(out)):
            out[f] += share * vector[f]
        total += weight
        weight *= gamma
    if total > 0.0:
        scale = np.float32(1.0 / total)
        for f in range(len(out)):
            out[f] *= scale
    return total


@njit(cache=True)
def embed(
    of: Vectors, met: Histories, user: int, item: int, counts: Array, recent: int, gamma: float, negatives: Array,
    rate: float, changed: Array, mean: Array, gradient: Array,
) -> None:  # fmt: skip
    """Learns that the user met the item, and not the ``negatives``, which it marks in ``changed``.

    ``mean`` and ``gradient`` are scratch, shape ``(f,)``.
    """
    total = gather(of, met, user, recent, gamma, mean)
    if total == 0.0:
        return
    width = len(mean)
    gradient[:] = 0.0
    length = dot(mean, mean) / width
    for drawn in range(len(negatives) + 1):
        other = item
        if drawn:
            other = negatives[drawn - 1]
            if other == item or counts[other] == 0.0:
                continue
            changed[other] = 1
        vector = of.outputs[other]
        error = 1.0 / (1.0 + math.exp(-dot(mean, vector))) - (0.0 if drawn else 1.0)
        of.squares[other, 1] += np.float32(error * error * length)
        step = np.float32(rate * error / math.sqrt(of.squares[other, 1] + 1e-10))
        share = np.float32(error)
        for f in range(width):
            gradient[f] += share * vector[f]
            vector[f] -= step * mean[f]
    size, weight = met.marks[user, SIZE], 1.0 / total
    squared = dot(gradient, gradient) / width
    for back in range(min(recent, size)):
        row = met.items[user, size - 1 - back]
        of.squares[row, 0] += np.float32(squared * weight * weight)
        step = np.float32(rate * weight / math.sqrt(of.squares[row, 0] + 1e-10))
        vector = of.inputs[row]
        for f in range(width):
            vector[f] -= step * gradient[f]
        weight *= gamma


@njit(cache=True)
def _learn_embeddings(
    users: Array, items: Array, times: Array, of: Vectors, met: Histories, counts: Array, known: Array, recent: int,
    gamma: float, negatives: int, rate: float, seed: int,
) -> None:  # fmt: skip
    mean, gradient = np.empty(of.inputs.shape[1], np.float32), np.empty(of.inputs.shape[1], np.float32)
    changed, drawn = np.empty(len(counts), np.uint8), np.empty(negatives, np.int64)
    for event in range(len(users)):
        user, item = users[event], items[event]
        counts[item] += 1.0
        known[0] = max(known[0], item + 1)
        sample(seed, known[1], known[0], drawn)
        known[1] += 1
        embed(of, met, user, item, counts, recent, gamma, drawn, rate, changed, mean, gradient)
        meet(met, user, item, times[event])


class Embeddings(Recommender):
    r"""Items as vectors, and a user as the mean $h$ of the input vectors of the last items, weighted by $\gamma^d$.

    The score of i is the logit $h \cdot o_i$, and an event is a step on
    $-\ln \sigma(h \cdot o_i) - \sum_j \ln \sigma(-h \cdot o_j)$ over items j drawn evenly from those known. A row steps
    by AdaGrad with one accumulator, the sum of means of squared gradients.

    Parameters
    ----------
    recent, gamma
        How many items of the user count, and what weight is left at each step back.
    negatives
        How many items are drawn an event.
    rate
        Of learning.

    References
    ----------
    Mikolov, Chen, Corrado and Dean, "Efficient estimation of word representations in vector space", 2013 (the
    continuous bag of words); Barkan and Koenigstein, "Item2vec", 2016; Duchi, Hazan and Singer, "Adaptive subgradient
    methods", 2011.

    Examples
    --------
    >>> model = Embeddings(n_factors=8, negatives=3, recent=1)
    >>> for time in range(100):
    ...     model.learn(["ann", "bob"], ["tea", "rum"] if time % 2 else ["milk", "cola"], np.array([time, time]))
    >>> model.rank("ann", k=1), model.rank("bob", k=1), model.score("eve", "tea")
    (['milk'], ['cola'], 0.0)
    """

    def __init__(
        self,
        n_factors: int = 64,
        recent: int = 5,
        gamma: float = 0.7,
        negatives: int = 50,
        rate: float = 0.15,
        spread: float = 0.05,
        seen: int = 50,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.n_factors, self.recent, self.gamma, self.negatives = n_factors, recent, gamma, negatives
        self.rate, self.spread, self.seen, self.seed = rate, spread, seen, seed
        self.vectors = vectors(0, n_factors)
        self.met = histories(0, seen)
        self._known = np.zeros(2, dtype=np.int64)  # items, and events
        self._begun = 0

    def fit(self) -> None:
        super().fit()
        self.met = all_grown(self.met, len(self.users.names))
        self.vectors = begun(
            all_grown(self.vectors, len(self.items.names)), self.items.names, self._begun, self.spread, self.seed
        )
        self._begun = len(self.items.names)

    def learn_numbers(self, users: Array, items: Array, times: Array) -> None:
        _learn_embeddings(
            users, items, times, self.vectors, self.met, self.counts, self._known, self.recent, self.gamma,
            self.negatives, self.rate, self.seed,
        )  # fmt: skip

    def scores(self, user: int) -> Array:
        outputs = self.vectors.outputs[: len(self.items.names)]
        if user < 0:
            return np.zeros(len(outputs))
        mean = np.empty(self.n_factors, dtype=np.float32)
        gather(self.vectors, self.met, user, self.recent, self.gamma, mean)
        scores: Array = (outputs @ mean).astype(np.float64)
        return scores


def begun(of: Vectors, names: Sequence[str], first: int, spread: float, seed: int) -> Vectors:
    """Gives the rows from ``first`` on, which have places, what they begin with."""
    width = of.inputs.shape[1]
    numbers = initial(names[first:], 2 * width, spread, seed)
    of.inputs[first : len(names)], of.outputs[first : len(names)] = numbers[:, :width], numbers[:, width:]
    return of
