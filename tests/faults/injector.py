"""Faults for a running job: each is drawn from a seed, done at a stated moment, and noted."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import psutil
import redis

from serving import Client
from serving.client import Unreachable
from serving.schema import Keys
from tests.faults.cluster import Cluster
from tests.faults.proxy import Proxy
from tests.faults.reader import Reader
from tests.faults.servers import RedisServer


@dataclass
class Target:
    """What faults are done to. What a fault needs must be there.

    Attributes
    ----------
    client, redis
        Of the server itself, not by way of the proxy.
    state
        The run's state folder.
    traps
        Where :mod:`tests.faults.traps` looks.
    reader
        Is told when Redis loses what it acknowledged.
    struck
        When the fault struck, where that is not when it was called.
    until
        Events that must be learned before the stage ends: what is waited for, too.
    """

    client: Client
    redis: Any
    server: RedisServer | None = None
    proxy: Proxy | None = None
    cluster: Cluster | None = None
    state: Path | None = None
    traps: Path | None = None
    reader: Reader | None = None
    shards: int = 1
    struck: float | None = None
    until: int = 0

    def learned(self) -> int:
        """How many events Redis says are learned; waits while it does not answer."""
        while True:
            try:
                headers = [self.client.header(shard) for shard in range(self.shards)]
            except Unreachable:
                time.sleep(0.02)
                continue  # the fault is meant for the job
            return sum(0 if header is None else int(header.summary["counts"]["learned"]) for header in headers)

    def accepted(self) -> int:
        """How many events Redis says are accepted, learned or not."""
        while True:
            try:
                counts = self.redis.hget(Keys("freshet").ledger, "counts")
            except redis.exceptions.RedisError:
                time.sleep(0.02)
                continue
            return 0 if counts is None else int(orjson.loads(counts)["accepted"])

    @contextlib.contextmanager
    def losing(self) -> Iterator[None]:
        """Around a fault in which Redis loses what it acknowledged."""
        with self.reader.forgetting() if self.reader is not None else contextlib.nullcontext():
            yield


def workers() -> list[psutil.Process]:
    """The Python workers of this process's job: forks of its nursery."""
    nurseries = [child for child in psutil.Process().children() if "flink_jobs.nursery" in child.cmdline()]
    return [worker for nursery in nurseries for worker in nursery.children()]


def living_workers() -> list[psutil.Process]:
    """Those that have not ended: the nursery keeps others in its list for a while."""
    return sorted((w for w in workers() if w.status() != psutil.STATUS_ZOMBIE), key=lambda p: p.pid)


def any_worker(rng: random.Random) -> psutil.Process:
    while not (alive := living_workers()):
        time.sleep(0.02)  # the job is restarting
    return rng.choice(alive)


# ------------------------------------------------------------------------------------------- workers


def kill_worker(rng: random.Random, target: Target) -> str:
    victim = any_worker(rng)
    victim.kill()
    return f"SIGKILL of worker {victim.pid}"


def stop_worker(rng: random.Random, target: Target) -> str:
    return suspend(any_worker(rng))


def suspend(victim: psutil.Process) -> str:
    """Stops a worker, and waits until someone has ended it: others may go on, whose progress would say nothing."""
    victim.suspend()
    with contextlib.suppress(psutil.NoSuchProcess):
        while victim.is_running() and victim.status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.05)
    return f"SIGSTOP of worker {victim.pid}"


def _throw(place: str, target: Target) -> None:
    assert target.traps is not None
    trap = target.traps / place
    trap.touch()
    while trap.exists():
        time.sleep(0.01)
    target.struck = time.monotonic()


def throw_before(rng: random.Random, target: Target) -> str:
    _throw("before", target)
    return "thrown before the model's update"


def throw_after(rng: random.Random, target: Target) -> str:
    _throw("after", target)
    return "thrown after the model's update"


def throw_published(rng: random.Random, target: Target) -> str:
    _throw("published", target)
    return "thrown after Redis took the update"


# --------------------------------------------------------------------------------------------- Flink


