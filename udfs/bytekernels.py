"""Bytes of many rows copied, written and summed, without a Python object a row."""

from __future__ import annotations

import numpy as np

from udfs.jit import njit
from udfs.models import Array

_POLYNOMIAL = 0xEDB88320  # of zlib's CRC-32, bits reversed


def _tables() -> Array:
    """By the distance from the end of eight bytes and by byte, what it adds to their CRC-32: shape ``(8, 256)``."""
    tables = np.zeros((8, 256), dtype=np.uint64)
    crcs = np.arange(256, dtype=np.uint64)
    for _ in range(8):
        crcs = np.where(crcs & np.uint64(1), crcs >> np.uint64(1) ^ np.uint64(_POLYNOMIAL), crcs >> np.uint64(1))
    tables[0] = crcs
    for distance in range(1, 8):
        before = tables[distance - 1]
        tables[distance] = before >> np.uint64(8) ^ tables[0][before & np.uint64(255)]
    return tables


TABLES = _tables()


@njit(cache=True, nogil=True)
def put(data: Array, bounds: Array, places: Array, out: Array) -> None:
    """Copies pieces to where they belong; a single one to all of the places.

    Parameters
    ----------
    data, bounds
        As :class:`~udfs.pieces.Pieces` has them.
    places
        Where in ``out`` each goes; afterwards, where it ends.
    """
    same = len(bounds) == 2
    for row in range(len(places)):
        at = 0 if same else row
        # Unsigned: a place that may be counted from the end is looked at twice, for each byte.
        start, to = np.uint64(bounds[at]), np.uint64(places[row])
        length = np.uint64(bounds[at + 1]) - start
        for byte in range(length):
            out[to + np.uint64(byte)] = data[start + np.uint64(byte)]
        places[row] = to + length


@njit(cache=True, nogil=True)
def add_crcs(data: Array, bounds: Array, tables: Array, crcs: Array) -> None:
    """Goes on with a CRC-32 a piece, as zlib computes it: eight bytes at a time, by tables (Kounavis and Berry, `A
    systematic approach to building high performance, software-based, CRC generators
    <https://doi.org/10.1109/ISCC.2005.18>`_, 2005). ``crcs``, dtype uint64, are written."""
    ones, low, eight, one = np.uint64(0xFFFFFFFF), np.uint64(255), np.uint64(8), np.uint64(1)
    for row in range(len(crcs)):
        at, end, crc = np.uint64(bounds[row]), np.uint64(bounds[row + 1]), crcs[row] ^ ones
        while end - at >= eight:
            first = np.uint64(data[at]) | np.uint64(data[at + np.uint64(1)]) << np.uint64(8)
            second = np.uint64(data[at + np.uint64(2)]) | np.uint64(data[at + np.uint64(3)]) << np.uint64(8)
            word = crc ^ (first | second << np.uint64(16))
            crc = (
                tables[7, word & low]
                ^ tables[6, word >> np.uint64(8) & low]
                ^ tables[5, word >> np.uint64(16) & low]
                ^ tables[4, word >> np.uint64(24)]
                ^ tables[3, data[at + np.uint64(4)]]
                ^ tables[2, data[at + np.uint64(5)]]
                ^ tables[1, data[at + np.uint64(6)]]
                ^ tables[0, data[at + np.uint64(7)]]
            )
            at += eight
        while at < end:
            crc = tables[0, (crc ^ np.uint64(data[at])) & low] ^ crc >> np.uint64(8)
            at += one
        crcs[row] = crc ^ ones


@njit(cache=True, nogil=True)
def add_words(words: Array, width: int, factors: Array, totals: Array) -> None:
    """Adds to each total the first words of its row, each mixed and times a factor of its place; all are uint64."""
    for row in range(len(words)):
        total = totals[row]
        for at in range(width):
            # The upper half goes into the lower one first: by odd factors alone two flipped signs would not be seen.
            total += (words[row, at] ^ words[row, at] >> np.uint64(32)) * factors[at]
        totals[row] = total


@njit(cache=True)
def write_records(data: Array, bounds: Array, places: Array, numbers: Array, unit: int, end: int, out: Array) -> int:
    """A record for each column of numbers: the piece at its place; the numbers, a ``unit`` before each; and ``end``.

    Parameters
    ----------
    data, bounds
        As :class:`~udfs.pieces.Pieces` has them.
    numbers
        dtype int64.

    Returns
    -------
    How many bytes of ``out`` were written.
    """
    at, one, ten, zero = np.uint64(0), np.uint64(1), np.uint64(10), np.uint64(ord("0"))
    for record in range(len(places)):
        for byte in range(np.uint64(bounds[places[record]]), np.uint64(bounds[places[record] + 1])):
            out[at] = data[byte]
            at += one
        for row in range(len(numbers)):
            number = numbers[row, record]
            out[at] = unit
            at += one
            if number < 0:
                out[at] = ord("-")
                at += one
            left = np.uint64(abs(number))
            digits, more = one, left // ten
            while more > np.uint64(0):
                digits += one
                more //= ten
            at += digits
            for back in range(digits):
                out[at - one - np.uint64(back)] = zero + left % ten
                left //= ten
        out[at] = end
        at += one
    return int(at)
