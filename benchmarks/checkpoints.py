"""What a checkpoint costs as a model grows, while as many rows are touched between two of them.

    python -m benchmarks.checkpoints [--rows 10000 100000 500000 2000000] [--backend rocksdb]

For each number of rows, 1,000 of them items: a job learns an event of each user, and stops. It goes on with the
generator at a fixed rate, over the same users and items, with a checkpoint each 5 s: so that rows are touched as often
whatever their number. Windows are off. Checkpoints are left out until the learner has its rows and learns, and two
more: one of them is whole. Durations and sizes are Flink's own: from the trigger to the end, bytes written, bytes
held. On RocksDB they are incremental: most write what was touched since the last, but one in a few comes after a
compaction and writes the files that it made, so the mean tells more than the median. ``--backend hashmap`` shows the
default, which writes all of it each time.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any, Final

from benchmarks.common import median, progress, scratch, show, store
from benchmarks.jobs import CLEAN, Checkpoint, every_row, finish, running
from flink_jobs.settings import assignment

ITEMS: Final = 1_000
_INTERVAL: Final = 5
_LEFT_OUT: Final = 2


def backend(name: str) -> dict[str, Any]:
    options = {"flink.state.backend.type": name}
    return options | ({"flink.execution.checkpointing.incremental": "true"} if name == "rocksdb" else {})


def measure(rows: int, arguments: argparse.Namespace) -> dict[str, Any]:
    users = rows - ITEMS
    common = {**backend(arguments.backend), "tiles.enabled": "false", **dict(map(assignment, arguments.set))}
    with scratch() as name:
        folder = Path(name).resolve()
        state = folder / "state"
        progress(f"{rows:,} rows: learning each once")
        finish(state, f"file:{every_row(folder / 'rows.jsonl', users, ITEMS)}", common)
        live = {
            **common,
            **CLEAN,
            "generator.rate": arguments.rate,
            "generator.events": 10**12,
            "generator.users": users,
            "generator.items": ITEMS,
            "checkpoint_interval": f"{_INTERVAL}s",
        }
        with running(state, "generator", live) as (job, _):
            job.wait_for_learner()
            before = job.learned
            job.wait(lambda: job.learned > before)
            began, first, learns = time.monotonic(), job.learned, time.time()
            counted: list[Checkpoint] = []
            while len(counted) < arguments.checkpoints:
                job.check()
                time.sleep(1)
                counted = [c for c in job.checkpoints() if c.began > learns][_LEFT_OUT:]
            rate = (job.learned - first) / (time.monotonic() - began)
            whole = max((c for c in job.checkpoints() if c not in counted), key=lambda c: c.written)
    apart = (counted[-1].began - counted[0].began) / (len(counted) - 1)
    drawn = rate * apart
    return {
        "rows": rows,
        "events_between": drawn,
        # Of users drawn evenly; items are as many for all.
        "users_touched": users * (1 - (1 - 1 / users) ** drawn),
        "seconds": [c.seconds for c in counted],
        "written": [c.written for c in counted],
        "held": counted[-1].held,
        "whole": {"seconds": whole.seconds, "written": whole.written},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 500_000, 2_000_000])
    parser.add_argument("--rate", type=int, default=400, help="events a second")
    parser.add_argument("--checkpoints", type=int, default=20, help="how many are counted")
    parser.add_argument("--backend", choices=["rocksdb", "hashmap"], default="rocksdb")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of the job")
    arguments = parser.parse_args()
    results = [measure(rows, arguments) for rows in arguments.rows]
    head = (
        "rows held",
        "users touched",
        "seconds",
        "most",
        "MB written",
        "mean",
        "most",
        "MB held",
        "whole: seconds",
        "MB",
    )
    table: list[tuple[str, ...]] = [head]
    for r in results:
        table.append(
            (
                f"{r['rows']:,}",
                f"{r['users_touched']:,.0f}",
                f"{median(r['seconds']):.2f}",
                f"{max(r['seconds']):.2f}",
                f"{median(r['written']) / 1e6:.1f}",
                f"{statistics.mean(r['written']) / 1e6:.1f}",
                f"{max(r['written']) / 1e6:.1f}",
                f"{r['held'] / 1e6:,.1f}",
                f"{r['whole']['seconds']:.2f}",
                f"{r['whole']['written'] / 1e6:,.1f}",
            )
        )
    show(f"a checkpoint on {arguments.backend}: medians of {arguments.checkpoints}, and what else is said", table)
    store(f"checkpoints-{arguments.backend}", {**vars(arguments), "sizes": results})


if __name__ == "__main__":
    main()
