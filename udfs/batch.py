"""What the intake hands to a shard's learner: accepted interactions, with their original lines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson


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
    events
        Rows ``[timestamp, event_id, user_id, item_id, event_type, value, source number, position]``.
    lines
        The original bytes of each event, joined by line feeds: split only when one of them is needed.
    deletions
        Users to be deleted. Such a batch is nothing else: it has no events, and moves no clock.
    """

    watermark: int | None
    ended: bool
    sources: Sequence[str]
    events: list[list[Any]]
    lines: bytes
    deletions: Sequence[Deletion] = ()

    def encode(self) -> bytes:
        """
        >>> batch = Batch(5, False, ["a"], [[7, "", "u", "i", "view", 1.0, 0, 1]], b"{}")
        >>> Batch.decode(batch.encode()) == batch
        True
        >>> batch = Batch(None, False, [], [], b"", (Deletion(8, "ann", 0, 5),))
        >>> Batch.decode(batch.encode()) == batch
        True
        """
        about = [
            self.watermark,
            self.ended,
            self.sources,
            *([list(map(list, self.deletions))] if self.deletions else ()),
        ]
        return orjson.dumps(about) + b"\n" + orjson.dumps(self.events) + b"\n" + self.lines

    @classmethod
    def decode(cls, blob: bytes) -> Batch:
        about, events, lines = blob.split(b"\n", 2)
        watermark, ended, sources, *deletions = orjson.loads(about)
        deleted = tuple(Deletion(*deletion) for of in deletions for deletion in of)
        return cls(watermark, ended, sources, orjson.loads(events), lines, deleted)
