"""The job, top to bottom:

    source -> intake -> learn (publishes what it learned) ---------------> Redis
                 |  \\-> windows (SQL) -> gathered tiles -> publish ------> Redis
                 |
                 \\----- and learn ---> dead letters ----------------------> files, or a topic

    catalogue's topic -> publish items -----------------------------------> Redis

Both ends are arguments: production, tests and benchmarks run this same topology.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from pyflink.common import Types
from pyflink.datastream import DataStream, StreamExecutionEnvironment
from pyflink.table import StreamTableEnvironment

from flink_jobs.letters import DeadLetters
from flink_jobs.shardkeys import shard_keys
from flink_jobs.streams import keyed, keyed_type, retyped, side_output
from flink_jobs.topics import TopicStream, heartbeat
from flink_jobs.uids import pin_uids
from flink_jobs.windows import Windows, gathered_windows
from udfs.functions import (
    BATCH,
    CHUNK,
    DEAD_LETTERS,
    TILE_FEED,
    IntakeFunction,
    LearnFunction,
    PublishItemsFunction,
    PublishTilesFunction,
    ReshardFunction,
)
from udfs.intake import IntakeConfig
from udfs.learner import LearnerConfig
from udfs.models import RowModel
from udfs.names import Uid
from udfs.publisher import Publisher

_RECORDS = Types.ROW_NAMED(["records"], [Types.STRING()])
_NOTHING = Types.INT()  # operators at the end of the job give nothing, but must have a type


class Source(Protocol):
    """Where chunks come from."""

    @property
    def position_names(self) -> tuple[str, str]:
        """How a position is called in a dead letter."""

    @property
    def merged(self) -> bool:
        """Whether its partitions arrive merged by time."""

    def chunks(self, env: StreamExecutionEnvironment, table_env: StreamTableEnvironment) -> DataStream:
        """A stream of :func:`~flink_jobs.streams.keyed_type` rows: a log's name, and an encoded chunk."""


@dataclass(frozen=True)
class Move:
    """Rows go to so many shards, by way of a folder: see :class:`~udfs.functions.ReshardFunction`."""

    shards: int
    folder: str


@dataclass(frozen=True)
class Job:
    """What the topology is made of.

    Attributes
    ----------
    items
        The topic with the catalogue, where it is in one.
    part
        How many inputs ended before this one: windows are new with each.
    keep
        For each span of a tile, the milliseconds that it stays in Redis.
    move
        Of a job that stands by: it learns nothing, and moves what is known to other shards.
    """

    source: Source
    intake: IntakeConfig
    learner: LearnerConfig
    model: Callable[[], RowModel]
    publisher: Callable[[], Publisher]
    windows: Windows | None
    keep: Mapping[str, int]
    dead_letters: DeadLetters
    shards: int
    part: int
    items: TopicStream | None = None
    move: Move | None = None


def build(env: StreamExecutionEnvironment, table_env: StreamTableEnvironment, job: Job) -> None:
    """Adds the whole job to the environment."""
    keys = shard_keys(job.shards)
    if job.move is not None:  # beats must reach both
        keys = list(dict.fromkeys(keys + shard_keys(job.move.shards)))
    chunks = job.source.chunks(env, table_env)
    decided = _intake(chunks, job, keys)
    learned = _learn(decided, job, keys)
    letters = side_output(decided, DEAD_LETTERS).union(side_output(learned, DEAD_LETTERS))
    job.dead_letters.write(letters, table_env)
    if job.windows is not None:
        _publish_tiles(table_env, side_output(decided, TILE_FEED), job, job.windows)
    if job.items is not None:
        _publish_items(table_env, job, job.items)


def _intake(chunks: DataStream, job: Job, keys: Sequence[str]) -> DataStream:
    function = IntakeFunction(job.intake, list(keys), job.publisher)
    return keyed(chunks, CHUNK).process(function, keyed_type(BATCH)).uid(Uid.INTAKE).name("intake").set_parallelism(1)


def _learn(batches: DataStream, job: Job, keys: Sequence[str]) -> DataStream:
    if job.move is None:
        function = LearnFunction(job.learner, job.model, list(keys), job.intake.epoch, job.publisher)
    else:
        function = ReshardFunction(shard_keys(job.shards), shard_keys(job.move.shards), job.move.folder)
    return keyed(batches, BATCH).process(function, _NOTHING).uid(Uid.LEARN).name("learn")


def _publish_tiles(table_env: StreamTableEnvironment, feed: DataStream, job: Job, windows: Windows) -> None:
    results = gathered_windows(table_env, feed, windows)
    pin_uids(results, f"{Uid.WINDOWS}-{job.part}")
    # A worker is connected by its first element, and one that dies before that is waited for for minutes.
    beats = heartbeat(table_env, "'' AS records")
    pin_uids(beats, f"{Uid.TILES}-{job.part}-heartbeat")
    function = PublishTilesFunction(job.keep, list(windows.event_types), job.part, job.publisher)
    both = retyped(results, _RECORDS).union(retyped(beats, _RECORDS))
    published = both.process(function, _NOTHING).uid(f"{Uid.TILES}-{job.part}-publish").name("publish tiles")
    published.set_parallelism(windows.parallelism)


def _publish_items(table_env: StreamTableEnvironment, job: Job, items: TopicStream) -> None:
    uid = f"{Uid.ITEMS}-{job.intake.run_id}"
    published = items.texts(table_env, "items", uid, f"{uid}-heartbeat").process(
        PublishItemsFunction(job.publisher), _NOTHING
    )
    published.uid(uid).name("publish items").set_parallelism(1)
