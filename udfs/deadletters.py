"""A dead letter: one JSON line with the original bytes of an event that was not learned, and the reason."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

import orjson

from udfs.records import TopicRecord, read_record


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


class Teller:
    """What logs say of dead letters: where one is, whenever the number with its reason has come to 1, 10, 100, and so
    on; never what it holds.

    >>> letters = [dead_letter("not_json", "empty", {"file": "a.jsonl", "line": n}, b"{") for n in range(1, 25)]
    >>> list(Teller().told(letters))
    ['not_json: 1 so far, the last at file a.jsonl, line 1', 'not_json: 10 so far, the last at file a.jsonl, line 10']
    """

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}

    def told(self, letters: Iterable[str]) -> Iterator[str]:
        for letter in letters:
            reason = letter[len(_START) : letter.index('"', len(_START))]
            count = self._counts[reason] = self._counts.get(reason, 0) + 1
            if str(count).rstrip("0") == "1":
                place = ", ".join(f"{name} {value}" for name, value in orjson.loads(letter)["position"].items())
                yield f"{reason}: {count:,} so far, the last at {place}"


_START: Final = '{"reason":"'
_CONNECT: Final = "__connect.errors."
_LATER: Final = ("late", "duplicate", "diverged")  # reasons of records that could be read


def letter_record(line: str) -> TopicRecord:
    """The original record of a letter, and its reason in headers as Kafka Connect names them.

    Those go before headers that the record has of the same names. The letter of a line of a file has no key and no
    time, and for a topic the name of its file.

    >>> record = letter_record(dead_letter("not_json", "empty", {"file": "a.jsonl", "line": 3}, b"{"))
    >>> record.value, record.headers["__connect.errors.exception.message"], record.headers["__connect.errors.offset"]
    (b'{', b'empty', b'3')
    """
    letter = orjson.loads(line)
    source, number = letter["position"].values()
    topic, sign, partition = source.rpartition("-") if "partition" in letter["position"] else (source, "", "")
    told = {
        "topic": topic,
        **({"partition": partition} if sign else {}),
        "offset": str(number),
        "connector.name": "freshet",
        "stage": "TASK_PUT" if letter["reason"] in _LATER else "VALUE_CONVERTER",
        "exception.class.name": letter["reason"],
        "exception.message": letter["message"],
    }
    headers = {name: _content(value) for name, value in letter.get("headers", {}).items()}
    headers |= {_CONNECT + name: value.encode() for name, value in told.items()}
    return TopicRecord(letter.get("timestamp"), _content(letter.get("key")), headers, _content(letter["raw"]))


def _content(text: str | None) -> bytes | None:
    return None if text is None else base64.b64decode(text)


def _text(content: bytes | None) -> str | None:
    return None if content is None else base64.b64encode(content).decode()
