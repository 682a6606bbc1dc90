"""A dead letter: one JSON line with the original bytes of an event that was not learned, and the reason."""

from __future__ import annotations

import base64
from collections.abc import Mapping

import orjson

from udfs.records import read_record


def dead_letter(reason: str, message: str, position: Mapping[str, object], raw: bytes, *, record: bool = False) -> str:
    """One line of a dead-letter file.

    Parameters
    ----------
    reason
        A key of :data:`udfs.events.REASONS`.
    raw
        The original bytes without the line terminator.
    record
        They are a record of a topic, as :mod:`udfs.records` has it: its key, its headers and its time go along.

    >>> dead_letter("not_json", "empty", {"file": "a.jsonl", "line": 3}, b"{")
    '{"reason":"not_json","message":"empty","position":{"file":"a.jsonl","line":3},"raw":"ew=="}'
    """
    letter: dict[str, object] = {"reason": reason, "message": message, "position": position}
    if record:
        original = read_record(raw)
        headers = {name: _text(value) for name, value in original.headers.items()}
        letter |= {"raw": _text(original.value), "key": _text(original.key), "headers": headers}
        letter["timestamp"] = original.timestamp
    else:
        letter["raw"] = _text(raw)
    return orjson.dumps(letter).decode()


def _text(content: bytes | None) -> str | None:
    return None if content is None else base64.b64encode(content).decode()
