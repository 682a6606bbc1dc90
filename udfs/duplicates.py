"""Which event ids a log has brought, for as long as they may come again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from typing import Final

import numpy as np
import orjson

from udfs.ids import at_least, hashes_of
from udfs.interactions import Interactions, chosen
from udfs.models import Array
from udfs.pieces import Pieces
from udfs.tilefeed import split_key

KIND: Final = "e"  # of the names of its blobs
_KIND_OF_1: Final = "d"  # of layout 1: with user and id as one text
KINDS: Final = (KIND, _KIND_OF_1)
_LEAST: Final = 1_024  # a power of two
_NEVER: Final = -1  # in place of a time: all events are of after 1970


class EventIds:
    """The event ids of a log by user, each with a time at which it counts as having come.

    They lie in arrays, as texts in a dictionary took 180 bytes each (docs/decisions/0033-no-objects-in-the-intake.md).
    State is written as a log of blobs, ``e:{n}``: the new ids of a chunk and their times, forgotten as a whole.

    Parameters
    ----------
    horizon
        Milliseconds within which an id that comes again is a duplicate.
    """

    def __init__(self, horizon: int) -> None:
        self._horizon = horizon
        # The newest time in a stored blob, and which entries it holds, so that it can be forgotten whole.
        self._blobs: dict[str, tuple[int, Array]] = {}
        # Open addressing, at most half full: a hash, and the number of an entry plus one, 0 where there is none.
        self._table = np.zeros((_LEAST, 2), dtype=np.int64)
        # By entry: its time, how long its user's id is, and where its text begins and ends: that id and its own.
        self._times = np.empty(_LEAST, dtype=np.int64)
        self._users = np.empty(_LEAST, dtype=np.int64)
        self._bounds = np.zeros(_LEAST + 1, dtype=np.int64)
        self._text = np.empty(_LEAST, dtype=np.uint8)
        self._count = self._forgotten = 0  # entries, and those of them whose id may come again

    @property
    def blobs(self) -> int:
        """How many blobs are stored."""
        return len(self._blobs)

    @property
    def seen(self) -> dict[tuple[str, str], int]:
        """The time (ms) of each id, by user and id."""
        known = np.flatnonzero(self._times[: self._count] != _NEVER)
        return dict(zip(self._named(known), self._times[known].tolist(), strict=True))

    def sift(
        self,
        events: Interactions,
        places: Array,
        remembered_from: Array,
        number: int,
        puts: dict[str, bytes],
    ) -> dict[int, str]:
        """Which of the events at some places came before, by their places, and why; the others are remembered.

        Parameters
        ----------
        remembered_from
            Of each of ``events``, the time (ms) before which ids count as forgotten when it comes.
        number
            What is to be stored goes to ``puts`` under this.
        """
        events, remembered_from = events.take(places), remembered_from[places]
        has_id = np.fromiter(map(bool, events.event_ids), dtype=np.bool_, count=len(events))
        if not has_id.all():
            named = np.flatnonzero(has_id)
            events, remembered_from, places = events.take(named), remembered_from[named], places[named]
        if not len(events):
            return {}
        user_ids, event_ids, times = events.user_ids, events.event_ids, events.times
        entries, firsts = self._met(user_ids, event_ids, times, remembered_from)
        duplicates = {
            int(places[at]): f"event_id {event_ids[at]!r} of user_id {user_ids[at]!r} came before, at {firsts[at]}"
            for at in np.flatnonzero(firsts != _NEVER).tolist()
        }
        if duplicates:
            kept = np.flatnonzero(firsts == _NEVER)
            entries, times, user_ids, event_ids = (chosen(of, kept) for of in (entries, times, user_ids, event_ids))
        if len(entries):
            puts[name := f"{KIND}:{number}"] = _encoded(times, user_ids, event_ids)
            self._blobs[name] = (int(times.max()), entries)
        return duplicates

    def forget(self, watermark: int, removes: list[str]) -> None:
        """Drops the ids that no later event can meet, so their state is bounded by the horizon."""
        oldest = watermark - self._horizon
        for name in [n for n, (newest, _) in self._blobs.items() if newest < oldest]:
            entries = self._blobs.pop(name)[1]
            self._forget(entries[self._times[entries] < oldest])
            removes.append(name)

    def drop(self, user_ids: Set[str], puts: dict[str, bytes], removes: list[str]) -> None:
        """Forgets the ids of users."""
        known = np.flatnonzero(self._times[: self._count] != _NEVER)
        is_dropped = np.fromiter((user_id in user_ids for user_id, _ in self._named(known)), dtype=np.bool_)
        dropped = known[is_dropped]
        if not len(dropped):
            return
        self._forget(dropped)
        for name, (_, entries) in list(self._blobs.items()):
            left = entries[self._times[entries] != _NEVER]
            if not len(left):
                del self._blobs[name]
                removes.append(name)
            elif len(left) < len(entries):
                times = self._times[left]
                puts[name] = _encoded(times, *map(list, zip(*self._named(left), strict=True)))
                self._blobs[name] = (int(times.max()), left)
        self._renew(0)

    def restore(self, name: str, blob: bytes) -> None:
        """Takes up a stored blob, in the order in which they were stored."""
        stored = orjson.loads(blob)
        times, user_ids, event_ids = stored if name.startswith(KIND) else (stored[0], *_split(stored[1]))
        come = np.array(times, dtype=np.int64)
        never = np.full(len(come), np.iinfo(np.int64).max)  # nothing is a duplicate
        self._blobs[name] = (max(times), self._met(user_ids, event_ids, come, never)[0])

    def _met(
        self, user_ids: Sequence[str], event_ids: Sequence[str], times: Array, remembered_from: Array
    ) -> tuple[Array, Array]:
        """Takes up ids, one after the other.

        Returns
        -------
        The entry of each; and for a duplicate the time at which it had come before, otherwise ``_NEVER``.
        """
        from udfs import kernels  # here, as numba takes half a second to import

        users, ids = Pieces.of_texts(user_ids), Pieces.of_texts(event_ids)
        self._fit(len(times), len(users.data) + len(ids.data))
        entries, firsts = np.empty(len(times), dtype=np.intp), np.full(len(times), _NEVER)
        hashes = hashes_of(user_ids) * 31 + hashes_of(event_ids)
        known = self._times, self._users, self._bounds, self._text
        come = users.data, users.bounds, ids.data, ids.bounds, times, remembered_from
        self._count, again = kernels.sift(
            self._table, *known, self._count, hashes, *come, self._horizon, _NEVER, entries, firsts
        )
        self._forgotten -= again
        return entries, firsts

    def _forget(self, entries: Array) -> None:
        known = np.unique(entries[self._times[entries] != _NEVER])  # a blob may have an id twice
        self._times[known] = _NEVER
        self._forgotten += len(known)

    def _named(self, entries: Array) -> Iterator[tuple[str, str]]:
        """User and id of some entries."""
        of = (self._bounds[entries], self._bounds[entries + 1], self._users[entries])
        for start, end, length in zip(*(column.tolist() for column in of), strict=True):
            text = self._text[start:end].tobytes()
            yield text[:length].decode(), text[length:].decode()

    def _fit(self, count: int, size: int) -> None:
        """Makes room for so many ids more, of so many bytes."""
        if 2 * self._forgotten > self._count + _LEAST or 2 * (self._count + count) > len(self._table):
            self._renew(count)
        known, used = self._count, int(self._bounds[self._count])
        self._times, self._users = (at_least(of, known, known + count) for of in (self._times, self._users))
        self._bounds = at_least(self._bounds, known + 1, known + count + 1)
        self._text = at_least(self._text, used, used + size)

    def _renew(self, count: int) -> None:
        """Writes all entries anew, without those that are forgotten, and with room for so many more in the table."""
        from udfs import kernels

        is_known = self._times[: self._count] != _NEVER
        known, numbers = np.flatnonzero(is_known), np.where(is_known, np.cumsum(is_known) - 1, -1)
        hashes = np.empty(self._count, dtype=np.int64)
        is_entry = self._table[:, 1] > 0
        hashes[self._table[is_entry, 1] - 1] = self._table[is_entry, 0]
        lengths = np.diff(self._bounds[: self._count + 1])
        self._text = self._text[: self._bounds[self._count]][np.repeat(is_known, lengths)]
        self._times, self._users = self._times[known], self._users[known]
        self._bounds = np.append(0, np.cumsum(lengths[known]))
        self._count, self._forgotten = len(known), 0
        for name, (newest, entries) in self._blobs.items():
            left = numbers[entries]
            self._blobs[name] = (newest, left[left >= 0])
        self._table = np.zeros((max(_LEAST, 1 << (2 * (len(known) + count)).bit_length()), 2), dtype=np.int64)
        kernels.enter(self._table, hashes[known], np.arange(len(known)))


def _encoded(times: Array, user_ids: Sequence[str], event_ids: Sequence[str]) -> bytes:
    return orjson.dumps([np.ascontiguousarray(times), user_ids, event_ids], option=orjson.OPT_SERIALIZE_NUMPY)


def _split(keys: Sequence[str]) -> tuple[list[str], list[str]]:
    pairs = list(map(split_key, keys))
    return [user_id for user_id, _ in pairs], [event_id for _, event_id in pairs]