def replace_task_manager(rng: random.Random, target: Target) -> str:
    assert target.cluster is not None
    return target.cluster.replace_task_manager(rng)


def change_leader(rng: random.Random, target: Target) -> str:
    assert target.cluster is not None
    away = rng.uniform(0, 0.5)
    target.cluster.change_leader(away)
    return f"JobManager without leadership for {away:.1f} s"


def fail_checkpoints(rng: random.Random, target: Target) -> str:
    """The folder is taken away, and a file is in its place, which also root can't write into."""
    assert target.state is not None
    folder = max((target.state / "checkpoints").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    away, seconds = folder.with_suffix(".away"), rng.uniform(1.2, 2.5)
    folder.rename(away)
    folder.touch()
    time.sleep(seconds)
    folder.unlink()
    away.rename(folder)
    return f"no folder for checkpoints for {seconds:.1f} s"


# --------------------------------------------------------------------------------------------- Redis


def cut_connections(rng: random.Random, target: Target) -> str:
    count = target.redis.client_kill_filter(_type="normal", skipme=True)
    return f"cut {count} connections to Redis"


def pause_redis(rng: random.Random, target: Target) -> str:
    millis = rng.randint(200, 1_500)
    target.redis.client_pause(millis, all=True)
    return f"Redis answers nobody for {millis} ms"


def silence_redis(rng: random.Random, target: Target) -> str:
    target.redis.client_pause(12_000, all=True)  # longer than any client waits for an answer
    return "Redis answers nobody for 12 s"


def fill_redis(rng: random.Random, target: Target) -> str:
    seconds = rng.uniform(0.2, 1.5)
    target.redis.config_set("maxmemory", 1)
    time.sleep(seconds)
    target.redis.config_set("maxmemory", 0)
    return f"maxmemory reached for {seconds:.1f} s"


def make_replica(rng: random.Random, target: Target) -> str:
    seconds = rng.uniform(0.2, 1.5)
    target.redis.replicaof("127.0.0.1", 1)  # nobody is there: it stays as it is, and takes no writes
    time.sleep(seconds)
    target.redis.replicaof("no", "one")
    return f"a read-only replica for {seconds:.1f} s"


def forget_scripts(rng: random.Random, target: Target) -> str:
    target.redis.script_flush()
    return "SCRIPT FLUSH"


def wipe_redis(rng: random.Random, target: Target) -> str:
    with target.losing():
        target.redis.flushall()
    return "FLUSHALL"


def restart_redis(rng: random.Random, target: Target) -> str:
    assert target.server is not None
    seconds = rng.uniform(0, 1.0)
    target.server.kill()
    time.sleep(seconds)
    target.server.start()
    return f"SIGKILL of Redis, back with its data after {seconds:.1f} s"


def restart_redis_empty(rng: random.Random, target: Target) -> str:
    assert target.server is not None
    seconds = rng.uniform(0, 1.0)
    with target.losing():
        target.server.kill()
        target.server.forget()
        time.sleep(seconds)
        target.server.start()
    return f"SIGKILL of Redis, back empty after {seconds:.1f} s"


def put_back_redis(rng: random.Random, target: Target) -> str:
    assert target.server is not None
    older, before = target.server.folder / "older", target.learned()
    target.server.copy(older)
    while target.learned() < before + 1_000:
        time.sleep(0.02)
    with target.losing():
        target.struck = time.monotonic()
        target.server.kill()
        target.server.put_back(older)
        target.server.start()
    return "SIGKILL of Redis, back with an older copy of its data"


def hold_redis(rng: random.Random, target: Target) -> str:
    assert target.server is not None
    seconds = rng.uniform(0.2, 3.0)
    target.server.stop()
    time.sleep(seconds)
    target.server.go_on()
    return f"SIGSTOP of Redis for {seconds:.1f} s"


# ------------------------------------------------------------------------------------------- network


def delay_network(rng: random.Random, target: Target) -> str:
    assert target.proxy is not None
    seconds, delay = rng.uniform(0.5, 2.0), rng.uniform(0.01, 0.1)
    target.proxy.delay = delay
    time.sleep(seconds)
    target.proxy.delay = 0.0
    return f"each packet {delay * 1_000:.0f} ms late for {seconds:.1f} s"


def reset_connections(rng: random.Random, target: Target) -> str:
    assert target.proxy is not None
    return f"reset {target.proxy.reset_all()} connections to Redis"


def _spoil(mode: str, text: str) -> Callable[[random.Random, Target], str]:
    def fault(rng: random.Random, target: Target) -> str:
        assert target.proxy is not None
        times = rng.randint(1, 3)
        used = sum(target.proxy.spoil(mode) for _ in range(times))
        return f"{text}, {used} times"

    fault.__name__ = mode
    return fault


Fault = Callable[[random.Random, Target], str]
_ON_WORKERS: Sequence[Fault] = (kill_worker, stop_worker, throw_before, throw_after, throw_published)
_ON_FLINK: Sequence[Fault] = (replace_task_manager, change_leader, fail_checkpoints)
_ON_REDIS: Sequence[Fault] = (
    cut_connections,
    pause_redis,
    silence_redis,
    fill_redis,
    make_replica,
    forget_scripts,
    wipe_redis,
    restart_redis,
    restart_redis_empty,
    put_back_redis,
    hold_redis,
)
_ON_NETWORK: Sequence[Fault] = (
    delay_network,
    reset_connections,
    _spoil("cut", "a request cut off"),
    _spoil("half_request", "half a request, then a reset"),
    _spoil("half_reply", "half a reply, then a reset"),
    _spoil("drop_reply", "done, but the reply lost"),
)
ALL = {fault.__name__: fault for fault in (*_ON_WORKERS, *_ON_FLINK, *_ON_REDIS, *_ON_NETWORK)}
# Those that make Redis lose what it acknowledged.
LOSING = ("wipe_redis", "restart_redis_empty", "put_back_redis")


@dataclass(frozen=True)
class Injected:
    """A fault that was done: its name, what exactly, and the seconds until more was learned than before it."""

    name: str
    what: str
    seconds: float


@dataclass
class Injector:
    """Injects faults one after the other, each when enough has been learned since the one before has passed.

    Attributes
    ----------
    apart
        Events learned between two faults, at least.
    starts
        How many events must have been learned, in all, before each fault; none by default.
    beyond
        It has passed when so many more events are learned than were accepted before it: what was on its way when it
        struck says nothing. By default half of ``apart`` more than were learned before it.
    patience
        Seconds to wait for that.
    """

    target: Target
    faults: Sequence[str]
    seed: int
    apart: int
    starts: Sequence[int] = ()
    beyond: int | None = None
    patience: float = 120.0
    done: list[Injected] = field(default_factory=list)
    error: BaseException | None = None

    def start(self, then: Callable[[], None] = lambda: None) -> threading.Thread:
        """Begins, in a thread; ``then`` is called at its end, also where it failed."""

        def work() -> None:
            try:
                self._run()
            except BaseException as error:  # noqa: BLE001 - told by who waits for the thread
                self.error = error
                print(f"seed {self.seed}: the injector failed: {error!r}", flush=True)
            finally:
                then()

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        return thread

    def _run(self) -> None:
        rng = random.Random(self.seed)
        for number, name in enumerate(self.faults):
            self._wait(max(self.target.learned() + self.apart, self.starts[number] if self.starts else 0))
            self.target.struck = None
            if self.beyond is None:
                enough = self.target.learned() + self.apart // 2
            else:
                enough = self.target.accepted() + self.beyond
            began = time.monotonic()
            what = ALL[name](rng, self.target)
            self._wait(enough)
            self.done.append(Injected(name, what, time.monotonic() - (self.target.struck or began)))
            print(f"seed {self.seed}: {what}: went on after {self.done[-1].seconds:.1f} s", flush=True)

    def _wait(self, learned: int) -> None:
        self.target.until = max(self.target.until, learned)
        deadline = time.monotonic() + self.patience
        while self.target.learned() < learned:
            if time.monotonic() > deadline:
                raise TimeoutError(f"no progress to {learned} events")
            time.sleep(0.02)
