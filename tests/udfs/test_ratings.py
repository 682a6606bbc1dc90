"""Raters against slow, obvious twins, and what all of them promise."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Callable

import numpy as np
import pytest
from river import reco

from udfs.embeddings import initial
from udfs.ratings import KalmanMF, Rater, TasteFilter, Wrapped
from udfs.stack import Stack

Rating = tuple[str, str, float, int]


def ratings(n: int = 300, seed: int = 0, scale: float = 1.0) -> list[Rating]:
    rng = random.Random(seed)
    taste = defaultdict(lambda: rng.gauss(0, 0.7))
    result = []
    for time in range(n):
        user, item = f"u{rng.randrange(8)}", f"i{rng.randrange(20)}"
        y = 3.5 + taste[user] + taste[item] + taste[user, item] + rng.gauss(0, 0.3)
        result.append((user, item, scale * min(max(round(2 * y) / 2, 0.5), 5.0), 200_000 * time))
    return result


def learned(model: Rater, of: list[Rating], step: int = 10_000) -> np.ndarray:
    predictions = []
    for at in range(0, len(of), step):
        users, items, ys, times = zip(*of[at : at + step], strict=True)
        predictions.append(model.learn(users, items, np.array(ys), np.array(times)))
    return np.concatenate(predictions)


class Running:
    """Mean and variance of what was seen, from all of it."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    @property
    def mean(self) -> float:
        return float(np.mean(self.seen)) if self.seen else 0.0

    @property
    def unit(self) -> float:
        return float(np.var(self.seen)) if len(self.seen) > 1 and np.var(self.seen) > 0 else 1.0


def test_kalman() -> None:
    """The textbook's filter with matrices, whose covariance is cut to its diagonal after each event."""
    model, running = KalmanMF(n_factors=3), Running()
    stream = ratings()
    predictions = learned(model, stream)
    state: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for at, (user, item, y, _) in enumerate(stream):
        unit = running.unit
        if user not in state:
            state[user] = np.zeros(4), np.diag([0.18] + [0.4] * 3) * unit
        if item not in state:
            begun = np.concatenate([[0.0], initial([item], 3, 0.035, 0)[0]])
            state[item] = begun, np.diag([0.4] + [0.135] * 3) * unit
        (a, p), (b, q) = state[user], state[item]
        p, q = p + np.diag([0.005] + [3e-5] * 3) * unit, q + np.diag([6e-5] + [3e-5] * 3) * unit
        prediction = running.mean + a[0] + b[0] + a[1:] @ b[1:]
        assert predictions[at] == pytest.approx(prediction)
        h, g = np.concatenate([[1.0], b[1:]]), np.concatenate([[1.0], a[1:]])
        total = 0.75 * unit + h @ p @ h + g @ q @ g
        error = y - prediction
        state[user] = a + p @ h * error / total, np.diag(np.diag(p - np.outer(p @ h, p @ h) / total))
        state[item] = b + q @ g * error / total, np.diag(np.diag(q - np.outer(q @ g, q @ g) / total))
        running.seen.append(y)


def test_tastes() -> None:
    model, running, logs = TasteFilter(), Running(), Running()
    stream = ratings()
    predictions = learned(model, stream)
    state: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    sums: dict[str, list[float]] = defaultdict(lambda: [0, 0.0])
    for at, (user, item, y, _) in enumerate(stream):
        unit = running.unit
        for row_id, priors in ((user, model.user_priors), (item, model.item_priors)):
            if row_id not in state:
                state[row_id] = np.zeros(len(priors)), np.diag(priors) * unit
                state[row_id][1][1, 1] = priors[1]
        spread = math.sqrt(np.var(logs.seen)) if logs.seen and np.var(logs.seen) > 0 else 1.0
        log = (math.log1p(sums[item][0]) - logs.mean) / spread
        x = np.array([1, sums[item][1] / (sums[item][0] + 3), log, log**2 - 1])
        z = np.array([1, sums[user][1] / (sums[user][0] + 3), math.log1p(sums[user][0]) / 3 - 1])
        (a, p), (c, q) = state[user], state[item]
        prediction = running.mean + a @ x + c @ z
        assert predictions[at] == pytest.approx(prediction)
        p = p.copy()
        p[0, 0] += 0.003 * unit
        total, error = 0.75 * unit + x @ p @ x + z @ q @ z, y - prediction
        state[user] = a + p @ x * error / total, p - np.outer(p @ x, p @ x) / total
        state[item] = c + q @ z * error / total, q - np.outer(q @ z, q @ z) / total
        logs.seen.append(math.log1p(sums[item][0]))
        for row_id, other in ((user, x), (item, z)):
            sums[row_id][0] += 1
            sums[row_id][1] += y - running.mean - other[1]
        running.seen.append(y)


