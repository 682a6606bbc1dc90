"""How far a shard may grow: caps on its rows, and rows that expire. Off unless set.

What is dropped follows from the learned order of events alone. Before each event, in this order:

1. if the newest time that was learned enters another eighth of ``expire_after`` with it, the rows go whose newest event
   lies more than ``expire_after`` before the beginning of that eighth;
2. if it brings an id for which there is no room, an eighth of the cap goes: the rows that were learned longest ago.

So no cut of the log into batches, no clock and no restart decides what stays. Events that diverge count as the others
do: they are met in the same order by whoever learns the log.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from udfs.ids import Ids
from udfs.models import ITEM, USER
from udfs.rows import Rows

# What goes at once: looking for the oldest rows costs a pass over all, so it must not be done for each new id.
_PART: Final = 8
_COLUMN: Final = {USER: 2, ITEM: 3}  # where an event has its ids


@dataclass(frozen=True)
class GrowthConfig:
    """The bounds of a shard; None for what has none.

    Attributes
    ----------
    max_users, max_items
        Most rows at any time.
    expire_after
        Milliseconds of event time after which rows go that no event has met.
    """

    max_users: int | None = None
    max_items: int | None = None
    expire_after: int | None = None

    @property
    def is_bounded(self) -> bool:
        return self != GrowthConfig()

    def stored(self) -> dict[str, Any]:
        """As it is kept in a header, to tell whether it has changed."""
        return asdict(self)


class Bounds:
    """Says what must go before an event, and up to which event nothing else must.

    Examples
    --------
    >>> from udfs.ids import Ids
    >>> bounds = Bounds(GrowthConfig(max_users=2), {"user": Rows("user", Ids()), "item": Rows("item", Ids())})
    >>> events = [[at, "", user, "tea"] for at, user in enumerate(["ann", "bob", "ann", "eve"])]
    >>> bounds.piece(events, 0, clock=0)
    3
    """

    def __init__(self, config: GrowthConfig, rows: Mapping[str, Rows]) -> None:
        caps = {USER: config.max_users, ITEM: config.max_items}
        self._caps = {family: cap for family, cap in caps.items() if cap is not None}
        self._expire_after = config.expire_after
        self._step = max(1, (config.expire_after or 0) // _PART)
        self._rows = rows

    def excess(self, event: Sequence[Any], clock: int) -> Iterator[tuple[str, list[str]]]:
        """The ids that go before an event, by family; each must be dropped before the next is asked for.

        ``clock`` is the newest time that was learned before it.
        """
        if self._expire_after is not None and event[0] // self._step > clock // self._step:
            horizon = event[0] // self._step * self._step - self._expire_after
            for family, rows in self._rows.items():
                yield family, rows.older_than(horizon)
        for family, cap in self._caps.items():
            rows, row_id = self._rows[family], event[_COLUMN[family]]
            # More than once only where the cap was lowered, and the event's own row went with the others.
            while (over := len(rows) + (row_id not in rows.ids) - cap) > 0:
                yield family, rows.oldest(min(len(rows), max(over, cap // _PART)))

    def piece(self, events: Sequence[Sequence[Any]], start: int, clock: int) -> int:
        """Where the piece of a group ends that begins at ``start``: before the first event that may ask for room.

        ``clock`` is the newest time that was learned before it.
        """
        end = len(events)
        if self._expire_after is not None:
            limit = (max(clock, events[start][0]) // self._step + 1) * self._step
            end = next((at for at in range(start, end) if events[at][0] >= limit), end)
        for family, cap in self._caps.items():
            ids = self._rows[family].ids
            room = cap - len(ids)
            if room < end - start:
                end = _first_without_room(events, start, end, _COLUMN[family], ids, room)
        return end


def _first_without_room(events: Sequence[Sequence[Any]], start: int, end: int, column: int, ids: Ids, room: int) -> int:
    new: set[str] = set()
    for at in range(start, end):
        row_id = events[at][column]
        if row_id not in ids and row_id not in new:
            if len(new) == room:
                return at
            new.add(row_id)
    return end
