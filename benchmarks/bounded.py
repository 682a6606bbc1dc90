"""What a learner takes in memory that meets ten million ids once, under caps.

    python -m benchmarks.bounded [--ids 10000000] [--max-users 200000] [--max-items 50000]

Each event brings a user and an item that nobody has seen. The learner runs alone in this process, and does what its
operator does with the events, up to the bytes of the touched rows.
"""

from __future__ import annotations

import argparse
import resource
import time
from typing import Any

from benchmarks.common import N_FACTORS, progress, show, store
from udfs.batch import Batch
from udfs.building import build
from udfs.growth import GrowthConfig
from udfs.interactions import Interactions
from udfs.learner import Learner, LearnerConfig

_BATCH = 20_000


def peak() -> float:
    """The most memory that this process had so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1_024


def batch(first: int, count: int) -> Batch:
    """Events of which each has new ids."""
    events: list[list[Any]] = [
        [1_700_000_000_000 + n, "", f"user-{n:08}", f"item-{n:08}", "rating", n % 9 / 2 + 0.5, 0, n]
        for n in range(first, first + count)
    ]
    return Batch(None, False, ["bench"], Interactions.of(events), b"")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ids", type=int, default=10_000_000)
    parser.add_argument("--max-users", type=int, default=200_000)
    parser.add_argument("--max-items", type=int, default=50_000)
    arguments = parser.parse_args()
    growth = GrowthConfig(arguments.max_users, arguments.max_items)
    learner = Learner(LearnerConfig(growth=growth), build("biased_mf", {"n_factors": N_FACTORS}))
    before, most, began = peak(), {"user": 0, "item": 0}, time.monotonic()
    at_tenth = before
    for first in range(0, arguments.ids, _BATCH):
        for learned in learner.process(batch(first, min(_BATCH, arguments.ids - first))):
            learner.encode(learned)
        learner.finished_batches()
        learner.header()
        most = {family: max(count, len(learner.rows[family])) for family, count in most.items()}
        if (first + _BATCH) * 10 <= arguments.ids + _BATCH:
            at_tenth = peak()
        if (first + _BATCH) % 1_000_000 == 0:
            progress(f"{first + _BATCH:,} ids, {peak():.0f} MB")
    seconds = time.monotonic() - began
    rows = arguments.max_users + arguments.max_items
    show(
        f"{arguments.ids:,} users and as many items, each once",
        [
            ("", ""),
            ("caps, users and items", f"{arguments.max_users:,} and {arguments.max_items:,}"),
            ("most rows, users and items", f"{most['user']:,} and {most['item']:,}"),
            ("memory before", f"{before:.0f} MB"),
            ("peak after a tenth", f"{at_tenth:.0f} MB"),
            ("peak at the end", f"{peak():.0f} MB"),
            ("a row of the caps", f"{(peak() - before) * 2**20 / rows:.0f} bytes"),
        ],
    )
    store(
        "bounded",
        {**vars(arguments), "most": most, "before": before, "tenth": at_tenth, "peak": peak(), "seconds": seconds},
    )


if __name__ == "__main__":
    main()
