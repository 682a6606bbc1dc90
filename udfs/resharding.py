"""Moves what learners know to another number of shards.

A user's shard is a hash modulo the number of shards. Where the new number is a multiple of the old one, each new shard
has the users of one old shard only, and starts as its copy: nothing changes for anybody.

Else several models become one, and their factor spaces are not comparable: a model predicts the same when its space is
rotated. So the vectors of each shard are turned first, by the rotation that takes its items nearest to those of the
shard that has learned most (orthogonal Procrustes: Schönemann, "A generalized solution of the orthogonal Procrustes
problem", Psychometrika 31, 1966); and where its global mean is not that of all, the difference goes to its users'
biases. Up to here each shard predicts what it did. Then items that several know become means, weighted by the events
they were learned from, and every new shard starts from these.
``docs/decisions/0010-resharding.md`` says what that is worth.

Sums over shards stay what they were: of events, learned and waiting, and of the counts and popularities of an item,
which each of its copies has a share of.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Final

import numpy as np
import orjson

from serving.schema import shard_of, shards_of
from udfs.interactions import Interactions, chosen
from udfs.learner import Learner, LearnerConfig
from udfs.metrics import pooled
from udfs.models import ITEM, USER, Array, RowModel
from udfs.packing import pack_lines, unpack_lines
from udfs.tail import from_state_name, state_name

_LEAST: Final = 1e-9  # the weight of a row that has no share of the events that it was learned from


@dataclass(frozen=True)
class ShardState:
    """All that is stored of a shard.

    Attributes
    ----------
    header
        None where the shard has never met an event.
    rows
        Bytes by their names in the state.
    waiting
        Batches that wait for the watermark, by number.
    tombstones
        Of deleted users.
    """

    header: bytes | None
    rows: Mapping[str, bytes]
    waiting: Mapping[int, bytes]
    tombstones: Mapping[str, bytes]

    def encode(self) -> bytes:
        """
        >>> state = ShardState(b"{}", {"user:a": b"12", "item:b": b"3"}, {7: b""}, {"c": b"4"})
        >>> ShardState.decode(state.encode()) == state
        True
        """
        maps = (self.rows, self.waiting, self.tombstones)
        parts = [self.header or b"", *(blob for of in maps for blob in of.values())]
        about = [self.header is not None, [list(of) for of in maps], list(map(len, parts))]
        return b"\n".join([orjson.dumps(about), b"".join(parts)])

    @classmethod
    def decode(cls, blob: bytes) -> ShardState:
        start = blob.index(b"\n") + 1
        known, names, lengths = orjson.loads(blob[: start - 1])
        ends = np.cumsum([start, *lengths]).tolist()
        parts = iter([blob[begin:end] for begin, end in pairwise(ends)])
        header = next(parts)
        maps = (dict(zip(of, islice(parts, len(of)), strict=True)) for of in names)
        return cls(header if known else None, *maps)


class Exchange:
    """A folder through which the tasks of a job and who submitted it hand each other states.

    Each file is there as a whole or not at all. A folder is for one attempt at one job.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def give(self, shard: int, state: ShardState) -> None:
        """Tasks: an old shard's state."""
        self._write(f"old-{shard}", state.encode())

    def given(self, shard: int) -> bool:
        return self._path(f"old-{shard}").exists()

    def old(self, shard: int) -> ShardState:
        return ShardState.decode(self._path(f"old-{shard}").read_bytes())

    def put(self, shard: int, state: ShardState) -> None:
        """A new shard's state, for the tasks to take once all are there."""
        self._write(f"new-{shard}", state.encode())

    def new(self, shard: int) -> ShardState:
        return ShardState.decode(self._path(f"new-{shard}").read_bytes())

    @property
    def ready(self) -> bool:
        """Whether all new states are there."""
        return self._path("ready").exists()

    def note_ready(self) -> None:
        self._write("ready", b"")

    def taken(self, key: str) -> bool:
        """Whether the task of a key has done its part."""
        return self._path(f"taken-{key}").exists()

    def note_taken(self, key: str) -> None:
        self._write(f"taken-{key}", b"")

    def _path(self, name: str) -> Path:
        return self._folder / name

    def _write(self, name: str, content: bytes) -> None:
        scratch = self._path(f"{name}.scratch")
        scratch.write_bytes(content)
        scratch.replace(self._path(name))


