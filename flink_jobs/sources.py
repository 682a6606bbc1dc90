"""Sources that live outside Flink: files, and the built-in generator. Each is a feed behind a heartbeat."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pyflink.datastream import DataStream, StreamExecutionEnvironment
from pyflink.table import StreamTableEnvironment

from flink_jobs.uids import pin_uids
from udfs.functions import CHUNK_TYPE, ReadFunction
from udfs.names import Uid
from udfs.reading import Feed


@dataclass(frozen=True)
class FeedSource:
    """A bounded log that the job reads itself.

    Attributes
    ----------
    kind
        ``file`` or ``generator``: each kind has its own position in the state.
    """

    kind: str
    open_feed: Callable[[], Feed]
    position_names: tuple[str, str]
    merged: bool = True

    def chunks(self, env: StreamExecutionEnvironment, table_env: StreamTableEnvironment) -> DataStream:
        table_env.execute_sql(
            "CREATE TEMPORARY TABLE heartbeat (beat BIGINT) WITH ('connector' = 'datagen', 'rows-per-second' = '1')"
        )
        beats = table_env.to_data_stream(table_env.from_path("heartbeat"))
        pin_uids(beats, "heartbeat")
        log = self.kind
        return (
            beats.key_by(lambda _: log, key_type=CHUNK_TYPE.get_field_types()[0])
            .process(ReadFunction(self.open_feed), CHUNK_TYPE)
            .uid(f"{Uid.READ}-{self.kind}")
            .name(f"read {self.kind}")
            .set_parallelism(1)
        )
