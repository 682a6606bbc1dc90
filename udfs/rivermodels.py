"""River's recommenders as rows: where each keeps what it learns of an id, and how an update is undone."""

from __future__ import annotations

import copy
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import orjson
from river import optim, reco, stats

from udfs.draws import Draws, decode_generator, encode_generator
from udfs.ids import Group, Ids
from udfs.models import ITEM, USER, Array, Columns, Diverged, ModelError, RowModel

_PROBE: Final = "probe"
_LARGEST: Final = sys.float_info.max
_ROW_LAYOUT: Final = 1
# Their slots are sums of gradients: they turn with the vectors, and a mean of them is as good as a mean of weights.
_LINEAR: Final = (optim.Momentum, optim.NesterovMomentum)


@dataclass(frozen=True)
class _Table:
    """One River attribute that maps ids to weights, with the optimiser that keeps state beside it."""

    family: str
    weights: str
    optimizer: str
    is_vector: bool


_BIASES: Final = (
    _Table(USER, "u_biases", "u_bias_optimizer", False),
    _Table(ITEM, "i_biases", "i_bias_optimizer", False),
)
_LATENTS: Final = (
    _Table(USER, "u_latents", "u_latent_optimizer", True),
    _Table(ITEM, "i_latents", "i_latent_optimizer", True),
)


def _named(tables: Sequence[_Table]) -> tuple[_Table, ...]:
    """The same tables where River calls the optimisers ``u_optimizer`` and ``i_optimizer``."""
    return tuple(_Table(t.family, t.weights, f"{t.family[0]}_optimizer", t.is_vector) for t in tables)


@dataclass(frozen=True)
class ModelKind:
    """A River recommender, and where it keeps what it learns."""

    estimator: type[reco.base.Ranker]
    tables: tuple[_Table, ...]
    initializers: tuple[str, ...]


KINDS: Final[Mapping[str, ModelKind]] = {
    "baseline": ModelKind(reco.Baseline, _named(_BIASES), ("initializer",)),
    "funk_mf": ModelKind(reco.FunkMF, _named(_LATENTS), ("initializer",)),
    "biased_mf": ModelKind(reco.BiasedMF, (*_BIASES, *_LATENTS), ("weight_initializer", "latent_initializer")),
}


@dataclass(frozen=True)
class _Places:
    """Where a family's numbers live, weights and optimiser slots alike: scalars apart from vectors.

    The bounds are for the check of an update: of scalars ``(place, bound)``, of vectors ``(place, bound, its
    square)``. The bound of a slot only keeps it finite: a sum of squared gradients may well be large while the
    weights are not.
    """

    scalars: list[dict[str, Any]]
    arrays: list[dict[str, Any]]
    scalar_bounds: list[tuple[dict[str, Any], float]]
    array_bounds: list[tuple[dict[str, Any], float, float]]

    @classmethod
    def of(
        cls, columns: Sequence[tuple[dict[str, Any], bool]], weights: Sequence[dict[str, Any]], bound: float
    ) -> _Places:
        scalars = [place for place, is_vector in columns if not is_vector]
        arrays = [place for place, is_vector in columns if is_vector]

        def bound_of(place: dict[str, Any]) -> float:
            return bound if any(place is table for table in weights) else _LARGEST

        return cls(
            scalars,
            arrays,
            [(place, bound_of(place)) for place in scalars],
            [(place, bound_of(place), min(bound_of(place) * bound_of(place), _LARGEST)) for place in arrays],
        )


