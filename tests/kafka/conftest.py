"""A broker for all tests here. Its jars and the connector come from Maven: without them, tests are skipped."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from flink_jobs.kafka import CONNECTOR
from tests.flink.conftest import flink_process
from tests.kafka.broker import Broker, KafkaClient

__all__ = ["flink_process"]

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy" / "kafka"
CONNECTOR_JAR = DEPLOY / "jars" / CONNECTOR


@pytest.fixture(scope="session")
def jars() -> Path:
    """The folder with the broker's jars; the connector is where the job looks for it."""
    if not (CONNECTOR_JAR.exists() and any((DEPLOY / "broker").glob("kafka_*.jar"))):
        if shutil.which("mvn") is None:
            pytest.skip("no Kafka: its jars are fetched with Maven, which is not installed (make kafka-broker)")
        fetched = subprocess.run(
            ["make", "-C", str(ROOT), "--no-print-directory", "kafka", "kafka-broker"], capture_output=True, text=True
        )
        if fetched.returncode:
            pytest.skip(f"no Kafka: `make kafka-broker` failed, the network may be missing: {fetched.stdout[-500:]}")
    return DEPLOY / "broker"


@pytest.fixture(scope="session")
def broker(jars: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    server = Broker(tmp_path_factory.mktemp("broker") / "one", jars)
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="session")
def kafka(broker: Broker) -> KafkaClient:
    return KafkaClient(CONNECTOR_JAR, {"bootstrap.servers": broker.servers})
