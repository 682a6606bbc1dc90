"""Parsing: every reason that a line can be refused for, and no line that raises."""

from __future__ import annotations

import math
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.hostile import Hostile
from udfs.events import REASONS, EventFormat, EventParser, Interaction, Rejected

NOW = 1_700_000_000_000
GOOD: dict[str, Any] = {"user_id": "u", "item_id": "i", "timestamp": NOW, "event_value": 4.5}
GOOD_TEXT = orjson.dumps(GOOD)
# Given by the intake and the learner, not by the parser.
ELSEWHERE = {"late", "duplicate", "diverged"}


def line(**changes: Any) -> bytes:
    """A good event with other fields; ``...`` leaves a field out."""
    return orjson.dumps({k: v for k, v in {**GOOD, **changes}.items() if v is not ...})


JSON_CASES: list[tuple[str, bytes]] = [
    ("not_json", b""),
    ("not_json", b"{"),
    ("not_json", GOOD_TEXT + b"}"),
    ("not_json", b'{"user_id": "u", "event_value": NaN}'),
    ("not_json", b'{"user_id": "u", "event_value": Infinity}'),
    ("not_json", b'{"user_id": "u", "event_value": 1e400}'),
    ("not_json", b'{"user_id": "\xff\xfe"}'),
    ("not_json", b'{"user_id": "\\ud800"}'),
    ("not_json", b'{"user_id": "\xed\xa0\x80"}'),
    ("not_json", b"[" * 100_000),
    ("not_json", b'{"context":' * 5_000 + b"1" + b"}" * 5_000),
    ("not_object", b"[" + GOOD_TEXT + b"]"),
    ("not_object", b"null"),
    ("not_object", b'"text"'),
    ("not_object", b"7"),
    ("missing_id", line(user_id=...)),
    ("missing_id", line(user_id=None)),
    ("missing_id", line(user_id="")),
    ("missing_id", line(item_id=...)),
    ("missing_id", line(item_id="")),
    ("invalid_id", line(user_id=1.5)),
    ("invalid_id", line(user_id=1.0)),
    ("invalid_id", line(user_id=True)),
    ("invalid_id", line(item_id=False)),
    ("invalid_id", line(item_id=["i"])),
    ("invalid_id", line(event_id={"a": 1})),
    ("invalid_id", line(event_id=2.5)),
    ("invalid_id", GOOD_TEXT.replace(b'"u"', b"18446744073709551616")),  # beyond 64 bits JSON's integer is a double
    ("id_too_long", line(user_id="u" * 257)),
    ("id_too_long", line(item_id="\u00e9" * 129)),
    ("id_too_long", line(event_id="\U0001f30a" * 65)),
    ("missing_timestamp", line(timestamp=...)),
    ("missing_timestamp", line(timestamp=None)),
    ("invalid_timestamp", line(timestamp="soon")),
    ("invalid_timestamp", line(timestamp="")),
    ("invalid_timestamp", line(timestamp=True)),
    ("invalid_timestamp", line(timestamp=[NOW])),
    ("invalid_timestamp", line(timestamp="nan")),
    ("invalid_timestamp", line(timestamp="inf")),
    ("invalid_timestamp", line(timestamp=1e300)),
    ("invalid_timestamp", line(timestamp="2024-13-01")),
    ("timestamp_not_positive", line(timestamp=0)),
    ("timestamp_not_positive", line(timestamp=-5)),
    ("timestamp_not_positive", line(timestamp="1969-12-31T23:59:59")),
    ("timestamp_in_future", line(timestamp=NOW + 1)),
    ("timestamp_in_future", line(timestamp="9999-12-31")),
    ("invalid_type", line(event_type=7)),
    ("invalid_type", line(event_type=["view"])),
    ("invalid_type", line(event_type="t" * 65)),
    ("missing_value", line(event_value=..., event_type="rating")),
    ("missing_value", line(event_value=None, event_type="rating")),
    ("invalid_value", line(event_value="4.5")),
    ("invalid_value", line(event_value=True)),
    ("invalid_value", line(event_value=[])),
    ("value_out_of_range", line(event_value=1.1e15)),
    ("value_out_of_range", line(event_value=-(10**16))),
    ("invalid_context", line(context=[1])),
    ("invalid_context", line(context="c")),
]
HEADER = ["user_id", "item_id", "timestamp", "event_type", "event_value", "event_id"]
CSV_CASES: list[tuple[str, bytes]] = [
    ("not_csv", b"u,i"),
    ("not_csv", b"u,i,1700000000000,view,1,e,more"),
    ("not_csv", b"\xff,i,1700000000000,view,1,e"),
    ("not_csv", b'"u,i,1700000000000,view,1,e'),
    ("not_csv", b'"u"x,i,1700000000000,view,1,e'),
    ("not_csv", b"u\rv,i,1700000000000,view,1,e"),
    ("not_csv", b"u" * 200_000 + b",i,1700000000000,view,1,e"),
    ("missing_id", b",i,1700000000000,view,1,e"),
    ("missing_id", b"u,,1700000000000,view,1,e"),
    ("id_too_long", b"u" * 257 + b",i,1700000000000,view,1,e"),
    ("missing_timestamp", b"u,i,,view,1,e"),
    ("invalid_timestamp", b"u,i,1_700_000_000_000,view,1,e"),
    ("timestamp_not_positive", b"u,i,-1,view,1,e"),
    ("timestamp_in_future", b"u,i,1700000000001,view,1,e"),
    ("invalid_type", b"u,i,1700000000000," + b"t" * 65 + b",1,e"),
    ("missing_value", b"u,i,1700000000000,rating,,e"),
    ("invalid_value", b"u,i,1700000000000,view,much,e"),
    ("invalid_value", b"u,i,1700000000000,view,nan,e"),
    ("invalid_value", b"u,i,1700000000000,view,inf,e"),
    ("invalid_value", b"u,i,1700000000000,view,1_0,e"),
    ("value_out_of_range", b"u,i,1700000000000,view,1e16,e"),
]


