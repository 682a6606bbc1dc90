"""Topics of a real broker, learned by whole runs."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson
import pytest

from flink_jobs.embedded import embedded_redis
from serving.connection import connect
from tests.flink.harness import Rows, balanced, dead_letters, run_job, stored_rows, write_lines
from tests.kafka.broker import Broker, KafkaClient, Record
from udfs.generator import Generator, GeneratorConfig

MODEL = {"model.n_factors": 4, "model.seed": 3}
_WAIT_SECONDS = 90


class TopicRun:
    """A run that reads a topic, beside the test."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], notes: Path | None = None) -> None:
        self.stop = threading.Event()
        self.summary: dict[str, Any] = {}
        self.error: BaseException | None = None
        self._arguments = (folder, settings, notes)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        folder, settings, notes = self._arguments
        try:
            self.summary = run_job(folder, settings, notes=notes, stop=self.stop)
        except BaseException as error:  # noqa: BLE001
            self.error = error

    def stopped_at(self, connection: Any, **counts: int) -> dict[str, Any]:
        """The summary of a run that was stopped as soon as the ledger or a learner has counted so many."""
        deadline = time.monotonic() + _WAIT_SECONDS
        now: dict[str, int] = {}
        while self._thread.is_alive() and any(now.get(name, 0) < count for name, count in counts.items()):
            assert time.monotonic() < deadline, f"waited for {counts}, there are {now}"
            time.sleep(0.05)
            now = counted(connection)
        self.stop.set()
        self._thread.join(_WAIT_SECONDS)
        if self.error is not None:
            raise self.error
        return self.summary


def counted(connection: Any) -> dict[str, int]:
    """What Redis has of the intake's and the learner's counts."""
    counts = orjson.loads(connection.hget("freshet:ledger", "counts") or b"{}")
    summary = orjson.loads(connection.hget("freshet:model:0", "summary") or b"{}")
    return {**{k: v for k, v in counts.items() if k != "rejected"}, **summary.get("counts", {})}


@pytest.fixture()
def connection(tmp_path: Path) -> Iterator[Any]:
    """The embedded Redis of ``tmp_path / state``, which the runs of a test share."""
    with embedded_redis((tmp_path / "state" / "redis").resolve()) as url:
        yield connect(url)


def topic_settings(broker: Broker, topic: str, **more: Any) -> dict[str, Any]:
    return {"source": f"kafka:{topic}", "kafka.bootstrap_servers": broker.servers, **MODEL, **more}


def generated(count: int) -> list[bytes]:
    generator = Generator(GeneratorConfig())
    lines = [line for block in range(-(-count // 1_000)) for line in generator.block(block)]
    return lines[:count]


def learned_from_file(folder: Path, lines: list[bytes], **settings: Any) -> tuple[dict[str, Any], Rows, list[Any]]:
    """What a run over a file with the same lines gives."""
    source = write_lines(folder / "log.jsonl", lines)
    notes = folder / "notes"
    summary = run_job(folder / "state", {"source": f"file:{source}", **MODEL, **settings}, notes=notes)
    return summary, stored_rows(notes), dead_letters(folder / "state" / "dead-letters")


def test_a_topic_of_one_partition_is_learned_as_a_file_is(
    tmp_path: Path, broker: Broker, kafka: KafkaClient, connection: Any
) -> None:
    lines = generated(6_000)
    kafka.create("ratings")
    kafka.send("ratings", [Record(line) for line in lines])
    notes = tmp_path / "notes"
    run = TopicRun(tmp_path / "state", topic_settings(broker, "ratings", time="processing"), notes)
    summary = run.stopped_at(connection, read=len(lines), learned=5_800)
    expected, rows, letters = learned_from_file(tmp_path / "file", lines, time="processing")
    assert summary["events"] == expected["events"] and balanced(summary["events"])
    assert summary["events"]["read"] == len(lines) and summary["events"]["rejected"] > 0
    assert stored_rows(notes) == rows
    found = dead_letters(tmp_path / "state" / "dead-letters")
    assert [(d["reason"], d["raw"], d["position"]["offset"] + 1) for d in found] == [
        (d["reason"], d["raw"], d["position"]["line"]) for d in letters
    ]
    assert {d["position"]["partition"] for d in found} == {"ratings-0"}
