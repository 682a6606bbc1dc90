"""What the JVM and its workers need before the first job starts in this process."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from flink_jobs.flink import prepare_process

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session", autouse=True)
def flink_process(tmp_path_factory: pytest.TempPathFactory) -> None:
    prepare_process(tmp_path_factory.mktemp("flink-log"))
    # The workers import the harness.
    os.environ["PYTHONPATH"] = str(ROOT)