@pytest.fixture(scope="module")
def parser() -> EventParser:
    return EventParser(EventFormat(future_bound=NOW))


@pytest.mark.parametrize(("reason", "raw"), JSON_CASES, ids=[f"{n}-{r}" for n, (r, _) in enumerate(JSON_CASES)])
def test_json_that_cannot_be_used(parser: EventParser, reason: str, raw: bytes) -> None:
    result = parser.parse_json(raw)
    assert isinstance(result, Rejected)
    assert result.reason == reason
    assert 0 < len(result.message) < 400


@pytest.mark.parametrize(("reason", "raw"), CSV_CASES, ids=[f"{n}-{r}" for n, (r, _) in enumerate(CSV_CASES)])
def test_csv_that_cannot_be_used(parser: EventParser, reason: str, raw: bytes) -> None:
    result = parser.parse_csv(raw, HEADER)
    assert isinstance(result, Rejected)
    assert result.reason == reason


def test_every_reason_of_the_parser_has_a_case() -> None:
    assert {reason for reason, _ in JSON_CASES + CSV_CASES} == set(REASONS) - ELSEWHERE


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, (NOW, "", "u", "i", "rating", 4.5)),
        ({"user_id": 7, "item_id": -3, "event_id": 0}, (NOW, "0", "7", "-3", "rating", 4.5)),
        ({"user_id": "007"}, (NOW, "", "007", "i", "rating", 4.5)),
        ({"user_id": " u "}, (NOW, "", " u ", "i", "rating", 4.5)),
        ({"user_id": "u" * 256}, (NOW, "", "u" * 256, "i", "rating", 4.5)),
        ({"event_id": None}, (NOW, "", "u", "i", "rating", 4.5)),
        ({"event_value": ...}, (NOW, "", "u", "i", "view", 1.0)),
        ({"event_value": 3}, (NOW, "", "u", "i", "rating", 3.0)),
        ({"event_value": 10**15}, (NOW, "", "u", "i", "rating", 1e15)),
        ({"event_type": "purchase", "event_value": ...}, (NOW, "", "u", "i", "purchase", 1.0)),
        ({"event_type": "t" * 64}, (NOW, "", "u", "i", "t" * 64, 4.5)),
        ({"event_type": ""}, (NOW, "", "u", "i", "rating", 4.5)),
        ({"context": {"device": "tv"}, "more": [1]}, (NOW, "", "u", "i", "rating", 4.5)),
        ({"user_id": "a\u0000b"}, (NOW, "", "a\u0000b", "i", "rating", 4.5)),
    ],
)
def test_json_that_can_be_used(parser: EventParser, changes: dict[str, Any], expected: Interaction) -> None:
    result = parser.parse_json(line(**changes))
    assert result == expected
    assert type(result[5]) is float


