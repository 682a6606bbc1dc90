"""The blend as a model of the job: rows in state and in Redis, and how it is evaluated while it learns."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import orjson

from serving.blend import DECAYED, HISTORY, LINKS, STATS
from serving.schema import Field
from udfs.blend import ALL, BLEND, LEFT_OUT, NEW, POPS, Blend, Parts
from udfs.history import BASKET, EVENTS, HELD, SIZE
from udfs.ids import Group
from udfs.models import ITEM, USER, Array, Columns, ModelError, RankingModel
from udfs.pieces import Pieces, side_by_side
from udfs.popularity import divided, logarithms
from udfs.ranking import BASELINES, Predicted, RankingConfig, grouped

_LAYOUT: Final = 1
_EVALUATED: Final = (BLEND, 1 + DECAYED, POPS)  # in the order of the model's rankers
# What lies in the header as it is in memory.
_ARRAYS: Final = ("weights", "squares", "scales", "tops", "marks")
_MARKS: Final = {"size": SIZE, "basket": BASKET, "events": EVENTS, "held": HELD}  # of users, as HISTORY names them
# Settings that readers need.
_SERVED: Final = ("recent", "basket", "gamma", "gamma_far", "alpha", "recent_embedded", "gamma_embedded")


def _item_row(n_factors: int) -> Any:
    """The fixed part of an item's row; then come its links, as :data:`serving.blend.LINKS` has them."""
    return np.dtype(
        [
            ("number", "<u4"),
            ("follows", "<u4"),  # how many links
            ("near", "<u4"),
            ("spare", "<u4"),
            ("count", "<f8"),
            ("repeated", "<f8"),
            ("follows_sum", "<f8"),
            ("near_sum", "<f8"),
            ("popular", "<f8", (POPS,)),
            ("divided", "<u8", (POPS,)),  # how often the weights were divided
            ("squares", "<f4", (2,)),
            ("inputs", "<f4", (n_factors,)),
            ("outputs", "<f4", (n_factors,)),
        ]
    )


