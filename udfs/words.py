"""Words of MessagePack, of many rows at once: columns for :func:`udfs.pieces.side_by_side`.

Redis's reader knows texts only, which to it are bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec
import numpy as np
import orjson

from udfs.models import Array
from udfs.pieces import Pieces

Column = bytes | Pieces
_ENCODE: Final = msgspec.msgpack.Encoder().encode
_LONG: Final = 10**16  # below which a number has sixteen digits at the most
_DIGITS: Final = 16
_COMMA: Final = 44


def word(text: str) -> bytes:
    """A word that is the same in each row."""
    return _ENCODE(text)


def array(of: Sequence[str]) -> bytes:
    """An array of words, which are few."""
    return _ENCODE(of)


def numbers(values: Array) -> list[Column]:
    """Numbers as texts, of no more digits than tell each from all others: Redis makes texts of numbers less cheaply.

    >>> list(numbers(np.array([1, -2]))[-1]), list(numbers(np.array([0.1, -3.0]))[-1])
    ([b'1', b'-2'], [b'0.1', b'-3.0'])
    """
    if values.dtype.kind == "f":
        values = values.astype("<f8", copy=False)  # the same double is to be read, also of what has fewer digits
        if not np.isfinite(values).all():  # JSON has no words for these
            return texts(Pieces.of_texts([*map(repr, values.tolist())]))
    written = np.frombuffer(_dumped(values)[1:-1], dtype=np.uint8)
    is_comma = written == _COMMA
    bounds = np.zeros(len(values) + 1, dtype=np.int64)
    bounds[1:-1] = np.flatnonzero(is_comma) - np.arange(max(len(values) - 1, 0))
    bounds[-1] = len(written) - max(len(values) - 1, 0)
    return texts(Pieces(written[~is_comma], bounds))


def numbered(before: str, seqs: Array) -> list[Column]:
    """A text that is the same in each row, and then a number of sixteen digits.

    >>> from udfs.pieces import side_by_side
    >>> side_by_side(numbered("v", np.array([1, 42])), 2)[1]
    b'\\xd9\\x11v0000000000000042'
    """
    start = before.encode()
    # With a one before them all have as many digits.
    written = np.frombuffer(_dumped(seqs.astype(np.int64) + _LONG), dtype=np.uint8)
    digits = written[1 : 1 + (_DIGITS + 2) * len(seqs)].reshape(-1, _DIGITS + 2)[:, 1:-1].copy()
    return [b"\xd9" + bytes([len(start) + _DIGITS]) + start, Pieces.of_rows(digits)]


def octets(rows: Array) -> list[Column]:
    """The bytes of each row of an array."""
    return [b"\xdb" + (rows.itemsize * rows[:1].size).to_bytes(4, "big"), Pieces.of_rows(rows)]


def texts(pieces: Pieces) -> list[Column]:
    """Texts, or bytes, of any length."""
    return [b"\xdb", Pieces.of_rows(pieces.lengths.astype(">u4")), pieces]


def joined(rows: Pieces, width: int) -> bytes:
    """Rows of so many words each, as one array."""
    return b"\xdd" + (len(rows) * width).to_bytes(4, "big") + rows.joined()


def _dumped(values: Array) -> bytes:
    return orjson.dumps(np.ascontiguousarray(values), option=orjson.OPT_SERIALIZE_NUMPY)
