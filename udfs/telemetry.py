"""Every metric that freshet reports, by name, unit and meaning; and how they come from what the plain objects know.

The objects of the job count for their own sake. Here their totals become readings, and a :class:`Board` hands what
changed to Flink's metric group, once an element: nothing is counted for each event. What works in a Python worker of
Flink 2.3 are counters and gauges of whole numbers; so what is not whole is scaled, and a distribution is counters of
buckets, as Prometheus has them.

Counters begin at 0 with each process, and what a restarted job learns again counts again, as Prometheus expects of
counters; the exact ledger is in Redis, and in the summary. But for retries: who waits for Redis reports nothing, so
they are counted in a file, and reported by who reads the log.
"""

from __future__ import annotations

import functools
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from udfs.metrics import values
from udfs.models import ITEM
from udfs.ranking import METRICS as RANKING_METRICS
from udfs.ranking import SEGMENTS

if TYPE_CHECKING:
    from udfs.intake import Intake
    from udfs.learner import Learner
    from udfs.ranking import RankingScores
    from udfs.tally import Tally

GROUP: Final = "freshet"
SCALE: Final = 1_000_000  # of metrics that are fractions
_PATH: Final = "flink_taskmanager_job_task_operator"


@dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes
    ----------
    unit
        What it counts or measures in.
    labels
        The names of its labels, besides those of Flink (``job_name``, ``operator_name``, ``subtask_index``, ...).
    """

    name: str
    kind: Literal["counter", "gauge"]
    unit: str
    help: str
    labels: tuple[str, ...] = ()

    @property
    def prometheus(self) -> str:
        """The name that Flink's reporter gives it: labels are part of the path.

        >>> REJECTED.prometheus
        'flink_taskmanager_job_task_operator_freshet_reason_rejected'
        """
        return "_".join((_PATH, GROUP, *self.labels, self.name))


ELEMENTS: Final = Metric(
    "elements",
    "counter",
    "elements",
    "Batches and beats that an operator has worked off. Beats come every 5 s, so that this moves also where no events "
    "come: while it stands still, the operator makes no progress.",
)
READ: Final = Metric("read", "counter", "events", "Records read from the log.")
REJECTED: Final = Metric(
    "rejected", "counter", "events", "Records that went to the dead letters, by reason.", ("reason",)
)
LATE: Final = Metric("late", "counter", "events", "Events set aside because they came too late.")
DUPLICATE: Final = Metric("duplicate", "counter", "events", "Events set aside because they had come before.")
TILE_LATE: Final = Metric("tile_late", "counter", "events", "Events that were learned, but too late for their window.")
LEARNED: Final = Metric("learned", "counter", "events", "Events learned.")
WAITING: Final = Metric(
    "waiting", "gauge", "events", "Accepted events that wait for the watermark, to be learned in order.", ("shard",)
)
EVENT_LAG: Final = Metric(
    "event_lag_ms",
    "gauge",
    "milliseconds",
    "How old the newest event of a batch was when Redis had what was learned from it, or, of a large batch, when it "
    "was learned. In a replay, as old as the log.",
    ("shard",),
)
ROWS: Final = Metric("rows", "gauge", "rows", "Rows of the model.", ("shard", "family"))
SCORE: Final = Metric(
    "score_micros",
    "gauge",
    "millionths",
    "A prequential metric (mae, rmse, ...) over the model's life, times 1,000,000.",
    ("shard", "metric"),
)
RANKING: Final = Metric(
    "ranking_micros",
    "gauge",
    "millionths",
    "hit, ndcg or mrr of the model and of each ranker beside it, over `all` events that were evaluated, the "
    "`recent` ones, or a segment of all (`new users`, `returning users`, `head items`, `tail items`), times 1,000,000.",
    ("shard", "ranker", "metric", "over"),
)
BEATEN: Final = Metric(
    "beaten",
    "gauge",
    "rankers",
    "Of a blend: baselines that rank the recent events as well as the model or better, by NDCG.",
    ("shard",),
)
COVERAGE: Final = Metric(
    "coverage_micros",
    "gauge",
    "millionths",
    "Share of the known items that was in a list of the model, about, times 1,000,000.",
    ("shard",),
)
CUT: Final = Metric(
    "cut_groups",
    "counter",
    "groups",
    "Groups of events that went on in another batch, and so were predicted as two; of a model of ratings, those of the "
    "events that were evaluated.",
)
BATCH_EVENTS_BUCKET: Final = Metric(
    "batch_events_bucket", "counter", "batches", "Batches that held no more than `le` events.", ("le",)
)
BATCH_EVENTS_SUM: Final = Metric("batch_events_sum", "counter", "events", "Events in all batches.")
BATCH_EVENTS_COUNT: Final = Metric("batch_events_count", "counter", "batches", "Batches that held events.")
PUBLISHED: Final = Metric(
    "published", "counter", "entities", "Users, items and headers whose writes Redis acknowledged."
)
REPLAYED: Final = Metric(
    "replayed",
    "counter",
    "events",
    "Events that are learned again after a restart. Until Redis is passed, what they teach is not written.",
)
RETRIES: Final = Metric(
    "redis_retries",
    "counter",
    "tries",
    "Tries that Redis did not take, and that were made again, by any operator over the life of the state.",
)
PUBLISH_BUCKET: Final = Metric(
    "publish_ms_bucket", "counter", "writes", "Writes that Redis acknowledged within `le` milliseconds.", ("le",)
)
PUBLISH_SUM: Final = Metric(
    "publish_ms_sum", "counter", "milliseconds", "Time of all writes, tries and pauses included."
)
PUBLISH_COUNT: Final = Metric("publish_ms_count", "counter", "writes", "Writes that Redis acknowledged.")

METRICS: Final = (
    ELEMENTS,
    READ,
    REJECTED,
    LATE,
    DUPLICATE,
    TILE_LATE,
    LEARNED,
    WAITING,
    EVENT_LAG,
    ROWS,
    SCORE,
    RANKING,
    BEATEN,
    COVERAGE,
    CUT,
    BATCH_EVENTS_BUCKET,
    BATCH_EVENTS_SUM,
    BATCH_EVENTS_COUNT,
    PUBLISHED,
    REPLAYED,
    RETRIES,
    PUBLISH_BUCKET,
    PUBLISH_SUM,
    PUBLISH_COUNT,
)

# Where rankings are evaluated only.
OF_RANKING: Final = (RANKING, BEATEN, COVERAGE, CUT)

# Flink's own, as its reporter names them, that the dashboard and the alerts use besides.
FLINK: Final[Mapping[str, str]] = {
    "flink_jobmanager_job_lastCheckpointCompletedTimestamp": "When the last checkpoint was completed, epoch ms; -1 "
    "before the first of this start.",
    "flink_jobmanager_job_lastCheckpointDuration": "How long it took, ms.",
    "flink_jobmanager_job_lastCheckpointFullSize": "Bytes that it refers to.",
    "flink_jobmanager_job_numRestarts": "Restarts of the job since it was submitted.",
    "flink_jobmanager_job_numberOfFailedCheckpoints": "Checkpoints that failed.",
    "flink_jobmanager_job_runningTime": "How long the job has been running, ms.",
    "flink_taskmanager_job_task_busyTimeMsPerSecond": "How busy a task is: 1,000 is always.",
    "flink_taskmanager_Status_JVM_Memory_Heap_Used": "Bytes of the JVM's heap in use.",
}

BATCH_BOUNDS: Final = (1, 10, 100, 1_000, 10_000, 100_000)
PUBLISH_BOUNDS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 5_000, 30_000)

Series = tuple[Metric, tuple[str, ...]]  # a metric, and the values of its labels
Readings = Mapping[Series, int]


class Buckets:
    """A distribution, as counts of the values up to each bound; each bucket holds those before it.

    >>> sizes = Buckets((1, 10))
    >>> for size in (1, 7, 400):
    ...     sizes.add(size)
    >>> sizes.cumulative, sizes.count, sizes.sum
    ({'1': 1, '10': 2, '+Inf': 3}, 3, 408)
    """

    def __init__(self, bounds: Sequence[int]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def add(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    @property
    def cumulative(self) -> dict[str, int]:
        names = (*map(str, self._bounds), "+Inf")
        return {name: sum(self._counts[: at + 1]) for at, name in enumerate(names)}

    @property
    def count(self) -> int:
        return sum(self._counts)

    @property
    def sum(self) -> int:
        return round(self._sum)


def of_buckets(buckets: Buckets, bucket: Metric, total: Metric, count: Metric) -> Readings:
    """Readings of a distribution, under the names of its three metrics."""
    readings: dict[Series, int] = {(bucket, (le,)): n for le, n in buckets.cumulative.items()}
    return readings | {(total, ()): buckets.sum, (count, ()): buckets.count}


def of_retries(tally: Tally) -> Readings:
    """How often Redis took no write, over the life of the state."""
    return {(RETRIES, ()): tally.count}


def of_intake(intake: Intake) -> Readings:
    """What an intake has counted over its state's life."""
    counts = intake.counts
    readings: dict[Series, int] = {(REJECTED, (reason,)): n for reason, n in counts.rejected.items()}
    return readings | {
        (READ, ()): counts.read,
        (LATE, ()): counts.late,
        (DUPLICATE, ()): counts.duplicate,
        (TILE_LATE, ()): counts.tile_late,
    }


