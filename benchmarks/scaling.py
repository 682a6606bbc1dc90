r"""What more cores would give: the job with one and with two learners, and a calculation from what its parts cost.

    python -m benchmarks.scaling [--events 2000000] [--rounds 5] [--tiles]

Runs ``shards=1,parallelism=1``, ``shards=2,parallelism=2`` and ``shards=4,parallelism=2`` interleaved, with
``batch_bytes`` in proportion to the parallelism, so that each learner gets as much at once as one would; and shows what
each gives and costs: microseconds of CPU an event of the reader, of the intake, of all learners, of what publishes
windows (``--tiles``), of the JVM, of Redis and of the rest (the command line).

The calculation takes the costs :math:`c` of the last of these, the one with the most shards. Reader, intake and Redis
are one process each, and count as one core at the most; learners, what publishes windows, and the threads of the JVM
are taken to spread over all cores. On :math:`n` cores the job then passes at the most, in events a second,

.. math::

    \min\left(
        \frac{1}{c_{\text{read}}},\;
        \frac{1}{c_{\text{intake}}},\;
        \frac{1}{c_{\text{Redis}}},\;
        \frac{n}{\sum c}
    \right)

It is an upper bound. It knows no waiting, no imbalance of shards, no memory bandwidth and no network between machines;
it takes each core for as good as the first; and with more shards than were measured an item's row is written more often
for the same events, so that Redis stops it sooner than is said here.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from benchmarks.common import N_FACTORS, median, progress, rounds, scratch, show, store, stream
from benchmarks.noted_job import INTAKE, LEARN, READ, TILES, parts
from benchmarks.runs import Run, freshet_clock, module, watched
from flink_jobs.sections import Settings

JVM, REDIS, REST = "JVM", "Redis", "rest"
PARTS: Final = (READ, INTAKE, LEARN, TILES, JVM, REDIS, REST)
SINGLE: Final = (READ, INTAKE, REDIS)
CONFIGURATIONS: Final = ((1, 1), (2, 2), (4, 2))  # shards, parallelism
CORES: Final = (2, 8, 32, 128)
_BATCH_BYTES: Final = int(Settings.model_fields["batch_bytes"].default)


class Bound(NamedTuple):
    """Events a second, and what stops it there."""

    rate: float
    by: str


def bound(costs: Mapping[str, float], cores: int) -> Bound:
    """The formula above.

    Parameters
    ----------
    costs
        Microseconds of CPU an event, by part.

    >>> bound({"read": 1.0, "intake": 10.0, "learn": 9.0}, 8)
    Bound(rate=100000.0, by='intake')
    >>> bound({"read": 1.0, "intake": 4.0, "learn": 15.0}, 2)
    Bound(rate=100000.0, by='cores')
    >>> bound({"read": 1.0, "intake": 4.0, "learn": 15.0, "Redis": 5.0}, 128)
    Bound(rate=200000.0, by='Redis')
    """
    bounds = [Bound(1e6 / costs[part], part) for part in SINGLE if costs.get(part, 0) > 0]
    return min([*bounds, Bound(cores * 1e6 / sum(costs.values()), "cores")])


def costs_of(run: Run, by_process: Mapping[int, str]) -> dict[str, float]:
    """Microseconds an event of each part."""
    costs = dict.fromkeys(PARTS, 0.0)
    for pid, seconds in run.cpu.items():
        if pid == run.redis:
            part = REDIS
        elif run.names.get(pid, "") == "java":
            part = JVM
        else:
            part = by_process.get(pid, REST)
        # Parts that share a process count as its first.
        costs[part if part in costs else part.split("+")[0]] += run.per_event(seconds)
    return costs


def measure(folder: Path, path: Path, events: int, shards: int, parallelism: int, tiles: bool) -> tuple[Run, Any]:
    owns: list[Path] = []

    def command(own: Path, url: str) -> list[str]:
        owns.append(own)
        settings = {
            "source": f"file:{path}",
            "redis": url,
            "shards": shards,
            "parallelism": parallelism,
            "batch_bytes": _BATCH_BYTES * parallelism,
            "tiles.enabled": str(tiles).lower(),
            "model.n_factors": N_FACTORS,
        }
        return module("benchmarks.noted_job", own, *(f"{name}={value}" for name, value in settings.items()))

    run = watched(folder, command, events, lambda connection, own: freshet_clock(connection, own / "summary.json"))
    return run, costs_of(run, parts(owns[0]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=2_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tiles", action="store_true", help="with the default windows")
    arguments = parser.parse_args()
    rates: dict[str, list[float]] = {}
    costs: dict[str, list[dict[str, float]]] = {}
    with scratch() as name:
        folder = Path(name).resolve()
        progress(f"generating {arguments.events:,} events")
        path = stream(folder, arguments.events)
        for _ in rounds(arguments.rounds):
            for shards, parallelism in CONFIGURATIONS:
                run, of = measure(folder, path, arguments.events, shards, parallelism, arguments.tiles)
                title = f"shards={shards}, parallelism={parallelism}"
                rates.setdefault(title, []).append(run.rate)
                costs.setdefault(title, []).append(of)
                progress(f"{title}: {run.rate:,.0f}/s")
    medians = {title: {part: median([one[part] for one in of]) for part in PARTS} for title, of in costs.items()}
    ratios = {
        title: [a / b for a, b in zip(of, next(iter(rates.values())), strict=True)] for title, of in rates.items()
    }
    head = ("", "events/s", "of the first", *(f"{part} us" for part in PARTS), "all us")
    rows = [
        (
            title,
            f"{median(rates[title]):,.0f}",
            f"{median(ratios[title]):.2f}",
            *(f"{medians[title][part]:.2f}" for part in PARTS),
            f"{sum(medians[title].values()):.1f}",
        )
        for title in rates
    ]
    show(f"{arguments.events:,} events, medians of {arguments.rounds} rounds; CPU an event", [head, *rows])
    last = list(medians.values())[-1]
    bounds = {cores: bound(last, cores) for cores in CORES}
    table = [(str(cores), f"{b.rate:,.0f}", b.by) for cores, b in bounds.items()]
    show(f"calculated from {list(medians)[-1]}", [("cores", "events/s at most", "stopped by"), *table])
    for part in sorted(SINGLE, key=lambda part: -last[part]):
        print(
            f"  {part}, one process: {1e6 / last[part]:,.0f} events/s" if last[part] else f"  {part}: nothing measured"
        )
    print("  a second intake needs a log that is split by user; a second Redis, prefixes or shards of its own")
    store(
        "scaling-tiles" if arguments.tiles else "scaling",
        {
            "events": arguments.events,
            "events_per_second": rates,
            "ratios": ratios,
            "cpu_us_per_event": costs,
            "bounds": {str(cores): b._asdict() for cores, b in bounds.items()},
        },
    )


if __name__ == "__main__":
    main()
