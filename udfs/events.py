"""From the bytes of one line to an interaction, or to the reason why it can't be used.

An interaction is a plain tuple, because the job makes one for every event and sorts them:
``(timestamp, event_id, user_id, item_id, event_type, value)``. Tuples compare in the order that learning is
defined in: by time, then by event id, then by the remaining fields, strings bytewise as UTF-8 (which for
Python's ``str`` is the order of code points).
"""

from __future__ import annotations

import csv
import re
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from math import isfinite
from typing import Annotated, Any, Final, NamedTuple, cast, final

import msgspec
import orjson

Interaction = tuple[int, str, str, str, str, float]
TIMESTAMP: Final = 0
EVENT_ID, USER_ID, ITEM_ID, EVENT_TYPE, VALUE = range(1, 6)

FIELDS: Final = ("user_id", "item_id", "timestamp", "event_type", "event_value", "event_id", "context")

# Every reason that a dead letter can have, with what it means. ``docs/dead-letters.md`` lists them too.
REASONS: Final[Mapping[str, str]] = {
    "not_json": "the line is not JSON (JSON has no NaN, and no number beyond the range of a double)",
    "not_object": "the line is JSON, but not an object",
    "not_csv": "the row does not have as many columns as the header, or is not UTF-8",
    "missing_id": "user_id or item_id is missing, null or empty",
    "invalid_id": "user_id, item_id or event_id is neither a string nor an integer",
    "id_too_long": "user_id, item_id or event_id has more bytes than events.max_id_bytes",
    "missing_timestamp": "timestamp is missing or null",
    "invalid_timestamp": "timestamp can't be read with the given --timestamp-unit",
    "timestamp_not_positive": "timestamp is zero or lies before 1970",
    "timestamp_in_future": "timestamp lies further ahead of the start of the run than events.max_future",
    "invalid_type": "event_type is not a string of at most 64 bytes",
    "missing_value": "a rating without event_value",
    "invalid_value": "event_value is not a finite number",
    "value_out_of_range": "event_value lies beyond events.max_value",
    "invalid_context": "context is not an object",
    "diverged": "learning it made a weight non-finite or larger than model.max_weight; it was rolled back",
    "late": "further behind the highest timestamp of its file or partition than out_of_orderness",
    "duplicate": "the same user_id and event_id came before within dedup.horizon",
}

_SECONDS_BELOW: Final = 100_000_000_000  # as ms this is March 1973, as s the year 5138
_MAX_TYPE_BYTES: Final = 64
_INTEGER: Final = re.compile(r"[+-]?\d{1,19}$", re.ASCII)


@final
class Rejected(NamedTuple):
    """Why a line can't be used: a key of :data:`REASONS`, and a message that names the value."""

    reason: str
    message: str