def of_learner(learner: Learner, shard: int, now: int | None = None) -> Readings:
    """What the learner of a shard has counted over its state's life, and how it stands; ``now`` is the wall clock in
    ms, where it has just learned something."""
    of = str(shard)
    readings: dict[Series, int] = {
        (LEARNED, ()): learner.learned,
        (REJECTED, ("diverged",)): learner.diverged,
        (REJECTED, ("deleted",)): learner.deleted,
        (WAITING, (of,)): len(learner.waiting),
    }
    readings |= {(ROWS, (of, family)): learner.known(family) for family in learner.rows}
    for name, value in values(learner.scores.means).items():
        if name != "n" and value is not None:
            readings[SCORE, (of, name)] = round(value * SCALE)
    if learner.ranking is not None:
        readings |= of_ranking(learner.ranking, of, learner.known(ITEM), alarm=learner.evaluation is None)
    if now is not None:
        readings[EVENT_LAG, (of,)] = now - learner.updated_at
    return readings


def of_ranking(ranking: RankingScores, shard: str, known: int, *, alarm: bool) -> Readings:
    """How well a shard's model ranks, beside its baselines; ``known`` is how many items it knows.

    ``alarm``: whether it is told how many of them it does not beat. A model of ratings says what is liked, and not what
    comes next: that popularity tells the latter better alarms nobody.
    """
    shown = ranking.values(known)
    readings: dict[Series, int] = {
        (RANKING, (shard, ranker, metric, over)): round(of[metric] * SCALE)
        for over in (*SEGMENTS, "recent")
        for ranker, of in shown[over].items()
        for metric in RANKING_METRICS
        if of["n"]
    }
    if known:
        readings[COVERAGE, (shard,)] = round(shown["coverage"] * SCALE)
    if alarm:
        readings[BEATEN, (shard,)] = len(ranking.not_beaten(shown["recent"]))
    return readings | {(CUT, ()): ranking.cut}


