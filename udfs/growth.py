"""How far a shard may grow: caps on its rows, rows that expire, and ids that must come often for one. Off unless set.

What has a row follows from the learned order of events alone. Before each event, in this order:

1. if as many events were counted as the counters are to remember, they are halved;
2. if the newest time that was learned enters another eighth of ``expire_after`` with it, the rows go whose newest event
   lies more than ``expire_after`` before the beginning of that eighth;
3. if its user, and then its item, is to have a row for which there is no room, an eighth of the cap goes: the rows that
   were learned longest ago;
4. if an id has no row, and has not come often enough for one, it is counted, and learned on a row of the tail.

So no cut of the log into batches, no clock and no restart decides what stays. Events that diverge count as the others
do: they are met in the same order by whoever learns the log.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import numpy as np

from udfs.interactions import Interactions
from udfs.models import ITEM, USER
from udfs.rows import Rows
from udfs.tail import Tail, tail_id

# What goes at once: looking for the oldest rows costs a pass over all, so it must not be done for each new id.
_PART: Final = 8


@dataclass(frozen=True)
class GrowthConfig:
    """The bounds of a shard; None for what has none.

    Attributes
    ----------
    max_users, max_items
        Most rows at any time.
    expire_after
        Milliseconds of event time after which rows go that no event has met.
    min_events
        With which of its events an id gets a row of its own.
    tail_rows
        How many rows the ids of a family share that have none.
    tail_counters
        Bytes, for each family, in which their events are counted.
    """

    max_users: int | None = None
    max_items: int | None = None
    expire_after: int | None = None
    min_events: int = 1
    tail_rows: int = 1_024
    tail_counters: int = 1_048_576

    @property
    def has_tail(self) -> bool:
        return self.min_events > 1

    @property
    def is_bounded(self) -> bool:
        return self.has_tail or any(bound is not None for bound in (self.max_users, self.max_items, self.expire_after))

    def stored(self) -> dict[str, Any]:
        """As it is kept in a header, to tell whether it has changed."""
        return asdict(self) if self.is_bounded else {}


@dataclass
class Piece:
    """Events of a group that are learned at once.

    Attributes
    ----------
    end
        Where it ends in the group.
    rows
        By family, the id of the row on which each event is learned.
    heirs
        By family, ids that get a row of their own, and of which row it begins with the weights.
    """

    end: int
    rows: dict[str, list[str]] = field(default_factory=lambda: {USER: [], ITEM: []})
    heirs: dict[str, dict[str, str]] = field(default_factory=lambda: {USER: {}, ITEM: {}})


class Bounds:
    """Says what must go before an event, and up to which event nothing else must.

    Attributes
    ----------
    tails
        By family; empty where each id has a row at once.

    Examples
    --------
    >>> from udfs.ids import Ids
    >>> bounds = Bounds(GrowthConfig(max_users=2), {"user": Rows("user", Ids()), "item": Rows("item", Ids())})
    >>> users = ["ann", "bob", "ann", "eve"]
    >>> events = Interactions.of([[at, "", user, "tea", "view", 1.0, 0, at] for at, user in enumerate(users)])
    >>> bounds.piece(events, 0, clock=0).end
    3
    """

    def __init__(self, config: GrowthConfig, rows: Mapping[str, Rows]) -> None:
        caps = {USER: config.max_users, ITEM: config.max_items}
        self._caps = {family: cap for family, cap in caps.items() if cap is not None}
        self._expire_after = config.expire_after
        self._step = max(1, (config.expire_after or 0) // _PART)
        self._rows = rows
        tail = (config.min_events, config.tail_rows, config.tail_counters)
        self.tails = {family: Tail(*tail) for family in rows} if config.has_tail else {}

    def own(self, family: str) -> int:
        """How many rows belong to one id."""
        return len(self._rows[family]) - len(self.shared(family))

    def excess(self, events: Interactions, at: int, clock: int) -> Iterator[tuple[str, list[str]]]:
        """The ids that go before the event at a place, by family; each must be dropped before the next is asked for.

        ``clock`` is the newest time that was learned before it.
        """
        for tail in self.tails.values():
            if tail.is_full:
                tail.age()
        time = int(events.times[at])
        if self._expire_after is not None and time // self._step > clock // self._step:
            horizon = time // self._step * self._step - self._expire_after
            for family, rows in self._rows.items():
                yield family, rows.older_than(horizon, self.shared(family))
        for family, cap in self._caps.items():
            rows, row_id = self._rows[family], events.ids[family][at]
            # More than once only where the cap was lowered, and the event's own row went with the others.
            while (over := self.own(family) + self._is_to_have(family, row_id) - cap) > 0:
                yield family, rows.oldest(min(self.own(family), max(over, cap // _PART)), self.shared(family))

    def piece(self, events: Interactions, start: int, clock: int) -> Piece:
        """The piece of a group that begins at ``start``: up to the first event that may ask for room, and counted.

        ``clock`` is the newest time that was learned before it.
        """
        end = len(events)
        if self._expire_after is not None:
            limit = (max(clock, int(events.times[start])) // self._step + 1) * self._step
            end = start + int(np.argmax(np.append(events.times[start:] >= limit, True)))
        if self.tails:
            return self._routed(events, start, end)
        for family, cap in self._caps.items():
            room = cap - len(self._rows[family])
            if room < end - start:
                end = self._without_room(events, start, end, family, room)
        return Piece(end, {family: list(column[start:end]) for family, column in events.ids.items()})

    def _without_room(self, events: Interactions, start: int, end: int, family: str, room: int) -> int:
        """The first event that brings one id too many."""
        column, ids = events.ids[family], self._rows[family].ids
        new: set[str] = set()
        for at in range(start, end):
            row_id = column[at]
            if row_id not in ids and row_id not in new:
                if len(new) == room:
                    return at
                new.add(row_id)
        return end

    def _routed(self, events: Interactions, start: int, end: int) -> Piece:
        """Counts the events of ids without a row; what gets one is decided event by event."""
        piece = Piece(end)
        rooms = {
            family: self._caps[family] - self.own(family) if family in self._caps else end - start
            for family in events.ids
        }
        of_families = [
            (column, self._rows[family].ids, self.tails[family], piece.rows[family], piece.heirs[family], rooms[family])
            for family, column in events.ids.items()
        ]
        for at in range(start, end):
            due: list[bool | None] = []
            if at > start and any(tail.is_full for tail in self.tails.values()):
                piece.end = at
                return piece
            for column, ids, tail, _, heirs, room in of_families:
                row_id = column[at]
                has_row = row_id in ids or row_id in heirs
                due.append(None if has_row else tail.is_due(row_id))
                if due[-1] and len(heirs) == room:
                    piece.end = at
                    return piece
            for (column, _, tail, rows, heirs, _), is_due in zip(of_families, due, strict=True):
                row_id = column[at]
                if is_due:
                    heirs[row_id] = tail.row_of(row_id)
                elif is_due is not None:
                    tail.count(row_id)
                    row_id = tail.row_of(row_id)
                rows.append(row_id)
        return piece

    def _is_to_have(self, family: str, row_id: str) -> bool:
        """Whether an event gives its id a row that it has not."""
        return row_id not in self._rows[family].ids and (not self.tails or self.tails[family].is_due(row_id))

    def shared(self, family: str) -> list[int]:
        """The numbers of the rows of the tail, which belong to no id of their own."""
        if not self.tails:
            return []
        numbers = self._rows[family].ids.find([*map(tail_id, range(self.tails[family].rows))])
        return [number for number in numbers.tolist() if number >= 0]
