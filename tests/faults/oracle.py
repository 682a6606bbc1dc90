"""What a log must come to, from a replay in one process that shares nothing with the job but the log.

River's own model in a loop, and plain dictionaries: slow and obvious. It knows the records of the generator, no others.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.sums import BiasedMF

OUT_OF_ORDERNESS = 5_000
HORIZON = 3_600_000
HALF_LIFE = 7 * 86_400_000
SEEN = 50

Event = tuple[int, str, str, str, str, float]  # in the order that decides between equal times
Fields = dict[bytes, bytes]


@dataclass
class Counts:
    read: int = 0
    learned: int = 0
    rejected: int = 0
    late: int = 0
    duplicate: int = 0


def judged(lines: Iterable[bytes]) -> tuple[list[Event], Counts]:
    """The events that are accepted, and the counts of all."""
    counts, accepted, newest = Counts(), list[Event](), 0
    seen: dict[tuple[str, str], int] = {}
    for line in lines:
        counts.read += 1
        event = _usable(line)
        if event is None:
            counts.rejected += 1
            continue
        time, event_id, user_id = event[:3]
        if newest - time > OUT_OF_ORDERNESS:
            counts.late += 1
            continue
        newest = max(newest, time)
        if abs(time - seen.get((user_id, event_id), -HORIZON * 2)) <= HORIZON:
            counts.duplicate += 1
            continue
        seen[user_id, event_id] = time
        accepted.append(event)
    counts.learned = len(accepted)
    return accepted, counts


def _usable(line: bytes) -> Event | None:
    try:
        record = json.loads(line, parse_constant=lambda name: None)
    except ValueError:
        return None
    if not isinstance(record, dict):
        return None
    event = tuple(
        record.get(name) for name in ("timestamp", "event_id", "user_id", "item_id", "event_type", "event_value")
    )
    kinds = (int, str, str, str, str, float)
    return event if all(type(value) is kind for value, kind in zip(event, kinds, strict=True)) else None  # type: ignore[return-value]


@dataclass
class Shard:
    """What one shard must have learned."""

    model: Any
    fields: dict[str, Fields]


def replayed(
    accepted: Iterable[Event], shards: int, n_factors: int, deleted: Mapping[str, int] | None = None
) -> list[Shard]:
    """Learns the events of each shard in the order of time, and says what Redis must hold of it.

    The fields of an item are those of the shard alone; the version is without its epoch. Users who were ``deleted`` are
    forgotten at that time: those who come later are new ones.
    """
    parts: list[list[Event]] = [[] for _ in range(shards)]
    for event in accepted:
        parts[zlib.crc32(event[2].encode()) % shards].append(event)
    return [_learned(sorted(part), shard, shards, n_factors, dict(deleted or {})) for shard, part in enumerate(parts)]


def _learned(events: list[Event], shard: int, shards: int, n_factors: int, deleted: dict[str, int]) -> Shard:
    model = BiasedMF(n_factors=n_factors, seed=0)
    counts: dict[str, int] = {}
    times: dict[str, int] = {}
    seqs: dict[str, int] = {}
    popularity: dict[str, float] = {}
    recent: dict[str, dict[str, None]] = {}

    def forget(user_id: str) -> None:
        del deleted[user_id]
        if counts.pop(f"user:{user_id}", 0):
            del model.u_biases[user_id], model.u_latents[user_id], recent[user_id]

    for seq, (time, _, user_id, item_id, _, value) in enumerate(events, start=1):
        if time >= deleted.get(user_id, math.inf):
            forget(user_id)
        model.learn_one(user_id, item_id, value)
        for key in (f"user:{user_id}", f"item:{item_id}"):
            counts[key] = counts.get(key, 0) + 1
            times[key] = max(times.get(key, 0), time)
            seqs[key] = seq
        items = recent.setdefault(user_id, {})
        items.pop(item_id, None)
        items[item_id] = None
        if len(items) > SEEN:
            del items[next(iter(items))]
        age, known = time / HALF_LIFE, popularity.get(item_id, -math.inf)
        low, high = sorted((age, known))
        popularity[item_id] = high + math.log2(1.0 + 2.0 ** (low - high))
    for user_id in list(deleted):
        forget(user_id)
    fields: dict[str, Fields] = {}
    for key, count in counts.items():
        family, _, row_id = key.partition(":")
        of_user = family == "user"
        suffix = b"" if of_user or shards == 1 else b":%d" % shard
        bias = float((model.u_biases if of_user else model.i_biases)[row_id])
        vector = np.asarray((model.u_latents if of_user else model.i_latents)[row_id])
        own: Fields = (
            {b"shard": b"%d" % shard, b"seen": json.dumps(list(recent[row_id]), separators=(",", ":")).encode()}
            if of_user
            else {b"popularity" + suffix: repr(popularity[row_id]).encode()}
        )
        fields[f"freshet:{key}"] = own | {
            b"version" + suffix: b"%016d" % seqs[key],
            b"count" + suffix: b"%d" % count,
            b"updated_at" + suffix: b"%d" % times[key],
            b"bias" + suffix: repr(bias).encode(),
            b"vector" + suffix: vector.astype("<f4").tobytes(),
        }
    return Shard(model, fields)


def in_redis(connection: Any) -> dict[str, Fields]:
    """The learned fields of every entity, versions without their epoch; floats as Python writes the same double."""
    found: dict[str, Fields] = {}
    keys = [key for family in ("user", "item") for key in connection.scan_iter(f"freshet:{family}:*", count=5_000)]
    for start in range(0, len(keys), 2_000):
        pipe = connection.pipeline(transaction=False)
        for key in keys[start : start + 2_000]:
            pipe.hgetall(key)
        for key, fields in zip(keys[start : start + 2_000], pipe.execute(), strict=True):
            found[key.decode()] = {
                name: _comparable(name, value)
                for name, value in fields.items()
                if not name.startswith((b"t:", b"session", b"pruned"))
            }
    return found


def _comparable(name: bytes, value: bytes) -> bytes:
    if name.startswith((b"bias", b"popularity")):
        return repr(float(value)).encode()
    return value.rpartition(b".")[2] if name.startswith(b"version") else value


def expected_in_redis(shards: Iterable[Shard]) -> dict[str, Fields]:
    together: dict[str, Fields] = {}
    for shard in shards:
        for key, fields in shard.fields.items():
            together.setdefault(key, {}).update(fields)
    return together


@dataclass
class Difference:
    """How two sets of entities differ: events lost and learned twice, by users' counts, and entities not equal."""

    lost: int
    twice: int
    unequal: list[str]


def compared(actual: Mapping[str, Fields], expected: Mapping[str, Fields]) -> Difference:
    lost = twice = 0
    for key in expected.keys() | actual.keys():
        if key.startswith("freshet:user:"):
            more = int(actual.get(key, {}).get(b"count", 0)) - int(expected.get(key, {}).get(b"count", 0))
            lost, twice = lost + max(-more, 0), twice + max(more, 0)
    unequal = sorted(key for key in expected.keys() | actual.keys() if actual.get(key) != expected.get(key))
    return Difference(lost, twice, unequal)
