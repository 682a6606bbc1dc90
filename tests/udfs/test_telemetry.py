"""Metrics: from what the objects of a job know to what Flink is told."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from flink_jobs.embedded import embedded_redis
from serving.connection import connect
from tests.shells import batch_of, publish
from tests.udfs.test_evaluating import CONFIG, learn, learner_of, log_of
from udfs.learner import Learner, LearnerConfig, build
from udfs.publisher import Publisher
from udfs.ranking import SEGMENTS
from udfs.tally import Tally
from udfs.telemetry import (
    BEATEN,
    COVERAGE,
    CUT,
    EVENT_LAG,
    LEARNED,
    METRICS,
    OF_RANKING,
    PUBLISH_BUCKET,
    PUBLISH_COUNT,
    PUBLISHED,
    RANKING,
    READ,
    REJECTED,
    REPLAYED,
    RETRIES,
    ROWS,
    SCORE,
    WAITING,
    Buckets,
    Changes,
    of_learner,
    of_retries,
)


def learned(*rows: tuple[int, str, str, float]) -> Learner:
    learner = Learner(LearnerConfig(), build("biased_mf", {"n_factors": 2}))
    events = [[at, "", user, item, "rating", y, 0, n] for n, (at, user, item, y) in enumerate(rows)]
    for _ in learner.process(batch_of(events)):
        pass
    return learner


def test_names_are_unique_and_explained() -> None:
    assert len({metric.prometheus for metric in METRICS}) == len(METRICS)
    assert all(metric.help.endswith(".") and metric.unit for metric in METRICS)


@pytest.mark.parametrize(("size", "bucket"), [(0, "1"), (1, "1"), (1.5, "10"), (10, "10"), (11, "+Inf")])
def test_a_value_on_a_bound_is_within_it(size: float, bucket: str) -> None:
    buckets = Buckets((1, 10))
    buckets.add(size)
    assert next(name for name, count in buckets.cumulative.items() if count) == bucket
    assert buckets.cumulative["+Inf"] == buckets.count == 1


def test_a_learner_is_read() -> None:
    learner = learned((1, "ann", "tea", 4.0), (2, "bob", "tea", 2.0), (3, "ann", "rum", 1.0))
    readings = of_learner(learner, 7, now=1_003)
    assert readings[LEARNED, ()] == 3 and readings[WAITING, ("7",)] == 0
    assert (readings[ROWS, ("7", "user")], readings[ROWS, ("7", "item")]) == (2, 2)
    assert readings[EVENT_LAG, ("7",)] == 1_000
    mean = learner.scores.means["MAE"][1]
    assert readings[SCORE, ("7", "mae")] == round(mean * 1e6) > 0
    assert all(isinstance(value, int) for value in readings.values())
    assert (EVENT_LAG, ("7",)) not in of_learner(learner, 7)  # nothing was learned just now


def test_a_score_that_is_not_finite_is_left_out() -> None:
    assert not [series for series in of_learner(learned(), 0) if series[0] is SCORE]
    learner = learned((1, "ann", "tea", 4.0))
    learner.scores.restore({"MAE": (1, float("inf"))})
    assert {series[1][1] for series in of_learner(learner, 0) if series[0] is SCORE} == {"rmse"}


def test_how_well_a_learner_ranks_is_read() -> None:
    learner = learner_of(CONFIG)
    nothing = of_learner(learner, 1)
    assert [series for series in nothing if series[0] in OF_RANKING] == [(BEATEN, ("1",)), (CUT, ())]
    log = log_of(60)
    learn(learner, log[:31])
    learn(learner, [log[30], *log[31:]])  # the user's group goes on
    readings = of_learner(learner, 1)
    assert learner.ranking is not None and learner.ranking.cut == readings[CUT, ()] == 1
    shown = learner.ranking.values(known=learner.known("item"))
    assert readings[COVERAGE, ("1",)] == round(shown["coverage"] * 1e6) > 0
    found = {labels: value for (metric, labels), value in readings.items() if metric is RANKING}
    assert found == {
        ("1", ranker, name, over): round(shown[over][ranker][name] * 1e6)
        for over in (*SEGMENTS, "recent")
        for ranker in ("faded", "popularity")
        for name in ("hit", "ndcg", "mrr")
        if shown[over][ranker]["n"]
    }
    assert all(isinstance(value, int) for value in readings.values())
    assert not {series[0] for series in of_learner(learned((1, "ann", "tea", 4.0)), 0)} & {*OF_RANKING}


@pytest.mark.parametrize(("growing", "beaten"), [(True, 0), (False, 1)])
def test_a_baseline_that_ranks_as_well_is_counted(growing: bool, beaten: int) -> None:
    """What is popular changes, or each item comes as often as any other."""
    learner = learner_of(CONFIG)
    items = [f"i{at // 10 if growing else at % 4}" for at in range(100)]
    learn(learner, [[1 + at, "", "ann", item, "view", 1.0, 0, at] for at, item in enumerate(items)])
    assert of_learner(learner, 0)[BEATEN, ("0",)] == beaten


def test_what_was_restored_is_not_counted_again() -> None:
    changes, lost = Changes(), (REJECTED, ("diverged",))
    changes.begin({(READ, ()): 100, lost: 3})
    assert changes.since({(READ, ()): 100, lost: 3}) == {}
    assert changes.since({(READ, ()): 130, lost: 3, (ROWS, ("0", "user")): 9}) == {(READ, ()): 30}
    assert changes.since({(READ, ()): 130, lost: 4}) == {lost: 1}


def test_a_publisher_counts_what_redis_has_acknowledged(redis_url: str, redis_connection: Any) -> None:
    publisher = Publisher(redis_url, "t")
    publish(publisher, learned((1, "ann", "tea", 4.0), (2, "bob", "tea", 2.0)))
    readings = publisher.readings
    assert readings[PUBLISHED, ()] == 4  # two users, an item, and the header
    assert readings[PUBLISHED, ()] == int(redis_connection.hget("t:ledger", "writes"))
    assert readings[PUBLISH_COUNT, ()] == readings[PUBLISH_BUCKET, ("+Inf",)] == 1
    assert readings[REPLAYED, ()] == 0


def test_a_try_that_redis_does_not_take_is_counted_while_it_waits(tmp_path: Path) -> None:
    with embedded_redis(tmp_path) as url:
        admin = connect(url)
        waiting, reporting = (Tally.of_retries(tmp_path / "requests.jsonl") for _ in range(2))
        publisher = Publisher(url, "t", patience=60.0, retries=waiting)
        admin.config_set("maxmemory", 1)

        def mend() -> None:
            """Not before the retries are told of."""
            while of_retries(reporting)[RETRIES, ()] < 2:
                time.sleep(0.01)
            admin.config_set("maxmemory", 0)

        mending = threading.Thread(target=mend, daemon=True)
        mending.start()
        publish(publisher, learned((1, "ann", "tea", 4.0)))
        mending.join()
        assert publisher.readings[PUBLISHED, ()] == 3
        reporting.forget()
        assert waiting.count == 0
