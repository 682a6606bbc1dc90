"""What an event costs a learner that knows many ids, against one that knows few; and River's own loop.

    python -m benchmarks.growth [--rounds 3]

Warm: all ids are known before the clock starts. Learning alone, by compiled code and by River's, in one process,
interleaved: up to the bytes of the rows that a batch of 20,000 events touches, which River's own loop does not make.
"""

from __future__ import annotations

import argparse
import time
from typing import Any, Final, Literal

import numpy as np
from river import reco

from benchmarks.common import N_FACTORS, median, progress, rounds, show, store
from udfs.batch import Batch
from udfs.building import build
from udfs.interactions import Interactions
from udfs.learner import Learner, LearnerConfig

SMALL, LARGE = (10_000, 1_000), (1_000_000, 100_000)
ENGINES: Final[tuple[Literal["compiled", "river"], ...]] = ("compiled", "river")
_EVENTS, _BATCH = 200_000, 20_000


def events(users: int, items: int, count: int, seed: int) -> list[tuple[str, str, float]]:
    rng = np.random.default_rng(seed)
    drawn = zip(rng.integers(0, users, count), rng.integers(0, items, count), rng.integers(1, 11, count), strict=True)
    return [(f"u{u}", f"i{i}", float(r) / 2) for u, i, r in drawn]


def batches(pairs: list[tuple[str, str, float]]) -> list[bytes]:
    rows: list[list[Any]] = [[1_700_000_000_000 + n, "", u, i, "rating", y, 0, n] for n, (u, i, y) in enumerate(pairs)]
    return [
        Batch(None, False, ["bench"], Interactions.of(rows[at : at + _BATCH]), b"").encode()
        for at in range(0, len(rows), _BATCH)
    ]


def every_id(users: int, items: int) -> list[tuple[str, str, float]]:
    return [(f"u{n}", f"i{n % items}", 3.0) for n in range(max(users, items))]


class Warm:
    """A learner and a River model that know all ids."""

    def __init__(self, users: int, items: int) -> None:
        self.users, self.items = users, items
        self.learners = {
            engine: Learner(LearnerConfig(), build("biased_mf", {"n_factors": N_FACTORS}, engine=engine))
            for engine in ENGINES
        }
        self.river = reco.BiasedMF(n_factors=N_FACTORS, seed=0)
        known = every_id(users, items)
        for blob in batches(known):
            for learner in self.learners.values():
                _learn(learner, blob)
        for user, item, y in known:
            self.river.learn_one(user, item, y)

    def measure(self, seed: int) -> dict[str, float]:
        """Microseconds an event: of the learner by its engines, of River's loop."""
        pairs = events(self.users, self.items, _EVENTS, seed)
        blobs = batches(pairs)
        costs: dict[str, float] = {}
        for engine, learner in self.learners.items():
            began = time.perf_counter()
            for blob in blobs:
                _learn(learner, blob)
            costs[engine] = (time.perf_counter() - began) / _EVENTS * 1e6
        began = time.perf_counter()
        for user, item, y in pairs:
            self.river.predict_one(user, item)
            self.river.learn_one(user, item, y)
        costs["loop"] = (time.perf_counter() - began) / _EVENTS * 1e6
        return costs


def _learn(learner: Learner, blob: bytes) -> None:
    """What the learner's operator does in Python for a batch, up to the bytes of the touched rows."""
    for learned in learner.process(Batch.decode(blob)):
        learner.encode(learned)
    learner.finished_batches()
    learner.header()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    progress("warming up: 10,000 users, then 1,000,000")
    small, large = Warm(*SMALL), Warm(*LARGE)
    figures: dict[str, list[dict[str, float]]] = {"small": [], "large": []}
    for number in rounds(arguments.rounds):
        for name, warm in (("small", small), ("large", large)):
            figures[name].append(warm.measure(number))
    kinds = (*ENGINES, "loop")
    costs = {name: {kind: median([f[kind] for f in of]) for kind in kinds} for name, of in figures.items()}
    pairs = list(zip(figures["small"], figures["large"], strict=True))
    ratios = {kind: median([large[kind] / small[kind] for small, large in pairs]) for kind in kinds}
    show(
        "cost of an event, warm, in microseconds",
        [
            ("users, items", "compiled engine", "engine river", "River's own loop"),
            ("10,000, 1,000", *(f"{costs['small'][kind]:.1f}" for kind in kinds)),
            ("1,000,000, 100,000", *(f"{costs['large'][kind]:.1f}" for kind in kinds)),
            ("ratio", *(f"{ratios[kind]:.2f}" for kind in kinds)),
        ],
    )
    store("growth", {**figures, "ratios": ratios})


if __name__ == "__main__":
    main()
