"""What a shard writes, over crashes: Redis ends as the learner is, and what was dropped is not seen to come back."""

from __future__ import annotations

import contextlib
import itertools
import random
from collections.abc import Iterable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace
from typing import Any
from unittest import mock

import hypothesis
import pytest
import redis
from hypothesis import example, given
from hypothesis import strategies as st

from serving.schema import Keys
from tests.shells import BACKGROUND, Background, batch_of
from tests.udfs.cases import made, rows_of
from tests.udfs.test_growth import log_of, logs
from tests.udfs.test_learner import T0, Event
from udfs.building import build
from udfs.entities import LearnedEntities
from udfs.growth import GrowthConfig
from udfs.learner import Learner, LearnerConfig
from udfs.outbox import Outbox
from udfs.publisher import Author, Call, Lost, Publisher, PublishError
from udfs.tail import from_state_name, tail_number

EPOCH = 1_600_000_000_000
GROWTH = GrowthConfig(max_users=8, max_items=5, expire_after=30_000)


class Shard:
    """The shell of a learner, with checkpoints to go back to."""

    def __init__(
        self,
        publisher: Publisher,
        growth: GrowthConfig = GROWTH,
        shards: int = 1,
        background: Executor = BACKGROUND,
        *,
        repeatable: bool = True,
    ) -> None:
        self.publisher, self.growth, self.shards, self.repeatable = publisher, growth, shards, repeatable
        self.background = background
        self.state: tuple[bytes | None, dict[tuple[str, str], bytes]] = (None, {})
        self.rows: dict[tuple[str, str], bytes] = {}
        self._open()

    def _open(self) -> None:
        self.learner = Learner(
            LearnerConfig(growth=self.growth, group=9, repeatable=self.repeatable), made("biased_mf", "SGD")
        )
        header, rows = self.state
        self.rows = {**rows}
        if header is not None:
            self.learner.restore(header, [(*of, blob) for of, blob in rows.items()], [])
        author = Author(self.publisher.keys, 0, self.shards, EPOCH)
        self.outbox = Outbox(self.publisher, self.learner, author, self.background)

    def checkpoint(self) -> None:
        self.state = (self.learner.header(), {**self.rows})

    def crash(self) -> None:
        self._open()

    def put(self, log: list[Event], *, ended: bool = False) -> None:
        for learned in self.learner.process(batch_of(log, ended=ended, sources=("a", "b"))):
            encoded = self.learner.encode(learned)
            for family, of in encoded.items():
                self.rows |= {(family, row_id): blob for row_id, blob in zip(of.row_ids, of.blobs, strict=True)}
            for family, gone in learned.dropped.items():
                for row_id in gone:
                    self.rows.pop((family, row_id), None)
            self.outbox.publish(learned, encoded)
            self.outbox.keep_up()
        self.rows |= {from_state_name(name): counters for name, counters in self.learner.counters()}
        self.learner.finished_batches()

    def rows_of(self, family: str) -> set[str]:
        return set(self.learner.rows[family])

    def in_redis(self, connection: Any) -> dict[str, dict[str, bytes]]:
        """By family, the numbers of the versions in Redis of all that has one."""
        found: dict[str, dict[str, bytes]] = {}
        for family in ("user", "item"):
            name = "version:0" if family == "item" and self.shards > 1 else "version"
            versions = {
                key.decode().split(":", 2)[2]: connection.hget(key, name) for key in connection.keys(f"p:{family}:*")
            }
            found[family] = {row_id: v.rpartition(b".")[2] for row_id, v in versions.items() if v}
        return found

    def agree(self, connection: Any) -> None:
        """Redis has the rows of the learner, at their versions, and no others."""
        expected = {
            family: {row_id: b"%016d" % row.seq for row_id, row in of.items() if tail_number(row_id) is None}
            for family, of in self.learner.rows.items()
        }
        assert self.in_redis(connection) == expected
        members = {
            member.decode(): int(score) for member, score in connection.zrange("p:items:0", 0, -1, withscores=True)
        }
        rows = self.learner.rows["item"]
        assert members == {row_id: rows[row_id].seq for row_id in expected["item"]}
        for family, of in self.learner.rows.items():
            shared = {of[row_id].seq for row_id in of if tail_number(row_id) is not None}
            found = {connection.hget(key, "version") for key in connection.keys(f"p:tail:0:{family}:*")}
            assert {int(version.rpartition(b".")[2]) for version in found} == shared


