"""Faults for a running job: each is drawn from a seed, done at a stated moment, and noted."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import psutil

from serving import Client
from serving.client import Unreachable


def workers() -> list[psutil.Process]:
    """The Python workers of this process's job: forks of its nursery."""
    nurseries = [child for child in psutil.Process().children() if "flink_jobs.nursery" in child.cmdline()]
    return [worker for nursery in nurseries for worker in nursery.children()]


def kill_worker(rng: random.Random, redis: Any) -> str:
    victim = rng.choice(sorted(workers(), key=lambda p: p.pid))
    victim.kill()
    return f"SIGKILL of worker {victim.pid}"


def stop_worker(rng: random.Random, redis: Any) -> str:
    victim = rng.choice(sorted(workers(), key=lambda p: p.pid))
    victim.suspend()
    return f"SIGSTOP of worker {victim.pid}"


def cut_connections(rng: random.Random, redis: Any) -> str:
    count = redis.client_kill_filter(_type="normal", skipme=True)
    return f"cut {count} connections to Redis"


def pause_redis(rng: random.Random, redis: Any) -> str:
    millis = rng.randint(200, 1_500)
    redis.client_pause(millis, all=True)
    return f"Redis answers nobody for {millis} ms"


def silence_redis(rng: random.Random, redis: Any) -> str:
    redis.client_pause(12_000, all=True)  # longer than any client waits for an answer
    return "Redis answers nobody for 12 s"


def fill_redis(rng: random.Random, redis: Any) -> str:
    seconds = rng.uniform(0.2, 1.5)
    redis.config_set("maxmemory", 1)
    time.sleep(seconds)
    redis.config_set("maxmemory", 0)
    return f"maxmemory reached for {seconds:.1f} s"


def make_replica(rng: random.Random, redis: Any) -> str:
    seconds = rng.uniform(0.2, 1.5)
    redis.replicaof("127.0.0.1", 1)  # nobody is there: it stays as it is, and takes no writes
    time.sleep(seconds)
    redis.replicaof("no", "one")
    return f"a read-only replica for {seconds:.1f} s"


def forget_scripts(rng: random.Random, redis: Any) -> str:
    redis.script_flush()
    return "SCRIPT FLUSH"


def wipe_redis(rng: random.Random, redis: Any) -> str:
    redis.flushall()
    return "FLUSHALL"


Fault = Callable[[random.Random, Any], str]
_ALL: Sequence[Fault] = (
    kill_worker,
    stop_worker,
    cut_connections,
    pause_redis,
    silence_redis,
    fill_redis,
    make_replica,
    forget_scripts,
    wipe_redis,
)
ALL = {fault.__name__: fault for fault in _ALL}


@dataclass
class Injector:
    """Injects faults one after the other, each when enough has been learned since the one before has passed.

    Attributes
    ----------
    done
        What was injected, and the seconds until half as many more events as lie between two faults were learned.
    """

    client: Client
    redis: Any
    faults: list[str]
    seed: int
    apart: int  # events learned between two faults
    done: list[tuple[str, float]] = field(default_factory=list)

    def start(self) -> threading.Thread:
        thread = threading.Thread(target=self._run, daemon=True)
        thread.start()
        return thread

    def _run(self) -> None:
        rng = random.Random(self.seed)
        for name in self.faults:
            self._wait(self._learned() + self.apart)
            before, began = self._learned(), time.monotonic()
            what = ALL[name](rng, self.redis)
            # More than what was on its way when it happened.
            self._wait(before + self.apart // 2)
            self.done.append((what, time.monotonic() - began))
            print(f"seed {self.seed}: {what}: went on after {self.done[-1][1]:.1f} s")

    def _learned(self) -> int:
        while True:
            try:
                header = self.client.header(0)
            except Unreachable:
                continue  # the fault is meant for the job
            return 0 if header is None else int(header.summary["counts"]["learned"])

    def _wait(self, learned: int) -> None:
        deadline = time.monotonic() + 120
        while self._learned() < learned:
            if time.monotonic() > deadline:
                raise TimeoutError(f"no progress to {learned} events")
            time.sleep(0.02)