@dataclass(frozen=True)
class EventFormat:
    """How the input names and writes the fields of an event.

    Attributes
    ----------
    columns
        Our field name to the input's name, for those that differ.
    timestamp_unit
        ``ms``, ``s``, ``iso``, or ``auto``: text is ISO-8601 unless it is a number, and numbers below 1e11
        are seconds.
    default_type
        The type of an event that names none; ``auto`` is ``rating`` with a value and ``view`` without.
    future_bound
        Milliseconds; a later timestamp is rejected.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    timestamp_unit: str = "auto"
    default_type: str = "auto"
    max_id_bytes: int = 256
    max_value: float = 1e15
    future_bound: int = 2**62


class Parsed(msgspec.Struct, gc=False):
    """An interaction as it is read from a line; ``timestamp`` in milliseconds.

    ``event_type`` may be empty and ``event_value`` None only until they are filled in.
    """

    timestamp: int
    user_id: str
    item_id: str
    event_id: str = ""
    event_type: str = ""
    event_value: float | None = None


def _is_plain(text: bytes) -> bool:
    """Whether JSON reads as it looks: characters are bytes, and nothing is escaped."""
    return text.isascii() and b"\\" not in text


def _quick_reader(fmt: EventFormat, names: Sequence[str]) -> Callable[[bytes], Parsed] | None:
    """Reads a plain line of JSON with an event as most are; raises where it is anything else. None if there is no such.

    It looks at no other fields than ours.
    """
    if fmt.timestamp_unit not in ("auto", "ms") or len(set(names)) < len(names):
        return None
    user, item, time, kind, value, event_id, context = names
    text = Annotated[str, msgspec.Meta(max_length=fmt.max_id_bytes)]
    row_id = Annotated[str, msgspec.Meta(min_length=1, max_length=fmt.max_id_bytes)]
    earliest = _SECONDS_BELOW if fmt.timestamp_unit == "auto" else 1
    struct = msgspec.defstruct(
        "Quick",
        [
            ("timestamp", Annotated[int, msgspec.Meta(ge=earliest, le=fmt.future_bound)]),
            ("user_id", row_id),
            ("item_id", row_id),
            ("event_id", text, ""),
            ("event_type", Annotated[str, msgspec.Meta(max_length=_MAX_TYPE_BYTES)], ""),
            ("event_value", Annotated[float, msgspec.Meta(ge=-fmt.max_value, le=fmt.max_value)] | None, None),
            ("context", dict[str, Any] | None, None),
        ],
        rename={
            "timestamp": time, "user_id": user, "item_id": item, "event_id": event_id, "event_type": kind,
            "event_value": value, "context": context,
        },
        gc=False,
    )  # fmt: skip
    decode: Any = msgspec.json.Decoder(struct).decode
    return cast("Callable[[bytes], Parsed]", decode)


class EventParser:
    """Reads events of one format. Parsing keeps no state, so any line gives the same answer anywhere.

    Examples
    --------
    >>> parser = EventParser(EventFormat())
    >>> parser.parse_json(b'{"user_id":"u","item_id":7,"timestamp":1700000000,"event_value":4.5}')
    (1700000000000, '', 'u', '7', 'rating', 4.5)
    >>> parser.parse_json(b'{"user_id":1.5,"item_id":"i","timestamp":1700000000000}')
    Rejected(reason='invalid_id', message='user_id is 1.5: neither a string nor an integer')
    """

    def __init__(self, fmt: EventFormat) -> None:
        self.format = fmt
        self._names = [fmt.columns.get(name, name) for name in FIELDS]
        self._quick = _quick_reader(fmt, self._names)
        self._read_time: Callable[[Any], int | None] = {
            "auto": _time_auto,
            "ms": _time_ms,
            "s": _time_s,
            "iso": _time_iso,
        }[fmt.timestamp_unit]

    def parse_lines(
        self, lines: Sequence[bytes], header: Sequence[str] | None = None
    ) -> tuple[list[Parsed], dict[int, Rejected | None]]:
        """Lines of JSON objects or, with a header, of CSV; without their terminators.

        Returns
        -------
        The events of the lines that can be used; and by their places why the others can't, None for blank ones.
        """
        events: list[Parsed] = []
        odd: dict[int, Rejected | None] = {}
        quick, complete = (self._quick if header is None else None), self._complete
        all_plain = quick is not None and _is_plain(b"".join(lines))
        for at, line in enumerate(lines):
            event: Parsed | Rejected
            if quick is not None and (all_plain or _is_plain(line)):
                try:
                    event = quick(line)
                    if event.event_value is None or not event.event_type:
                        event = complete(event)
                    if type(event) is not Rejected:
                        events.append(event)
                        continue
                except (msgspec.MsgspecError, RecursionError):
                    pass  # whatever it is, it gets a closer look
            if not line or line.isspace():
                odd[at] = None
                continue
            found = self._parse_json(line) if header is None else self.parse_csv(line, header)
            if type(found) is Rejected:
                odd[at] = found
            else:
                time, event_id, user_id, item_id, kind, value = found
                events.append(Parsed(time, user_id, item_id, event_id, kind, value))
        return events, odd

    def _complete(self, event: Parsed) -> Parsed | Rejected:
        """Fills in a type or a value that an event does not name."""
        value = event.event_value
        if not event.event_type:
            kind = self.format.default_type
            event.event_type = kind if kind != "auto" else "view" if value is None else "rating"
        if value is None:
            if event.event_type == "rating":
                return Rejected("missing_value", "a rating without event_value")
            event.event_value = 1.0
        return event

    def parse_json(self, line: bytes) -> Interaction | Rejected:
        """One JSON object; ``line`` has no line terminator."""
        events, odd = self.parse_lines([line])
        if not events:
            return odd[0] or self._parse_json(line)
        time, user_id, item_id, event_id, kind, value = msgspec.structs.astuple(events[0])[:6]
        return (time, event_id, user_id, item_id, kind, value)

    def _parse_json(self, line: bytes) -> Interaction | Rejected:
        try:
            event = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            return Rejected("not_json", str(error))
        if type(event) is not dict:
            return Rejected("not_object", f"a JSON {type(event).__name__}, not an object")
        get = event.get
        user, item, time, kind, value, event_id, context = self._names
        return self._check(
            get(user), get(item), get(time), get(kind), get(value), get(event_id), get(context), numbers_as_text=False
        )

    def parse_csv(self, line: bytes, header: Sequence[str]) -> Interaction | Rejected:
        """One CSV row without line breaks in its fields. An empty field is a missing one."""
        try:
            rows = list(csv.reader([line.decode()], strict=True))
        except (UnicodeDecodeError, csv.Error) as error:
            return Rejected("not_csv", str(error))
        row = rows[0] if rows else []
        if len(row) != len(header):
            return Rejected("not_csv", f"{len(row)} columns where the header has {len(header)}")
        named = dict(zip(header, row, strict=True))
        user, item, time, kind, value, event_id, _ = (named.get(name) or None for name in self._names)
        return self._check(user, item, time, kind, value, event_id, None, numbers_as_text=True)

    def _check(
        self,
        user: Any,
        item: Any,
        time: Any,
        kind: Any,
        value: Any,
        event_id: Any,
        context: Any,
        *,
        numbers_as_text: bool,
    ) -> Interaction | Rejected:
        fmt = self.format
        limit = fmt.max_id_bytes
        # The usual case first: short strings that need no closer look.
        if not (type(user) is str and 0 < len(user) <= limit >> 2):
            user = _identifier("user_id", user, limit)
            if type(user) is Rejected:
                return user
        if not (type(item) is str and 0 < len(item) <= limit >> 2):
            item = _identifier("item_id", item, limit)
            if type(item) is Rejected:
                return item
        if event_id is None or event_id == "":
            event_id = ""
        elif not (type(event_id) is str and len(event_id) <= limit >> 2):
            event_id = _identifier("event_id", event_id, limit)
            if type(event_id) is Rejected:
                return event_id

        if time is None:
            return Rejected("missing_timestamp", "no timestamp")
        millis = self._read_time(time)
        if millis is None:
            return Rejected("invalid_timestamp", f"timestamp {_shown(time)} is not {_UNITS[fmt.timestamp_unit]}")
        if millis <= 0:
            return Rejected("timestamp_not_positive", f"timestamp {_shown(time)} is not after 1970-01-01")
        if millis > fmt.future_bound:
            return Rejected("timestamp_in_future", f"timestamp {_shown(time)} is beyond {fmt.future_bound} ms")

        if kind is None or kind == "":
            kind = fmt.default_type
            if kind == "auto":
                kind = "view" if value is None else "rating"
        elif type(kind) is not str or len(kind.encode()) > _MAX_TYPE_BYTES:
            return Rejected(
                "invalid_type", f"event_type {_shown(kind)} is not a string of up to {_MAX_TYPE_BYTES} bytes"
            )

        if value is None:
            if kind == "rating":
                return Rejected("missing_value", "a rating without event_value")
            value = 1.0
        else:
            if numbers_as_text:
                value = _number(value)
            if type(value) is not float:
                if type(value) is not int:
                    return Rejected("invalid_value", f"event_value {_shown(value)} is not a number")
                value = float(value)
            if not isfinite(value):
                return Rejected("invalid_value", f"event_value {value} is not finite")
            if not -fmt.max_value <= value <= fmt.max_value:
                return Rejected("value_out_of_range", f"event_value {value} is beyond {fmt.max_value}")
        if context is not None and type(context) is not dict:
            return Rejected("invalid_context", f"context {_shown(context)} is not an object")
        return (millis, event_id, user, item, kind, value)


_UNITS: Final = {
    "auto": "a time in milliseconds, seconds or ISO-8601",
    "ms": "a number of milliseconds (timestamp_unit is ms)",
    "s": "a number of seconds (timestamp_unit is s)",
    "iso": "an ISO-8601 text (timestamp_unit is iso)",
}


def _shown(value: Any) -> str:
    """A value for a message, cut: a bad record may hold a megabyte, or more levels than ``repr`` goes down."""
    text = reprlib.repr(value) if isinstance(value, list | dict) else repr(value)
    return text if len(text) <= 60 else text[:60] + "..."


def _identifier(name: str, value: Any, limit: int) -> str | Rejected:
    if value is None or value == "":
        return Rejected("missing_id", f"{name} is missing or empty")
    if type(value) is int:
        value = str(value)
    elif type(value) is not str:
        return Rejected("invalid_id", f"{name} is {_shown(value)}: neither a string nor an integer")
    size = len(value.encode())
    if size > limit:
        return Rejected("id_too_long", f"{name} has {size} bytes; at most {limit} are allowed")
    text: str = value
    return text


def _number(text: str) -> Any:
    try:
        return float(text) if "_" not in text else text
    except ValueError:
        return text


def _millis(number: float, factor: int) -> int | None:
    return round(number * factor) if isfinite(number) and abs(number) < 1e18 else None


def _time_ms(value: Any) -> int | None:
    return _time_number(value, 1)


def _time_s(value: Any) -> int | None:
    return _time_number(value, 1_000)


def _time_number(value: Any, factor: int) -> int | None:
    if type(value) is int:
        return value * factor if abs(value) < 10**18 else None
    if type(value) is str:
        if _INTEGER.match(value):
            return _time_number(int(value), factor)
        value = _number(value)
    return _millis(value, factor) if type(value) is float else None


def _time_iso(value: Any) -> int | None:
    if type(value) is not str:
        return None
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    # Not timestamp() * 1000: that rounds through a double of seconds.
    delta = moment - _EPOCH
    return delta.days * 86_400_000 + delta.seconds * 1_000 + delta.microseconds // 1_000


_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def _time_auto(value: Any) -> int | None:
    if type(value) is int:
        return value if value >= _SECONDS_BELOW else _time_number(value, 1_000)
    if type(value) is str:
        number = int(value) if _INTEGER.match(value) else _number(value)
        return _time_iso(value) if type(number) is str else _time_auto(number)
    if type(value) is float:
        return _millis(value, 1_000 if abs(value) < _SECONDS_BELOW else 1)
    return None
