"""What all tests share: a real Redis, and how properties are searched."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from flink_jobs.embedded import embedded_redis
from serving.connection import connect

# The same examples each time: a failure here fails everywhere.
hypothesis.settings.register_profile("freshet", deadline=None, max_examples=60, derandomize=True, database=None)
hypothesis.settings.load_profile("freshet")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    jobs = {Path(__file__).parent / "flink", Path(__file__).parent / "faults", Path(__file__).parent / "kafka"}
    for item in items:
        if jobs & set(item.path.parents):
            item.add_marker(pytest.mark.flink)
        if Path(__file__).parent / "kafka" in item.path.parents:
            item.add_marker(pytest.mark.timeout(1_800))  # jars are fetched, and processes killed


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a real server, one for all tests."""
    with embedded_redis(tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.fixture
def redis_connection(redis_url: str) -> Iterator[Any]:
    """A connection to that server, emptied."""
    connection = connect(redis_url)
    connection.flushall()
    yield connection
    connection.close()
