"""Compare-and-set under two jobs, their attempts, and arbitrary crashes: a machine against a real Redis.

The real shell runs on states that are dictionaries. What it writes is cut off, sent twice and sent late; Redis is wiped
and put back. Whatever comes, no entity goes back to an older version or is a mixture of two, a job that was replaced
writes nothing, and in the end Redis equals the state of the one that is left.
"""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Callable, Iterable
from copy import deepcopy
from functools import cache
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from pyflink.fn_execution.metrics.process.metric_impl import GenericMetricGroup

from benchmarks.common import written
from flink_jobs.preparing import purge
from serving.connection import connect
from serving.schema import Field, Keys
from tests.shells import Background, batch_of
from udfs import publisher as publishing
from udfs.entities import LearnedEntities, header_entity
from udfs.functions import LearnFunction
from udfs.learner import Learner, LearnerConfig, build
from udfs.publisher import Author, Call, Listed, Publisher, PublishError, draw_submission

T0 = 1_700_000_000_000
KEYS = Keys("m")
LOG = [
    [T0 + 1_000 * n, f"e{n}", f"u{n * 7 % 5}", f"i{n * n % 7}", "rating", float(n % 5) + 0.5, 0, n] for n in range(48)
]
CONFIG = LearnerConfig(run_id="run", seen=3, group=5)


def make_model() -> Any:
    return build("biased_mf", {"n_factors": 2})


@cache
def by_the_book() -> dict[tuple[str, int], dict[bytes, bytes]]:
    """What an entity's learned fields are at the number of a version: one event after the other."""
    learner, found = Learner(CONFIG, make_model()), {}
    for event in LOG:
        [learned] = learner.process(batch_of([event]))
        entities = LearnedEntities(learner, learner.encode(learned), Author(KEYS, 0, 1, 0))
        for key, fields in written(entities).items():
            del fields[b"version"]  # another attempt wrote it
            found[key, learner.seq] = fields
    return found


class Crash(Exception):
    """The process of an attempt has died."""


class Wire(Publisher):
    """A publisher whose process may die between two calls, and whose calls may be sent once more."""

    def __init__(self, url: str, submission: int) -> None:
        super().__init__(url, KEYS.prefix, submission)
        self.fuse: int | None = None
        self.sent: list[list[Call]] = []

    def _run(self, calls: Iterable[Call]) -> list[Any]:
        self.sent.append(list(calls))
        if self.fuse is None:
            return super()._run(self.sent[-1])
        answers = super()._run(self.sent[-1][: self.fuse])
        self.fuse -= len(self.sent[-1])
        if self.fuse < 0:
            raise Crash
        return answers

    def again(self, number: int) -> None:
        super()._run(self.sent[number % len(self.sent)])


class States(dict[str, Any]):
    """The keyed state of one key, and all that a function asks of its context."""

    def get_current_key(self) -> str:
        return "k"

    def get_state(self, descriptor: Any) -> Any:
        return _Value(self, descriptor.name)

    def get_metrics_group(self) -> Any:
        return GenericMetricGroup(None, None)  # as a worker has it; outside of one, what is counted goes nowhere

    def get_map_state(self, descriptor: Any) -> Any:
        return _Map(self.setdefault(descriptor.name + "[]", {}))


class _Value:
    def __init__(self, states: States, name: str) -> None:
        self.states, self.name = states, name

    def value(self) -> Any:
        return self.states.get(self.name)

    def update(self, value: Any) -> None:
        self.states[self.name] = value


class _Map:
    def __init__(self, rows: dict[Any, Any]) -> None:
        self.put, self.items, self.remove = rows.__setitem__, rows.items, rows.pop


class Attempt:
    """One process of a job: it learns the log from where a checkpoint left it."""

    def __init__(self, url: str, submission: int, epoch: int, states: States, at: int) -> None:
        self.epoch, self.states, self.at = epoch, States(deepcopy(dict(states))), at
        self.wire = Wire(url, submission)
        self.function = LearnFunction(CONFIG, make_model, ["k"], epoch, lambda: self.wire)
        self.function.open(self.states)  # type: ignore[arg-type]
        self.function._background = Background()  # type: ignore[assignment]

    def step(self, count: int) -> None:
        events = LOG[self.at : self.at + count]
        ended = self.at + count >= len(LOG)
        list(self.function.process_element(batch_of(events, ended=ended).encode(), self.states))  # type: ignore[arg-type]
        self.at += len(events)


