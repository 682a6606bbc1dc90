"""Filters of ratings and their stack as a model of the job: rows that hold all that is known of a user or an item.

The arithmetic is that of :mod:`udfs.ratings` and :mod:`udfs.stack`, event by event and not rater by rater: so an event
that leads to a number out of bounds is left out before anything has changed.
"""

from __future__ import annotations

import base64
import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import orjson

from udfs import filterkernel
from udfs.embeddings import initial
from udfs.filterkernel import KNOWN, LARGEST, SEEN
from udfs.ids import Group, Ids
from udfs.models import ITEM, USER, Array, Columns, Diverged, ModelError, RowModel
from udfs.ratings import FIGURES, MEAN, KalmanMF, Rater, TasteFilter, item_features, user_features
from udfs.recommenders import grown
from udfs.stack import (
    BASE,
    CONTEXTS,
    COUNT,
    DRIFT,
    IN_SESSION,
    ITEM_RECENT,
    MANY,
    MUCH,
    OF_ITEM,
    OF_USER,
    RECENT,
    SESSION,
    SLOW,
    USER_RECENT,
    USER_SESSION,
    USER_SLOW,
    contrasts,
)

_ROW_LAYOUT: Final = 1
# Of the published vectors of items, all but the factors are made so much smaller, and of those of users larger: so
# products are what they were, and cosines are of factors.
_APART: Final = 1024.0


@dataclass(frozen=True)
class _Block:
    """Where in a row lie the means of a rater, how many they are, and how many numbers it keeps."""

    at: int
    width: int
    size: int