@dataclass
class _Table:
    """Rows of a family as arrays, in one order: of ids, fixed parts, the model's weights, what users have seen, and
    what rows end with; of models whose rows are merged all end alike."""

    names: Sequence[str]
    heads: Array
    weights: Array
    seen: Sequence[tuple[str, ...]]
    tails: Sequence[bytes]

    @classmethod
    def of(cls, learner: Learner, family: str) -> _Table:
        ids, rows = learner.model.ids[family], learner.rows[family]
        names = list(ids)
        numbers = ids.find(names)
        seen = [rows.seen[number] for number in numbers] if family == USER else []
        model = learner.model
        weights = model.encode_rows(family, names, numbers)
        tails = list(model.encode_tails(family, numbers) or [b""] * len(names))
        return cls(names, rows.heads.take(numbers), weights, seen, tails)

    def take(self, places: Sequence[int]) -> _Table:
        return _Table(
            [self.names[place] for place in places],
            self.heads.take(places),
            self.weights.take(places, axis=0),
            [self.seen[place] for place in places] if self.seen else [],
            [self.tails[place] for place in places],
        )

    def into(self, learner: Learner, family: str) -> None:
        """Fills a learner that knows nothing of the family."""
        rows, model = learner.rows[family], learner.model
        model.ids[family].add(self.names)
        rows.heads = self.heads
        if family == USER:
            rows.seen.fit(len(self.names))
            rows.seen.put(np.arange(len(self.names)), self.seen)
        rows_of_model = [weights.tobytes() + tail for weights, tail in zip(self.weights, self.tails, strict=True)]
        model.decode_rows(family, self.names, rows_of_model)


def parts(before: int, after: int) -> list[tuple[range, range]]:
    """Which old shards become which new ones, for :func:`move`.

    >>> parts(2, 4)
    [(range(0, 1), range(0, 4, 2)), (range(1, 2), range(1, 4, 2))]
    >>> parts(4, 2)
    [(range(0, 4), range(0, 2))]
    """
    if after % before:
        return [(range(before), range(after))]
    return [(range(old, old + 1), range(old, after, before)) for old in range(before)]


def check(model: RowModel, before: int, after: int) -> None:
    """
    Raises
    ------
    ModelError
        If several shards would have to become one, and rows of this model can't be merged.
    """
    if after % before:
        for family in (USER, ITEM):
            model.columns(family)


def move(
    olds: Sequence[ShardState],
    targets: Sequence[int],
    shards: int,
    model: Callable[[], RowModel],
    config: LearnerConfig,
) -> list[ShardState]:
    """The states of the new shards ``targets``, of ``shards`` in all, from those of the old ones: see :func:`parts`.

    Raises
    ------
    ModelError
        If there is more than one old shard, and rows of this model can't be merged.
    ValueError
        If a state was written by another model or by a newer layout.
    """
    learners = [_restored(old, model, config) for old in olds if old.header is not None]
    if not learners:
        return [ShardState(None, {}, {}, {}) for _ in targets]
    users, items, header = _aligned(learners)
    places: dict[int, list[int]] = {target: [] for target in targets}
    for place, user_id in enumerate(users.names):
        places[shard_of(user_id, shards)].append(place)
    of_targets = [users.take(places[target]) for target in targets]
    events = [int(table.heads["count"].sum()) for table in of_targets]
    learned, diverged, deleted = (
        _shares(sum(getattr(old, name) for old in learners), events) for name in ("learned", "diverged", "deleted")
    )
    means = pooled(old.scores.means for old in learners)
    scored = {name: _shares(int(n), events) for name, (n, _) in means.items()}
    states = []
    for at, target in enumerate(targets):
        new = Learner(config, model())
        new.model.restore_header(header)
        of_targets[at].into(new, USER)
        _share(items, at, len(targets)).into(new, ITEM)
        new.seq = sum(old.seq for old in learners)  # at least that of each row
        new.learned, new.diverged, new.deleted = learned[at], diverged[at], deleted[at]
        new.requests = max(old.requests for old in learners)
        for old in learners:
            new.tombstones |= {u: stone for u, stone in old.tombstones.items() if shard_of(u, shards) == target}
            # Whatever its shard, what a source had given by then was met.
            new.positions |= {s: p for s, p in old.positions.items() if p > new.positions.get(s, -1)}
        new.scores.restore({name: (scored[name][at], mean) for name, (_, mean) in means.items()})
        new.updated_at = max(old.updated_at for old in learners)
        released = [old.released for old in learners]
        new.released = None if None in released else min(r for r in released if r is not None)
        _wait(new, learners, target, shards)
        new.batch_number = max(len(new.batches), *(old.batch_number for old in learners))
        states.append(stored(new))
    return states


