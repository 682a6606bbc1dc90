"""Words of MessagePack, of many rows at once: columns for :func:`udfs.pieces.side_by_side`.

Redis's reader knows texts only, which to it are bytes; and numbers, which it makes texts of.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

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
_HEADS: Final = {0xD9: 2, 0xDA: 3, 0xDB: 5}  # of texts: bytes before the text, the last of which say how long it is


def word(value: str | int) -> bytes:
    """A word that is the same in each row."""
    return _ENCODE(value)


def array(columns: Sequence[Column], words: int) -> list[Column]:
    """Columns that hold so many words in all, as an array in each row."""
    return [_array_of(words), *columns]


def integers(values: Array) -> list[Column]:
    """Whole numbers.

    >>> from udfs.pieces import side_by_side
    >>> list(side_by_side(integers(np.array([1, -2])), 2))
    [b'\\xd3\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x01', b'\\xd3\\xff\\xff\\xff\\xff\\xff\\xff\\xff\\xfe']
    """
    return [b"\xd3", Pieces.of_rows(values.astype(">i8"))]


def decimals(values: Array) -> list[Column]:
    """Doubles, as the shortest texts that are read as the same.

    >>> list(decimals(np.array([0.1, -3.0]))[-1]), list(decimals(np.array([0.5, -np.inf]))[-1])
    ([b'0.1', b'-3.0'], [b'0.5', b'-inf'])
    """
    if not np.isfinite(values).all():  # JSON has no words for these
        return texts(Pieces.of_texts([*map(repr, values.tolist())]))
    written = orjson.dumps(np.ascontiguousarray(values, dtype=np.float64), option=orjson.OPT_SERIALIZE_NUMPY)
    octets = np.frombuffer(bytearray(written[1:-1]), dtype=np.uint8)
    is_comma = octets == _COMMA
    bounds = np.zeros(len(values) + 1, dtype=np.int64)
    bounds[1:-1] = np.flatnonzero(is_comma) - np.arange(max(len(values) - 1, 0))
    octets = octets[~is_comma]
    bounds[-1] = len(octets)
    return texts(Pieces(octets, bounds))


def numbered(before: str, numbers: Array) -> list[Column]:
    """A text that is the same in each row, and then a number of sixteen digits.

    >>> from udfs.pieces import side_by_side
    >>> side_by_side(numbered("v", np.array([1, 42])), 2)[1]
    b'\\xd9\\x11v0000000000000042'
    """
    start = before.encode()
    # With a one before them all have as many digits.
    ones = np.ascontiguousarray(numbers, dtype=np.int64) + _LONG
    written = np.frombuffer(orjson.dumps(ones, option=orjson.OPT_SERIALIZE_NUMPY), dtype=np.uint8)
    digits = written[1:].reshape(len(numbers), _DIGITS + 2)[:, 1:-1].copy()
    return [b"\xd9" + bytes([len(start) + _DIGITS]) + start, Pieces.of_rows(digits)]


def octets(rows: Array) -> list[Column]:
    """The bytes of each row of an array, up to 64 KiB."""
    pieces = Pieces.of_rows(rows)
    return [b"\xda" + (rows.itemsize * rows[:1].size).to_bytes(2, "big"), pieces]


def texts(pieces: Pieces) -> list[Column]:
    """Texts, or bytes, of any length."""
    return [b"\xdb", Pieces.of_rows(pieces.lengths.astype(">u4")), pieces]


def joined(rows: Pieces) -> bytes:
    """An array of rows, each of them packed: fewer than 65,536."""
    return _array_of(len(rows)) + rows.joined()


def unpacked(packed: bytes) -> Iterator[list[bytes]]:
    """The rows of words in what :func:`joined` gives, as Redis has them.

    >>> list(unpacked(msgspec.msgpack.encode([["a", 1], ["bc", -2]])))
    [[b'a', b'1'], [b'bc', b'-2']]
    """
    rows: Iterable[Sequence[msgspec.Raw]] = msgspec.msgpack.decode(packed, type=list[list[msgspec.Raw]])
    return ([_text(bytes(of)) for of in row] for row in rows)


def _text(packed: bytes) -> bytes:
    if packed[0] in _HEADS:
        return packed[_HEADS[packed[0]] :]
    if packed[0] >> 5 == 0b101:  # a text of less than 32 bytes
        return packed[1:]
    number: Any = msgspec.msgpack.decode(packed)
    return str(number).encode()


def _array_of(length: int) -> bytes:
    return b"\xdc" + length.to_bytes(2, "big")
