"""How old an event is when its effect can first be read in Redis.

    python -m benchmarks.freshness [--rates 1 10000] [--seconds 120] [--set tiles.enabled=false] [--pause 10]

Events are created evenly, at stated rates: an event's age counts from its moment on that time line, also where the
source was held up and read it late. They go through the whole job, with its checkpoints and windows, in processing time
(in event time each waits for ``out_of_orderness``: ``--set time=event`` shows it). The source is the generator with its
rate, which gives out what is due whenever it is asked.

This process is the reader. It knows which user comes with which event, awaits some of the events (all up to 200 a
second, else one drawn from each 1/200 s), and asks Redis for ``updated_at`` of the awaited users every few
milliseconds. An event counts as seen when the reply that shows it has arrived, so no age is understated; by how much it
may be overstated, at the most the time since the reader asked before, is shown too. All awaited events count; one that
is not seen in 30 s fails the run. What comes in the first 20 s, while the job starts, is not awaited.

Where the time goes is told by what the job writes beside the users, which is read with each poll: the ledger's
``alive_at`` (the intake has judged a chunk) and ``published_at`` (a group is learned, and is sent next). What each
process uses of the CPU is shown, too: where none is idle, an age tells of the machine and not of the job.
"""

from __future__ import annotations

import argparse
import bisect
import itertools
import multiprocessing
import os
import re
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import orjson
import psutil

from benchmarks.common import N_FACTORS, progress, scratch, show, store
from benchmarks.jobs import CLEAN, KEYS, Checkpoint, Job, Process, environment, percentile, processes
from benchmarks.live import created, run_live
from flink_jobs.embedded import embedded_redis
from flink_jobs.settings import assignment
from serving.connection import connect
from serving.schema import Field
from udfs.generator import BLOCK, Generator, GeneratorConfig

TARGETS: Final = {0.5: 0.3, 0.99: 1.0}  # seconds
_WARM: Final = 20.0
_GRACE: Final = 30.0
_SAMPLES: Final = 200.0  # awaited events a second
_USER: Final = re.compile(rb'"user_id":"([^"]+)"')
_STAGES: Final = ("source", "judge", "learn", "write")


@dataclass
class Awaited:
    """An event whose effect is awaited.

    Attributes
    ----------
    polled
        When the reader last asked for it in vain.
    seen
        When the reply that shows its effect had arrived.
    """

    number: int
    key: str
    created: float
    polled: float = 0.0
    seen: float = 0.0

    @property
    def age(self) -> float:
        return self.seen - self.created

    @property
    def blur(self) -> float:
        """By how much the age may be overstated."""
        return self.seen - max(self.created, self.polled)


@dataclass
class Marks:
    """Moments by which events with numbers below some were through a stage, in order."""

    numbers: list[int] = field(default_factory=list)
    moments: list[float] = field(default_factory=list)

    def add(self, below: int, moment: float) -> None:
        if not self.numbers or below > self.numbers[-1]:
            self.numbers.append(below)
            self.moments.append(moment)

    def reached(self, number: int) -> bool:
        return bool(self.numbers) and self.numbers[-1] > number

    def of(self, number: int) -> float:
        """When an event was through."""
        return self.moments[bisect.bisect_right(self.numbers, number)]


