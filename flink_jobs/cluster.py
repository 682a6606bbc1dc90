"""A standalone Flink cluster on this machine, by the scripts that come with apache-flink, under our configuration."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from flink_jobs import logconf
from flink_jobs.flink import JVM, cluster_configuration, find_java
from flink_jobs.sections import ClusterSettings
from flink_jobs.settings import withhold

_HOST: Final = "127.0.0.1"
_START_SECONDS: Final = 300.0
_ASK_SECONDS: Final = 10.0
_SIZED: Final = re.compile(r"-Xm[sn]|-XX:(Survivor|.UseAdaptive)")  # for the heap of a local run


class ClusterError(RuntimeError):
    """The cluster can't be started, reached or used; the message says why and what to do."""


@dataclass(frozen=True)
class Status:
    """What a cluster says of itself.

    Attributes
    ----------
    jobs
        The name, the number and the state of each that it remembers.
    """

    url: str
    version: str
    task_managers: int
    slots: int
    free: int
    jobs: list[tuple[str, str, str]]


def flink_home() -> Path:
    """Where Flink has its scripts and jars: in apache-flink's package, unless ``FLINK_HOME`` says otherwise."""
    import pyflink

    return Path(os.environ.get("FLINK_HOME") or Path(str(pyflink.__file__)).parent)


def environment(conf: Path, logs: Path) -> dict[str, str]:
    """What Flink's scripts are called with."""
    return {
        **os.environ,
        "JAVA_HOME": find_java(),
        "FLINK_CONF_DIR": str(conf),
        "FLINK_LOG_DIR": str(logs),
        # A module in the user's folder must not shadow one that a worker imports.
        "PYTHONSAFEPATH": "1",
    }


