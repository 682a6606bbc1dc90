"""The Redis schema: the contract between the job, which writes it, and every app that reads it.

One hash an entity holds all that is known about it, so that one ``HGETALL`` answers a look-up. The
publisher and the client share this module and so cannot drift apart; ``docs/redis-schema.md`` says the
same to readers in other languages.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import orjson

KEPT: Final = 10_000  # entries of the metrics' history
SPAN_UNITS: Final = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


class Field:
    """The names of the fields of an entity's hash, and, the last six, of the ledger."""

    VECTOR = "vector"
    BIAS = "bias"
    COUNT = "count"
    UPDATED_AT = "updated_at"
    VERSION = "version"
    POPULARITY = "popularity"
    SHARD = "shard"
    SEEN = "seen"
    SESSION = "session"
    HISTORY = "history"
    LINKS = "links"
    STATS = "stats"
    CATALOGUE = "catalogue"
    TILE = "t:"
    ATTEMPT = "attempt"
    AUTHOR = "author"
    ALIVE = "alive_at"
    REPUBLISH = "republish"
    REACHED = "reached"
    REPLAYED = "replayed"


# What learners write of an item, each for its shard.
LEARNED_OF_ITEM: Final = (
    *(Field.VERSION, Field.COUNT, Field.UPDATED_AT, Field.BIAS, Field.VECTOR, Field.POPULARITY),
    *(Field.LINKS, Field.STATS),
)


@dataclass(frozen=True)
class Keys:
    """Every Redis key that freshet uses.

    >>> Keys("freshet").user("42")
    'freshet:user:42'
    """

    prefix: str

    def user(self, user_id: str) -> str:
        return f"{self.prefix}:user:{user_id}"

    def item(self, item_id: str) -> str:
        return f"{self.prefix}:item:{item_id}"

    def items(self, shard: int) -> str:
        """Sorted set of the item ids that a shard knows; the score is the ``seq`` of the last change."""
        return f"{self.prefix}:items:{shard}"

    def tail(self, shard: int, family: str, number: int) -> str:
        """Hash of a row that ids share which have none of their own; ``family`` is ``user`` or ``item``."""
        return f"{self.prefix}:tail:{shard}:{family}:{number}"

    def model(self, shard: int) -> str:
        """Hash with a shard's header: model, global mean, counts, metrics, version."""
        return f"{self.prefix}:model:{shard}"

    @property
    def ledger(self) -> str:
        """Hash with the counts of the log: read, rejected, late, duplicate."""
        return f"{self.prefix}:ledger"

    @property
    def metrics(self) -> str:
        """Sorted set of JSON objects, the last :data:`KEPT`: how well a shard did at a time, the score, in ms."""
        return f"{self.prefix}:metrics"

    @property
    def fence(self) -> str:
        """String: the number of the newest submission. Whoever has a lower one may not write."""
        return f"{self.prefix}:fence"

    @property
    def deleted(self) -> str:
        """Hash: the tombstones of deleted users, by id."""
        return f"{self.prefix}:deleted"

    @property
    def everything(self) -> str:
        """The pattern that every key of this prefix matches, with glob characters of the prefix escaped."""
        escaped = "".join(f"\\{c}" if c in "\\*?[]^-" else c for c in self.prefix)
        return f"{escaped}:*"


def sharded(field: str, shard: int, shards: int) -> str:
    """The name of an item's learned field: one for each shard, since their factor spaces are not comparable.

    >>> sharded("vector", 2, 4), sharded("vector", 0, 1)
    ('vector:2', 'vector')
    """
    return f"{field}:{shard}" if shards > 1 else field


def shard_of(user_id: str, shards: int) -> int:
    """The shard of a user: CRC-32 of the id's UTF-8 bytes, modulo the number of shards. Fixed for ever.

    >>> shard_of("42", 4)
    0
    """
    return zlib.crc32(user_id.encode()) % shards


def shards_of(user_ids: Sequence[str], shards: int) -> npt.NDArray[np.int64]:
    """:func:`shard_of` of many users.

    >>> shards_of(["42", "7", "42"], 4)
    array([0, 2, 0])
    """
    return np.fromiter(map(zlib.crc32, map(str.encode, user_ids)), dtype=np.int64, count=len(user_ids)) % shards


def tail_of(row_id: str, tail_rows: int) -> int:
    """The number of the shared row of a user or an item that has no row of its own. Fixed for ever.

    CRC-32 of the id's UTF-8 bytes and a zero byte: so the users of one shard are spread over all rows.

    >>> tail_of("42", 1_024)
    47
    """
    return zlib.crc32(row_id.encode() + b"\0") % tail_rows


def version(epoch: int, attempt: int, seq: int) -> bytes:
    """A version that orders as its text does: first the state's epoch (its birth, ms), then which attempt at the job
    wrote it, then its ``seq``.

    >>> version(1700000000000, 3, 42)
    b'1700000000000.00000003.0000000000000042'
    """
    return f"{version_before(epoch, attempt)}{seq:016d}".encode()


def version_before(epoch: int, attempt: int) -> str:
    """What a :func:`version` begins with; the sixteen digits of its ``seq`` follow."""
    return f"{epoch:013d}.{attempt:08d}."


