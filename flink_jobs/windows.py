"""Event-time windows in Flink SQL: tumbling tiles for users and items, and sessions of users.

The feed is one string a chunk, since what crosses between Python and the JVM crosses in batches; SQL explodes
it. Larger tiles are rolled up from the smallest. The number of distinct counterparts is exact and cheap
because each event already says whether it is the first of its user and item in the UTC day, so it is a sum
like the others. Sums are decimal: they do not depend on order. What comes out is gathered into strings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from pyflink.common import WatermarkStrategy
from pyflink.common.watermark_strategy import TimestampAssigner
from pyflink.datastream import DataStream
from pyflink.table import Schema, StreamTableEnvironment

from serving.schema import span_ms

# Results of one window are gathered into so many strings: enough to spread over subtasks, and to keep each
# string short of what one write to Redis should be.
_BUCKETS: Final = 16
_GATHERED: Final = 20_000  # events whose results are gathered at once, roughly
_LONGEST: Final = 50 * 365 * 86_400_000  # a span that SQL can write in seconds
_UNIT, _RECORD = "U&'\\001F'", "U&'\\001E'"
_DECIMAL: Final = "DECIMAL(38, 6)"


@dataclass(frozen=True)
class Windows:
    """Which windows are computed.

    Attributes
    ----------
    spans
        Such as ``("5m", "1h", "1d")``: each a multiple of the first.
    event_types
        The types that are counted apart.
    session_gap
        Such as ``30m``.
    gather
        Results cross to Python in groups, each of what closes within so many milliseconds of event time: a
        multiple of the first span, see :func:`gathering_span`.
    """

    spans: Sequence[str]
    event_types: Sequence[str]
    session_gap: str
    gather: int


def gathering_span(smallest: int, density: float) -> int:
    """Milliseconds of event time in which some 20,000 events come, in whole windows of the smallest span.

    A fixed span would make groups of one on a sparse log and huge ones on a dense log.

    Parameters
    ----------
    smallest
        Milliseconds of the smallest tile.
    density
        Events a millisecond where the log is densest.

    >>> gathering_span(300_000, 0.1), gathering_span(300_000, 1e-6)
    (300000, 20000100000)
    """
    return smallest * min(max(1, round(_GATHERED / density / smallest)), _LONGEST // smallest)


class _Watermark(TimestampAssigner):  # type: ignore[misc]
    """The intake's watermark, as the time of the feed's element."""

    def extract_timestamp(self, value: Any, record_timestamp: int) -> int:
        return int(value[1])


def _interval(span: str) -> str:
    return _seconds(span_ms(span))


def _seconds(millis: int) -> str:
    return f"INTERVAL '{millis // 1000}' SECOND(10)"


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def gathered_windows(table_env: StreamTableEnvironment, feed: DataStream, windows: Windows) -> DataStream:
    """The results of all windows over the feed, as rows of one string for ``udfs.publisher.tile_entities``."""
    _create_events(table_env, feed)
    results = [result for family in ("user", "item") for result in _tiles(table_env, family, windows)]
    results.append(_sessions(windows))
    table_env.create_temporary_view("results", table_env.sql_query(" UNION ALL ".join(results)))
    gathered = table_env.sql_query(
        f"""
        SELECT ARRAY_JOIN(ARRAY_AGG(record), {_RECORD}) AS records
        FROM TABLE(TUMBLE(TABLE results, DESCRIPTOR(closed_at), {_seconds(windows.gather)}))
        GROUP BY bucket, window_start, window_end
        """
    )
    return table_env.to_data_stream(gathered)


def _create_events(table_env: StreamTableEnvironment, feed: DataStream) -> None:
    """The table ``events``, one row an accepted event, with the intake's watermark."""
    strategy = WatermarkStrategy.for_monotonous_timestamps().with_timestamp_assigner(_Watermark())
    timed = feed.assign_timestamps_and_watermarks(strategy)
    schema = Schema.new_builder().column("events", "STRING").column("watermark", "BIGINT").build()
    table_env.create_temporary_view("feed", table_env.from_data_stream(timed, schema))
    exploded = table_env.sql_query(
        f"""
        SELECT
          SPLIT_INDEX(event, {_UNIT}, 0) AS user_id,
          SPLIT_INDEX(event, {_UNIT}, 1) AS item_id,
          SPLIT_INDEX(event, {_UNIT}, 2) AS event_type,
          CAST(SPLIT_INDEX(event, {_UNIT}, 3) AS {_DECIMAL}) AS event_value,
          TO_TIMESTAMP_LTZ(CAST(SPLIT_INDEX(event, {_UNIT}, 4) AS BIGINT), 3) AS happened_at,
          CAST(SPLIT_INDEX(event, {_UNIT}, 5) AS BIGINT) AS first_of_day
        FROM feed CROSS JOIN UNNEST(SPLIT(events, {_RECORD})) AS exploded(event)
        """
    )
    # The rows take over the watermark of the feed, which no accepted event is behind: none is dropped.
    typed = (
        Schema.new_builder()
        .column("user_id", "STRING")
        .column("item_id", "STRING")
        .column("event_type", "STRING")
        .column("event_value", _DECIMAL)
        .column("happened_at", "TIMESTAMP_LTZ(3)")
        .column("first_of_day", "BIGINT")
        .watermark("happened_at", "SOURCE_WATERMARK()")
        .build()
    )
    stream = table_env.to_data_stream(exploded)
    table_env.create_temporary_view("events", table_env.from_data_stream(stream, typed))


