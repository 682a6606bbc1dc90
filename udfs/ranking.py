"""Prequential evaluation of rankings: where an event's item stood among all known items before it was learned.

A place is two numbers: how many known items scored better, and how many others scored the same. Of equal scores the
item is equally likely at each of the tied ranks, and what is scored is the mean over them, so a model that gives all
items one score gets what chance would get. Nothing is sorted. An item that is not known yet, or whose score is not a
number, has no place and is a miss.

The events of a user at one time, a basket or a page of ratings, are one group: by default it is predicted whole before
any of it is learned. Else a line is predicted from the others, and the order of lines in a file decides.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

import numpy as np

from udfs.models import Array, ModelError

MISS: Final = -1  # in the place of ``better``: the item was not known
NOT_NEW: Final = -2  # the user met the item before, and only new ones count
METRICS: Final = ("hit", "ndcg", "mrr")
SEGMENTS: Final = ("all", "new users", "returning users", "head items", "tail items")
BASELINES: Final = ("decayed popularity", "popularity")
BLOCKS: Final = 20  # of which a window is made
_WIDTH: Final = 1 + len(METRICS)

Others = Literal["ranked", "left out"]


class _Rarely(NamedTuple):
    """What :attr:`RankingConfig.rarely` stands for, which was measured: docs/decisions/0031."""

    first: int = 20_000
    dense: int = 100
    sparse: int = 100_000
    row: int = 20
    items: int = 10_000


RARELY: Final = _Rarely()


@dataclass(frozen=True)
class RankingConfig:
    """The protocol. All of it is named in what :meth:`RankingScores.values` gives.

    Attributes
    ----------
    k
        The length of the lists.
    held_out
        A group is predicted whole before any of it is learned; False: event by event.
    repeats
        All items are ranked, and all events count; False: only items that are new to the user.
    others
        What of the other items of a held out group: they are ranked like all items, so of a basket of 30 at most ten
        are hits; or left out, and each item is ranked among those that are not in the group.
    every
        Each how many events one is evaluated; 0 for none. How groups are treated holds all the same: what a model
        learns may depend on it.
    rarely
        In place of ``every``, for models of ratings, of which all items are ranked anew between one part of a batch and
        the next: of the first 20,000 events one in 100, then of each 100,000 the first 20; and beyond 10,000 known
        items fewer, in proportion.
    window
        How many events the recent scores are over, about.
    head
        Which share of the known items, the most popular, are head items.
    """

    k: int = 10
    held_out: bool = True
    repeats: bool = True
    others: Others = "ranked"
    every: int = 1
    window: int = 10_000
    head: float = 0.2
    rarely: bool = False

    def __post_init__(self) -> None:
        if self.k < 1 or self.every < 0 or self.window < BLOCKS or not 0.0 < self.head < 1.0:
            raise ModelError(
                f"ranking: k is at least 1, every at least 0, window at least {BLOCKS}, and head is between 0 and 1; "
                f"these are {self.k}, {self.every}, {self.window} and {self.head}"
            )

    def named(self) -> dict[str, Any]:
        """The protocol as a summary states it."""
        return {
            "k": self.k,
            "groups": "held out" if self.held_out else "event by event",
            "items": "repeats allowed" if self.repeats else "only new to the user",
            "others of the group": self.others,
            "every": "rarely" if self.rarely else self.every,
        }

    @classmethod
    def of(cls, named: Mapping[str, Any]) -> RankingConfig:
        """The protocol that :meth:`named` states.

        >>> RankingConfig.of(RankingConfig(k=5, repeats=False).named())
        RankingConfig(k=5, held_out=True, repeats=False, others='ranked', every=1, window=10000, head=0.2, \
rarely=False)
        """
        return cls(
            k=named["k"],
            held_out=named["groups"] == "held out",
            repeats=named["items"] == "repeats allowed",
            others=named["others of the group"],
            **({"rarely": True} if named["every"] == "rarely" else {"every": named["every"]}),
        )

    def evaluated(self, first: int, n: int) -> Array:
        """Which of ``n`` events are evaluated, the first of which is the shard's ``first``-th: shape ``(n,)``."""
        if not self.every:
            return np.zeros(n, dtype=np.bool_)
        numbers = np.arange(first, first + n)
        chosen: Array = numbers % self.every == 0
        if self.rarely:
            early, late = numbers % RARELY.dense == 0, numbers % RARELY.sparse < RARELY.row
            chosen = np.where(numbers < RARELY.first, early, late)
        return chosen

    def passed_over(self, number: int, known: int) -> bool:
        """Whether an event that :meth:`evaluated` chose is not evaluated after all, as so many items are known."""
        stride = RARELY.dense if number < RARELY.first else RARELY.sparse
        return self.rarely and number // stride % max(-(-known // RARELY.items), 1) != 0


