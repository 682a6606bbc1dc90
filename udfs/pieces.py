"""Bytes of many rows in one array: a Python object a row costs more than what is in it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, overload

import numpy as np
import numpy.typing as npt

Octets = npt.NDArray[np.uint8]
Bounds = npt.NDArray[np.int64]


@dataclass(eq=False)
class Pieces(Sequence[bytes]):
    """Pieces of bytes, one behind the other.

    Attributes
    ----------
    data
        Their bytes, dtype uint8; maybe those of others, too.
    bounds
        Where each begins, and where the last ends: dtype int64, shape ``(len(self) + 1,)``.

    Examples
    --------
    >>> pieces = Pieces.of([b"tea", b"", b"rum"])
    >>> len(pieces), pieces[2], list(pieces[:2]), pieces == [b"tea", b"", b"rum"]
    (3, b'rum', [b'tea', b''], True)
    """

    data: Octets
    bounds: Bounds

    @classmethod
    def of(cls, parts: Sequence[bytes]) -> Pieces:
        """Pieces that were apart."""
        if isinstance(parts, Pieces):
            return parts
        return cls._of(bytearray().join(parts), map(len, parts), len(parts))

    @classmethod
    def of_texts(cls, texts: Sequence[str]) -> Pieces:
        """Texts in UTF-8, also what stands for half a character.

        >>> list(Pieces.of_texts(["tea", "th\u00e9"]))
        [b'tea', b'th\\xc3\\xa9']
        """
        joined = "".join(texts)
        if joined.isascii():
            return cls._of(bytearray(joined, "ascii"), map(len, texts), len(texts))
        return cls.of([text.encode("utf-8", "surrogatepass") for text in texts])

    @classmethod
    def of_rows(cls, rows: npt.NDArray[Any]) -> Pieces:
        """The bytes of each row of an array.

        >>> list(Pieces.of_rows(np.array([[1, 2], [3, 4]], dtype="<u2")))
        [b'\\x01\\x00\\x02\\x00', b'\\x03\\x00\\x04\\x00']
        """
        width = rows.itemsize * int(np.prod(rows.shape[1:]))
        data = np.ascontiguousarray(rows).reshape(-1).view(np.uint8)
        return cls(data, np.arange(len(rows) + 1, dtype=np.int64) * width)

    @classmethod
    def _of(cls, data: bytearray, lengths: Iterable[int], count: int) -> Pieces:
        bounds = np.zeros(count + 1, dtype=np.int64)
        np.cumsum(np.fromiter(lengths, dtype=np.int64, count=count), out=bounds[1:])
        # Of what can be written, as kernels would be compiled once more for what can't.
        return cls(np.frombuffer(data, dtype=np.uint8), bounds)

    @property
    def lengths(self) -> Bounds:
        """How many bytes each has, dtype int64."""
        lengths: Bounds = np.diff(self.bounds)
        return lengths

    def __len__(self) -> int:
        return len(self.bounds) - 1

    @overload
    def __getitem__(self, at: int) -> bytes: ...

    @overload
    def __getitem__(self, at: slice) -> Pieces: ...

    def __getitem__(self, at: int | slice) -> bytes | Pieces:
        if isinstance(at, slice):
            start, end, step = at.indices(len(self))
            if step != 1:
                raise ValueError(f"pieces are cut one after the other, not with a step of {step}")
            return Pieces(self.data, self.bounds[start : max(start, end) + 1])
        start, end = self.bounds[:-1][at], self.bounds[1:][at]
        return self.data[start:end].tobytes()

    def __iter__(self) -> Iterator[bytes]:
        all_of_them, start = self.joined(), int(self.bounds[0])
        return (all_of_them[one:end] for one, end in pairwise((self.bounds - start).tolist()))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def joined(self) -> bytes:
        """All in one."""
        return self.data[self.bounds[0] : self.bounds[-1]].tobytes()


def side_by_side(columns: Iterable[bytes | Pieces], count: int) -> Pieces:
    """So many pieces, each of one piece of every column; bytes are the same in each.

    Raises
    ------
    ValueError
        If a column has another number of pieces.

    >>> list(side_by_side([b"<", Pieces.of([b"tea", b"rum"]), b">"], 2))
    [b'<tea>', b'<rum>']
    """
    from udfs import bytekernels  # here, as numba takes half a second to import

    merged: list[bytes | Pieces] = []
    for column in columns:
        if isinstance(column, bytes) and merged and isinstance(merged[-1], bytes):
            merged[-1] += column
        else:
            if not isinstance(column, bytes) and len(column) != count:
                raise ValueError(f"a column has {len(column)} pieces, not {count}")
            merged.append(column)
    parts = [Pieces.of([column]) if isinstance(column, bytes) else column for column in merged]
    bounds = np.zeros(count + 1, dtype=np.int64)
    lengths = np.zeros(count, dtype=np.int64)
    for part in parts:
        lengths += part.lengths
    np.cumsum(lengths, out=bounds[1:])
    data, places = np.empty(int(bounds[-1]), dtype=np.uint8), bounds[:-1].copy()
    for part in parts:
        bytekernels.put(part.data, part.bounds, places, data)
    return Pieces(data, bounds)
