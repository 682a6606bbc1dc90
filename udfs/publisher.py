"""Publishes to Redis: whole values, compared and set, acknowledged before the caller goes on.

A publisher returns when Redis has acknowledged what it was given. Redis away: it tries again with backoff, then raises,
and Flink replays. Nothing is dropped.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import logging
import math
import random
import re
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol, TypeVar

import msgspec
import orjson
import redis

from serving.connection import connect, without_password
from serving.schema import Field, Keys, script, span_ms, version
from udfs.requests import Request
from udfs.tally import Tally
from udfs.telemetry import (
    PUBLISH_BOUNDS,
    PUBLISH_BUCKET,
    PUBLISH_COUNT,
    PUBLISH_SUM,
    PUBLISHED,
    REPLAYED,
    Buckets,
    Readings,
    of_buckets,
)
from udfs.tombstones import Arguments, Tombstone, deleting, hiding, lifting
from udfs.words import array

# Entities a script call: Redis serves nobody else during one, about 1 ms.
_PER_CALL: Final = 500
_PACKER: Final = msgspec.msgpack.Encoder()
_SCRIPTS: Final[Mapping[str, Sequence[str]]] = {
    "publish_learned": ("fenced", "in_turn", "tombstones", "publish_learned"),
    "drop_learned": ("fenced", "in_turn", "drop_learned"),
    "shard_note": ("fenced", "in_turn", "shard_note"),
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

_LOG: Final = logging.getLogger("freshet")

Result = TypeVar("Result")
Word = str | int
# A key, and what is written there: fields and their values in turn, or as a script has it.
Entity = tuple[str, Sequence[Word]]


class Entities(Protocol):
    """Entities to be written, as often as they are asked for."""

    def __len__(self) -> int: ...

    def parts(self) -> Iterator[Part]:
        """What one script call takes of them, and then the next."""


class Part(NamedTuple):
    """Entities that have the same fields.

    Attributes
    ----------
    fields
        The names of the fields, that of the version first, as MessagePack.
    values
        The values in these, as texts, those of one entity behind those of the other, as MessagePack.
    """

    keys: Sequence[str]
    fields: bytes
    values: bytes


class Listed(list[Entity]):
    """Entities that are few, given by fields and values in turn.

    >>> list(Listed([("key", ["a", "b"]), ("other", ["a", 1])]).parts())
    [Part(keys=['key', 'other'], fields=b'\\x91\\xa1a', values=b'\\x92\\xa1b\\xa11')]
    """

    def parts(self) -> Iterator[Part]:
        for fields, alike in itertools.groupby(self, lambda entity: entity[1][::2]):
            for some in parts(alike):
                values = [str(value) for _, words in some for value in words[1::2]]
                yield Part([key for key, _ in some], array(fields), array(values))


# A script, and its KEYS and ARGV but for fence, tombstones and submission.
Call = tuple[str, Sequence[str], Sequence[Any]]


class Found(NamedTuple):
    """What an attempt at a shard finds in Redis when it begins.

    Attributes
    ----------
    version
        Of the shard's header; None where Redis knows nothing of this state.
    acknowledged, reached
        How far the shard was when the header was written, and how far it may have been since, as
        :attr:`~udfs.learner.Learner.reached` tells.
    """

    version: bytes | None
    acknowledged: Mapping[str, int]
    reached: Mapping[str, int]


@dataclass
class Author:
    """Who writes a shard: an attempt at it, with so many ``writes`` done. ``epoch`` is the birth of its state in ms."""

    keys: Keys
    shard: int
    shards: int
    epoch: int
    attempt: int = 0
    writes: int = 0

    def version(self, seq: int) -> bytes:
        return version(self.epoch, self.attempt, seq)

    def field(self, name: str) -> str:
        """The name of a shard's field of the ledger."""
        return f"{name}:{self.shard}"

    def call(self, call: Call) -> Call:
        """A call of a script for the shard, with who calls it and for which write."""
        name, keys, arguments = call
        return name, [self.keys.ledger, *keys], [self.field(Field.AUTHOR), self.attempt, self.writes + 1, *arguments]


class PublishError(RuntimeError):
    """Redis did not take a write within the time allowed; the message says where and why."""


