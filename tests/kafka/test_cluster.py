"""A topic on a standalone cluster: what works for the job is killed, one after the other, and nothing shows."""

from __future__ import annotations

import json
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import psutil

from flink_jobs.state import StateFolder
from tests.clusters.standalone import ROOT, Shell, Standalone, number_of, python_with, savepoint_of, standalone
from tests.faults import oracle
from tests.faults.servers import RedisServer
from tests.flink.harness import lines_of
from tests.kafka.broker import Broker, KafkaClient, Record
from tests.kafka.test_topics import rating

EVENTS, PARTITIONS, SHARDS, FACTORS = 12_000, 3, 2, 4
FIRST = 3_000  # events that are learned before anything happens
TOPIC, ITEMS = "retail", "retail-items"


@dataclass
class Job:
    """A job on a cluster that reads the topic."""

    cluster: Standalone
    python: Path
    redis: Any

    def count(self, name: str) -> int:
        """Of the intake."""
        return int(json.loads(self.redis.hget("freshet:ledger", "counts") or b"{}").get(name, 0))

    def attempt(self) -> int:
        return int(self.redis.hget("freshet:ledger", "attempt") or 0)

    def learned(self) -> int:
        summaries = [self.redis.hget(f"freshet:model:{shard}", "summary") for shard in range(SHARDS)]
        return sum(json.loads(summary)["counts"]["learned"] for summary in summaries if summary)

    def entry(self, item_id: str) -> bytes | None:
        found: bytes | None = self.redis.hget(f"freshet:item:{item_id}", "catalogue")
        return found

    def entries(self) -> int:
        """How many items the catalogue has."""
        pipe = self.redis.pipeline(transaction=False)
        for key in self.redis.scan_iter("freshet:item:*", count=5_000):
            pipe.hexists(key, "catalogue")
        return sum(pipe.execute())

    def until(self, done: Callable[[], bool]) -> None:
        def mended() -> bool:
            # Also where a worker died: now and then that takes its task manager along.
            if not self.cluster.task_managers():
                self.cluster.start()
            return done()

        self.cluster.until(mended)

    def restarted_after(self, kill: Callable[[], None]) -> None:
        """Does that to the job, and waits until it works again."""
        before = self.attempt()
        kill()
        self.until(lambda: self.attempt() > before)

    def workers(self) -> list[psutil.Process]:
        """Python's, wherever they come from: their Python has a path of its own."""
        found = []
        for process in psutil.process_iter(["cmdline"]):
            words = process.info["cmdline"] or []
            if words[:1] == [str(self.python)] and any("beam_boot" in word for word in words):
                found.append(process)
        return sorted(found, key=lambda process: int(process.pid))

    def kill_task_manager(self) -> None:
        [process] = self.cluster.task_managers()
        process.kill()

    def kill_workers(self) -> None:
        """All of them: which works for what can't be told, and those of the catalogue restart by themselves."""
        for worker in self.workers():
            worker.kill()


