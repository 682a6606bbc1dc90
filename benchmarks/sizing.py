"""What users and items cost in memory: in Redis, in a learner's process, in Flink's state, and in the JVM's heap.

    python -m benchmarks.sizing [--only redis heap]

Learns streams that differ in one thing at a time (users, items, factors, items seen, windows), writes what was learned
to an embedded Redis, and takes the difference that one more of it makes. Each stream has a process of its own. Memory
of Redis is what its allocator has given out (``used_memory``), that of a learner its resident set. For the heap a whole
job learns them, under ``hashmap``: what is alive after a full collection, when all is learned, and the most that was
alive on the way there, with a checkpoint a second.
"""

from __future__ import annotations

import argparse
import gc
import io
import itertools
import json
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil
from rich.console import Console

from benchmarks.common import progress, scratch, show, store
from flink_jobs.embedded import embedded_redis
from flink_jobs.flink import RunningJob, execute_here
from flink_jobs.runner import run
from flink_jobs.settings import Layer, resolve
from serving.connection import connect
from udfs.batch import Batch
from udfs.building import build
from udfs.entities import tile_entities
from udfs.interactions import Interactions
from udfs.learner import Learner, LearnerConfig
from udfs.outbox import Outbox
from udfs.publisher import Author, Publisher
from udfs.tilefeed import paired

_T0: Final = 1_704_067_200_000
_SPAN: Final = 300_000
_BATCH: Final = 20_000
_ALIVE_SECONDS: Final = 0.5  # between full collections
_TYPES: Final = ("view", "click", "cart", "purchase", "rating")


@dataclass(frozen=True)
class Case:
    """A stream: each user meets so many items, one after the other."""

    users: int
    items: int
    factors: int
    met: int = 1
    tiles: int = 0  # of each user


# Users have seen so many items that Redis keeps their hashes as tables, as it does in the long run. Of items it depends
# on the factors: up to 16 a vector is short enough for the compact form, a list.
CASES: Final = {
    **{f"few users, {f} factors": Case(1_000, 1_000, f, met=20) for f in (16, 64)},
    **{f"users, {f} factors": Case(51_000, 1_000, f, met=20) for f in (16, 64)},
    **{f"few items, {f} factors": Case(1_000, 1_000, f, met=51) for f in (16, 64, 128)},
    **{f"items, {f} factors": Case(1_000, 51_000, f, met=51) for f in (16, 64, 128)},
    "few met": Case(20_000, 1_000, 16, met=20),
    "many met": Case(20_000, 1_000, 16, met=40),
    "tiles": Case(20_000, 1_000, 16, met=20, tiles=24),
}
HEAPS: Final = {
    "heap, few users": Case(50_000, 1_000, 16),
    "heap, users": Case(450_000, 1_000, 16),
    "heap, users, 64 factors": Case(450_000, 1_000, 64),
    "heap, items": Case(450_000, 401_000, 16),
}


def measure(case: Case, folder: Path) -> dict[str, float]:
    """Bytes in Redis, in this process, and in rows of the state, of one stream."""
    learner = Learner(LearnerConfig(), build("biased_mf", {"n_factors": case.factors}))
    warm = [[_T0, "", "warm", "warm", "rating", 3.0, 0, 0]]
    _learn(learner, warm)  # compiles
    gc.collect()
    before = psutil.Process().memory_info().rss
    # None of the stream stays in memory.
    pairs = ((user, (user * case.met + at) % case.items) for at in range(case.met) for user in range(case.users))
    rows = ([_T0 + n, "", f"u{u:07}", f"i{i:07}", "rating", 3.0, 0, n] for n, (u, i) in enumerate(pairs))
    while some := list(itertools.islice(rows, _BATCH)):
        _learn(learner, some)
    gc.collect()
    resident = psutil.Process().memory_info().rss - before
    state = 0
    for encoded in learner.encode(learner.everything()).values():
        state += sum(len(row_id) + len(blob) for row_id, blob in zip(encoded.row_ids, encoded.blobs, strict=True))
    with embedded_redis(folder) as url:
        connection = connect(url, timeout=60.0)
        empty = connection.info("memory")["used_memory"]
        publisher = Publisher(url, "freshet", patience=600.0)
        with ThreadPoolExecutor(1) as background:  # a Redis that knows nothing is given all
            Outbox(publisher, learner, Author(publisher.keys, 0, 1, _T0), background)
        for number in range(case.tiles):
            _write_tiles(publisher, case.users, _T0 + number * _SPAN)
        redis = connection.info("memory")["used_memory"] - empty
    return {"redis": redis, "resident": resident, "state": state}


