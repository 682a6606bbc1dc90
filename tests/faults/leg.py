"""One job from its first event to its last, under faults and at changing parallelism, and what came of it."""

from __future__ import annotations

import contextlib
import io
import random
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from flink_jobs.flink import JobFailed
from flink_jobs.runner import run
from flink_jobs.settings import Layer, resolve
from serving import Client
from tests.faults import oracle
from tests.faults.cluster import Cluster
from tests.faults.injector import Injected, Injector, Target
from tests.faults.proxy import Proxy
from tests.faults.reader import Reader
from tests.faults.servers import RedisServer
from tests.faults.traps import allow, fragile, given, reading_back, restored
from tests.flink.harness import balanced
from tests.udfs.cases import weights
from udfs.building import build
from udfs.generator import BLOCK, Generator, GeneratorConfig

SHARDS = 4
FACTORS = 4
_BEYOND = 1_000  # events: more than what is on its way when a fault strikes
_AHEAD = 2_000  # events that may be read before they are learned
_ACCEPTED = 0.965  # a little less than the share of the generator's records that are learned


@dataclass(frozen=True)
class Stage:
    """A part of the events, at one parallelism; at its end the job stops with a savepoint.

    Attributes
    ----------
    faults
        Injected in this order, evenly over the stage's events.
    """

    parallelism: int
    faults: Sequence[str]
    unaligned: bool = False


@dataclass(frozen=True)
class Plan:
    """What a leg is to do.

    Attributes
    ----------
    rate
        Events a second.
    checkpoints
        The last events are held back until so many have completed.
    """

    seed: int
    events: int
    backend: str
    stages: Sequence[Stage]
    rate: int = 5_000
    checkpoint_interval: str = "500ms"
    checkpoints: int = 0


@dataclass
class Outcome:
    """What a leg came to; :attr:`violations` is empty if all that is promised held."""

    plan: Plan
    faults: list[Injected] = field(default_factory=list)
    checkpoints: int = 0
    replayed: int = 0
    looked: int = 0
    regressions: list[str] = field(default_factory=list)
    lost: int = 0
    twice: int = 0
    seconds: float = 0.0
    violations: list[str] = field(default_factory=list)


def run_leg(folder: Path, plan: Plan) -> Outcome:
    """Runs the leg in a folder of its own. The process must have been prepared for Flink."""
    began = time.monotonic()
    outcome = Outcome(plan)
    state, traps = folder / "state", folder / "traps"
    rng = random.Random(plan.seed)
    users = 2_000 + plan.events // 50
    watched = [f"u{n}" for n in rng.sample(range(users), 150)] + [f"i{n}" for n in range(50)]
    with (
        RedisServer(folder / "redis") as server,
        Proxy(server.port) as proxy,
        _counting(state / "checkpoints") as checkpoints,
        contextlib.closing(server.connection()) as connection,
    ):
        reader = Reader(server.url, watched, SHARDS)
        target = Target(Client(server.url), connection, server, proxy, None, state, traps, reader, SHARDS)
        totals: dict[str, int] | None = None
        with reader, _pacing(target, plan, checkpoints):
            try:
                totals = _stages(plan, target, outcome)
            except JobFailed as error:
                outcome.violations.append(f"the job failed: {error}")
                print(_last_causes(state / "log"), flush=True)  # the folder may be gone when someone asks
        outcome.checkpoints = len(checkpoints)
        outcome.looked, outcome.regressions = reader.report["looked"], list(reader.report["wrong"])
        if totals is not None:
            _judge(plan, folder, target, totals, outcome)
    outcome.seconds = time.monotonic() - began
    return outcome


def _last_causes(logs: Path) -> str:
    """What Flink's logs give as causes, the last ones last."""
    lines = [line for file in logs.glob("*.log") for line in file.read_text(errors="replace").splitlines()]
    return "\n".join([line for line in lines if line.startswith("Caused by")][-30:])