@pytest.fixture
def publisher(redis_url: str, redis_connection: Any) -> Any:
    publisher = Publisher(redis_url, "p")
    yield publisher
    publisher.close()


def test_what_is_dropped_leaves_redis_but_for_what_others_wrote(publisher: Publisher, redis_connection: Any) -> None:
    shard = Shard(publisher, GrowthConfig(max_users=1, max_items=1), shards=2)
    shard.put([[T0, "", "ann", "tea", "rating", 3.0, 0, 1]])
    redis_connection.hset("p:item:tea", mapping={"catalogue": "{}", "version:1": "v", "bias:1": "0"})
    redis_connection.hset("p:user:ann", "t:5m:0", "{}")
    shard.put([[T0, "", "bob", "rum", "rating", 3.0, 0, 1]])
    shard.put([[T0, "", "eve", "gin", "rating", 3.0, 0, 1]])
    shard.agree(redis_connection)
    assert set(redis_connection.hgetall("p:item:tea")) == {b"catalogue", b"version:1", b"bias:1"}
    assert set(redis_connection.hgetall("p:user:ann")) == {b"t:5m:0"}
    assert not redis_connection.exists("p:user:bob", "p:item:rum")
    assert redis_connection.hget("p:model:0", "items_dropped") == b"2"


def test_a_replay_shows_nothing_that_was_dropped(publisher: Publisher, redis_connection: Any) -> None:
    log = [[T0 + at, "", f"u{at % 13}", f"i{at % 11}", "rating", float(at % 5), 0, at] for at in range(120)]
    shard = Shard(publisher)
    for start in range(0, 90, 10):
        shard.put(log[start : start + 10])
        if start == 20:
            shard.checkpoint()
    shard.agree(redis_connection)
    before = shard.in_redis(redis_connection)
    shard.crash()
    for start in range(30, 90, 4):
        shard.put(log[start : min(start + 4, 90)])
        assert shard.in_redis(redis_connection) == before
    shard.agree(redis_connection)
    shard.put(log[90:])
    shard.agree(redis_connection)


def test_under_a_higher_cap_what_a_crashed_run_had_dropped_is_back(publisher: Publisher, redis_connection: Any) -> None:
    log = [[T0 + at, "", f"u{at}", "tea", "rating", 3.0, 0, at] for at in range(12)]
    shard = Shard(publisher, GrowthConfig(max_users=4))
    shard.put(log[:4])
    shard.checkpoint()
    shard.put(log[4:])
    assert set(shard.in_redis(redis_connection)["user"]) == {"u8", "u9", "u10", "u11"}
    shard.growth = GrowthConfig(max_users=10)
    shard.crash()
    shard.put(log[4:])
    shard.agree(redis_connection)
    assert "u2" in shard.rows_of("user") and "u1" not in shard.rows_of("user")


