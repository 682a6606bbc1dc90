"""Learners of implicit feedback against slow, obvious twins of plain dictionaries, and what all of them promise."""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from collections.abc import Callable

import numpy as np
import pytest

from udfs.embeddings import Embeddings, initial
from udfs.factors import BPR, ISGD, RAISGD
from udfs.history import EVENTS, HELD, SIZE
from udfs.neighbours import CoOccurrence, Markov
from udfs.popularity import DecayedPopularity, Repeats
from udfs.recommenders import Recommender

Event = tuple[str, str, int]


def events(n: int = 400, users: int = 7, items: int = 25, seed: int = 0) -> list[Event]:
    """Baskets of one to four items."""
    rng = random.Random(seed)
    result: list[Event] = []
    time = 0
    while len(result) < n:
        time += rng.randint(0, 2)
        user = f"u{rng.randrange(users)}"
        result += [(user, f"i{int(items * rng.random() ** 2)}", time) for _ in range(rng.randint(1, 4))]
        time += 1
    return result[:n]


def learned(model: Recommender, of: list[Event], step: int = 10_000) -> Recommender:
    for at in range(0, len(of), step):
        users, items, times = zip(*of[at : at + step], strict=True)
        model.learn(users, items, np.array(times))
    return model


class SlowHistory:
    """What a user met, as lists: distinct items, the newest last, with count, rate and the last basket."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.rows: dict[str, list[list[float | str]]] = defaultdict(list)
        self.basket: Counter[str] = Counter()
        self.time: dict[str, int] = {}

    def last(self, user: str, n: int) -> list[str]:
        """The newest first."""
        return [str(entry[0]) for entry in reversed(self.rows[user])][:n]

    def meet(self, user: str, item: str, time: int) -> None:
        if self.time.get(user) != time:
            self.basket[user] += 1
        self.time[user] = time
        now, row = self.basket[user], self.rows[user]
        old = [entry for entry in row if entry[0] == item]
        count, rate = (old[0][1] + 1, old[0][2] * 0.9 ** (now - old[0][3]) + 1) if old else (1, 1)
        self.rows[user] = [*(entry for entry in row if entry[0] != item), [item, count, rate, now]][-self.size :]


class SlowLinks:
    """Links as a list of pairs an item."""

    def __init__(self, k: int) -> None:
        self.k = k
        self.rows: dict[str, list[list[float | str]]] = defaultdict(list)
        self.sums: Counter[str] = Counter()

    def fade(self, row: str, by: float) -> None:
        self.sums[row] *= by
        for link in self.rows[row]:
            link[1] *= by

    def add(self, row: str, item: str, amount: float) -> None:
        self.sums[row] += amount
        links = self.rows[row]
        for link in links:
            if link[0] == item:
                link[1] += amount
                return
        if len(links) == self.k:
            weakest = min(range(self.k), key=lambda at: links[at][1])
            links[weakest] = [item, amount]
        else:
            links.append([item, amount])

    def related(self, last: list[str], gamma: float, alpha: float) -> Counter[str]:
        scores: Counter[str] = Counter()
        for d, other in enumerate(last):
            for item, weight in self.rows[other]:
                scores[item] += gamma**d * weight / self.sums[other] ** alpha
        return scores


@pytest.mark.parametrize("k", [3, 100])
def test_markov(k: int) -> None:
    model = learned(Markov(recent=4, window=3, reverse=0.5, neighbours=k, seen=6, keep=0.9), events())
    met, links, counts = SlowHistory(6), SlowLinks(k), Counter[str]()
    for user, item, time in events():
        links.fade(item, 0.9)
        for d, other in enumerate(met.last(user, 3)):
            if other != item:
                links.add(other, item, 1 / (d + 1))
                links.add(item, other, 0.5 / (d + 1))
        met.meet(user, item, time)
        counts[item] += 1
    for user in model.users:
        scores = links.related(met.last(user, 4), 0.5, 0.75)
        for item in model.items:
            assert model.score(user, item) == pytest.approx(scores[item] / counts[item] ** 0.1, rel=1e-4)


@pytest.mark.parametrize("k", [3, 100])
def test_co_occurrence(k: int) -> None:
    model = learned(CoOccurrence(recent=4, window=5, neighbours=k, seen=6, keep=0.9), events())
    met, links = SlowHistory(6), SlowLinks(k)
    for user, item, time in events():
        links.fade(item, 0.9)
        for other in met.last(user, 5):
            if other != item:
                links.add(other, item, 1)
                links.add(item, other, 1)
        met.meet(user, item, time)
    for user in model.users:
        scores = links.related(met.last(user, 4), 0.9, 0.75)
        for item in model.items:
            expected = scores[item] / math.sqrt(max(links.sums[item], 1))
            assert model.score(user, item) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("half_life", [3.0, 200.0, math.inf])
def test_decayed_popularity(half_life: float) -> None:
    stream = events(2_000)  # long enough for weights to be scaled down
    model = learned(DecayedPopularity(half_life), stream)
    shares: Counter[str] = Counter()
    for age, (_, item, _) in enumerate(reversed(stream)):
        shares[item] += 2 ** (-age / half_life)
    total = sum(shares.values())
    for item in model.items:
        assert model.score("nobody", item) == pytest.approx(shares[item] / total)


@pytest.mark.parametrize("half_life", [5.0, 400.0, 1e7, math.inf])
def test_decayed_popularity_in_time(half_life: float) -> None:
    rng = np.random.default_rng(4)
    gaps = rng.choice([0, 1, 50, 2_000, -30, 100_000], 500, p=[0.3, 0.3, 0.2, 0.1, 0.09, 0.01])
    times, items = 1_700_000_000_000 + np.cumsum(gaps), [f"i{n}" for n in rng.integers(0, 9, 500)]
    model = DecayedPopularity(half_life, unit="ms")
    for cut in range(0, 500, 125):
        model.learn(["ann"] * 125, items[cut : cut + 125], times[cut : cut + 125])
    shares: Counter[str] = Counter()
    for item, time in zip(items, times.tolist(), strict=True):
        shares[item] += 2 ** (-(int(times.max()) - time) / half_life)
    total = sum(shares.values())
    for item in model.items:
        assert model.score("nobody", item) == pytest.approx(shares[item] / total, abs=1e-12)


def test_repeats_and_the_rows_they_are_read_from() -> None:
    model, met = Repeats(seen=5), SlowHistory(5)
    popular = learned(DecayedPopularity(), events())
    learned(model, events())
    held: dict[str, set[str]] = defaultdict(set)
    for user, item, time in events():
        if met.time.get(user) != time:
            held[user] = set()
        met.meet(user, item, time)
        held[user].add(item)
    for user, number in model.users.items():
        row = {entry[0]: entry for entry in met.rows[user]}
        assert model.met.marks[number, SIZE] == len(row) <= 5
        assert model.met.marks[number, HELD] == len(held[user])
        assert model.met.marks[number, EVENTS] == sum(of == user for of, _, _ in events())
        for at, (item, count, _, basket) in enumerate(met.rows[user]):
            assert model.items.names[model.met.items[number, at]] == item
            assert (model.met.counts[number, at], model.met.baskets[number, at]) == (count, basket)
        for item in model.items:
            of = row.get(item)
            again = 1 + of[2] * 0.9 ** (met.basket[user] + 1 - of[3]) if of else 0
            assert model.score(user, item) == pytest.approx(popular.score(user, item) + again, rel=1e-5)


class SlowDraws:
    def __init__(self) -> None:
        self.x = 0x9E3779B97F4A7C15

    def next(self, n: int) -> int:
        mask = 2**64 - 1
        self.x ^= self.x >> 12
        self.x ^= self.x << 25 & mask
        self.x ^= self.x >> 27
        return ((self.x * 0x2545F4914F6CDD1D & mask) >> 33) % n


def drawn(number: int, n: int) -> int:
    """The ``number``-th of the generator splitmix64 that begins with 0, below n."""
    mask = 2**64 - 1
    x = (number + 1) * 0x9E3779B97F4A7C15 & mask
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & mask
    x = (x ^ x >> 27) * 0x94D049BB133111EB & mask
    return (x >> 32) * n >> 32


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_embeddings() -> None:
    stream = events(200)
    model = learned(Embeddings(n_factors=6, recent=3, negatives=4), stream)
    met, known = SlowHistory(50), list[str]()
    first, second, squares = dict[str, np.ndarray](), dict[str, np.ndarray](), defaultdict(lambda: [0.0, 0.0])
    for at, (user, item, time) in enumerate(stream):
        if item not in known:
            known.append(item)
            first[item], second[item] = np.split(initial([item], 12, 0.05, 0)[0], 2)
        last = met.last(user, 3)
        if last:
            weights = [0.7**d for d in range(len(last))]
            mean = sum(w * first[other] for w, other in zip(weights, last, strict=True)) / sum(weights)
            gradient, size = np.zeros(6), mean @ mean / 6
            for other in [item, *(known[drawn(4 * at + k, len(known))] for k in range(4))]:
                if other == item and gradient.any():
                    continue
                error = sigmoid(mean @ second[other]) - (other == item)
                squares[other][1] += error**2 * size
                gradient = gradient + error * second[other]
                second[other] = second[other] - 0.15 * error * mean / math.sqrt(squares[other][1] + 1e-10)
            for w, other in zip(weights, last, strict=True):
                share = w / sum(weights)
                squares[other][0] += gradient @ gradient / 6 * share**2
                first[other] = first[other] - 0.15 * share * gradient / math.sqrt(squares[other][0] + 1e-10)
        met.meet(user, item, time)
    for user in model.users:
        last = met.last(user, 3)
        weights = [0.7**d for d in range(len(last))]
        mean = sum(w * first[other] for w, other in zip(weights, last, strict=True)) / sum(weights)
        for item in model.items:
            assert model.score(user, item) == pytest.approx(mean @ second[item], rel=1e-3, abs=1e-4)


def slow_factors(stream: list[Event], spread: float) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    users = {user: initial([user], 4, spread, 0)[0] for user, _, _ in stream}
    return users, {item: initial([item], 4, spread, 1)[0] for _, item, _ in stream}


@pytest.mark.parametrize("negatives", [0, 1, 3])
def test_isgd_and_raisgd(negatives: int) -> None:
    stream = events(300)
    model = ISGD(n_factors=4) if negatives == 0 else RAISGD(n_factors=4, negatives=negatives)
    learned(model, stream)
    users, items = slow_factors(stream, 0.1)
    queue: list[str] = []
    for user, item, _ in stream:
        for _ in range(min(negatives, len(queue))):
            other = queue.pop(0)
            queue.append(other)
            if other != item:
                users[user] = users[user] + 0.05 * (-(users[user] @ items[other]) * items[other] - 0.01 * users[user])
        error, before = 1 - users[user] @ items[item], users[user]
        users[user] = before + 0.05 * (error * items[item] - 0.01 * before)
        items[item] = items[item] + 0.05 * (error * before - 0.01 * items[item])
        queue = [*(other for other in queue if other != item), item]
    for user in users:
        for item in items:
            assert model.score(user, item) == pytest.approx(-abs(1 - users[user] @ items[item]))


def test_bpr() -> None:
    stream = events(300)
    model = learned(BPR(n_factors=4, negatives=2), stream)
    users, items = slow_factors(stream, 0.1)
    biases, draws, known = Counter[str](), SlowDraws(), list[str]()
    for user, item, _ in stream:
        if item not in known:
            known.append(item)
        for _ in range(2):
            other = known[draws.next(len(known))]
            if other == item:
                continue
            p, q, r = users[user], items[item], items[other]
            slope = sigmoid(-(biases[item] - biases[other] + p @ (q - r)))
            users[user] = p + 0.05 * (slope * (q - r) - 0.01 * p)
            items[item] = q + 0.05 * (slope * p - 0.01 * q)
            items[other] = r + 0.05 * (-slope * p - 0.01 * r)
            biases[item] += 0.05 * (slope - 0.01 * biases[item])
            biases[other] += 0.05 * (-slope - 0.01 * biases[other])
    for user in users:
        for item in items:
            assert model.score(user, item) == pytest.approx(biases[item] + users[user] @ items[item])


ALL: list[Callable[[], Recommender]] = [
    DecayedPopularity, Repeats, Markov, CoOccurrence, Embeddings, ISGD, RAISGD, BPR,
]  # fmt: skip


@pytest.mark.parametrize("build", ALL)
def test_batches_do_not_matter(build: Callable[[], Recommender]) -> None:
    whole, parts = learned(build(), events()), learned(build(), events(), step=7)
    for user in range(-1, len(whole.users)):
        assert np.array_equal(whole.scores(user), parts.scores(user))


@pytest.mark.parametrize("build", ALL)
def test_scoring_creates_no_state_and_answers_for_whom_nobody_knows(build: Callable[[], Recommender]) -> None:
    model = learned(build(), events())
    before = [model.scores(user).tolist() for user in range(len(model.users))]
    assert model.score("nobody", "nothing") == -math.inf
    assert len(model.rank("nobody", k=5)) == len(model.rank("u1", k=5)) == 5
    assert "nobody" not in model.users
    assert "nothing" not in model.items
    assert [model.scores(user).tolist() for user in range(len(model.users))] == before


@pytest.mark.parametrize("build", ALL)
def test_what_is_ranked_first_scores_best(build: Callable[[], Recommender]) -> None:
    model = learned(build(), events())
    scores = [model.score("u2", item) for item in model.rank("u2", k=100)]
    assert scores == sorted(scores, reverse=True)
    assert len(scores) == len(model.items)
