"""Where events come from. Files and the built-in generator live outside Flink: each is a feed behind a heartbeat. A
topic of Kafka is read by Flink's own connector, in the JVM."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pyflink.common import Types
from pyflink.datastream import DataStream, StreamExecutionEnvironment
from pyflink.table import StreamTableEnvironment

from flink_jobs.streams import keyed, keyed_type, retyped
from flink_jobs.topics import TopicStream, heartbeat
from flink_jobs.uids import pin_uids
from udfs.functions import CHUNK, ReadFunction, ReadTopicFunction
from udfs.names import Uid
from udfs.reading import Feed
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
    """A topic of Kafka."""

    stream: TopicStream
    journal: Callable[[], Journal]
    kind: str = "kafka"
    position_names: tuple[str, str] = ("partition", "offset")
    merged: bool = False

    def chunks(self, env: StreamExecutionEnvironment, table_env: StreamTableEnvironment) -> DataStream:
        texts = self.stream.texts(table_env, self.kind, f"{Uid.READ}-{self.kind}", "heartbeat")
        return (
            keyed(texts, Types.STRING())
            .process(ReadTopicFunction(self.journal), keyed_type(CHUNK))
            .uid(f"{Uid.READ}-{self.kind}")
            .name(f"read {self.kind}")
            .set_parallelism(1)
        )
