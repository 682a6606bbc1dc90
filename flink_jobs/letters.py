"""Where dead letters go: to files, or to a topic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from pyflink.common import Encoder
from pyflink.datastream import DataStream
from pyflink.datastream.connectors.file_system import (
    BucketAssigner,
    FileSink,
    OutputFileConfig,
    RollingPolicy,
)
from pyflink.table import Schema, StreamTableEnvironment

from flink_jobs.topics import raw_table
from udfs.functions import LETTER, LetterFunction
from udfs.names import Uid


class DeadLetters(Protocol):
    """Takes what could not be learned."""

    def write(self, letters: DataStream, table_env: StreamTableEnvironment) -> None:
        """Adds the end of a stream of texts: lines of :func:`~udfs.deadletters.dead_letter`."""


@dataclass(frozen=True)
class LetterFiles:
    """Files in a folder, each complete with a checkpoint."""

    folder: str

    def write(self, letters: DataStream, table_env: StreamTableEnvironment) -> None:
        sink = (
            FileSink.for_row_format(self.folder, Encoder.simple_string_encoder())
            .with_bucket_assigner(BucketAssigner.base_path_bucket_assigner())
            .with_rolling_policy(RollingPolicy.on_checkpoint_rolling_policy())
            .with_output_file_config(
                OutputFileConfig.builder().with_part_prefix("dead-letters").with_part_suffix(".jsonl").build()
            )
            .build()
        )
        letters.sink_to(sink).uid(Uid.DEAD_LETTERS).name("dead letters").set_parallelism(1)


@dataclass(frozen=True)
class LetterTopic:
    """A topic of Kafka, whose records are the original ones with headers that tell the reason.

    A checkpoint waits until the brokers have all of them; what is replayed is written again.
    """

    topic: str
    properties: Mapping[str, str]

    def write(self, letters: DataStream, table_env: StreamTableEnvironment) -> None:
        records = (
            letters.process(LetterFunction(), LETTER)
            .uid(f"{Uid.DEAD_LETTERS}-records")
            .name("dead letters")
            .set_parallelism(1)
        )
        columns = (
            Schema.new_builder()
            .column("key", "BYTES")
            .column("value", "BYTES")
            .column("headers", "MAP<STRING, BYTES>")
            .column("time_ms", "BIGINT")
            .build()
        )
        table_env.create_temporary_view("letters", table_env.from_data_stream(records, columns))
        sink = (
            Schema.new_builder()
            .column("key", "BYTES")
            .column("value", "BYTES")
            .column_by_metadata("headers", "MAP<STRING, BYTES>")
            .column_by_metadata("timestamp", "TIMESTAMP_LTZ(3)")
            .build()
        )
        options = {"sink.delivery-guarantee": "at-least-once", "sink.parallelism": "1"}
        table_env.create_temporary_table("dead_letters", raw_table(self.topic, sink, options, self.properties))
        inserts = table_env.create_statement_set()
        inserts.add_insert_sql(
            "INSERT INTO dead_letters SELECT key, `value`, headers, TO_TIMESTAMP_LTZ(time_ms, 3) FROM letters"
        )
        inserts.attach_as_datastream()
