"""What each step of the job costs an event, on its own: one process, one stream, no Flink but in the last row.

    python -m benchmarks.steps [--events 1000000] [--repetitions 5]

The stream is that of ``benchmarks.compare``. Each repetition makes new objects and passes the whole stream through
them, in the chunks that the reader makes, step by step: what a step gives for a chunk is what the next takes. The first
100,000 events, in which chunks are small and ids are new, warm up and are left out.

=============  ========================================================================================
scan           ``FileFeed.read``: lines of the file, with their places
decode         ``Chunk.decode``, in the intake's worker
judge          ``Intake.process`` without windows, less the encoding of its batch
tile feed      the same with windows, less the same without: a difference, and so the least certain
hand over      ``Batch.encode`` and ``Batch.decode``
learn          ``Learner.process``, by compiled code or by River's; and of the filters of ratings
state          ``Learner.encode``: the bytes of the touched rows
arguments      ``LearnedEntities``: the words of the writes, as Redis gets them
publish        ``Publisher.learned``: a real Redis, until it has acknowledged
JVM            a chunk through two operators that do nothing (``benchmarks.passthrough``), two cores at work
=============  ========================================================================================

State and what follows cost by touched row: the fewer distinct ids a chunk has, the less. Times are of CPU, but for
publishing, which waits for Redis, and the JVM.
"""

from __future__ import annotations

import argparse
import gc
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal

import orjson

from benchmarks.common import N_FACTORS, Made, median, progress, scratch, show, store, stream
from benchmarks.runs import module
from flink_jobs.embedded import embedded_redis
from serving.connection import connect
from serving.schema import Keys, span_ms
from udfs.batch import Batch
from udfs.building import FILTERS, build
from udfs.chunk import Chunk
from udfs.entities import LearnedEntities
from udfs.events import EventFormat
from udfs.intake import Intake, IntakeConfig
from udfs.learner import Learned, Learner, LearnerConfig
from udfs.publisher import Author, Publisher, draw_submission
from udfs.reading import FileFeed
from udfs.rows import EncodedRows
from udfs.tilefeed import TileConfig

_EVENT_TYPES: Final = ("view", "click", "cart", "purchase", "rating")
_PREFIX: Final = "steps"
_WARM_UP: Final = 100_000  # events
_LEAST: Final = 300_000
_STEPS: Final = {
    "scan": "scan",
    "decode": "decode",
    "judge": "judge",
    "tiles": "tile feed",
    "hand-over": "hand over",
    "learn": "learn, compiled",
    "learn-river": "learn, River's code",
    "state": "state",
    "arguments": "Redis arguments",
    "publish": "publish",
    "learn-kalman_mf": "learn, kalman_mf",
    "state-kalman_mf": "state, kalman_mf",
    "arguments-kalman_mf": "Redis arguments, kalman_mf",
    "learn-stack": "learn, stack",
    "state-stack": "state, stack",
    "arguments-stack": "Redis arguments, stack",
    "jvm": "JVM, two hand-overs",
}


