"""Sources that live outside Flink: files, and the built-in generator. Each is a feed behind a heartbeat."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pyflink.common import Types
from pyflink.datastream import DataStream, StreamExecutionEnvironment
from pyflink.table import StreamTableEnvironment

from flink_jobs.streams import keyed, keyed_type, retyped
from flink_jobs.uids import pin_uids
from udfs.functions import CHUNK, ReadFunction
from udfs.names import Uid
from udfs.reading import Feed


@dataclass(frozen=True)
class FeedSource:
    """A bounded log that the job reads itself.

    Attributes
    ----------
    kind
        ``file`` or ``generator``: each kind has its own position in the state.
    journal
        The file with requests to delete users.
    """

    kind: str
    open_feed: Callable[[], Feed]
    position_names: tuple[str, str]
    journal: Path
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


def heartbeat(table_env: StreamTableEnvironment, row: str) -> DataStream:
    """A stream of one row a second, given as what SQL selects; ``beat`` is a number that may be in it."""
    table_env.execute_sql(
        "CREATE TEMPORARY TABLE IF NOT EXISTS heartbeat (beat BIGINT) "
        "WITH ('connector' = 'datagen', 'rows-per-second' = '1')"
    )
    return table_env.to_data_stream(table_env.sql_query(f"SELECT {row} FROM heartbeat"))
