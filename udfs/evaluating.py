"""How well a model of ratings ranks, which is asked between one event and the next that it learns.

A blend ranks as part of its learning; a model that predicts knows nothing of rankings. So events are learned up to the
group of one that is to be evaluated, and then all items are ranked as ``recommend`` does: by what is predicted of the
user and each item, and by decayed popularity where nothing is known of the user.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from udfs.interactions import Interactions
from udfs.models import ITEM, USER, Array, RowModel
from udfs.ranking import MISS, Predicted, RankingConfig, place
from udfs.rows import Rows


class Evaluation:
    """Evaluates a model of ratings beside :data:`~udfs.ranking.BASELINES`.

    Parameters
    ----------
    rows
        By family: how popular items are, and what users have seen.
    shared
        The numbers of a family's rows that belong to no id of their own, which are not ranked.
    """

    def __init__(
        self,
        config: RankingConfig,
        model: RowModel,
        rows: Mapping[str, Rows],
        shared: Callable[[str], Sequence[int]] | None = None,
    ) -> None:
        self.config = config
        self._model = model
        self._rows = rows
        self._shared = shared or (lambda family: ())
        self._cut_at = -1  # how many events had come before the last group that was found to be cut

    def due(self, events: Interactions, met: int) -> list[tuple[int, int]]:
        """What is to be evaluated of events in order, before which ``met`` came.

        Returns
        -------
        Of each: how many of the events are learned before, in this order, and its own place. The former is where its
        group begins, or its own place where groups are not held out.
        """
        places = np.flatnonzero(self.config.evaluated(met, len(events))).tolist()
        if not self.config.held_out:
            return [(at, at) for at in places]
        moments = np.flatnonzero(np.diff(events.times, prepend=events.times[:1] - 1))
        begun = moments[np.searchsorted(moments, places, side="right") - 1].tolist()
        users = events.user_ids
        return sorted((users.index(users[at], first), at) for first, at in zip(begun, places, strict=True))

    def predicted(self, events: Interactions, start: int, at: int, met: int) -> Predicted | None:
        """Where the item of the event at a place stands, when all before ``start`` is learned, where its group begins.

        None if this one is passed over: as there are many items, see :attr:`RankingConfig.rarely`, or as only items
        count that are new to the user, which are those that are not among the last that its row keeps.
        """
        config, ids, users = self.config, self._model.ids[ITEM], self._rows[USER]
        shared = np.array(self._shared(ITEM), dtype=np.intp)
        known = len(ids) - len(shared)
        if config.passed_over(met + at, known):
            return None
        user_id, time = events.user_ids[at], int(events.times[at])
        user, item = users.ids.get(user_id, -1), ids.get(events.item_ids[at], MISS)
        met_before = ids.find(users.seen[user]) if user >= 0 and not config.repeats else np.empty(0, dtype=np.intp)
        if item != MISS and item in met_before:
            return None
        heads = self._rows[ITEM].heads[: len(ids.names)]
        counts, faded = heads["count"].astype(np.float64), heads["popularity"].copy()
        scores = self._model.predicted(user_id) if user >= 0 else faded.copy()
        free = np.isneginf(faded)  # numbers of items that are gone
        scores[free] = counts[free] = -math.inf
        left_out = np.union1d(shared, met_before[met_before >= 0])
        if config.others == "left out":
            left_out = np.setdiff1d(np.union1d(left_out, self._others(events, start, at)), [item])
        stands = [place(of, item, left_out) for of in (scores, faded, counts)]
        better, ties = (np.array([of]) for of in zip(*stands, strict=True))
        scores[left_out] = -math.inf
        ahead = place(faded, item, shared)[0]
        return Predicted(
            np.array([at]),
            better,
            ties,
            returning=np.array([user >= 0]),
            head=np.array([0 <= ahead < config.head * known]),
            offered=self._best(scores),
            cut=self._is_cut(user, time, met + start),
        )

    def _is_cut(self, user: int, time: int, before: int) -> bool:
        """Whether events of the group were learned already; True once a group, which begins after so many events."""
        is_cut = self.config.held_out and user >= 0 and int(self._rows[USER].heads["updated_at"][user]) == time
        if not is_cut or before == self._cut_at:
            return False
        self._cut_at = before
        return True

    def _best(self, scores: Array) -> Array:
        """The numbers of the items of the list; those of one score in the order of their ids, as they are served."""
        if len(scores) > self.config.k:
            least = np.partition(scores, -self.config.k)[-self.config.k]
            best, level = np.flatnonzero(scores > least), np.flatnonzero(scores == least)
        else:
            least, best, level = -math.inf, np.flatnonzero(scores > -math.inf), np.empty(0, dtype=np.intp)
        if least > -math.inf:
            names = self._model.ids[ITEM].names
            first = heapq.nsmallest(self.config.k - len(best), level.tolist(), key=names.__getitem__)
            best = np.concatenate([best, np.array(first, dtype=np.intp)])
        return best

    def _others(self, events: Interactions, start: int, at: int) -> Array:
        """The numbers of the known items of the group of the event at a place."""
        user, time = events.user_ids[at], events.times[at]
        end = start + int(np.argmax(np.append(events.times[start:] != time, True)))
        mine = [events.item_ids[place] for place in range(start, end) if events.user_ids[place] == user]
        numbers = self._model.ids[ITEM].find(mine)
        return numbers[numbers >= 0]