@given(
    drawn=logs,
    cuts=st.sets(st.integers(1, 79)),
    checkpoints=st.sets(st.integers(0, 80)),
    crashes=st.lists(st.integers(0, 80), max_size=3),
    wiped=st.none() | st.integers(0, 80),
    least=st.integers(1, 2),
    other=st.none() | st.builds(GrowthConfig, max_users=st.integers(1, 20), max_items=st.integers(1, 20)),
)
def test_redis_ends_as_the_learner_whatever_happens(
    redis_url: str,
    drawn: list[tuple[int, int, int, float]],
    cuts: set[int],
    checkpoints: set[int],
    crashes: list[int],
    wiped: int | None,
    least: int,
    other: GrowthConfig | None,
) -> None:
    """Crashes go back to the last checkpoint, perhaps with other bounds; Redis is wiped once."""
    publisher = Publisher(redis_url, "p")
    connection = publisher._redis
    connection.flushall()
    log, shard = log_of(drawn), Shard(publisher, replace(GROWTH, min_events=least, tail_rows=3))
    bounds = sorted({0, len(log), *(cut for cut in cuts if cut < len(log))})
    parts = list(itertools.pairwise(bounds))
    at, reached, left = 0, 0, [*crashes]
    while at < len(parts):
        if at in checkpoints:
            shard.checkpoint()
            reached = at
        shard.put(log[slice(*parts[at])], ended=False)
        at += 1
        if at == wiped:
            connection.flushall()
            wiped = None
        if at in left:
            left.remove(at)
            shard.growth = replace(other, min_events=least, tail_rows=3) if other else shard.growth
            shard.crash()
            at = reached
    shard.put([], ended=True)
    shard.agree(connection)
    publisher.close()


class Flaky(Publisher):
    """A publisher to a Redis that is wiped, copied or put back before script calls of some numbers."""

    def __init__(self, url: str, faults: dict[int, str]) -> None:
        super().__init__(url, "p")
        self.faults, self.calls, self.copy = faults, itertools.count(), dict[bytes, bytes]()

    def _run(self, calls: Iterable[Call]) -> list[Any]:
        answers: list[Any] = []
        errors: list[redis.exceptions.RedisError] = []
        for call in calls:  # all are sent, whatever is answered
            self._strike(self.faults.get(next(self.calls)))  # raises where connections do not live through it
            try:
                answers += super()._run([call])
            except redis.exceptions.RedisError as error:
                errors.append(error)
        if errors:
            raise errors[0]
        return answers

    def _strike(self, fault: str | None) -> None:
        if fault == "copy":
            self.copy = {key: self._redis.dump(key) for key in self._redis.scan_iter()}
        elif fault is not None:
            self._redis.flushall()
        if fault == "put back":
            for key, dumped in self.copy.items():
                self._redis.restore(key, 0, dumped)
            raise redis.exceptions.ConnectionError("the server was started anew")


@given(
    drawn=logs,
    faults=st.lists(st.tuples(st.integers(1, 40), st.sampled_from(["copy", "put back", "wipe"])), max_size=8),
    crash=st.booleans(),
)
@example(drawn=[(0, 0, 0, 1.0)], faults=[(1, "copy"), (7, "put back")], crash=False)
@hypothesis.settings(max_examples=300)
def test_a_redis_lost_while_all_is_written_is_written_again(
    redis_url: str, drawn: list[tuple[int, int, int, float]], faults: list[tuple[int, str]], crash: bool
) -> None:
    """Redis is wiped, or put back, between any two script calls, also of the write that mends the last loss."""
    apart, kinds = [apart for apart, _ in faults], [kind for _, kind in faults]
    publisher = Flaky(redis_url, dict(zip(itertools.accumulate(apart), kinds, strict=True)))
    connection = publisher._redis
    connection.flushall()
    log, shard = log_of(drawn), Shard(publisher, GrowthConfig())
    with (
        mock.patch("udfs.outbox._AT_ONCE", 4),
        mock.patch("udfs.publisher._PER_CALL", 2),
        mock.patch("udfs.publisher.time.sleep"),
    ):
        half = len(log) // 2
        shard.put(log[:half])
        shard.checkpoint()
        shard.put(log[half:])
        if crash:
            shard.crash()
            shard.put(log[half:])
        publisher.faults.clear()
        shard.outbox.assure()
    shard.agree(connection)
    publisher.close()


def test_a_redis_put_back_to_the_middle_of_a_write_is_written_again(
    publisher: Publisher, redis_connection: Any
) -> None:
    shard = Shard(publisher, GrowthConfig())
    log = [[T0 + at, "", f"u{at % 7}", f"i{at % 5}", "rating", 3.0, 0, at] for at in range(40)]
    shard.put(log[:20])
    copy = {key: redis_connection.dump(key) for key in redis_connection.keys("p:*") if b"ledger" not in key}
    shard.put(log[20:])
    shard.checkpoint()
    # The write had begun when the copy was made: what it would reach was noted, and nothing else.
    for key, value in copy.items():
        redis_connection.restore(key, 0, value, replace=True)
    shard.crash()
    shard.agree(redis_connection)


