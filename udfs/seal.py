"""Checksums over all that is stored: what is damaged is refused, and never taken up in silence.

A small thing gets a CRC-32 at its end. Rows are many and are written with every event, so theirs is computed over
whole tables: a sum of 64-bit words, each mixed and times an odd number of its place, which any change within one
word changes; see :mod:`udfs.rows`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final
from zlib import crc32

import numpy as np

from udfs.models import Array
from udfs.pieces import Pieces

REMEDY: Final = "bring back an older checkpoint or copy of the state, or start anew with --fresh"
_SEAL: Final = len(b"\n01234567")
_FACTOR: Final = 0x9E3779B97F4A7C15


class Damaged(ValueError):
    """A stored thing is not what was written; the message names it, both sides, and what to do."""


def seal(name: str, blob: bytes) -> bytes:
    """A blob with its checksum, which covers the name that it is stored under.

    >>> seal("header", b"{}")
    b'{}\\na94a1ce4'
    """
    return b"%b\n%08x" % (blob, crc32(blob, crc32(name.encode())))


def unseal(part: str, name: str, blob: bytes) -> bytes:
    """The blob that :func:`seal` was given.

    >>> unseal("the learner's", "header", b"[]\\na94a1ce4")
    Traceback (most recent call last):
    ...
    udfs.seal.Damaged: the learner's 'header' is damaged: its 11 bytes end in b'\\na94a1ce4', their checksum is \
b'\\n07a0188e'; bring back an older checkpoint or copy of the state, or start anew with --fresh
    """
    content, found = blob[:-_SEAL], blob[-_SEAL:]
    expected = seal(name, content)[-_SEAL:]
    if found != expected:
        raise Damaged(
            f"{part} {name!r} is damaged: its {len(blob)} bytes end in {found!r}, their checksum is {expected!r}; "
            f"{REMEDY}"
        )
    return content


def check_layout(what: str, found: int, *reads: int) -> None:
    """
    Raises
    ------
    ValueError
        If a thing that is sound has another layout than those that this version reads.
    """
    if found not in reads:
        known = " and ".join(map(str, reads))
        raise ValueError(
            f"{what} has layout {found}, this freshet reads {known}; go on with the version that wrote it, "
            "or start anew with --fresh"
        )


def sums(words: Array, family: str, ids: Pieces, tails: Pieces) -> Array:
    """The checksum of each row of a family.

    Parameters
    ----------
    words
        The fixed parts, dtype ``<u8``, shape ``(rows, words)``, of which the last is the checksum's place.
    ids, tails
        The ids that the rows are stored under, and what follows the fixed parts. These go in as one CRC-32.

    Raises
    ------
    ValueError
        If there are not as many of each.
    """
    from udfs import bytekernels  # here, as numba takes half a second to import

    if not len(words) == len(ids) == len(tails):
        raise ValueError(f"{len(words)} rows have {len(ids)} ids and {len(tails)} tails")
    width = words.shape[1] - 1
    crcs, factors = np.full(len(words), crc32(family.encode()), dtype=np.uint64), _factors(width + 1)
    for pieces in (ids, tails):
        bytekernels.add_crcs(pieces.data, pieces.bounds, bytekernels.TABLES, crcs)
    totals: Array = crcs * factors[0]
    bytekernels.add_words(words, width, factors[1:], totals)
    return totals


@lru_cache
def _factors(count: int) -> Array:
    """Powers of an odd number, which are odd; fixed for ever."""
    return np.array([pow(_FACTOR, power, 2**64) for power in range(1, count + 1)], dtype=np.uint64)
