"""What users and items cost in memory: in Redis, in a learner's process, and in Flink's state.

    python -m benchmarks.sizing

Learns streams that differ in one thing at a time (users, items, factors, items seen, windows), writes what was learned
to an embedded Redis, and takes the difference that one more of it makes. Each stream has a process of its own. Memory
of Redis is what its allocator has given out (``used_memory``), that of a learner its resident set.
"""

from __future__ import annotations

import gc
import itertools
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil

from benchmarks.common import progress, scratch, show, store
from flink_jobs.embedded import embedded_redis
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
        Outbox(publisher, learner, Author(publisher.keys, 0, 1, _T0))  # a Redis that knows nothing is given all
        for number in range(case.tiles):
            _write_tiles(publisher, case.users, _T0 + number * _SPAN)
        redis = connection.info("memory")["used_memory"] - empty
    return {"redis": redis, "resident": resident, "state": state}


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
    if len(sys.argv) > 1:
        name = sys.argv[1]
        with scratch() as folder:
            place = Path(folder).resolve()
            print(json.dumps(measure(CASES[name], place / "redis")))
        return
    found = {name: _in_a_process(name) for name in CASES}
    costs = figures(found)
    places = ("redis", "resident", "state")
    rows = [(thing, *(f"{of[place]:.0f}" for place in places)) for thing, of in costs.items()]
    show("bytes that one more costs", [("", "in Redis", "in a learner", "in rows of the state"), *rows])
    store("sizing", {"cases": found, "costs": costs})


def _in_a_process(name: str) -> dict[str, float]:
    progress(name)
    command = [sys.executable, "-m", "benchmarks.sizing", name]
    measured: dict[str, float] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    return measured


if __name__ == "__main__":
    main()