class Torn(Publisher):
    """A publisher whose worker dies in a write, if it is told to: after so many script calls, or when Redis has refused
    the next one and taken those that were sent with it."""

    left: int | None = None
    refused = False

    def _run(self, calls: Iterable[Call]) -> list[Any]:
        if self.left is None:
            return super()._run(calls)
        sent = [*calls]
        at, self.left = self.left, self.left - len(sent)
        if self.left >= 0:
            return super()._run(sent)
        super()._run(sent[:at] + (sent[at + 1 :] if self.refused else []))
        raise KeyboardInterrupt


@given(
    drawn=logs,
    cuts=st.sets(st.integers(1, 79)),
    checkpoints=st.sets(st.integers(0, 80)),
    crashes=st.lists(
        st.tuples(st.integers(1, 10), st.tuples(st.integers(0, 12), st.booleans(), st.booleans())), max_size=3
    ),
    wiped=st.none() | st.integers(0, 80),
    growth=st.sampled_from([GROWTH, GrowthConfig()]),
    repeatable=st.booleans(),
)
@example(
    drawn=[(0, 0, 0, 1.0)],
    cuts=set(),
    checkpoints=set(),
    crashes=[(1, (1, False, False))],
    wiped=1,
    growth=GROWTH,
    repeatable=False,
)
@hypothesis.settings(max_examples=300)
def test_learning_may_go_on_while_redis_writes(
    redis_url: str,
    drawn: list[tuple[int, int, int, float]],
    cuts: set[int],
    checkpoints: set[int],
    crashes: list[tuple[int, tuple[int, bool, bool]]],
    wiped: int | None,
    growth: GrowthConfig,
    repeatable: bool,
) -> None:
    """Checkpoints cover writes that are under way; workers die before such a write, after it, or somewhere in it."""
    publisher, background = Torn(redis_url, "p"), Background()
    connection = publisher._redis
    connection.flushall()
    log = log_of(drawn)
    bounds = sorted({0, len(log), *(cut for cut in cuts if cut < len(log))})
    parts = list(itertools.pairwise(bounds))
    at, reached, left = 0, 0, dict(crashes)
    with mock.patch("udfs.outbox._MANY", 1), mock.patch("udfs.publisher._PER_CALL", 2):
        shard = Shard(publisher, growth, background=background, repeatable=repeatable)
        while at < len(parts):
            shard.put(log[slice(*parts[at])])
            at += 1
            if at in checkpoints or left.get(at, (0, False, False))[1]:
                shard.checkpoint()
                reached = at
            if at == wiped:
                connection.flushall()
                wiped = None
            if at in left:
                publisher.left, _, publisher.refused = left.pop(at)
                # What it learned last is on its way, if it was not waited for.
                if shard.outbox._writing is not None:
                    with contextlib.suppress(KeyboardInterrupt, Lost):  # it dies also with what it would have mended
                        background.last.result()
                publisher.left = None
                shard.crash()
                at = reached
        shard.put([], ended=True)
        shard.agree(connection)
    publisher.close()


