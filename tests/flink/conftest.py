"""What the JVM and its workers need before the first job starts in this process."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from flink_jobs import preparing
from flink_jobs.flink import prepare_process
from flink_jobs.nursery import Nursery, nursery

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session", autouse=True)
def flink_process(tmp_path_factory: pytest.TempPathFactory) -> None:
    prepare_process(tmp_path_factory.mktemp("flink-log"))
    # The workers import the harness.
    os.environ["PYTHONPATH"] = str(ROOT)


@pytest.fixture(scope="session", autouse=True)
def shared_nursery(flink_process: None) -> Iterator[None]:
    """One nursery for all runs in this process, as there is one JVM; those of commands have their own."""

    @contextlib.contextmanager
    def one_run(shared: Nursery) -> Iterator[Nursery]:
        try:
            yield shared
        finally:
            shared.end_workers()  # as where a nursery ends

    with nursery() as shared, pytest.MonkeyPatch.context() as patched:
        patched.setattr(preparing, "nursery", lambda: one_run(shared))
        yield
