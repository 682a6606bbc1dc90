"""The Redis schema: tiles and windows of them."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.connection import connect, without_password
from serving.schema import (
    Keys,
    Tile,
    decode_tiles,
    decode_vector,
    encode_vector,
    merge,
    span_ms,
    tile_field,
    version,
    window,
)

MINUTE, HOUR, DAY = 60_000, 3_600_000, 86_400_000


def tiles_of(span: str, starts: list[int]) -> dict[str, dict[int, Tile]]:
    return {span: {start: Tile(start, 1, 2.0, 1, {"view": 1}) for start in starts}}


@pytest.mark.parametrize(
    ("as_of", "expected"),
    [
        (HOUR, 12),  # the tiles that end in (0, 1 h]
        (HOUR - 1, 11),
        (HOUR + 1, 12),
        (HOUR + 5 * MINUTE - 1, 12),
        (HOUR + 5 * MINUTE, 11),
        (2 * HOUR - 1, 1),
        (2 * HOUR, 0),
        (0, 0),
        (10**15, 0),
    ],
)
def test_the_last_hour_is_the_closed_tiles_that_end_in_it(as_of: int, expected: int) -> None:
    tiles = tiles_of("5m", list(range(0, HOUR, 5 * MINUTE)))
    last = window(tiles, "1h", as_of)
    assert (last.start, last.events, last.sum, last.distinct) == (as_of - HOUR, expected, 2.0 * expected, expected)
    assert last.types == ({"view": expected} if expected else {})


@given(
    st.sets(st.integers(0, 60), max_size=30),
    st.integers(0, 70 * MINUTE * 5),
    st.sampled_from(["5m", "10m", "1h"]),
)
def test_windows_are_by_the_book(slots: set[int], as_of: int, span: str) -> None:
    tiles = tiles_of("5m", [slot * 5 * MINUTE for slot in slots])
    ends = [(slot + 1) * 5 * MINUTE for slot in slots]
    last = window(tiles, span, as_of)
    assert last.events == sum(1 for end in ends if as_of - span_ms(span) < end <= as_of)


def test_a_span_is_read_from_the_coarsest_tiles_that_divide_it_twice_or_more() -> None:
    tiles = {**tiles_of("5m", [0]), **tiles_of("1h", [0, HOUR]), **tiles_of("1d", [0])}
    assert window(tiles, "1h", HOUR).events == 1
    assert window(tiles, "5m", 5 * MINUTE).events == 1
    assert window(tiles, "1d", DAY).events == 2
    assert window(tiles, "2d", DAY).events == 1
    assert window(tiles_of("1d", [0]), "1d", DAY).events == 1


def test_a_span_that_no_tile_divides_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"no tile divides the span '7m'; there are tiles of 5m, 1h"):
        window({**tiles_of("5m", [0]), **tiles_of("1h", [0])}, "7m", HOUR)
    assert window({}, "7m", HOUR) == Tile(HOUR - 7 * MINUTE, 0, 0.0, 0, {})


@pytest.mark.parametrize("text", ["", "5", "m", "0m", "-5m", "5 m", "5mm", "1.5h", "5M", "1w", "\u0665m", "1hd"])
def test_what_is_no_span(text: str) -> None:
    with pytest.raises(ValueError, match="is not a span; write a whole number and a unit"):
        span_ms(text)


def test_spans() -> None:
    assert [span_ms(text) for text in ("100ms", "30s", "5m", "2h", "1d")] == [100, 30_000, 300_000, 7_200_000, DAY]


def test_parts_of_a_window_add_up() -> None:
    blob = orjson.dumps({"n": 1, "sum": 0.5, "distinct": 1, "types": {"buy": 1}})
    fields = {tile_field("1h", HOUR, part).encode(): blob for part in range(3)}
    fields |= {b"bias": b"1", b"t:1d:0": blob}
    tiles = decode_tiles(fields)
    assert tiles == {"1h": {HOUR: Tile(HOUR, 3, 1.5, 3, {"buy": 3})}, "1d": {0: Tile(0, 1, 0.5, 1, {"buy": 1})}}
    assert tiles["1h"][HOUR].mean == 0.5 and merge([], 0).mean is None


parts = st.tuples(st.integers(0, 10**13 - 1), st.integers(0, 10**8 - 1), st.integers(0, 10**16 - 1))


@given(parts, parts)
def test_versions_order_as_text(one: tuple[int, int, int], other: tuple[int, int, int]) -> None:
    assert (version(*one) < version(*other)) == (one < other)


@given(st.lists(st.floats(width=32, allow_nan=False), max_size=8))
def test_vectors_are_float32(values: list[float]) -> None:
    blob = encode_vector(np.array(values))
    assert len(blob) == 4 * len(values)
    assert decode_vector(blob).tolist() == values
    assert decode_vector(None).shape == (0,)


def test_every_key_is_documented() -> None:
    keys = Keys("{prefix}")
    known = {
        keys.user("{id}"), keys.item("{id}"), keys.tail(0, "user", 1), keys.tail(0, "item", 1), keys.items(0),
        keys.model(0), keys.metrics, keys.ledger, keys.fence, keys.deleted,
    }  # fmt: skip
    names = {name for name in vars(Keys) if not name.startswith("_")} - {"prefix", "everything"}
    assert names == {"user", "item", "tail", "items", "model", "metrics", "ledger", "fence", "deleted"}
    page = (Path(__file__).parents[2] / "docs" / "redis-schema.md").read_text()
    listed = re.findall(r"`(\{prefix\}:[^`]*)`", page[: page.index("## ")])
    assert {name.replace("{s}", "0").replace("{n}", "1") for name in listed} == known | {"{prefix}:user:"}


def test_keys_of_one_prefix_match_their_pattern_only() -> None:
    keys = Keys("a[b]*:x")
    assert keys.everything == "a\\[b\\]\\*:x:*"
    assert {keys.user("1"), keys.item("1"), keys.items(0), keys.model(0), keys.ledger} == {
        "a[b]*:x:user:1",
        "a[b]*:x:item:1",
        "a[b]*:x:items:0",
        "a[b]*:x:model:0",
        "a[b]*:x:ledger",
    }


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://db:6379/1", "redis://db:6379/1"),
        ("redis://:s3cret@db", "redis://:***@db"),
        ("rediss://u:p%40ss@db:1/0?x=1", "rediss://u:***@db:1/0?x=1"),
        ("unix://u:p@/run/redis.sock", "unix://u:***@/run/redis.sock"),
    ],
)
def test_a_password_is_not_shown(url: str, shown: str) -> None:
    assert without_password(url) == shown


def test_other_schemes_are_refused() -> None:
    with pytest.raises(ValueError, match="scheme"):
        connect("http://localhost")