def test_csv_that_can_be_used(parser: EventParser) -> None:
    assert parser.parse_csv(b'"u,""1""",i,1700000000,,4.5,e', HEADER) == (NOW, "e", 'u,"1"', "i", "rating", 4.5)
    assert parser.parse_csv("\u00e9,i,1700000000000,view,,".encode(), HEADER) == (NOW, "", "\u00e9", "i", "view", 1.0)


def test_columns_have_the_names_of_the_input() -> None:
    parser = EventParser(EventFormat(columns={"user_id": "visitor", "timestamp": "at"}))
    raw = b'{"visitor":"v","user_id":"no","item_id":"i","at":1700000000000}'
    assert parser.parse_json(raw) == (NOW, "", "v", "i", "view", 1.0)
    assert parser.parse_csv(b"v,i,1700000000000", ["visitor", "item_id", "at"]) == (NOW, "", "v", "i", "view", 1.0)


def test_the_type_of_an_event_that_names_none_can_be_set() -> None:
    parser = EventParser(EventFormat(default_type="click"))
    assert parser.parse_json(line())[4] == "click"
    assert parser.parse_json(line(event_value=...))[4:] == ("click", 1.0)
    rating = EventParser(EventFormat(default_type="rating")).parse_json(line(event_value=...))
    assert isinstance(rating, Rejected) and rating.reason == "missing_value"


