"""What a learner knows of its users or items besides the model's weights: one table a family.

Rows are numbered as they come, and the numbers of a row lie in the table as they are stored, so a whole group is
counted and encoded at once. A row is one line of memory and not half a dozen objects: among a million rows, what
an event costs is mostly waiting for memory.
"""

from __future__ import annotations

import math
import struct
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import orjson

from udfs.models import USER, Array

ROW_LAYOUT: Final = 1
# The fixed part of a stored row; ``size`` is the length in bytes of the model's part, which comes next.
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
_LAYOUT_AND_SIZE: Final = struct.Struct("<II")
_LINE_FEED: Final = orjson.Fragment(b"\n")


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
    seen: list[str]


@dataclass
class EncodedRows:
    """Rows of a family as they are stored, and the numbers in them for those who publish them.

    Attributes
    ----------
    blobs
        The bytes of each row: the fixed part, the model's weights, and what a user has seen.
    heads
        The fixed parts, dtype :data:`HEAD`, shape ``(len(row_ids),)``.
    weights
        As :meth:`~udfs.models.RowModel.encode_rows` gives them.
    seen
        Of users: a JSON array of the recent items, the newest last.
    """

    row_ids: Sequence[str]
    blobs: list[bytes]
    heads: Array
    weights: Array
    seen: list[bytes]


class Rows(Mapping[str, Row]):
    """The rows of a family, by id; a :class:`Row` is a copy of what is known at the time.

    Attributes
    ----------
    heads
        The fixed parts by number, dtype :data:`HEAD`; longer than there are rows.
    ids
        The ids by number. The same texts are used wherever rows name each other: a text is a large thing to
        have fifty times in a million rows.
    seen
        Of users: the recent items by number, the newest last.

    Examples
    --------
    >>> users = Rows("user")
    >>> [ann, bob] = users.numbers(["ann", "bob"])
    >>> users.count([ann, bob, ann], np.array([7, 8, 9]), 1)
    >>> users.seen[ann]["tea"] = None
    >>> users["ann"]
    Row(count=2, updated_at=9, seq=3, popularity=-inf, seen=['tea'])
    """

    def __init__(self, family: str) -> None:
        self.family = family
        self.heads = _unused(1_024)
        self.ids: list[str] = []
        self.seen: list[dict[str, None]] = []
        self._numbers: dict[str, int] = {}

    def __getitem__(self, row_id: str) -> Row:
        number = self._numbers[row_id]
        _, _, count, updated_at, seq, popularity = self.heads[number].item()
        return Row(count, updated_at, seq, popularity, list(self.seen[number]) if self.family == USER else [])

    def __iter__(self) -> Iterator[str]:
        return iter(self._numbers)

    def __len__(self) -> int:
        return len(self._numbers)

    def numbers(self, row_ids: Sequence[str]) -> list[int]:
        """The number of each id; an id that is not known becomes a row."""
        known = self._numbers
        try:
            return [known[row_id] for row_id in row_ids]
        except KeyError:
            for row_id in row_ids:
                if row_id not in known:
                    self.ids.append(sys.intern(row_id))
                    known[self.ids[-1]] = len(known)
        if len(known) > len(self.heads):
            self.heads = np.concatenate([self.heads, _unused(max(len(self.heads), len(known)))])
        if self.family == USER:
            self.seen += [{} for _ in range(len(known) - len(self.seen))]
        return [known[row_id] for row_id in row_ids]

    def count(self, numbers: Sequence[int], times: Array, seq: int) -> None:
        """Counts an event for each of ``numbers``, at ``times``; ``seq`` is the shard's number of the first."""
        at = np.array(numbers, dtype=np.intp)
        np.add.at(self.heads["count"], at, np.uint64(1))
        np.maximum.at(self.heads["updated_at"], at, times)
        self.heads["seq"][at] = np.arange(seq, seq + len(at), dtype=np.uint64)  # of one row, the last stays

    def popularity(self, numbers: Sequence[int]) -> dict[int, float]:
        """The popularity of rows, by number."""
        at = np.array(numbers, dtype=np.intp)
        return dict(zip(numbers, self.heads["popularity"][at].tolist(), strict=True))

    def set_popularity(self, by_number: Mapping[int, float]) -> None:
        at = np.fromiter(by_number.keys(), np.intp, len(by_number))
        self.heads["popularity"][at] = np.fromiter(by_number.values(), np.float64, len(by_number))

    def encode(self, row_ids: Sequence[str], weights: Array) -> EncodedRows:
        """Rows as they are stored, with the model's weights of them."""
        numbers = [self._numbers[row_id] for row_id in row_ids]
        heads = self.heads[np.array(numbers, dtype=np.intp)]
        size = weights.itemsize * weights.shape[1]
        heads["size"] = size
        parts = [heads.view(np.uint8).reshape(len(heads), HEAD.itemsize), weights.view(np.uint8)]
        joined, size = np.concatenate(parts, axis=1).tobytes(), HEAD.itemsize + size
        blobs = [joined[at : at + size] for at in range(0, len(joined), size)]
        seen = self._seen_json(numbers) if self.family == USER else []
        if seen:
            blobs = [blob + tail for blob, tail in zip(blobs, seen, strict=True)]
        return EncodedRows(row_ids, blobs, heads, weights, seen)

    def _seen_json(self, numbers: Sequence[int]) -> list[bytes]:
        """The recent items of each user as JSON.

        Written as one array and cut: orjson takes 1 kB for each text, and a list for each user is one more object
        that the cycle collector counts.
        """
        parts: list[Any] = []
        for number in numbers:
            parts += self.seen[number]
            parts.append(_LINE_FEED)
        # A line feed in a string is escaped in JSON, so these are ours.
        return orjson.dumps(parts[:-1]).replace(b",\n,", b"]\n[").split(b"\n") if parts else []

    def restore(self, row_id: str, blob: bytes) -> bytes:
        """Takes up an encoded row, and returns the model's part of it.

        Raises
        ------
        ValueError
            If it was written by a newer layout.
        """
        layout, size = _LAYOUT_AND_SIZE.unpack_from(blob)
        if layout != ROW_LAYOUT:
            raise ValueError(
                f"the row of {self.family} {row_id!r} has layout {layout}, this freshet reads {ROW_LAYOUT}"
            )
        [number] = self.numbers([row_id])
        self.heads[number] = np.frombuffer(blob, HEAD, 1)[0]
        end = HEAD.itemsize + size
        if self.family == USER:
            self.seen[number] = dict.fromkeys(map(sys.intern, orjson.loads(blob[end:])))
        return blob[HEAD.itemsize : end]


def _unused(count: int) -> Array:
    """Fixed parts of rows of which nothing is known yet."""
    heads = np.zeros(count, HEAD)
    heads["layout"] = ROW_LAYOUT
    heads["popularity"] = -math.inf
    return heads
