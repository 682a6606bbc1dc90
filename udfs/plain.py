"""Biased MF with plain SGD, which is what most people run: River's arithmetic in River's order, without its calls."""

from __future__ import annotations

from typing import Any

import numpy as np
from river import optim, reco

from udfs.ids import Group
from udfs.models import ITEM, USER, Array, Diverged
from udfs.tables import TableRanker


def is_plain(model: Any) -> bool:
    """Whether a River object is biased MF with plain SGD, a constant rate and squared loss."""
    if type(model) is not reco.BiasedMF or type(model.loss) is not optim.losses.Squared:
        return False
    # Of each kind there is one for users and a copy of it for items.
    optimizers = (model.u_bias_optimizer, model.u_latent_optimizer)
    return all(type(o) is optim.SGD and type(o.lr) is optim.schedulers.Constant for o in optimizers)


class PlainBiasedMF(TableRanker):
    """River's biased MF with SGD, whose rows lie in a table a family.

    Weights are equal to River's, bit for bit; ``docs/decisions/0006-plain-step.md`` says what it gains.
    """

    def learn(
        self, users: Group, items: Group, ys: Array, times: Array | None = None
    ) -> tuple[Array, dict[int, Diverged]]:
        model, mean, bound = self.model, self._mean, self.max_weight
        assert mean is not None
        bias_rate, rate = model.u_bias_optimizer.lr.learning_rate, model.u_latent_optimizer.lr.learning_rate
        l2_bias, l2, clip = model.l2_bias, model.l2_latent, model.clip_gradient
        square = bound * bound
        n, mean_value = mean.n, mean._mean
        user_biases, user_vectors = self._taken(USER, users)
        item_biases, item_vectors = self._taken(ITEM, items)
        predictions: list[float] = []
        diverged: dict[int, Diverged] = {}
        for u, i, y in zip(users.slots.tolist(), items.slots.tolist(), ys.tolist(), strict=True):
            user_vector, item_vector = user_vectors[u], item_vectors[i]
            new_user, new_item = user_vector is None, item_vector is None
            if new_user or new_item:
                if new_user and u in users.heirs:
                    user_biases[u], user_vector = user_biases[users.heirs[u]], user_vectors[users.heirs[u]]
                    new_user = user_vector is None
                if new_item and i in items.heirs:
                    item_biases[i], item_vector = item_biases[items.heirs[i]], item_vectors[items.heirs[i]]
                    new_item = item_vector is None
                self._draws.count(new_user + new_item)
                # River's order: it decides which of two new rows is drawn first.
                if new_user:
                    user_biases[u] = float(model.weight_initializer())
                if new_item:
                    item_biases[i] = float(model.weight_initializer())
                if new_user:
                    user_vector = self._drawn()
                if new_item:
                    item_vector = self._drawn()
            assert user_vector is not None and item_vector is not None
            user_bias, item_bias = user_biases[u], item_biases[i]
            # The same for predicting and for learning, so it is computed once.
            product = float(user_vector.dot(item_vector))
            prediction = mean_value + user_bias + item_bias + product

            n_now = n + 1.0
            mean_now = mean_value + (1.0 / n_now) * (y - mean_value)
            gradient = 2 * (mean_now + user_bias + item_bias + product - y)
            gradient = max(min(gradient, clip), -clip)
            user_bias_now = user_bias - bias_rate * (gradient + l2_bias * user_bias)
            item_bias_now = item_bias - bias_rate * (gradient + l2_bias * item_bias)
            if l2:
                user_now = user_vector - rate * (gradient * item_vector + l2 * user_vector)
                item_now = item_vector - rate * (gradient * user_vector + l2 * item_vector)
            else:
                user_now = user_vector - rate * (gradient * item_vector)
                item_now = item_vector - rate * (gradient * user_vector)

            # A comparison with NaN is false, which is what is wanted here.
            if (
                -bound <= mean_now <= bound
                and -bound <= user_bias_now <= bound
                and -bound <= item_bias_now <= bound
                # The norm bounds every element: cheap, and right in all but extreme cases, which look closer.
                and (user_now.dot(user_now) <= square or np.all(np.abs(user_now) <= bound))
                and (item_now.dot(item_now) <= square or np.all(np.abs(item_now) <= bound))
            ):
                n, mean_value = n_now, mean_now
                user_biases[u], item_biases[i] = user_bias_now, item_bias_now
                user_vectors[u], item_vectors[i] = user_now, item_now
                predictions.append(prediction)
                continue
            for _ in range(new_user + new_item):
                self._draws.undo()
            place = len(predictions) + len(diverged)
            diverged[place] = self._diverged(users.row_ids[place], items.row_ids[place])
        mean.n, mean._mean = n, mean_value
        for optimizer in self._optimizers.values():
            optimizer.n_iterations += len(predictions)
        for family, group, biases, vectors in (
            (USER, users, user_biases, user_vectors),
            (ITEM, items, item_biases, item_vectors),
        ):
            group.admit(diverged)
            self._put_back(family, group, biases, vectors)
        return np.array(predictions, dtype="<f8"), diverged

    def _drawn(self) -> Array:
        # For one factor, River draws a number and not an array.
        vector: Array = np.atleast_1d(self.model.latent_initializer(shape=self.n_factors))
        return vector

    def _taken(self, family: str, group: Group) -> tuple[list[float], list[Array | None]]:
        """Biases and vectors of the rows of a group; of those that are not known, any number and None."""
        rows = self._tables[family].take(group.numbers, axis=0)
        vectors: list[Array | None] = list(rows[:, 1:])
        if -1 in group.numbers:
            vectors = [row if known else None for known, row in zip(group.numbers >= 0, vectors, strict=True)]
        return rows[:, 0].tolist(), vectors

    def _put_back(self, family: str, group: Group, biases: list[float], vectors: list[Array | None]) -> None:
        numbers = group.numbers
        if -1 in numbers:  # what diverged was the only record of its id
            left = np.flatnonzero(numbers >= 0).tolist()
            numbers, biases = numbers[left], [biases[slot] for slot in left]
            vectors = [vectors[slot] for slot in left]
        rows = np.empty((len(numbers), 1 + self.n_factors))
        rows[:, 0] = biases
        # Joining arrays as bytes takes half the time of numpy's own ways, which look at each.
        rows[:, 1:] = np.frombuffer(b"".join(vectors)).reshape(len(numbers), self.n_factors)  # type: ignore[arg-type]
        self._fitting(family)[numbers] = rows
