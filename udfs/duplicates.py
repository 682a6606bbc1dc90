"""Which event ids a log has brought, for as long as they may come again."""

from __future__ import annotations

from collections.abc import Set
from typing import Final

import orjson

from udfs.interactions import Interactions
from udfs.models import Array
from udfs.tilefeed import owner

KIND: Final = "d"  # of the names of its blobs


class EventIds:
    """The event ids of a log by user, each with a time at which it counts as having come.

    State is written as a log of blobs, ``d:{n}``: the new ids of a chunk and their times, forgotten as a whole.

    Attributes
    ----------
    seen
        The time (ms) of each id, by a key that begins with its user: see :func:`~udfs.tilefeed.owner`.

    Parameters
    ----------
    horizon
        Milliseconds within which an id that comes again is a duplicate.
    """

    def __init__(self, horizon: int) -> None:
        self._horizon = horizon
        self.seen: dict[str, int] = {}
        # The newest time in a stored blob, and which keys it holds, so that it can be forgotten whole.
        self._blobs: dict[str, tuple[int, list[str]]] = {}

    @property
    def blobs(self) -> int:
        """How many blobs are stored."""
        return len(self._blobs)

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
        user_ids, event_ids = events.user_ids, events.event_ids
        named = [at for at in places.tolist() if event_ids[at]]
        if not named:
            return {}
        keys = [f"{len(user_ids[at])}:{user_ids[at]}{event_ids[at]}" for at in named]
        times = events.times[named].tolist()
        # Most come once, and are remembered by the way: what was there before is not the same object as what is put.
        found = list(map(self.seen.setdefault, keys, times))
        again = [place for place, (first, time) in enumerate(zip(found, times, strict=True)) if first is not time]
        duplicates: dict[int, str] = {}
        if again:
            for place in again:
                at, key, time = named[place], keys[place], times[place]
                first = self.seen[key]
                if abs(time - first) <= self._horizon and first >= remembered_from[at]:
                    duplicates[at] = f"event_id {event_ids[at]!r} of user_id {user_ids[at]!r} came before, at {first}"
                else:
                    self.seen[key] = max(first, time)
            kept = [place for place, at in enumerate(named) if at not in duplicates]
            keys, times = [keys[place] for place in kept], [times[place] for place in kept]
        if keys:
            puts[name := f"{KIND}:{number}"] = orjson.dumps([times, keys])
            self._blobs[name] = (max(times), keys)
        return duplicates

    def forget(self, watermark: int, removes: list[str]) -> None:
        """Drops the ids that no later event can meet, so their state is bounded by the horizon."""
        oldest = watermark - self._horizon
        for name in [n for n, (newest, _) in self._blobs.items() if newest < oldest]:
            for key in self._blobs.pop(name)[1]:
                if self.seen.get(key, oldest) < oldest:
                    del self.seen[key]
            removes.append(name)

    def drop(self, user_ids: Set[str], puts: dict[str, bytes], removes: list[str]) -> None:
        """Forgets the ids of users."""
        dropped = {key for key in self.seen if owner(key) in user_ids}
        if not dropped:
            return
        for name, (_, keys) in list(self._blobs.items()):
            left = [key for key in keys if key not in dropped]
            if not left:
                del self._blobs[name]
                removes.append(name)
            elif len(left) < len(keys):
                times = [self.seen[key] for key in left]
                puts[name] = orjson.dumps([times, left])
                self._blobs[name] = (max(times), left)
        for key in dropped:
            del self.seen[key]

    def restore(self, name: str, blob: bytes) -> None:
        """Takes up a stored blob, in the order in which they were stored."""
        times, keys = orjson.loads(blob)
        for key, time in zip(keys, times, strict=True):
            self.seen[key] = max(time, self.seen.get(key, time))
        self._blobs[name] = (max(times), keys)
