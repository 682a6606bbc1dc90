"""Whether memory stays where it is: a job at full rate over ids that are all known.

    python -m benchmarks.memory [--minutes 45] [--set tiles.enabled=false]

The generator without end, as fast as it goes: 20,000 users who all stay, 1,250 items. What a job keeps for a time
(event ids within ``dedup.horizon``, open windows, tiles in Redis within ``tiles.keep``) is full only when so much event
time has passed. So an event comes each 40 ms of it, and tiles are kept for a day at the most: three days, with those
that are open, or 6.5 million events. A user's row keeps five recent items, which also those who seldom come have met
by then; with fifty, rows would still grow after hours. The warm-up is the first third of the time, and must cover all
that. The resident memory of each process is read each second. Growth is from the median of the first sixth after the
warm-up to that of the last sixth. Exits with 1 where a process grew by 1% or more, or the warm-up was too short.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any, Final

from benchmarks.common import median, progress, scratch, show, store
from benchmarks.jobs import CLEAN, KEYS, Job, processes, running
from flink_jobs.settings import assignment
from udfs.generator import START

LIMIT: Final = 0.01
_EVENT_MS: Final = 40
_FULL_MS: Final = 3 * 86_400_000
_SETTINGS: Final[dict[str, Any]] = {
    **CLEAN,
    "generator.events": 10**12,
    "generator.users": 20_000,
    "generator.items": 1_250,
    "generator.interval": _EVENT_MS,
    "serving.seen": 5,
    "tiles.keep.5m": "2h",
    "tiles.keep.1h": "6h",
    "tiles.keep.1d": "1d",
}
_MB: Final = 2**20


def event_time(job: Job) -> int:
    """Milliseconds of event time that were learned."""
    return int(job.connection.hget(KEYS.model(0), "updated_at") or START) - START


def measure(minutes: float, settings: dict[str, Any]) -> dict[str, Any]:
    with scratch() as name:
        state = Path(name).resolve() / "state"
        with running(state, "generator", {**_SETTINGS, **settings}, "--fresh") as (job, pid):
            job.wait(lambda: job.learned)
            time.sleep(5)
            watched = processes(job, pid)
            seconds = round(60 * minutes)
            warm, began, first = seconds // 3, time.monotonic(), job.learned
            warmed = 0
            for second in range(seconds):
                for process in watched:
                    process.sample()
                if second == warm:
                    warmed = event_time(job)
                if second % 30 == 0:
                    job.check()
                    total = sum(process.resident[-1] for process in watched) / _MB
                    progress(f"{second} of {seconds} s: {job.learned:,} events, {total:,.0f} MB")
                time.sleep(max(0.0, began + second + 1 - time.monotonic()))
            rate = (job.learned - first) / (time.monotonic() - began)
    sixth = (seconds - warm) // 6
    return {
        "minutes": minutes,
        "rate": rate,
        "warm_up_event_time": warmed,
        "processes": {
            p.name: {
                "start": median(p.resident[warm : warm + sixth]) / _MB,
                "end": median(p.resident[seconds - sixth :]) / _MB,
                "peak": max(p.resident) / _MB,
                "cores": (p.cpu[-1] - p.cpu[warm]) / (seconds - warm),
                "resident": p.resident,
            }
            for p in watched
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=45.0)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of the job")
    arguments = parser.parse_args()
    result = measure(arguments.minutes, dict(map(assignment, arguments.set)))
    rows = [("", "start MB", "end MB", "growth", "peak MB", "cores used")]
    grown = {name: of["end"] / of["start"] - 1 for name, of in result["processes"].items()}
    for name, of in result["processes"].items():
        rows.append(
            (
                name,
                f"{of['start']:,.1f}",
                f"{of['end']:,.1f}",
                f"{grown[name]:+.2%}",
                f"{of['peak']:,.1f}",
                f"{of['cores']:.2f}",
            )
        )
    show(f"resident memory after a warm-up of {arguments.minutes / 3:.3g} min, {result['rate']:,.0f} events/s", rows)
    store("memory", {**result, "growth": grown, "settings": arguments.set})
    if result["warm_up_event_time"] < _FULL_MS:
        days = result["warm_up_event_time"] / 86_400_000
        sys.exit(f"the warm-up covered {days:.1f} days of event time, not 3: it tells nothing; give more --minutes")
    if any(share >= LIMIT for share in grown.values()):
        sys.exit(f"grew by {LIMIT:.0%} or more: {', '.join(n for n, share in grown.items() if share >= LIMIT)}")


if __name__ == "__main__":
    main()