def _tiles(table_env: StreamTableEnvironment, family: str, windows: Windows) -> list[str]:
    """Creates the views of a family's tiles, and gives for each span the query of its records."""
    types = [f"type_{n}" for n in range(len(windows.event_types))]
    counts = "".join(
        f", COUNT(*) FILTER (WHERE event_type = {_text(name)}) AS {column}"
        for name, column in zip(windows.event_types, types, strict=True)
    )
    sums = "".join(f", SUM({column}) AS {column}" for column in types)
    queries = []
    for number, span in enumerate(windows.spans):
        name = f"{family}_tiles_{number}"
        # Rolled up from the largest smaller span that divides this one.
        base = max((k for k in range(number) if span_ms(span) % span_ms(windows.spans[k]) == 0), default=None)
        if base is None:
            source, time, entity = "events", "happened_at", f"{family}_id"
            columns = f"COUNT(*) AS n, SUM(event_value) AS total, SUM(first_of_day) AS met{counts}"
        else:
            source, time, entity = f"{family}_rolled_{base}", "closed_at", "id"
            columns = f"SUM(n) AS n, SUM(total) AS total, SUM(met) AS met{sums}"
        query = f"""
            SELECT
              {entity} AS id, window_start AS started_at, window_end AS ended_at, window_time AS closed_at, {columns}
            FROM TABLE(TUMBLE(TABLE {source}, DESCRIPTOR({time}), {_interval(span)}))
            GROUP BY {entity}, window_start, window_end, window_time
        """
        table_env.create_temporary_view(name, table_env.sql_query(query))
        rolled = table_env.sql_query(
            f"SELECT id, closed_at, n, total, met{''.join(f', {c}' for c in types)} FROM {name}"
        )
        table_env.create_temporary_view(f"{family}_rolled_{number}", rolled)
        queries.append(_record(name, family, span, types))
    return queries


def _sessions(windows: Windows) -> str:
    """The query of the records of users' sessions: it ends with the last event, not with the gap."""
    sessions = f"""(
        SELECT user_id AS id, MIN(happened_at) AS started_at, MAX(happened_at) AS ended_at,
          window_time AS closed_at, COUNT(*) AS n, SUM(event_value) AS total, COUNT(DISTINCT item_id) AS met
        FROM TABLE(
          SESSION(TABLE events PARTITION BY user_id, DESCRIPTOR(happened_at), {_interval(windows.session_gap)})
        )
        GROUP BY user_id, window_start, window_end, window_time
    )"""
    return _record(sessions, "user", "session", [])


def _record(source: str, family: str, span: str, types: Sequence[str]) -> str:
    counts = "".join(f", CAST({column} AS STRING)" for column in types)
    return f"""
        SELECT
          CONCAT_WS({_UNIT}, '{family}', '{span}', id, CAST(started_at AS STRING), CAST(ended_at AS STRING),
            CAST(n AS STRING), CAST(total AS STRING), CAST(met AS STRING){counts}) AS record,
          ABS(MOD(HASH_CODE(id), {_BUCKETS})) AS bucket,
          closed_at
        FROM {source}
    """