@pytest.mark.parametrize(
    ("unit", "value", "millis"),
    [
        ("auto", NOW, NOW),
        ("auto", NOW // 1000, NOW),
        ("auto", 1_700_000_000.5, NOW + 500),
        ("auto", 1_700_000_000_000.0, NOW),
        ("auto", str(NOW), NOW),
        ("auto", "1700000000", NOW),
        ("auto", "1700000000.25", NOW + 250),
        ("auto", 99_999_999_999, 99_999_999_999_000),
        ("auto", 100_000_000_000, 100_000_000_000),
        ("auto", "2023-11-14T22:13:20", NOW),
        ("auto", "2023-11-14T22:13:20Z", NOW),
        ("auto", "2023-11-14T23:13:20+01:00", NOW),
        ("auto", "2023-11-14 22:13:20.001999", NOW + 1),
        ("auto", "2023-11-14", 1_699_920_000_000),
        ("ms", 5, 5),
        ("ms", "5", 5),
        ("ms", 5.4, 5),
        ("ms", "2023-11-14", None),
        ("s", 5, 5_000),
        ("s", "5.5", 5_500),
        ("s", NOW, NOW * 1_000),
        ("s", "2023-11-14", None),
        ("iso", "2023-11-14T22:13:20", NOW),
        ("iso", NOW, None),
        ("iso", str(NOW // 1000), None),
    ],
)
def test_units_of_time(unit: str, value: Any, millis: int | None) -> None:
    result = EventParser(EventFormat(timestamp_unit=unit)).parse_json(line(timestamp=value))
    if millis is None:
        assert isinstance(result, Rejected) and result.reason == "invalid_timestamp"
        assert unit in result.message
    else:
        assert result[0] == millis
        assert type(result[0]) is int


def test_a_message_is_short_whatever_the_record() -> None:
    result = EventParser(EventFormat()).parse_json(line(context="c" * 1_000_000))
    assert isinstance(result, Rejected) and len(result.message) < 200


@pytest.mark.parametrize("levels", [900, 1_000, 1_020])
@pytest.mark.parametrize(
    "name", ["user_id", "item_id", "event_id", "timestamp", "event_type", "event_value", "context"]
)
def test_a_message_does_not_go_down_all_levels_of_a_record(name: str, levels: int) -> None:
    raw = line(**{name: ...}).replace(b"{", b'{"%s":' % name.encode() + b"[" * levels + b"]" * levels + b",", 1)
    result = EventParser(EventFormat()).parse_json(raw)
    assert isinstance(result, Rejected) and result.reason.startswith("invalid_")


ids = st.one_of(st.text(max_size=5), st.integers(), st.floats(), st.booleans(), st.none(), st.lists(st.none()))
records = st.fixed_dictionaries(
    {},
    optional={
        "user_id": ids,
        "item_id": ids,
        "event_id": ids,
        "timestamp": st.one_of(ids, st.integers(0, 2**50), st.datetimes().map(str)),
        "event_type": ids,
        "event_value": ids,
        "context": st.one_of(ids, st.dictionaries(st.text(max_size=2), st.integers(), max_size=2)),
    },
)


def _json(record: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(record)
    except TypeError:  # an integer beyond 64 bits
        return repr(record).replace("'", '"').encode(errors="replace")


lines = st.one_of(st.binary(max_size=60), records.map(_json), st.text(max_size=60).map(lambda t: t.encode()))


def assert_well_formed(result: Any) -> None:
    if type(result) is Rejected:
        assert result.reason in set(REASONS) - ELSEWHERE
        assert result.message
        result.message.encode()
        return
    millis, event_id, user, item, kind, value = result
    assert type(millis) is int and 0 < millis <= NOW
    for text in (event_id, user, item, kind):
        assert type(text) is str
        text.encode()
    assert user and item and kind
    assert type(value) is float and math.isfinite(value)


@pytest.mark.parametrize("unit", ["auto", "ms", "s", "iso"])
@given(raw=lines)
def test_no_line_raises(unit: str, raw: bytes) -> None:
    parser = EventParser(EventFormat(timestamp_unit=unit, future_bound=NOW))
    assert_well_formed(parser.parse_json(raw))
    assert_well_formed(parser.parse_csv(raw, HEADER))
    assert_well_formed(parser.parse_csv(raw, ["user_id", "item_id", "timestamp"]))


@given(
    user=st.text(min_size=1, max_size=20),
    item=st.integers(-(2**63), 2**63 - 1),
    millis=st.integers(1, NOW),
    value=st.floats(-1e15, 1e15),
)
def test_what_is_good_comes_out_as_it_went_in(user: str, item: int, millis: int, value: float) -> None:
    parser = EventParser(EventFormat(timestamp_unit="ms"))
    raw = orjson.dumps({"user_id": user, "item_id": item, "timestamp": millis, "event_value": value})
    assert parser.parse_json(raw) == (millis, "", user, str(item), "rating", value)


def test_the_quick_reader_says_what_the_slow_one_says() -> None:
    parser, hostile = EventParser(EventFormat()), Hostile(seed=5, poison=0.5)
    usable = 0
    for line in (hostile.json_line() for _ in range(5_000)):
        if not line or line.isspace():
            continue
        quick, slow = parser.parse_json(line), parser._parse_json(line)
        usable += not isinstance(quick, Rejected)
        # The quick one looks at no field but ours.
        assert quick == slow or (isinstance(slow, Rejected) and "infinity" in slow.message), line
    assert 1_000 < usable < 4_900


def test_lines_are_read_as_each_of_them_is() -> None:
    lines = [
        line(user_id="a"),
        b"",
        b" ",
        b"{",
        line(user_id="\u00e9"),
        line(event_value=..., event_type="rating"),
        line(),
    ]
    parser = EventParser(EventFormat())
    for part in (lines, lines[:4]):  # with and without one that is no ASCII
        events, odd = parser.parse_lines(part)
        left = [at for at in range(len(part)) if at not in odd]
        assert [(e.timestamp, e.event_id, e.user_id, e.item_id, e.event_type, e.event_value) for e in events] == [
            parser.parse_json(part[at]) for at in left
        ]
        assert {at: verdict and verdict.reason for at, verdict in odd.items() if at < 4} == {
            1: None, 2: None, 3: "not_json",
        }  # fmt: skip
    assert odd.keys() == {1, 2, 3}


def test_two_fields_may_be_one_column() -> None:
    parser = EventParser(EventFormat(columns={"item_id": "user_id"}))
    assert parser.parse_json(line(user_id="a"))[2:4] == ("a", "a")