class FilterModel(RowModel):
    """A stack of filters, or a single one.

    Parameters
    ----------
    raters
        What is stacked: :class:`KalmanMF` before :class:`TasteFilter`. They are not learned themselves.
    forget, prior
        As :class:`Stack` has them; a ``forget`` of None is no stack, but the only rater.

    Notes
    -----
    A row is float32, two to a word. Of each matrix factorisation the means and variances of bias and factors; of each
    filter of tastes the means and the covariance of its coefficients; what the features of tastes are made of; and what
    the stack keeps, in which the time of a user's last rating takes two numbers. The header has the figures of the
    stream, the weights and their covariance.

    Examples
    --------
    >>> model = FilterModel("kalman_mf", [KalmanMF(n_factors=2)], 1e6)
    >>> for _ in range(20):
    ...     _ = model.step("ann", "tea", 5.0), model.step("bob", "tea", 1.0)
    >>> round(model.step("ann", "tea", 5.0), 1)
    4.8
    """

    families = (USER, ITEM)

    def __init__(
        self, name: str, raters: Sequence[Rater], max_weight: float, forget: float | None = None, prior: float = 0.0
    ) -> None:
        self.name, self.max_weight, self.is_stack = name, max_weight, forget is not None
        self.forget = 1.0 if forget is None else float(forget)
        self.factors = [rater for rater in raters if isinstance(rater, KalmanMF)]
        self.tastes = [rater for rater in raters if isinstance(rater, TasteFilter)]
        self.ids = {family: Ids() for family in self.families}
        width = 3 * (len(raters) - 1) + CONTEXTS if self.is_stack else 0
        self.figures, self.drift = np.zeros(FIGURES), np.zeros(1)
        self.weights, self.inverse = np.zeros(width), np.eye(width) * prior
        self._blocks = {USER: _blocks(raters, KNOWN), ITEM: _blocks(raters, SEEN)}
        # Of each family by column: whether it is a mean, and its bound.
        self._means, self._bounds, self._tables = {}, {}, {}
        for family, kept, residuals in (
            (USER, OF_USER + 1, [RECENT, SLOW, SESSION]),
            (ITEM, OF_ITEM, [RECENT]),
        ):
            blocks = self._blocks[family]
            columns = sum(block.size for block in blocks) + (2 if self.tastes else 0) + (kept if self.is_stack else 0)
            means = np.zeros(columns, dtype=np.bool_)
            for block in blocks:
                means[block.at : block.at + block.width] = True
            bounded = means.copy()
            if self.is_stack:
                bounded[columns - kept + np.array(residuals)] = True
            self._means[family] = means
            self._bounds[family] = np.where(bounded, min(max_weight, LARGEST), LARGEST)
            self._tables[family] = np.zeros((1_024, columns), dtype="<f4")
        places = [(user.at, item.at, user.width) for user, item in zip(*self._blocks.values(), strict=True)]
        n = len(self.factors)
        self._places = np.array(places, dtype=np.int64)[:n], np.array(places, dtype=np.int64)[n:]
        self._options = tuple(
            np.array([rater.options for rater in of]).reshape(len(of), size)
            for of, size in ((self.factors, 9), (self.tastes, 2 + KNOWN + SEEN))
        )
        # Twice the factors of all, and what the weights and the tastes take: see :meth:`vectors`.
        factors = sum(rater.n_factors for rater in self.factors)
        self.n_factors = 2 * (factors + KNOWN - 1 + SEEN - 1 + 1) if self.is_stack else factors

    # --------------------------------------------------------------------------------------- learning

    def learn(
        self, users: Group, items: Group, ys: Array, times: Array | None = None
    ) -> tuple[Array, dict[int, Diverged]]:
        met = {USER: users, ITEM: items}
        rows = {family: self._rows_of(family, group) for family, group in met.items()}
        known = {family: group.numbers >= 0 for family, group in met.items()}
        predictions, learned = np.empty(len(ys)), np.empty(len(ys), dtype=np.bool_)
        filterkernel.learn(
            users.slots,
            items.slots,
            ys,
            np.zeros(len(ys), dtype=np.int64) if times is None else times,
            rows[USER],
            rows[ITEM],
            users.heirs_by_slot(),
            items.heirs_by_slot(),
            known[USER],
            known[ITEM],
            (self._means[USER], self._means[ITEM]),
            (self._bounds[USER], self._bounds[ITEM]),
            self.max_weight,
            self._places[0],
            self._options[0],
            self._places[1],
            self._options[1],
            self.figures,
            self.drift,
            self.weights,
            self.inverse,
            self.forget,
            predictions,
            learned,
        )
        diverged = {
            place: Diverged(
                f"the value or a weight of user_id {users.row_ids[place]!r} or item_id {items.row_ids[place]!r} "
                f"left its bound of {self.max_weight:g}"
            )
            for place in np.flatnonzero(~learned).tolist()
        }
        for family, group in met.items():
            group.admit(diverged)
            left = group.numbers >= 0  # what diverged may have been the only record of its id
            self._fitting(family)[group.numbers[left]] = rows[family][left]
        return predictions[learned], diverged

    def _rows_of(self, family: str, group: Group) -> Array:
        """The rows that a group of events meets, new ones as they begin."""
        rows = self._tables[family].take(group.numbers, axis=0)
        new = np.flatnonzero(group.numbers < 0)
        if len(new):
            rows[new] = 0.0
            if family == ITEM:
                fresh = [group.distinct[place] for place in new.tolist()]
                for rater, block in zip(self.factors, self._blocks[ITEM], strict=False):
                    drawn = initial(fresh, rater.n_factors, rater.spread, rater.seed)
                    rows[new, block.at + 1 : block.at + block.width] = drawn
        return rows

    def _fitting(self, family: str) -> Array:
        """The table of a family, with a place for each number."""
        table = self._tables[family] = grown(self._tables[family], len(self.ids[family].names))
        return table

    # ---------------------------------------------------------------------------------------- serving

    def to_publish(self) -> FilterModel:
        model = copy.copy(self)
        model.figures, model.weights = self.figures.copy(), self.weights.copy()
        return model

    def biases(self, family: str, weights: Array) -> Array:
        rows = weights.view("<f4").astype("<f8")
        of_raters = self._biases_of_raters(family, rows)
        if not self.is_stack:
            return of_raters[:, 0]
        alone, much, many, _ = self._shares()
        known, of_row = self._contexts(family, rows)
        shares = alone + known[:, None] * (much if family == USER else many)
        biases: Array = of_row + (shares * of_raters).sum(axis=1)
        return biases

    def _contexts(self, family: str, rows: Array) -> tuple[Array, Array]:
        """How much is known of the user or item of each row, as the stack counts it; and what its contexts add."""
        contexts = self.weights[-CONTEXTS:]
        if family == USER:
            kept = rows[:, -OF_USER - 1 : -1]
            known = np.log1p(kept[:, COUNT]) / 4
            of_row = known * contexts[MUCH] + contexts[IN_SESSION]
            for place, column in ((USER_RECENT, RECENT), (USER_SLOW, SLOW), (USER_SESSION, SESSION)):
                of_row += contexts[place] * kept[:, column]
        else:
            known = np.log1p(rows[:, COUNT - OF_ITEM]) / 4
            of_row = contexts[MANY] * known + contexts[ITEM_RECENT] * rows[:, RECENT - OF_ITEM]
        return known, of_row

    def vectors(self, family: str, weights: Array) -> Array:
        """
        Notes
        -----
        The weight of rater k for a user and an item is $a_k + b_k m_u + c_k m_i$, with m by how much is known of them.
        So a product that it predicts is the sum of two: of the user's side with $a_k + b_k m_u$ and of $c_k$ times the
        user's with $m_i$ times the item's.
        """
        rows, n = weights.view("<f4").astype("<f8"), len(self.factors)
        blocks = self._blocks[family]
        of_factors = [rows[:, block.at + 1 : block.at + block.width] for block in blocks[:n]]
        if not self.is_stack:
            return of_factors[0]
        alone, much, many, _ = self._shares()
        of_raters = self._biases_of_raters(family, rows)
        coefficients = np.stack([rows[:, block.at + 1 : block.at + block.width] for block in blocks[n:]], axis=1)
        if family == USER:
            known = np.log1p(rows[:, COUNT - OF_USER - 1])[:, None] / 4
            shares = alone + known * much
            first = [shares[:, k : k + 1] * of_factors[k] for k in range(n)]
            features = self._features(family, rows[:, -OF_USER - 3 : -OF_USER - 1])
            rest = [
                *(many[k] * of_factors[k] for k in range(n)),
                np.einsum("rk,rkf->rf", shares[:, n:], coefficients),
                np.einsum("k,rkf->rf", many[n:], coefficients),
                features,
                known * features,
                known,
                of_raters @ many[:, None],
            ]
            scale = _APART
        else:
            known = np.log1p(rows[:, COUNT - OF_ITEM])[:, None] / 4
            shares = alone + known * many
            first = of_factors
            features = self._features(family, rows[:, -OF_ITEM - 2 : -OF_ITEM])
            rest = [
                *(known * of for of in of_factors),
                features,
                known * features,
                np.einsum("rk,rkf->rf", shares[:, n:], coefficients),
                np.einsum("k,rkf->rf", much[n:], coefficients),
                of_raters @ much[:, None],
                known,
            ]
            scale = 1.0 / _APART
        return np.concatenate([*first, *(scale * of for of in rest)], axis=1)

    def predicted(self, user_id: str) -> Array:
        """
        Notes
        -----
        Rater by rater, where :meth:`vectors` would write out several times the factors for all items.
        """
        from udfs import kernels

        user = self._tables[USER][self.ids[USER][user_id]][None].astype("<f8")
        items, n = self._tables[ITEM][: len(self.ids[ITEM].names)], len(self.factors)
        of_raters = self._biases_of_raters(ITEM, items).astype("<f8") + self._biases_of_raters(USER, user)
        columns = [*of_raters.T.copy()]
        blocks = [*zip(columns, self._blocks[USER], self._blocks[ITEM], strict=True)]
        for column, of_user, of_item in blocks[:n]:
            kernels.add_products(items, of_item.at + 1, user[0, of_user.at + 1 : of_user.at + of_user.width], column)
        if not self.is_stack:
            return np.asarray(columns[0] + self.global_mean())
        kept = items[:, -OF_ITEM - 2 :].astype("<f8")
        seen = self._features(USER, user[:, -OF_USER - 3 : -OF_USER - 1])[0]
        features = np.ascontiguousarray(self._features(ITEM, kept[:, :-OF_ITEM]))
        for column, of_user, of_item in blocks[n:]:
            kernels.add_products(features, 0, user[0, of_user.at + 1 : of_user.at + of_user.width], column)
            kernels.add_products(items, of_item.at + 1, seen, column)
        alone, much, many, _ = self._shares()
        known_user, of_user_row = self._contexts(USER, user)
        known, of_items = self._contexts(ITEM, kept)
        predicted: Array = of_items + (of_user_row[0] + self.global_mean())
        for rater, column in enumerate(columns):
            predicted += (alone[rater] + known_user[0] * much[rater] + known * many[rater]) * column
        return predicted

    def _shares(self) -> tuple[Array, Array, Array, Array]:
        """What each rater's prediction counts: alone, times what is known of the user, and of the item, the first of
        which add up to 1, the others to 0; and the weights of contexts."""
        n = len(self._blocks[USER])
        alone, much, many = self.weights[:-CONTEXTS].reshape(3, n - 1) @ contrasts(n)
        return alone + 1 / n, much, many, self.weights[-CONTEXTS:]

    def _biases_of_raters(self, family: str, rows: Array) -> Array:
        return rows[:, [block.at for block in self._blocks[family]]]

    def _features(self, family: str, sums: Array) -> Array:
        """What filters of tastes see of users or of items, but for the constant."""
        features = np.empty((KNOWN if family == ITEM else SEEN, len(sums)))
        if family == ITEM:
            item_features.py_func(sums.T, self.figures, features)
        else:
            user_features.py_func(sums.T, features)
        return features[1:].T

    def global_mean(self) -> float:
        base, drift = self.weights[[BASE - CONTEXTS, DRIFT - CONTEXTS]] if self.is_stack else (0.0, 0.0)
        return float(self.figures[MEAN] + base + drift * self.drift[0])

    # ------------------------------------------------------------------------------------------ bytes

    def header(self) -> bytes:
        return orjson.dumps(
            {
                "model": self.name,
                "filter_rows": _ROW_LAYOUT,
                "raters": self._raters(),
                "arrays": {name: _encoded(array) for name, array in self._arrays().items()},
            }
        )

    def _raters(self) -> list[list[int]]:
        return [[block.width, block.size] for block in self._blocks[USER]]

    def _arrays(self) -> dict[str, Array]:
        return {"figures": self.figures, "drift": self.drift, "weights": self.weights, "inverse": self.inverse}

    def restore_header(self, blob: bytes) -> None:
        stored = orjson.loads(blob)
        for what, mine in (("model", self.name), ("filter_rows", _ROW_LAYOUT), ("raters", self._raters())):
            if stored.get(what) != mine:
                raise ValueError(
                    f"the state was learned with {what} = {stored.get(what)}, this job has {what} = {mine}: "
                    "set it as it was, or start anew with --fresh"
                )
        for name, array in self._arrays().items():
            array[...] = np.frombuffer(base64.b64decode(stored["arrays"][name]), "<f8").reshape(array.shape)

    def encode_rows(self, family: str, row_ids: Sequence[str], numbers: Array) -> Array:
        return self._tables[family].take(numbers, axis=0).view("<f8")

    def decode_rows(self, family: str, row_ids: Sequence[str], blobs: Sequence[bytes]) -> None:
        columns = self._tables[family].shape[1]
        for row_id, blob in zip(row_ids, blobs, strict=True):
            if len(blob) != 4 * columns:
                raise ValueError(
                    f"the row of {family} {row_id!r} has {len(blob)} bytes, {self.name} has rows of {4 * columns}: set "
                    "model.n_factors as it was"
                )
        numbers = self.ids[family].add(row_ids)
        self._fitting(family)[numbers] = np.frombuffer(b"".join(blobs), "<f4").reshape(len(blobs), columns)

    def drop(self, family: str, row_ids: Sequence[str]) -> None:
        self.ids[family].remove(row_ids)  # whose number it is next begins with a row of its own

    def columns(self, family: str) -> Columns:
        raise ModelError(
            f"model: rows of {self.name} hold how sure it is of each weight, which can't be merged; reshard to a "
            "multiple of the shards there are"
        )

    def pool(self, n: int, global_mean: float) -> None:
        self.columns(USER)


def _blocks(raters: Sequence[Rater], coefficients: int) -> list[_Block]:
    blocks, at = [], 0
    for rater in raters:
        if isinstance(rater, KalmanMF):
            width = 1 + rater.n_factors
            size = 2 * width
        else:
            width = coefficients
            size = width + width * width
        blocks.append(_Block(at, width, size))
        at += size
    return blocks


def _encoded(array: Array) -> str:
    return base64.b64encode(array.astype("<f8").tobytes()).decode()