class BlendModel(RankingModel):
    """A :class:`~udfs.blend.Blend` that lives in the job.

    Parameters
    ----------
    blend
        New.

    Examples
    --------
    >>> model = BlendModel(Blend(n_factors=4))
    >>> users, items = Group(model.ids[USER], ["ann", "bob"]), Group(model.ids[ITEM], ["tea", "tea"])
    >>> model.rank_then_learn(users, items, np.array([1, 2]), 0, RankingConfig()).better.tolist()
    [[-1, -1, -1], [0, 0, 0]]
    """

    name = "blend"
    families = (USER, ITEM)
    rankers = (name, *BASELINES)
    baselines = BASELINES

    def __init__(self, blend: Blend) -> None:
        self.blend = blend
        self.ids = {USER: blend.users, ITEM: blend.items}
        self.n_factors = blend.n_factors
        self._item_row = _item_row(blend.n_factors)

    # --------------------------------------------------------------------------------------- learning

    def rank_then_learn(
        self, users: Group, items: Group, times: Array, first: int, config: RankingConfig | None
    ) -> Predicted:
        users.admit(())
        items.admit(())
        blend, of_events, of_items = self.blend, users.numbers[users.slots], items.numbers[items.slots]
        blend.fit()
        wanted = np.zeros(len(times), dtype=np.bool_) if config is None else config.evaluated(first, len(times))
        config = config or RankingConfig()
        protocol = LEFT_OUT if config.others == "left out" else ALL if config.repeats else NEW
        cut = 0
        if config.held_out:
            met, (rows, firsts) = blend.parts.met, np.unique(of_events, return_index=True)
            cut = int(np.count_nonzero((met.marks[rows, EVENTS] > 0) & (met.times[rows] == times[firsts])))
            if np.any(np.diff(times) < 0):  # as they arrived: there are others between the events of a group
                order, starts = grouped(times, of_events)
                begun = order[starts[:-1]]
                cut += len(begun) - np.unique(np.stack([times[begun], of_events[begun]]), axis=1).shape[1]
        found = blend.rank_then_learn(of_events, of_items, times, wanted, config, _EVALUATED, (protocol,))
        return Predicted(
            found.events, found.better[:, 0], found.ties[:, 0], found.returning, found.head, found.offered, cut
        )

    def also_changed(self) -> Array:
        changed = self.blend.parts.changed
        numbers = np.flatnonzero(changed)
        changed[numbers] = 0
        return numbers

    def drop(self, family: str, row_ids: Sequence[str]) -> None:
        if family != USER:
            raise ModelError("blend: items keep their rows, as those of others are linked to them")
        met, numbers = self.blend.parts.met, self.ids[USER].remove(row_ids)
        for of in (met.counts, met.rates, met.baskets, met.marks, met.times):
            of[numbers] = 0
        met.items[numbers] = -1

    def global_mean(self) -> float:
        return 0.0

    def columns(self, family: str) -> Columns:
        raise ModelError(
            "blend: the links and counts of several shards can't be merged; reshard to a multiple of the shards there "
            "are"
        )

    def pool(self, n: int, global_mean: float) -> None:
        pass

    # ------------------------------------------------------------------------------------------ bytes

    def _shape(self) -> dict[str, Any]:
        """What rows depend on."""
        blend = self.blend
        return {
            "model": self.name,
            "layout": _LAYOUT,
            "n_factors": blend.n_factors,
            "neighbours": blend.neighbours,
            "history": blend.seen,
            "features": blend.parts.weights.shape,
        }

    def header(self) -> bytes:
        parts = self.blend.parts
        arrays = {name: base64.b64encode(getattr(parts, name).tobytes()).decode() for name in _ARRAYS}
        popular = [[float(of).hex() for of in row] for row in parts.popular.scales.tolist()]
        return orjson.dumps(self._shape() | {"arrays": arrays, "popular": popular})

    def restore_header(self, blob: bytes) -> None:
        stored = orjson.loads(blob)
        for what, mine in self._shape().items():
            found = stored.get(what)
            if found != (list(mine) if isinstance(mine, tuple) else mine):
                raise ValueError(
                    f"the state was learned with {what} = {found}, this job has {what} = {mine}: "
                    "set it as it was, or start anew with --fresh"
                )
        for name in _ARRAYS:
            of = getattr(self.blend.parts, name)
            of[...] = np.frombuffer(base64.b64decode(stored["arrays"][name]), of.dtype).reshape(of.shape)
        self.blend.parts.popular.scales[...] = [[float.fromhex(of) for of in row] for row in stored["popular"]]

    def encode_rows(self, family: str, row_ids: Sequence[str], numbers: Array) -> Array:
        of, n = self.blend.parts, len(numbers)
        if family == USER:
            heads = np.zeros(n, HISTORY)
            for name, at in _MARKS.items():
                heads[name] = of.met.marks[numbers, at]
            heads["time"] = of.met.times[numbers]
            return _words(heads)
        rows = np.zeros(n, self._item_row)
        rows["number"] = numbers
        rows["follows"] = np.count_nonzero(of.follows.items[numbers] >= 0, axis=1)
        rows["near"] = np.count_nonzero(of.near.items[numbers] >= 0, axis=1)
        for name, column in _columns(of):
            rows[name] = column[numbers]
        rows["popular"] = of.popular.weights[:, numbers].T
        rows["divided"] = of.popular.scales[:, 2]
        return _words(rows)

    def encode_tails(self, family: str, numbers: Array) -> Pieces:
        of = self.blend.parts
        if family == USER:
            met = of.met
            columns = [met.items, met.counts, met.rates, met.baskets]
            width = int(met.marks[numbers, SIZE].max(initial=0))
            items = met.items[numbers, :width]
            return _joined([column[numbers, :width] for column in columns], [items >= 0] * 4)
        links: list[Array] = []
        masks: list[Array] = []
        for table in (of.follows, of.near):
            items = table.items[numbers]
            width = int(np.count_nonzero(items >= 0, axis=1).max(initial=0))
            links += (items[:, :width], table.weights[numbers, :width])
            masks += [items[:, :width] >= 0] * 2
        return _joined(links, masks)

    def decode_rows(self, family: str, row_ids: Sequence[str], blobs: Sequence[bytes]) -> None:
        numbers = self.ids[family].add(row_ids)
        self.blend.fit()
        of = self.blend.parts
        fixed = HISTORY if family == USER else self._item_row
        rows = np.frombuffer(b"".join([blob[: fixed.itemsize] for blob in blobs]), fixed)
        if family == USER:
            met, lengths = of.met, [np.minimum(rows["size"], self.blend.seen)] * 4
            for name, at in _MARKS.items():
                met.marks[numbers, at] = rows[name]
            met.times[numbers] = rows["time"]
            targets = [met.items, met.counts, met.rates, met.baskets]
        else:
            for name, column in _columns(of):
                column[numbers] = rows[name]
            behind = of.popular.scales[:, 2] - rows["divided"]
            of.popular.weights[:, numbers] = divided(rows["popular"], behind).T
            lengths = [rows["follows"], rows["follows"], rows["near"], rows["near"]]
            targets = [of.follows.items, of.follows.weights, of.near.items, of.near.weights]
        _split(b"".join([blob[fixed.itemsize :] for blob in blobs]), numbers, lengths, targets)

    def number(self, parts: Sequence[bytes]) -> Array:
        return np.array([int.from_bytes(part[:4], "little") for part in parts], dtype=np.intp)

    # ------------------------------------------------------------------------------------------ Redis

    def vectors(self, family: str, weights: Array) -> Array:
        if family == USER:
            return np.empty((len(weights), 0), dtype=np.float32)
        outputs: Array = self._rows(weights)["outputs"]
        return outputs

    def _rows(self, weights: Array) -> Array:
        rows: Array = np.ascontiguousarray(weights).view(self._item_row)[:, 0]
        return rows

    def more_fields(self, family: str, weights: Array, tails: Sequence[bytes]) -> Mapping[str, Array | Sequence[bytes]]:
        if family == USER:
            return {Field.HISTORY: side_by_side([Pieces.of_rows(weights), Pieces.of(tails)], len(weights))}
        rows = self._rows(weights)
        stats, links = np.zeros(len(rows), STATS), np.zeros(len(rows), LINKS)
        for name in ("number", "count", "repeated", "near_sum"):
            stats[name] = rows[name]
        stats["popularity"] = logarithms(rows["popular"], rows["divided"])
        for name in ("follows", "near", "follows_sum", "near_sum"):
            links[name] = rows[name]
        links["factors"] = self.n_factors
        heads = np.concatenate([_octets(links), _octets(rows["inputs"])], axis=1)
        return {
            Field.STATS: stats[:, None],
            Field.LINKS: side_by_side([Pieces.of_rows(heads), Pieces.of(tails)], len(rows)),
        }

    def header_fields(self) -> Mapping[str, bytes | str | int]:
        blend = self.blend
        parts, settings = blend.parts, blend.settings
        known = int(parts.marks[0])
        totals = logarithms(parts.popular.scales[:, 1], parts.popular.scales[:, 2])
        return {
            "blend": orjson.dumps(
                {
                    "weights": parts.weights.tolist(),
                    "scales": parts.scales.tolist(),
                    "popularity": totals.tolist() if known else [],
                    "tops": parts.tops[parts.tops >= 0].tolist(),
                    "known": known,
                    **{name: getattr(settings, name) for name in _SERVED},
                }
            )
        }