@dataclass
class Predicted:
    """What was predicted of the events that are evaluated, in the order of their groups, before they were learned.

    Attributes
    ----------
    events
        Their places among those given, shape ``(n,)``.
    better, ties
        Where the item stood, shape ``(n, protocols, rankers)``, or of one protocol ``(n, rankers)``; see :func:`place`;
        :data:`NOT_NEW` where it does not count.
    returning, head
        Whether the user was known, and whether the item was a popular one, shape ``(n,)``.
    offered
        Numbers of the items in the lists that were made.
    cut
        How many groups had begun in an earlier batch, and so were predicted as two.
    """

    events: Array
    better: Array
    ties: Array
    returning: Array
    head: Array
    offered: Array
    cut: int = 0


def grouped(times: Array, users: Array) -> tuple[Array, Array]:
    """Brings the events of a user at one time together.

    Parameters
    ----------
    times, users
        Of events in the order of their times, and numbers of their users, shape ``(n,)``.

    Returns
    -------
    The places of the events in the order of groups, as they begin; and where groups begin in it, and the end.

    Examples
    --------
    >>> order, starts = grouped(np.array([7, 7, 7, 8]), np.array([1, 2, 1, 1]))
    >>> order.tolist(), starts.tolist()
    ([0, 2, 1, 3], [0, 2, 3, 4])
    """
    if not len(times):
        return np.empty(0, dtype=np.intp), np.zeros(1, dtype=np.intp)
    moments = np.cumsum(np.diff(times, prepend=times[:1]) != 0)
    _, first, inverse = np.unique(moments * (int(users.max()) + 1) + users, return_index=True, return_inverse=True)
    begun = first[inverse]
    order = np.argsort(begun, kind="stable")
    starts = np.flatnonzero(np.diff(begun[order], prepend=-1))
    return order, np.append(starts, len(times))


def place(scores: Array, item: int, without: Array | None = None) -> tuple[int, int]:
    """How many items score better than one, and how many others the same, by counting.

    Parameters
    ----------
    scores
        Of all known items, by number.
    item
        A number; one that has no score is a miss.
    without
        Items that are not ranked, each once.

    Examples
    --------
    >>> place(np.array([3.0, 1.0, 2.0, 2.0]), 2), place(np.array([3.0, 1.0]), 7)
    ((1, 1), (-1, 0))
    >>> place(np.array([3.0, 1.0, 2.0, 2.0]), 2, without=np.array([0]))
    (0, 1)
    """
    if not 0 <= item < len(scores) or math.isnan(scores[item]):
        return MISS, 0
    own = scores[item]
    better, same = int(np.count_nonzero(scores > own)), int(np.count_nonzero(scores == own)) - 1
    if without is not None:
        out = scores[without[without != item]]
        better -= int(np.count_nonzero(out > own))
        same -= int(np.count_nonzero(out == own))
    return better, same


def scored(better: Array, ties: Array, k: int) -> Array:
    """The hit, NDCG and MRR at ``k`` of places, the means over tied ranks: shape ``(n, 3)``.

    With one relevant item the ideal DCG is 1, so NDCG is ``1 / log2(1 + rank)`` within the list, and MRR ``1 / rank``.
    Järvelin and Kekäläinen, "Cumulated gain-based evaluation of IR techniques", 2002; for ties McSherry and Najork,
    "Computing information retrieval performance measures efficiently in the presence of tied scores", 2008.

    >>> scored(np.array([0, 1, 9, 10, -1]), np.array([0, 0, 9, 0, 0]), 10).round(4).tolist()
    [[1.0, 1.0, 1.0], [1.0, 0.6309, 0.5], [0.1, 0.0289, 0.01], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    """
    ranks = np.arange(1, k + 1)
    gains = np.stack([np.ones(k), 1.0 / np.log2(1.0 + ranks), 1.0 / ranks], axis=1)
    sums = np.concatenate([np.zeros((1, len(METRICS))), np.cumsum(gains, axis=0)])
    start = np.where(better < 0, k, np.minimum(better, k))
    end = np.where(better < 0, k, np.minimum(better + ties + 1, k))
    means: Array = (sums[end] - sums[start]) / np.maximum(ties + 1, 1)[:, None]
    return means