class Stopwatch:
    """Seconds by step, of chunks that count."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.counts = False

    def __call__(self, step: str, what: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        clock = time.perf_counter if step == "publish" else time.process_time
        began = clock()
        result = what(*arguments, **options)
        if self.counts:
            self.seconds[step] += clock() - began
        return result


@contextmanager
def calm_collector() -> Iterator[None]:
    """Sets Python's cycle collector as the job's workers do."""
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(1_000_000, 10, 100)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


def intake(tiles: TileConfig | None) -> Intake:
    config = IntakeConfig(
        fmt=EventFormat(),
        shards=1,
        event_time=True,
        merged=True,
        out_of_orderness=span_ms("5s"),
        dedup_horizon=span_ms("1h"),
        tiles=tiles,
        position_names=("file", "line"),
        run_id="steps",
        epoch=1,
    )
    return Intake(config)


def learner(engine: Literal["compiled", "river"] = "compiled", name: str = "biased_mf") -> Learner:
    return Learner(LearnerConfig(), build(name, {"n_factors": N_FACTORS}, engine=engine))


def chunks(path: Path, watch: Stopwatch) -> Iterator[tuple[bytes, int]]:
    """Encoded chunks of the file, and how many events each has."""
    feed = FileFeed([(str(path), "jsonl")], EventFormat(), "steps")
    feed.seek(None)
    while not feed.ended:
        chunk = watch("scan", feed.read)
        if chunk.lines:
            yield watch("scan", chunk.encode), len(chunk.lines)


def repetition(path: Path, redis_url: str) -> dict[str, float]:
    """Microseconds an event of each step."""
    watch, passed, counted = Stopwatch(), 0, 0
    plain, with_tiles = intake(None), intake(TileConfig(_EVENT_TYPES, span_ms("30m"), span_ms("5m")))
    ours, rivers = learner(), learner("river")
    filters = {name: learner(name=name) for name in FILTERS}
    connection, keys = connect(redis_url), Keys(_PREFIX)
    connection.flushall()
    publisher = Publisher(redis_url, _PREFIX, draw_submission(connection, keys, 1))
    author = Author(keys, 0, 1, 1)
    publisher.take_over(author)
    for blob, events in chunks(path, watch):
        chunk = watch("decode", Chunk.decode, blob)
        result = watch("judge", plain.process, chunk, 1)
        watch("tiles", with_tiles.process, chunk, 1)
        for encoded in result.batches.values():
            batch = watch("hand-over", Batch.decode, encoded)
            watch("encode", batch.encode)
            _learned(ours, batch, watch, publisher, author)
            watch("learn-river", _all, rivers, Batch.decode(encoded))
            rivers.finished_batches()
            for name, of in filters.items():
                for learned in watch(f"learn-{name}", _all, of, Batch.decode(encoded)):
                    rows = watch(f"state-{name}", of.encode, learned)
                    watch(f"arguments-{name}", _entities, of, rows, author)
                of.finished_batches()
        passed += events
        counted += events if watch.counts else 0
        watch.counts = passed >= _WARM_UP
    publisher.close()
    connection.close()
    seconds = watch.seconds
    seconds["tiles"] -= seconds["judge"]
    seconds["judge"] -= seconds["encode"]
    seconds["hand-over"] += seconds.pop("encode")
    return {step: spent / counted * 1e6 for step, spent in seconds.items()}


def _all(of: Learner, batch: Batch) -> list[Learned]:
    return list(of.process(batch))


def _entities(of: Learner, encoded: Mapping[str, EncodedRows], author: Author) -> tuple[Made, dict[str, int]]:
    entities = LearnedEntities(of, encoded, author)
    return Made(entities), entities.items()


def _learned(of: Learner, batch: Batch, watch: Stopwatch, publisher: Publisher, author: Author) -> None:
    for learned in watch("learn", _all, of, batch):
        encoded = watch("state", of.encode, learned)
        entities, items = watch("arguments", _entities, of, encoded, author)
        reached = orjson.dumps(of.reached)
        watch("publish", publisher.learned, author, entities, items, reached=reached)
    of.finished_batches()


def through_jvm(folder: Path, path: Path) -> tuple[float, float]:
    """Microseconds an event, and megabytes a second, of chunks through two operators that do nothing."""
    blob, events = max(chunks(path, Stopwatch()), key=lambda chunk: chunk[1])
    (chunk := folder / "chunk").write_bytes(blob)
    report = folder / "report"
    done = subprocess.run(module("benchmarks.passthrough", chunk, report), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the job that passes through failed:\n{done.stderr}")
    measured = orjson.loads(report.read_bytes())
    each = measured["seconds"] / measured["chunks"]
    return each / events * 1e6, len(blob) / each / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--repetitions", type=int, default=5)
    arguments = parser.parse_args()
    if arguments.events < _LEAST:
        parser.error(f"--events is at least {_LEAST:,}: the first {_WARM_UP:,} warm up")
    figures: dict[str, list[float]] = {step: [] for step in _STEPS}
    speeds: list[float] = []
    with scratch() as name, calm_collector():
        folder = Path(name).resolve()
        progress(f"generating {arguments.events:,} events")
        path = stream(folder, arguments.events)
        with embedded_redis(folder / "redis") as url:
            for number in range(arguments.repetitions):
                progress(f"repetition {number + 1} of {arguments.repetitions}")
                for step, cost in repetition(path, url).items():
                    figures[step].append(cost)
                cost, speed = through_jvm(folder, path)
                figures["jvm"].append(cost)
                speeds.append(speed)
    rows = [(title, f"{median(figures[step]):.2f}", _rate(median(figures[step]))) for step, title in _STEPS.items()]
    show(f"{arguments.events:,} events, median of {arguments.repetitions}", [("", "us/event", "events/s"), *rows])
    print(f"  through the JVM twice: {median(speeds):,.0f} MB/s")
    store("steps", {"events": arguments.events, "us_per_event": figures, "jvm_mb_per_second": speeds})


def _rate(cost: float) -> str:
    return f"{1e6 / cost:,.0f}" if cost > 0 else "-"  # a difference of two can be less than nothing


if __name__ == "__main__":
    main()