def test_a_topic_is_learned_as_without_faults_while_each_process_is_killed_in_turn(
    tmp_path: Path, broker: Broker, kafka: KafkaClient, data: Path
) -> None:
    lines = lines_of(data / "online-retail" / "events.jsonl.gz", EVENTS)
    accepted = [(*event[:5], 1.0) for event in oracle.judged(lines)[0]]  # what a purchase teaches
    assert len(accepted) == EVENTS
    records = [Record(line, partition=partition_of(event[2])) for line, event in zip(lines, accepted, strict=True)]
    # What waits for the slowest partition is due when each has come to the day after.
    after = accepted[-1][0] + 86_400_000
    ends = [Record(rating(k, timestamp=after), partition=k) for k in range(PARTITIONS)]
    moment = accepted[FIRST][0]
    gone, back = users_to_delete(accepted)
    catalogue = {orjson.loads(line)["item_id"]: line for line in lines_of(data / "online-retail" / "items.jsonl.gz")}

    kafka.create(TOPIC, PARTITIONS)
    kafka.send(TOPIC, records[:FIRST])
    kafka.create(ITEMS, 2, cleanup_policy="compact")
    kafka.send(ITEMS, [Record(line, item_id.encode()) for item_id, line in catalogue.items()])
    folder = StateFolder(tmp_path / "state")
    # A task manager that is lost is noticed in seconds.
    with (
        RedisServer(tmp_path / "redis") as redis,
        standalone(tmp_path / "cluster", heartbeat_interval="1000", heartbeat_timeout="30000") as cluster,
    ):
        # With this checkout in it, whose kernels are compiled.
        python = python_with(tmp_path / "python", str(ROOT))
        settings = {
            "cluster.conf": cluster.conf,
            "cluster.python": python,
            "cluster.code": "installed",
            "kafka.bootstrap_servers": broker.servers,
            "kafka.idle_after": "1d",
            "model.n_factors": FACTORS,
            "tiles.enabled": "false",
            "checkpoint_interval": "2s",
        }
        where = ["--redis", redis.url, "--state-dir", str(folder.path)]
        options = ["--source", f"kafka:{TOPIC}", "--items", f"kafka:{ITEMS}", "--time", "event"]
        options += ["--shards", str(SHARDS)]
        options += [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
        shell = Shell(tmp_path / "submitted-here", where + options)
        job = Job(cluster, python, redis.connection())

        first = number_of(shell.freshet("submit", "--parallelism", "2"))
        job.until(lambda: all(count_of(job.redis, user) == times(accepted[:FIRST], user) for user in (gone, back)))
        job.until(lambda: job.count("read") == FIRST)
        job.until(lambda: job.entries() == len(catalogue))
        assert set(cluster.parallelism(first)) >= {"learn 2"}

        # All is written again, and users are deleted, while several partitions are read by several subtasks.
        user = f"freshet:user:{gone}"  # of whom nothing is learned any more
        kept = job.redis.hgetall(user)
        job.redis.delete(user)
        assert "entities sent" in shell.freshet("republish")
        written = job.redis.hgetall(user)
        assert written.pop(b"version") > kept.pop(b"version")  # by a later attempt
        assert written == kept != {}
        shell.freshet("delete-user", gone, back, *where, common=False)
        job.until(lambda: all(deleted(job.redis, user) for user in (gone, back)))

        kafka.send(TOPIC, records[FIRST:6_000])
        job.until(lambda: job.count("read") > FIRST)
        job.restarted_after(job.kill_task_manager)
        job.until(lambda: job.count("read") == 6_000)
        kafka.send(TOPIC, records[6_000:8_000])
        job.restarted_after(job.kill_workers)
        job.until(lambda: job.count("read") == 8_000)
        broker.kill()
        broker.start()
        kafka.send(TOPIC, records[8_000:10_000])
        job.until(lambda: job.count("read") == 10_000)

        stopped = stop(shell, cluster, first, folder)
        kafka.send(TOPIC, [*records[10_000:], *ends])
        [sold_out, renamed, *_] = catalogue
        del catalogue[sold_out]
        catalogue[renamed] = orjson.dumps({"item_id": renamed, "title": "ANOTHER"})
        kafka.send(ITEMS, [Record(None, sold_out.encode()), Record(catalogue[renamed], renamed.encode())])
        submitted = shell.freshet("submit")
        assert f"--parallelism 1 --fromSavepoint {stopped} " in submitted
        job.until(lambda: job.learned() == EVENTS)
        job.until(lambda: job.entry(renamed) == catalogue[renamed] and job.entry(sold_out) is None)
        stop(shell, cluster, number_of(submitted), folder)

        counts = json.loads(job.redis.hget("freshet:ledger", "counts"))
        assert [counts[name] for name in ("read", "accepted")] == [EVENTS + PARTITIONS] * 2
        shards = oracle.replayed(accepted, SHARDS, FACTORS, {gone: moment, back: moment})
        expected = oracle.expected_in_redis(shards)
        assert f"freshet:user:{gone}" not in expected and f"freshet:user:{back}" in expected
        assert differences(job.redis, with_entries(expected, catalogue)) == (0, 0, [])
        # The state alone: Redis has nothing any more, and a job that stands by writes all that the savepoint has.
        job.redis.flushall()
        shell.freshet("republish")
        assert differences(job.redis, expected) == (0, 0, [])
    left = psutil.wait_procs(job.workers(), timeout=30)[1]
    assert not left, "workers have outlived their task managers"


def partition_of(user_id: str) -> int:
    return zlib.crc32(user_id.encode()) % PARTITIONS


def times(events: Sequence[oracle.Event], user_id: str) -> int:
    return sum(event[2] == user_id for event in events)


def users_to_delete(events: Sequence[oracle.Event]) -> tuple[str, str]:
    """Two of whom nothing waits any more when the first events are read: one who comes no more, and one who does."""
    early, waiting, later = (
        Counter(event[2] for event in part) for part in (events[:2_000], events[2_000:FIRST], events[FIRST:])
    )
    known = [user_id for user_id, _ in early.most_common() if user_id not in waiting]
    return next(u for u in known if u not in later), next(u for u in known if u in later)


def count_of(redis: Any, user_id: str) -> int:
    return int(redis.hget(f"freshet:user:{user_id}", "count") or 0)


def deleted(redis: Any, user_id: str) -> bool:
    """Whether the learner has come to it."""
    stone = redis.hget("freshet:deleted", user_id)
    return stone is not None and b"*" not in stone


def with_entries(expected: dict[str, oracle.Fields], catalogue: dict[str, bytes]) -> dict[str, oracle.Fields]:
    keys = {f"freshet:item:{item_id}": {b"catalogue": entry} for item_id, entry in catalogue.items()}
    return {key: expected.get(key, {}) | keys.get(key, {}) for key in expected.keys() | keys.keys()}


def stop(shell: Shell, cluster: Standalone, number: str, folder: StateFolder) -> Path:
    """Stops a job with a savepoint."""
    return savepoint_of(shell.flink(cluster.conf, "stop", "--savepointPath", folder.savepoints.as_uri(), number))


def differences(redis: Any, expected: dict[str, oracle.Fields]) -> tuple[int, int, list[str]]:
    """Events lost and learned twice, and some of the keys that are not equal."""
    found = oracle.compared(oracle.in_redis(redis), expected)
    return found.lost, found.twice, found.unequal[:3]
