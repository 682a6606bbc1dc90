"""Prequential scores: River's metrics, as state that can be stored, compared between runs and added up."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np

from udfs.models import Array

# River's regression metrics that are a mean over records: exact to store, to subtract and to pool over shards.
NAMES: Final = ("MAE", "MSE", "RMSE", "SMAPE", "MAPE")
_ROOTED: Final = ("RMSE",)

Means = dict[str, tuple[float, float]]


def _absolute(y_true: Array, y_pred: Array) -> Array:
    errors: Array = np.abs(y_true - y_pred)
    return errors


def _squared(y_true: Array, y_pred: Array) -> Array:
    errors: Array = (y_true - y_pred) * (y_true - y_pred)
    return errors


def _relative(y_true: Array, y_pred: Array) -> Array:
    size = np.abs(y_true)
    return np.where(size == 0, 0.0, np.abs(y_true - y_pred) / np.where(size == 0, 1.0, size))


def _symmetric(y_true: Array, y_pred: Array) -> Array:
    size = np.abs(y_true) + np.abs(y_pred)
    return np.where(size == 0, 0.0, 2.0 * np.abs(y_true - y_pred) / np.where(size == 0, 1.0, size))


# What each metric is the mean of: River's ``_eval`` for whole arrays. A square is a product here, and a power there.
_ERRORS: Final[dict[str, Callable[[Array, Array], Array]]] = {
    "MAE": _absolute,
    "MSE": _squared,
    "RMSE": _squared,
    "SMAPE": _symmetric,
    "MAPE": _relative,
}


class Prequential:
    """Means of errors of predictions that were made before the record was learned.

    >>> scores = Prequential(["MAE", "RMSE"])
    >>> scores.update(np.array([4.0, 4.0]), np.array([3.0, 4.0]))
    >>> values(scores.means)
    {'mae': 0.5, 'rmse': 0.7071067811865476, 'n': 2}
    """

    def __init__(self, names: Sequence[str]) -> None:
        from river import metrics  # here, as it brings half of scipy, which who looks at settings only does not need

        self._metrics = [(name, getattr(metrics, name)()) for name in names]

    def update(self, y_true: Array, y_pred: Array) -> None:
        """Scores records in order, shape ``(n,)`` each: what ``metric.update`` does for one after the other."""
        from udfs.kernels import running_mean  # here, as numba takes half a second to import

        for name, metric in self._metrics:
            errors = _ERRORS[name](y_true, y_pred)
            metric._mean.n, metric._mean._mean = running_mean(errors, metric._mean.n, metric._mean._mean)

    @property
    def means(self) -> Means:
        """For each metric the number of records and the mean of its error."""
        return {name: (m._mean.n, m._mean._mean) for name, m in self._metrics}

    def restore(self, means: Mapping[str, Sequence[float]]) -> None:
        """A metric that is not in ``means`` starts now."""
        for name, metric in self._metrics:
            if name in means:
                metric._mean.n, metric._mean._mean = means[name]


def since(now: Mapping[str, Sequence[float]], base: Mapping[str, Sequence[float]]) -> Means:
    """The means of the records after ``base``. Without a base, exactly ``now``."""
    result: Means = {}
    for name, (n, mean) in now.items():
        n_base, mean_base = base.get(name, (0, 0.0))
        fresh = n - n_base
        result[name] = (fresh, (n * mean - n_base * mean_base) / fresh if n_base and fresh else mean if fresh else 0.0)
    return result


def pooled(parts: Iterable[Mapping[str, Sequence[float]]]) -> Means:
    """The means over the records of all parts (shards). One part is returned as it is, bit for bit."""
    total: Means = {}
    for part in parts:
        for name, (n, mean) in part.items():
            n_before, before = total.get(name, (0, 0.0))
            both = n_before + n
            value = mean if not n_before else before if not n else (n_before * before + n * mean) / both
            total[name] = (both, value)
    return total


def values(means: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """The metrics as River's ``get`` gives them, by their names in lower case, and ``n``; None without records."""
    shown: dict[str, Any] = {}
    for name, (n, mean) in means.items():
        factor = 100.0 if name in ("SMAPE", "MAPE") else 1.0
        value = (mean**0.5 if name in _ROOTED else mean) * factor
        shown[name.lower()] = value if n and math.isfinite(value) else None
    shown["n"] = int(max((n for n, _ in means.values()), default=0))
    return shown
