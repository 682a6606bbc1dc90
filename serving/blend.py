"""How a blend of recommenders ranks, from what Redis holds of it: the formats of its fields, and the scores.

The job's kernels, :mod:`udfs.blend`, compute the same while they learn, and say where the formulas are from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Final

import numpy as np
import orjson

Array = np.ndarray[Any, Any]

# What begins the field ``history`` of a user; then come so many items as their numbers (int32), how often each was met
# and the same faded (both float32), and in which basket it was met last (int32), column by column.
HISTORY: Final = np.dtype([("size", "<u4"), ("held", "<u4"), ("basket", "<i8"), ("events", "<i8"), ("time", "<i8")])
# What begins the field ``links`` of an item; then come what it says of its users (float32), the numbers of the items
# that follow (int32) and their weights (float32), and the same of those that are near.
LINKS: Final = np.dtype(
    [*((name, "<u4") for name in ("follows", "near", "factors", "spare")), ("follows_sum", "<f8"), ("near_sum", "<f8")]
)
# The field ``stats`` of an item: popularities are binary logarithms of faded counts, at the half-lives of the model.
STATS: Final = np.dtype(
    [
        ("number", "<u4"),
        ("spare", "<u4"),
        ("count", "<f8"),
        ("repeated", "<f8"),
        ("near_sum", "<f8"),
        ("popularity", "<f8", (4,)),
    ]
)
FADE: Final = 0.9  # what is left of a rate after a basket
DECAYED: Final = 1  # the popularity that orders what has no score
_HOUR: Final = 3_600_000
_OWN: Final = 9  # features of all items; those of items that the user met come after them
_MORE: Final = 13


@dataclass(frozen=True)
class BlendHeader:
    """What is learned of the blend as a whole.

    Attributes
    ----------
    weights
        By context and feature.
    scales
        Means of the sums over links.
    popularity
        Of the sums of all faded counts, binary logarithms.
    tops
        Numbers of the most popular items.
    known
        How many items there are.
    """

    weights: Array
    scales: Array
    popularity: Array
    tops: Array
    known: int
    recent: int
    gamma: float
    gamma_far: float
    alpha: float
    basket: int
    recent_embedded: int
    gamma_embedded: float

    @classmethod
    def parse(cls, text: bytes) -> BlendHeader:
        stored = orjson.loads(text)
        arrays = {name: np.array(stored[name], dtype="f8") for name in ("weights", "scales", "popularity")}
        arrays["tops"] = np.array(stored["tops"], dtype=np.intp)
        # A newer job may say more.
        return cls(**{of.name: arrays.get(of.name, stored[of.name]) for of in fields(cls)})

    def placed(self, rows: Array) -> BlendHeader:
        """The same with rows in the place of numbers, without items that have none."""
        return replace(self, tops=_placed(self.tops, rows)[0])


@dataclass(frozen=True)
class History:
    """What a user met of late, the newest last; see :data:`HISTORY`."""

    items: Array = field(default_factory=lambda: np.empty(0, dtype=np.intp))
    counts: Array = field(default_factory=lambda: np.empty(0))
    rates: Array = field(default_factory=lambda: np.empty(0))
    baskets: Array = field(default_factory=lambda: np.empty(0))
    held: int = 0
    basket: int = 0
    events: int = 0
    time: int = 0

    @classmethod
    def parse(cls, blob: bytes) -> History:
        head = np.frombuffer(blob, HISTORY, 1)[0]
        size, words = int(head["size"]), np.frombuffer(blob, "<i4", offset=HISTORY.itemsize).reshape(4, -1)
        if words.shape[1] != size:
            raise ValueError(f"a history tells of {size} items and has {words.shape[1]}")
        floats = words.view("<f4")
        return cls(
            words[0].astype(np.intp), floats[1].astype("f8"), floats[2].astype("f8"), words[3],
            *(int(head[name]) for name in ("held", "basket", "events", "time")),
        )  # fmt: skip

    def placed(self, rows: Array) -> History:
        """The same with rows in the place of numbers, without items that have none."""
        items, left = _placed(self.items, rows)
        return replace(self, items=items, counts=self.counts[left], rates=self.rates[left], baskets=self.baskets[left])


@dataclass(frozen=True)
class ItemLinks:
    """The links of an item: rows and weights; see :data:`LINKS`."""

    follows: tuple[Array, Array]
    near: tuple[Array, Array]
    follows_sum: float
    near_sum: float
    inputs: Array

    @classmethod
    def parse(cls, blob: bytes, rows: Array) -> ItemLinks:
        """``rows`` are in the place of numbers; items that have none are left out."""
        head, words = np.frombuffer(blob, LINKS, 1)[0], np.frombuffer(blob, "<i4", offset=LINKS.itemsize)
        factors = int(head["factors"])
        inputs, words = words[:factors].view("<f4"), words[factors:]
        pairs = []
        for start, size in ((0, int(head["follows"])), (2 * int(head["follows"]), int(head["near"]))):
            items, left = _placed(words[start : start + size], rows)
            pairs.append((items, words[start + size : start + 2 * size].view("<f4")[left].astype("f8")))
        follows, near = pairs
        return cls(follows, near, float(head["follows_sum"]), float(head["near_sum"]), inputs)


_EMPTY: Final = (np.empty(0, dtype=np.intp), np.empty(0))
_NONE: Final = ItemLinks(_EMPTY, _EMPTY, 0.0, 0.0, np.empty(0))


def _placed(numbers: Array, rows: Array) -> tuple[Array, Array]:
    """The rows of numbers, and the places of those that have one."""
    known = np.where(numbers < len(rows), numbers, -1)
    found = rows[known] if len(rows) else known
    left = np.flatnonzero((known >= 0) & (found >= 0))
    return found[left], left


def scores(
    header: BlendHeader, of_items: Array, vectors: Array, met: History, links: Mapping[int, ItemLinks], time: int
) -> Array:
    """The score of each item for a user at a time, by row: candidates first, then all others by popularity.

    Parameters
    ----------
    of_items, vectors
        By row: dtype :data:`STATS`, shape ``(items,)``; and shape ``(items, n_factors)``.
    links
        Of the last items that the user met, by row.
    time
        In milliseconds.
    """
    n = len(of_items)
    held = met.held if met.events and met.time == time else 0
    sums, is_candidate = _sums(header, n, met, links, held)
    is_candidate[met.items] = True
    is_candidate[header.tops] = True
    candidates = np.concatenate([met.items, np.flatnonzero(is_candidate & ~_mask(n, met.items))])
    stats, sums = of_items[candidates], sums[:, candidates]
    sums[2:] /= np.sqrt(np.maximum(stats["near_sum"], 1.0))
    x = np.zeros((len(candidates), header.weights.shape[1]))
    x[:, :4] = np.log1p(np.exp2(stats["popularity"] - header.popularity) * header.known)
    scales = np.where(header.scales > 0.0, header.scales, 1.0)[:, None]
    x[:, 4:8] = np.where(
        sums > 0.0, np.where(header.scales[:, None] > 0.0, np.log1p(2.0 * sums / scales), np.log(3.0)), 0.0
    ).T
    last = [(back, links[item].inputs) for back, item in enumerate(met.items[::-1].tolist()) if item in links]
    last = last[: header.recent_embedded]
    if last:
        weights = header.gamma_embedded ** np.array([back for back, _ in last])
        mean = weights @ np.stack([inputs for _, inputs in last]).astype("f8") / weights.sum()
        x[:, 8] = vectors[candidates] @ mean
    size = len(met.items)
    x[:size, _OWN : _OWN + _MORE] = _own_features(met, of_items[met.items], held)
    x[:size, _OWN + _MORE :] = x[:size, :_OWN]
    found = x @ header.weights[_contexts(met, time, held)].sum(axis=0)
    with np.errstate(invalid="ignore"):
        rest: Array = np.exp2(of_items["popularity"][:, DECAYED] - header.popularity[DECAYED])
    rest += (found.min() if len(found) else 0.0) - 2.0
    rest[candidates] = found
    return rest


def _mask(n: int, numbers: Array) -> Array:
    mask = np.zeros(n, dtype=np.bool_)
    mask[numbers] = True
    return mask


def _sums(header: BlendHeader, n: int, met: History, links: Mapping[int, ItemLinks], held: int) -> tuple[Array, Array]:
    """The sums over links of all items, shape ``(4, n)``, and which items are linked to."""
    parts: list[tuple[Array, tuple[float, float, float, float], Array]] = []
    held = min(held, header.basket)
    for back, item in enumerate(met.items[::-1][: max(header.recent, held)].tolist()):
        of, reached = links.get(item, _NONE), float(back < header.recent)
        near, far = reached * header.gamma**back, reached * header.gamma_far**back
        for (numbers, weights), total, shares in (
            (of.follows, of.follows_sum, (near, far, 0.0, 0.0)),
            (of.near, of.near_sum, (0.0, 0.0, far, 1.0 if back < held else 0.0)),
        ):
            if total > 0.0:
                parts.append((numbers, shares, weights / total**header.alpha))
    if not parts:
        return np.zeros((4, n)), np.zeros(n, dtype=np.bool_)
    numbers = np.concatenate([part[0] for part in parts])
    weights = np.concatenate([np.outer(part[1], part[2]) for part in parts], axis=1)
    return np.stack([np.bincount(numbers, row, n) for row in weights]), _mask(n, numbers)


def _own_features(met: History, stats: Array, held: int) -> Array:
    """The features that only items have which the user met."""
    basket, size = met.basket + (0 if held else 1), len(met.items)
    since, counts = basket - met.baskets, met.counts
    return np.stack(
        [
            np.ones(size),
            *(counts >= least for least in (2, 3, 5)),
            *(since >= least for least in (2, 3, 5, 9)),
            since == 0,
            np.log(counts / max(basket - 1, 1)),
            np.log((stats["repeated"] + 0.1) / (stats["count"] + 1.0)),
            np.log1p(np.arange(size - 1, -1, -1)),
            np.log(met.rates * FADE**since + 0.05),
        ],
        axis=1,
    )


def _contexts(met: History, time: int, held: int) -> list[int]:
    """Which sets of weights hold."""
    past = time - met.time if met.events else 0
    return [
        0,
        1 + int(np.searchsorted([1, 10, 100], met.events, side="right")),
        5 + (0 if held else 1 + int(np.searchsorted([_HOUR, 7 * 24 * _HOUR], past, side="right"))),
        9 + (int(np.searchsorted([4, 15], held, side="right")) + 1 if held else 0),
    ]
