"""The whole job against a plain loop over the same file, interleaved, as ratios.

    python -m benchmarks.throughput [--events 3000000] [--rounds 3]

The job reads, parses, finds duplicates, learns biased MF with 16 factors, publishes to Redis and makes a
checkpoint every 10 s; start-up is left out, up to the last acknowledged write. The loop is ``orjson.loads;
predict_one; learn_one``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.common import median, plain_loop, progress, rounds, run_job, scratch, show, store, stream

_LOOP_EVENTS = 500_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=3_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    loops: list[float] = []
    compiled: list[float] = []
    river: list[float] = []
    tiles: list[float] = []
    with scratch() as name:
        folder = Path(name)
        path = stream(folder, arguments.events)
        for _ in rounds(arguments.rounds):
            # The loop is timed before and after each run: what the machine gives changes by the minute.
            before = plain_loop(path, _LOOP_EVENTS)
            without = run_job(path, folder, tiles__enabled="false")["events_per_second"]
            between = plain_loop(path, _LOOP_EVENTS)
            reference = run_job(path, folder, tiles__enabled="false", learner__engine="river")["events_per_second"]
            later = plain_loop(path, _LOOP_EVENTS)
            whole = run_job(path, folder)["events_per_second"]
            after = plain_loop(path, _LOOP_EVENTS)
            loops.append(median([before, between, later, after]))
            compiled.append(without / median([before, between]))
            river.append(reference / median([between, later]))
            tiles.append(whole / median([later, after]))
            progress(
                f"loop {loops[-1]:,.0f}/s; job without windows {without:,.0f}/s, by River's own code "
                f"{reference:,.0f}/s; with windows {whole:,.0f}/s"
            )
    result = {"events": arguments.events, "loop": loops, "without_windows": compiled, "river": river, "whole": tiles}
    show(
        f"{arguments.events:,} events, median of {arguments.rounds} rounds",
        [
            ("", "of the plain loop"),
            ("plain loop", f"1.00 ({median(loops):,.0f} events/s)"),
            ("job without windows", f"{median(compiled):.2f}"),
            ("job without windows, learner.engine=river", f"{median(river):.2f}"),
            ("job with the default windows", f"{median(tiles):.2f}"),
        ],
    )
    store("throughput", result)


if __name__ == "__main__":
    main()