class Distinct:
    """About how many different texts there were, in 4,096 bytes that can be merged: HyperLogLog, within 2% or so.

    Flajolet, Fusy, Gandouet and Meunier, "HyperLogLog: the analysis of a near-optimal cardinality estimation
    algorithm", 2007; few texts are counted linearly, as they say.

    >>> some = Distinct()
    >>> some.add(map(str, range(1000)))
    >>> some.add(map(str, range(500)))
    >>> 980 < some.count() < 1020
    True
    """

    BITS: Final = 12

    def __init__(self, registers: bytes | None = None) -> None:
        self.registers = bytearray(registers) if registers else bytearray(1 << self.BITS)

    def add(self, texts: Iterable[str]) -> None:
        for text in texts:
            mixed = (zlib.crc32(text.encode()) * 0x9E3779B97F4A7C15 + 0x7F4A7C15) & 0xFFFF_FFFF_FFFF_FFFF
            mixed = ((mixed ^ mixed >> 32) * 0xD6E8FEB86659FD93) & 0xFFFF_FFFF_FFFF_FFFF
            mixed ^= mixed >> 32
            at, rest = mixed >> 64 - self.BITS, mixed & (1 << 64 - self.BITS) - 1
            self.registers[at] = max(self.registers[at], 65 - self.BITS - rest.bit_length())

    def merge(self, other: Distinct) -> None:
        self.registers = bytearray(map(max, self.registers, other.registers))

    def count(self) -> float:
        of = np.frombuffer(self.registers, dtype=np.uint8).astype(float)
        m = len(of)
        estimate = 0.7213 / (1.0 + 1.079 / m) * m * m / float(np.sum(2.0**-of))
        empty = int(np.count_nonzero(of == 0))
        return m * math.log(m / empty) if estimate <= 2.5 * m and empty else estimate


