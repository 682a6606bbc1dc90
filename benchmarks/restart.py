"""How long a job that was stopped takes to learn again.

    python -m benchmarks.restart [--rows 1000000] [--rounds 3] [--backend rocksdb]

A job learns an event of each of so many users and items (one in ten rows) and stops. It is started again with the
generator at 100 events a second, stopped, and started again, a few times: seconds from the command until the embedded
Redis has loaded what it saved, until the learner has its rows, and until the first event was learned and is in Redis.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Final

from benchmarks.checkpoints import backend
from benchmarks.common import median, progress, rounds, scratch, show, store
from benchmarks.jobs import CLEAN, Job, every_row, finish, running

TARGET: Final = 20.0


def start(job: Job, began: float, figures: dict[str, list[float]]) -> None:
    """Waits until a job that was just started learns, and adds how long it took."""
    job.wait_for_redis()
    known = job.learned
    figures["redis"].append(time.monotonic() - began)
    job.wait_for_learner()
    figures["restored"].append(time.monotonic() - began)
    job.wait(lambda: job.learned > known)
    figures["learned"].append(time.monotonic() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--backend", choices=["hashmap", "rocksdb"], default="hashmap")
    arguments = parser.parse_args()
    items = arguments.rows // 10
    users = arguments.rows - items
    common = {**backend(arguments.backend), "tiles.enabled": "false"}
    live = {
        **common,
        **CLEAN,
        "generator.rate": 100,
        "generator.events": 10**12,
        "generator.users": users,
        "generator.items": items,
    }
    figures: dict[str, list[float]] = {"redis": [], "restored": [], "learned": [], "stopped": []}
    with scratch() as name:
        folder = Path(name).resolve()
        progress(f"learning {arguments.rows:,} rows")
        finish(folder / "state", f"file:{every_row(folder / 'rows.jsonl', users, items)}", common)
        for _ in rounds(arguments.rounds):
            began = time.monotonic()
            with running(folder / "state", "generator", live) as (job, _):
                start(job, began, figures)
                began = time.monotonic()
            figures["stopped"].append(time.monotonic() - began)
    met = "met" if median(figures["learned"]) < TARGET else "missed"
    show(
        f"starting again with {arguments.rows:,} rows, {arguments.backend}: medians of {arguments.rounds}",
        [
            ("", "seconds", ""),
            ("the embedded Redis has its data", f"{median(figures['redis']):.1f}", ""),
            ("the learner has its rows", f"{median(figures['restored']):.1f}", ""),
            ("first event learned", f"{median(figures['learned']):.1f}", f"less than {TARGET:g}: {met}"),
            ("stopping, Redis too", f"{median(figures['stopped']):.1f}", ""),
        ],
    )
    store(f"restart-{arguments.backend}", {**vars(arguments), **figures})


if __name__ == "__main__":
    main()
