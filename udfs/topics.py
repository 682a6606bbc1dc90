"""Reading a topic: what was gathered of it becomes chunks, among which requests to delete users take their place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from udfs.chunk import Chunk
from udfs.reading import InputError, decode_position, encode_position, stored_place
from udfs.records import Gathered
from udfs.requests import Inbox, Place


class TopicReader:
    """Notes how far each partition was read, in the order in which records came.

    Attributes
    ----------
    place
        How many records were read before.
    """

    def __init__(self, inbox: Inbox, position: bytes | None) -> None:
        stored = {} if position is None else decode_position(position)
        self._inbox = inbox
        self._next: dict[str, int] = stored.get("next", {})
        self.place = stored_place(stored)

    @property
    def taken(self) -> int:
        """The number of the last request that took effect."""
        return self._inbox.taken

    def position(self) -> bytes:
        """What is to be stored after each chunk."""
        return encode_position({"next": self._next, **self.place._asdict()})

    def ahead(self) -> Chunk | None:
        """Which users must not be seen until the log has come to where they were deleted, if there are any."""
        ahead = tuple(self._inbox.ahead())
        return Chunk([], [], ahead=ahead) if ahead else None

    def requests(self) -> Chunk | None:
        """The requests that are due here, if there are any."""
        due = self._inbox.due(self.place, ended=False, offsets=self._next)
        hidden = (*filter(self._inbox.is_new, due), *self._inbox.ahead())
        return Chunk([], [], deletions=tuple(due), ahead=hidden) if due else None

    def read(self, text: str) -> Iterator[Chunk]:
        """The chunks of what was gathered.

        Raises
        ------
        InputError
            If the partition gives what was read before.
        """
        gathered = Gathered(text)
        source, first = gathered.source, int(gathered.offsets[0])
        if first < self._next.get(source, 0):
            raise InputError(
                f"{source} gave offset {first} after {self._next[source] - 1}: its records are not those that were "
                "read before, as if the topic had been deleted and made anew; start anew with --fresh, or give "
                "another --state-dir"
            )
        start = 0
        while start < len(gathered):
            if (requests := self.requests()) is not None:
                yield requests
            end, until = len(gathered), self._inbox.offset(source)
            if until is not None:
                cut = int(np.searchsorted(gathered.offsets, until))
                end = cut if cut > start else end
            chunk = gathered.chunk(start, end)
            self._next[source] = int(gathered.offsets[end - 1]) + 1
            self.place = Place(self.place.inputs, self.place.lines + end - start)
            yield replace(chunk, ahead=tuple(self._inbox.ahead()))
            start = end
