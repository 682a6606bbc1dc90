"""Publishes to Redis: whole values, compared and set, acknowledged before the caller goes on.

A publisher returns when Redis has acknowledged what it was given, so a checkpoint never covers a write that
did not arrive. Redis away: it tries again with backoff, then raises, and Flink replays. Nothing is dropped.
"""

from __future__ import annotations

import hashlib
import math
import random
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
_SCRIPTS: Final = ("publish_learned", "publish_tiles", "note")
_TRANSIENT: Final = (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError)
# Words of a server that will take writes again: full, a replica until a failover is done, loading, or in a script.
# They come as they are, or in the middle of a script's error.
_NOT_NOW: Final = re.compile(r"(?:^|\W)(?:OOM|READONLY|LOADING|MASTERDOWN|BUSY|NOREPLICAS|MISCONF|TRYAGAIN)(?:\W|$)")

Result = TypeVar("Result")
Entity = tuple[str, list[bytes | str | int]]  # a key, and its part of a script's ARGV
Call = tuple[str, Sequence[str], Sequence[Any]]  # a script, and its KEYS and ARGV but for fence and submission


class PublishError(RuntimeError):
    """Redis did not take a write within the time allowed; the message says where and why."""


class Fenced(PublishError):
    """A job that was submitted later writes under the same prefix: this one must end."""


def draw_submission(connection: Any, keys: Keys, now: int) -> int:
    """A number for a job that is about to be submitted, above all before it under this prefix.

    From here on the jobs before it can write nothing. ``now`` is the wall clock in ms, so that numbers go up also
    where Redis has forgotten the last.
    """
    return int(connection.eval(script("draw_submission"), 1, keys.fence, now))


