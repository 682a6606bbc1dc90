"""Publishes to Redis: whole values, compared and set, acknowledged before the caller goes on.

A publisher returns when Redis has acknowledged what it was given, so a checkpoint never covers a write that
did not arrive. Redis away: it tries again with backoff, then raises, and Flink replays. Nothing is dropped.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, TypeVar

import orjson
import redis

from serving.connection import connect, without_password
from serving.schema import Field, Keys, encode_tile, encode_vector, script, sharded, tile_field, version
from udfs.learner import Learner
from udfs.models import ITEM, USER
from udfs.rows import EncodedRows
from udfs.tilefeed import RECORD, UNIT, total, unescape

# Entities a script call: Redis serves nobody else during one, about 1 ms.
_PER_CALL: Final = 500
_TRANSIENT: Final = (
    redis.exceptions.ConnectionError,
    redis.exceptions.TimeoutError,
    redis.exceptions.ReadOnlyError,
)

Result = TypeVar("Result")
Entity = tuple[str, list[bytes | str | int]]  # a key, and its part of a script's ARGV


class PublishError(RuntimeError):
    """Redis did not take a write within the time allowed; the message says where and why."""


class Publisher:
    """Writes the state of entities to one Redis under one prefix.

    Parameters
    ----------
    url
        As redis-py takes it.
    ttl
        Milliseconds that an entity lives after its last write; 0 for ever.
    patience
        Seconds to try again while Redis is away.
    """

    def __init__(self, url: str, prefix: str, ttl: int = 0, patience: float = 30.0) -> None:
        self.keys = Keys(prefix)
        self._url = without_password(url)
        self._redis: Any = connect(url)
        self._ttl = ttl
        self._patience = patience
        self._digests = {
            name: hashlib.sha1(script(name).encode()).hexdigest() for name in ("publish_learned", "publish_tiles")
        }

    def close(self) -> None:
        self._redis.close()

    def learned(self, entities: Sequence[Entity], items: Mapping[str, Mapping[str, int]]) -> None:
        """Writes learned fields, and notes the items in the sets ``items`` (key to ids and their ``seq``).

        Retried as a whole: every write is idempotent.
        """

        def send() -> None:
            commands: list[tuple[Any, ...]] = []
            for key, members in items.items():
                commands.append(("ZADD", key, "GT", *(x for item, seq in members.items() for x in (seq, item))))
            self._call("publish_learned", [self._ttl], entities, commands)

        self._patiently(send)

    def tiles(self, entities: Sequence[Entity], keep: Mapping[str, int]) -> None:
        """Writes closed windows; ``keep`` says for each span how many milliseconds of it stay."""
        spans = [len(keep), *(value for pair in keep.items() for value in pair)]

        self._patiently(lambda: self._call("publish_tiles", [self._ttl, *spans], entities, []))

    def _call(
        self, name: str, head: Sequence[Any], entities: Sequence[Entity], commands: Sequence[tuple[Any, ...]]
    ) -> None:
        """Runs a script over the entities, and the commands, in one round trip.

        Each part is sent as soon as it is packed and no reply is read before the last: Redis works on one part
        while the next is packed, which takes as long.
        """
        pool, digest = self._redis.connection_pool, self._digests[name]
        connection = pool.get_connection()
        try:
            connection.send_command("SCRIPT", "LOAD", script(name))  # a restarted server has forgotten it
            for start in range(0, len(entities), _PER_CALL):
                part = entities[start : start + _PER_CALL]
                arguments = [argument for _, entity in part for argument in entity]
                connection.send_command("EVALSHA", digest, len(part), *(key for key, _ in part), *head, *arguments)
            for command in commands:
                connection.send_command(*command)
            # What was sent, and when, for reports: what a retry sends again counts again.
            connection.send_command("HINCRBY", self.keys.ledger, "writes", len(entities))
            connection.send_command("HSET", self.keys.ledger, "published_at", time.time_ns() // 1_000_000)
            calls = -(-len(entities) // _PER_CALL)
            errors = []
            for _ in range(1 + calls + len(commands) + 2):
                try:
                    connection.read_response()
                except redis.exceptions.ResponseError as error:
                    errors.append(error)
            if errors:
                raise errors[0]
        except BaseException:
            # Replies may be on their way: nobody must read them as answers to something else.
            connection.disconnect()
            raise
        finally:
            pool.release(connection)

    def ledger(self, fields: Mapping[str, bytes | str | int]) -> None:
        """Writes the log's ledger, whole."""
        self._patiently(lambda: self._redis.hset(self.keys.ledger, mapping=dict(fields)))

    def published_version(self, shard: int) -> bytes | None:
        """The version of a shard's header in Redis; None where Redis knows nothing of it."""
        found: bytes | None = self._patiently(lambda: self._redis.hget(self.keys.model(shard), Field.VERSION))
        return found

    def _patiently(self, send: Callable[[], Result]) -> Result:
        deadline = time.monotonic() + self._patience
        for attempt in range(1_000_000):
            try:
                return send()
            except _TRANSIENT as error:
                # Full jitter, so that the workers of a job do not come back all at once.
                pause = random.uniform(0, min(2.0, 0.05 * 2**attempt))
                if time.monotonic() + pause > deadline:
                    raise PublishError(
                        f"Redis at {self._url} took no write for {self._patience:g} s: {error}"
                    ) from error
                time.sleep(pause)
            except redis.exceptions.RedisError as error:
                raise PublishError(f"Redis at {self._url} refused a write: {error}") from error
        raise AssertionError("unreachable")