class Machine(RuleBasedStateMachine):
    """Jobs are submitted one after the other; of each, one attempt at a time lives, and dead ones have words left."""

    url: str

    @initialize()
    def start(self) -> None:
        self.redis = connect(self.url)
        self.redis.flushall()
        self.epoch = 7
        self.clock = itertools.count(T0)
        self.checkpoints: list[tuple[States, int]] = [(States(), 0)]
        self.copy: dict[bytes, bytes] | None = None
        self.versions: dict[bytes, bytes] = {}  # that a reader has seen
        self.older: list[Attempt] = []  # of jobs that were replaced, still alive
        self.dead: list[Wire] = []
        self.submit()

    @property
    def fence(self) -> int:
        return int(self.redis.get(KEYS.fence) or 0)

    def submit(self) -> None:
        self.live = self.attempt(draw_submission(self.redis, KEYS, next(self.clock)))

    def attempt(self, submission: int) -> Attempt:
        return Attempt(self.url, submission, self.epoch, *self.checkpoints[-1])

    def step(self, count: int) -> None:
        """The next batch of the job that lives; Flink starts it anew if it fails."""
        try:
            self.live.step(count)
        except PublishError as error:
            # A dead attempt's words, late, were that it begins.
            assert "a later attempt at this job" in str(error)
            self.restart()

    def restart(self) -> None:
        self.dead.append(self.live.wire)
        self.live = self.attempt(self.live.wire._submission)

    # ------------------------------------------------------------------------------------------ rules

    @rule(count=st.integers(0, 9))
    def publish_next(self, count: int) -> None:
        """Batches need not be cut as they were before a crash."""
        self.step(count)

    @rule()
    def checkpoint(self) -> None:
        self.checkpoints.append((States(deepcopy(dict(self.live.states))), self.live.at))

    @rule(count=st.integers(1, 9), calls=st.integers(0, 8), back=st.integers(0, 3))
    def crash_in_a_write(self, count: int, calls: int, back: int) -> None:
        """The connection dies after some calls, and the process with it; the job goes on from a checkpoint."""
        self.live.wire.fuse = calls
        with contextlib.suppress(Crash):  # nothing is written while it replays what Redis has heard
            self.step(count)
        del self.checkpoints[max(1, len(self.checkpoints) - back) :]
        self.restart()

    @precondition(lambda self: any(wire.sent for wire in self.dead))
    @rule(number=st.integers(0, 99))
    def a_late_or_second_write_arrives(self, number: int) -> None:
        wires = [wire for wire in self.dead if wire.sent]
        wire = wires[number % len(wires)]
        self.unless_replaced(wire._submission, lambda: wire.again(number))

    @precondition(lambda self: len(self.older) < 3)
    @rule()
    def a_newer_job_takes_over(self) -> None:
        """It goes on with the same state; the one before it does not know yet."""
        self.older.append(self.live)
        self.submit()

    @precondition(lambda self: len(self.older) < 3)
    @rule()
    def a_fresh_job_takes_over(self) -> None:
        self.older.append(self.live)
        self.epoch += 1
        self.checkpoints = [(States(), 0)]
        submission = draw_submission(self.redis, KEYS, next(self.clock))
        purge(self.redis, KEYS)
        self.versions = {}
        self.live = self.attempt(submission)

    @precondition(lambda self: self.older)
    @rule(number=st.integers(0, 9), count=st.integers(0, 9))
    def an_older_job_writes(self, number: int, count: int) -> None:
        older = self.older[number % len(self.older)]
        if not self.unless_replaced(older.wire._submission, lambda: older.step(count)):
            self.older.remove(older)

    @rule()
    def redis_is_copied(self) -> None:
        self.copy = {key: self.redis.dump(key) for key in self.redis.keys("*")}

    @rule(wiped=st.booleans())
    def redis_is_wiped_or_put_back(self, wiped: bool) -> None:
        """What was on its way before may arrive after."""
        self.redis.flushall()
        for key, dumped in ({} if wiped else self.copy or {}).items():
            self.redis.restore(key, 0, dumped)
        self.versions = {}

    # ------------------------------------------------------------------------------------- what must hold

    def unless_replaced(self, submission: int, write: Callable[[], None]) -> bool:
        """Runs a write, which must change nothing if a newer job, or a later attempt, has written; whether it might."""
        before, replaced = self.everything(), submission < self.fence
        try:
            write()
        except (PublishError, publishing.redis.exceptions.ResponseError) as error:
            kind = r"FENCED|submitted later" if replaced else r"SUPERSEDED|a later attempt|LOST"
            assert re.search(kind, str(error))
            return False
        finally:
            if replaced:
                assert self.everything() == before
        return not replaced  # one that replays writes nothing, and does not hear of it

    def everything(self) -> dict[bytes, bytes]:
        return {key: self.redis.dump(key) for key in self.redis.keys("*")}

    def entities(self) -> dict[bytes, dict[bytes, bytes]]:
        keys = [*self.redis.keys("m:user:*"), *self.redis.keys("m:item:*")]
        return {key: self.redis.hgetall(key) for key in keys}

    @invariant()
    def readers_see_whole_entities_that_never_go_back(self) -> None:
        if not hasattr(self, "redis"):
            return
        entities = self.entities()
        assert set(self.versions) <= set(entities)
        for key, fields in entities.items():
            found = fields.pop(Field.VERSION.encode())
            assert found >= self.versions.get(key, b""), key
            self.versions[key] = found
            assert fields == by_the_book()[key.decode(), int(found.rpartition(b".")[2])], (key, found)

    def teardown(self) -> None:
        """Who is left learns the rest, and Redis equals its state."""
        if not hasattr(self, "redis"):
            return
        while self.live.at < len(LOG):
            self.step(4)
        self.step(0)  # what was lost since the last write is found with the next
        self.readers_see_whole_entities_that_never_go_back()
        learner = self.live.function._learners["k"]
        assert learner.seq == len(LOG)
        author = Author(KEYS, 0, 1, self.epoch)
        made = LearnedEntities(learner, learner.encode(learner.everything()), author)
        expected, items = written(made), made.items()
        for key, of in expected.items():
            found = self.redis.hgetall(key)
            number, mine = (fields.pop(b"version").rpartition(b".")[2] for fields in (found, of))
            assert number == mine and found == of, key
        assert {key.decode() for key in self.entities()} == expected.keys()
        header = written(Listed([header_entity(learner, author)]))[KEYS.model(0)]
        assert self.redis.hget(KEYS.model(0), "seq") == header[b"seq"]
        scores = dict(self.redis.zrange(KEYS.items(0), 0, -1, withscores=True))
        assert scores == {item.encode(): float(seq) for item, seq in items.items()}
        self.redis.close()