class Lost(PublishError):
    """Redis does not have what a shard wrote last: it was wiped, or put back to what it was."""


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
    retries
        Counts the tries that Redis did not take, while they happen.
    """

    def __init__(
        self,
        url: str,
        prefix: str,
        submission: int = 0,
        ttl: int = 0,
        patience: float = 30.0,
        retries: Tally | None = None,
    ) -> None:
        self.keys = Keys(prefix)
        self._url = without_password(url)
        self._redis: Any = connect(url)
        self._submission = submission
        self._ttl = ttl
        self._patience = patience
        self._retries = retries
        self._alive_at: dict[int | str, float] = {}
        self._delays = Buckets(PUBLISH_BOUNDS)  # of writes of entities, in ms
        self._written = self._replayed = 0
        self._scripts = {name: "".join(map(script, parts)) for name, parts in _SCRIPTS.items()}
        self._rare = {name: "".join(map(script, parts)) for name, parts in _RARE.items()}
        self._digests = {name: hashlib.sha1(text.encode()).hexdigest() for name, text in self._scripts.items()}

    def close(self) -> None:
        self._redis.close()

    @property
    def readings(self) -> Readings:
        """What was written since this was made, how long that took, and what is learned again."""
        delays = of_buckets(self._delays, PUBLISH_BUCKET, PUBLISH_SUM, PUBLISH_COUNT)
        return {**delays, (PUBLISHED, ()): self._written, (REPLAYED, ()): self._replayed}

    def learned(
        self,
        author: Author,
        entities: Entities,
        items: Mapping[str, int],
        drops: Sequence[Call] = (),
        *,
        reached: bytes,
        header: Entity | None = None,
        notes: Sequence[Call] = (),
    ) -> None:
        """The next write of an attempt: learned fields, and the ``items`` by their ``seq`` in the set of the shard.

        What ``drops`` takes away goes before; ``reached``, as JSON, before all else: whoever takes over knows what may
        have been written. The shard's ``header`` goes last, when all else has been acknowledged, so it says that all
        else is there; then ``notes``. Retried as a whole: every write is idempotent.

        Raises
        ------
        Lost
            If Redis does not have what the attempt wrote last; nothing is written.
        """
        ledger, write = author.keys.ledger, author.writes + 1

        def begin() -> Iterator[Call]:
            yield author.call(("shard_note", [], ("HSET", ledger, author.field(Field.REACHED), reached)))

        def calls() -> Iterator[Call]:
            yield from map(author.call, drops)
            for members in parts(list(items.items())):
                words = (word for item, seq in members for word in (seq, item))
                yield author.call(("shard_note", [], ("ZADD", author.keys.items(author.shard), "GT", *words)))
            for part in entities.parts():
                yield author.call(("publish_learned", part.keys, [self._ttl, part.fields, part.values]))

        def end() -> Iterator[Call]:
            for part in Listed([] if header is None else [header]).parts():
                yield author.call(("publish_learned", part.keys, [0, part.fields, part.values]))
            yield from map(author.call, notes)
            done = f"{author.attempt} {write}"
            yield author.call(("shard_note", [], ("HSET", ledger, author.field(Field.AUTHOR), done)))

        written = len(entities) + (header is not None)
        self._write([begin, calls, end], written)
        author.writes = write

    def tiles(self, entities: Sequence[Entity], keep: Mapping[str, int], part: int = 0) -> None:
        """Writes closed windows of a part; ``keep`` says for each span how many milliseconds of it stay."""
        spans: list[str | int] = [f"{zlib.crc32(orjson.dumps(keep, option=orjson.OPT_SORT_KEYS)):08x}", len(keep)]
        for span, milliseconds in keep.items():
            spans += (span, span_ms(span), milliseconds)

        def calls() -> Iterator[Call]:
            for some in parts(entities):
                yield "publish_tiles", [key for key, _ in some], [self._ttl, part, packed(some), *spans]

        self._write([calls], len(entities))

    def catalogue(self, entries: Mapping[str, bytes | None]) -> None:
        """Writes the catalogue's entries of items; None takes one away."""
        calls: list[Call] = []
        for item_id, entry in entries.items():
            place = (self.keys.item(item_id), Field.CATALOGUE)
            calls.append(("note", [], ("HDEL", *place) if entry is None else ("HSET", *place, entry)))
        for some in parts(calls):
            self._patiently(functools.partial(self._run, some))

    def hide(self, requests: Sequence[Request], windows: tuple[int, int] | None = None) -> None:
        """Removes users who are about to be deleted; nothing of them is written until they are.

        But for windows: those that are new by part and bound, once these are known.
        """
        self._call("hide", [hiding(some, self.keys, windows) for some in parts(requests)])

    def delete(self, tombstones: Mapping[str, Tombstone]) -> None:
        """Removes deleted users, and sees to it that nothing of before is written any more."""
        self._call("delete", [deleting(some, self.keys) for some in parts(list(tombstones.items()))])

    def lift(self, tombstones: Mapping[str, Tombstone]) -> None:
        """Takes away tombstones, where they are still these."""
        self._call("lift", [lifting(some) for some in parts(list(tombstones.items()))])

    def _call(self, name: str, calls: Sequence[Arguments]) -> None:
        if calls:
            self._patiently(lambda: self._run([(name, *arguments) for arguments in calls]))

    def _write(self, steps: Sequence[Callable[[], Iterable[Call]]], count: int) -> None:
        """Runs scripts that write ``count`` entities, until Redis has acknowledged them: each step when it has taken
        all of the one before."""

        def once() -> None:
            # What was sent, and when, for reports: what a retry sends again counts again.
            notes: list[Call] = [
                ("note", [], ("HINCRBY", self.keys.ledger, "writes", count)),
                ("note", [], ("HSET", self.keys.ledger, "published_at", time.time_ns() // 1_000_000)),
            ]
            for step in steps[:-1]:
                self._run(step())
            self._run(itertools.chain(steps[-1](), notes))

        began = time.monotonic()
        self._patiently(once)
        self._delays.add((time.monotonic() - began) * 1_000)
        self._written += count

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
        """Begins another attempt at a shard: from here on those before it can write nothing of it."""
        keys = [author.keys.ledger, author.keys.model(author.shard)]
        fields = [author.field(Field.AUTHOR), author.field(Field.REACHED)]
        arguments = [*fields, b"%013d." % author.epoch, author.attempt]
        [found] = self._patiently(lambda: self._run([("take_over", keys, arguments)]))
        author.attempt, known, *places = found
        author.writes = 0
        acknowledged, reached = (orjson.loads(place or b"{}") for place in places)
        return Found(known, acknowledged, reached)

    def replayed(self, author: Author, events: int) -> None:
        """Counts events that are learned again."""
        words = ["HINCRBY", author.keys.ledger, author.field(Field.REPLAYED), events]
        self._patiently(lambda: self._run([("note", [], words)]))
        self._replayed += events

    def asked(self, author: Author) -> bool:
        """Whether someone asks for all of a shard to be written.

        Raises
        ------
        Lost
            If Redis does not have what the attempt wrote last.
        """
        question = author.call(("shard_note", [], ("HEXISTS", author.keys.ledger, author.field(Field.REPUBLISH))))
        [answer] = self._patiently(lambda: self._run([question]))
        return bool(answer)

    def republished(self, author: Author) -> None:
        """Tells who asked that it is done."""
        words = ["HDEL", author.keys.ledger, author.field(Field.REPUBLISH)]
        self._patiently(lambda: self._run([("note", [], words)]))

    def _patiently(self, send: Callable[[], Result]) -> Result:
        deadline = time.monotonic() + self._patience
        for attempt in range(1_000_000):
            try:
                return send()
            except redis.exceptions.RedisError as error:
                if str(error).startswith("FENCED"):
                    raise Fenced(
                        f"another job, submitted later, writes under prefix {self.keys.prefix!r} at {self._url}: "
                        "this one ends for good; what it has learned of late is not in Redis"
                    ) from error
                if str(error).startswith("SUPERSEDED"):
                    raise PublishError(
                        f"a later attempt at this job writes under prefix {self.keys.prefix!r} at {self._url}: this "
                        "one was given up by Flink, and ends"
                    ) from error
                if str(error).startswith("LOST"):
                    raise Lost(
                        f"Redis at {self._url} does not have what was written last under prefix {self.keys.prefix!r}"
                    ) from error
                if not isinstance(error, _TRANSIENT) and not _NOT_NOW.search(str(error)):
                    raise PublishError(f"Redis at {self._url} refused a write: {error}") from error
                # Full jitter, so that the workers of a job do not come back all at once.
                pause = random.uniform(0, min(2.0, 0.05 * 2**attempt))
                if time.monotonic() + pause > deadline:
                    raise PublishError(
                        f"Redis at {self._url} took no write for {self._patience:g} s: {error}"
                    ) from error
                if attempt == 0:
                    _LOG.warning("Redis at %s takes no write, trying again: %s", self._url, error)
                if self._retries is not None:
                    self._retries.add()
                time.sleep(pause)
        raise AssertionError("unreachable")


def packed(entities: Iterable[Entity]) -> bytes:
    """What is written of some entities, in one word."""
    return _PACKER.encode([words for _, words in entities])


def slices(count: int) -> Iterator[slice]:
    """Of so many things, what one script call takes, as often as there is more."""
    return (slice(at, at + _PER_CALL) for at in range(0, count, _PER_CALL))


def parts(things: Iterable[Result]) -> Iterator[Sequence[Result]]:
    """Slices of what one script call takes."""
    left = iter(things)
    while part := list(itertools.islice(left, _PER_CALL)):
        yield part
