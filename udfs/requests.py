"""Requests to delete users, and where in the log each took effect: a journal in the state folder.

A request comes from outside the log, at any moment. So that a replay treats it alike, the reader of the log first
writes down the place where it takes effect, and only then hands it on; a request that has such a stamp takes effect
there and nowhere else.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import orjson


class Place(NamedTuple):
    """A place in a log: how many inputs have ended before it, and how many lines were read before it in all."""

    inputs: int
    lines: int


class Request(NamedTuple):
    """``number`` is the wall clock in ms when it was made, or more where another was made just then: it goes up."""

    number: int
    user_id: str


@dataclass(frozen=True)
class Stamp:
    """The log and the place where a request takes effect.

    Attributes
    ----------
    offsets
        Of a topic: how far each partition was read there. Another time partitions may come in another order, and the
        first so many records may be others.
    """

    log: str
    place: Place
    offsets: Mapping[str, int] = field(default_factory=dict)


class JournalError(RuntimeError):
    """The journal can't be read; the message names it and what would help."""


class Journal:
    """An append-only file of JSON lines: requests, and stamps.

    Any process may append; each holds the file's lock meanwhile. What was appended is on disk before the lock is
    given back. Only whole lines count: what a power cut tore off is cut away by the next who appends.

    Parameters
    ----------
    required
        The file must be there: who does not see it is on another machine than those who append.

    Attributes
    ----------
    requests
        In the order they were made.
    stamps
        By the number of the request.
    """

    def __init__(self, path: Path, *, required: bool = False) -> None:
        self.path = path
        self._required = required
        self._clear()

    def _clear(self) -> None:
        self.requests: list[Request] = []
        self.stamps: dict[int, Stamp] = {}
        self._offset = 0

    def refresh(self) -> None:
        """Takes in what was appended since the last time; where nothing was, it costs a look at the file's size.

        Raises
        ------
        JournalError
            If a line is not what was written, or a file that must be there is not.
        """
        try:
            size = self.path.stat().st_size
        except FileNotFoundError as error:
            if self._required:
                raise JournalError(
                    f"{self.path} is not there: on a cluster, state_dir must be a folder that all its machines see "
                    "under this path, or users who ask to be deleted would stay"
                ) from error
            return
        if size < self._offset:
            self._clear()  # started anew
        if size == self._offset:
            return
        with self.path.open("rb") as file:
            file.seek(self._offset)
            added = file.read()
        whole = added[: added.rfind(b"\n") + 1]
        for line in whole.splitlines():
            try:
                self._take(orjson.loads(line))
            except (orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
                raise JournalError(
                    f"{self.path} holds a line that is no request: {line[:80]!r}; remove that line, and ask again "
                    "for what it may have asked"
                ) from error
        self._offset += len(whole)

    def _take(self, entry: dict[str, Any]) -> None:
        if "request" in entry:
            self.requests.append(Request(entry["request"], entry["delete_user"]))
            return
        stamp = Stamp(entry["log"], Place(*entry["place"]), entry.get("offsets", {}))
        for number in entry["stamped"]:
            self.stamps.setdefault(number, stamp)

    @contextlib.contextmanager
    def requesting(self, user_ids: Sequence[str], now: int) -> Iterator[list[Request]]:
        """Adds requests to delete users, and keeps their reader from stamping them until the block is left.

        Parameters
        ----------
        now
            The wall clock in ms.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            self.refresh()
            first = max(now, self.requests[-1].number + 1 if self.requests else 0)
            made = [Request(first + k, user_id) for k, user_id in enumerate(user_ids)]
            self._append(file, [{"request": number, "delete_user": user_id} for number, user_id in made])
            yield made

    def stamp(self, log: str, place: Place, offsets: Mapping[str, int] | None = None) -> None:
        """Writes down that the requests without a stamp take effect here. Not while another process appends: later."""
        with self.path.open("ab+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
            self.refresh()  # a reader that was given up, but still lives, may have been first
            numbers = [request.number for request in self.requests if request.number not in self.stamps]
            if numbers:
                entry = {"stamped": numbers, "log": log, "place": list(place)}
                self._append(file, [entry if offsets is None else {**entry, "offsets": dict(offsets)}])

    def _append(self, file: BinaryIO, entries: Sequence[dict[str, Any]]) -> None:
        file.truncate(self._offset)  # a torn line
        file.write(b"".join(orjson.dumps(entry) + b"\n" for entry in entries))
        file.flush()
        os.fsync(file.fileno())
        if self._offset == 0:
            _sync_folder(self.path.parent)
        self.refresh()

    def forget(self) -> None:
        """Empties the journal: what it asked for belongs to a state that is no more."""
        if self.path.exists():
            with self.path.open("ab") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                file.truncate(0)
        self._clear()


def _sync_folder(folder: Path) -> None:
    """A new file's name is on disk only when its folder is."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Inbox:
    """What one log's reader takes from the journal, and where.

    Parameters
    ----------
    log
        The name of the log.
    taken
        The number of the last request that took effect; 0 before the first.
    """

    def __init__(self, journal: Journal, log: str, taken: int) -> None:
        self._journal = journal
        self._log = log
        self.taken = taken
        journal.refresh()

    def due(self, place: Place, *, ended: bool, offsets: Mapping[str, int] | None = None) -> list[Request]:
        """The requests that take effect here, which are taken from then on.

        Those that are new are stamped with this place first. They take effect one after the other, so one that is
        stamped for a place to come holds up those after it. At the end of the input nothing is held up: a log that
        has become shorter may never come to the place.

        Parameters
        ----------
        offsets
            Of a topic: how far each partition is read. A request is due when all are as far as they were when it was
            stamped: no record from before comes after it.
        """
        journal = self._journal
        journal.refresh()
        if len(journal.requests) > len(journal.stamps):
            journal.stamp(self._log, place, offsets)
        due: list[Request] = []
        for request in self._waiting():
            stamp = journal.stamps.get(request.number)
            if stamp is None or not (ended or stamp.log != self._log or _passed(stamp, place, offsets)):
                break
            due.append(request)
        if due:
            self.taken = due[-1].number
        return due

    def is_new(self, request: Request) -> bool:
        """Whether this log is the first to meet a request."""
        stamp = self._journal.stamps.get(request.number)
        return stamp is None or stamp.log == self._log

    def ahead(self) -> list[Request]:
        """The requests that take effect further on, as far as this log is the first to meet them."""
        return list(filter(self.is_new, self._waiting()))

    def _waiting(self) -> list[Request]:
        requests = self._journal.requests
        if not requests or requests[-1].number <= self.taken:
            return []
        return [request for request in requests if request.number > self.taken]

    def offset(self, source: str) -> int | None:
        """Up to which offset a partition may be read before the next request is due; None: as far as it goes."""
        for request in self._waiting():
            stamp = self._journal.stamps.get(request.number)
            return stamp.offsets.get(source) if stamp is not None and stamp.log == self._log else None
        return None

    def limit(self, place: Place) -> int | None:
        """How many lines may be read before the next request is due; None: as many as there are."""
        for request in self._waiting():
            stamp = self._journal.stamps.get(request.number)
            if stamp is not None and stamp.log == self._log and stamp.place.inputs == place.inputs:
                return stamp.place.lines - place.lines
            break
        return None


def _passed(stamp: Stamp, place: Place, offsets: Mapping[str, int] | None) -> bool:
    if offsets is None:
        return stamp.place <= place
    return all(offsets.get(source, 0) >= offset for source, offset in stamp.offsets.items())
