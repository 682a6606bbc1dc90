"""How fast one process publishes learned rows, and what limits it.

    python -m benchmarks.publish [--users 20000] [--items 1250] [--seconds 20]

Rows of 16 factors, users who have seen 50 items, an embedded Redis on its socket, where all of them are already: each
is compared and set by the job's own script. One after the other:

- arguments: ``LearnedEntities`` of rows that are encoded, as for the state, to the words as Redis gets them
- ``Publisher.learned``: sends, and waits for Redis; CPU time of this process, and of Redis meanwhile
- both in turn, as a learner does: the figure that counts
- plain: the same fields and values by ``HSET``, without script, version or fence: the least that Redis itself can take

Redis runs commands on one core: a million through its microseconds for an entity is the most that any number of
processes can write.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Final

import orjson

from benchmarks.common import N_FACTORS, Made, progress, scratch, show, store, written
from benchmarks.jobs import KEYS
from flink_jobs.embedded import embedded_redis
from serving.connection import connect
from udfs.batch import Batch
from udfs.building import build
from udfs.entities import LearnedEntities, header_entity
from udfs.interactions import Interactions
from udfs.learner import Learner, LearnerConfig
from udfs.publisher import Author, Publisher
from udfs.rows import EncodedRows

TARGET: Final = 200_000.0
_SEEN: Final = 50
_BATCH: Final = 50_000


@dataclass
class Cost:
    """Microseconds of an entity: by the clock, of this process's CPU, of Redis's CPU, and in Redis's scripts."""

    wall: float
    ours: float
    theirs: float
    scripts: float


def taught(users: int, items: int) -> Learner:
    """A learner whose users have each seen 50 different items."""
    learner = Learner(LearnerConfig(seen=_SEEN), build("biased_mf", {"n_factors": N_FACTORS}))
    rows: list[list[Any]] = [
        [1_700_000_000_000 + n, "", f"u{n % users}", f"i{(n // users + n) % items}", "rating", n % 9 / 2 + 0.5, 0, n]
        for n in range(users * _SEEN)
    ]
    for at in range(0, len(rows), _BATCH):
        for _ in learner.process(Batch(None, False, ["bench"], Interactions.of(rows[at : at + _BATCH]), b"")):
            pass
        learner.finished_batches()
    return learner


def cost(connection: Any, entities: int, seconds: float, work: Callable[[], None]) -> Cost:
    """Of work that is repeated for some time."""
    work()
    connection.config_resetstat()
    before, wall, ours = _cpu(connection), time.perf_counter(), time.process_time()
    count = 0
    while not count or time.perf_counter() - wall < seconds:
        work()
        count += entities
    wall, ours = time.perf_counter() - wall, time.process_time() - ours
    theirs = _cpu(connection) - before
    scripts = connection.info("commandstats").get("cmdstat_evalsha", {"usec": 0})["usec"] / 1e6
    return Cost(*(1e6 * of / count for of in (wall, ours, theirs, scripts)))


def _cpu(connection: Any) -> float:
    found = connection.info("cpu")
    return float(found["used_cpu_user"] + found["used_cpu_sys"])


def plain_hset(connection: Any, entities: Made) -> Callable[[], None]:
    """Sets the fields of entities as they are; what is sent is packed before, so that Redis does not wait for us."""
    socket = connection.connection_pool.get_connection()
    commands = [("HSET", key, *chain.from_iterable(of.items())) for key, of in written(entities).items()]
    parts = [commands[at : at + _BATCH] for at in range(0, len(commands), _BATCH)]
    packed = [(len(part), socket.pack_commands(part)) for part in parts]

    def work() -> None:
        for count, part in packed:
            socket.send_packed_command(part)
            for _ in range(count):
                socket.read_response()

    return work


def measure(arguments: argparse.Namespace, url: str) -> dict[str, Cost]:
    connection = connect(url, timeout=60.0)
    publisher, author = Publisher(url, KEYS.prefix, submission=1), Author(KEYS, 0, 1, epoch=1_700_000_000_000)
    publisher.take_over(author)
    progress("learning")
    learner = taught(arguments.users, arguments.items)
    everything = learner.encode(learner.everything())
    made = LearnedEntities(learner, everything, author)
    entities, items = Made(made), made.items()
    size, seconds = len(entities), arguments.seconds
    seen = [len(orjson.loads(blob)) for blob in everything["user"].seen]
    assert min(seen) == max(seen) == _SEEN, "users have not seen what they should"

    def build_arguments(encoded: dict[str, EncodedRows] = everything) -> None:
        Made(LearnedEntities(learner, encoded, author))

    def send() -> None:
        header = header_entity(learner, author)
        publisher.learned(author, entities, items, reached=orjson.dumps(learner.reached), header=header)

    def both() -> None:
        header = header_entity(learner, author)
        publisher.learned(author, made, made.items(), reached=orjson.dumps(learner.reached), header=header)

    costs: dict[str, Cost] = {}
    for name, work in (("arguments", build_arguments), ("publisher", send), ("both", both)):
        progress(name)
        costs[name] = cost(connection, size, seconds, work)
    progress("plain")
    costs["plain"] = cost(connection, size, seconds, plain_hset(connection, entities))
    publisher.close()
    return costs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=20_000)
    parser.add_argument("--items", type=int, default=1_250)
    parser.add_argument("--seconds", type=float, default=20.0, help="for each measurement")
    arguments = parser.parse_args()
    with scratch() as name, embedded_redis(Path(name).resolve() / "redis") as url:
        costs = measure(arguments, url)
    head = (
        "",
        "entities/s",
        "us an entity",
        "CPU here",
        "CPU of Redis",
        "in scripts",
        "most that Redis can take, a second",
    )
    rows: list[tuple[str, ...]] = [head]
    for name, text in (
        ("arguments", "arguments"),
        ("publisher", "Publisher.learned"),
        ("both", "both"),
        ("plain", "plain HSET"),
    ):
        c = costs[name]
        most = f"{1e6 / c.theirs:,.0f}" if name != "arguments" else ""
        rows.append((name and text, f"{1e6 / c.wall:,.0f}", *(f"{of:.2f}" for of in vars(c).values()), most))
    show(f"{arguments.users:,} users with {_SEEN} seen items, {arguments.items:,} items, {N_FACTORS} factors", rows)
    rate = 1e6 / costs["both"].wall
    here, there = costs["both"].ours, costs["both"].theirs
    print(f"  {rate:,.0f} entities/s; target {TARGET:,.0f}: {'met' if rate >= TARGET else 'missed'}")
    print(f"  the most of one process that never waits for Redis: {1e6 / here:,.0f}")
    print(f"  the most that Redis can take, from any number of processes: {1e6 / there:,.0f}")
    store("publish", {**vars(arguments), "costs": {name: vars(c) for name, c in costs.items()}})


if __name__ == "__main__":
    main()
