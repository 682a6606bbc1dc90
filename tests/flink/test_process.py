"""The command as a process: what its user sees when it is interrupted, and when its JVM is killed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

LIVE = ("--set", "generator.rate=2000", "--set", "generator.events=1000000")


def start(folder: Path, *options: str) -> tuple[subprocess.Popen[str], Path]:
    command = [Path(sys.executable).parent / "freshet", "run", "--state-dir", folder / "state", *LIVE, *options]
    output = folder / "output"
    with output.open("w") as file:
        return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, text=True, cwd=folder), output


def wait_for(output: Path, text: str) -> None:
    for _ in range(600):
        if text in output.read_text():
            return
        time.sleep(0.1)
    raise AssertionError(f"no {text!r} in:\n{output.read_text()}")


def test_a_killed_jvm_is_a_sentence_and_the_next_run_goes_on(tmp_path: Path) -> None:
    process, output = start(tmp_path, "--set", "checkpoint_interval=500ms")
    wait_for(output, "learned=1")
    time.sleep(2)  # for a checkpoint
    [jvm] = [child for child in psutil.Process(process.pid).children() if child.name() == "java"]
    jvm.kill()
    assert process.wait(60) == 1
    said = output.read_text()
    assert "the JVM that Flink runs in ended" in said and "Traceback" not in said

    process, output = start(tmp_path, "--summary", str(tmp_path / "summary.json"))
    wait_for(output, "learned=1")
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    assert (
        "starting Flink from chk-" in output.read_text()
        and "stopped; what was learned is in Redis" in output.read_text()
    )
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["stopped"] and summary["events"]["learned"] > 0
