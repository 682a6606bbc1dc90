"""What the intake hands to a shard's learner: accepted interactions, with their original lines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson


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
    """

    watermark: int | None
    ended: bool
    sources: Sequence[str]
    events: list[list[Any]]
    lines: bytes

    def encode(self) -> bytes:
        """
        >>> batch = Batch(5, False, ["a"], [[7, "", "u", "i", "view", 1.0, 0, 1]], b"{}")
        >>> Batch.decode(batch.encode()) == batch
        True
        """
        return (
            orjson.dumps([self.watermark, self.ended, self.sources])
            + b"\n"
            + orjson.dumps(self.events)
            + b"\n"
            + self.lines
        )

    @classmethod
    def decode(cls, blob: bytes) -> Batch:
        about, events, lines = blob.split(b"\n", 2)
        watermark, ended, sources = orjson.loads(about)
        return cls(watermark, ended, sources, orjson.loads(events), lines)
