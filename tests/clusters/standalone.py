"""A standalone cluster for tests, and the commands that work on it, each called from a folder of its own."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import sysconfig
import time
import urllib.request
import venv
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from flink_jobs.cluster import flink_home
from tests.faults.servers import free_port

ROOT = Path(__file__).parents[2]
# What the environment of a cluster, and of a submission, may hold: a secret of ours, and one of others.
CANARIES = {"FRESHET_KAFKA__PROPERTIES__SASL__JAAS__CONFIG": "kafka-canary-0d5c", "AWS_SECRET_KEY": "aws-canary-e47a"}
SECONDS = 480.0  # for what takes some seconds on a machine that has nothing else to do


def outside(*, path: str = "") -> dict[str, str]:
    """The environment without what would lead to this checkout."""
    hidden = ("PYTHONPATH", "JVM_ARGS", "FLINK_CONF_DIR", "FLINK_LOG_DIR", "_python_worker_execution_mode")
    kept = {name: value for name, value in os.environ.items() if name not in hidden and not name.startswith("FRESHET_")}
    return kept | ({"PYTHONPATH": path} if path else {})


def python_with(folder: Path, *packages: str) -> Path:
    """An environment that finds what is installed here, and ``packages`` besides; its Python."""
    venv.create(folder, symlinks=True)
    own = next((folder / "lib").glob("python*/site-packages"))
    (own / "installed.pth").write_text("\n".join([sysconfig.get_path("purelib"), *packages, ""]))
    return folder / "bin" / "python"


def shown(text: str) -> list[str]:
    """The secrets that are in a text."""
    return [canary for canary in CANARIES.values() if canary in text]


class Shell:
    """Calls commands from a folder of its own; what they print is returned.

    Parameters
    ----------
    common
        Options of each of freshet's commands that takes those of a run.
    secrets
        What freshet's commands have in their environment besides; they may not show it.
    """

    def __init__(self, folder: Path, common: list[str], secrets: Mapping[str, str] | None = None) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        self._common = common
        self._secrets = dict(secrets or {})

    def freshet(self, *words: str, code: int = 0, common: bool = True) -> str:
        """The command of this checkout."""
        command = [sys.executable, "-c", "from flink_jobs.cli import main; main()", *words]
        done = subprocess.run(
            command + self._common * common,
            cwd=self.folder,
            env=outside(path=str(ROOT)) | self._secrets,
            capture_output=True,
            text=True,
            check=False,
        )
        assert not shown(done.stdout + done.stderr)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout if code == 0 else done.stderr

    def flink(self, conf: Path, *words: str) -> str:
        """Flink's own command."""
        done = subprocess.run(
            [str(flink_home() / "bin" / "flink"), *words],
            cwd=self.folder,
            env=outside() | {"FLINK_CONF_DIR": str(conf), "FLINK_LOG_DIR": str(self.folder)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@dataclass(frozen=True)
class Standalone:
    """A cluster with one task manager."""

    shell: Shell
    folder: Path

    @property
    def conf(self) -> Path:
        return self.folder / "conf"

    def start(self) -> str:
        return self.shell.freshet("cluster", "start")

    def task_managers(self) -> list[psutil.Process]:
        """Those that live."""
        numbers = [int(n) for file in (self.folder / "pid").glob("*taskexecutor.pid") for n in file.read_text().split()]
        found = []
        for number in numbers:
            with contextlib.suppress(psutil.NoSuchProcess):
                process = psutil.Process(number)
                if process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def ask(self, path: str) -> Any:
        """What Flink's REST interface answers."""
        port = re.search(r'^rest.port: "(\d+)"', (self.conf / "config.yaml").read_text(), re.MULTILINE)
        assert port is not None
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"http://127.0.0.1:{port.group(1)}{path}", timeout=60) as answer:
            return json.loads(answer.read())

    def state_of(self, number: str) -> str:
        return str(self.ask(f"/jobs/{number}")["state"])

    def parallelism(self, number: str) -> list[str]:
        """The names of a job's operators, with how many subtasks each has."""
        vertices = self.ask(f"/jobs/{number}")["vertices"]
        return [f"{vertex['name'].split(' ->')[0]} {vertex['parallelism']}" for vertex in vertices]

    def until(self, done: Callable[[], bool]) -> None:
        """Waits; where it takes too long, shows why the jobs failed."""
        deadline = time.monotonic() + SECONDS
        while not done():
            if time.monotonic() > deadline:
                jobs = [job["jid"] for job in self.ask("/jobs/overview")["jobs"]]
                raise AssertionError([self.ask(f"/jobs/{number}/exceptions") for number in jobs])
            time.sleep(0.3)


@contextlib.contextmanager
def standalone(
    folder: Path, settings: Mapping[str, Any] | None = None, secrets: Mapping[str, str] | None = None, **flink: str
) -> Iterator[Standalone]:
    """A cluster of two slots, until the block ends; ``flink``: options of Flink, with underscores for dots."""
    settings = {
        "cluster.folder": folder / "flink",
        "cluster.port": free_port(),
        "cluster.slots": 2,
        **(settings or {}),
        **{f"flink.{name.replace('_', '.')}": value for name, value in flink.items()},
    }
    common = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    cluster = Standalone(Shell(folder / "started-here", common, secrets), folder / "flink")
    try:
        assert "1 task managers, 2 of 2 slots free" in cluster.start()
        yield cluster
    finally:
        assert "stopped" in cluster.shell.freshet("cluster", "stop")
        assert "no Flink cluster answers" in cluster.shell.freshet("cluster", "status", code=1)


def number_of(submitted: str) -> str:
    """The number of a job, from what its submission said."""
    found = re.search(r"JobID ([0-9a-f]{32})", submitted)
    assert found is not None, submitted
    return found.group(1)


def savepoint_of(said: str) -> Path:
    """The path of a savepoint, from what the command said that took it."""
    found = re.search(r"Path: file:(\S+)", said)
    assert found is not None, said
    return Path(found.group(1))