class RiverRanker(RowModel):
    """A River recommender as rows.

    The River object does all the arithmetic: learning here is learning there, bit for bit. What this adds is
    to know where it keeps each id's weights and optimiser state, to write them as bytes, and to undo an
    update that diverged.

    Notes
    -----
    A row is the weights of the id's tables in their order, each followed by its optimiser's slots (``m`` and
    ``v`` of Adam, say), as little-endian doubles. The header holds the global mean, the optimisers' counters
    and the state of the generator that initialises new rows.
    """

    families: tuple[str, ...] = (USER, ITEM)

    def __init__(self, name: str, kind: ModelKind, create: Callable[[], Any], max_weight: float) -> None:
        self.name = name
        self.kind = kind
        self.model = create()
        self.max_weight = max_weight
        self.n_factors: int = self.model.n_factors if any(t.is_vector for t in kind.tables) else 0
        self.ids = {family: Ids() for family in self.families}
        self._slots = self._probe(create())
        self._mean: stats.Mean | None = getattr(self.model, "global_mean", None)
        self._optimizers = {t.optimizer: getattr(self.model, t.optimizer) for t in kind.tables}
        self._counter = self._optimizers[kind.tables[0].optimizer]  # all of them step once a record
        for table in kind.tables:
            for slot in self._slots[table.optimizer]:
                # Some optimisers make their slots in the first step; made here, a restored row has a place.
                if not isinstance(getattr(self._optimizers[table.optimizer], slot), dict):
                    setattr(self._optimizers[table.optimizer], slot, defaultdict(float))
        self._columns = self._columns_of(self.model)
        weights = [getattr(self.model, table.weights) for table in kind.tables]
        self._user_rows = _Places.of(self._columns[USER], weights, max_weight)
        self._item_rows = _Places.of(self._columns[ITEM], weights, max_weight)
        self._draws = Draws([(getattr(self.model, name), n) for name, n in self._initial_shapes()])
        self._known = {f: self._columns[f][0][0] for f in self.families}
        self._widths = {f: [self.n_factors if vector else 1 for _, vector in c] for f, c in self._columns.items()}
        self._sizes = {f: 8 * sum(w) for f, w in self._widths.items()}
        # Biases come first in a row, then what is kept with them, then the vector.
        scalars = {
            f: [1 + len(self._slots[t.optimizer]) for t in kind.tables if t.family == f and not t.is_vector]
            for f in self.families
        }
        self._bias_at = {f: 0 if columns else None for f, columns in scalars.items()}
        self._vector_at = {f: sum(columns) for f, columns in scalars.items()}

    def _columns_of(self, model: Any) -> dict[str, list[tuple[dict[str, Any], bool]]]:
        """Where a River object keeps the columns of a row, by family, and whether they are arrays."""
        columns: dict[str, list[tuple[dict[str, Any], bool]]] = {USER: [], ITEM: []}
        for table in self.kind.tables:
            optimizer = getattr(model, table.optimizer)
            places = [getattr(model, table.weights), *(getattr(optimizer, s) for s in self._slots[table.optimizer])]
            columns[table.family] += [(place, self._is_array(table)) for place in places]
        return columns

    def _is_array(self, table: _Table) -> bool:
        """Whether River keeps arrays there: a vector of one factor is a number to it."""
        return table.is_vector and self.n_factors > 1

    def _initial_shapes(self) -> list[tuple[str, int]]:
        """The initialisers that draw, and how many numbers they draw for a row."""
        shapes = [self.n_factors if t.is_vector else 1 for t in self.kind.tables if t.family == USER]
        drawing = zip(self.kind.initializers, shapes, strict=True)
        return [(name, n) for name, n in drawing if hasattr(getattr(self.model, name), "_rng")]

    def _probe(self, model: Any) -> dict[str, list[str]]:
        """Learns once on a throwaway model, to find what each optimiser keeps for an id."""
        try:
            for _ in range(2):  # some optimisers only meet their own state in the second step
                model.learn_one(_PROBE, _PROBE, 1.0)
        except (TypeError, ValueError, ArithmeticError, AttributeError) as error:
            raise ModelError(f"model: {self.name} can't learn with these settings: {error}") from error
        slots: dict[str, list[str]] = {}
        for table in self.kind.tables:
            optimizer = getattr(model, table.optimizer)
            slots[table.optimizer] = sorted(
                n for n, v in vars(optimizer).items() if isinstance(v, dict) and _PROBE in v
            )
            for name, value in vars(optimizer).items():
                if name in slots[table.optimizer] or name == "lr" or value is None or isinstance(value, int | float):
                    continue
                if isinstance(value, dict) and not value:
                    continue
                raise ModelError(
                    f"model.{table.optimizer.split('_', 1)[1]}: {type(optimizer).__name__} keeps {name!r}, "
                    "which has no place in a row; use SGD, AdaGrad, Adam, RMSProp or Momentum"
                )
            for name in slots[table.optimizer]:
                shape = np.shape(getattr(optimizer, name)[_PROBE])
                if shape != ((self.n_factors,) if self._is_array(table) else ()):
                    raise ModelError(f"model: {type(optimizer).__name__}.{name} has shape {shape}, not a row's")
        return slots

    # --------------------------------------------------------------------------------------- learning

    def learn(
        self, users: Group, items: Group, ys: Array, times: Array | None = None
    ) -> tuple[Array, dict[int, Diverged]]:
        predictions: list[float] = []
        diverged: dict[int, Diverged] = {}
        for place, (user_id, item_id, y) in enumerate(zip(users.row_ids, items.row_ids, ys.tolist(), strict=True)):
            inherited = [*self._inherit(USER, users, place), *self._inherit(ITEM, items, place)]
            try:
                predictions.append(self._learn_one(user_id, item_id, y))
            except Diverged as verdict:
                diverged[place] = verdict
                for rows, row_id in inherited:
                    del rows[row_id]
        users.admit(diverged)
        items.admit(diverged)
        return np.array(predictions, dtype="<f8"), diverged

    def _learn_one(self, user_id: str, item_id: str, y: float) -> float:
        # This runs for every event: it holds River's two calls, copies of what they change, and a check.
        model, mean = self.model, self._mean
        user_rows, item_rows = self._user_rows, self._item_rows
        new_user, new_item = user_id not in self._known[USER], item_id not in self._known[ITEM]
        if new_user or new_item:
            self._draws.count(new_user + new_item)
        if mean is not None:
            mean_n, mean_value = mean.n, mean._mean
        prediction = float(model.predict_one(user_id, item_id))
        before_scalars = [rows.get(user_id) for rows in user_rows.scalars]
        before_scalars += [rows.get(item_id) for rows in item_rows.scalars]
        before_arrays = [rows[user_id].copy() if user_id in rows else None for rows in user_rows.arrays]
        before_arrays += [rows[item_id].copy() if item_id in rows else None for rows in item_rows.arrays]
        iterations = self._counter.n_iterations
        try:
            model.learn_one(user_id, item_id, y)
            if self._sound(user_id, item_id):
                return prediction
        except ArithmeticError:  # what overflows to inf in numpy raises in plain Python
            pass

        if mean is not None:
            mean.n, mean._mean = mean_n, mean_value
        places = [(rows, user_id) for rows in user_rows.scalars] + [(rows, item_id) for rows in item_rows.scalars]
        places += [(rows, user_id) for rows in user_rows.arrays] + [(rows, item_id) for rows in item_rows.arrays]
        for (rows, row_id), value in zip(places, before_scalars + before_arrays, strict=True):
            if value is None:
                rows.pop(row_id, None)
            else:
                rows[row_id] = value
        for optimizer in self._optimizers.values():
            optimizer.n_iterations = iterations
        for family, row_id, is_new in ((USER, user_id, new_user), (ITEM, item_id, new_item)):
            if is_new:
                self._forget(family, row_id)
        raise self._diverged(user_id, item_id)

    def _inherit(self, family: str, group: Group, place: int) -> list[tuple[dict[str, Any], str]]:
        """Gives the id of an event the weights that it begins with; returns where they are, if there were any."""
        heir = group.heirs.get(int(group.slots[place])) if group.heirs else None
        if heir is None:
            return []
        row_id, of = group.row_ids[place], group.distinct[heir]
        if row_id in self._known[family] or of not in self._known[family]:
            return []
        for rows, is_vector in self._columns[family]:
            rows[row_id] = rows[of].copy() if is_vector else rows[of]
        return [(rows, row_id) for rows, _ in self._columns[family]]

    def _forget(self, family: str, row_id: str) -> None:
        """Takes back a row that was just drawn."""
        for rows, _ in self._columns[family]:
            rows.pop(row_id, None)
        self._draws.undo()

    def _diverged(self, user_id: str, item_id: str) -> Diverged:
        return Diverged(f"a weight of user_id {user_id!r} or item_id {item_id!r} left its bound of {self.max_weight:g}")

    def _sound(self, user_id: str, item_id: str) -> bool:
        """Whether each weight of both rows is within its bound, and all else that is kept of them finite."""
        bound = self.max_weight
        if self._mean is not None and not -bound <= self._mean._mean <= bound:
            return False
        for rows, row_id in ((self._user_rows, user_id), (self._item_rows, item_id)):
            for scalars, bound in rows.scalar_bounds:
                # A comparison with NaN is false, which is what is wanted here.
                if row_id in scalars and not -bound <= scalars[row_id] <= bound:
                    return False
            for arrays, bound, square in rows.array_bounds:
                if row_id in arrays:
                    vector = arrays[row_id]
                    # The norm bounds every element: cheap, and right in all but extreme cases, which look closer.
                    if not vector.dot(vector) <= square and not np.all(np.abs(vector) <= bound):
                        return False
        return True

    # ------------------------------------------------------------------------------------------ bytes

    def header(self) -> bytes:
        optimizers = {
            name: {k: v for k, v in vars(o).items() if isinstance(v, int | float)}
            for name, o in self._optimizers.items()
        }
        return orjson.dumps(
            {
                "model": self.name,
                "river_rows": _ROW_LAYOUT,
                "n_factors": self.n_factors,
                "slots": self._slots,
                "mean": None if self._mean is None else [self._mean.n, self._mean._mean],
                "optimizers": optimizers,
                "generators": [encode_generator(g) for g in self._draws.generators],
            }
        )

    def restore_header(self, blob: bytes) -> None:
        stored = orjson.loads(blob)
        for what, mine in (
            ("model", self.name),
            ("river_rows", _ROW_LAYOUT),
            ("n_factors", self.n_factors),
            ("slots", self._slots),
        ):
            if stored[what] != mine:
                raise ValueError(
                    f"the state was learned with {what} = {stored[what]}, this job has {what} = {mine}: "
                    "set it as it was, or start anew with --fresh"
                )
        if self._mean is not None:
            self._mean.n, self._mean._mean = stored["mean"]
        for name, values in stored["optimizers"].items():
            vars(self._optimizers[name]).update(values)
        for generator, state in zip(self._draws.generators, stored["generators"], strict=True):
            decode_generator(generator, state)
        self._draws.mark()

    def encode_rows(self, family: str, row_ids: Sequence[str], numbers: Array) -> Array:
        weights, at = np.empty((len(row_ids), sum(self._widths[family])), dtype="<f8"), 0
        for (place, is_vector), width in zip(self._columns[family], self._widths[family], strict=True):
            values = [place[row_id] for row_id in row_ids]
            # Joining arrays as bytes takes half the time of numpy's own ways, which look at each.
            columns = np.frombuffer(b"".join(values), dtype="<f8") if is_vector else np.array(values, dtype="<f8")
            weights[:, at : at + width] = columns.reshape(len(row_ids), width)
            at += width
        return weights

    def decode_rows(self, family: str, row_ids: Sequence[str], blobs: Sequence[bytes]) -> None:
        self._check_sizes(family, row_ids, blobs)
        self.ids[family].add(row_ids)
        for row_id, blob in zip(row_ids, blobs, strict=True):
            values = np.frombuffer(blob, dtype="<f8").copy()
            at = 0
            for (place, is_vector), width in zip(self._columns[family], self._widths[family], strict=True):
                place[row_id] = values[at : at + width] if is_vector else float(values[at])
                at += width

    def drop(self, family: str, row_ids: Sequence[str]) -> None:
        self.ids[family].remove(row_ids)
        for rows, _ in self._columns[family]:
            for row_id in row_ids:
                rows.pop(row_id, None)

    def _check_sizes(self, family: str, row_ids: Sequence[str], blobs: Sequence[bytes]) -> None:
        if {*map(len, blobs)} <= {self._sizes[family]}:
            return
        for row_id, blob in zip(row_ids, blobs, strict=True):
            if len(blob) != self._sizes[family]:
                raise ValueError(
                    f"the row of {family} {row_id!r} has {len(blob)} bytes, {self.name} with n_factors = "
                    f"{self.n_factors} has rows of {self._sizes[family]}"
                )

    def biases(self, family: str, weights: Array) -> Array:
        at = self._bias_at[family]
        return np.zeros(len(weights)) if at is None else weights[:, at]

    def vectors(self, family: str, weights: Array) -> Array:
        at = self._vector_at[family]
        return weights[:, at : at + self.n_factors]

    def river(self) -> Any:
        """A River recommender of its own that has learned the same, to go on with elsewhere."""
        return copy.deepcopy(self.model)

    def global_mean(self) -> float:
        return 0.0 if self._mean is None else float(self._mean.get())

    def columns(self, family: str) -> Columns:
        bias, vectors, at = None, [], 0
        for table in self.kind.tables:
            if table.family != family:
                continue
            slots, optimizer = self._slots[table.optimizer], self._optimizers[table.optimizer]
            if slots and not isinstance(optimizer, _LINEAR):
                raise ModelError(
                    f"model: rows learned with {type(optimizer).__name__} hold {', '.join(slots)}, which can't be "
                    "carried from one factor space to another; those of SGD, Momentum and NesterovMomentum can"
                )
            if table.is_vector:
                vectors = [at + place * self.n_factors for place in range(1 + len(slots))]
            else:
                bias = at
            at += (1 + len(slots)) * (self.n_factors if table.is_vector else 1)
        return Columns(bias, tuple(vectors))

    def pool(self, n: int, global_mean: float) -> None:
        if self._mean is not None:
            self._mean.n, self._mean._mean = float(n), global_mean