def measure_heap(case: Case, folder: Path) -> dict[str, float]:
    """Bytes that are alive in the JVM of a run when all is learned, and the most that were before."""
    log = folder / "events.jsonl"
    with log.open("w") as file:
        for user in range(case.users):
            event = {"user_id": f"u{user:07}", "item_id": f"i{user % case.items:07}", "event_value": 3.0}
            file.write(json.dumps({**event, "timestamp": _T0 + user}) + "\n")
    settings = {
        "source": f"file:{log}",
        "state_dir": str(folder / "state"),
        "tiles.enabled": False,
        "model.n_factors": case.factors,
        "checkpoint_interval": "1s",
    }
    found: list[float] = []
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(_ALIVE_SECONDS):
            found.append(_alive())

    looking = threading.Thread(target=look, daemon=True)
    stop = RunningJob.stop

    def stop_after_a_look(job: RunningJob, *words: Any, **named: Any) -> str:
        """All is learned, and the job still runs."""
        ended.set()
        looking.join()
        time.sleep(5.0)  # a checkpoint that was under way has ended
        found.append(_alive())
        return stop(job, *words, **named)

    def execute(env: Any) -> Any:
        client = execute_here(env)
        looking.start()
        return client

    RunningJob.stop = stop_after_a_look  # type: ignore[assignment, method-assign]
    run(resolve([Layer("benchmark", settings)]), Console(file=io.StringIO()), execute=execute)
    return {"alive": found[-1], "peak": max(found)}


def _alive() -> float:
    from pyflink.java_gateway import get_gateway

    jvm = get_gateway().jvm
    jvm.System.gc()
    runtime = jvm.Runtime.getRuntime()
    return float(runtime.totalMemory() - runtime.freeMemory())


def heap_figures(found: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """What one more of each costs in bytes of the heap."""

    def one_more(more: str, less: str, count: int) -> dict[str, float]:
        return {place: (found[more][place] - found[less][place]) / count for place in found[more]}

    of_16 = one_more("heap, users", "heap, few users", 400_000)
    of_64 = one_more("heap, users, 64 factors", "heap, users", 450_000 * 48)
    return {
        "a user of 16 factors, one item seen": of_16,
        "a factor of a user": of_64,
        "an item of 16 factors": one_more("heap, items", "heap, users", 400_000),
    }


def _learn(learner: Learner, rows: list[list[Any]]) -> None:
    for _ in learner.process(Batch(None, False, ["bench"], Interactions.of(rows), b"")):
        pass
    learner.finished_batches()


def _write_tiles(publisher: Publisher, users: int, start: int) -> None:
    """A window of each user: five events of two types."""
    counts = (paired(3, 0), paired(0, 0), paired(2, 0))
    for first in range(0, users, 5_000):
        records = [
            ["5m", f"uu{u:07}", start, start + _SPAN, paired(5, 4), 0, 9_500_000, *counts]
            for u in range(first, min(first + 5_000, users))
        ]
        texts = ["\x1f".join(map(str, record)) for record in records]
        publisher.tiles(tile_entities(texts, publisher.keys, _TYPES, 0), {"5m": 10**12})


def figures(found: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """What one more of each costs in bytes, by place."""

    def one_more(more: str, less: str, count: int) -> dict[str, float]:
        return {place: (found[more][place] - found[less][place]) / count for place in found[more]}

    user = {f: one_more(f"users, {f} factors", f"few users, {f} factors", 50_000) for f in (16, 64)}
    item = {f: one_more(f"items, {f} factors", f"few items, {f} factors", 50_000) for f in (16, 64, 128)}
    seen = one_more("many met", "few met", 20 * 20_000)
    of_user = {place: (user[64][place] - user[16][place]) / 48 for place in seen}
    of_item = {place: (item[128][place] - item[64][place]) / 64 for place in seen}
    return {
        "a user, without what follows": {p: user[16][p] - 16 * of_user[p] - 20 * seen[p] for p in seen},
        "a factor of a user": of_user,
        "an item that a user has seen": seen,
        "an item of 16 factors": item[16],
        "an item of more, without them": {p: item[64][p] - 64 * of_item[p] for p in seen},
        "a factor of such an item": of_item,
        "a tile of a user": one_more("tiles", "few met", 24 * 20_000),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=("redis", "heap"), default=("redis", "heap"), help="parts")
    parser.add_argument("--case", choices=(*CASES, *HEAPS), help="measure this one only, in this process")
    given = parser.parse_args()
    if given.case is not None:
        with scratch() as folder:
            place = Path(folder).resolve()
            if given.case in CASES:
                print(json.dumps(measure(CASES[given.case], place / "redis")))
            else:
                print(json.dumps(measure_heap(HEAPS[given.case], place)))
        return
    result: dict[str, Any] = {}
    if "redis" in given.only:
        found = {name: _in_a_process(name) for name in CASES}
        result |= {"cases": found, "costs": figures(found)}
        _show("bytes that one more costs", result["costs"], "in Redis", "in a learner", "in rows of the state")
    if "heap" in given.only:
        found = {name: _in_a_process(name) for name in HEAPS}
        result |= {"heaps": found, "heap costs": heap_figures(found)}
        _show("bytes of the JVM's heap", result["heap costs"], "at rest", "the most, during checkpoints")
    store("sizing", result)


def _show(title: str, costs: dict[str, dict[str, float]], *places: str) -> None:
    rows = [(thing, *(f"{cost:.0f}" for cost in of.values())) for thing, of in costs.items()]
    show(title, [("", *places), *rows])


def _in_a_process(name: str) -> dict[str, float]:
    progress(name)
    command = [sys.executable, "-m", "benchmarks.sizing", "--case", name]
    measured: dict[str, float] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    return measured


if __name__ == "__main__":
    main()