def test_a_checkpoint_may_cover_a_write_that_has_not_arrived(publisher: Publisher, redis_connection: Any) -> None:
    log = [[T0 + at, "", f"u{at % 7}", f"i{at % 5}", "rating", 3.0, 0, at] for at in range(45)]
    background = Background()
    shard = Shard(publisher, GrowthConfig(), background=background)
    shard.put(log[:9])
    assert redis_connection.hget("p:model:0", "seq") == b"9"  # few rows are waited for
    with mock.patch("udfs.outbox._MANY", 1):
        shard.put(log[9:18])
        assert redis_connection.hget("p:model:0", "seq") == b"9"
        shard.put(log[18:27])
        assert redis_connection.hget("p:model:0", "seq") == b"18"
        shard.checkpoint()
        # The write is lost with its worker; the next one writes all it knows before it learns anything.
        shard.crash()
        shard.agree(redis_connection)
        # Here it arrives: nothing is written again.
        shard.put(log[27:36])
        shard.checkpoint()
        background.last.result()
        writes = redis_connection.hget("p:ledger", "writes")
        shard.crash()
        shard.agree(redis_connection)
        assert redis_connection.hget("p:ledger", "writes") == writes
        # And at the end of the input nothing is under way.
        shard.put(log[36:], ended=True)
        assert redis_connection.hget("p:model:0", "seq") == b"45"


def test_what_was_dropped_in_a_write_that_is_lost_with_its_worker_leaves_redis(
    publisher: Publisher, redis_connection: Any
) -> None:
    shard = Shard(publisher, GrowthConfig(max_users=1, max_items=1), background=Background())
    with mock.patch("udfs.outbox._MANY", 1):
        shard.put([[T0, "", "ann", "tea", "rating", 3.0, 0, 1]])
        shard.put([[T0, "", "bob", "rum", "rating", 3.0, 0, 1]])
        shard.checkpoint()
        shard.crash()
        shard.agree(redis_connection)


@pytest.mark.parametrize("lost", [False, True])
def test_what_was_dropped_leaves_redis_also_after_two_crashes(
    redis_url: str, redis_connection: Any, lost: bool
) -> None:
    """The write that drops is torn; its replay is held, and has been checkpointed half way when it crashes, too."""
    publisher = Torn(redis_url, "p")
    try:
        shard = Shard(publisher, GrowthConfig(max_users=2, max_items=2))
        shard.put([[T0 + at, "", user, item, "rating", 3.0, 0, at] for at, (user, item) in enumerate([("a", "t")] * 2)])
        shard.checkpoint()
        log = [[T0 + at, "", f"u{at % 4}", f"i{at % 4}", "rating", 3.0, 0, at] for at in range(2, 9)]
        publisher.left = 1  # what was reached
        with pytest.raises(KeyboardInterrupt):
            shard.put(log)
        publisher.left = None
        shard.crash()
        shard.put(log[:5])
        assert "a" in shard.in_redis(redis_connection)["user"] and "a" not in shard.rows_of("user")
        shard.checkpoint()
        if lost:  # all but the rows
            redis_connection.delete("p:ledger", "p:model:0")
        shard.crash()
        shard.put(log[5:])
        shard.agree(redis_connection)
    finally:
        publisher.close()