def _restored(state: ShardState, model: Callable[[], RowModel], config: LearnerConfig) -> Learner:
    learner = Learner(config, model())
    rows = ((*from_state_name(name), blob) for name, blob in state.rows.items())
    learner.restore(state.header, rows, state.waiting.items(), state.tombstones.items())
    return learner


def stored(learner: Learner) -> ShardState:
    """All of a learner, as it would be stored."""
    rows = {
        state_name(family, name): blob
        for family, encoded in learner.encode(learner.everything()).items()
        for name, blob in zip(encoded.row_ids, encoded.blobs, strict=True)
    }
    waiting = {number: blob for number in learner.batches if (blob := learner.waiting_of(number)) is not None}
    tombstones = {user_id: tombstone.encode() for user_id, tombstone in learner.tombstones.items()}
    return ShardState(learner.header(), rows, waiting, tombstones)


# ------------------------------------------------------------------------------------------------- models


def _aligned(learners: Sequence[Learner]) -> tuple[_Table, _Table, bytes]:
    """All users and all items of models that were made comparable, and the model's header."""
    tables = [(_Table.of(learner, USER), _Table.of(learner, ITEM)) for learner in learners]
    reference = max(range(len(learners)), key=lambda at: learners[at].learned)
    model = learners[reference].model
    if len(learners) == 1:
        return *tables[0], model.header()
    total = sum(learner.learned for learner in learners)
    mean = sum(learner.learned * learner.model.global_mean() for learner in learners) / max(total, 1)
    of_user, of_item = model.columns(USER), model.columns(ITEM)
    for learner, (users, items) in zip(learners, tables, strict=True):
        if of_user.bias is not None:
            users.weights[:, of_user.bias] += learner.model.global_mean() - mean
        if of_item.vectors and learner is not learners[reference]:
            turn = alignment(items, tables[reference][1], of_item.vectors[0], model.n_factors)
            for weights, columns in ((users.weights, of_user), (items.weights, of_item)):
                for start in columns.vectors:
                    weights[:, start : start + model.n_factors] = weights[:, start : start + model.n_factors] @ turn
    model.pool(total, mean)
    return _joined([users for users, _ in tables]), _merged([items for _, items in tables]), model.header()


def alignment(items: _Table, reference: _Table, start: int, n_factors: int) -> Array:
    """The rotation that takes items nearest to the same ones in the reference; vectors begin at column ``start``."""
    places = {name: place for place, name in enumerate(reference.names)}
    common = [(mine, places[name]) for mine, name in enumerate(items.names) if name in places]
    mine, theirs = (list(side) for side in zip(*common, strict=True)) if common else ([], [])
    a, b = items.heads["count"][mine].astype(float), reference.heads["count"][theirs].astype(float)
    sure = a * b / np.maximum(a + b, 1)  # how well the difference of two means is known
    end = start + n_factors
    return rotation(items.weights[mine, start:end], reference.weights[theirs, start:end], sure)


