"""Keys for shards that Flink spreads evenly.

Flink places a key by its hash, and a handful of naive keys pile up on some subtasks. So each shard's key is
searched for: one whose key group is the shard's even share of all key groups. Then a parallelism that divides
the number of shards is exactly even, and at any other no subtask has more than one shard beyond its share.
"""

from __future__ import annotations

from typing import Final

MAX_PARALLELISM: Final = 120  # of every job, fixed: it divides well, and state can't be moved to another


def shard_keys(shards: int) -> list[str]:
    """The key of each shard.

    >>> keys = shard_keys(4)
    >>> [key_group(key) for key in keys]
    [0, 30, 60, 90]
    """
    return [_search(shard, -(-shard * MAX_PARALLELISM // shards)) for shard in range(shards)]


def _search(shard: int, group: int) -> str:
    number = 0
    while key_group(f"shard-{shard}-{number}") != group:
        number += 1
    return f"shard-{shard}-{number}"


def key_group(key: str) -> int:
    """The key group of a string key, as ``KeyGroupRangeAssignment.assignToKeyGroup`` computes it."""
    return _murmur(_java_hash(key)) % MAX_PARALLELISM


def subtask(key: str, parallelism: int) -> int:
    """The subtask that a key is sent to."""
    return key_group(key) * parallelism // MAX_PARALLELISM


def _java_hash(text: str) -> int:
    """``String.hashCode`` of ASCII text, as an unsigned 32-bit number."""
    value = 0
    for char in text:
        value = (31 * value + ord(char)) & 0xFFFFFFFF
    return value


def _murmur(code: int) -> int:
    """``MathUtils.murmurHash`` of Flink: MurmurHash3 of one 32-bit block, made non-negative."""
    code = code * 0xCC9E2D51 & 0xFFFFFFFF
    code = _rotated(code, 15) * 0x1B873593 & 0xFFFFFFFF
    code = (_rotated(code, 13) * 5 + 0xE6546B64) & 0xFFFFFFFF
    code ^= 4
    code = (code ^ code >> 16) * 0x85EBCA6B & 0xFFFFFFFF
    code = (code ^ code >> 13) * 0xC2B2AE35 & 0xFFFFFFFF
    code ^= code >> 16
    signed = code - (1 << 32) if code & 0x80000000 else code
    return 0 if signed == -(1 << 31) else abs(signed)


def _rotated(code: int, by: int) -> int:
    return (code << by | code >> 32 - by) & 0xFFFFFFFF
