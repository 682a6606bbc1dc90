"""Lines as nobody should write them, from a seed; and what becomes of a line, the slow and obvious way."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from typing import Any, Final

import orjson

T0: Final = 1_700_000_000_000
HEADER: Final = ["user_id", "item_id", "timestamp", "event_type", "event_value", "event_id"]
CROWD: Final = "crowd"  # the user who has half of all traffic
FUTURE: Final = T0 + 10**12
HEAVY: Final = 2_000  # one poisoned line in so many is a megabyte or a hundred thousand levels

# Control characters that freshet itself joins by, line ends of other systems, and texts that are no ASCII.
_ODD_IDS: Final = (
    "a\x1eb", "\x1f", "\x1d", "\x1dr", "\x1d\x1e\x1f", "\x00", "\r", "\t", " ", "\u2028", "\ufeff", "\u00e9", "e\u0301",
    "\U0001f30a", "\u202e", '"', "\\", "'", ",", ";", ":", "user:1", "1:a", "__proto__", "null", "NaN", "-1", "{}",
    "\x7f", "\u0085", "\uffff", "i" * 256, "\u00e9" * 128, "probe",
)  # fmt: skip
_NUMBERS: Final = (
    "NaN", "Infinity", "-Infinity", "1e308", "-1e308", "1e309", "1e-400", "-0", "-0.0", "0", str(2**63), str(2**64),
    str(-(2**63) - 1), "9" * 400, "1e15", "1.0000000000000002e15", "1e14", "-1e14", "01", "+1", "1.", ".5",
    "0x10", "1_000", "true", "null", '"1"', '"1e308"', '"nan"', "[]", "{}", "[[[[[]]]]]", "\u0661",
)  # fmt: skip
_TIMES: Final = (
    "0", "-1", "1", "1e400", "1e18", str(10**18), str(10**19), "99999999999", "100000000000", "1.7e12", '"1700000000"',
    '"2023-11-14T22:13:20Z"', '"2023-11-14T22:13:20.1234567+23:59"', '"0001-01-01T00:00:00+23:59"',
    '"9999-12-31T23:59:59-23:59"', '"2023-02-30"', '"now"', '""', "null", "true", "[1]", '"\u0661"', '"-5"',
    '"1e308"', '"inf"',
)  # fmt: skip


class Hostile:
    """Events of few users and many items, of which a part is poisoned.

    Parameters
    ----------
    poison
        The share of lines that are not simply good; a few of them can be used all the same.
    """

    def __init__(self, seed: int, poison: float = 0.1) -> None:
        self._random = random.Random(seed)
        self._poison = poison
        self._number = 0
        self._kinds: list[Callable[[], bytes]] = [
            self._cut, self._number_for_value, self._time, self._wrong_type, self._other_encoding, self._duplicate_keys,
            self._noise, self._not_object, self._surrogate, self._nested, self._long, self._missing, self._large_rating,
            self._type,
        ]  # fmt: skip

    def json_line(self) -> bytes:
        self._number += 1
        if self._random.random() >= self._poison:
            return orjson.dumps(self._good())
        if self._random.random() * HEAVY < 1:
            return self._heavy()
        return self._random.choice(self._kinds)().replace(b"\n", b" ")

    def csv_line(self) -> bytes:
        """A row under :data:`HEADER`, or something else."""
        self._number += 1
        event = self._good()
        fields = [str(event.get(name, "")) for name in HEADER]
        if self._random.random() >= self._poison:
            return ",".join(f'"{field.replace(chr(34), chr(34) * 2)}"' for field in fields).encode()
        if self._random.random() * HEAVY < 1:
            return b"u" * 1_000_000 + b",i,1"
        fields[self._random.randrange(6)] = self._random.choice([*_ODD_IDS, *_NUMBERS, *_TIMES])
        raw = ",".join(fields[: self._random.choice([1, 5, 6, 6, 6, 7])]).encode()
        return self._spoilt(raw).replace(b"\n", b" ")

    def _good(self) -> dict[str, Any]:
        rng = self._random
        at = T0 + self._number * 20 - (rng.choice([0, 500, 2_000]) if rng.random() < 0.99 else 9_000)
        user = CROWD if rng.random() < 0.5 else f"u{rng.randrange(500)}"
        item = rng.choice(_ODD_IDS) if rng.random() < 0.02 else f"i{int(1_000 * rng.random() ** 2)}"
        event = {"user_id": user, "item_id": item, "timestamp": at}
        if rng.random() < 0.7:
            event |= {"event_type": "rating", "event_value": rng.randrange(1, 11) / 2}
        if rng.random() < 0.5:
            event["event_id"] = f"e{self._number - rng.choice([0, 0, 0, 0, 1, 50])}"
        return event

    # Each kind of poison makes one line.

    def _with(self, name: str, value: str) -> bytes:
        """A good event with one field written as given."""
        event = {key: orjson.dumps(of).decode() for key, of in self._good().items()}
        event[name] = value
        return ("{" + ",".join(f'"{key}":{of}' for key, of in event.items()) + "}").encode(errors="surrogatepass")

    def _field(self) -> str:
        return self._random.choice([*HEADER, "context"])

    def _cut(self) -> bytes:
        raw = orjson.dumps(self._good())
        return raw[: self._random.randrange(len(raw))]

    def _number_for_value(self) -> bytes:
        return self._with("event_value", self._random.choice(_NUMBERS))

    def _time(self) -> bytes:
        return self._with("timestamp", self._random.choice(_TIMES))

    def _wrong_type(self) -> bytes:
        return self._with(self._field(), self._random.choice(_NUMBERS))

    def _other_encoding(self) -> bytes:
        text = orjson.dumps({**self._good(), "item_id": "caf\u00e9 \u0448"}).decode()
        coded = text.encode(
            self._random.choice(["utf-16", "utf-16-be", "utf-32", "utf-8-sig", "cp1251", "utf-7"]), "replace"
        )
        return self._random.choice([coded, text.replace("\u0448", "").encode("latin-1")])

    def _duplicate_keys(self) -> bytes:
        raw = orjson.dumps(self._good())
        return raw[:-1] + b',"user_id":' + self._random.choice([b'"last"', b"null", b"[]", b"7", b'""']) + b"}"

    def _noise(self) -> bytes:
        return self._spoilt(orjson.dumps(self._good()))

    def _spoilt(self, raw: bytes) -> bytes:
        """Some bytes are others, or there twice."""
        spoilt = bytearray(raw)
        for _ in range(self._random.randrange(4)):
            at = self._random.randrange(len(spoilt) + 1)
            other = self._random.choice([b"\x00", b"\xff", b"\xed\xa0\x80", b'"', b"\\", b"\r"])
            spoilt[at : at + self._random.randrange(3)] = other
        return bytes(spoilt)

    def _not_object(self) -> bytes:
        return self._random.choice(
            [b"[]", b"1", b'"x"', b"null", b"\x00", b"\x1e", b"{}", b"{}{}", b"\xef\xbb\xbf{}", b"nan", b"-"]
        )

    def _surrogate(self) -> bytes:
        return self._with(
            self._field(), self._random.choice(['"\\ud800"', '"\\udfff\\ud800"', '"\\ud83c\\udf0a"', '"\ud800"'])
        )

    def _nested(self) -> bytes:
        """Levels about as many as a parser or Python itself takes."""
        levels = self._random.choice([10, 200, 900, 1_000, 1_015, 1_023, 1_024, 1_030])
        opening, closing = self._random.choice([("[", "]"), ('{"a":', "}")])
        return self._with(self._field(), opening * levels + ("1" if opening != "[" else "") + closing * levels)

    def _long(self) -> bytes:
        name = self._random.choice(["user_id", "item_id", "event_id", "event_type"])
        length = self._random.choice([63, 64, 65, 255, 256, 257, 5_000])
        return self._with(name, orjson.dumps(self._random.choice("a\u00e9\U0001f30a") * length).decode())

    def _missing(self) -> bytes:
        event = self._good()
        event.pop(self._random.choice(list(event)))
        return orjson.dumps(event)

    def _large_rating(self) -> bytes:
        """Within the bounds of a value, and more than weights bear."""
        return self._with("event_type", '"rating"')[:-1] + b',"event_value":%d}' % (
            self._random.choice([-1, 1]) * 10 ** self._random.randrange(6, 16)
        )

    def _type(self) -> bytes:
        return self._with("event_type", orjson.dumps(self._random.choice(_ODD_IDS)).decode())

    def _heavy(self) -> bytes:
        if self._random.random() < 0.5:
            return self._with(self._random.choice(["user_id", "item_id", "event_id"]), '"' + "x" * 1_000_000 + '"')
        return self._with(self._field(), "[" * 100_000 + "]" * self._random.choice([0, 100_000]))


# -------------------------------------------------------------------------------------- what it should be


def obvious(line: bytes, max_value: float) -> tuple[Any, ...] | str | None:
    """The interaction in a JSON line, or the reason why there is none; None where only the parser can tell.

    By Python's own ``json``, which is another parser. Of times it knows whole numbers only.
    """
    try:
        event = json.loads(line.decode(), parse_constant=_refused, parse_float=_finite, parse_int=_narrow)
        json.dumps(event, ensure_ascii=False).encode()  # lone surrogates
    except RecursionError:
        return None
    except ValueError:
        return "not_json"
    if type(event) is not dict:
        return "not_object"
    found = []
    for name in ("user_id", "item_id", "event_id"):
        value = event.get(name)
        if value is None or value == "":
            if name != "event_id":
                return "missing_id"
            value = ""
        elif type(value) not in (int, str):
            return "invalid_id"
        value = str(value)
        if len(value.encode()) > 256:
            return "id_too_long"
        found.append(value)
    time = event.get("timestamp")
    if time is None:
        return "missing_timestamp"
    if type(time) is not int:
        return None
    millis = time if time >= 10**11 else time * 1_000
    if millis <= 0 and abs(millis) >= 10**18:
        return None
    if millis <= 0:
        return "timestamp_not_positive"
    if millis > FUTURE:
        return "timestamp_in_future"
    kind, value = event.get("event_type"), event.get("event_value")
    if kind is None or kind == "":
        kind = "view" if value is None else "rating"
    if type(kind) is not str or len(kind.encode()) > 64:
        return "invalid_type"
    if value is None:
        if kind == "rating":
            return "missing_value"
        value = 1.0
    if type(value) not in (int, float):
        return "invalid_value"
    if abs(value) > max_value:
        return "value_out_of_range"
    if not isinstance(event.get("context", {}), dict | None):
        return "invalid_context"
    return millis, found[2], found[0], found[1], kind, float(value)


def _refused(text: str) -> Any:
    raise ValueError(text)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number


def _narrow(text: str) -> int | float:
    """Beyond 64 bits, a whole number is a double."""
    number = int(text) if len(text) < 30 else 2**70
    return number if -(2**63) <= number < 2**64 else _finite(text)