def learned_entities(
    learner: Learner, encoded: Mapping[str, EncodedRows], keys: Keys, shard: int, shards: int, epoch: int
) -> tuple[list[Entity], dict[str, dict[str, int]]]:
    """The Redis writes for what a group changed: its users, its items and the shard's header.

    Parameters
    ----------
    encoded
        The touched rows by family, as they are stored.

    Returns
    -------
    The entities for :meth:`Publisher.learned`, and the item sets.
    """
    entities: list[Entity] = []
    model, width = learner.model, 4 * learner.model.n_factors
    for family, key_of, of_shard in ((USER, keys.user, 1), (ITEM, keys.item, shards)):
        rows = encoded[family]
        version_name, count_name, updated_name, bias_name, vector_name, popularity_name = (
            sharded(name, shard, of_shard)
            for name in (
                Field.VERSION, Field.COUNT, Field.UPDATED_AT, Field.BIAS, Field.VECTOR, Field.POPULARITY
            )
        )  # fmt: skip
        vectors = encode_vector(model.vectors(family, rows.weights))
        pairs = 5 + bool(width) if family == USER else 4 + bool(width)
        biases = model.biases(family, rows.weights).tolist()
        for at, (row_id, head, bias) in enumerate(zip(rows.row_ids, rows.heads.tolist(), biases, strict=True)):
            _, _, count, updated_at, seq, popularity = head
            entity: list[bytes | str | int] = [
                version_name, version(epoch, seq), pairs,
                count_name, count, updated_name, updated_at, bias_name, repr(bias),
            ]  # fmt: skip
            if width:
                entity += (vector_name, vectors[at * width : at * width + width])
            if family == USER:
                entity += (Field.SHARD, shard, Field.SEEN, rows.seen[at])
            else:
                entity += (popularity_name, repr(popularity))
            entities.append((key_of(row_id), entity))
    entities.append((keys.model(shard), _header(learner, shards, epoch)))
    items = dict(zip(encoded[ITEM].row_ids, encoded[ITEM].heads["seq"].tolist(), strict=True))
    return entities, {keys.items(shard): items} if items else {}


def _header(learner: Learner, shards: int, epoch: int) -> list[bytes | str | int]:
    summary = learner.summary()
    pairs: list[bytes | str | int] = []
    for name, value in {
        "model": learner.model.name,
        "global_mean": repr(learner.model.global_mean()),
        "n_factors": learner.model.n_factors,
        "shards": shards,
        "seq": learner.seq,
        "updated_at": learner.updated_at,
        "users": summary["users"],
        "items": summary["items"],
        "metrics": orjson.dumps(summary["metrics"]),
        "summary": orjson.dumps(summary),
    }.items():
        pairs += (name, value)
    # The batch number orders headers also where a batch only moved the clock.
    return [Field.VERSION, version(epoch, learner.batch_number), len(pairs) // 2, *pairs]


def tile_entities(results: Iterable[str], keys: Keys, event_types: Sequence[str], part: int) -> list[Entity]:
    """The Redis writes for gathered windows.

    Parameters
    ----------
    results
        Strings of records joined by :data:`RECORD`, as the topology's SQL gathers them: family, span (or
        ``session``), id, start, end, events, both limbs of the sum, distinct, then the counts by type in the order
        of ``event_types``; joined by :data:`UNIT`. Times are milliseconds.
    """
    tiles: dict[str, list[bytes | str | int]] = {}
    counts: dict[str, int] = {}
    sessions: dict[str, tuple[int, bytes]] = {}
    for text in results:
        for record in text.split(RECORD):
            family, span, raw_id, start, end, events, high, low, distinct, *types = record.split(UNIT)
            entity_id = unescape(raw_id)
            key = keys.user(entity_id) if family == USER else keys.item(entity_id)
            tile = tiles.setdefault(key, [])
            began, n, summed, met = int(start), int(events), total(int(high), int(low)), int(distinct)
            if span == "session":
                ended = int(end)
                if ended >= sessions.get(key, (0, b""))[0]:
                    session = {"n": n, "sum": summed, "distinct": met, "start": began, "end": ended}
                    sessions[key] = (ended, orjson.dumps(session))
                continue
            by_type = {name: int(count) for name, count in zip(event_types, types, strict=True) if count != "0"}
            tile += (span, began, tile_field(span, began, part), encode_tile(n, summed, met, by_type))
            counts[key] = counts.get(key, 0) + 1
    return [(key, [counts.get(key, 0), *tile, *sessions.get(key, ("", ""))]) for key, tile in tiles.items()]