def sampled(config: GeneratorConfig, began: float, seconds: float) -> list[Awaited]:
    """The events to await, in the order of their creation.

    None has an event of the same user and the same millisecond before it, whose effect could be taken for its own.
    """
    rate, rng, generator = config.rate, np.random.default_rng(0), Generator(config)
    step = max(1, round(rate / _SAMPLES))
    first, last = int(_WARM * rate), int((_WARM + seconds) * rate)
    block: tuple[int, list[bytes]] = (-1, [])
    found: list[Awaited] = []
    for start in range(first, last, step):
        number = start + int(rng.integers(step))
        if block[0] != number // BLOCK:
            block = (number // BLOCK, generator.block(number // BLOCK))
        lines, at = block[1], number % BLOCK
        user = _user(lines[at])
        together = max(0, at - 1 - int(rate / 1_000))
        if at == 0 or user not in map(_user, lines[together:at]):
            found.append(Awaited(number, KEYS.user(user.decode()), created(began, rate, number)))
    return found


def _user(line: bytes) -> bytes:
    match = _USER.search(line)
    assert match is not None
    return match.group(1)


@dataclass
class Seen:
    """What a reader saw: all awaited events, how far intake and learner said that they were, and who used the CPU.

    Attributes
    ----------
    cores
        Used by each process meanwhile, and left over by all on this machine.
    """

    events: list[Awaited]
    judged: Marks = field(default_factory=Marks)
    learned: Marks = field(default_factory=Marks)
    polls: int = 0
    behind: int = 0  # most events that were awaited at a time
    cores: dict[str, float] = field(default_factory=dict)


def watch(job: Job, pid: int, events: list[Awaited], poll: float) -> Seen:
    """Polls until every event was seen."""
    seen = Seen(events)
    coming, awaited = deque(events), list[Awaited]()
    give_up, shown = events[-1].created + _GRACE, time.time()
    written, meter = b"", None
    # Until also the notes of the last write are there.
    while coming or awaited or not (seen.judged.reached(events[-1].number) and seen.learned.reached(events[-1].number)):
        began = time.time()
        while coming and coming[0].created <= began:
            awaited.append(coming.popleft())
        if awaited and meter is None:
            meter = Meter(job, pid)
        pipe = job.connection.pipeline(transaction=False)
        pipe.hmget(KEYS.ledger, "counts", Field.ALIVE, "published_at")
        pipe.hget(KEYS.model(0), "seq")
        for event in awaited:
            pipe.hget(event.key, Field.UPDATED_AT)
        asked = time.time()
        (counts, alive, published), seq, *times = pipe.execute()
        answered = time.time()
        left = []
        for event, updated in zip(awaited, times, strict=True):
            if updated is not None and int(updated) >= int(1_000 * event.created):
                event.seen = answered
            else:
                event.polled = asked
                left.append(event)
        awaited = left
        seen.polls += 1
        seen.behind = max(seen.behind, len(awaited))
        if counts is not None:
            seen.judged.add(orjson.loads(counts)["accepted"], int(alive) / 1_000)
        if seq is not None and published is not None and published != written:
            # A header comes a moment before its note: one that is there with the note of before is the next one's.
            written = published
            seen.learned.add(int(seq), int(published) / 1_000)
        if answered > give_up:
            raise RuntimeError(f"{len(awaited)} events were not seen {_GRACE:g} s after the last was created")
        if answered - shown > 10:
            shown = answered
            job.check()
            job.checkpoints()
            progress(f"{len(events) - len(coming) - len(awaited):,} of {len(events):,} events seen")
        time.sleep(max(0.0, poll - (time.time() - began)))
    if meter is not None:
        seen.cores = meter.read()
    return seen


def stages(event: Awaited, read: Marks, seen: Seen) -> tuple[float, ...]:
    """Seconds of an event's age: until it was read, judged, learned, and seen in Redis."""
    moments = (event.created, *(marks.of(event.number) for marks in (read, seen.judged, seen.learned)), event.seen)
    return tuple(float(b - a) for a, b in itertools.pairwise(moments))


class Meter:
    """How many cores are used from now on: by the processes of a job, by this one, and by none."""

    def __init__(self, job: Job, pid: int) -> None:
        self._processes = [*processes(job, pid), Process("this reader", psutil.Process())]
        self._began, self._idle = time.time(), psutil.cpu_times().idle
        for process in self._processes:
            process.sample()

    def read(self) -> dict[str, float]:
        seconds = time.time() - self._began
        for process in self._processes:
            process.sample()
        cores = {process.name: (process.cpu[-1] - process.cpu[0]) / seconds for process in self._processes}
        idle = (psutil.cpu_times().idle - self._idle) / seconds
        others = (psutil.cpu_count() or 1) - idle - sum(cores.values())
        return {**cores, "others, and the kernel": others, "idle": idle}


def _read_marks(trace: Path) -> Marks:
    marks = Marks()
    _, *chunks = trace.read_text().splitlines()
    for line in chunks:
        words = line.split()
        if len(words) != 3:
            raise RuntimeError("the job was started anew while it was measured")
        marks.add(int(words[0]) + int(words[1]), float(words[2]))
    return marks


def measure(rate: float, arguments: argparse.Namespace) -> dict[str, Any]:
    users, items = 20_000, 1_250
    interval = max(1, round(1_000 / rate))
    values: dict[str, Any] = {
        "time": "processing",
        "fresh": True,
        "model.n_factors": N_FACTORS,
        **CLEAN,
        "generator.events": 10**12,
        "generator.rate": rate,
        "generator.users": users,
        "generator.items": items,
        "generator.interval": interval,
        **dict(map(assignment, arguments.set)),
    }
    config = GeneratorConfig(
        rate=rate, users=users, items=items, interval=interval, churn=0, malformed=0.0, duplicates=0.0, late=0.0
    )
    with scratch() as name:
        folder = Path(name).resolve()
        state, trace = folder / "state", folder / "trace"
        values["state_dir"] = str(state)
        os.environ.update(environment())
        with embedded_redis(state / "redis") as url:
            process = multiprocessing.get_context("spawn").Process(
                target=run_live, args=(values, str(trace), arguments.pause)
            )
            process.start()
            job = Job(lambda: process.exitcode, state, connect(url))
            try:
                assert process.pid is not None
                job.wait(lambda: trace.exists() and trace.read_text().endswith("\n"))
                began = float(trace.read_text().split("\n")[0])
                events = sampled(config, began, arguments.seconds)
                progress(f"{rate:g} events/s: awaiting {len(events):,} of {int(rate * arguments.seconds):,}")
                seen = watch(job, process.pid, events, arguments.poll / 1_000)
                checkpoints = [c for c in job.checkpoints() if c.began > events[0].created]
            finally:
                process.terminate()
                process.join()
        return _result(rate, seen, _read_marks(trace), checkpoints)


def _result(rate: float, seen: Seen, read: Marks, checkpoints: list[Checkpoint]) -> dict[str, Any]:
    events = sorted(seen.events, key=lambda event: event.age)
    ages, blurs = [event.age for event in events], [event.blur for event in events]
    parts = {event.number: stages(event, read, seen) for event in events}
    slowest = events[-max(1, len(events) // 100) :]

    def during(event: Awaited) -> bool:
        return any(c.began < event.seen and event.created < c.began + c.seconds for c in checkpoints)

    return {
        "rate": rate,
        "awaited": len(events),
        "polls": seen.polls,
        "most_awaited": seen.behind,
        "cores": seen.cores,
        "age": {"p50": percentile(ages, 0.5), "p99": percentile(ages, 0.99), "max": ages[-1]},
        "blur": {"p50": percentile(blurs, 0.5), "p99": percentile(blurs, 0.99), "max": max(blurs)},
        "stages": {
            stage: {
                "p50": percentile([parts[event.number][at] for event in events], 0.5),
                "p99": percentile([parts[event.number][at] for event in events], 0.99),
                "slowest": float(np.mean([parts[event.number][at] for event in slowest])),
            }
            for at, stage in enumerate(_STAGES)
        },
        "checkpoints": len(checkpoints),
        "during_checkpoints": float(np.mean([during(event) for event in events])),
        "slowest_during_checkpoints": float(np.mean([during(event) for event in slowest])),
        "met": all(percentile(ages, share) <= limit for share, limit in TARGETS.items()),
    }


def _ms(seconds: float) -> str:
    return f"{1_000 * seconds:,.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", type=float, nargs="+", default=[1.0, 10_000.0], help="events a second")
    parser.add_argument("--seconds", type=float, default=120.0, help="in which events are awaited, for each rate")
    parser.add_argument("--poll", type=float, default=4.0, help="milliseconds between polls of the reader")
    parser.add_argument("--pause", type=int, help="milliseconds between reads of the source, instead of its own")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of the job")
    arguments = parser.parse_args()
    results = [measure(rate, arguments) for rate in arguments.rates]
    show(
        "age of an event when its effect is first read in Redis, ms",
        [
            (
                "events/s",
                "p50",
                "p99",
                "max",
                "overstated by, p50",
                "p99",
                "events awaited",
                "p50 <= 300, p99 <= 1,000",
            ),
            *(
                (
                    f"{r['rate']:,g}",
                    *(_ms(r["age"][name]) for name in ("p50", "p99", "max")),
                    f"{1_000 * r['blur']['p50']:.1f}",
                    f"{1_000 * r['blur']['p99']:.1f}",
                    f"{r['awaited']:,}",
                    "met" if r["met"] else "missed",
                )
                for r in results
            ),
        ],
    )
    for r in results:
        show(
            f"where it goes at {r['rate']:,g} events/s, ms",
            [
                ("", "p50", "p99", "mean of the slowest 1%"),
                *(
                    (text, *(_ms(r["stages"][stage][name]) for name in ("p50", "p99", "slowest")))
                    for stage, text in zip(
                        _STAGES,
                        (
                            "waits until the source reads it",
                            "to the intake, and judged",
                            "to the learner, learned, encoded",
                            "sent, written, read",
                        ),
                        strict=True,
                    )
                ),
            ],
        )
        print(
            f"  {r['checkpoints']} checkpoints; {r['during_checkpoints']:.0%} of the events, and "
            f"{r['slowest_during_checkpoints']:.0%} of the slowest 1%, met one"
        )
        show(
            f"cores used at {r['rate']:,g} events/s",
            [("", ""), *((name, f"{cores:.2f}") for name, cores in r["cores"].items())],
        )
    store("freshness", {"seconds": arguments.seconds, "settings": arguments.set, "rates": results})


if __name__ == "__main__":
    main()
