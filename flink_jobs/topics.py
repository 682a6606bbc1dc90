"""Topics of Kafka as streams, read by Flink's own connector in the JVM: many records cross to Python as one string."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pyflink.common import Types
from pyflink.datastream import DataStream
from pyflink.table import Schema, StreamTableEnvironment, TableDescriptor

from flink_jobs.streams import keyed_type, retyped
from flink_jobs.uids import pin_uids
from udfs.records import FIELD, NULL, RECORD


@dataclass(frozen=True)
class TopicStream:
    """A topic, whose offsets are in the job's checkpoints.

    Attributes
    ----------
    table
        The name of its table in SQL.
    properties
        Of Kafka's clients.
    gather, discovery
        Milliseconds in which records are gathered before they cross to Python; and between looks for new partitions.
    starts
        By partition, the offsets where it begins; None: the earliest.
    """

    topic: str
    table: str
    properties: Mapping[str, str]
    group: str
    gather: int
    discovery: int
    starts: Mapping[int, int] | None = None

    def texts(self, table_env: StreamTableEnvironment, log: str, uid: str, beats_uid: str) -> DataStream:
        """Rows of the log's name and a text: of :class:`~udfs.records.Gathered`, or once a second an empty one.

        ``uid``, ``beats_uid``: what the uids of their operators begin with.
        """
        table_env.create_temporary_table(self.table, self._table())
        gathered = table_env.to_data_stream(table_env.sql_query(self._gathered(log)))
        _pin_source(gathered, f"{uid}-topic")
        pin_uids(gathered, f"{uid}-gather")
        # A worker is connected by its first element, and one that dies before that is waited for for minutes.
        beats = heartbeat(table_env, f"'{log}' AS log, '' AS records")
        pin_uids(beats, beats_uid)
        kind = keyed_type(Types.STRING())
        return retyped(gathered, kind).union(retyped(beats, kind))

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
        options = {
            **self._start(),
            "scan.topic-partition-discovery.interval": f"{self.discovery} ms",
            "properties.isolation.level": "read_committed",
        }
        return raw_table(self.topic, columns, options, {**self.properties, "group.id": self.group})

    def _start(self) -> dict[str, str]:
        if self.starts is None:
            return {"scan.startup.mode": "earliest-offset"}
        starts = ";".join(f"partition:{number},offset:{at}" for number, at in self.starts.items())
        return {"scan.startup.mode": "specific-offsets", "scan.startup.specific-offsets": starts}

    def _gathered(self, log: str) -> str:
        """One string of :class:`~udfs.records.Gathered` for what a partition gave in a while, in the order of offsets:
        each partition is read by one task and gathered by one."""
        record, field, null = (f"U&'\\{ord(mark):04X}'" for mark in (RECORD, FIELD, NULL))
        return f"""
            SELECT
              '{log}' AS log,
              CONCAT_WS({field},
                CONCAT('{self.topic}-', CAST(`partition` AS STRING)),
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
            FROM TABLE(TUMBLE(TABLE {self.table}, DESCRIPTOR(arrived), INTERVAL '{self.gather / 1_000:.3f}' SECOND))
            GROUP BY `partition`, window_start, window_end
        """


def raw_table(
    topic: str, columns: Schema, options: Mapping[str, str], properties: Mapping[str, str]
) -> TableDescriptor:
    """A topic as a table whose columns ``key`` and ``value`` are a record's bytes as they are.

    Parameters
    ----------
    options
        Of the connector.
    properties
        Of Kafka's clients.
    """
    table = TableDescriptor.for_connector("kafka").schema(columns)
    fixed = {
        "topic": topic,
        "key.format": "raw",
        "key.fields": "key",
        "value.format": "raw",
        "value.fields-include": "EXCEPT_KEY",
    }
    of_clients = {f"properties.{name}": value for name, value in properties.items()}
    for name, value in {**fixed, **options, **of_clients}.items():
        table = table.option(name, value)
    return table.build()


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
