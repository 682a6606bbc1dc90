"""Where events come from. Files and the built-in generator live outside Flink: each is a feed behind a heartbeat. A
topic of Kafka is read by Flink's own connector, in the JVM."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pyflink.common import Types
from pyflink.datastream import DataStream, StreamExecutionEnvironment
from pyflink.table import Schema, StreamTableEnvironment, TableDescriptor

from flink_jobs.kafka import Topic
from flink_jobs.streams import keyed, keyed_type, retyped
from flink_jobs.uids import pin_uids
from udfs.functions import CHUNK, ReadFunction, ReadTopicFunction
from udfs.names import Uid
from udfs.reading import Feed
from udfs.records import FIELD, NULL, RECORD
from udfs.requests import Journal


@dataclass(frozen=True)
class FeedSource:
    """A bounded log that the job reads itself.

    Attributes
    ----------
    kind
        ``file`` or ``generator``: each kind has its own position in the state.
    journal
        Opens the file with requests to delete users.
    """

    kind: str
    open_feed: Callable[[], Feed]
    position_names: tuple[str, str]
    journal: Callable[[], Journal]
    merged: bool = True

    def chunks(self, env: StreamExecutionEnvironment, table_env: StreamTableEnvironment) -> DataStream:
        beats = heartbeat(table_env, f"'{self.kind}' AS log, beat")
        pin_uids(beats, "heartbeat")
        return (
            keyed(retyped(beats, keyed_type(Types.LONG())), Types.LONG())
            .process(ReadFunction(self.open_feed, self.journal), keyed_type(CHUNK))
            .uid(f"{Uid.READ}-{self.kind}")
            .name(f"read {self.kind}")
            .set_parallelism(1)
        )


@dataclass(frozen=True)
class TopicSource:
    """A topic of Kafka, read by Flink's own connector, whose offsets are in its checkpoints.

    Attributes
    ----------
    properties
        Of Kafka's clients.
    gather, discovery
        Milliseconds in which records are gathered before they cross to Python; and between looks for new partitions.
    """

    topic: Topic
    properties: Mapping[str, str]
    journal: Callable[[], Journal]
    gather: int
    discovery: int
    kind: str = "kafka"
    position_names: tuple[str, str] = ("partition", "offset")
    merged: bool = False

    def chunks(self, env: StreamExecutionEnvironment, table_env: StreamTableEnvironment) -> DataStream:
        table_env.create_temporary_table("topic", self._table())
        gathered = table_env.to_data_stream(table_env.sql_query(self._gathered()))
        _pin_source(gathered, f"{Uid.READ}-{self.kind}-topic")
        pin_uids(gathered, f"{Uid.READ}-{self.kind}-gather")
        # A worker is connected by its first element, and one that dies before that is waited for for minutes.
        beats = heartbeat(table_env, f"'{self.kind}' AS log, '' AS records")
        pin_uids(beats, "heartbeat")
        texts = keyed_type(Types.STRING())
        return (
            keyed(retyped(gathered, texts).union(retyped(beats, texts)), Types.STRING())
            .process(ReadTopicFunction(self.journal), keyed_type(CHUNK))
            .uid(f"{Uid.READ}-{self.kind}")
            .name(f"read {self.kind}")
            .set_parallelism(1)
        )

    def _table(self) -> TableDescriptor:
        columns = (
            Schema.new_builder()
            .column("key", "BYTES")
            .column("value", "BYTES")
            .column_by_metadata("partition", "INT", "partition", is_virtual=True)
            .column_by_metadata("offset", "BIGINT", "offset", is_virtual=True)
            .column_by_metadata("sent_at", "TIMESTAMP_LTZ(3)", "timestamp", is_virtual=True)
            .column_by_metadata("headers", "MAP<STRING, BYTES>", "headers", is_virtual=True)
            .column_by_expression("arrived", "PROCTIME()")
            .build()
        )
        starts = ";".join(f"partition:{number},offset:{at}" for number, at in self.topic.starts.items())
        options = {
            "topic": self.topic.name,
            "key.format": "raw",
            "key.fields": "key",
            "value.format": "raw",
            "value.fields-include": "EXCEPT_KEY",
            "scan.startup.mode": "specific-offsets",
            "scan.startup.specific-offsets": starts,
            "scan.topic-partition-discovery.interval": f"{self.discovery} ms",
            "properties.isolation.level": "read_committed",
            **{f"properties.{name}": value for name, value in self.properties.items()},
            "properties.group.id": self.topic.group,
        }
        table = TableDescriptor.for_connector("kafka").schema(columns)
        for name, value in options.items():
            table = table.option(name, value)
        return table.build()

    def _gathered(self) -> str:
        """One string of :class:`~udfs.records.Gathered` for what a partition gave in a while, in the order of offsets:
        each partition is read by one task and gathered by one."""
        record, field, null = (f"U&'\\{ord(mark):04X}'" for mark in (RECORD, FIELD, NULL))
        return f"""
            SELECT
              '{self.kind}' AS log,
              CONCAT_WS({field},
                CONCAT('{self.topic.name}-', CAST(`partition` AS STRING)),
                ARRAY_JOIN(ARRAY_AGG(CAST(`offset` AS STRING)), ','),
                ARRAY_JOIN(ARRAY_AGG(CONCAT_WS({field},
                  COALESCE(
                    CAST(EXTRACT(EPOCH FROM sent_at) * 1000 + EXTRACT(MILLISECOND FROM sent_at) AS STRING), {null}
                  ),
                  COALESCE(DECODE(key, 'ISO-8859-1'), {null}),
                  CASE WHEN CARDINALITY(headers) = 0 THEN '{{}}'
                  ELSE DECODE(ENCODE(JSON_STRING(headers), 'UTF-8'), 'ISO-8859-1') END,
                  COALESCE(DECODE(`value`, 'ISO-8859-1'), {null})
                )), {record})
              ) AS records
            FROM TABLE(TUMBLE(TABLE topic, DESCRIPTOR(arrived), INTERVAL '{self.gather / 1_000:.3f}' SECOND))
            GROUP BY `partition`, window_start, window_end
        """


def _pin_source(stream: DataStream, uid: str) -> None:
    """Gives the source of a stream a uid that does not depend on what SQL does on the way."""
    transformation = stream._j_data_stream.getTransformation()
    while transformation.getClass().getSimpleName() != "SourceTransformation":
        [transformation] = transformation.getInputs()
    transformation.setUid(uid)


def heartbeat(table_env: StreamTableEnvironment, row: str) -> DataStream:
    """A stream of one row a second, given as what SQL selects; ``beat`` is a number that may be in it."""
    table_env.execute_sql(
        "CREATE TEMPORARY TABLE IF NOT EXISTS heartbeat (beat BIGINT) "
        "WITH ('connector' = 'datagen', 'rows-per-second' = '1')"
    )
    return table_env.to_data_stream(table_env.sql_query(f"SELECT {row} FROM heartbeat"))
