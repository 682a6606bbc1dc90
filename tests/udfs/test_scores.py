"""The history of metrics in Redis: now and then an entry, once each, whatever crashes, and no more than are kept."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import orjson
import pytest
import redis

from serving import Client, Scores
from tests.shells import BACKGROUND, batch_of
from tests.udfs.counting import Counting
from tests.udfs.test_evaluating import CONFIG, T0, Log, log_of
from udfs.learner import Learner, LearnerConfig, build
from udfs.models import RowModel
from udfs.outbox import Outbox
from udfs.publisher import Author, Call, Fenced, Publisher

EPOCH = 1_600_000_000_000
EVERY_WRITE = 0.0


@pytest.fixture
def publisher(redis_url: str, redis_connection: Any) -> Iterator[Publisher]:
    publisher = Publisher(redis_url, "p")
    yield publisher
    publisher.close()


class Shard:
    """The shell of a learner, with a checkpoint to go back to."""

    def __init__(
        self, publisher: Publisher, pause: float = EVERY_WRITE, model: Callable[[], RowModel] = Counting, shard: int = 0
    ) -> None:
        self.publisher, self.pause, self.model, self.shard = publisher, pause, model, shard
        self.state: tuple[bytes | None, list[tuple[str, str, bytes]]] = (None, [])
        self.begin()

    def begin(self) -> None:
        """Another process, from the last checkpoint."""
        self.learner = Learner(LearnerConfig(ranking=CONFIG), self.model())
        self.learner.restore(*self.state, [])
        author = Author(self.publisher.keys, self.shard, 2, EPOCH)
        self.outbox = Outbox(self.publisher, self.learner, author, BACKGROUND, self.pause)

    def checkpoint(self) -> None:
        encoded = self.learner.encode(self.learner.everything())
        rows = [(f, i, b) for f, of in encoded.items() for i, b in zip(of.row_ids, of.blobs, strict=True)]
        self.state = self.learner.header(), rows

    def put(self, log: Log, *, ended: bool = False) -> None:
        for learned in self.learner.process(batch_of(log, ended=ended, watermark=None)):
            self.outbox.publish(learned, self.learner.encode(learned))
            self.outbox.keep_up()
        self.learner.finished_batches()


def entries(connection: Any) -> list[Any]:
    return [orjson.loads(entry) for entry in connection.zrange("p:metrics", 0, -1)]


def test_an_entry_says_how_well_the_model_and_its_baselines_do(publisher: Publisher, redis_connection: Any) -> None:
    shard, before = Shard(publisher, shard=1), time.time_ns() // 1_000_000
    shard.put(log_of(60))
    [(entry, score)] = redis_connection.zrange("p:metrics", 0, -1, withscores=True)
    assert shard.learner.ranking is not None
    shown = shard.learner.ranking.values(known=shard.learner.known("item"))
    found = orjson.loads(entry)
    assert before <= found.pop("time") == score <= time.time_ns() // 1_000_000
    ranking = {name: of for name, of in shown.items() if name not in ("model", "baselines")}
    assert 0.0 < ranking["coverage"] <= 1.0 and ranking["new users"]["faded"]["n"] > 0
    assert found == {"shard": 1, "seq": 60, "ranking": ranking}
    assert shown["all"]["faded"]["n"] == 60 and shown["recent"]["popularity"]["n"] == 20
    assert Client(redis_connection, "p").metrics() == [Scores(int(score), 1, 60, None, ranking)]


def test_errors_of_ratings_have_a_history_too(publisher: Publisher, redis_connection: Any) -> None:
    shard = Shard(publisher, model=lambda: build("baseline", {}))
    for start in (0, 20, 40):
        shard.put(
            [[T0 + at, "", "ann", f"i{at % 3}", "rating", float(at % 5), 0, at] for at in range(start, start + 20)]
        )
    history = Client(redis_connection, "p").metrics(2)
    assert [of.seq for of in history] == [40, 60]
    assert history[-1].metrics == shard.learner.summary()["metrics"] and history[-1].metrics["n"] == 60
    assert shard.learner.ranking is not None and history[-1].ranking is not None
    shown = shard.learner.ranking.values(3)
    assert history[-1].ranking == {name: of for name, of in shown.items() if name not in ("model", "baselines")}
    assert Client(redis_connection, "p").metrics(0) == [] == Client(redis_connection, "other").metrics()


def test_entries_are_made_now_and_then_and_when_the_input_ends(publisher: Publisher, redis_connection: Any) -> None:
    shard, log = Shard(publisher, pause=3_600.0), log_of(60)
    shard.put([])
    assert entries(redis_connection) == []  # nothing was scored
    for start in range(0, 50, 10):
        shard.put(log[start : start + 10])
    assert [entry["seq"] for entry in entries(redis_connection)] == [10]
    shard.put(log[50:], ended=True)
    shard.put([], ended=True)
    assert [entry["seq"] for entry in entries(redis_connection)] == [10, 60]


def test_a_replay_adds_nothing_before_it_has_passed_redis(publisher: Publisher, redis_connection: Any) -> None:
    shard, log = Shard(publisher), log_of(60)
    shard.put(log[:10])
    shard.checkpoint()
    for start in range(10, 40, 10):
        shard.put(log[start : start + 10])
    before = entries(redis_connection)
    assert [entry["seq"] for entry in before] == [10, 20, 30, 40]
    shard.begin()
    for start in range(10, 40, 6):
        shard.put(log[start : min(start + 6, 40)])
        assert entries(redis_connection) == before
    shard.put(log[40:], ended=True)
    shard.checkpoint()
    assert [entry["seq"] for entry in entries(redis_connection)] == [10, 20, 30, 40, 60]
    shard.begin()
    shard.outbox.assure()
    assert len(entries(redis_connection)) == 5


def test_a_write_that_is_sent_again_makes_one_entry(redis_url: str, redis_connection: Any) -> None:
    class Cut(Publisher):
        """One that does not hear of the answers to its first writes."""

        left = 2

        def _run(self, calls: Iterable[Call]) -> list[Any]:
            kept = list(calls)
            answers = super()._run(kept)
            if self.left and any("p:metrics" in call[2] for call in kept):
                self.left -= 1
                raise redis.exceptions.ConnectionError("the connection was cut")
            return answers

    publisher = Cut(redis_url, "p")
    Shard(publisher).put(log_of(30))
    assert publisher.left == 0 and [entry["seq"] for entry in entries(redis_connection)] == [30]
    publisher.close()


def test_a_redis_that_was_wiped_gets_entries_again(publisher: Publisher, redis_connection: Any) -> None:
    shard, log = Shard(publisher), log_of(60)
    shard.put(log[:30])
    redis_connection.flushall()
    shard.put(log[30:])  # finds out, and writes everything
    assert [entry["seq"] for entry in entries(redis_connection)] == [60]


def test_the_history_keeps_the_last_entries(
    publisher: Publisher, redis_connection: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("udfs.entities.KEPT", 6)
    shards, log = [Shard(publisher, shard=shard) for shard in range(2)], log_of(200)
    for start, shard in zip(range(0, 200, 10), itertools.cycle(shards)):
        shard.put(log[start : start + 10])
        time.sleep(0.002)  # so that their times differ
    found = entries(redis_connection)
    assert [(entry["shard"], entry["seq"]) for entry in found] == [
        (0, 80), (1, 80), (0, 90), (1, 90), (0, 100), (1, 100),
    ]  # fmt: skip
    assert Client(redis_connection, "p").metrics(2) == [
        Scores(entry["time"], entry["shard"], entry["seq"], None, entry["ranking"]) for entry in found[-2:]
    ]


def test_a_job_that_was_replaced_adds_nothing(publisher: Publisher, redis_connection: Any) -> None:
    shard = Shard(publisher)
    redis_connection.set("p:fence", 7)
    with pytest.raises(Fenced):
        shard.put(log_of(30))
    assert entries(redis_connection) == []
