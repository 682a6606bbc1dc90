"""The learner of one shard: predicts, scores and learns each interaction, in order.

Plain Python, to be used in a notebook as in the job::

    >>> from udfs.batch import Batch
    >>> learner = Learner(LearnerConfig(), build("baseline", {}))
    >>> rows = [[1, "", "ann", "tea", "rating", 5.0, 0, 1], [2, "", "ann", "rum", "rating", 1.0, 0, 2]]
    >>> [result] = learner.process(Batch(None, True, ["notebook"], Interactions.of(rows), b""))
    >>> sorted(result.touched[ITEM]), learner.learned
    (['rum', 'tea'], 2)

It waits for the watermark where one is given, so that interactions are learned in the order of their times
whatever the order of their arrival; it says which rows it touched; and it turns all it knows into rows.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import compress, islice
from typing import Any, Final

import numpy as np
import orjson

from udfs.batch import Batch, Deletion
from udfs.building import build
from udfs.deadletters import dead_letter
from udfs.evaluating import Evaluation
from udfs.growth import Bounds, GrowthConfig, Piece
from udfs.ids import Group
from udfs.interactions import Interactions, chosen
from udfs.metrics import Prequential, since, values
from udfs.models import ITEM, USER, Array, Diverged, RankingModel, RowModel
from udfs.packing import pack_lines, unpack_lines
from udfs.ranking import BASELINES, NOT_NEW, Predicted, RankingConfig, RankingScores
from udfs.rows import EncodedRows, Rows
from udfs.seal import REMEDY, Damaged, check_layout, seal, unseal
from udfs.tail import tail_number
from udfs.tombstones import Tombstone

LAYOUT: Final = 1
_AT_ONCE: Final = 10_000  # rows that are restored together
_PART: Final = "the learner's"
_COUNTERS: Final = "counters."  # before the family, in names of the state

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
    growth
        How many rows there may be, and for how long.
    ranking
        How rankings are evaluated; None for not at all.
    repeatable
        A replay learns in the same order. False: only the order within a source is the same.
    records
        Original bytes are records of a topic, as :mod:`udfs.records` has them.
    part
        How many inputs ended before this one.
    """

    weights: Mapping[str, float] = field(default_factory=dict)
    default_weight: float = 1.0
    clip: tuple[float, float] | None = None
    metrics: tuple[str, ...] = ("MAE", "RMSE")
    seen: int = 50
    half_life: int = 7 * 86_400_000
    group: int = 400_000
    growth: GrowthConfig = field(default_factory=GrowthConfig)
    ranking: RankingConfig | None = None
    repeatable: bool = True
    position_names: tuple[str, str] = ("file", "line")
    records: bool = False
    run_id: str = ""
    part: int = 0


@dataclass
class Learned:
    """What interactions changed.

    Attributes
    ----------
    touched
        By family, the numbers of the rows that were learned, by id.
    dead_letters
        Of the events that diverged.
    dropped
        By family, the ids of the rows that are gone, and have not come again.
    deleted
        The tombstones of users who were deleted on request.
    """

    touched: dict[str, dict[str, int]]
    dead_letters: list[str] = field(default_factory=list)
    dropped: dict[str, set[str]] = field(default_factory=dict)
    deleted: Mapping[str, Tombstone] = field(default_factory=dict)

    def drop(self, family: str, row_ids: Iterable[str]) -> None:
        """Adds that rows went."""
        for row_id in row_ids:
            self.touched[family].pop(row_id, None)
            self.dropped.setdefault(family, set()).add(row_id)

    def add(self, later: Learned) -> None:
        """Adds what came next."""
        for family, row_ids in later.dropped.items():
            self.drop(family, row_ids)
        for family, rows in later.touched.items():
            self.touched[family].update(rows)
            if family in self.dropped:
                self.dropped[family].difference_update(rows)
        self.dead_letters += later.dead_letters


