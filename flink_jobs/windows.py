"""Event-time windows in Flink SQL: tumbling tiles for users and items, and sessions of users.

The feed is strings of partial sums, since what crosses between Python and the JVM crosses in batches; SQL explodes
them. The letter of a family is part of the id, so that one operator has the windows of both. Larger tiles are rolled
up from the smallest. No window keeps a set: each record says how many distinct counterparts it adds to its day or its
session, so their number is a sum like the others. Sums are of integers: they do not depend on order. What comes out
is gathered into strings.
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
_SUMS: Final = ("met", "value_high", "value_low")  # events and distinct counterparts, paired, and both limbs
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
    parallelism
        Subtasks of each of them, as the configuration says to SQL.
    """

    spans: Sequence[str]
    event_types: Sequence[str]
    session_gap: str
    gather: int
    parallelism: int


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
    types = [f"types_{n}" for n in range(-(-len(windows.event_types) // 2))]
    _create_chunks(table_env, feed)
    _create_records(table_env, "tiles", [*_SUMS, *types])
    _create_records(table_env, "sessions", _SUMS)
    results = [*_tiles(table_env, [*_SUMS, *types], windows), _sessions(windows)]
    table_env.create_temporary_view("results", table_env.sql_query(" UNION ALL ".join(results)))
    gathered = table_env.sql_query(
        f"""
        SELECT ARRAY_JOIN(ARRAY_AGG(record), {_RECORD}) AS records
        FROM TABLE(TUMBLE(TABLE results, DESCRIPTOR(closed_at), {_seconds(windows.gather)}))
        GROUP BY bucket, window_start, window_end
        """
    )
    return table_env.to_data_stream(gathered)


def _create_chunks(table_env: StreamTableEnvironment, feed: DataStream) -> None:
    """The table ``feed`` of :class:`~udfs.tilefeed.TileFeed`, with the intake's watermark."""
    chunks = (
        Schema.new_builder()
        .column("tiles", "STRING")
        .column("sessions", "STRING")
        .column("watermark", "BIGINT")
        .column_by_expression("reached", "TO_TIMESTAMP_LTZ(`watermark`, 3)")
        .watermark("reached", "reached")
        .build()
    )
    table_env.create_temporary_view("feed", table_env.from_data_stream(feed, chunks))


def _create_records(table_env: StreamTableEnvironment, name: str, sums: Sequence[str]) -> None:
    """A table ``partial_{name}``, one row a record in that column of the feed."""
    split = table_env.sql_query(
        f"""
        SELECT reached, SPLIT(record, {_UNIT}) AS fields
        FROM feed CROSS JOIN UNNEST(SPLIT({name}, {_RECORD})) AS exploded(record)
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
    table_env.create_temporary_view(f"{name}_fields", _restated(table_env, split, fields))
    numbers = ", ".join(f"CAST(fields[{place}] AS BIGINT) AS {column}" for place, column in enumerate(sums, 3))
    exploded = table_env.sql_query(
        f"""
        SELECT
          fields[1] AS id,
          CAST(fields[2] AS BIGINT) AS time_ms,
          TO_TIMESTAMP_LTZ(CAST(fields[2] AS BIGINT), 3) AS happened_at,
          {numbers}
        FROM {name}_fields
        """
    )
    # The rows take over the watermark of the feed, which no accepted event is behind: none is dropped.
    typed = (
        Schema.new_builder()
        .column("id", "STRING")
        .column("time_ms", "BIGINT")
        .column("happened_at", "TIMESTAMP_LTZ(3)")
    )
    for column in sums:
        typed = typed.column(column, "BIGINT")
    schema = typed.watermark("happened_at", "SOURCE_WATERMARK()").build()
    table_env.create_temporary_view(f"partial_{name}", _restated(table_env, exploded, schema))


def _restated(table_env: StreamTableEnvironment, table: Table, schema: Schema) -> Table:
    """The table under another schema, over a stream of Flink's own rows: nothing is converted on the way."""
    rows = get_gateway().jvm.Class.forName("org.apache.flink.table.data.RowData")
    resolved = table._j_table.getResolvedSchema().toPhysicalRowDataType().bridgedTo(rows)
    stream = table_env._j_tenv.toDataStream(table._j_table, resolved)
    return table_env.from_data_stream(DataStream(stream), schema)


def _tiles(table_env: StreamTableEnvironment, sums: Sequence[str], windows: Windows) -> list[str]:
    """Creates the views of the tiles, and gives for each span the query of its records."""
    summed = _summed(sums)
    queries = []
    for number, span in enumerate(windows.spans):
        # Rolled up from the largest smaller span that divides this one.
        base = max((k for k in range(number) if span_ms(span) % span_ms(windows.spans[k]) == 0), default=None)
        source, time = ("partial_tiles", "happened_at") if base is None else (f"rolled_{base}", "closed_at")
        query = f"""
            SELECT id, window_start, window_time AS closed_at, {summed}
            FROM TABLE(TUMBLE(TABLE {source}, DESCRIPTOR({time}), {_interval(span)}))
            GROUP BY id, window_start, window_end, window_time
        """
        table_env.create_temporary_view(f"tiles_{number}", table_env.sql_query(query))
        rolled = table_env.sql_query(f"SELECT id, closed_at, {', '.join(sums)} FROM tiles_{number}")
        table_env.create_temporary_view(f"rolled_{number}", rolled)
        start = "EXTRACT(EPOCH FROM window_start) * 1000"
        queries.append(_record(f"tiles_{number}", span, start, f"{start} + {span_ms(span)}", sums))
    return queries


def _sessions(windows: Windows) -> str:
    """The query of the records of users' sessions: it ends with the last event, not with the gap."""
    sessions = f"""(
        SELECT id, MIN(time_ms) AS began, MAX(time_ms) AS ended, window_time AS closed_at, {_summed(_SUMS)}
        FROM TABLE(
          SESSION(TABLE partial_sessions PARTITION BY id, DESCRIPTOR(happened_at), {_interval(windows.session_gap)})
        )
        GROUP BY id, window_start, window_end, window_time
    )"""
    return _record(sessions, "session", "began", "ended", _SUMS)


def _summed(columns: Sequence[str]) -> str:
    return ", ".join(f"SUM({column}) AS {column}" for column in columns)


def _record(source: str, span: str, start: str, end: str, sums: Sequence[str]) -> str:
    numbers = ", ".join(f"CAST({number} AS STRING)" for number in (start, end, *sums))
    return f"""
        SELECT
          CONCAT_WS({_UNIT}, '{span}', id, {numbers}) AS record,
          ABS(MOD(HASH_CODE(id), {_BUCKETS})) AS bucket,
          closed_at
        FROM {source}
    """
