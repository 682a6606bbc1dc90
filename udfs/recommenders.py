"""Learners of implicit feedback: what they have in common, and how their tables grow."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np

from udfs.ids import Ids
from udfs.models import Array

T = TypeVar("T", bound=tuple[Any, ...])


class Recommender(ABC):
    """Learns from what users meet, in River's manner, and scores items for a user; scoring creates no state.

    Attributes
    ----------
    users, items
        Numbers of ids: what the tables are by.
    counts
        How often each item was met, by number; longer than there are items.
    """

    def __init__(self) -> None:
        self.users, self.items = Ids(), Ids()
        self.counts = np.zeros(0)

    def learn_one(self, user_id: str, item_id: str, time: int = 0) -> None:
        """Learns that the user met the item; events of a user at one time are a basket."""
        self.learn([user_id], [item_id], np.array([time], dtype=np.int64))

    def learn(self, user_ids: Sequence[str], item_ids: Sequence[str], times: Array) -> None:
        """:meth:`learn_one` of one event after the other."""
        users, items = np.array(self.users.add(user_ids)), np.array(self.items.add(item_ids))
        self.fit()
        self.learn_numbers(users, items, times)

    def fit(self) -> None:
        """Makes a place for each number."""
        if len(self.items.names) > len(self.counts):
            self.counts = grown(self.counts, len(self.items.names))

    @abstractmethod
    def learn_numbers(self, users: Array, items: Array, times: Array) -> None:
        """:meth:`learn` of numbers that have places."""

    @abstractmethod
    def scores(self, user: int) -> Array:
        """The score of each item, by number; ``user`` is -1 for one that is not known."""

    def score(self, user_id: str, item_id: str) -> float:
        """The score of an item; minus infinity for one that is not known."""
        item = self.items.get(item_id, -1)
        return float(self.scores(self.users.get(user_id, -1))[item]) if item >= 0 else -math.inf

    def rank(self, user_id: str, k: int = 10) -> list[str]:
        """The best items, those that were known longer first among equals."""
        scores = self.scores(self.users.get(user_id, -1))
        known = np.flatnonzero(self.counts[: len(scores)] > 0)
        best = known[np.argsort(-scores[known], kind="stable")[:k]]
        return [self.items.names[number] for number in best]


def grown(table: Array, rows: int, fill: float = 0) -> Array:
    """A table with at least so many rows, and twice as many as before."""
    if rows <= len(table):
        return table
    more = np.full((max(rows, 2 * len(table), 64) - len(table), *table.shape[1:]), fill, dtype=table.dtype)
    return np.concatenate([table, more])


def all_grown(tables: T, rows: int) -> T:
    """The same for named tables; in those called ``items``, a place without an item holds -1."""
    names: Sequence[str] = getattr(tables, "_fields", ())
    return type(tables)(
        *(grown(table, rows, -1 if name == "items" else 0) for name, table in zip(names, tables, strict=True))
    )