class Learner:
    """Learns one shard's interactions record by record, whatever batches they come in."""

    def __init__(self, config: LearnerConfig, model: RowModel) -> None:
        self.config = config
        self.model = model
        self.scores = Prequential(config.metrics)
        self.ranking: RankingScores | None = None
        self.rows = {family: Rows(family, ids) for family, ids in model.ids.items()}
        # Items that a model ranks keep their rows.
        bounded = {USER: self.rows[USER]} if isinstance(model, RankingModel) else self.rows
        self.bounds = Bounds(config.growth, bounded) if config.growth.is_bounded else None
        self.evaluation: Evaluation | None = None  # of a model that does not rank by itself
        if config.ranking is not None and config.ranking.every:
            if isinstance(model, RankingModel):
                self.ranking = RankingScores(config.ranking, model.rankers, model.baselines)
            else:
                self.ranking = RankingScores(config.ranking, (model.name, *BASELINES), BASELINES)
                shared = self.bounds.shared if self.bounds else None
                self.evaluation = Evaluation(config.ranking, model, self.rows, shared)
        # How many rows were dropped, by family.
        self.dropped = dict.fromkeys(self.rows, 0)
        # Where Redis may have other rows than these, as bounds changed or a replay is not at its end: how far this was
        # when it had the same, as :attr:`reached` tells.
        self.overdue: Mapping[str, int] | None = None
        # By family, the rows that have gone since, which Redis may have: kept while the former is.
        self.owed: dict[str, set[str]] = {}
        # Of what was met, the newest position of each source; empty where the order says it all.
        self.positions: dict[str, int] = {}
        self.seq = 0
        self.learned = 0
        self.diverged = 0
        self.deleted = 0  # events that waited when their user was deleted
        self.requests = 0  # the number of the last request to delete a user that took effect
        self.tombstones: dict[str, Tombstone] = {}
        self.ended = False
        self.updated_at = 0
        self.latest: tuple[str, str] | None = None  # user and item learned last, for examples
        self.run_id = config.run_id
        self.base: dict[str, Any] = self._counts()
        self.carried = 0
        # Accepted interactions that wait for the watermark, in order, and the stored batches they are in.
        self.waiting = Interactions.of([])
        self.released: int | None = None
        self.batch_number = 0
        self.batches: dict[int, tuple[int, Sequence[str], bytes]] = {}
        self.to_store: list[int] = []

    # --------------------------------------------------------------------------------------- learning

    def process(self, batch: Batch) -> Iterator[Learned]:
        """Takes a batch in, and learns what is ready, in groups of bounded size.

        The caller stores header and touched rows after each group; at the end it drops the batches that
        :meth:`finished_batches` names, and stores what :meth:`waiting_of` gives of those that :attr:`to_store` names.
        """
        number = self.batch_number
        self.batch_number += 1
        self.to_store = [number]
        if batch.deletions:
            yield self._delete(batch.deletions)
            return
        events = replace(batch.events, batches=np.full(len(batch.events), number))
        if len(events):
            self.batches[number] = (int(events.times.max()), batch.sources, batch.lines)
        ready = Interactions.joined([self.waiting, events])
        at = len(ready)
        if batch.watermark is not None:
            ready = ready.ordered()
            if not batch.ended:
                at = int(np.searchsorted(ready.times, batch.watermark))
            self.released = batch.watermark
        ready, self.waiting = ready.part(0, at), ready.part(at, len(ready))
        self.ended = batch.ended
        if batch.ended:
            # The next input has a time of its own.
            self.released = None
        start = 0
        while start < len(ready):
            group = ready.part(start, self._group_end(ready, start, batch.watermark is not None))
            start += len(group)
            yield self._learn_evaluated(group, self.evaluation) if self.evaluation else self._learn_group(group)
        if not len(ready):
            yield self.nothing()

    def _group_end(self, ready: Interactions, start: int, ordered: bool) -> int:
        """Where the group that starts at a place ends. What happened at one time stays together for models that predict
        it together, where it is in order: so groups do not depend on batches."""
        end = min(start + self.config.group, len(ready))
        if ordered and (self.evaluation is not None or isinstance(self.model, RankingModel)):
            end = int(np.searchsorted(ready.times, ready.times[end - 1], side="right"))
        return end

    def finished_batches(self) -> list[int]:
        """Forgets the batches of which nothing waits any more, and names them."""
        if not len(self.waiting):
            done = list(self.batches)
        else:
            oldest = int(self.waiting.times[0])
            done = [number for number, (newest, _, _) in self.batches.items() if newest < oldest]
        for number in done:
            del self.batches[number]
        return done

    def waiting_of(self, number: int) -> bytes | None:
        """What still waits of a batch, to be stored by its number; None if nothing does."""
        if number not in self.batches:
            return None
        _, sources, lines = self.batches[number]
        waiting = self.waiting.take(np.flatnonzero(self.waiting.batches == number))
        kept = pack_lines(chosen(unpack_lines(lines), waiting.lines))
        return seal(_batch(number), Batch(self.released, False, sources, waiting, kept).encode())

    def nothing(self) -> Learned:
        """No change."""
        return Learned({family: {} for family in self.rows})

    def _learn_evaluated(self, events: Interactions, evaluation: Evaluation) -> Learned:
        """Learns a group in parts, and evaluates some of its events between them."""
        assert self.ranking is not None
        learned, start, met = self.nothing(), 0, self.learned + self.diverged - self.ranking.begun
        for end, at in evaluation.due(events, met):
            if end > start:
                learned.add(self._learn_group(events.part(start, end)))
                start = end
            ranked = evaluation.predicted(events, end, at, met)
            if ranked is not None:
                self._note_ranked(ranked)
        learned.add(self._learn_group(events.part(start, len(events))))
        return learned

    def _learn_group(self, events: Interactions) -> Learned:
        """Learns events; where there are bounds in pieces, between which it drops what must go."""
        bounds = self.bounds
        if bounds is None:
            return self._learn(events)
        learned, start = self.nothing(), 0
        while start < len(events):
            for family, row_ids in bounds.excess(events, start, self.updated_at):
                self.drop(family, row_ids)
                learned.drop(family, row_ids)
            piece = bounds.piece(events, start, self.updated_at)
            learned.add(self._learn(events.part(start, piece.end), piece if bounds.tails else None))
            start = piece.end
        return learned

    def _delete(self, deletions: Sequence[Deletion]) -> Learned:
        """Drops the rows of users and what waits of them; they leave tombstones."""
        # A log that was read before knows of requests that another log has brought here.
        new = [deletion for deletion in deletions if deletion.number > self.requests]
        learned = self.nothing()
        tombstones = {d.user_id: Tombstone(d.number, self.seq, d.part, d.bound) for d in new}
        if new:
            self.requests = max(deletion.number for deletion in new)
            known = [user_id for user_id in tombstones if user_id in self.rows[USER]]
            self.drop(USER, known)
            learned.drop(USER, known)
            self._drop_waiting(tombstones)
            self.tombstones |= tombstones
            if self.latest is not None and self.latest[0] in tombstones:
                self.latest = None
        learned.deleted = tombstones
        return learned

    def _drop_waiting(self, user_ids: Container[str]) -> None:
        """Drops events that wait, and from the batches all lines of which nothing waits: all are to be stored anew."""
        left = [place for place, user_id in enumerate(self.waiting.user_ids) if user_id not in user_ids]
        self.deleted += len(self.waiting) - len(left)
        self.waiting = self.waiting.take(np.array(left, dtype=np.intp))
        renumbered = self.waiting.lines.copy()
        for number, (_, sources, lines) in list(self.batches.items()):
            places = np.flatnonzero(self.waiting.batches == number)
            kept = chosen(unpack_lines(lines), self.waiting.lines[places])
            newest = int(self.waiting.times[places].max(initial=0))
            self.batches[number] = (newest, sources, pack_lines(kept))
            renumbered[places] = np.arange(len(places))
        self.waiting = replace(self.waiting, lines=renumbered)
        self.to_store += self.batches

    @property
    def passed_tombstones(self) -> dict[str, Tombstone]:
        """Those of inputs that ended before this one: no window of theirs can close any more. They stay in the state,
        for a Redis that is put back to what it was before they were set."""
        return {user_id: t for user_id, t in self.tombstones.items() if t.part < self.config.part}

    def _learn(self, events: Interactions, piece: Piece | None = None) -> Learned:
        """Learns events: on their own rows, or as ``piece`` says."""
        config, ids = self.config, self.model.ids
        rows: Mapping[str, Sequence[str]] = piece.rows if piece else events.ids
        heirs = piece.heirs if piece else {}
        users = Group(ids[USER], rows[USER], heirs.get(USER))
        items = Group(ids[ITEM], rows[ITEM], heirs.get(ITEM))
        with np.errstate(all="ignore"):  # what overflows is found and rolled back
            targets, predictions, diverged = self._predicted(users, items, events)
        self.updated_at = max(self.updated_at, int(events.times.max()))
        self.latest = (events.user_ids[-1], events.item_ids[-1])
        letters = [self._letter(str(verdict), events, place) for place, verdict in diverged.items()]
        if not config.repeatable:
            self._pass(events)
        if diverged or piece:
            left = np.array([place for place in range(len(events)) if place not in diverged], dtype=np.intp)
            events, targets = events.take(left), targets[left]
            users, items = (Group(ids[family], chosen(rows[family], left)) for family in (USER, ITEM))
        if len(predictions):
            self.scores.update(targets, predictions if config.clip is None else np.clip(predictions, *config.clip))
        self.rows[USER].count(users, events.times, self.seq + 1)
        self.rows[ITEM].count(items, events.times, self.seq + 1)
        self._remember(users, items, events.item_ids if piece else None)
        self.rows[ITEM].favour(items, events.times / config.half_life)
        self.seq += len(events)
        self.learned += len(events)
        self.diverged += len(letters)
        touched = {
            family: dict(zip(group.distinct, group.numbers.tolist(), strict=True))
            for family, group in ((USER, users), (ITEM, items))
        }
        if isinstance(self.model, RankingModel):
            also = self.model.also_changed()
            touched[ITEM] |= zip(chosen(ids[ITEM].names, also), also.tolist(), strict=True)
        return Learned(touched, letters)

    def _predicted(self, users: Group, items: Group, events: Interactions) -> tuple[Array, Array, dict[int, Diverged]]:
        """Learns events; returns their targets, what was predicted of those that were learned, and what was not. Of a
        model that ranks there are no predictions."""
        if not isinstance(self.model, RankingModel):
            targets = self._targets(events)
            return targets, *self.model.learn(users, items, targets, events.times)
        self._note_ranked(self.model.rank_then_learn(users, items, events.times, self.seq, self.config.ranking))
        none = np.empty(0)
        return none, none, {}

    def _note_ranked(self, ranked: Predicted) -> None:
        if self.ranking is None:
            return
        counted = ranked.better[:, 0] != NOT_NEW
        offered = chosen(self.model.ids[ITEM].names, np.unique(ranked.offered))
        self.ranking.update(
            ranked.better[counted], ranked.ties[counted], ranked.returning[counted], ranked.head[counted], offered
        )
        self.ranking.cut += ranked.cut

    def _targets(self, events: Interactions) -> Array:
        """What is learned of each event: its value if it is a rating, else the weight of its type."""
        weights, default = self.config.weights, self.config.default_weight
        names = set(events.event_types)
        if names == {"rating"}:
            return events.values
        targets = {name: weights.get(name, default) for name in names - {"rating"}}
        chosen_by_type = np.array([targets.get(name, math.nan) for name in events.event_types], dtype="<f8")
        return np.where([name == "rating" for name in events.event_types], events.values, chosen_by_type)

    def _pass(self, events: Interactions) -> None:
        """Notes how far each source was met."""
        for number in np.unique(events.batches).tolist():
            sources = self.batches[number][1]
            mine = events.batches == number
            for source in np.unique(events.sources[mine]).tolist():
                newest = int(events.positions[mine & (events.sources == source)].max())
                self.positions[sources[source]] = max(newest, self.positions.get(sources[source], -1))

    @property
    def reached(self) -> Mapping[str, int]:
        """How far it is, for one that replays: by source the newest position, or, where the order is the same, under no
        name the number of events."""
        return {"": self.learned + self.diverged} if self.config.repeatable else self.positions

    def _remember(self, users: Group, items: Group, item_ids: Sequence[str] | None) -> None:
        """What users have seen; ``item_ids`` are the events' own where they may be learned on shared rows."""
        rows = self.rows[USER]
        if item_ids is None:
            rows.remember(users, items, self.config.seen)
            return
        rows.remember(users, Group(self.model.ids[ITEM], item_ids), self.config.seen)
        # Nobody has seen what all have.
        rows.seen.clear(users.numbers[[tail_number(row_id) is not None for row_id in users.distinct]])

    def known(self, family: str) -> int:
        """How many ids have a row of their own."""
        return len(self.rows[family]) if self.bounds is None or not self.bounds.tails else self.bounds.own(family)

    def counters(self) -> Iterator[tuple[str, bytes]]:
        """What changed in the tail's counters since this was last asked, by the names of the parts in the state."""
        if self.bounds is not None:
            for family, tail in self.bounds.tails.items():
                for block, counters in tail.changed():
                    name = f"{_COUNTERS}{family}:{block}"
                    yield name, seal(name, counters)

    def everything(self) -> Learned:
        """All rows, as if they had just been learned: to write them again into a Redis that lost them."""
        return Learned({family: dict(ids) for family, ids in self.model.ids.items()})

    def drop(self, family: str, row_ids: Sequence[str]) -> None:
        """Forgets rows: an id that comes again is a new one. The caller takes them out of the state and of Redis.

        Raises
        ------
        KeyError
            If one of them has no row.
        """
        self.rows[family].drop(row_ids)
        self.model.drop(family, row_ids)
        self.dropped[family] += len(row_ids)

    def _letter(self, message: str, events: Interactions, place: int) -> str:
        _, sources, lines = self.batches[int(events.batches[place])]
        position = (sources[events.sources[place]], int(events.positions[place]))
        where = dict(zip(self.config.position_names, position, strict=True))
        original = unpack_lines(lines)[events.lines[place]]
        return dead_letter("diverged", message, where, original, record=self.config.records)

    # ------------------------------------------------------------------------------------------ state

    def _counts(self) -> dict[str, Any]:
        counts = {"learned": self.learned, "diverged": self.diverged, "deleted": self.deleted}
        return counts | {"means": self.scores.means}

    def header(self) -> bytes:
        """The small part of the state, stored after each element, and how many rows and batches belong to it."""
        header = {
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
            "rows": {family: len(rows) for family, rows in self.rows.items()},
            "batches": len(self.batches),
            "requests": self.requests,
        }
        if self.bounds is not None:
            header["growth"] = self.config.growth.stored()
            header["counted"] = {family: tail.added for family, tail in self.bounds.tails.items()}
        if any(self.dropped.values()):
            header["dropped"] = self.dropped
        if self.ranking is not None:
            header["ranking"] = self.ranking.state()
        if self.positions:
            header["positions"] = self.positions
        if self.overdue is not None:
            header["overdue"] = self.overdue
            header["owed"] = {family: sorted(row_ids) for family, row_ids in self.owed.items()}
        return seal("header", orjson.dumps(header))

    def encode(self, learned: Learned) -> dict[str, EncodedRows]:
        """The touched rows by family, encoded once for the state and for Redis."""
        encoded = {}
        for family, rows in learned.touched.items():
            row_ids, numbers = list(rows), np.fromiter(rows.values(), dtype=np.intp, count=len(rows))
            weights, tails = self.model.encode_rows(family, row_ids, numbers), self.model.encode_tails(family, numbers)
            encoded[family] = self.rows[family].encode(row_ids, numbers, weights, tails)
        return encoded

    def restore(
        self,
        header: bytes | None,
        rows: Iterable[tuple[str, str, bytes]],
        batches: Iterable[tuple[int, bytes]],
        tombstones: Iterable[tuple[str, bytes]] = (),
    ) -> None:
        """Takes up the state of an earlier process.

        Parameters
        ----------
        header
            None where there is none: then nothing else may be there.
        rows
            ``(family, id, bytes)`` of each row, and of each part of :meth:`counters`.
        batches
            The stored batches, by number.
        tombstones
            Stored ones, by user.

        Raises
        ------
        ValueError
            If the state was written by another model, by other factors, with a tail that this learner has not, or by
            a newer layout; if anything in it is damaged or missing.
        """
        if header is None:
            if [*islice(rows, 1), *islice(batches, 1)]:
                raise Damaged(f"the learner's state has rows or waiting batches, but no header; {REMEDY}")
            return
        stored = orjson.loads(unseal(_PART, "header", header))
        check_layout("the learner's state", stored["layout"], LAYOUT)
        self.model.restore_header(orjson.dumps(stored["model"]))
        counts = stored["counts"]
        self.seq, self.learned, self.diverged = stored["seq"], counts["learned"], counts["diverged"]
        self.scores.restore(counts["means"])
        self.base, self.carried, self.run_id = stored["base"], stored["carried"], stored["run_id"]
        self.ended, self.updated_at = stored["ended"], stored["updated_at"]
        self.released, self.batch_number = stored["released"], stored["batch_number"]
        self.dropped |= stored.get("dropped", {})
        self.positions = stored.get("positions", {})
        self.overdue = stored.get("overdue")
        self.owed = {family: set(row_ids) for family, row_ids in stored.get("owed", {}).items()}
        # Scores by another protocol, or of other rankers, are left behind.
        if self.ranking is not None:
            self.ranking.begun = self.learned + self.diverged
            if "ranking" in stored and self.ranking.fits(stored["ranking"]):
                self.ranking.restore(stored["ranking"])
        if self.overdue is None and stored.get("growth", {}) != self.config.growth.stored():
            self.overdue = self.reached
        self.deleted, self.requests = counts.get("deleted", 0), stored.get("requests", 0)
        self.tombstones = {user_id: Tombstone.decode(blob) for user_id, blob in tombstones}
        if self.bounds is not None:
            for family, tail in self.bounds.tails.items():
                tail.added = stored.get("counted", {}).get(family, 0)
        for family in stored["rows"].keys() & self.rows.keys():
            self.rows[family].expect(stored["rows"][family])
        self._restore_rows(iter(rows))
        waiting: list[Interactions] = []
        for number, blob in sorted(batches):
            batch = Batch.decode(unseal(_PART, _batch(number), blob))
            self.batches[number] = (int(batch.events.times.max()), batch.sources, batch.lines)
            events = replace(batch.events, batches=np.full(len(batch.events), number))
            waiting.append(events.take(np.flatnonzero(events.times >= (self.released or 0))))
        self.waiting = Interactions.joined(waiting).ordered()
        found = {family: len(of) for family, of in self.rows.items()}, len(self.batches)
        expected = stored["rows"], stored["batches"]
        if found != expected:
            raise Damaged(
                f"the learner's header counts {expected[0]} rows and {expected[1]} waiting batches, its state has "
                f"{found[0]} and {found[1]}; {REMEDY}"
            )
        if self.run_id != self.config.run_id:
            self.run_id, self.base, self.carried = self.config.run_id, self._counts(), len(self.waiting)
            self.ended = False  # what has ended is the input of another run

    def _restore_rows(self, rows: Iterator[tuple[str, str, bytes]]) -> None:
        while some := list(islice(rows, _AT_ONCE)):
            families, *columns = zip(*some, strict=True)
            for family in set(families):
                row_ids, blobs = (list(compress(column, map(family.__eq__, families))) for column in columns)
                if family.startswith(_COUNTERS):
                    self._restore_counters(family, zip(row_ids, blobs, strict=True))
                    continue
                if family not in self.rows:
                    raise Damaged(f"the state has rows of {family!r}, {self.model.name} has {[*self.rows]}; {REMEDY}")
                number = self.model.number if isinstance(self.model, RankingModel) and family == ITEM else None
                self.model.decode_rows(family, row_ids, self.rows[family].restore(row_ids, blobs, number))

    def _restore_counters(self, family: str, blocks: Iterable[tuple[str, bytes]]) -> None:
        tails = self.bounds.tails if self.bounds else {}
        if not tails:
            raise ValueError("the state was learned with growth.min_events above 1, this job has 1")
        for block, blob in blocks:
            counters = unseal(_PART, f"{family}:{block}", blob)
            tails[family.removeprefix(_COUNTERS)].restore(int(block), counters)

    def summary(self) -> dict[str, Any]:
        """What readers of the header see, in plain values."""
        return {
            "run_id": self.run_id,
            "counts": self._counts(),
            "base": self.base,
            "carried": self.carried,
            "pending": len(self.waiting),
            "ended": self.ended,
            "users": self.known(USER),
            "items": self.known(ITEM),
            "dropped": self.dropped,
            "latest": self.latest,
            "metrics": values(self.scores.means),
            "metrics_run": values(since(self.scores.means, self.base["means"])),
            "ranking": None if self.ranking is None else self.ranking.state(),
            "repeats": None if self.config.ranking is None else self.config.ranking.repeats,
        }


def _batch(number: int) -> str:
    return f"batch {number}"
