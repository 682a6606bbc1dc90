"""freshet, other ways to do the same, and a plain loop over the same file, interleaved, as ratios.

    python -m benchmarks.compare [--events 3000000] [--rounds 5] [--only NAME ...]

Of each: events a second from the first event to the last write that Redis has acknowledged, against the plain loop
(``orjson.loads; predict_one; learn_one``) just before and just after; CPU of all its processes and of Redis in that
time; and the most memory that they had at once. All learn biased MF with 16 factors; all but the plain loop publish to
a Redis of their own; all but the two loops make checkpoints every 10 s. What the others leave out of what freshet does
is said at the top of each, in ``benchmarks/rivals/``. The plain PyFlink job gets a tenth of the events. bytewax gets an
environment of its own, which is made on first use. The blend gets a stream of 100,000 items, and its loop that stream,
too: it learns more than biased MF, and is compared with what a plain program that learns as little takes. Its batches
are twice as long as by default.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.common import N_FACTORS, job_command, median, progress, rounds, scratch, show, store, stream
from benchmarks.rivals.bytewax_run import bytewax_python
from benchmarks.runs import Run, freshet_clock, module, watched

_LOOP: Final = "plain-loop"
_LOOP_EVENTS: Final = 500_000
_ITEMS: Final = 1_250
_MANY_ITEMS: Final = 100_000


@dataclass(frozen=True)
class Competitor:
    """
    Attributes
    ----------
    command
        From the file, a folder of its own and the URL of a Redis.
    share
        Of the events that it gets.
    items
        In the stream that it gets.
    """

    title: str
    command: Callable[[Path, Path, str], Sequence[str]]
    share: float = 1.0
    is_freshet: bool = False
    items: int = _ITEMS

    def run(self, scratch_folder: Path, events: int) -> Run:
        count = int(events * self.share)
        path = stream(scratch_folder, count, items=self.items)
        clock = (lambda c, own: freshet_clock(c, own / "summary.json")) if self.is_freshet else None
        with_clock: dict[str, Any] = {} if clock is None else {"clock_of": clock}
        return watched(scratch_folder, lambda own, url: self.command(path, own, url), count, **with_clock)


def _freshet(title: str, items: int = _ITEMS, **settings: Any) -> Competitor:
    def command(path: Path, own: Path, url: str) -> Sequence[str]:
        return job_command(path, own, redis=url, **settings)

    return Competitor(title, command, is_freshet=True, items=items)


def _blend(title: str, **settings: Any) -> Competitor:
    of = {"model__name": "blend", "tiles__enabled": "false", "batch_bytes": 32_000_000}
    return _freshet(f"blend, {_MANY_ITEMS:,} items, no windows, {title}", _MANY_ITEMS, **of, **settings)


def _rival(title: str, name: str, *options: Any, share: float = 1.0) -> Competitor:
    of = (f"benchmarks.rivals.{name}", "--factors", N_FACTORS, *options)
    return Competitor(title, lambda path, own, url: module(of[0], path, "--redis", url, *of[1:]), share)


COMPETITORS: Final = {
    "freshet": _freshet("freshet, default windows"),
    "freshet-no-windows": _freshet("freshet, tiles.enabled=false", tiles__enabled="false"),
    "freshet-not-evaluated": _freshet("no windows, ranking.every=0", tiles__enabled="false", ranking__every=0),
    "freshet-river": _freshet(
        "tiles.enabled=false, learner.engine=river", tiles__enabled="false", learner__engine="river"
    ),
    "blend": _blend("not evaluated", ranking__every=0),
    "blend-evaluated": _blend("1 event in 10 evaluated", ranking__every=10),
    "plain-pyflink": _rival("plain PyFlink job, no windows", "plain_pyflink", share=0.1),
    "bytewax": _rival("bytewax, 1 worker, no windows", "bytewax_run"),
    "bytewax-2x4": _rival("bytewax, 2 processes, 4 shards", "bytewax_run", "--processes", 2, "--shards", 4),
    "tiles-loop": _rival("loop with the default windows", "tiles_loop"),
}


def loop(folder: Path, events: int, items: int) -> Run:
    path, count = stream(folder, events, items=items), min(events, _LOOP_EVENTS)
    of = ("--limit", count)
    return watched(folder, lambda _, url: module("benchmarks.rivals.plain_loop", path, "--redis", url, *of), count)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=3_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=list(COMPETITORS), metavar="NAME", help=", ".join(COMPETITORS))
    arguments = parser.parse_args()
    chosen = {name: COMPETITORS[name] for name in arguments.only or COMPETITORS}
    if any(name.startswith("bytewax") for name in chosen):
        bytewax_python()  # now, and not in the middle of a round
    runs: dict[str, list[Run]] = {name: [] for name in (_LOOP, *chosen)}
    ratios: dict[str, list[float]] = {name: [] for name in chosen}
    with scratch() as scratch_name:
        folder = Path(scratch_name).resolve()
        progress(f"generating {arguments.events:,} events")
        for items in {competitor.items for competitor in chosen.values()}:
            stream(folder, arguments.events, items=items)
        for _ in rounds(arguments.rounds):
            before: dict[int, Run] = {}
            for name, competitor in chosen.items():
                # The loop is timed before and after each run: what the machine gives changes by the minute.
                items = competitor.items
                if items not in before:
                    before = {items: loop(folder, arguments.events, items)}
                    runs[_LOOP].append(before[items])
                run = competitor.run(folder, arguments.events)
                after = loop(folder, arguments.events, items)
                runs[_LOOP].append(after)
                runs[name].append(run)
                ratios[name].append(run.rate / median([before[items].rate, after.rate]))
                progress(f"{name}: {run.rate:,.0f}/s, {ratios[name][-1]:.2f} of the loop's {after.rate:,.0f}/s")
                before = {items: after}
    head = ("", "events/s", "of the loop", "CPU us/event", "CPU s", "cores", "peak MB")
    rows = [_row("plain loop", runs[_LOOP], None)]
    rows += [_row(competitor.title, runs[name], ratios[name]) for name, competitor in chosen.items()]
    show(f"{arguments.events:,} events, medians of {arguments.rounds} rounds", [head, *rows])
    result = {name: {**_figures(of), "ratios": ratios.get(name)} for name, of in runs.items()}
    # Part of the comparison must not take the place of a whole one.
    store("-".join(["compare", *(arguments.only or ())]), {"events": arguments.events, "results": result})


def _row(title: str, of: Sequence[Run], ratios: Sequence[float] | None) -> tuple[str, ...]:
    return (
        title,
        f"{median([run.rate for run in of]):,.0f}",
        "1" if ratios is None else f"{median(ratios):.2f}",
        f"{median([run.cpu_per_event for run in of]):.1f}",
        f"{median([sum(run.cpu.values()) for run in of]):.1f}",
        f"{median([sum(run.cpu.values()) / run.seconds for run in of]):.2f}",
        f"{median([run.peak / 2**20 for run in of]):,.0f}",
    )


def _figures(of: Sequence[Run]) -> dict[str, list[float]]:
    return {
        "events_per_second": [run.rate for run in of],
        "cpu_us_per_event": [run.cpu_per_event for run in of],
        "cpu_seconds": [sum(run.cpu.values()) for run in of],
        "seconds": [run.seconds for run in of],
        "learned": [run.clock.learned for run in of],
        "peak_mb": [run.peak / 2**20 for run in of],
    }


if __name__ == "__main__":
    main()