@pytest.fixture(autouse=True)
def without_flink(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("udfs.functions._set_up_worker", lambda: None)
    monkeypatch.setattr(
        "udfs.functions.items", lambda rows, _: [[*zip(*of, strict=True)] for of in [rows.items()] if of]
    )
    monkeypatch.setattr(
        "udfs.functions.put",
        lambda rows, entries: [rows.put(name.decode(), blob) for of in entries for name, blob in zip(*of, strict=True)],
    )


@pytest.mark.parametrize("awaited", [5_000, 1])
def test_the_survivor_and_redis_agree(
    awaited: int, redis_url: str, redis_connection: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("udfs.outbox._MANY", awaited)  # and 1: learning goes on while any write is under way
    monkeypatch.setattr(publishing, "_PER_CALL", 3)  # so that a write has many calls
    Machine.url = redis_url
    run_state_machine_as_test(Machine, settings=settings(max_examples=30, stateful_step_count=30, deadline=None))


def test_a_copy_of_larger_batches_is_noticed(redis_url: str, redis_connection: Any) -> None:
    """Before a crash batches were small, so there were more of them when Redis was copied."""
    first = Attempt(redis_url, 1, 7, States(), 0)
    for _ in range(4):
        first.step(1)
    copy = {key: redis_connection.dump(key) for key in redis_connection.keys("*")}
    second = Attempt(redis_url, 1, 7, States(), 0)
    for _ in range(3):
        second.step(12)
    assert redis_connection.hget(KEYS.model(0), "seq") == b"36"
    redis_connection.flushall()
    for key, dumped in copy.items():
        redis_connection.restore(key, 0, dumped)
    second.step(1)
    learner = second.function._learners["k"]
    for item, row in learner.rows["item"].items():
        assert redis_connection.hget(KEYS.item(item), "count") == str(row.count).encode()