def test_stack() -> None:
    """Least squares solved anew for each event, over all events before, the older the less."""
    stream = ratings(150)
    model = Stack([KalmanMF(2), TasteFilter()], forget=0.99, prior=0.1)
    predictions = learned(model, stream)
    columns = model.predictions
    rows, targets = list[np.ndarray](), list[float]()
    users: dict[str, list[float]] = defaultdict(lambda: [0, 0.0, 0.0, 0.0, -math.inf])
    items: dict[str, list[float]] = defaultdict(lambda: [0, 0.0])
    drift = 0.0
    for at, (user, item, y, time) in enumerate(stream):
        mean, of, to = columns[at].mean(), users[user], items[item]
        much, many = math.log1p(of[0]) / 4, math.log1p(to[0]) / 4
        session = time - of[4] < 600_000
        if not session:
            of[3] = 0.0
        apart = columns[at] - mean
        contexts = [1.0, much, many, of[1], to[1], of[3], float(session), of[2], drift]
        x = np.concatenate([apart, apart * much, apart * many, contexts])
        old = 0.99 ** np.arange(len(rows), 0, -1)
        before = np.array(rows).reshape(len(rows), len(x))
        # The prior fades with the events: that is what forgetting means in recursive least squares.
        normal = before.T @ (before * old[:, None]) / 0.99 + np.eye(len(x)) * 0.99 ** len(rows) / 0.1
        weights = np.linalg.solve(normal, before.T @ (old * np.array(targets)) / 0.99)
        assert predictions[at] == pytest.approx(mean + weights @ x, abs=1e-5)
        residual = y - mean
        rows.append(x)
        targets.append(residual)
        of[0], of[4] = of[0] + 1, time
        for place, rate in ((1, 0.1), (2, 0.02), (3, 0.25)):
            of[place] += rate * (residual - of[place])
        to[0], to[1] = to[0] + 1, to[1] + 0.1 * (residual - to[1])
        drift += 0.01 * (residual - drift)


def test_wrapped_is_the_plain_loop() -> None:
    plain, expected = reco.BiasedMF(seed=1), []
    for user, item, y, _ in ratings():
        expected.append(plain.predict_one(user, item))
        plain.learn_one(user, item, y)
    assert learned(Wrapped(reco.BiasedMF(seed=1)), ratings()).tolist() == expected


ALL: list[Callable[[], Rater]] = [KalmanMF, TasteFilter, lambda: Stack([KalmanMF(2), TasteFilter()])]


@pytest.mark.parametrize("build", ALL)
def test_batches_do_not_matter_and_predicting_is_what_was_scored(build: Callable[[], Rater]) -> None:
    whole, parts, single = build(), build(), build()
    expected = learned(whole, ratings())
    assert learned(parts, ratings(), step=7).tolist() == expected.tolist()
    one_by_one = []
    for user, item, y, time in ratings():
        one_by_one.append(single.predict_one(user, item, time))
        single.predict_one("nobody", "nothing", time)
        single.learn_one(user, item, y, time)
    # Only of an item that is new to it a filter does not say what the factors will do with which it begins.
    assert one_by_one == pytest.approx(expected.tolist(), abs=0.02)
    items = [item for _, item, _, _ in ratings()]
    known = [item in items[:at] for at, item in enumerate(items)]
    assert np.array(one_by_one)[known] == pytest.approx(expected[known])
    assert "nobody" not in single.users


@pytest.mark.parametrize("build", [KalmanMF, TasteFilter])
def test_the_scale_of_ratings_does_not_matter(build: Callable[[], Rater]) -> None:
    """But for a few events until the scale is known, and for a filter's first factors."""
    rmse = []
    for scale in (1.0, 20.0):
        predictions = learned(build(), ratings(2_000, scale=scale))
        ys = np.array([y for _, _, y, _ in ratings(2_000, scale=scale)])
        rmse.append(float(np.sqrt(np.mean((ys - predictions)[100:] ** 2))) / scale)
    assert rmse[1] == pytest.approx(rmse[0], rel=0.05)
