"""A chunk: consecutive lines of a log on their way to the job, with where each of them stands.

Sources hand over chunks of raw lines, so that what crosses between the JVM and Python crosses in batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import orjson

from udfs.packing import pack_lines, unpack_lines
from udfs.requests import Request


@dataclass(frozen=True)
class Run:
    """``count`` lines in a row of one file or partition; ``first`` is the position of the first."""

    source: str
    first: int
    count: int


@dataclass(frozen=True)
class Chunk:
    """Lines without their terminators, and the runs that say where they come from.

    Attributes
    ----------
    runs
        Cover ``lines`` in order.
    lines
        Raw bytes. Blank lines of a file count as positions, not as records.
    headers
        For CSV: the column names of each source in ``runs``.
    ended
        The input is complete: nothing follows until the job is given more.
    deletions
        Users to be deleted, here in the log; such a chunk has no lines.
    packed
        The lines as they came, packed; empty where they were not.
    ahead
        Users that are going to be deleted, here or further on: nobody may see what a replay learns of them until then.
    """

    runs: Sequence[Run]
    lines: Sequence[bytes]
    headers: dict[str, list[str]] = field(default_factory=dict)
    ended: bool = False
    deletions: Sequence[Request] = ()
    ahead: Sequence[Request] = ()
    packed: bytes = field(default=b"", compare=False, repr=False)

    def encode(self) -> bytes:
        """One JSON line that describes the chunk, then the lines, packed.

        >>> chunk = Chunk([Run("a.jsonl", 1, 2)], [b"{}", b"[]"])
        >>> Chunk.decode(chunk.encode()) == chunk
        True
        >>> chunk = Chunk([], [], deletions=(Request(7, "ann"),))
        >>> Chunk.decode(chunk.encode()) == chunk
        True
        """
        about = {
            "runs": [[run.source, run.first, run.count] for run in self.runs],
            "headers": self.headers,
            "ended": self.ended,
            "packed": True,
        }
        if self.deletions or self.ahead:
            about |= {"deletions": list(map(list, self.deletions)), "ahead": list(map(list, self.ahead))}
        return orjson.dumps(about) + b"\n" + pack_lines(self.lines)

    @classmethod
    def decode(cls, blob: bytes) -> Chunk:
        start = blob.index(b"\n") + 1
        about, body = orjson.loads(blob[: start - 1]), blob[start:]
        runs = [Run(*run) for run in about["runs"]]
        # They were not packed once, and may be on their way in an unaligned checkpoint.
        packed = body if about.get("packed") else b""
        lines = unpack_lines(body) if packed else body.split(b"\n") if any(r.count for r in runs) else []
        deletions, ahead = (tuple(Request(*r) for r in about.get(name, ())) for name in ("deletions", "ahead"))
        return cls(runs, lines, about["headers"], about["ended"], deletions, ahead, packed)
