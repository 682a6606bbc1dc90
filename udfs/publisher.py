"""Publishes to Redis: whole values, compared and set, acknowledged before the caller goes on.

A publisher returns when Redis has acknowledged what it was given, so a checkpoint never covers a write that
did not arrive. Redis away: it tries again with backoff, then raises, and Flink replays. Nothing is dropped.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import random
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeVar

import orjson
import redis

from serving.connection import connect, without_password
from serving.schema import Field, Keys, encode_tile, encode_vector, script, sharded, tile_field, version
from udfs.learner import Learner
from udfs.models import ITEM, USER
from udfs.requests import Request
from udfs.rows import EncodedRows
from udfs.tail import tail_number
from udfs.tilefeed import RECORD, UNIT, total, unescape
from udfs.tombstones import Arguments, Tombstone, deleting, hiding, lifting

# Entities a script call: Redis serves nobody else during one, about 1 ms.
_PER_CALL: Final = 500
_SCRIPTS: Final[Mapping[str, Sequence[str]]] = {
    "publish_learned": ("fenced", "superseded", "tombstones", "publish_learned"),
    "drop_learned": ("fenced", "superseded", "drop_learned"),
    "publish_tiles": ("fenced", "tombstones", "publish_tiles"),
    "note": ("fenced", "note"),
}
# Sent whole when they are needed, which is seldom.
_RARE: Final = {name: ("fenced", name) for name in ("take_over", "hide", "delete", "lift")}
# Scripts may be forgotten between what loads them and what runs them.
_TRANSIENT: Final = (
    redis.exceptions.ConnectionError,
    redis.exceptions.TimeoutError,
    redis.exceptions.NoScriptError,
)
# Words of a server that will take writes again: full, a replica until a failover is done, loading, or in a script.
# They come as they are, or in the middle of a script's error.
_NOT_NOW: Final = re.compile(r"(?:^|\W)(?:OOM|READONLY|LOADING|MASTERDOWN|BUSY|NOREPLICAS|MISCONF|TRYAGAIN)(?:\W|$)")

Result = TypeVar("Result")
Entity = tuple[str, list[bytes | str | int]]  # a key, and its part of a script's ARGV
# A script, and its KEYS and ARGV but for fence, tombstones and submission.
Call = tuple[str, Sequence[str], Sequence[Any]]


class Found(NamedTuple):
    """What an attempt at a shard finds in Redis when it begins.

    Attributes
    ----------
    attempt
        Its number, above all before it.
    version
        Of the shard's header; None where Redis knows nothing of this state.
    acknowledged, reached
        How far the shard was when the header was written, and how far it may have been since, as
        :attr:`~udfs.learner.Learner.reached` tells.
    """

    attempt: int
    version: bytes | None
    acknowledged: Mapping[str, int]
    reached: Mapping[str, int]


@dataclass(frozen=True)
class Author:
    """Who writes a shard: an attempt at it. ``epoch`` is the birth of its state in ms."""

    keys: Keys
    shard: int
    shards: int
    epoch: int
    attempt: int = 0

    def version(self, seq: int) -> bytes:
        return version(self.epoch, self.attempt, seq)

    def field(self, name: str) -> str:
        """The name of a shard's field of the ledger."""
        return f"{name}:{self.shard}"


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
        self._alive_at: dict[int | str, float] = {}
        self._scripts = {name: "".join(map(script, parts)) for name, parts in _SCRIPTS.items()}
        self._rare = {name: "".join(map(script, parts)) for name, parts in _RARE.items()}
        self._digests = {name: hashlib.sha1(text.encode()).hexdigest() for name, text in self._scripts.items()}

    def close(self) -> None:
        self._redis.close()

    def learned(
        self,
        author: Author,
        entities: Sequence[Entity],
        items: Mapping[str, int],
        drops: Sequence[Call] = (),
        *,
        reached: bytes,
        header: Entity | None = None,
        expected: bytes = b"",
    ) -> bytes | None:
        """Writes learned fields, and notes the ``items`` by their ``seq`` in the set of the shard.

        What ``drops`` takes away goes before; ``reached``, as JSON, before all else: whoever takes over knows what may
        have been written. The shard's ``header`` goes last, and is written only where Redis has it at version
        ``expected`` or above. Retried as a whole: every write is idempotent.

        Returns
        -------
        The version that the header had before; None if Redis did not know it, or without one. Below ``expected``:
        Redis has lost what it was given.
        """
        ledger, field = author.keys.ledger, author.field(Field.ATTEMPT)

        def of_author(call: Call) -> Call:
            name, keys, arguments = call
            return name, [ledger, *keys], [field, author.attempt, *arguments]

        def calls() -> Iterator[Call]:
            yield "note", [], ("HSET", ledger, author.field(Field.REACHED), reached)
            yield from map(of_author, drops)
            for members in _parts(list(items.items())):
                words = (word for item, seq in members for word in (seq, item))
                yield "note", [], ("ZADD", author.keys.items(author.shard), "GT", *words)
            for part in _parts(entities):
                arguments = [argument for _, entity in part for argument in entity]
                yield of_author(("publish_learned", [key for key, _ in part], [self._ttl, b"", *arguments]))
            if header is not None:
                yield of_author(("publish_learned", [header[0]], [0, expected, *header[1]]))

        written = len(entities) + (header is not None)
        before: bytes | None = self._patiently(lambda: self._write(calls(), written))
        return before

    def tiles(self, entities: Sequence[Entity], keep: Mapping[str, int], part: int = 0) -> None:
        """Writes closed windows of a part; ``keep`` says for each span how many milliseconds of it stay."""
        spans = [len(keep), *(value for pair in keep.items() for value in pair)]

        def calls() -> Iterator[Call]:
            for some in _parts(entities):
                arguments = [argument for _, entity in some for argument in entity]
                yield "publish_tiles", [key for key, _ in some], [self._ttl, part, *spans, *arguments]

        self._patiently(lambda: self._write(calls(), len(entities)))

    def hide(self, requests: Sequence[Request], windows: tuple[int, int] | None = None) -> None:
        """Removes users who are about to be deleted; nothing of them is written until they are.

        But for windows: those that are new by part and bound, once these are known.
        """
        self._call("hide", [hiding(some, self.keys, windows) for some in _parts(requests)])

    def delete(self, tombstones: Mapping[str, Tombstone]) -> None:
        """Removes deleted users, and sees to it that nothing of before is written any more."""
        self._call("delete", [deleting(some, self.keys) for some in _parts(list(tombstones.items()))])

    def lift(self, tombstones: Mapping[str, Tombstone]) -> None:
        """Takes away tombstones, where they are still these."""
        self._call("lift", [lifting(some) for some in _parts(list(tombstones.items()))])

    def _call(self, name: str, calls: Sequence[Arguments]) -> None:
        if calls:
            self._patiently(lambda: self._run([(name, *arguments) for arguments in calls]))

    def _write(self, calls: Iterable[Call], count: int) -> Any:
        """Runs scripts that write ``count`` entities; returns what the last answered, None without any."""
        # What was sent, and when, for reports: what a retry sends again counts again.
        notes: list[Call] = [
            ("note", [], ("HINCRBY", self.keys.ledger, "writes", count)),
            ("note", [], ("HSET", self.keys.ledger, "published_at", time.time_ns() // 1_000_000)),
        ]
        answers = self._run(itertools.chain(calls, notes))[: -len(notes)]
        return answers[-1] if answers else None

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
                how = ("EVAL", self._rare[name]) if name in self._rare else ("EVALSHA", self._digests[name])
                connection.send_command(
                    *how, 2 + len(keys), self.keys.fence, self.keys.deleted, *keys, self._submission, *arguments
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

    def alive(self, part: int | str) -> None:
        """Notes, once a second at the most, that a shard's learner, or another part of the job, is there."""
        if time.monotonic() - self._alive_at.get(part, -math.inf) >= 1.0:
            self._note({f"{Field.ALIVE}:{part}": time.time_ns() // 1_000_000})
            self._alive_at[part] = time.monotonic()

    def _note(self, fields: Mapping[str, bytes | str | int]) -> None:
        words = ["HSET", self.keys.ledger, *(word for pair in fields.items() for word in pair)]
        self._patiently(lambda: self._run([("note", [], words)]))

    def take_over(self, author: Author) -> Found:
        """Begins an attempt at a shard: from here on those before it can write nothing of it."""
        keys = [author.keys.ledger, author.keys.model(author.shard)]
        arguments = [author.field(Field.ATTEMPT), author.field(Field.REACHED), b"%013d." % author.epoch]
        [found] = self._patiently(lambda: self._run([("take_over", keys, arguments)]))
        attempt, known, *places = found
        acknowledged, reached = (orjson.loads(place or b"{}") for place in places)
        return Found(attempt, known, acknowledged, reached)

    def replayed(self, author: Author, events: int) -> None:
        """Counts events that are learned again."""
        words = ["HINCRBY", author.keys.ledger, author.field(Field.REPLAYED), events]
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
                if str(error).startswith("SUPERSEDED"):
                    raise PublishError(
                        f"a later attempt at this job writes under prefix {self.keys.prefix!r} at {self._url}: this "
                        "one was given up by Flink, and ends"
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
    learner: Learner, encoded: Mapping[str, EncodedRows], author: Author
) -> tuple[list[Entity], dict[str, int]]:
    """The Redis writes for the users and the items that a group changed.

    Parameters
    ----------
    encoded
        The touched rows by family, as they are stored.

    Returns
    -------
    The entities for :meth:`Publisher.learned`, and the items by their ``seq``.
    """
    keys, shard, shards = author.keys, author.shard, author.shards
    entities: list[Entity] = []
    model, width = learner.model, 4 * learner.model.n_factors
    items: dict[str, int] = {}
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
                version_name, author.version(seq), pairs,
                count_name, count, updated_name, updated_at, bias_name, repr(bias),
            ]  # fmt: skip
            if width:
                entity += (vector_name, vectors[at * width : at * width + width])
            if family == USER:
                entity += (Field.SHARD, shard, Field.SEEN, rows.seen[at])
            else:
                entity += (popularity_name, repr(popularity))
            shared = tail_number(row_id)
            entities.append((key_of(row_id) if shared is None else keys.tail(shard, family, shared), entity))
            if family == ITEM and shared is None:
                items[row_id] = seq
    return entities, items


def dropped_calls(learner: Learner, dropped: Mapping[str, Iterable[str]], author: Author) -> list[Call]:
    """The calls that take the learned fields of dropped rows out of Redis, given as ids by family.

    To be made when the learner has learned nothing since that would bring one of them back.
    """
    calls: list[Call] = []
    keys, shard, shards, up_to = author.keys, author.shard, author.shards, author.version(learner.seq)
    both = (Field.VERSION, Field.COUNT, Field.UPDATED_AT, Field.BIAS, Field.VECTOR)
    of_users = [*both, Field.SHARD, Field.SEEN]
    of_items = [sharded(name, shard, shards) for name in (*both, Field.POPULARITY)]
    for family, key_of, fields in ((USER, keys.user, of_users), (ITEM, keys.item, of_items)):
        for part in _parts(list(dropped.get(family, ()))):
            row_keys = [key_of(row_id) for row_id in part]
            members = part if family == ITEM else ()
            calls.append(("drop_learned", [keys.items(shard), *row_keys], [up_to, len(fields), *fields, *members]))
    return calls


def header_entity(learner: Learner, author: Author) -> Entity:
    """The Redis write for a shard's header."""
    summary = learner.summary()
    pairs: list[bytes | str | int] = []
    for name, value in {
        "model": learner.model.name,
        "global_mean": repr(learner.model.global_mean()),
        "n_factors": learner.model.n_factors,
        "shards": author.shards,
        "seq": learner.seq,
        "reached": orjson.dumps(learner.reached),
        "updated_at": learner.updated_at,
        "users": summary["users"],
        "items": summary["items"],
        "items_dropped": learner.dropped[ITEM],
        "tail_rows": learner.config.growth.tail_rows if learner.config.growth.has_tail else 0,
        "metrics": orjson.dumps(summary["metrics"]),
        "summary": orjson.dumps(summary),
    }.items():
        pairs += (name, value)
    # Not the batch's number: a replay need not cut the log as it was cut before. A header of the same seq is taken.
    entity = [Field.VERSION, author.version(learner.seq), len(pairs) // 2, *pairs]
    return author.keys.model(author.shard), entity


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
