"""What a learner knows of its users or items besides the model's weights: one table a family.

Rows are numbered as they come, and the numbers of a row lie in the table as they are stored, so a whole group is
counted and encoded at once. A row is one line of memory and not half a dozen objects: among a million rows, what
an event costs is mostly waiting for memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import orjson

from udfs.ids import Group, Ids
from udfs.models import USER, Array
from udfs.pieces import Pieces, side_by_side
from udfs.seal import REMEDY, Damaged, sums
from udfs.seen import Seen

ROW_LAYOUT: Final = 1
# Of a model whose rows have no fixed size: the first word of the model's part tells how many bytes it has besides, and
# these come after the checksum.
TAILED_LAYOUT: Final = 2
# The fixed part of a stored row. The model's part comes next, which has ``size`` bytes, a whole number of words; then a
# checksum over the row, family and id; then, of a user, what it has seen.
HEAD: Final = np.dtype(
    [
        ("layout", "<u4"),
        ("size", "<u4"),
        ("count", "<u8"),
        ("updated_at", "<i8"),
        ("seq", "<u8"),
        ("popularity", "<f8"),
    ]
)
_HEAD: Final = HEAD.itemsize // 8  # words of the fixed part
_CHECK: Final = 1  # words of the checksum


@dataclass(slots=True)
class Row:
    """What is known of a user or an item besides the model's weights.

    ``popularity`` (items) is ``log2`` of the sum of ``2 ** (t / half_life)`` over its events: it orders items by
    decayed popularity at any later moment. ``seen`` (users) holds the recent items, the newest last.
    """

    count: int
    updated_at: int
    seq: int
    popularity: float
    seen: tuple[str, ...]


@dataclass
class EncodedRows:
    """Rows of a family as they are stored, and the numbers in them for those who publish them.

    Attributes
    ----------
    row_ids, ids
        As texts, and as the bytes of these.
    blobs
        The bytes of each row: the fixed part, the model's weights, a checksum, and what a user has seen.
    heads
        The fixed parts, dtype :data:`HEAD`, shape ``(len(row_ids),)``.
    weights
        As :meth:`~udfs.models.RowModel.encode_rows` gives them.
    seen
        Of users: a JSON array of the recent items, the newest last.
    tails
        As :meth:`~udfs.models.RowModel.encode_tails` gives them.
    """

    row_ids: Sequence[str]
    ids: Pieces
    blobs: Pieces
    heads: Array
    weights: Array
    seen: Pieces
    tails: Pieces

    def part(self, start: int, end: int) -> EncodedRows:
        """Some of the rows, one after the other."""
        of = slice(start, end)
        texts = self.ids[of], self.blobs[of]
        return EncodedRows(self.row_ids[of], *texts, self.heads[of], self.weights[of], self.seen[of], self.tails[of])


class Rows(Mapping[str, Row]):
    """The rows of a family, by id; a :class:`Row` is a copy of what is known at the time.

    Attributes
    ----------
    heads
        The fixed parts by number, dtype :data:`HEAD`; longer than there are rows.
    seen
        Of users: the recent items by number.

    Examples
    --------
    >>> users = Rows("user", Ids())
    >>> group = Group(users.ids, ["ann", "bob", "ann"])
    >>> group.admit(diverged={})
    >>> users.count(group, np.array([7, 8, 9]), 1)
    >>> users.seen.put(np.array([0]), [["tea"]])
    >>> users["ann"]
    Row(count=2, updated_at=9, seq=3, popularity=-inf, seen=('tea',))
    """

    def __init__(self, family: str, ids: Ids) -> None:
        self.family = family
        self.ids = ids
        self.heads = _unused(1_024)
        self.seen = Seen()

    def __getitem__(self, row_id: str) -> Row:
        number = self.ids[row_id]
        _, _, count, updated_at, seq, popularity = self.heads[number].item()
        return Row(count, updated_at, seq, popularity, self.seen[number] if self.family == USER else ())

    def __iter__(self) -> Iterator[str]:
        return iter(self.ids)

    def __len__(self) -> int:
        return len(self.ids)

    def expect(self, count: int) -> None:
        """Makes room for so many rows."""
        self.ids.expect(count)
        self._fit(count)

    def _fit(self, places: int) -> None:
        """Makes places for the numbers below ``places``."""
        if places > len(self.heads):
            self.heads = np.concatenate([self.heads, _unused(max(len(self.heads), places - len(self.heads)))])
        if self.family == USER:
            self.seen.fit(places)

    def older_than(self, time: int, spared: Sequence[int] = ()) -> list[str]:
        """The ids of the rows whose newest event was before a time, but for those of the numbers ``spared``."""
        heads = self.heads[: len(self.ids.names)]
        old = (heads["updated_at"] < time) & (heads["count"] > 0)
        old[list(spared)] = False
        return [self.ids.names[at] for at in np.flatnonzero(old)]

    def oldest(self, n: int, spared: Sequence[int] = ()) -> list[str]:
        """The ids of the ``n`` rows that were learned longest ago, but for those of the numbers ``spared``.

        There must be as many. No two rows were learned last by the same event, so it is clear which they are.
        """
        heads = self.heads[: len(self.ids.names)]
        seqs = np.where(heads["count"] > 0, heads["seq"], np.iinfo(np.uint64).max)
        seqs[list(spared)] = np.iinfo(np.uint64).max
        return [self.ids.names[at] for at in np.argpartition(seqs, n - 1)[:n]]

    def drop(self, row_ids: Iterable[str]) -> None:
        """Forgets what is known of rows; to be called while their ids still have numbers.

        Raises
        ------
        KeyError
            If one of them is not known.
        """
        numbers = np.array([self.ids[row_id] for row_id in row_ids], dtype=np.intp)
        self.heads[numbers] = _unused(1)
        if self.family == USER:
            self.seen.clear(numbers)

    def count(self, group: Group, times: Array, seq: int) -> None:
        """Counts the events of a group, at ``times``; ``seq`` is the shard's number of the first."""
        self._fit(len(self.ids.names))
        at = group.numbers[group.slots]
        np.add.at(self.heads["count"], at, np.uint64(1))
        np.maximum.at(self.heads["updated_at"], at, times)
        self.heads["seq"][at] = np.arange(seq, seq + len(at), dtype=np.uint64)  # of one row, the last stays

    def remember(self, users: Group, items: Group, size: int) -> None:
        """Takes the items of a group's events into what their users have seen, of which the last ``size`` stay."""
        self.seen.meet(users.numbers, users.slots, items.distinct, items.slots, size)

    def favour(self, group: Group, ages: Array) -> None:
        """Adds the events of a group to popularities; ``ages`` are their times in half-lives."""
        from udfs import kernels  # here, as numba takes half a second to import

        of_rows = self.heads["popularity"][group.numbers]
        kernels.favour(group.slots, ages, of_rows)
        self.heads["popularity"][group.numbers] = of_rows

    def encode(
        self, row_ids: Sequence[str], numbers: Array, weights: Array, tails: Sequence[bytes] | None = None
    ) -> EncodedRows:
        """Rows, given by ids and numbers, as they are stored with the model's weights of them, and its tails."""
        heads, ids = self.heads.take(numbers), Pieces.of_texts(row_ids)
        nothing = Pieces.of_rows(np.empty((len(row_ids), 0), dtype=np.uint8))
        seen = self.seen.json(numbers) if self.family == USER else nothing
        heads["layout"] = ROW_LAYOUT if tails is None else TAILED_LAYOUT
        parts, after, of_model = [heads.view("<u8").reshape(len(heads), _HEAD), weights.view("<u8")], seen, nothing
        if tails is not None:
            of_model = Pieces.of(tails)
            parts.insert(1, of_model.lengths.view("<u8")[:, None])
            after = side_by_side([of_model, seen], len(row_ids))
        heads["size"] = 8 * sum(part.shape[1] for part in parts[1:])
        words = np.empty((len(heads), _CHECK + sum(part.shape[1] for part in parts)), dtype="<u8")
        np.concatenate(parts, axis=1, out=words[:, :-1])
        words[:, -1] = sums(words, self.family, ids, after)
        blobs = Pieces.of_rows(words)
        if len(after.data):
            blobs = side_by_side([blobs, after], len(row_ids))
        return EncodedRows(row_ids, ids, blobs, heads, weights, seen, of_model)

    def restore(
        self,
        row_ids: Sequence[str],
        blobs: Sequence[bytes],
        number: Callable[[Sequence[bytes]], Array] | None = None,
    ) -> list[bytes]:
        """Takes up encoded rows, and returns the model's part of each.

        ``number`` tells from these parts which numbers the rows had, where they are to have them again.

        Raises
        ------
        ValueError
            If one was written by a newer layout, is damaged, or was stored under another id.
        """
        # All at once if all are sound and of one size; otherwise one by one, to find which is not.
        layout, size = (int.from_bytes(blobs[0][at : at + 4], "little") for at in (0, 4))
        end = HEAD.itemsize + size
        length = end + 8 * _CHECK
        fixed = bytearray().join([blob[:length] for blob in blobs])
        if layout in (ROW_LAYOUT, TAILED_LAYOUT) and size % 8 == 0 and len(fixed) == length * len(blobs):
            words = np.frombuffer(fixed, "<u8").reshape(len(blobs), -1)
            heads = words[:, :_HEAD].copy().view(HEAD)[:, 0]
            tails = [blob[length:] for blob in blobs]
            alike = (heads["layout"] == layout) & (heads["size"] == size)
            if np.all(alike & (words[:, -1] == sums(words, self.family, Pieces.of_texts(row_ids), Pieces.of(tails)))):
                models = [blob[HEAD.itemsize : end] for blob in blobs]
                if layout == TAILED_LAYOUT:
                    sizes = words[:, _HEAD].tolist()
                    models = [part[8:] + tail[:of] for part, tail, of in zip(models, tails, sizes, strict=True)]
                    tails = [tail[of:] for tail, of in zip(tails, sizes, strict=True)]
                if number is not None:
                    self.ids.put(row_ids, number(models))
                numbers = self.ids.add(row_ids)
                self._fit(len(self.ids.names))
                self.heads[numbers] = heads
                if self.family == USER:
                    self.seen.put(numbers, orjson.loads(b"[%b]" % b",".join(tails)))
                return models
        if len(blobs) == 1:
            raise self._refusal(row_ids[0], blobs[0])
        return [self.restore([row_id], [blob], number)[0] for row_id, blob in zip(row_ids, blobs, strict=True)]

    def _refusal(self, row_id: str, blob: bytes) -> Damaged:
        row, layout = f"the row of {self.family} {row_id!r}", int.from_bytes(blob[:4], "little")
        if layout not in (ROW_LAYOUT, TAILED_LAYOUT) and len(blob) >= HEAD.itemsize:
            return Damaged(
                f"{row} has layout {layout}, this freshet reads {ROW_LAYOUT} and {TAILED_LAYOUT}: it is damaged, or a "
                f"newer version wrote it; {REMEDY}"
            )
        return Damaged(
            f"{row} is damaged: its {len(blob)} bytes do not have the checksum that was stored with them for this id; "
            f"{REMEDY}"
        )


def _unused(count: int) -> Array:
    """Fixed parts of rows of which nothing is known yet."""
    heads = np.zeros(count, HEAD)
    heads["layout"] = ROW_LAYOUT
    heads["popularity"] = -math.inf
    return heads
