"""The blend against a slow, obvious twin that is made of the single learners and of plain Python."""

from __future__ import annotations

import math
from collections import Counter, defaultdict

import numpy as np
import pytest

from serving.blend import DECAYED
from tests.udfs.test_recommenders import Event, SlowHistory, SlowLinks, events
from udfs.blend import (
    ALL,
    BLEND,
    CONTEXTS,
    FEATURES,
    HALF_LIVES,
    LEFT_OUT,
    NEW,
    OWN,
    POPS,
    RANKERS,
    REPEATS,
    WIDTH,
    Blend,
    Settings,
    _logarithms,
)  # fmt: skip
from udfs.embeddings import Embeddings
from udfs.ranking import MISS, NOT_NEW, RankingConfig, place

SETTINGS = Settings(recent=2, basket=3, window=3, window_near=4, keep=0.9, negatives=3, teach_first=100, teach_every=5)
SIZE, TOPS = 6, 5


def small(neighbours: int = 4) -> Blend:
    return Blend(SETTINGS, neighbours=neighbours, seen=SIZE, n_factors=6, tops=TOPS)


class Twin:
    """Every event is a step on dictionaries, every score a sum of named features."""

    def __init__(self, neighbours: int) -> None:
        self.met, self.follows, self.near = SlowHistory(SIZE), SlowLinks(neighbours), SlowLinks(neighbours)
        self.embeddings = Embeddings(6, SETTINGS.recent_embedded, SETTINGS.gamma_embedded, 3, seen=SIZE)
        self.counts, self.repeated, self.total = Counter[str](), Counter[str](), 0
        self.popular = [Counter[str]() for _ in HALF_LIVES]
        self.events, self.basket = Counter[str](), defaultdict[str, set[str]](set)
        self.tops: list[str] = []
        self.scales = dict[str, float]()
        self.weights = {context: Counter[str]() for context in CONTEXTS}
        for at, name in enumerate(FEATURES[: OWN + 1]):
            self.weights["always"][name] = 0.5 if at == OWN else 0.2
        self.squares = {context: Counter[str]() for context in CONTEXTS}

    def held(self, user: str, time: int) -> set[str]:
        return self.basket[user] if self.met.time.get(user) == time else set()

    def sums(self, user: str, time: int) -> dict[str, Counter[str]]:
        last = self.met.last(user, 2)
        held = self.met.last(user, min(3, len(self.held(user, time))))
        sums = {
            "markov": self.follows.related(last, 0.5, 0.5),
            "markov far": self.follows.related(last, 0.9, 0.5),
            "co-occurrence": self.near.related(last, 0.9, 0.5),
            "with the basket": self.near.related(held, 1.0, 0.5),
        }
        for name, of in sums.items():
            for item in of:
                of[item] /= 1 if "markov" in name else math.sqrt(max(self.near.sums[item], 1))
        return sums

    def describe(self, user: str, time: int) -> tuple[list[str], dict[str, dict[str, float]], list[str]]:
        """What the user met, the features of candidates, and the contexts that hold."""
        sums, row, held = self.sums(user, time), self.met.rows[user], self.held(user, time)
        seen = [str(entry[0]) for entry in row]
        candidates = [*dict.fromkeys([*seen, *(item for of in sums.values() for item in of), *self.tops])]
        features: dict[str, dict[str, float]] = {item: defaultdict(float) for item in candidates}
        for item, x in features.items():
            for half_life, of in zip(HALF_LIVES, self.popular, strict=True):
                x[f"popularity {half_life:g}"] = math.log1p(of[item] / sum(of.values()) * len(self.counts))
            for name, of in sums.items():
                if of[item] > 0:
                    x[name] = math.log1p(2 * of[item] / self.scales.get(name, of[item]))
            if row:
                x["embedding"] = self.embeddings.score(user, item)
        baskets = self.met.basket[user] + (0 if held else 1)
        for back, (name, count, rate, basket) in enumerate(reversed(row)):
            x, since = features[str(name)], baskets - basket
            common = dict(x)
            for floor, feature in ((1, "met"), (2, "met twice"), (3, "met 3 times"), (5, "met 5 times")):
                x[feature] = float(count >= floor)
            for floor in (2, 3, 5, 9):
                x[f"{floor} baskets ago"] = float(since >= floor)
            x["in the basket"] = float(since == 0)
            x["share of baskets"] = math.log(count / max(baskets - 1, 1))
            x["repeated by all"] = math.log((self.repeated[name] + 0.1) / (self.counts[name] + 1))
            x["items since"] = math.log1p(back)
            x["faded rate"] = math.log(rate * 0.9**since + 0.05)
            x |= {f"{feature} of what was met": value for feature, value in common.items()}
        n, past = self.events[user], time - self.met.time.get(user, 0)
        contexts = [
            "always",
            "no event" if n == 0 else "below 10 events" if n < 10 else "below 100 events" if n < 100 else "more events",
            "in a basket" if held else "within an hour" if past < 3_600_000 else "later",
            "empty basket" if not held else "below 4 items" if len(held) < 4 else "below 15 items",
        ]
        return seen, features, contexts

    def scores(self, features: dict[str, dict[str, float]], contexts: list[str]) -> dict[str, float]:
        return {
            item: sum(self.weights[context][name] * value for context in contexts for name, value in x.items())
            for item, x in features.items()
        }

    def ordered(self, scores: dict[str, float]) -> dict[str, tuple[int, float]]:
        """All known items: first those with a score, then by decayed popularity."""
        return {item: (1, scores[item]) if item in scores else (0, self.popular[DECAYED][item]) for item in self.counts}

    def teach(self, user: str, time: int, items: list[str]) -> None:
        _, features, contexts = self.describe(user, time)
        for name, of in self.sums(user, time).items():
            for item in features:
                if of[item] > 0:
                    old = self.scales.setdefault(name, of[item])
                    self.scales[name] = old + 1e-5 * (of[item] - old)
        scores = self.scores(features, contexts)
        hits = [item for item in items if item in features]
        if not hits:
            return
        highest = max(scores.values())
        total = sum(math.exp(score - highest) for score in scores.values())
        slopes: Counter[str] = Counter()
        for item, x in features.items():
            share = math.exp(scores[item] - highest) / total
            for name, value in x.items():
                slopes[name] += (len(hits) * share - hits.count(item)) * value
        for context in contexts:
            for name, slope in slopes.items():
                slope /= math.sqrt(len(hits))
                if slope:
                    self.squares[context][name] += slope**2
                    self.weights[context][name] -= 0.1 * slope / math.sqrt(100 + self.squares[context][name])

    def learn(self, user: str, item: str, time: int) -> None:
        last = self.met.last(user, 4)
        self.follows.fade(item, 0.9)
        self.near.fade(item, 0.9)
        for d, other in enumerate(last):
            if other != item:
                if d < 3:
                    self.follows.add(other, item, 1 / (d + 1))
                    self.follows.add(item, other, 1 / (d + 1))
                self.near.add(other, item, 1)
                self.near.add(item, other, 1)
        self.repeated[item] += item in [entry[0] for entry in self.met.rows[user]]
        self.counts[item] += 1
        self.embeddings.learn_one(user, item, time)
        for half_life, of in zip(HALF_LIVES, self.popular, strict=True):
            for other in of:
                of[other] *= 2 ** (-1 / half_life)
            of[item] += 1
        if self.met.time.get(user) != time:
            self.basket[user] = set()
        self.basket[user].add(item)
        self.met.meet(user, item, time)
        self.events[user] += 1
        self.total += 1
        if self.total % 50 == 0:
            self.tops = sorted(self.counts, key=lambda other: -self.popular[DECAYED][other])[:TOPS]


