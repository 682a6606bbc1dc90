"""Workers come from the nursery: with the environment, folder and output of who asks, and an end of their own."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from flink_jobs.nursery import nursery

BOOT = ["-m", "pyflink.fn_execution.beam.beam_boot"]


def call(launcher: Path, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([launcher, *arguments], capture_output=True, text=True, timeout=60, check=False, **options)


def test_a_worker_is_forked_with_what_it_was_called_with(tmp_path: Path) -> None:
    # Flink's start of a worker says what it lacks, and ends: without an id, without a server, without a folder.
    with nursery() as home:
        without_id = call(home.launcher, *BOOT)
        assert (without_id.returncode, without_id.stdout) == (1, "CRITICAL:root:No id provided.\n")
        for _ in range(2):  # one that failed leaves the nursery as it was
            unreachable = call(home.launcher, *BOOT, "--id=7-1", "--provision_endpoint=localhost:1")
            assert unreachable.returncode == 1
            assert "harness: " in unreachable.stdout and "--id=7-1" in unreachable.stdout
            assert "StatusCode.UNAVAILABLE" in unreachable.stderr
        loopback = {**os.environ, "PYTHON_LOOPBACK_SERVER_ADDRESS": "localhost:1"}
        asked = call(home.launcher, *BOOT, "--id=7-1", "--provision_endpoint=localhost:1", env=loopback, cwd=tmp_path)
        assert "loopback mode" in asked.stdout


def test_all_else_goes_to_python() -> None:
    with nursery() as home:
        asked = call(home.launcher, "-c", "import sys; print(sys.executable, sys.argv[1:])", "a b")
        assert (asked.returncode, asked.stdout) == (0, f"{sys.executable} ['a b']\n")


def test_without_a_nursery_there_is_no_worker(tmp_path: Path) -> None:
    with nursery() as home:
        script = home.launcher.read_text()
    assert not home.launcher.exists()
    again = tmp_path / "python"
    again.write_text(script)
    again.chmod(0o700)
    asked = call(again, *BOOT)
    assert asked.returncode == 1 and asked.stderr.startswith("no worker: ")


def running() -> list[psutil.Process]:
    """The nurseries that run as children of this process."""
    found = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.ZombieProcess, psutil.NoSuchProcess):  # one that ends at this moment
            if "flink_jobs.nursery" in child.cmdline():
                found.append(child)
    return found


def nurseries() -> int:
    return len(running())


def test_it_ends_with_the_block_also_by_an_error() -> None:
    before = nurseries()
    with pytest.raises(ZeroDivisionError), nursery():
        assert nurseries() == before + 1
        raise ZeroDivisionError
    assert nurseries() == before


def test_workers_that_hang_are_ended() -> None:
    with nursery() as home:
        # A server that takes connections and says nothing: the worker waits for its answer.
        with socket.create_server(("localhost", 0)) as server:
            address = f"localhost:{server.getsockname()[1]}"
            waiting = subprocess.Popen([home.launcher, *BOOT, "--id=7-1", f"--provision_endpoint={address}"])
            server.accept()
            [nurse] = running()
            [worker] = nurse.children()
            worker.suspend()
            home.end_workers()
            assert waiting.wait(timeout=30) == 1
        assert call(home.launcher, *BOOT).returncode == 1  # it goes on
