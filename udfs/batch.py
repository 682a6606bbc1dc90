"""What the intake hands to a shard's learner: accepted interactions, with their original lines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import orjson

from udfs.ids import placed
from udfs.interactions import Interactions
from udfs.packing import pack, pack_lines, unpack

# The columns of numbers as they are written, one after the other, with the type of each.
_NUMBERS: Final = {"times": "<i8", "values": "<f8", "positions": "<i8", "sources": "<i4"}
_TEXTS: Final = ("event_ids", "user_ids", "item_ids")


class Deletion(NamedTuple):
    """A user to be deleted, and which windows may hold something of what the user did before.

    Attributes
    ----------
    number
        Of the request.
    part
        How many inputs ended before this one.
    bound
        Milliseconds: no event before the deletion is newer. Windows of this part that begin later hold only what
        came after it; windows of later parts, too.
    """

    number: int
    user_id: str
    part: int
    bound: int


@dataclass
class Batch:
    """Accepted interactions of one shard from one chunk.

    Attributes
    ----------
    watermark
        Milliseconds: no interaction at or after this batch is older. None where time is not waited for.
    ended
        The input ended: what still waits is learned now.
    sources
        Names that ``events`` refer to.
    lines
        The original bytes of each event, as :func:`~udfs.packing.pack_lines` gives them: unpacked only when one of them
        is needed.
    deletions
        Users to be deleted. Such a batch is nothing else: it has no events, and moves no clock.
    """

    watermark: int | None
    ended: bool
    sources: Sequence[str]
    events: Interactions
    lines: bytes
    deletions: Sequence[Deletion] = ()

    def encode(self) -> bytes:
        """A line of JSON that describes it, the columns packed, and the packed lines.

        >>> events = Interactions.of([[7, "", "u", "i", "view", 1.0, 0, 1]])
        >>> batch = Batch(5, False, ["a"], events, pack_lines([b"{}"]))
        >>> Batch.decode(batch.encode()) == batch
        True
        >>> batch = Batch(None, False, [], Interactions.of([]), b"", (Deletion(8, "ann", 0, 5),))
        >>> Batch.decode(batch.encode()) == batch
        True
        """
        events = self.events
        types, kinds = placed(events.event_types)
        numbers = [getattr(events, name).astype(kind).tobytes() for name, kind in _NUMBERS.items()]
        numbers.append(kinds.astype("<u4").tobytes())
        columns = pack(b"".join([*numbers, orjson.dumps([getattr(events, name) for name in _TEXTS])]))
        about: dict[str, Any] = {
            "watermark": self.watermark,
            "ended": self.ended,
            "sources": self.sources,
            "events": len(events),
            "types": list(types),
            "size": len(columns),
        }
        if self.deletions:
            about["deletions"] = [list(deletion) for deletion in self.deletions]
        return b"".join([orjson.dumps(about), b"\n", columns, self.lines])

    @classmethod
    def decode(cls, blob: bytes) -> Batch:
        start = blob.index(b"\n") + 1
        about = orjson.loads(blob[: start - 1])
        if isinstance(about, list):
            return _decode_rows(about, blob[start:])
        end = start + about["size"]
        columns, n, at = unpack(blob[start:end]), about["events"], 0
        numbers = []
        for kind in (*_NUMBERS.values(), "<u4"):
            # A copy: kernels would be compiled once more for arrays that can't be written.
            numbers.append(np.frombuffer(columns, kind, count=n, offset=at).copy())
            at += n * numbers[-1].itemsize
        times, values, positions, sources, types = numbers
        event_types = list(map(about["types"].__getitem__, types.tolist()))
        event_ids, user_ids, item_ids = orjson.loads(columns[at:])
        own = np.zeros(n, dtype=np.int64), np.arange(n, dtype=np.int64)
        texts = event_ids, user_ids, item_ids, event_types
        events = Interactions(times, *texts, values, sources, positions, *own)
        deletions = tuple(Deletion(*deletion) for deletion in about.get("deletions", ()))
        return cls(about["watermark"], about["ended"], about["sources"], events, blob[end:], deletions)


def _decode_rows(about: list[Any], rest: bytes) -> Batch:
    """A batch as rows, as they were stored before there were columns."""
    watermark, ended, sources, *deletions = about
    rows, lines = rest.split(b"\n", 1)
    events = Interactions.of(orjson.loads(rows))
    deleted = tuple(Deletion(*deletion) for of in deletions for deletion in of)
    return Batch(watermark, ended, sources, events, pack_lines(lines.split(b"\n")) if len(events) else b"", deleted)
