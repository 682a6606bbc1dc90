"""Many faults over many events, and a report: ``make chaos``, or ``python -m tests.faults.chaos --seed 7``.

Two jobs, one after the other: the first keeps its state on the heap, the second in RocksDB. Each goes through
parallelisms 1, 2, 4, 3 and 1 by savepoints, with aligned and unaligned checkpoints by turns, while faults strike. At
the end all that it has learned is compared with a replay in one process. Exits with 1 if anything is not as promised.
"""

from __future__ import annotations

import math
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import orjson

from flink_jobs.flink import prepare_process
from tests.faults.injector import ALL, Injected
from tests.faults.leg import Outcome, Plan, Stage, drawn, run_leg

ROOT = Path(__file__).parents[2]
PARALLELISMS = (1, 2, 4, 3, 1)
BACKENDS = ("hashmap", "rocksdb")
# What takes long to be found out is done now and then; what happens most is done most.
WEIGHTS = {"stop_worker": 0, "silence_redis": 0, "kill_worker": 8, "replace_task_manager": 4, "change_leader": 2}
TARGETS = {
    "killed workers": (("kill_worker",), 5.0),
    "workers that threw": (("throw_before", "throw_after", "throw_published"), 5.0),
    "killed task managers": (("replace_task_manager",), 15.0),
    "hung workers": (("stop_worker",), 90.0),
}


def plans(seed: int, faults: int, events: int, rate: int) -> list[Plan]:
    """The two jobs, from the seed."""
    made = []
    for number, backend in enumerate(BACKENDS):
        rng = random.Random(f"{seed}-{backend}")
        share = faults // len(BACKENDS) + (number < faults % len(BACKENDS)) - (len(PARALLELISMS) - 1)
        names = drawn(rng, list(ALL), share, WEIGHTS)
        cuts = [len(names) * at // len(PARALLELISMS) for at in range(len(PARALLELISMS) + 1)]
        stages = [
            Stage(parallelism, names[cuts[at] : cuts[at + 1]], unaligned=at % 2 == 1)
            for at, parallelism in enumerate(PARALLELISMS)
        ]
        made.append(Plan(1_000 * seed + 100 * number, events // len(BACKENDS), backend, stages, rate, "1s"))
    return made


def quantile(values: Sequence[float], q: float) -> float:
    """The nearest rank: a value that was measured.

    >>> quantile([3.0, 1.0, 2.0], 0.5), quantile([3.0, 1.0, 2.0], 0.99)
    (2.0, 3.0)
    """
    return sorted(values)[max(math.ceil(q * len(values)) - 1, 0)]


def report(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The figures of all jobs together."""
    faults = [fault for outcome in outcomes for fault in outcome.faults]
    rescales = sum(len(outcome.plan.stages) - 1 for outcome in outcomes)
    kinds = {name: times(faults, (name,)) for name in ALL if any(fault.name == name for fault in faults)}
    return {
        "events": sum(outcome.plan.events for outcome in outcomes),
        "faults": len(faults) + rescales,
        "kinds": kinds | {"rescale": {"count": rescales}},
        "targets": {name: times(faults, of) | {"target": target} for name, (of, target) in TARGETS.items()},
        "progress": times(faults, tuple(ALL)),
        "checkpoints": sum(outcome.checkpoints for outcome in outcomes),
        "replayed": sum(outcome.replayed for outcome in outcomes),
        "looked": sum(outcome.looked for outcome in outcomes),
        "regressions": sum(len(outcome.regressions) for outcome in outcomes),
        "lost": sum(outcome.lost for outcome in outcomes),
        "twice": sum(outcome.twice for outcome in outcomes),
        "seconds": sum(outcome.seconds for outcome in outcomes),
        "violations": [f"{o.plan.backend}: {text}" for o in outcomes for text in o.violations],
        "jobs": [
            {"backend": o.plan.backend, "seed": o.plan.seed, "faults": [asdict(fault) for fault in o.faults]}
            for o in outcomes
        ],
    }


def times(faults: Sequence[Injected], names: Sequence[str]) -> dict[str, Any]:
    """How many there were of these faults, and the seconds until the job was further than before."""
    seconds = [fault.seconds for fault in faults if fault.name in names]
    if not seconds:
        return {"count": 0}
    return {"count": len(seconds), "median": quantile(seconds, 0.5), "p99": quantile(seconds, 0.99)}


def table(figures: dict[str, Any]) -> str:
    lines = [f"{'fault':<24}{'count':>7}{'median s':>10}{'p99 s':>8}"]
    for name, of in [*figures["kinds"].items(), ("all", figures["progress"])]:
        spent = f"{of['median']:>10.1f}{of['p99']:>8.1f}" if "median" in of else ""
        lines.append(f"{name:<24}{of['count']:>7}{spent}")
    lines.append("")
    for name, of in figures["targets"].items():
        if of["count"]:
            met = "met" if of["p99"] <= of["target"] else "MISSED"
            lines.append(f"progress after {name}: p99 {of['p99']:.1f} s, target {of['target']:g} s: {met}")
    for name in ("events", "faults", "checkpoints", "replayed", "looked", "regressions", "lost", "twice"):
        lines.append(f"{name:<24}{figures[name]:>12,}")
    lines.append(f"{'seconds':<24}{figures['seconds']:>12,.0f}")
    lines += [f"VIOLATION: {text}" for text in figures["violations"]]
    return "\n".join(lines)


@click.command()
@click.option("--faults", default=200, show_default=True, help="How many, with the rescalings.")
@click.option("--events", default=1_500_000, show_default=True)
@click.option("--rate", default=5_000, show_default=True, help="Events a second.")
@click.option("--seed", default=1, show_default=True)
@click.option("--output", default="chaos.json", show_default=True, type=click.Path(path_type=Path))
def main(faults: int, events: int, rate: int, seed: int, output: Path) -> None:
    """Injects mixed faults into running jobs, and reports."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what it started ends with it
    outcomes = []
    with tempfile.TemporaryDirectory(prefix="freshet-chaos-") as name:
        folder = Path(name)
        prepare_process(folder / "log")
        os.environ["PYTHONPATH"] = str(ROOT)  # the workers import this package
        for plan in plans(seed, faults, events, rate):
            print(f"{time.strftime('%H:%M:%S')} seed {plan.seed}: {plan.events:,} events, {plan.backend}", flush=True)
            outcomes.append(run_leg(folder / plan.backend, plan))
    figures = report(outcomes)
    output.write_bytes(orjson.dumps(figures, option=orjson.OPT_INDENT_2) + b"\n")
    print(table(figures))
    sys.exit(1 if figures["violations"] else 0)


if __name__ == "__main__":
    main()