class Changes:
    """What was added to totals since they were last told.

    >>> changes = Changes()
    >>> changes.begin({(READ, ()): 40})
    >>> [(metric.name, added) for (metric, _), added in changes.since({(READ, ()): 42, (LATE, ()): 1}).items()]
    [('read', 2), ('late', 1)]
    """

    def __init__(self) -> None:
        self._last: dict[Series, int] = {}

    def begin(self, readings: Readings) -> None:
        """What a process has from the ones before it is not counted again."""
        self._last |= readings

    def since(self, readings: Readings) -> dict[Series, int]:
        """By series, what was added; also nothing, the first time that a series is told."""
        added = {}
        for series, value in readings.items():
            if series[0].kind == "counter" and self._last.get(series) != value:
                added[series] = value - self._last.get(series, 0)
        self._last |= readings
        return added


class Board:
    """Hands readings to Flink's metric group. Several may share a group: what they add to a counter adds up.

    Parameters
    ----------
    group
        A ``pyflink.metrics.MetricGroup``.
    """

    def __init__(self, group: Any) -> None:
        self._group = group.add_group(GROUP)
        self._changes = Changes()
        self._counters: dict[Series, Any] = {}
        self._gauges: dict[Series, int] = {}

    def begin(self, readings: Readings) -> None:
        """Takes totals that earlier processes have reported."""
        self._changes.begin(readings)
        for series in readings:
            if series[0].kind == "counter":
                self._counter(series).inc(0)  # so that it is there, as 0, before it moves

    def show(self, readings: Readings) -> None:
        for series, added in self._changes.since(readings).items():
            self._counter(series).inc(added)
        for series, value in readings.items():
            if series[0].kind == "gauge":
                self._show_gauge(series, value)

    def _counter(self, series: Series) -> Any:
        if series not in self._counters:
            self._counters[series] = self._place(series).counter(series[0].name)
        return self._counters[series]

    def _show_gauge(self, series: Series, value: int) -> None:
        is_new = series not in self._gauges
        self._gauges[series] = value
        if is_new:
            self._place(series).gauge(series[0].name, functools.partial(self._gauges.__getitem__, series))

    def _place(self, series: Series) -> Any:
        metric, labels = series
        return functools.reduce(
            lambda group, label: group.add_group(*label), zip(metric.labels, labels, strict=True), self._group
        )
