"""A dead letter: one JSON line with the original bytes of an event that was not learned, and the reason."""

from __future__ import annotations

import base64
from collections.abc import Mapping

import orjson


def dead_letter(reason: str, message: str, position: Mapping[str, object], raw: bytes) -> str:
    """One line of a dead-letter file.

    Parameters
    ----------
    reason
        A key of :data:`udfs.events.REASONS`.
    raw
        The original bytes without the line terminator.

    >>> dead_letter("not_json", "empty", {"file": "a.jsonl", "line": 3}, b"{")
    '{"reason":"not_json","message":"empty","position":{"file":"a.jsonl","line":3},"raw":"ew=="}'
    """
    letter = {"reason": reason, "message": message, "position": position, "raw": base64.b64encode(raw).decode()}
    return orjson.dumps(letter).decode()
