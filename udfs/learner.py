"""The learner of one shard: predicts, scores and learns each interaction, in order.

Plain Python, to be used in a notebook as in the job::

    >>> from udfs.batch import Batch
    >>> learner = Learner(LearnerConfig(), build("baseline", {}))
    >>> events = [[1, "", "ann", "tea", "rating", 5.0, 0, 1], [2, "", "ann", "rum", "rating", 1.0, 0, 2]]
    >>> [result] = learner.process(Batch(None, True, ["notebook"], events, b"{}"))
    >>> sorted(result.touched[ITEM]), learner.learned
    (['rum', 'tea'], 2)

It waits for the watermark where one is given, so that interactions are learned in the order of their times
whatever the order of their arrival; it says which rows it touched; and it turns all it knows into rows.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import orjson

from udfs.batch import Batch
from udfs.building import build
from udfs.deadletters import dead_letter
from udfs.ids import Group
from udfs.metrics import Prequential, since, values
from udfs.models import ITEM, USER, RowModel
from udfs.rows import EncodedRows, Rows

LAYOUT: Final = 1

__all__ = ["Learned", "Learner", "LearnerConfig", "build"]


@dataclass(frozen=True)
class LearnerConfig:
    """What learning depends on besides the model.

    Attributes
    ----------
    weights
        Target of an event that is not a rating, by its type; ``default_weight`` for other types.
    clip
        Bounds of a prediction for scoring.
    seen
        How many recent items a user's row keeps.
    half_life
        Milliseconds in which an item's popularity halves.
    group
        How many events are learned, stored and published at once.
    """

    weights: Mapping[str, float] = field(default_factory=dict)
    default_weight: float = 1.0
    clip: tuple[float, float] | None = None
    metrics: tuple[str, ...] = ("MAE", "RMSE")
    seen: int = 50
    half_life: int = 7 * 86_400_000
    group: int = 200_000
    position_names: tuple[str, str] = ("file", "line")
    run_id: str = ""


@dataclass
class Learned:
    """What one group of interactions changed: by family, the numbers of rows by id."""

    touched: dict[str, Mapping[str, int]]
    dead_letters: list[str]


class Learner:
    """Learns one shard's interactions record by record, whatever batches they come in."""

    def __init__(self, config: LearnerConfig, model: RowModel) -> None:
        self.config = config
        self.model = model
        self.scores = Prequential(config.metrics)
        self.rows = {family: Rows(family, ids) for family, ids in model.ids.items()}
        self.seq = 0
        self.learned = 0
        self.diverged = 0
        self.ended = False
        self.updated_at = 0
        self.latest: tuple[str, str] | None = None  # user and item learned last, for examples
        self.run_id = config.run_id
        self.base: dict[str, Any] = self._counts()
        self.carried = 0
        # Accepted interactions that wait for the watermark, in order, and the stored batches they are in.
        self.waiting: list[list[Any]] = []
        self.released: int | None = None
        self.batch_number = 0
        self.batches: dict[int, tuple[int, Sequence[str], bytes]] = {}

    # --------------------------------------------------------------------------------------- learning

    def process(self, batch: Batch) -> Iterator[Learned]:
        """Takes a batch in, and learns what is ready, in groups of bounded size.

        The caller stores header and touched rows after each group; at the end it drops the batches that
        :meth:`finished_batches` names, and stores what :meth:`waiting_of` gives of this one.
        """
        number = self.batch_number
        self.batch_number += 1
        if batch.events:
            for index, event in enumerate(batch.events):
                event += (number, index)
            newest = max(event[0] for event in batch.events)
            self.batches[number] = (newest, batch.sources, batch.lines)
        if batch.watermark is None:
            ready, self.waiting = self.waiting + batch.events, []
        else:
            self.waiting += batch.events
            self.waiting.sort()
            at = len(self.waiting) if batch.ended else bisect_left(self.waiting, [batch.watermark])
            ready, self.waiting = self.waiting[:at], self.waiting[at:]
            self.released = batch.watermark
        self.ended = batch.ended
        if batch.ended:
            # The next input has a time of its own.
            self.released = None
        for start in range(0, len(ready), self.config.group):
            yield self._learn(ready[start : start + self.config.group])
        if not ready:
            yield Learned({family: {} for family in self.rows}, [])

    def finished_batches(self) -> list[int]:
        """Forgets the batches of which nothing waits any more, and names them."""
        if not self.waiting:
            done = list(self.batches)
        else:
            oldest = self.waiting[0][0]
            done = [number for number, (newest, _, _) in self.batches.items() if newest < oldest]
        for number in done:
            del self.batches[number]
        return done

    def waiting_of(self, number: int) -> bytes | None:
        """What still waits of a batch, as a batch to be stored; None if nothing does."""
        if number not in self.batches:
            return None
        _, sources, lines = self.batches[number]
        raw = lines.split(b"\n")
        waiting = [event for event in self.waiting if event[8] == number]
        kept = b"\n".join([raw[event[9]] for event in waiting])
        return Batch(self.released, False, sources, [event[:8] for event in waiting], kept).encode()

    def _learn(self, events: list[list[Any]]) -> Learned:
        config, ids = self.config, self.model.ids
        weights, default = config.weights, config.default_weight
        targets = [event[5] if event[4] == "rating" else weights.get(event[4], default) for event in events]
        users = Group(ids[USER], [event[2] for event in events])
        items = Group(ids[ITEM], [event[3] for event in events])
        with np.errstate(all="ignore"):  # what overflows is found and rolled back
            predictions, diverged = self.model.learn(users, items, targets)
        self.updated_at = max(self.updated_at, max(event[0] for event in events))
        self.latest = (events[-1][2], events[-1][3])
        letters = [self._letter(str(verdict), events[place]) for place, verdict in diverged.items()]
        if diverged:
            left = [place for place in range(len(events)) if place not in diverged]
            events, targets = [events[place] for place in left], [targets[place] for place in left]
            users = Group(ids[USER], [event[2] for event in events])
            items = Group(ids[ITEM], [event[3] for event in events])
        if config.clip is not None:
            low, high = config.clip
            predictions = [min(max(p, low), high) for p in predictions]
        self.scores.update(targets, predictions)
        times = np.array([event[0] for event in events], dtype=np.int64)
        self.rows[USER].count(users, times, self.seq + 1)
        self.rows[ITEM].count(items, times, self.seq + 1)
        self.rows[USER].remember(users, items, config.seen)
        self.rows[ITEM].favour(items, times / config.half_life)
        self.seq += len(events)
        self.learned += len(events)
        self.diverged += len(letters)
        touched: dict[str, Mapping[str, int]] = {
            family: dict(zip(group.distinct, group.numbers, strict=True))
            for family, group in ((USER, users), (ITEM, items))
        }
        return Learned(touched, letters)

    def everything(self) -> Learned:
        """All rows, as if they had just been learned: to write them again into a Redis that lost them."""
        return Learned(dict(self.model.ids), [])

    def _letter(self, message: str, event: list[Any]) -> str:
        source, position, number, index = event[6:]
        _, sources, lines = self.batches[number]
        where = dict(zip(self.config.position_names, (sources[source], position), strict=True))
        return dead_letter("diverged", message, where, lines.split(b"\n")[index])

    # ------------------------------------------------------------------------------------------ state

    def _counts(self) -> dict[str, Any]:
        return {"learned": self.learned, "diverged": self.diverged, "means": self.scores.means}

    def header(self) -> bytes:
        """The small part of the state, stored after each group."""
        return orjson.dumps(
            {
                "layout": LAYOUT,
                "model": orjson.Fragment(self.model.header()),
                "seq": self.seq,
                "counts": self._counts(),
                "base": self.base,
                "carried": self.carried,
                "run_id": self.run_id,
                "ended": self.ended,
                "updated_at": self.updated_at,
                "released": self.released,
                "batch_number": self.batch_number,
            }
        )

    def encode(self, learned: Learned) -> dict[str, EncodedRows]:
        """The touched rows by family, encoded once for the state and for Redis."""
        return {
            family: self.rows[family].encode(rows, self.model.encode_rows(family, rows))
            for family, rows in learned.touched.items()
        }

    def restore(
        self,
        header: bytes,
        rows: Iterable[tuple[str, str, bytes]],
        batches: Iterable[tuple[int, bytes]],
    ) -> None:
        """Takes up the state of an earlier process.

        Parameters
        ----------
        rows
            ``(family, id, bytes)`` of each row.
        batches
            The stored batches, by number.

        Raises
        ------
        ValueError
            If the state was written by another model, by other factors, or by a newer layout.
        """
        stored = orjson.loads(header)
        if stored["layout"] != LAYOUT:
            raise ValueError(f"the learner's state has layout {stored['layout']}, this freshet reads {LAYOUT}")
        self.model.restore_header(orjson.dumps(stored["model"]))
        counts = stored["counts"]
        self.seq, self.learned, self.diverged = stored["seq"], counts["learned"], counts["diverged"]
        self.scores.restore(counts["means"])
        self.base, self.carried, self.run_id = stored["base"], stored["carried"], stored["run_id"]
        self.ended, self.updated_at = stored["ended"], stored["updated_at"]
        self.released, self.batch_number = stored["released"], stored["batch_number"]
        for family, row_id, blob in rows:
            self.model.decode_row(family, row_id, self.rows[family].restore(row_id, blob))
        for number, blob in sorted(batches):
            batch = Batch.decode(blob)
            fresh = [
                [*event, number, index]
                for index, event in enumerate(batch.events)
                if self.released is None or event[0] >= self.released
            ]
            self.waiting += fresh
            self.batches[number] = (max(event[0] for event in batch.events), batch.sources, batch.lines)
        self.waiting.sort()
        if self.run_id != self.config.run_id:
            self.run_id, self.base, self.carried = self.config.run_id, self._counts(), len(self.waiting)
            self.ended = False  # what has ended is the input of another run

    def summary(self) -> dict[str, Any]:
        """What readers of the header see, in plain values."""
        return {
            "run_id": self.run_id,
            "counts": self._counts(),
            "base": self.base,
            "carried": self.carried,
            "pending": len(self.waiting),
            "ended": self.ended,
            "users": len(self.rows[USER]),
            "items": len(self.rows[ITEM]),
            "latest": self.latest,
            "metrics": values(self.scores.means),
            "metrics_run": values(since(self.scores.means, self.base["means"])),
        }