def test_a_worker_that_ends_says_what_it_could_not_write(
    publisher: Publisher, redis_connection: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with ThreadPoolExecutor(1) as background, mock.patch("udfs.outbox._MANY", 1):
        shard = Shard(publisher, GrowthConfig(), background=background)
        shard.outbox.close()  # nothing is under way
        with mock.patch.object(publisher, "learned", side_effect=PublishError("Redis took no write for 30 s")):
            shard.put([[T0, "", "ann", "tea", "rating", 3.0, 0, 1]])
            shard.outbox.close()
    assert caplog.messages == ["what was learned last is not in Redis: Redis took no write for 30 s"]


@pytest.mark.parametrize("refused", [1, 2, 3, 4, 5, 6])
def test_a_header_says_that_all_else_is_there(redis_url: str, redis_connection: Any, refused: int) -> None:
    """Redis refuses one call of a write and takes the others, and the worker dies before it tries again."""
    publisher, background = Torn(redis_url, "p"), Background()
    log = [[T0 + at, "", f"u{at % 7}", f"i{at % 5}", "rating", 3.0, 0, at] for at in range(18)]
    with mock.patch("udfs.outbox._MANY", 1), mock.patch("udfs.publisher._PER_CALL", 3):
        shard = Shard(publisher, GrowthConfig(), background=background)
        shard.put(log[:9])
        shard.put(log[9:])
        shard.checkpoint()
        publisher.left, publisher.refused = refused, True
        with pytest.raises(KeyboardInterrupt):
            background.last.result()
        publisher.left = None
        shard.crash()
        shard.agree(redis_connection)
    publisher.close()


@pytest.mark.parametrize(
    ("kind", "optimizer"),
    [("biased_mf", "SGD"), ("biased_mf", "SGD/river"), ("stack", ""), ("kalman_mf", ""), ("blend", "")],
)
def test_what_is_written_is_what_was_known_when_it_was_learned(kind: str, optimizer: str) -> None:
    model = build(kind, {}) if kind == "blend" else made(kind, optimizer)
    learner = Learner(LearnerConfig(), model)
    rows = [[T0 + at, "", f"u{at % 7}", f"i{at % 5}", "rating", float(at % 3), 0, at] for at in range(60)]
    [learned] = learner.process(batch_of(rows[:30]))
    entities = LearnedEntities(learner, learner.encode(learned), Author(Keys("p"), 0, 1, EPOCH))
    before = [*entities.parts()]
    [_] = learner.process(batch_of(rows[30:]))
    assert [*entities.parts()] == before and len(entities) == 12


def interleaved(sources: list[list[Event]], rng: random.Random) -> list[Event]:
    """The events of two sources in some order that keeps that of each."""
    turns = [source for source, events in enumerate(sources) for _ in events]
    rng.shuffle(turns)
    left = [iter(events) for events in sources]
    return [next(left[source]) for source in turns]


@given(
    drawn=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(1, 5)), min_size=2, max_size=60),
    rng=st.randoms(use_true_random=False),
    attempts=st.integers(1, 4),
    wiped=st.booleans(),
)
def test_a_replay_in_another_order_takes_no_reader_back(
    redis_url: str, drawn: list[tuple[int, int, int]], rng: random.Random, attempts: int, wiped: bool
) -> None:
    publisher = Publisher(redis_url, "p")
    connection = publisher._redis
    connection.flushall()
    sources: list[list[Event]] = [[], []]
    for user, item, y in drawn:
        source = rng.randrange(2)
        at = len(sources[source])
        sources[source].append([T0 + rng.randrange(100), "", f"u{user}", f"i{item}", "rating", float(y), source, at])
    shard = Shard(publisher, GrowthConfig(), repeatable=False)
    read, seen = [0, 0], dict[str, tuple[bytes, int]]()
    for attempt in reversed(range(attempts)):
        order = interleaved([events[read[source] :] for source, events in enumerate(sources)], rng)
        # All of them crash but the last.
        end = rng.randrange(len(order) + 1) if attempt else len(order)
        checkpoint = rng.randrange(end + 1)
        at = 0
        while at < end:
            step = min(rng.randint(1, 9), end - at, checkpoint - at if at < checkpoint else end)
            shard.put(order[at : at + step])
            at += step
            if at == checkpoint:
                shard.checkpoint()
                for event in order[:at]:
                    read[event[6]] = max(read[event[6]], event[7] + 1)
            for user in range(5):
                version, count = connection.hmget(f"p:user:u{user}", "version", "count")
                now = (version or b"", int(count or 0))
                assert now >= seen.get(f"u{user}", now) and now[1] >= seen.get(f"u{user}", now)[1]
                seen[f"u{user}"] = now
        if attempt:
            shard.crash()
            if wiped:
                connection.flushall()
                seen, wiped = {}, False
    shard.put([], ended=True)
    assert sum(row.count for row in shard.learner.rows["user"].values()) == len(drawn)
    for family, of in shard.learner.rows.items():
        for row_id, row in of.items():
            version, count, bias = connection.hmget(f"p:{family}:{row_id}", "version", "count", "bias")
            assert (int(version.rpartition(b".")[2]), int(count)) == (row.seq, row.count)
            weights = rows_of(shard.learner.model, family, row_id)
            assert float(bias) == shard.learner.model.biases(family, weights)[0]
    publisher.close()