def rotation(a: Array, b: Array, weights: Array) -> Array:
    """The orthogonal matrix R that makes the weighted sum of squares of the rows of ``a @ R - b`` least.

    Schönemann (1966): with ``U S V'`` the singular value decomposition of ``a' W b``, R is ``U V'``.

    Parameters
    ----------
    a, b
        Shape ``(n, k)``.
    weights
        Shape ``(n,)``.

    Examples
    --------
    >>> a = np.array([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    >>> turn = np.array([[0.6, 0.8], [-0.8, 0.6]])
    >>> rotation(a, a @ turn, np.ones(3)).round(9).tolist()
    [[0.6, 0.8], [-0.8, 0.6]]
    """
    left, _, right = np.linalg.svd(a.T @ (weights[:, None] * b))
    turn: Array = left @ right
    return turn


def _joined(tables: Sequence[_Table]) -> _Table:
    """Tables without ids in common, as one."""
    return _Table(
        [name for table in tables for name in table.names],
        np.concatenate([table.heads for table in tables]),
        np.concatenate([table.weights for table in tables]),
        [seen for table in tables for seen in table.seen],
        [tail for table in tables for tail in table.tails],
    )


def _merged(tables: Sequence[_Table]) -> _Table:
    """Items as the means of what each table has of them, weighted by their counts; counts and popularities add up."""
    names = list(dict.fromkeys(name for table in tables for name in table.names))
    places = {name: place for place, name in enumerate(names)}
    heads: Array = np.zeros(len(names), tables[0].heads.dtype)
    heads["popularity"] = -math.inf
    weights, total = np.zeros((len(names), tables[0].weights.shape[1]), dtype="<f8"), np.zeros(len(names))
    for table in tables:
        at = [places[name] for name in table.names]
        sure = np.maximum(table.heads["count"].astype(float), _LEAST)
        weights[at] += sure[:, None] * table.weights
        total[at] += sure
        heads["layout"][at] = table.heads["layout"]
        heads["count"][at] += table.heads["count"]
        heads["popularity"][at] = np.logaddexp2(heads["popularity"][at], table.heads["popularity"])
        for name in ("updated_at", "seq"):
            heads[name][at] = np.maximum(heads[name][at], table.heads[name])
    return _Table(names, heads, weights / total[:, None], [], [b""] * len(names))


def _share(items: _Table, at: int, of: int) -> _Table:
    """The copy of the items for one of so many shards, with its share of their events: readers add up the shards."""
    if of == 1:
        return items
    heads = items.heads.copy()
    count = items.heads["count"]
    heads["count"] = count * np.uint64(at + 1) // np.uint64(of) - count * np.uint64(at) // np.uint64(of)
    heads["popularity"] -= math.log2(of)
    return _Table(items.names, heads, items.weights, [], items.tails)


# ------------------------------------------------------------------------------------------------- events


def _shares(total: int, weights: Sequence[int]) -> list[int]:
    """A number of events in whole parts, as nearly by the weights as can be.

    >>> _shares(10, [1, 1, 2]), _shares(7, [3, 4]), _shares(1, [0, 0])
    ([2, 3, 5], [3, 4], [1, 0])
    """
    every = sum(weights)
    if not every:
        return [total, *(0 for _ in weights[1:])]
    ends = [total * int(end) // every for end in np.cumsum([0, *weights])]
    return [end - begin for begin, end in pairwise(ends)]


def _wait(new: Learner, olds: Sequence[Learner], target: int, shards: int) -> None:
    """Gives a new shard its users' interactions that wait, with their lines, in batches in the order that they came."""
    found: dict[tuple[int, int], Interactions] = {}
    for place, old in enumerate(olds):
        mine = shards_of(old.waiting.user_ids, shards) == target
        for number in np.unique(old.waiting.batches[mine]).tolist():
            found[number, place] = old.waiting.take(np.flatnonzero(mine & (old.waiting.batches == number)))
    moved = []
    for number, (old_number, place) in enumerate(sorted(found)):
        events = found[old_number, place]
        _, sources, lines = olds[place].batches[old_number]
        kept = pack_lines(chosen(unpack_lines(lines), events.lines))
        new.batches[number] = int(events.times.max()), sources, kept
        moved.append(replace(events, batches=np.full(len(events), number), lines=np.arange(len(events))))
    new.waiting = Interactions.joined(moved).ordered()