class Publisher:
    """Writes the state of entities to one Redis under one prefix.

    Parameters
    ----------
    url
        As redis-py takes it.
    submission
        The job's number, see :func:`draw_submission`.
    ttl
        Milliseconds that an entity lives after its last write; 0 for ever.
    patience
        Seconds to try again while Redis is away.
    """

    def __init__(self, url: str, prefix: str, submission: int = 0, ttl: int = 0, patience: float = 30.0) -> None:
        self.keys = Keys(prefix)
        self._url = without_password(url)
        self._redis: Any = connect(url)
        self._submission = submission
        self._ttl = ttl
        self._patience = patience
        self._alive_at: dict[int, float] = {}
        self._scripts = {name: script("fenced") + script(name) for name in _SCRIPTS}
        self._digests = {name: hashlib.sha1(text.encode()).hexdigest() for name, text in self._scripts.items()}

    def close(self) -> None:
        self._redis.close()

    def learned(
        self, entities: Sequence[Entity], items: Mapping[str, Mapping[str, int]], after: bytes = b""
    ) -> bytes | None:
        """Writes learned fields, and notes the items in the sets ``items`` (key to ids and their ``seq``).

        Retried as a whole: every write is idempotent. Returns the version that the last entity had before, None if
        Redis did not know it: where that is the shard's header, it tells whether Redis still has what it was given.
        If that is less than ``after``, the last entity is not written, so that it can still be told by who tries
        again, or by a job that restarts before all is written again.
        """
        notes = [
            ("ZADD", key, "GT", *(word for item, seq in part for word in (seq, item)))
            for key, members in items.items()
            for part in _parts(list(members.items()))
        ]
        before: bytes | None = self._patiently(lambda: self._write("publish_learned", entities, notes, [b""], [after]))
        return before

    def tiles(self, entities: Sequence[Entity], keep: Mapping[str, int]) -> None:
        """Writes closed windows; ``keep`` says for each span how many milliseconds of it stay."""
        spans = [len(keep), *(value for pair in keep.items() for value in pair)]
        self._patiently(lambda: self._write("publish_tiles", entities, [], spans, spans))

    def _write(
        self,
        name: str,
        entities: Sequence[Entity],
        notes: Sequence[tuple[Any, ...]],
        head: Sequence[Any],
        last_head: Sequence[Any],
    ) -> Any:
        """Runs a script over the entities, then the commands ``notes``; returns the script's last answer.

        ``head`` goes before the entities of each call, in the last one ``last_head``.
        """

        def calls() -> Iterator[Call]:
            left = len(entities)
            for part in _parts(entities):
                left -= len(part)
                arguments = [argument for _, entity in part for argument in entity]
                yield name, [key for key, _ in part], [self._ttl, *(head if left else last_head), *arguments]
            for note in notes:
                yield "note", [], note
            # What was sent, and when, for reports: what a retry sends again counts again.
            yield "note", [], ("HINCRBY", self.keys.ledger, "writes", len(entities))
            yield "note", [], ("HSET", self.keys.ledger, "published_at", time.time_ns() // 1_000_000)

        answers = self._run(calls())
        return answers[-3 - len(notes)] if entities else None

    def _run(self, calls: Iterable[Call]) -> list[Any]:
        """Runs scripts in one round trip, and returns their answers.

        Each is sent as soon as it is packed and no reply is read before the last: Redis works on one while the next
        is packed, which takes as long.
        """
        pool = self._redis.connection_pool
        connection = pool.get_connection()
        answers: list[Any] = []
        errors: list[Exception] = []
        sent, settled = 0, False
        try:
            for text in self._scripts.values():  # a restarted server has forgotten them
                connection.send_command("SCRIPT", "LOAD", text)
            for name, keys, arguments in calls:
                connection.send_command(
                    "EVALSHA", self._digests[name], 1 + len(keys), self.keys.fence, *keys, self._submission, *arguments
                )
                sent += 1
            for _ in range(len(self._scripts) + sent):
                try:
                    answers.append(connection.read_response())
                except redis.exceptions.ResponseError as error:
                    errors.append(error)
            settled = True
        finally:
            if not settled:
                # Replies may be on their way: nobody must read them as answers to something else.
                connection.disconnect()
            pool.release(connection)
        if errors:
            raise errors[0]
        return answers[len(self._scripts) :]

    def ledger(self, fields: Mapping[str, bytes | str | int], attempt: int = 0) -> None:
        """Writes the log's ledger, whole, and which of Flink's attempts at the job has written it."""
        self._note({**fields, Field.ATTEMPT: attempt, Field.ALIVE: time.time_ns() // 1_000_000})

    def alive(self, shard: int) -> None:
        """Notes, once a second at the most, that a shard's learner is there."""
        if time.monotonic() - self._alive_at.get(shard, -math.inf) >= 1.0:
            self._note({f"{Field.ALIVE}:{shard}": time.time_ns() // 1_000_000})
            self._alive_at[shard] = time.monotonic()

    def _note(self, fields: Mapping[str, bytes | str | int]) -> None:
        words = ["HSET", self.keys.ledger, *(word for pair in fields.items() for word in pair)]
        self._patiently(lambda: self._run([("note", [], words)]))

    def known(self, shard: int) -> tuple[bytes | None, bool]:
        """What Redis knows of a shard: the version of its header, and whether someone asks for all to be written."""

        def ask() -> list[Any]:
            pipe = self._redis.pipeline(transaction=False)
            pipe.hget(self.keys.model(shard), Field.VERSION)
            pipe.hexists(self.keys.ledger, f"{Field.REPUBLISH}:{shard}")
            answers: list[Any] = pipe.execute()
            return answers

        header_version, asked = self._patiently(ask)
        return header_version, bool(asked)

    def republished(self, shard: int) -> None:
        """Tells who asked that it is done."""
        self._patiently(lambda: self._run([("note", [], ["HDEL", self.keys.ledger, f"{Field.REPUBLISH}:{shard}"])]))

    def _patiently(self, send: Callable[[], Result]) -> Result:
        deadline = time.monotonic() + self._patience
        for attempt in range(1_000_000):
            try:
                return send()
            except redis.exceptions.RedisError as error:
                if str(error).startswith("FENCED"):
                    raise Fenced(
                        f"another job, submitted later, writes under prefix {self.keys.prefix!r} at {self._url}: "
                        "this one ends for good; what it has learned since its last checkpoint is not in Redis"
                    ) from error
                if not isinstance(error, _TRANSIENT) and not _NOT_NOW.search(str(error)):
                    raise PublishError(f"Redis at {self._url} refused a write: {error}") from error
                # Full jitter, so that the workers of a job do not come back all at once.
                pause = random.uniform(0, min(2.0, 0.05 * 2**attempt))
                if time.monotonic() + pause > deadline:
                    raise PublishError(
                        f"Redis at {self._url} took no write for {self._patience:g} s: {error}"
                    ) from error
                time.sleep(pause)
        raise AssertionError("unreachable")


def _parts(things: Sequence[Result]) -> Iterator[Sequence[Result]]:
    """Slices of what one script call takes."""
    for start in range(0, len(things), _PER_CALL):
        yield things[start : start + _PER_CALL]


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
