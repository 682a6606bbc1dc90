"""The command as a process: what its user sees when it is interrupted, and when its JVM is killed."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from flink_jobs.state import StateFolder, StateInUse

LIVE = ("--set", "generator.rate=2000", "--set", "generator.events=1000000")
Started = tuple[subprocess.Popen[str], Path]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Started]]:
    """Starts a command with options; returns the process, and the file with what it says."""
    started: list[subprocess.Popen[str]] = []

    def start(*options: str) -> Started:
        state = tmp_path / "state"
        command = [Path(sys.executable).parent / "freshet", "run", "--state-dir", state, *LIVE, *options]
        output = tmp_path / "output"
        with output.open("w") as file:
            process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, text=True, cwd=tmp_path)
        started.append(process)
        return process, output

    yield start
    for process in started:
        process.kill()
        process.wait()


def wait_for(output: Path, text: str) -> None:
    for _ in range(600):
        if re.search(text, output.read_text()):
            return
        time.sleep(0.1)
    raise AssertionError(f"no {text!r} in:\n{output.read_text()}")


def jvm_of(process: subprocess.Popen[str]) -> psutil.Process:
    [jvm] = [child for child in psutil.Process(process.pid).children() if child.name() == "java"]
    return jvm


def workers_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Python's, which the nursery has forked."""
    return [p for p in psutil.Process(process.pid).children(recursive=True) if p.ppid() != process.pid and is_worker(p)]


def is_worker(process: psutil.Process) -> bool:
    return "flink_jobs.nursery" in process.cmdline()


def test_the_jvm_of_a_killed_command_keeps_its_state(
    start: Callable[..., Started], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process, output = start("--set", "checkpoint_interval=100ms")
    wait_for(output, "learned=[1-9]")
    time.sleep(2)  # for a checkpoint
    jvm, workers = jvm_of(process), workers_of(process)
    jvm.suspend()  # what it does at its end takes as long as a look at it
    process.kill()
    process.wait()
    with monkeypatch.context() as patch:
        patch.setattr("flink_jobs.state._ORPHAN_SECONDS", 0.2)
        with pytest.raises(StateInUse, match="its Flink still runs"):
            StateFolder(tmp_path / "state").locked().__enter__()
    # The next command waits for it. What it goes on from would be discarded under its hands otherwise.
    process, output = start()
    time.sleep(1)
    assert "starting Flink" not in output.read_text()
    jvm.resume()
    assert len(workers) > 2 and psutil.wait_procs(workers, timeout=30)[1] == []
    wait_for(output, "learned=[1-9]")
    assert "starting Flink from chk-" in output.read_text()
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0


def test_a_killed_jvm_is_a_sentence_and_the_next_run_goes_on(start: Callable[..., Started], tmp_path: Path) -> None:
    process, output = start("--set", "checkpoint_interval=500ms")
    wait_for(output, "learned=[1-9]")
    time.sleep(2)  # for a checkpoint
    workers = workers_of(process)
    jvm_of(process).kill()
    assert len(workers) > 2 and psutil.wait_procs(workers, timeout=30)[1] == []
    assert process.wait(60) == 1
    said = output.read_text()
    assert "the JVM that Flink runs in ended" in said and "Traceback" not in said

    process, output = start("--summary", str(tmp_path / "summary.json"))
    wait_for(output, "learned=[1-9]")
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    assert (
        "starting Flink from chk-" in output.read_text()
        and "stopped; what was learned is in Redis" in output.read_text()
    )
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["stopped"] and summary["events"]["learned"] > 0
