"""Event-time windows in Flink SQL: tumbling tiles for users and items, and sessions of users.

The feed is strings of events, since what crosses between Python and the JVM crosses in batches; SQL explodes
them. Larger tiles are rolled up from the smallest. No window keeps a set: each event says how many distinct
counterparts it adds to its day and its session, so their number is a sum like the others. Values are summed as two
integers: sums do not depend on order. What comes out is gathered into strings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from pyflink.datastream import DataStream
from pyflink.java_gateway import get_gateway
from pyflink.table import Schema, StreamTableEnvironment, Table

from serving.schema import span_ms
from udfs.tilefeed import RECORD, UNIT

# Results of one window are gathered into so many strings: enough to spread over subtasks, and to keep each
# string short of what one write to Redis should be.
_BUCKETS: Final = 16
_GATHERED: Final = 20_000  # events whose results are gathered at once, roughly
_LONGEST: Final = 50 * 365 * 86_400_000  # a span that SQL can write in seconds
_UNIT, _RECORD = (f"U&'\\{ord(separator):04X}'" for separator in (UNIT, RECORD))


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


def _interval(span: str) -> str:
    return _seconds(span_ms(span))


def _seconds(millis: int) -> str:
    return f"INTERVAL '{millis // 1000}' SECOND(10)"


def gathered_windows(table_env: StreamTableEnvironment, feed: DataStream, windows: Windows) -> DataStream:
    """The results of all windows over the feed, as rows of one string for ``udfs.entities.tile_entities``."""
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
    chunks = (
        Schema.new_builder()
        .column("events", "STRING")
        .column("watermark", "BIGINT")
        .column_by_expression("reached", "TO_TIMESTAMP_LTZ(`watermark`, 3)")
        .watermark("reached", "reached")
        .build()
    )
    table_env.create_temporary_view("feed", table_env.from_data_stream(feed, chunks))
    split = table_env.sql_query(
        f"""
        SELECT reached, SPLIT(event, {_UNIT}) AS fields
        FROM feed CROSS JOIN UNNEST(SPLIT(events, {_RECORD})) AS exploded(event)
        """
    )
    # A table of its own: otherwise SQL would split a record again for each of its fields. One that does not say that it
    # takes over the watermark swallows it: then no window closes before the end of the input.
    fields = (
        Schema.new_builder()
        .column("reached", "TIMESTAMP_LTZ(3)")
        .column("fields", "ARRAY<STRING>")
        .watermark("reached", "SOURCE_WATERMARK()")
        .build()
    )
    table_env.create_temporary_view("records", _restated(table_env, split, fields))
    exploded = table_env.sql_query(
        """
        SELECT
          fields[1] AS user_id,
          fields[2] AS item_id,
          CAST(fields[3] AS INT) AS event_type,
          CAST(fields[4] AS BIGINT) AS time_ms,
          TO_TIMESTAMP_LTZ(CAST(fields[4] AS BIGINT), 3) AS happened_at,
          CAST(fields[5] AS BIGINT) AS value_high,
          CAST(fields[6] AS BIGINT) AS value_low,
          CAST(fields[7] AS BIGINT) AS new_in_day,
          CAST(fields[8] AS BIGINT) AS new_in_session
        FROM records
        """
    )
    # The rows take over the watermark of the feed, which no accepted event is behind: none is dropped.
    typed = (
        Schema.new_builder()
        .column("user_id", "STRING")
        .column("item_id", "STRING")
        .column("event_type", "INT")
        .column("time_ms", "BIGINT")
        .column("happened_at", "TIMESTAMP_LTZ(3)")
        .column("value_high", "BIGINT")
        .column("value_low", "BIGINT")
        .column("new_in_day", "BIGINT")
        .column("new_in_session", "BIGINT")
        .watermark("happened_at", "SOURCE_WATERMARK()")
        .build()
    )
    table_env.create_temporary_view("events", _restated(table_env, exploded, typed))


def _restated(table_env: StreamTableEnvironment, table: Table, schema: Schema) -> Table:
    """The table under another schema, over a stream of Flink's own rows: nothing is converted on the way."""
    rows = get_gateway().jvm.Class.forName("org.apache.flink.table.data.RowData")
    resolved = table._j_table.getResolvedSchema().toPhysicalRowDataType().bridgedTo(rows)
    stream = table_env._j_tenv.toDataStream(table._j_table, resolved)
    return table_env.from_data_stream(DataStream(stream), schema)


def _tiles(table_env: StreamTableEnvironment, family: str, windows: Windows) -> list[str]:
    """Creates the views of a family's tiles, and gives for each span the query of its records."""
    types = [f"type_{n}" for n in range(len(windows.event_types))]
    sums = ["value_high", "value_low", "met"]
    queries = []
    for number, span in enumerate(windows.spans):
        name = f"{family}_tiles_{number}"
        # Rolled up from the largest smaller span that divides this one.
        base = max((k for k in range(number) if span_ms(span) % span_ms(windows.spans[k]) == 0), default=None)
        if base is None:
            source, time, entity = "events", "happened_at", f"{family}_id"
            counts = ["COUNT(*) AS n"]
            counts += [f"COUNT(*) FILTER (WHERE event_type = {n}) AS {column}" for n, column in enumerate(types)]
            sources = ["value_high", "value_low", "new_in_day"]
            columns = counts + [f"SUM({of}) AS {column}" for of, column in zip(sources, sums, strict=True)]
        else:
            source, time, entity = f"{family}_rolled_{base}", "closed_at", "id"
            columns = [f"SUM({column}) AS {column}" for column in ("n", *types, *sums)]
        query = f"""
            SELECT {entity} AS id, window_start, window_time AS closed_at, {", ".join(columns)}
            FROM TABLE(TUMBLE(TABLE {source}, DESCRIPTOR({time}), {_interval(span)}))
            GROUP BY {entity}, window_start, window_end, window_time
        """
        table_env.create_temporary_view(name, table_env.sql_query(query))
        rolled = table_env.sql_query(f"SELECT id, closed_at, n, {', '.join(types + sums)} FROM {name}")
        table_env.create_temporary_view(f"{family}_rolled_{number}", rolled)
        start = "EXTRACT(EPOCH FROM window_start) * 1000"
        queries.append(_record(name, family, span, start, f"{start} + {span_ms(span)}", types))
    return queries


def _sessions(windows: Windows) -> str:
    """The query of the records of users' sessions: it ends with the last event, not with the gap."""
    sessions = f"""(
        SELECT user_id AS id, MIN(time_ms) AS began, MAX(time_ms) AS ended, window_time AS closed_at, COUNT(*) AS n,
          SUM(value_high) AS value_high, SUM(value_low) AS value_low, SUM(new_in_session) AS met
        FROM TABLE(
          SESSION(TABLE events PARTITION BY user_id, DESCRIPTOR(happened_at), {_interval(windows.session_gap)})
        )
        GROUP BY user_id, window_start, window_end, window_time
    )"""
    return _record(sessions, "user", "session", "began", "ended", [])


def _record(source: str, family: str, span: str, start: str, end: str, types: Sequence[str]) -> str:
    numbers = [start, end, "n", "value_high", "value_low", "met", *types]
    return f"""
        SELECT
          CONCAT_WS({_UNIT}, '{family}', '{span}', id, {", ".join(f"CAST({n} AS STRING)" for n in numbers)}) AS record,
          ABS(MOD(HASH_CODE(id), {_BUCKETS})) AS bucket,
          closed_at
        FROM {source}
    """