class Cluster:
    """The cluster whose configuration, logs and process numbers are in a folder.

    Attributes
    ----------
    conf
        What ``FLINK_CONF_DIR`` is, for Flink's own commands.
    """

    def __init__(self, settings: ClusterSettings) -> None:
        self._settings = settings
        self.folder = settings.folder.resolve()
        self.conf = self.folder / "conf"
        self.logs = self.folder / "log"
        self._pids = self.folder / "pid"

    def start(self, flink: Mapping[str, str], logs: logconf.Kind = "text") -> Status:
        """Starts it, or in one that runs the task managers that it lacks, and returns when all are there.

        Parameters
        ----------
        flink
            Options of Flink that go before ours.
        logs
            The format of its logs.

        Raises
        ------
        ClusterError
            If it runs already and lacks none, its port is taken, or it does not start.
        """
        lacking = self._settings.task_managers - len(self._living("taskexecutor"))
        if self._living("standalonesession"):
            if lacking <= 0:
                raise ClusterError(f"the cluster of {self.folder} runs already: freshet cluster stop ends it")
            return self._with_task_managers(lacking)
        with socket.socket() as probe:
            try:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((_HOST, self._settings.port))
            except OSError as error:
                raise ClusterError(
                    f"port {self._settings.port} is taken: give another, --set cluster.port=..."
                ) from error
        self.stop()  # task managers whose job manager is no more
        shutil.rmtree(self._pids, ignore_errors=True)  # of processes that are no more
        self._write_configuration(flink)
        logconf.configure(self.conf, logs)
        self._script("jobmanager.sh", "start")
        try:
            return self._with_task_managers(self._settings.task_managers)
        except ClusterError:
            self.stop()
            raise

    def _with_task_managers(self, lacking: int) -> Status:
        """Starts so many, and waits for them."""
        for _ in range(lacking):
            self._script("taskmanager.sh", "start")
        deadline = time.monotonic() + _START_SECONDS
        while True:
            status = self._status_or_none()
            # One that is lost has slots until the job manager notices.
            if status is not None and status.slots >= self._settings.task_managers * self._settings.slots:
                return status
            if time.monotonic() > deadline or not self._living():
                raise ClusterError(f"the cluster's task managers did not all start: see {self.logs}")
            time.sleep(0.2)

    def stop(self) -> bool:
        """Ends its processes, and so its jobs; whether there were any."""
        was = bool(self._living())
        for script in ("taskmanager.sh", "jobmanager.sh"):
            if any(self._pids.glob("*.pid")):
                self._script(script, "stop-all")
        return was

    def status(self) -> Status:
        """What it says of itself.

        Raises
        ------
        ClusterError
            If it does not answer.
        """
        return status_of(rest_url(self.conf))

    def _status_or_none(self) -> Status | None:
        try:
            return self.status()
        except ClusterError:
            return None

    def _living(self, kind: str = "*") -> list[int]:
        """The numbers of its processes of a kind that live, as Flink's scripts noted them."""
        files = self._pids.glob(f"flink-*-{kind}.pid")
        return [number for file in files for number in map(int, file.read_text().split()) if _lives(number)]

    def _write_configuration(self, flink: Mapping[str, str]) -> None:
        shipped = flink_home() / "conf"
        self.conf.mkdir(parents=True, exist_ok=True)
        for name in ("log4j.properties", "log4j-cli.properties", "log4j-console.properties"):
            shutil.copy(shipped / name, self.conf / name)
        found = re.search(r"^ +all: +(--add-\S+=.*)$", (shipped / "config.yaml").read_text(), re.MULTILINE)
        if found is None:
            raise ClusterError(f"{shipped / 'config.yaml'} is not the one of apache-flink 2.3: install that anew")
        values = cluster_configuration(_HOST, self._settings.port) | {
            "env.java.opts.all": found.group(1),
            "env.java.opts.taskmanager": " ".join(option for option in JVM if not _SIZED.match(option)),
            "jobmanager.rpc.address": _HOST,
            "jobmanager.rpc.port": str(_free_port()),
            # A machine that is busy answers late; that is no reason to start its tasks anew.
            "pekko.ask.timeout": "60 s",
            "jobmanager.memory.heap.size": "512m",
            "taskmanager.host": _HOST,
            "taskmanager.numberOfTaskSlots": str(self._settings.slots),
            "taskmanager.memory.task.heap.size": self._settings.heap,
            "io.tmp.dirs": str(self.folder / "tmp"),
        }
        (self.folder / "tmp").mkdir(exist_ok=True)
        # JSON's strings are YAML's.
        lines = (f"{name}: {json.dumps(value)}\n" for name, value in sorted({**values, **flink}.items()))
        (self.conf / "config.yaml").write_text("".join(lines))

    def _script(self, name: str, action: str) -> None:
        own = {"FLINK_PID_DIR": str(self._pids), "FLINK_IDENT_STRING": "freshet"}
        values = environment(self.conf, self.logs) | own
        # The workers' code is the job's, not that of who started the cluster, and so are its secrets.
        values.pop("PYTHONPATH", None)
        withhold(values)
        self.logs.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(
            [str(flink_home() / "bin" / name), action],
            cwd=self.folder,
            env=values,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise ClusterError(f"{name} {action} failed: {(done.stdout + done.stderr).strip()[-2_000:]}")


def _lives(number: int) -> bool:
    """Whether a process runs; one that has ended may wait for a parent that never asks."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def rest_url(conf: Path) -> str:
    """Where the cluster of a configuration has its REST interface.

    Raises
    ------
    ClusterError
        If there is no configuration.
    """
    from ruamel.yaml import YAML

    path = conf / "config.yaml"
    try:
        values = _flat(YAML(typ="safe", pure=True).load(path.read_text()) or {})
    except OSError as error:
        raise ClusterError(
            f"there is no {path}: start a cluster (freshet cluster start), or name the folder of another one's "
            "configuration (--set cluster.conf=PATH)"
        ) from error
    address = values.get("rest.address") or values.get("jobmanager.rpc.address") or "localhost"
    return f"http://{address}:{values.get('rest.port', 8081)}"


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def status_of(url: str) -> Status:
    """
    Raises
    ------
    ClusterError
        If no cluster answers there.
    """
    try:
        overview, jobs = _ask(f"{url}/overview"), _ask(f"{url}/jobs/overview")["jobs"]
    except (OSError, urllib.error.URLError, ValueError) as error:
        raise ClusterError(
            f"no Flink cluster answers at {url}: {error}; freshet cluster start starts one on this machine"
        ) from error
    return Status(
        url,
        overview["flink-version"],
        overview["taskmanagers"],
        overview["slots-total"],
        overview["slots-available"],
        [(job["name"], job["jid"], job["state"]) for job in jobs],
    )


def _ask(url: str) -> Any:
    # Not by way of a proxy: what is asked is on loopback, or in the same network.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=_ASK_SECONDS) as answer:
        return json.loads(answer.read())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        return int(probe.getsockname()[1])
