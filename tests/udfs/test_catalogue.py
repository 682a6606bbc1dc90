"""What records of a catalogue's topic change."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving import Client
from udfs.catalogue import Changes, changes, stored_entry
from udfs.publisher import Fenced, Publisher, draw_submission
from udfs.records import FIELD, RECORD, Gathered, TopicRecord, as_text


def changed(*records: tuple[bytes | None, bytes | None]) -> Changes:
    """By records of keys and values, with offsets from 7."""
    texts = [as_text(TopicRecord(0, key, {}, value)).decode() for key, value in records]
    offsets = ",".join(str(7 + n) for n in range(len(texts)))
    return changes(Gathered(FIELD.join(["items-0", offsets, RECORD.join(texts)])))


def test_the_value_names_the_item_or_else_the_key_does() -> None:
    found = changed(
        (None, b'{"item_id": 7, "title": "Seven"}'),
        (b"tea", b'{"title": "Tea"}'),
        (b"{1}", b'{"item_id": "rum"}'),
        ("caf\u00e9".encode(), b"{}"),
    )
    assert not found.unusable
    assert {item_id: orjson.loads(entry or b"") for item_id, entry in found.entries.items()} == {
        "7": {"item_id": "7", "title": "Seven"},
        "tea": {"item_id": "tea", "title": "Tea"},
        "rum": {"item_id": "rum"},
        "caf\u00e9": {"item_id": "caf\u00e9"},
    }


def test_of_several_records_of_an_item_the_last_counts() -> None:
    tea = b'{"title": "Tea"}'
    assert changed((b"tea", tea), (b"rum", tea), (b"tea", None), (b"rum", b'{"title":1}')).entries == {
        "tea": None,
        "rum": b'{"title":1,"item_id":"rum"}',
    }
    assert changed((b"tea", None), (b"tea", b"{}")).entries == {"tea": b'{"item_id":"tea"}'}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (None, b'{"title": "nobody"}'),
        (b"", b"{}"),
        (b"\xff", b"{}"),
        (b"\xff", None),
        (None, None),
        (b"", None),
        (b"tea", b""),
        (b"tea", b"[1]"),
        (b"tea", b"\xff\x00"),
        (b"tea", b'{"item_id": true}'),
        (b"tea", b'{"item_id": ""}'),
        (b"tea", b'{"item_id": 1.5}'),
        (b"tea", b'{"a": NaN}'),
        (b"tea", b'{"a": ' + b"[" * 500 + b"]" * 500 + b"}"),
        (b"tea", b"[" * 100_000),
    ],
)
def test_what_names_no_item_changes_nothing(key: bytes | None, value: bytes | None) -> None:
    assert changed((b"rum", b"{}"), (key, value)) == ({"rum": b'{"item_id":"rum"}'}, [8])


@given(st.lists(st.tuples(st.none() | st.binary(max_size=20), st.none() | st.binary(max_size=20)), min_size=1))
def test_no_bytes_stop_it(records: list[tuple[bytes | None, bytes | None]]) -> None:
    found = changed(*records)
    assert len(found.unusable) + len(found.entries) <= len(records)
    assert all(entry is None or orjson.loads(entry)["item_id"] == item for item, entry in found.entries.items())


def test_entries_that_can_not_be_written_are_refused() -> None:
    deep: Any = 1
    for _ in range(300):
        deep = [deep]
    assert stored_entry({"item_id": "tea", "deep": deep}) is None


def test_entries_come_and_go_in_redis_and_an_older_job_writes_none(redis_url: str, redis_connection: Any) -> None:
    publisher = Publisher(redis_url, "p")
    entries = {f"i{n}": b'{"item_id":"i%d"}' % n for n in range(1_200)}
    publisher.catalogue(entries)
    redis_connection.hset("p:item:i3", "count", 1)
    publisher.catalogue({"i3": None, "i4": None, "absent": None})
    assert redis_connection.hgetall("p:item:i3") == {b"count": b"1"}
    assert len(redis_connection.keys("p:item:*")) == 1_199
    known = Client(redis_connection, "p").item("i1199")
    assert known is not None and known.catalogue == {"item_id": "i1199"}
    draw_submission(redis_connection, publisher.keys, 1)
    with pytest.raises(Fenced):
        publisher.catalogue({"i5": None})
    assert redis_connection.exists("p:item:i5")
    publisher.close()
