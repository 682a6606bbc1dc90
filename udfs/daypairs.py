"""The pairs of user and item that a day has brought: each is told from all others, and takes some 16 bytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import orjson

from udfs.ids import Ids, Numbers
from udfs.models import Array

_LEAST: Final = 1_024  # a power of two
_USER: Final = np.uint64(32)
_ITEM: Final = np.uint64(2**32 - 1)
_ONE: Final = np.uint64(1)


class DayPairs:
    """Distinct pairs, as numbers of their ids in a table.

    As texts in a set they took 100 bytes each, and left holes in memory when the day was over
    (docs/decisions/0033-no-objects-in-the-intake.md).

    Examples
    --------
    >>> pairs = DayPairs()
    >>> pairs.add(["ann", "bob"], ["tea"], np.array([0, 1, 0]), np.array([0, 0, 0]))
    array([ True,  True, False])
    >>> sorted(pairs), len(pairs)
    ([('ann', 'tea'), ('bob', 'tea')], 2)
    """

    def __init__(self) -> None:
        self._users, self._items = Ids(), Ids()
        # Open addressing, at most two thirds full: a user's number, 32 bits, an item's, and one more; 0 is none.
        self._table = np.zeros(_LEAST, dtype=np.uint64)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[tuple[str, str]]:
        users, items = self._apart(self._all())
        names = zip(users.tolist(), items.tolist(), strict=True)
        return ((self._users.names[user], self._items.names[item]) for user, item in names)

    def add(
        self, user_ids: Sequence[str], item_ids: Sequence[str], users: Numbers, items: Numbers
    ) -> npt.NDArray[np.bool_]:
        """Takes up pairs, given by their places in lists of ids.

        Returns
        -------
        Which of them were not there before; of those that are the same, the first.
        """
        from udfs import kernels  # here, as numba takes half a second to import

        of_user = self._users.add(user_ids).astype(np.uint64)[users]
        of_item = self._items.add(item_ids).astype(np.uint64)[items]
        self._fit(self._count + len(users))
        new = np.zeros(len(users), dtype=np.bool_)
        kernels.add_pairs(self._table, (of_user << _USER | of_item) + _ONE, new)
        self._count += int(np.count_nonzero(new))
        return new

    def drop(self, user_ids: Iterable[str]) -> bool:
        """Forgets users; whether it knew of any."""
        known = [user_id for user_id in user_ids if user_id in self._users]
        if not known:
            return False
        pairs = self._all()
        gone = self._users.remove(known)
        left = pairs[~np.isin(self._apart(pairs)[0], gone)]
        self._table, self._count = np.zeros(_LEAST, dtype=np.uint64), 0
        self._fit(len(left))
        self._enter(left)
        self._count = len(left)
        return True

    def encode(self, at_once: int) -> Iterator[bytes]:
        """All pairs, so many in a piece."""
        users, items = self._apart(np.sort(self._all()))
        for start in range(0, len(users), at_once):
            part = slice(start, start + at_once)
            yield encoded(self._users.names, self._items.names, users[part], items[part])

    def decode(self, blob: bytes) -> None:
        """Takes up what :func:`encoded` gave."""
        user_ids, item_ids, users, items = orjson.loads(blob)
        self.add(user_ids, item_ids, np.array(users, dtype=np.intp), np.array(items, dtype=np.intp))

    def _all(self) -> Array:
        return self._table[self._table > 0]

    def _apart(self, pairs: Array) -> tuple[Numbers, Numbers]:
        """The numbers of users and items in what the table holds."""
        numbers = pairs - _ONE
        return (numbers >> _USER).astype(np.intp), (numbers & _ITEM).astype(np.intp)

    def _fit(self, count: int) -> None:
        """Makes room for so many."""
        size = len(self._table)
        while 3 * count > 2 * size:
            size *= 2
        if size > len(self._table):
            pairs, self._table = self._all(), np.zeros(size, dtype=np.uint64)
            self._enter(pairs)

    def _enter(self, pairs: Array) -> None:
        from udfs import kernels

        kernels.add_pairs(self._table, pairs, np.zeros(len(pairs), dtype=np.bool_))


def encoded(user_ids: Sequence[str], item_ids: Sequence[str], users: Numbers, items: Numbers) -> bytes:
    """Pairs, given by places in lists of ids, with those ids that they use.

    >>> encoded(["ann", "bob"], ["tea", "rum"], np.array([1, 1]), np.array([1, 0]))
    b'[["bob"],["tea","rum"],[0,0],[1,0]]'
    """
    (user_ids, users), (item_ids, items) = used(user_ids, users), used(item_ids, items)
    return orjson.dumps([user_ids, item_ids, users, items], option=orjson.OPT_SERIALIZE_NUMPY)


def used(ids: Sequence[str], places: Numbers) -> tuple[Sequence[str], Numbers]:
    """Those ids that are at some of the places, and where these are among them.

    >>> used(["ann", "bob", "eve"], np.array([2, 0, 2]))
    (['ann', 'eve'], array([1, 0, 1]))
    """
    is_used = np.zeros(len(ids), dtype=np.bool_)
    is_used[places] = True
    if is_used.all():
        return ids, places
    return [ids[place] for place in np.flatnonzero(is_used).tolist()], (np.cumsum(is_used) - 1)[places]