def in_groups(stream: list[Event], held_out: bool) -> list[list[Event]]:
    if not held_out:
        return [[event] for event in stream]
    groups: dict[tuple[str, int], list[Event]] = {}
    for user, item, time in stream:
        groups.setdefault((user, time), []).append((user, item, time))
    return list(groups.values())


def standing(order: dict[str, tuple[int, float]], item: str, without: set[str]) -> int:
    return sum(of > order[item] for other, of in order.items() if other not in without)


@pytest.mark.parametrize(("held_out", "neighbours"), [(True, 4), (False, 4), (True, 50)])
def test_places_and_weights_are_the_twins(held_out: bool, neighbours: int) -> None:
    stream, twin, model = events(220), Twin(neighbours), small(neighbours)
    users, items, times = zip(*stream, strict=True)
    predicted = model.test_then_learn(
        users, items, np.array(times), np.ones(len(stream), dtype=bool), RankingConfig(held_out=held_out),
        [BLEND, REPEATS, RANKERS.index("markov"), POPS], [ALL, NEW, LEFT_OUT],
    )  # fmt: skip
    at = 0
    for group in in_groups(stream, held_out):
        user, _, time = group[0]
        seen, features, contexts = twin.describe(user, time)
        blended = twin.ordered(twin.scores(features, contexts))
        markov = twin.ordered({item: of for item, of in twin.sums(user, time)["markov"].items() if of > 0})
        basket = twin.met.basket[user] + (0 if twin.held(user, time) else 1)
        again = twin.ordered({str(of[0]): of[2] * 0.9 ** (basket - of[3]) for of in twin.met.rows[user]})
        often = {item: (0, float(count)) for item, count in twin.counts.items()}
        for _, item, _ in group:
            assert predicted.returning[at] == (twin.events[user] > 0)
            for ranker, order in enumerate((blended, again, markov, often)):
                if item not in twin.counts:
                    assert (predicted.better[at, :, ranker] == MISS).all()
                    continue
                expected = [
                    standing(order, item, set()),
                    NOT_NEW if item in seen else standing(order, item, set(seen)),
                    standing(order, item, {other for _, other, _ in group} - {item}),
                ]
                # Scores that only rounding keeps apart may change places.
                assert predicted.better[at, :, ranker] == pytest.approx(expected, abs=1 if ranker == 0 else 0)
            at += 1
        pause = min(twin.total // 100 + 1, 5)
        if any(number % pause == 0 for number in range(twin.total, twin.total + len(group))):
            twin.teach(user, time, [item for _, item, _ in group])
        for event in group:
            twin.learn(*event)
    for c, context in enumerate(CONTEXTS):
        of = twin.weights[context]
        names = [*FEATURES, *(f"{name} of what was met" for name in FEATURES[:OWN])]
        assert len(names) == WIDTH
        assert model.parts.weights[c] == pytest.approx([of[name] for name in names], rel=1e-2, abs=2e-3)


def learned(step: int) -> Blend:
    """Batches that end between groups."""
    model, groups = small(), in_groups(events(300), True)
    for first in range(0, len(groups), step):
        users, items, times = zip(*(event for group in groups[first : first + step] for event in group), strict=True)
        model.learn(users, items, np.array(times))
    return model


def test_batches_do_not_matter() -> None:
    whole, parts = learned(1_000), learned(3)
    assert np.array_equal(whole.parts.weights, parts.parts.weights)
    for user in range(-1, len(whole.users)):
        assert np.array_equal(whole.scores(user), parts.scores(user))


def test_scoring_creates_no_state() -> None:
    model = learned(1_000)
    before = [model.scores(user).tolist() for user in range(len(model.users))]
    weights = model.parts.weights.copy()
    assert model.score("nobody", "nothing") == -math.inf
    assert len(model.rank("nobody", k=5)) == 5
    assert "nobody" not in model.users
    assert [model.scores(user).tolist() for user in range(len(model.users))] == before
    assert np.array_equal(model.parts.weights, weights)


def test_what_is_served_is_what_was_evaluated() -> None:
    model, stream = small(), in_groups(events(300), True)
    for group in stream:
        users, items, times = zip(*group, strict=True)
        known = [model.items.get(item, MISS) for item in items]
        scores = model.scores(model.users.get(users[0], -1), times[0]) if len(model.items) else np.zeros(0)
        expected = [place(scores, item)[0] for item in known]
        wanted = np.ones(len(group), dtype=bool)
        predicted = model.test_then_learn(users, items, np.array(times), wanted, RankingConfig())
        assert predicted.better[:, 0, BLEND].tolist() == expected


def test_lists_hold_the_best() -> None:
    model = learned(1_000)
    best = model.rank("u3", k=3)
    time = int(model.parts.met.times[model.users["u3"]]) + 1
    predicted = model.test_then_learn(
        ["u3"], ["i0"], np.array([time]), np.ones(1, dtype=bool), RankingConfig(k=3)
    )  # fmt: skip
    assert [model.items.names[number] for number in predicted.offered] == best


@pytest.mark.parametrize("held_out", [True, False])
def test_evaluation_changes_nothing(held_out: bool) -> None:
    models = []
    for every in (1, 3, 0):
        config = RankingConfig(held_out=held_out, every=every)
        models.append(small())
        users, items, times = zip(*events(300), strict=True)
        predicted = models[-1].test_then_learn(users, items, np.array(times), config.evaluated(0, 300), config)
        assert len(predicted.events) == (len(range(0, 300, every)) if every else 0)
    columns = [[a for of in model.parts for a in (of if isinstance(of, tuple) else (of,))] for model in models]
    for every_one, some, none in zip(*columns, strict=True):
        assert np.array_equal(every_one, some) and np.array_equal(some, none)


def test_logarithms() -> None:
    rng = np.random.default_rng(0)
    values = np.concatenate([np.exp(rng.uniform(-600, 600, 1_000)), 1 + rng.uniform(-1e-6, 1e-6, 100), [1.0, 0.5, 2.0]])
    found = values.copy()
    _logarithms(found, np.empty(len(values)))
    assert found == pytest.approx(np.log(values), rel=1e-13, abs=1e-15)
    assert found[-3] == 0.0