def _columns(of: Parts) -> tuple[tuple[str, Array], ...]:
    """What items' rows hold as it is in memory."""
    return (
        ("count", of.counts),
        ("repeated", of.repeated),
        ("follows_sum", of.follows.sums),
        ("near_sum", of.near.sums),
        ("squares", of.vectors.squares),
        ("inputs", of.vectors.inputs),
        ("outputs", of.vectors.outputs),
    )


def _words(rows: Array) -> Array:
    words: Array = rows.view("<u8").reshape(len(rows), rows.dtype.itemsize // 8)
    return words


def _octets(rows: Array) -> Array:
    octets: Array = np.ascontiguousarray(rows).view(np.uint8).reshape(len(rows), -1)
    return octets


def _joined(tables: Sequence[Array], masks: Sequence[Array]) -> Pieces:
    """Of each row what is chosen of the first table, then of the second, and so on; all have items of four bytes."""
    whole = np.concatenate([np.ascontiguousarray(table).view("<u4") for table in tables], axis=1)
    mask = np.concatenate(masks, axis=1)
    bounds = np.zeros(len(mask) + 1, dtype=np.int64)
    np.cumsum(4 * np.count_nonzero(mask, axis=1), out=bounds[1:])
    return Pieces(whole[mask].view(np.uint8), bounds)


def _split(text: bytes, numbers: Array, lengths: Sequence[Array], tables: Sequence[Array]) -> None:
    """Puts what :func:`_joined` gave of rows into the rows of these numbers, of which nothing else is there."""
    counts = np.stack(lengths, axis=1).astype(np.int64)
    ends = np.cumsum(counts).reshape(counts.shape)
    words = np.frombuffer(text, "<u4")
    if len(words) != int(ends[-1, -1]):
        raise ValueError(f"rows of the blend have {len(words)} words besides, and tell of {ends[-1, -1]}")
    for at, table in enumerate(tables):
        widths = counts[:, at]
        columns = np.arange(int(widths.sum())) - np.repeat(np.cumsum(widths) - widths, widths)
        places = np.repeat(ends[:, at] - widths, widths) + columns
        table[np.repeat(numbers, widths), columns] = words[places].view(table.dtype)
