"""River's recommenders, learned by the compiled kernel of :mod:`udfs.kernels`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Final

import numpy as np
from river import optim

from udfs.ids import Group
from udfs.models import ITEM, USER, Array, Diverged
from udfs.rivermodels import ModelKind
from udfs.tables import TableRanker

SGD, ADA_GRAD, ADAM, RMS_PROP, MOMENTUM = range(5)
# What the kernel calls an optimiser, and the options that it takes, in their order.
_OPTIMIZERS: Final[dict[type[Any], tuple[int, tuple[str, ...]]]] = {
    optim.SGD: (SGD, ()),
    optim.AdaGrad: (ADA_GRAD, ("eps",)),
    optim.Adam: (ADAM, ("eps", "beta_1", "beta_2")),
    optim.RMSProp: (RMS_PROP, ("eps", "rho")),
    optim.Momentum: (MOMENTUM, ("rho",)),
}


def is_compiled(model: Any, kind: ModelKind) -> bool:
    """Whether the kernel knows a River object's loss and optimisers."""
    optimizers = [getattr(model, table.optimizer) for table in kind.tables]
    return type(model.loss) is optim.losses.Squared and all(type(o) in _OPTIMIZERS for o in optimizers)


class CompiledRanker(TableRanker):
    """A River recommender that a compiled kernel learns.

    Header and rows are those of every engine, so a job may go on with another. Weights are River's within 1e-12 of
    their size; ``docs/decisions/0013-compiled-engine.md`` says where bit for bit, and why not elsewhere.
    """

    def __init__(self, name: str, kind: ModelKind, create: Callable[[], Any], max_weight: float) -> None:
        super().__init__(name, kind, create, max_weight)
        self._initializers = dict(zip((t.is_vector for t in kind.tables[::2]), kind.initializers, strict=True))
        self._steppers = {t.is_vector: self._optimizers[t.optimizer] for t in kind.tables}
        # The weights of a table come before its slots, and both families have the same columns.
        bounds = [
            bound
            for t in kind.tables
            if t.family == USER
            for bound in (max_weight, *(sys.float_info.max for _ in self._slots[t.optimizer]))
            for _ in range(self.n_factors if t.is_vector else 1)
        ]
        self._bounds = np.array(bounds)
        model = self.model
        self._l2_bias = float(getattr(model, "l2_bias", getattr(model, "l2", 0.0)))
        self._l2 = float(getattr(model, "l2_latent", getattr(model, "l2", 0.0)))

    def learn(
        self, users: Group, items: Group, ys: Array, times: Array | None = None
    ) -> tuple[Array, dict[int, Diverged]]:
        # Here, as numba takes half a second to import, and who looks at settings only does not learn.
        from udfs import kernels

        n, mean = len(ys), self._mean
        met = {USER: users, ITEM: items}
        rows = {family: self._tables[family].take(group.numbers, axis=0) for family, group in met.items()}
        known = {family: group.numbers >= 0 for family, group in met.items()}
        new = sum(int(np.count_nonzero(~of)) for of in known.values())
        states = [generator.get_state() for generator in self._draws.generators] if new else []
        means = np.array([] if mean is None else [mean.n, mean._mean], dtype="<f8")
        predictions, learned = np.empty(n), np.empty(n, dtype=np.bool_)
        begun = kernels.learn(
            users.slots,
            items.slots,
            ys,
            rows[USER],
            rows[ITEM],
            known[USER],
            known[ITEM],
            users.heirs_by_slot(),
            items.heirs_by_slot(),
            *self._drawn(new),
            means,
            self.n_factors,
            self._vector_at[USER] if self._bias_at[USER] is not None else 0,
            self._steps(False, n),
            self._steps(True, n),
            self._counter.n_iterations,
            self._l2_bias,
            self._l2,
            float(self.model.clip_gradient),
            self._bounds,
            self.max_weight,
            predictions,
            learned,
        )
        if begun < new:
            for generator, state in zip(self._draws.generators, states, strict=True):
                generator.set_state(state)
            self._drawn(begun)
        if mean is not None:
            mean.n, mean._mean = means.tolist()
        steps = int(np.count_nonzero(learned))
        for optimizer in self._optimizers.values():
            optimizer.n_iterations += steps
        diverged = {
            place: self._diverged(users.row_ids[place], items.row_ids[place])
            for place in (np.flatnonzero(~learned).tolist() if steps < n else ())
        }
        for family, group in met.items():
            group.admit(diverged)
            places, of = group.numbers, rows[family]
            if new and not (left := places >= 0).all():  # what diverged was the only record of its id
                places, of = places[left], of[left]
            self._fitting(family)[places] = of
        return predictions if steps == n else predictions[learned], diverged

    def _drawn(self, rows: int) -> tuple[Array, Array]:
        """Initial biases and vectors of so many new rows, as River would draw them one after the other."""
        drawn = {}
        for is_vector, width in ((False, 1), (True, self.n_factors)):
            name = self._initializers.get(is_vector)
            if name is None:
                drawn[is_vector] = np.zeros((rows, width if is_vector else 1))
                continue
            initializer = getattr(self.model, name)
            # The generator gives the same numbers at once as one by one.
            drawn[is_vector] = np.reshape(initializer(shape=rows * width) if rows else [], (rows, width))
        return np.ascontiguousarray(drawn[False][:, 0]), np.ascontiguousarray(drawn[True], dtype="<f8")

    def _steps(self, is_vector: bool, n: int) -> tuple[int, Array, Array]:
        """The optimiser of biases or of vectors, its options, and its learning rates for so many records."""
        stepper = self._steppers.get(is_vector)
        if stepper is None:
            return SGD, np.empty(0), np.empty(0)
        number, names = _OPTIMIZERS[type(stepper)]
        options = np.array([getattr(stepper, name) for name in names], dtype="<f8")
        first = stepper.n_iterations
        if type(stepper.lr) is optim.schedulers.Constant:
            rates = np.full(n, stepper.lr.learning_rate, dtype="<f8")
        else:
            rates = np.array([stepper.lr.get(first + step) for step in range(n)], dtype="<f8")
        return number, options, rates
