"""Learners of ratings: filters that know how sure they are, and a stack of several."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np

from udfs.embeddings import initial
from udfs.ids import Ids
from udfs.jit import njit
from udfs.models import Array
from udfs.recommenders import all_grown

# Places in the running figures of a stream.
N, MEAN, SQUARES, LOG_MEAN, LOG_SQUARES = range(5)
FIGURES: Final = 5


class Rater(ABC):
    """Learns ratings in River's manner: ``predict_one`` creates no state, ``learn_one`` learns one event.

    Attributes
    ----------
    users, items
        Numbers of ids: what the tables are by.
    """

    def __init__(self) -> None:
        self.users, self.items = Ids(), Ids()

    def predict_one(self, user_id: str, item_id: str, time: int = 0) -> float:
        """The rating to be expected."""
        return self.predict(self.users.get(user_id, -1), self.items.get(item_id, -1), time)

    def learn_one(self, user_id: str, item_id: str, y: float, time: int = 0) -> None:
        """Learns a rating."""
        self.learn([user_id], [item_id], np.array([y]), np.array([time]))

    def learn(self, user_ids: Sequence[str], item_ids: Sequence[str], ys: Array, times: Array) -> Array:
        """:meth:`learn_one` of one event after the other; returns what was predicted before each, shape ``(n,)``."""
        users, items = np.array(self.users.add(user_ids)), np.array(self.items.add(item_ids))
        self.fit()
        return self.learn_numbers(users, items, np.asarray(ys, dtype=np.float64), np.asarray(times))

    @abstractmethod
    def fit(self) -> None:
        """Makes a place for each number."""

    @abstractmethod
    def learn_numbers(self, users: Array, items: Array, ys: Array, times: Array) -> Array:
        """:meth:`learn` of numbers that have places."""

    @abstractmethod
    def predict(self, user: int, item: int, time: int) -> float:
        """:meth:`predict_one` by numbers, -1 for what is not known."""


@njit(cache=True)
def variance_of(figures: Array) -> float:
    """Of the ratings so far; 1 before there are two that differ."""
    return float(figures[SQUARES] / figures[N]) if figures[N] > 1.0 and figures[SQUARES] > 0.0 else 1.0


@njit(cache=True)
def observe(figures: Array, y: float) -> None:
    """Takes a rating into the running figures."""
    figures[N] += 1.0
    before = y - figures[MEAN]
    figures[MEAN] += before / figures[N]
    figures[SQUARES] += before * (y - figures[MEAN])


class Filters(NamedTuple):
    """Rows of a family, by number: a bias and factors, each with a mean and a variance.

    Attributes
    ----------
    means, variances
        Shape ``(rows, 1 + f)``, the bias first; a variance of 0 where the row was not met yet.
    """

    means: Array
    variances: Array


@njit(cache=True)
def filter_factors(
    user: Array, user_variance: Array, item: Array, item_variance: Array, y: float, mean: float, unit: float,
    options: Array,
) -> float:  # fmt: skip
    """Learns a rating on the means and variances of its user and its item; returns what was predicted.

    ``options`` are the observation variance; priors of a user's bias and factors, and of an item's; and noise likewise.
    """
    width = len(user)
    if user_variance[0] == 0.0:
        user_variance[:] = options[2] * unit
        user_variance[0] = options[1] * unit
    if item_variance[0] == 0.0:
        item_variance[:] = options[4] * unit
        item_variance[0] = options[3] * unit
    prediction = mean + user[0] + item[0]
    user_variance[0] += options[5] * unit
    item_variance[0] += options[7] * unit
    total = options[0] * unit + user_variance[0] + item_variance[0]
    for f in range(1, width):
        prediction += user[f] * item[f]
        user_variance[f] += options[6] * unit
        item_variance[f] += options[8] * unit
        total += user_variance[f] * item[f] * item[f] + item_variance[f] * user[f] * user[f]
    share = 1.0 / total
    gain = (y - prediction) * share
    user[0] += user_variance[0] * gain
    item[0] += item_variance[0] * gain
    user_variance[0] -= user_variance[0] * user_variance[0] * share
    item_variance[0] -= item_variance[0] * item_variance[0] * share
    for f in range(1, width):
        of_user, of_item = user_variance[f] * item[f], item_variance[f] * user[f]
        user[f] += of_user * gain
        item[f] += of_item * gain
        user_variance[f] -= of_user * of_user * share
        item_variance[f] -= of_item * of_item * share
    return float(prediction)


@njit(cache=True)
def _learn_kalman(
    users: Array, items: Array, ys: Array, of_users: Filters, of_items: Filters, figures: Array, options: Array,
    predictions: Array,
) -> None:  # fmt: skip
    for event in range(len(ys)):
        user, item = users[event], items[event]
        predictions[event] = filter_factors(
            of_users.means[user], of_users.variances[user], of_items.means[item], of_items.variances[item], ys[event],
            figures[MEAN], variance_of(figures), options,
        )  # fmt: skip
        observe(figures, ys[event])


class KalmanMF(Rater):
    r"""Biased matrix factorisation by a decoupled extended Kalman filter.

    A rating is $\mu + b_u + b_i + p_u \cdot q_i$ with noise. Each bias and factor x has a mean and a variance P of its
    own, and $h = \partial \hat y / \partial x$. An event adds process noise; then, with $S = R + \sum P h^2$ and the
    error e, $x \leftarrow x + P h e / S$ and $P \leftarrow P - P^2 h^2 / S$. Who is known well moves little.

    All variances are in units of the variance of the ratings so far, so any scale of ratings will do.

    Parameters
    ----------
    observation
        R, the variance of a rating that nothing explains.
    priors
        Variances of a new user's bias and factors, and of a new item's.
    noise
        What an event adds to the variances of its user's bias and factors, and of its item's.
    spread
        Standard deviation of the factors that an item begins with; a user's begin at 0.

    References
    ----------
    Puskorius and Feldkamp, "Decoupled extended Kalman filter training of feedforward layered networks", 1991;
    Gomez-Uribe and Karrer, "The decoupled extended Kalman filter for dynamic exponential-family factorization models",
    2021.

    Examples
    --------
    >>> model = KalmanMF(n_factors=2)
    >>> for _ in range(20):
    ...     model.learn_one("ann", "tea", 5.0)
    ...     model.learn_one("bob", "tea", 1.0)
    >>> round(model.predict_one("ann", "tea"), 1), round(model.predict_one("eve", "rum"), 1)
    (4.8, 3.0)
    """

    def __init__(
        self,
        n_factors: int = 8,
        observation: float = 0.75,
        priors: tuple[float, float, float, float] = (0.18, 0.4, 0.4, 0.135),
        noise: tuple[float, float, float, float] = (0.005, 3e-5, 6e-5, 3e-5),
        spread: float = 0.035,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.n_factors, self.observation, self.priors, self.noise = n_factors, observation, priors, noise
        self.spread, self.seed = spread, seed
        self.of_users, self.of_items = (
            Filters(np.zeros((0, 1 + n_factors)), np.zeros((0, 1 + n_factors))) for _ in range(2)
        )
        self.figures = np.zeros(FIGURES)
        self.options = np.array([observation, *priors, *noise])
        self._begun = 0

    def fit(self) -> None:
        self.of_users = all_grown(self.of_users, len(self.users.names))
        self.of_items = all_grown(self.of_items, len(self.items.names))
        fresh = self.items.names[self._begun :]
        drawn = initial(fresh, self.n_factors, self.spread, self.seed)
        self.of_items.means[self._begun : len(self.items.names), 1:] = drawn
        self._begun = len(self.items.names)

    def learn_numbers(self, users: Array, items: Array, ys: Array, times: Array) -> Array:
        predictions = np.empty(len(ys))
        _learn_kalman(users, items, ys, self.of_users, self.of_items, self.figures, self.options, predictions)
        return predictions

    def predict(self, user: int, item: int, time: int) -> float:
        rating = float(self.figures[MEAN])
        if user >= 0:
            rating += self.of_users.means[user, 0]
        if item >= 0:
            rating += self.of_items.means[item, 0]
        if user >= 0 and item >= 0:
            rating += self.of_users.means[user, 1:] @ self.of_items.means[item, 1:]
        return float(rating)


_SHRINK: Final = 3.0  # ratings of which the mean is 0 that a mean begins with


class Tastes(NamedTuple):
    """Rows of a family, by number.

    Attributes
    ----------
    means, covariances
        Of the coefficients, shapes ``(rows, d)`` and ``(rows, d, d)``.
    sums
        How many ratings there were, and the sum of what the other side does not explain, shape ``(rows, 2)``.
    """

    means: Array
    covariances: Array
    sums: Array


def tastes(rows: int, width: int) -> Tastes:
    """Rows of zeros."""
    return Tastes(np.zeros((rows, width)), np.zeros((rows, width, width)), np.zeros((rows, 2)))


@njit(cache=True)
def item_features(sums: Array, figures: Array, out: Array) -> None:
    """An item as its users see it; also of many, side by side."""
    spread = math.sqrt(figures[LOG_SQUARES] / figures[N]) if figures[LOG_SQUARES] > 0.0 else 1.0
    out[0] = 1.0
    out[1] = sums[1] / (sums[0] + _SHRINK)
    out[2] = (np.log1p(sums[0]) - figures[LOG_MEAN]) / spread
    out[3] = out[2] * out[2] - 1.0


@njit(cache=True)
def user_features(sums: Array, out: Array) -> None:
    """A user as an item sees it; also of many, side by side."""
    out[0] = 1.0
    out[1] = sums[1] / (sums[0] + _SHRINK)
    out[2] = np.log1p(sums[0]) / 3.0 - 1.0


@njit(cache=True)
def _step(means: Array, covariance: Array, gains: Array, error: float, total: float) -> None:
    share = 1.0 / total
    for a in range(len(means)):
        means[a] += gains[a] * (error * share)
        for b in range(len(means)):
            covariance[a, b] -= gains[a] * gains[b] * share


@njit(cache=True)
def _gains(covariance: Array, features: Array, gains: Array) -> float:
    """What each coefficient gains of an error, and the variance of their sum."""
    variance = 0.0
    for a in range(len(features)):
        gains[a] = 0.0
        for b in range(len(features)):
            gains[a] += covariance[a, b] * features[b]
        variance += gains[a] * features[a]
    return variance


@njit(cache=True)
def filter_tastes(
    user: Array, user_covariance: Array, item: Array, item_covariance: Array, seen: Array, known: Array, y: float,
    mean: float, unit: float, options: Array, user_gains: Array, item_gains: Array,
) -> float:  # fmt: skip
    """Learns a rating on the coefficients of its user and its item; returns what was predicted.

    ``seen`` and ``known`` are the features of the user and of the item; ``options`` are the observation variance, the
    noise, and priors of the user's coefficients and of the item's; the gains are scratch.
    """
    if user_covariance[0, 0] == 0.0:
        for a in range(len(user)):
            user_covariance[a, a] = options[2 + a] * (1.0 if a == 1 else unit)
    if item_covariance[0, 0] == 0.0:
        for a in range(len(item)):
            item_covariance[a, a] = options[2 + len(user) + a] * (1.0 if a == 1 else unit)
    prediction = mean
    for a in range(len(user)):
        prediction += user[a] * known[a]
    for a in range(len(item)):
        prediction += item[a] * seen[a]
    user_covariance[0, 0] += options[1] * unit
    total = options[0] * unit
    total += _gains(user_covariance, known, user_gains)
    total += _gains(item_covariance, seen, item_gains)
    _step(user, user_covariance, user_gains, y - prediction, total)
    _step(item, item_covariance, item_gains, y - prediction, total)
    return float(prediction)


@njit(cache=True)
def add_up(user_sums: Array, item_sums: Array, seen: Array, known: Array, y: float, figures: Array) -> None:
    """Takes a rating into what the features are made of, and into the running figures."""
    count = math.log1p(item_sums[0])
    user_sums[0] += 1.0
    user_sums[1] += y - figures[MEAN] - known[1]
    item_sums[0] += 1.0
    item_sums[1] += y - figures[MEAN] - seen[1]
    observe(figures, y)
    before = count - figures[LOG_MEAN]
    figures[LOG_MEAN] += before / figures[N]
    figures[LOG_SQUARES] += before * (count - figures[LOG_MEAN])


@njit(cache=True)
def _learn_tastes(
    users: Array, items: Array, ys: Array, of_users: Tastes, of_items: Tastes, figures: Array, options: Array,
    predictions: Array,
) -> None:  # fmt: skip
    known, seen = np.empty(of_users.means.shape[1]), np.empty(of_items.means.shape[1])
    user_gains, item_gains = np.empty_like(known), np.empty_like(seen)
    for event in range(len(ys)):
        user, item = users[event], items[event]
        item_features(of_items.sums[item], figures, known)
        user_features(of_users.sums[user], seen)
        predictions[event] = filter_tastes(
            of_users.means[user], of_users.covariances[user], of_items.means[item], of_items.covariances[item], seen,
            known, ys[event], figures[MEAN], variance_of(figures), options, user_gains, item_gains,
        )  # fmt: skip
        add_up(of_users.sums[user], of_items.sums[item], seen, known, ys[event], figures)


class TasteFilter(Rater):
    r"""What each user makes of an item's standing, and each item of its users': linear regressions, filtered.

    A rating is $\mu + a_u \cdot x_i + c_i \cdot z_u$: $x_i$ is 1, the item's mean so far, the logarithm of its number
    of ratings, standardised, and the square of that; $z_u$ is 1, the user's mean so far, and the logarithm of the
    number of ratings. So a user may like what all like, or what few know. Each row has a mean and a covariance of its
    coefficients, and learns as :class:`KalmanMF`'s do, but with the whole covariance:
    $a \leftarrow a + P x e / S$, $P \leftarrow P - P x x' P / S$.

    Parameters
    ----------
    observation
        The variance of a rating that nothing explains, in units of the variance of ratings, as the others.
    user_priors, item_priors
        Variances of the coefficients.
    noise
        What an event adds to the variance of its user's first coefficient, the bias.

    References
    ----------
    Bell and Koren, "Scalable collaborative filtering with jointly derived neighborhood interpolation weights", 2007,
    whose global effects are such regressions; West and Harrison, "Bayesian forecasting and dynamic models", 1997, for
    the filter.

    Examples
    --------
    >>> model = TasteFilter()
    >>> for n in range(40):
    ...     model.learn_one(f"u{n}", "tea", 4.0)
    ...     model.learn_one("ann", "tea" if n % 2 else f"i{n}", 2.0 if n % 2 else 4.0)  # who likes what few know
    >>> model.predict_one("ann", "tea") + 1 < model.predict_one("ann", "new")
    True
    """

    def __init__(
        self,
        observation: float = 0.75,
        user_priors: tuple[float, ...] = (0.18, 0.3, 0.02, 0.02),
        item_priors: tuple[float, ...] = (0.2, 0.1, 0.02),
        noise: float = 0.003,
    ) -> None:
        super().__init__()
        self.observation, self.user_priors, self.item_priors, self.noise = observation, user_priors, item_priors, noise
        self.of_users, self.of_items = tastes(0, len(user_priors)), tastes(0, len(item_priors))
        self.figures = np.zeros(FIGURES)
        self.options = np.array([observation, noise, *user_priors, *item_priors])

    def fit(self) -> None:
        self.of_users = all_grown(self.of_users, len(self.users.names))
        self.of_items = all_grown(self.of_items, len(self.items.names))

    def learn_numbers(self, users: Array, items: Array, ys: Array, times: Array) -> Array:
        predictions = np.empty(len(ys))
        _learn_tastes(users, items, ys, self.of_users, self.of_items, self.figures, self.options, predictions)
        return predictions

    def predict(self, user: int, item: int, time: int) -> float:
        known, seen = np.empty(len(self.user_priors)), np.empty(len(self.item_priors))
        if not self.figures[N]:
            return 0.0
        item_features(self.of_items.sums[item] if item >= 0 else np.zeros(2), self.figures, known)
        user_features(self.of_users.sums[user] if user >= 0 else np.zeros(2), seen)
        rating = float(self.figures[MEAN])
        rating += float(self.of_users.means[user] @ known) if user >= 0 else 0.0
        rating += float(self.of_items.means[item] @ seen) if item >= 0 else 0.0
        return rating


class Wrapped(Rater):
    """A model of River's, or one with its ``predict_one`` and ``learn_one`` of a user, an item and a rating.

    Parameters
    ----------
    model
        It is learned.
    dictionary
        Whether it takes a dictionary of features, as regressors do, and not the user and the item.

    Examples
    --------
    >>> from river import reco
    >>> model = Wrapped(reco.Baseline())
    >>> model.learn(["ann", "bob"], ["tea", "tea"], np.array([4.0, 2.0]), np.zeros(2)).round(2).tolist()
    [0.0, 4.0]
    """

    def __init__(self, model: Any, dictionary: bool = False) -> None:
        super().__init__()
        self.model, self.dictionary = model, dictionary

    def fit(self) -> None:
        pass

    def learn_numbers(self, users: Array, items: Array, ys: Array, times: Array) -> Array:
        predictions = np.empty(len(ys))
        for event, (user, item, y) in enumerate(zip(users.tolist(), items.tolist(), ys.tolist(), strict=True)):
            of = self._given(self.users.names[user], self.items.names[item])
            predictions[event] = self.model.predict_one(*of)
            self.model.learn_one(*of, y)
        return predictions

    def predict(self, user: int, item: int, time: int) -> float:
        user_id, item_id = self.users.names[user] if user >= 0 else "", self.items.names[item] if item >= 0 else ""
        return float(self.model.predict_one(*self._given(user_id, item_id)))

    def _given(self, user_id: str, item_id: str) -> tuple[Any, ...]:
        return ({"user": user_id, "item": item_id},) if self.dictionary else (user_id, item_id)
