"""A small model that ranks: items by faded counts, beside plain ones."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson

from udfs.ids import Group, Ids
from udfs.models import ITEM, USER, Array, Columns, ModelError, RankingModel
from udfs.ranking import MISS, Predicted, RankingConfig, grouped, place

GROWTH = 1.02  # by how much an event weighs more than the one before


class Counting(RankingModel):
    """Ranks items by how often they were met of late; ``popularity`` ranks them by how often they were met.

    An item's row is its number, its count and its faded count, as of the first event; a user's is how many events there
    were.
    """

    name = "counting"
    families = (USER, ITEM)
    n_factors = 0
    rankers = ("faded", "popularity")
    baselines = ("popularity",)

    def __init__(self) -> None:
        self.ids: dict[str, Ids] = {USER: Ids(), ITEM: Ids()}
        self.rows: dict[str, dict[int, list[float]]] = {USER: {}, ITEM: {}}
        self.events = 0
        self.last: tuple[int, list[str]] = (-1, [])  # the newest time, and who had events at it

    def rank_then_learn(
        self, users: Group, items: Group, times: Array, first: int, config: RankingConfig | None
    ) -> Predicted:
        if config is not None and (not config.repeats or config.others != "ranked"):
            raise ModelError("counting does not know who met what")
        n = len(times)
        wanted = np.zeros(n, dtype=bool) if config is None else config.evaluated(first, n)
        held_out = config is None or config.held_out
        order, starts = grouped(times, users.slots) if held_out else (np.arange(n), np.arange(n + 1))
        events, places, returning, head, offered = [], [], [], [], []
        for start, end in itertools.pairwise(starts.tolist()):
            group = order[start:end].tolist()
            if config is not None and wanted[group].any():
                scores = self._scores()
                known = np.flatnonzero(~np.isnan(scores[1]))
                offered += known[np.argsort(-scores[0, known], kind="stable")[: config.k]].tolist()
                for event in group:
                    if wanted[event]:
                        item = self.ids[ITEM].get(items.row_ids[event], MISS)
                        events.append(event)
                        places.append([place(of, item) for of in scores])
                        returning.append(users.row_ids[event] in self.ids[USER])
                        head.append(0 <= places[-1][1][0] < config.head * len(known))
            for event in group:
                self._learn(users.row_ids[event], items.row_ids[event])
        cut = len({*self.last[1]} & {users.row_ids[e] for e in range(n) if times[e] == self.last[0]}) if held_out else 0
        if n:
            newest = [users.row_ids[e] for e in range(n) if times[e] == times[-1]]
            self.last = int(times[-1]), newest + (self.last[1] if times[-1] == self.last[0] else [])
        users.admit(())
        items.admit(())
        better, ties = np.array(places, dtype=int).reshape(-1, 2, 2).transpose(2, 0, 1)
        flags = np.array(returning, dtype=bool), np.array(head, dtype=bool)
        return Predicted(np.array(events, dtype=int), better, ties, *flags, np.array(offered, dtype=int), cut)

    def _scores(self) -> Array:
        """By ranker and item."""
        scores = np.full((2, len(self.ids[ITEM].names)), np.nan)
        for number, (count, faded) in self.rows[ITEM].items():
            scores[:, number] = faded, count
        return scores

    def _learn(self, user_id: str, item_id: str) -> None:
        [user], [item] = self.ids[USER].add([user_id]), self.ids[ITEM].add([item_id])
        self.rows[USER].setdefault(int(user), [0.0])[0] += 1.0
        row = self.rows[ITEM].setdefault(int(item), [0.0, 0.0])
        row[0] += 1.0
        row[1] += GROWTH**self.events
        self.events += 1

    def also_changed(self) -> Array:
        return np.empty(0, dtype=np.intp)

    def header(self) -> bytes:
        return orjson.dumps({"events": self.events, "last": self.last})

    def restore_header(self, blob: bytes) -> None:
        known: dict[str, Any] = orjson.loads(blob)
        self.events, self.last = known["events"], tuple(known["last"])

    def encode_rows(self, family: str, row_ids: Sequence[str], numbers: Array) -> Array:
        of = self.rows[family]
        rows = [of[n] if family == USER else [n, *of[n]] for n in numbers.tolist()]
        return np.array(rows, dtype="<f8").reshape(-1, 1 if family == USER else 3)

    def decode_rows(self, family: str, row_ids: Sequence[str], blobs: Sequence[bytes]) -> None:
        for number, blob in zip(self.ids[family].add(row_ids).tolist(), blobs, strict=True):
            row = np.frombuffer(blob, dtype="<f8").tolist()
            self.rows[family][number] = row if family == USER else row[1:]

    def number(self, parts: Sequence[bytes]) -> Array:
        return np.array([np.frombuffer(part[:8], dtype="<f8")[0] for part in parts], dtype=np.intp)

    def drop(self, family: str, row_ids: Sequence[str]) -> None:
        for number in self.ids[family].remove(row_ids).tolist():
            del self.rows[family][number]

    def vectors(self, family: str, weights: Array) -> Array:
        return np.empty((len(weights), 0))

    def global_mean(self) -> float:
        return 0.0

    def columns(self, family: str) -> Columns:
        raise ModelError("counts of other orders of events can't be merged")

    def pool(self, n: int, global_mean: float) -> None:
        pass
