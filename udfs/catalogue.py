"""The catalogue's entries: what is known of an item besides events, as a file or a topic gives it and Redis has it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import orjson

from udfs.records import Gathered, read_record


def stored_entry(entry: object, item_id: object = None) -> tuple[str, bytes] | None:
    """The id of an item, and its entry as Redis has it; None where it can't be used.

    Parameters
    ----------
    item_id
        For an entry that names none.

    >>> stored_entry({"item_id": 7, "title": "Tea"})
    ('7', b'{"item_id":"7","title":"Tea"}')
    >>> stored_entry({"title": "Tea"}, "7"), stored_entry({"title": "Tea"})
    (('7', b'{"title":"Tea","item_id":"7"}'), None)
    """
    if not isinstance(entry, dict):
        return None
    found = entry.get("item_id")
    found = item_id if found is None else found
    if isinstance(found, bool) or not isinstance(found, str | int) or found == "":
        return None
    try:
        return str(found), orjson.dumps({**entry, "item_id": str(found)})
    except orjson.JSONEncodeError:  # nested more deeply than can be written
        return None


class Changes(NamedTuple):
    """What records of a catalogue's topic change.

    Attributes
    ----------
    entries
        By item, the entry as Redis has it; None where there is none any more.
    unusable
        The offsets of records that change nothing, since they name no item, or are no JSON object.
    """

    entries: Mapping[str, bytes | None]
    unusable: list[int]


def changes(gathered: Gathered) -> Changes:
    """What is left of some records of a partition: of several for an item the last counts."""
    entries: dict[str, bytes | None] = {}
    unusable: list[int] = []
    for offset, text in zip(gathered.offsets.tolist(), gathered.records, strict=True):
        change = _change(text)
        if change is None:
            unusable.append(offset)
        else:
            entries[change[0]] = change[1]
    return Changes(entries, unusable)


def _change(text: bytes) -> tuple[str, bytes | None] | None:
    record = read_record(text)
    try:
        item_id = None if record.key is None else record.key.decode()
    except UnicodeDecodeError:
        item_id = None
    if record.value is None:
        return (item_id, None) if item_id else None
    try:
        entry: Any = orjson.loads(record.value)
    except orjson.JSONDecodeError:
        return None
    return stored_entry(entry, item_id)