def encode_vector(vector: np.ndarray[Any, Any]) -> bytes:
    """FLOAT32 little-endian, the layout that Redis's own vector index reads from a hash.

    >>> encode_vector(np.array([1.0, -2.0])).hex()
    '0000803f000000c0'
    """
    return vector_rows(vector).tobytes()


def vector_rows(vectors: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Vectors as their bytes are in Redis, see :func:`encode_vector`: contiguous."""
    return np.ascontiguousarray(vectors, dtype="<f4")


def decode_vector(blob: bytes | None) -> np.ndarray[Any, Any]:
    """The inverse of :func:`encode_vector`; shape ``(n_factors,)``, empty where the model has no factors."""
    return np.frombuffer(blob or b"", dtype="<f4")


@lru_cache
def script(name: str) -> str:
    """The text of a Lua script of this package."""
    # Not by path: a cluster's workers import the package from an archive.
    return (files("serving") / f"{name}.lua").read_text()


# --------------------------------------------------------------------------------------------- tiles


def span_ms(span: str) -> int:
    """A span such as ``5m``, ``1h`` or ``1d`` in milliseconds.

    >>> span_ms("5m"), span_ms("1d")
    (300000, 86400000)

    Raises
    ------
    ValueError
        If the text is not a whole, positive number followed by ms, s, m, h or d.
    """
    number = span.rstrip("smhd")
    factor = SPAN_UNITS.get(span[len(number) :])
    if factor is None or not (number.isascii() and number.isdigit()) or int(number) == 0:
        raise ValueError(f"{span!r} is not a span; write a whole number and a unit, such as 100ms, 30s, 5m, 1h or 1d")
    return int(number) * factor


@dataclass(frozen=True)
class Tile:
    """What happened to one entity in one window ``[start, start + span)``, UTC milliseconds.

    ``distinct`` counts the counterparts (items of a user, users of an item) met for the first time in the
    UTC day, so it adds up exactly within a day and not across days.
    """

    start: int
    events: int
    sum: float
    distinct: int
    types: Mapping[str, int]

    @property
    def mean(self) -> float | None:
        """Mean of ``event_value``; None without events."""
        return self.sum / self.events if self.events else None


def tile_field(span: str, start: int | str, part: int = 0) -> str:
    """The field of a tile. ``part`` counts the inputs that ended before it: a window that was closed by the
    end of one input and went on with the next has a field for each, and readers add them up.

    >>> tile_field("1h", 1700000000000), tile_field("1h", 1700000000000, 2)
    ('t:1h:1700000000000', 't:1h:1700000000000:2')
    """
    return f"{Field.TILE}{span}:{start}:{part}" if part else f"{Field.TILE}{span}:{start}"


def encode_tile(events: int, total: float, distinct: int, types: Mapping[str, int]) -> bytes:
    return orjson.dumps({"n": events, "sum": total, "distinct": distinct, "types": types})


def decode_tiles(fields: Mapping[bytes, bytes]) -> dict[str, dict[int, Tile]]:
    """All tiles in an entity's hash, by span and start, the parts of a window added up."""
    tiles: dict[str, dict[int, Tile]] = {}
    for name, blob in fields.items():
        if not name.startswith(b"t:"):
            continue
        span, start_text, *_ = name[2:].decode().split(":")
        value, start = orjson.loads(blob), int(start_text)
        tile = Tile(start, value["n"], value["sum"], value["distinct"], value["types"])
        known = tiles.setdefault(span, {}).get(start)
        tiles[span][start] = merge([known, tile], start) if known else tile
    return tiles


def merge(tiles: Sequence[Tile], start: int) -> Tile:
    """The sum of tiles, as one that begins at ``start``.

    >>> merge([Tile(0, 2, 3.0, 1, {"view": 2}), Tile(9, 1, 1.0, 1, {"buy": 1})], 0)
    Tile(start=0, events=3, sum=4.0, distinct=2, types={'view': 2, 'buy': 1})
    """
    types: dict[str, int] = {}
    for tile in tiles:
        for name, count in tile.types.items():
            types[name] = types.get(name, 0) + count
    return Tile(start, sum(t.events for t in tiles), sum(t.sum for t in tiles), sum(t.distinct for t in tiles), types)


def window(tiles: Mapping[str, Mapping[int, Tile]], span: str, as_of: int) -> Tile:
    """The last ``span`` as of a moment: the closed tiles that end in ``(as_of - span, as_of]``.

    Taken from the coarsest tiles that divide the span twice or more, so that "last hour" is read from
    5-minute tiles and "last day" from hours; a span that no tile divides is an error.

    Parameters
    ----------
    tiles
        As :func:`decode_tiles` gives them.
    span
        Such as ``1h`` or ``7d``.
    as_of
        UTC milliseconds. Nothing that happened for two hours means that the last hour is zero.
    """
    length = span_ms(span)
    sizes = sorted(((span_ms(name), name) for name in tiles), reverse=True)
    fitting = [(size, name) for size, name in sizes if size <= length and length % size == 0]
    if tiles and not fitting:
        raise ValueError(f"no tile divides the span {span!r}; there are tiles of {', '.join(tiles)}")
    finer = [entry for entry in fitting if entry[0] < length] or fitting
    if not finer:
        return Tile(as_of - length, 0, 0.0, 0, {})
    size, name = finer[0]
    closed = [t for t in tiles[name].values() if as_of - length < t.start + size <= as_of]
    return merge(sorted(closed, key=lambda t: t.start), as_of - length)