def settings_of(plan: Plan, state: Path, url: str, stage: Stage) -> dict[str, Any]:
    return {
        "state_dir": str(state),
        "redis": url,
        "source": "generator",
        "generator.events": plan.events,
        "generator.rate": plan.rate,
        "generator.seed": plan.seed,
        "model.n_factors": FACTORS,
        "shards": SHARDS,
        "parallelism": stage.parallelism,
        "checkpoint_interval": plan.checkpoint_interval,
        "flink.state.backend.type": plan.backend,
        "flink.execution.checkpointing.unaligned.enabled": stage.unaligned,
        # More faults in a minute than a job would otherwise put up with, each on its own.
        "flink.restart-strategy.exponential-delay.attempts-before-reset-backoff": "1000000",
        "flink.restart-strategy.exponential-delay.max-backoff": "1 s",
        "flink.restart-strategy.exponential-delay.reset-backoff-threshold": "2 s",
    }


def _stages(plan: Plan, target: Target, outcome: Outcome) -> dict[str, int]:
    """Runs the stages one after the other; returns the ledger, summed over them."""
    totals: dict[str, int] = {}
    assert target.proxy is not None and target.state is not None and target.traps is not None
    traps = target.traps
    for number, stage in enumerate(plan.stages):
        last = number == len(plan.stages) - 1
        span = int(plan.events * _ACCEPTED) // len(plan.stages)
        first = span * number
        starts = [first + span * (at + 1) // (len(stage.faults) + 1) for at in range(len(stage.faults))]
        target.cluster = Cluster(min(2, stage.parallelism))
        target.until = 2 * plan.events if last else first + span
        stop = threading.Event()
        injector = Injector(target, stage.faults, plan.seed + number, _BEYOND, starts, _BEYOND, 240.0)
        thread = injector.start(then=lambda last=last, stop=stop: None if last else stop.set())  # type: ignore[misc]
        layer = Layer("plan", settings_of(plan, target.state, target.proxy.url, stage))
        console = Console(file=io.StringIO())
        try:
            summary = run(resolve([layer]), console, lambda job: fragile(job, traps), stop, target.cluster.execute)
        finally:
            outcome.faults += injector.done
            print(f"seed {plan.seed}: stage {number} at parallelism {stage.parallelism} ended", flush=True)
        thread.join(timeout=5)
        if len(injector.done) < len(stage.faults):
            outcome.violations.append(
                f"stage {number}: {len(injector.done)} of {len(stage.faults)} faults were injected: {injector.error!r}"
            )
        if not balanced(summary["events"]):
            outcome.violations.append(f"stage {number}: the ledger does not balance: {summary['events']}")
        for name, count in summary["events"].items():
            totals[name] = totals.get(name, 0) + count
        totals["carried"] = totals.get("carried", 0) + summary["carried"]
        totals["pending"] = summary["events"]["pending"]
    return totals


def _judge(plan: Plan, folder: Path, target: Target, totals: Mapping[str, int], outcome: Outcome) -> None:
    """Compares Redis and the job's state with a replay in one process, and with each other."""
    wrong = outcome.violations
    assert (
        target.server is not None and target.proxy is not None and target.state is not None and target.traps is not None
    )
    accepted, counts = oracle.judged(_log(plan))
    shards = oracle.replayed(accepted, SHARDS, FACTORS)
    outcome.replayed = given(target.traps) - len(accepted)
    ledger = {name: totals[name] for name in ("learned", "rejected", "late", "duplicate")}
    expected = {name: getattr(counts, name) for name in ledger}
    if ledger != expected or totals["read"] - totals["carried"] != counts.read or totals["pending"]:
        wrong.append(f"the ledger says {dict(totals)}, the replay {counts}")
    with contextlib.closing(target.server.connection()) as connection:
        before = oracle.in_redis(connection)
        difference = oracle.compared(before, oracle.expected_in_redis(shards))
        outcome.lost, outcome.twice = difference.lost, difference.twice
        if difference.lost or difference.twice:
            wrong.append(f"{difference.lost} events were lost, and {difference.twice} learned twice")
        if difference.unequal:
            wrong.append(f"{len(difference.unequal)} entities in Redis differ: {difference.unequal[:5]}")
        # All that the state has is written into an empty Redis, and every row of it noted.
        connection.flushall()
        notes = folder / "restored"
        settings = settings_of(plan, target.state, target.proxy.url, Stage(1, ())) | {"generator.events": 0}
        run(
            resolve([Layer("plan", settings)]),
            Console(file=io.StringIO()),
            lambda job: reading_back(job, notes),
            threading.Event(),
        )
        of_state = oracle.compared(oracle.in_redis(connection), before)
        if of_state.unequal:
            wrong.append(f"{len(of_state.unequal)} entities in Redis differ from the state: {of_state.unequal[:5]}")
    wrong += _rows(shards, notes)
    if outcome.replayed <= 0:
        wrong.append("nothing was replayed: this proved nothing")
    if not outcome.looked:
        wrong.append("the reader saw nothing")
    wrong += [f"a reader: {text}" for text in outcome.regressions]


def _rows(shards: Sequence[oracle.Shard], notes: Path) -> Iterator[str]:
    """Where the rows of the state are not River's weights, bit for bit."""
    expected = [weights("biased_mf", shard.model) for shard in shards]
    found = []
    for rows in restored(notes):
        model = build("biased_mf", {"n_factors": FACTORS})
        for family, row_id, blob in rows:
            model.ids[family].add([row_id])
            model.decode_rows(family, [row_id], [blob])
        found.append(weights("biased_mf", model.river()))
    if len(found) != len(expected):
        yield f"{len(found)} shards were restored"
    for number, shard in enumerate(expected):
        if shard not in found:
            yield f"the rows of shard {number} are not those of the replay"


def _log(plan: Plan) -> Iterator[bytes]:
    generator = Generator(GeneratorConfig(events=plan.events, seed=plan.seed))
    for number in range(-(-plan.events // BLOCK)):
        yield from generator.block(number)[: plan.events - number * BLOCK]


@contextlib.contextmanager
def _pacing(target: Target, plan: Plan, checkpoints: set[tuple[str, int]]) -> Iterator[None]:
    """Lets the job read a little more than it has learned."""
    traps = target.traps
    assert traps is not None
    traps.mkdir(parents=True)
    allow(traps, _AHEAD)
    ended = threading.Event()

    def look() -> None:
        allowed = 0
        while not ended.wait(0.05):
            # Where Redis has lost its data, what was allowed before still is.
            learned = target.learned()
            # No further than the stage needs: stopping may take a while.
            allowed = max(allowed, min(int(learned / _ACCEPTED), int(target.until / _ACCEPTED)) + _AHEAD)
            allow(traps, allowed if len(checkpoints) >= plan.checkpoints else min(allowed, plan.events - _AHEAD))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextlib.contextmanager
def _counting(folder: Path) -> Iterator[set[tuple[str, int]]]:
    """Notes each checkpoint that completes."""
    seen: set[tuple[str, int]] = set()
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(0.05):
            for path in folder.glob("*/chk-*/_metadata"):
                with contextlib.suppress(FileNotFoundError):
                    seen.add((str(path), path.stat().st_ino))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()


def drawn(rng: random.Random, names: Sequence[str], count: int, weight: Mapping[str, int]) -> list[str]:
    """``count`` faults in a random order, each name at least once where there is room for all."""
    chosen = rng.sample(names, len(names)) + rng.choices(
        names, [weight.get(name, 1) for name in names], k=max(count - len(names), 0)
    )
    chosen = chosen[:count]
    rng.shuffle(chosen)
    return chosen
