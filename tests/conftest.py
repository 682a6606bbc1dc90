"""What all tests share: a real Redis, and how properties are searched."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from flink_jobs.embedded import embedded_redis
from serving.connection import connect

ROOT = Path(__file__).parents[1]

# The same examples each time: a failure here fails everywhere.
hypothesis.settings.register_profile("freshet", deadline=None, max_examples=60, derandomize=True, database=None)
hypothesis.settings.load_profile("freshet")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    jobs = {ROOT / "tests" / name for name in ("clusters", "faults", "flink", "kafka")}
    clusters = {ROOT / "tests" / name for name in ("clusters", "kafka")}
    for item in items:
        if jobs & set(item.path.parents):
            item.add_marker(pytest.mark.flink)
        if clusters & set(item.path.parents):
            item.add_marker(pytest.mark.cluster)
        if ROOT / "tests" / "faults" in item.path.parents:
            item.add_marker(pytest.mark.faults)
        if ROOT / "tests" / "kafka" in item.path.parents:
            item.add_marker(pytest.mark.timeout(1_800))  # jars are fetched, and processes killed


@pytest.fixture(scope="session")
def data() -> Iterator[Path]:
    """Real event streams; tests that use them are skipped where they are absent."""
    folder = Path(os.environ.get("FRESHET_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real event streams in {folder} (set FRESHET_TEST_DATA)")
    yield folder


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