class RankingScores:
    """Means of hit, NDCG and MRR at k of several rankers over the same events: overall, by segment, and of late.

    Parameters
    ----------
    names
        Of the rankers: the model first, then what it is compared to.
    baselines
        Which of them a recommender must beat.

    Examples
    --------
    >>> scores = RankingScores(RankingConfig(k=10), ["blend", "popularity"], ["popularity"])
    >>> better, ties = np.array([[0, 40], [-1, -1]]), np.zeros((2, 2), dtype=int)
    >>> scores.update(better, ties, returning=np.array([True, False]), head=np.array([True, False]))
    >>> shown = scores.values()
    >>> shown["all"]["blend"], shown["head items"]["popularity"]["n"], shown["beaten_by"]
    ({'hit': 0.5, 'ndcg': 0.5, 'mrr': 0.5, 'n': 2}, 1, [])
    """

    def __init__(self, config: RankingConfig, names: Sequence[str], baselines: Sequence[str] = ()) -> None:
        self.config = config
        self.names = list(names)
        self.baselines = list(baselines)
        self.sums = np.zeros((len(SEGMENTS), len(self.names), _WIDTH))
        # Sums of blocks of events, the newest last: what is dropped is a twentieth of the window at once.
        self.blocks: list[Array] = []
        self.offered = Distinct()
        self.cut = 0  # groups that went on in another batch, and were predicted as two
        self.begun = 0  # after how many events of the shard, by whoever counts them

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> RankingScores:
        """What :meth:`state` gave, to be read and merged: it says itself by which protocol, and of which rankers."""
        scores = cls(RankingConfig.of(state["protocol"]), state["names"], state["baselines"])
        scores.restore(state)
        return scores

    def update(self, better: Array, ties: Array, returning: Array, head: Array, offered: Iterable[str] = ()) -> None:
        """Scores events in order, bit for bit the same in one call or many.

        Parameters
        ----------
        better, ties
            Places by each ranker, shape ``(n, len(names))``; see :func:`place`.
        returning, head
            Whether the user had events before, and whether the item was among the popular ones: shape ``(n,)``.
        offered
            The items in the model's lists.
        """
        n = len(better)
        rows = np.ones((n, len(self.names), _WIDTH))
        rows[:, :, 1:] = scored(better.ravel(), ties.ravel(), self.config.k).reshape(n, len(self.names), len(METRICS))
        for at, chosen in enumerate((np.ones(n, dtype=bool), ~returning, returning, head, ~head)):
            self.sums[at] = _added(self.sums[at], rows[chosen])
        size = max(self.config.window // BLOCKS, 1)
        done = 0
        while done < n:
            if not self.blocks or self.blocks[-1][0, 0] >= size:
                self.blocks = [*self.blocks[1 - BLOCKS :], np.zeros((len(self.names), _WIDTH))]
            end = done + size - int(self.blocks[-1][0, 0])
            self.blocks[-1] = _added(self.blocks[-1], rows[done:end])
            done = end
        self.offered.add(offered)

    def merge(self, other: RankingScores) -> None:
        """Takes in what another shard scored; the recent scores are then those over each one's last events.

        Raises
        ------
        ModelError
            If it was scored by another protocol, or of other rankers.
        """
        if (self.config.named(), self.names) != (other.config.named(), other.names):
            raise ModelError("ranking: scores of other protocols or rankers can't be added up")
        self.sums = self.sums + other.sums
        longest = max(len(self.blocks), len(other.blocks))
        none = np.zeros((len(self.names), _WIDTH))
        padded = [[none] * (longest - len(of)) + of for of in (self.blocks, other.blocks)]
        self.blocks = [mine + theirs for mine, theirs in zip(*padded, strict=True)]
        self.offered.merge(other.offered)
        self.cut += other.cut

    def state(self) -> dict[str, Any]:
        """All that is known, as plain values that JSON holds."""
        return {
            "protocol": self.config.named(),
            "names": self.names,
            "baselines": self.baselines,
            "sums": self.sums.tolist(),
            "blocks": [block.tolist() for block in self.blocks],
            "offered": self.offered.registers.hex(),
            "cut": self.cut,
            "begun": self.begun,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Takes up what :meth:`state` gave.

        Raises
        ------
        ModelError
            If it is of another protocol, or of other rankers.
        """
        if not self.fits(state):
            raise ModelError(f"ranking: the state was scored by {state['protocol']} of {', '.join(state['names'])}")
        self.sums = np.array(state["sums"])
        self.blocks = [np.array(block) for block in state["blocks"]]
        self.offered = Distinct(bytes.fromhex(state["offered"]))
        self.cut, self.begun = state["cut"], state.get("begun", 0)

    def fits(self, state: Mapping[str, Any]) -> bool:
        """Whether :meth:`restore` takes it: it was scored by this protocol, of these rankers."""
        return (state["protocol"], state["names"]) == (self.config.named(), self.names)

    def values(self, known: int | None = None) -> dict[str, Any]:
        """The scores by segment and ranker, those of late, and what beat the model; None where nothing was scored.

        ``known`` is the number of known items, of which ``coverage`` is the share that was offered.
        """
        shown: dict[str, Any] = {
            "protocol": self.config.named(),
            "model": self.names[0],
            "baselines": self.baselines,
            "cut_groups": self.cut,
        }
        recent = sum(self.blocks) if self.blocks else np.zeros_like(self.sums[0])
        for segment, sums in (*zip(SEGMENTS, self.sums, strict=True), ("recent", recent)):
            shown[segment] = {name: _means(row) for name, row in zip(self.names, np.asarray(sums), strict=True)}
        shown["coverage"] = min(self.offered.count() / known, 1.0) if known else None
        shown["beaten_by"] = self.not_beaten(shown["all"])
        return shown

    def not_beaten(self, means: Mapping[str, Mapping[str, Any]]) -> list[str]:
        """The baselines that rank as well as the model or better, by the NDCG in some of :meth:`values`."""
        own = means[self.names[0]]["ndcg"]
        return [name for name in self.baselines if own is not None and means[name]["ndcg"] >= own]


def _added(sums: Array, rows: Array) -> Array:
    """Sums with rows added one after the other, so that it does not matter how they are cut into batches."""
    added: Array = np.add.accumulate(np.concatenate([sums[None], rows]), axis=0)[-1]
    return added


def _means(row: Array) -> dict[str, Any]:
    n = int(row[0])
    return {name: float(of) / n if n else None for name, of in zip(METRICS, row[1:], strict=True)} | {"n": n}
