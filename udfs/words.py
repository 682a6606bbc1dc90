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
_HEADS: Final = {0xD9: 2, 0xDA: 3, 0xDB: 5}  # how many bytes come before a text of 32 bytes or more, by the first


def word(text: str) -> bytes:
    """A word that is the same in each row."""
    return _ENCODE(text)


def array(texts: Sequence[str]) -> bytes:
    """Words of their own."""
    return _ENCODE(texts)


def numbers(values: Array) -> list[Column]:
    """Numbers as the shortest texts that are read as the same: to make a text of a number costs Redis more than us.

    >>> list(numbers(np.array([1, -2]))[-1]), list(numbers(np.array([0.1, -3.0]))[-1])
    ([b'1', b'-2'], [b'0.1', b'-3.0'])
    """
    if values.dtype.kind == "f" and not np.isfinite(values).all():  # JSON has no words for these
        return texts(Pieces.of_texts([*map(repr, values.tolist())]))
    written = orjson.dumps(np.ascontiguousarray(values), option=orjson.OPT_SERIALIZE_NUMPY)
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


def joined(rows: Pieces, width: int) -> bytes:
    """Rows of so many words each, as one array: of fewer than 65,536 words."""
    return b"\xdc" + (len(rows) * width).to_bytes(2, "big") + rows.joined()


def unpacked(packed: bytes) -> list[bytes]:
    """The words in an array, as Redis has them.

    >>> unpacked(msgspec.msgpack.encode(["a", "bc"]))
    [b'a', b'bc']
    """
    found: list[msgspec.Raw] = msgspec.msgpack.decode(packed, type=list[msgspec.Raw])
    return [text[_HEADS.get(text[0], 1) :] for text in map(bytes, found)]
