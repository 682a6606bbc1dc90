"""What another number of shards does to predictions.

    python -m benchmarks.resharding --source ratings.jsonl.gz [--seeds 5]

Learns the first half of a log of ratings, in the order of its times, with so many shards, moves what was learned to
others, and learns the second half: the RMSE of its predictions, each made before its event was learned. Beside
``freshet reshard`` there are: the old number all the time, and the new one; averaging without aligning first; merging
also where a copy would do, or only those shards that have users in common; starting items anew (users stay). No Flink:
only learners.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

import numpy as np
import orjson

from benchmarks.common import median, progress, show, store
from serving.schema import shard_of
from udfs import resharding
from udfs.batch import Batch
from udfs.building import build
from udfs.interactions import Interactions
from udfs.learner import Learner, LearnerConfig
from udfs.metrics import pooled, since
from udfs.models import RowModel
from udfs.reading import open_lines
from udfs.resharding import ShardState, move, parts, stored

_FACTORS: Final = 10
_CONFIG: Final = LearnerConfig(clip=(0.5, 5.0), metrics=("RMSE",))
_RATES: Final = {"lr 0.01": {}, "latent lr 0.05": {"latent_optimizer": "SGD", "latent_optimizer.lr": 0.05}}
_MOVES: Final = ((1, 4), (4, 1), (4, 2), (3, 5), (2, 4))
_WAYS: Final = ("reshard", "not aligned", "all merged", "crossing merged", "items anew")


def events_of(path: Path) -> list[list[Any]]:
    """Ratings as learners take them, in the order of time."""
    with open_lines(path) as file:
        found = [orjson.loads(line) for line in file]
    rows = [[e["timestamp"], e["user_id"], e["item_id"], e["event_value"]] for e in found]
    return [[t, "", user, item, "rating", y, 0, 1] for t, user, item, y in sorted(rows)]


def learn(learners: Sequence[Learner], events: Sequence[list[Any]]) -> None:
    for shard, learner in enumerate(learners):
        mine = [list(event) for event in events if shard_of(event[2], len(learners)) == shard]
        for _ in learner.process(Batch(None, False, [""], Interactions.of(mine), b"")):
            learner.finished_batches()


@dataclass(frozen=True)
class Plan:
    """How shards become others: which become which, whether they are aligned, and whether items are kept."""

    before: int
    after: int
    parts: tuple[tuple[range, range], ...]
    aligned: bool = True
    items: bool = True

    @classmethod
    def of(cls, before: int, after: int, way: str) -> Plan:
        ways = tuple(parts(before, after))
        if way == "all merged":
            ways = ((range(before), range(after)),)
        if way == "crossing merged":  # a user of these old shards can only be in these new ones
            step = math.gcd(before, after)
            ways = tuple((range(part, before, step), range(part, after, step)) for part in range(step))
        merging = any(len(olds) > 1 for olds, _ in ways)
        return cls(before, after, ways, way != "not aligned" or not merging, way != "items anew")

    def states(self, olds: Sequence[ShardState], model: Callable[[], RowModel]) -> list[ShardState]:
        """The new states."""
        states: dict[int, ShardState] = {}
        with contextlib.ExitStack() as stack:
            if not self.aligned:
                stack.enter_context(patch.object(resharding, "alignment", lambda *_: np.eye(_FACTORS)))
            for sources, targets in self.parts:
                found = move([olds[source] for source in sources], targets, self.after, model, _CONFIG)
                states |= dict(zip(targets, found, strict=True))
        if not self.items:
            for target, state in states.items():
                rows = {name: blob for name, blob in state.rows.items() if name.startswith("user:")}
                states[target] = replace(state, rows=rows)
        return [states[target] for target in range(self.after)]


def second_half(events: Sequence[list[Any]], plan: Plan | int, model: Callable[[], RowModel]) -> float:
    """RMSE of the second half, moved before it, or with the same number of shards all the time."""
    learners = [Learner(_CONFIG, model()) for _ in range(plan if isinstance(plan, int) else plan.before)]
    half = len(events) // 2
    learn(learners, events[:half])
    if isinstance(plan, Plan):
        states = plan.states([stored(learner) for learner in learners], model)
        learners = [Learner(_CONFIG, model()) for _ in states]
        for learner, state in zip(learners, states, strict=True):
            rows = ((*name.split(":", 1), blob) for name, blob in state.rows.items())
            learner.restore(state.header or b"", rows, [])  # type: ignore[arg-type]
    base = pooled(learner.scores.means for learner in learners)
    learn(learners, events[half:])
    n, mean = since(pooled(learner.scores.means for learner in learners), base)["RMSE"]
    assert n == len(events) - half
    return math.sqrt(mean)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    events = events_of(arguments.source)
    result: dict[str, Mapping[str, Any]] = {}
    for name, rate in _RATES.items():

        @functools.cache
        def rmse(plan: Plan | int, rate: Mapping[str, Any] = rate) -> float:
            progress(f"{rate or 'default rates'}: {plan}")
            params = {"n_factors": _FACTORS, **rate}
            models = [
                functools.partial(build, "biased_mf", {**params, "seed": seed}) for seed in range(arguments.seeds)
            ]
            return median([second_half(events, plan, model) for model in models])

        moves = {
            f"{before} -> {after}": {"always before": rmse(before), "always after": rmse(after)}
            | {way: rmse(Plan.of(before, after, way)) for way in _WAYS}
            for before, after in _MOVES
        }
        rows: list[tuple[str, ...]] = [("shards", "always before", "always after", *_WAYS)]
        rows += [(what, *(f"{value:.4f}" for value in ways.values())) for what, ways in moves.items()]
        show(f"RMSE of the second half, {name}: medians of {arguments.seeds} seeds", rows)
        result[name] = moves
    store("resharding", {"events": len(events), "rmse": result})


if __name__ == "__main__":
    main()
