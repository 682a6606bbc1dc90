"""Records of a topic on their way through the job: each is one text, with its key and its headers.

SQL gathers them into strings, of which one crosses to Python for many records. A byte is there the character of its
number (ISO 8859-1), so that any bytes come through and no character above them can be in a record: those separate.
A record keeps this form, in UTF-8, as the original bytes of an event do; what is parsed is its value.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import orjson

from udfs.chunk import Chunk, Run

RECORD: Final = "\u2028"
FIELD: Final = "\u2029"
NULL: Final = "\u2400"
_RECORD, _FIELD, _NULL = RECORD.encode(), FIELD.encode(), NULL.encode()


@dataclass(frozen=True)
class TopicRecord:
    """What a record was made of.

    Attributes
    ----------
    headers
        By their names: of several with one name, SQL gives the last.
    timestamp
        Of the record in Kafka, in milliseconds; None where it has none.
    """

    timestamp: int | None
    key: bytes | None
    headers: dict[str, bytes | None]
    value: bytes | None


def value_of(record: bytes) -> bytes:
    """The value of a record; nothing where it has none.

    >>> value_of(as_text(TopicRecord(0, None, {}, b'{"user_id":"z\\xc3\\xb6e"}'))).decode()
    '{"user_id":"zöe"}'
    >>> value_of(as_text(TopicRecord(0, b"key", {}, None)))
    b''
    """
    value = record.split(_FIELD, 3)[3]
    return value if value.isascii() else b"" if value == _NULL else value.decode().encode("latin-1")


def read_record(record: bytes) -> TopicRecord:
    """
    >>> record = TopicRecord(7, b"\\xff", {"a": b"\\x00", "\u00fc\u2028": None}, b"\\n")
    >>> read_record(as_text(record)) == record
    True
    """
    timestamp, key, headers, value = (_bytes(field) for field in record.split(_FIELD, 3))
    named: dict[str, str | None] = orjson.loads(headers or b"{}")
    decoded = {name: None if of is None else base64.b64decode(of) for name, of in named.items()}
    return TopicRecord(None if timestamp is None else int(timestamp), key, decoded, value)


def _bytes(field: bytes) -> bytes | None:
    return None if field == _NULL else field.decode().encode("latin-1")


def as_text(record: TopicRecord) -> bytes:
    """The text of a record as SQL makes it."""
    headers = {name: None if of is None else base64.b64encode(of).decode() for name, of in record.headers.items()}
    time = None if record.timestamp is None else str(record.timestamp).encode()
    fields = (time, record.key, orjson.dumps(headers), record.value)
    return FIELD.join(NULL if field is None else field.decode("latin-1") for field in fields).encode()


class Gathered:
    """Records of one partition, as they were gathered.

    >>> gathered = Gathered(FIELD.join(["t-0", "4,5,9", RECORD.join(["a", "b", "c"])]))
    >>> gathered.chunk(1, 3).runs, gathered.chunk(1, 3).lines
    ([Run(source='t-0', first=5, count=1), Run(source='t-0', first=9, count=1)], [b'b', b'c'])
    """

    def __init__(self, text: str) -> None:
        source, offsets, records = text.encode().split(_FIELD, 2)
        self.source = source.decode()
        self.offsets = np.array(offsets.split(b","), dtype=np.int64)
        self.records: Sequence[bytes] = records.split(_RECORD)
        assert len(self.offsets) == len(self.records)

    def __len__(self) -> int:
        return len(self.records)

    def chunk(self, start: int, end: int) -> Chunk:
        """Some of them, in their order."""
        offsets = self.offsets[start:end]
        firsts = np.flatnonzero(np.diff(offsets, prepend=-2) != 1)
        counts = np.diff(firsts, append=len(offsets))
        runs = [
            Run(self.source, first, count)
            for first, count in zip(offsets[firsts].tolist(), counts.tolist(), strict=True)
        ]
        return Chunk(runs, self.records[start:end])
