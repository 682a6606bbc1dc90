"""The standing of a run: its ledger balances whatever earlier runs did."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from flink_jobs.progress import Display, Monitor, Standing, Watchdog, standing, summary_table
from serving.schema import Keys
from tests.shells import publish
from udfs.batch import Batch
from udfs.chunk import Chunk, Run
from udfs.events import EventFormat
from udfs.intake import Intake, IntakeConfig, IntakeResult
from udfs.learner import Learner, LearnerConfig, build
from udfs.models import RowModel
from udfs.publisher import Publisher
from udfs.requests import Request

T0 = 1_700_000_000_000


def baseline() -> RowModel:
    return build("baseline", {})


class Job:
    """Intake and learners as the job wires them; ``stop`` is a savepoint and another run."""

    def __init__(self, shards: int, model: Callable[[], RowModel] = baseline, ranking: Any = None) -> None:
        self.shards = shards
        self.model = model
        self.ranking = ranking
        self.number = 0
        self.blobs: dict[str, bytes] = {}
        self._start()

    def _start(self) -> None:
        self.run_id = f"7-{self.number}"
        config = IntakeConfig(
            EventFormat(), self.shards, True, True, 5_000, 20_000, None, ("file", "line"), self.run_id, 7
        )
        self.intake = Intake(config)
        learning = LearnerConfig(run_id=self.run_id, ranking=self.ranking)
        self.learners = [Learner(learning, self.model()) for _ in range(self.shards)]

    def stop(self) -> None:
        header = self.intake.header
        states = [(learner.header(), self._rows(learner), self._waiting(learner)) for learner in self.learners]
        self.number += 1
        self._start()
        self.intake.restore(header, self.blobs.items())
        for learner, (of, rows, waiting) in zip(self.learners, states, strict=True):
            learner.restore(of, rows, waiting)

    @staticmethod
    def _rows(learner: Learner) -> list[tuple[str, str, bytes]]:
        return [
            (family, row_id, blob)
            for family, of in learner.encode(learner.everything()).items()
            for row_id, blob in zip(of.row_ids, of.blobs, strict=True)
        ]

    @staticmethod
    def _waiting(learner: Learner) -> list[tuple[int, bytes]]:
        return [(n, blob) for n in learner.batches if (blob := learner.waiting_of(n)) is not None]

    def put(self, lines: list[bytes], *, ended: bool = False) -> None:
        self._send(self.intake.process(Chunk([Run("log", 1, len(lines))], lines, ended=ended), now=T0))

    def delete(self, user_id: str, number: int) -> None:
        self._send(self.intake.delete([Request(number, user_id)]))

    def _send(self, result: IntakeResult) -> None:
        self.blobs |= result.puts
        for name in result.removes:
            del self.blobs[name]
        for shard, blob in result.batches.items():
            learner = self.learners[shard]
            for _ in learner.process(Batch.decode(blob)):
                pass
            learner.finished_batches()

    @property
    def ledger(self) -> dict[bytes, bytes]:
        encode: Any = lambda v: v if isinstance(v, bytes) else str(v).encode()  # noqa: E731
        return {name.encode(): encode(value) for name, value in self.intake.ledger_fields().items()}

    @property
    def standing(self) -> Standing:
        summaries = [orjson.loads(orjson.dumps(learner.summary())) for learner in self.learners]
        return standing(self.ledger, summaries, self.run_id, self.shards, (0, 0))


def balanced(events: dict[str, int]) -> bool:
    return events["read"] == sum(count for name, count in events.items() if name != "read")


line = st.one_of(
    st.builds(
        lambda at, user, value, event_id: orjson.dumps(
            {"user_id": user, "item_id": "i", "timestamp": T0 + at, "event_value": value, "event_id": event_id}
        ),
        st.integers(0, 30_000),
        st.sampled_from("uvwx"),
        st.sampled_from([1.0, 5.0, 1e14]),
        st.sampled_from(["", "x", "y"]),
    ),
    st.just(b"junk"),
)


@given(
    runs=st.lists(
        st.tuples(st.lists(line, max_size=15), st.booleans(), st.sampled_from(["", "u"])), min_size=1, max_size=4
    ),
    shards=st.sampled_from([1, 3]),
)
def test_the_ledger_of_every_run_balances(runs: list[tuple[list[bytes], bool, str]], shards: int) -> None:
    job = Job(shards)
    pending = 0
    read = learned = 0
    for number, (lines, ended, deleted) in enumerate(runs):
        if number:
            job.stop()
        job.put(lines)
        if deleted:
            job.delete(deleted, number + 1)
        if ended:
            job.put([], ended=True)
        now = job.standing
        assert balanced(now.events), now
        assert now.carried == pending and now.events["read"] == len(lines) + pending
        assert sum(now.rejected.values()) == now.events["rejected"]
        assert now.events["pending"] == sum(len(learner.waiting) for learner in job.learners)
        assert now.complete == ended
        assert now.metrics_run["n"] == now.events["learned"]
        pending = now.events["pending"]
        read += len(lines)
        learned += now.events["learned"]
        assert now.metrics["n"] == learned == sum(learner.learned for learner in job.learners)
    assert job.intake.counts.read == read


def test_before_anything_is_read_there_is_nothing() -> None:
    now = standing({}, [], "7-0", 2, (0, 0))
    assert set(now.events.values()) == {0} and not now.complete and now.latest is None
    assert now.metrics == {"n": 0}
    now = standing({}, [], "7-0", 2, (0, 0), ["MAE", "RMSE"])
    assert now.metrics == now.metrics_run == {"mae": None, "rmse": None, "n": 0}


def test_a_ledger_of_an_earlier_run_is_not_counted() -> None:
    job = Job(1)
    job.put([b"junk", b"junk"])
    ledger = job.ledger
    assert standing(ledger, [], "7-0", 1, (0, 0)).events["read"] == 2
    assert standing(ledger, [], "7-1", 1, (0, 0)).events["read"] == 0


def test_a_shard_that_has_not_ended_keeps_the_run_open() -> None:
    job = Job(3)
    job.put([], ended=True)
    assert job.standing.complete
    summaries = [learner.summary() for learner in job.learners]
    assert not standing(job.ledger, summaries[:2], job.run_id, 3, (0, 0)).complete
    summaries[1]["ended"] = False
    assert not standing(job.ledger, summaries, job.run_id, 3, (0, 0)).complete


def test_the_monitor_reads_what_the_job_published(redis_url: str, redis_connection: Any) -> None:
    keys = Keys("p")
    publisher = Publisher(redis_url, "p")
    redis_connection.hset(keys.ledger, "writes", 10)
    job = Job(1)
    monitor = Monitor(redis_connection, keys, 1, job.run_id, 0)
    good = [orjson.dumps({"user_id": "u", "item_id": i, "timestamp": T0, "event_value": 4}) for i in ("tea", "rum")]
    job.put([*good, b"junk"])
    job.put([], ended=True)
    publisher.ledger(job.intake.ledger_fields())
    assert not monitor.lacks()
    publish(publisher, job.learners[0])
    assert not monitor.lacks()
    begun = redis_connection.hget(keys.ledger, "reached:0")
    redis_connection.hset(keys.ledger, "reached:0", b'{"":3}')  # another write has begun
    assert begun == b'{"":2}' and monitor.lacks()
    now = monitor.standing()
    assert now.events == {"read": 3, "learned": 2, "rejected": 1, "late": 0, "duplicate": 0, "pending": 0}
    assert (now.users, now.items, now.writes, now.rejected) == (1, 2, 4, {"not_json": 1})
    assert now.complete and now.latest in (("u", "tea"), ("u", "rum")) and now.first_read_at == T0
    assert now.metrics_run["mae"] == job.learners[0].summary()["metrics"]["mae"]


def test_items_of_several_shards_are_counted_once(redis_url: str, redis_connection: Any) -> None:
    publisher = Publisher(redis_url, "p")
    job = Job(2)
    monitor = Monitor(redis_connection, Keys("p"), 2, job.run_id, 0, ["MAE", "RMSE"])
    assert monitor.final().items == 0 and monitor.final().metrics == {"mae": None, "rmse": None, "n": 0}
    pairs = [("1", "tea"), ("1", "rum"), ("42", "tea"), ("42", "gin")]
    job.put([orjson.dumps({"user_id": u, "item_id": i, "timestamp": T0, "event_value": 4}) for u, i in pairs])
    job.put([], ended=True)
    assert [learner.learned for learner in job.learners] == [2, 2]
    publisher.ledger(job.intake.ledger_fields())
    for shard, learner in enumerate(job.learners):
        publish(publisher, learner, shard=shard, shards=2)
    assert monitor.final().items == 3 and monitor.final().users == 2


def test_progress_is_shown_without_a_terminal() -> None:
    out = io.StringIO()
    with Display(Console(file=out, width=200)) as display:
        display._last_line = -1e9
        display.show(Standing({"read": 5, "learned": 4}, metrics_run={"mae": 0.5, "n": 4}), "running")
    assert "running read=5 learned=4" in out.getvalue() and "mae=0.5000" in out.getvalue()


@pytest.mark.parametrize("rate", [None, 12.0])
def test_the_summary_is_a_table(rate: float | None) -> None:
    out = io.StringIO()
    summary = {
        "events": {"read": 1_234, "rejected": 2},
        "metrics_run": {"mae": None, "n": 0},
        "metrics": {"mae": 0.25, "n": 5},
        "ranking": None,
        "published": {"users": 1, "items": 2, "writes": 3},
        "replayed": 0,
        "events_per_second": rate,
        "seconds": {"total": 1.5},
    }
    Console(file=out, width=100).print(summary_table(summary, {"not_json": 2}))
    for text in ("1,234", "not_json", "0.2500", "1 users, 2 items"):
        assert text in out.getvalue()


def test_a_watchdog_tells_a_job_that_hangs() -> None:
    watchdog = Watchdog(10.0)
    assert not any(watchdog.hung({}, now) for now in (0.0, 50.0))  # it has not begun
    marks = {"": 1, "0": 1}
    # Twice as long each time in a row.
    assert [watchdog.hung(marks, now) for now in (60.0, 69.0, 70.0, 71.0, 89.0, 90.0)] == [
        False, False, True, False, False, True,
    ]  # fmt: skip
    assert not watchdog.hung({"": 2, "0": 2}, 91.0)
    # That one part goes on does not help the other.
    assert not watchdog.hung({"": 3, "0": 2}, 100.0)
    assert watchdog.hung({"": 4, "0": 2}, 101.0)
