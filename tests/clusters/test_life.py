"""A job's life on a standalone cluster, by Flink's own commands.

Its workers share nothing with the submitter but the state folder: no working directory, no PYTHONPATH, and their Python
is one that came along in an archive and has no freshet in it.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import time
import urllib.request
import venv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from flink_jobs.cluster import flink_home
from flink_jobs.state import StateFolder
from serving.connection import connect
from tests.faults import oracle
from tests.faults.servers import RedisServer, free_port
from udfs.generator import BLOCK, Generator, GeneratorConfig

ROOT = Path(__file__).parents[2]
EVENTS, SHARDS, FACTORS = 20_000, 2, 4
SLOW = 25  # events a second, of the first job: it must not come to its end
# What the environment of a cluster, and of a submission, may hold: a secret of ours, and one of others.
CANARIES = {"FRESHET_KAFKA__PROPERTIES__SASL__JAAS__CONFIG": "kafka-canary-0d5c", "AWS_SECRET_KEY": "aws-canary-e47a"}
SECONDS = 480.0  # for what takes some seconds on a machine that has nothing else to do

pytestmark = pytest.mark.timeout(1_500)


def outside(*, path: str = "") -> dict[str, str]:
    """The environment without what would lead to this checkout."""
    hidden = ("PYTHONPATH", "JVM_ARGS", "FLINK_CONF_DIR", "FLINK_LOG_DIR", "_python_worker_execution_mode")
    kept = {name: value for name, value in os.environ.items() if name not in hidden and not name.startswith("FRESHET_")}
    return kept | ({"PYTHONPATH": path} if path else {})


class Shell:
    """Calls commands from a folder of its own; what they print is returned."""

    def __init__(self, folder: Path, common: list[str]) -> None:
        folder.mkdir()
        self.folder = folder
        self._common = common

    def freshet(self, *words: str, code: int = 0) -> str:
        """The command of this checkout, which has secrets in its environment."""
        command = [sys.executable, "-c", "from flink_jobs.cli import main; main()", *words, *self._common]
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=outside(path=str(ROOT)) | CANARIES,
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


def shown(text: str) -> list[str]:
    return [canary for canary in CANARIES.values() if canary in text]


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive with a Python that has all that freshet needs, and not freshet: it links to what is installed here."""
    folder = tmp_path_factory.mktemp("python")
    venv.create(folder / "env", symlinks=True)
    packages = next((folder / "env" / "lib").glob("python*/site-packages"))
    (packages / "installed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    asked = [str(folder / "env" / "bin" / "python"), "-c", "import pyflink, river, udfs"]
    answer = subprocess.run(asked, cwd=folder, env=outside(), capture_output=True, text=True, check=False)
    assert "No module named 'udfs'" in answer.stderr
    with tarfile.open(folder / "python.tar.gz", "w:gz") as archive:
        archive.add(folder / "env", "env")
    return folder / "python.tar.gz"


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="module")
def conf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a cluster's configuration."""
    folder = tmp_path_factory.mktemp("cluster")
    common = ["--set", f"cluster.folder={folder / 'flink'}", "--set", f"cluster.port={free_port()}"]
    shell = Shell(folder / "started-here", common)
    first = free_port()
    ports = f"{first}-{min(first + 20, 65_535)}"  # the next one may be taken
    try:
        assert "1 task managers, 2 of 2 slots free" in shell.freshet(
            "cluster", "start", "--set", "cluster.slots=2", "--set", "logs=json", "--set", f"prometheus.port={ports}"
        )
        yield folder / "flink" / "conf"
    finally:
        assert "stopped" in shell.freshet("cluster", "stop")
        assert "no Flink cluster answers" in shell.freshet("cluster", "status", code=1)


def test_a_job_is_stopped_resumed_rescaled_and_cancelled_and_has_learned_what_an_undisturbed_one_would_have(
    conf: Path, redis: RedisServer, python: Path, tmp_path: Path
) -> None:
    folder = StateFolder(tmp_path / "state")
    settings = {
        "cluster.conf": conf,
        "cluster.archives": f"{python}#sent",
        "cluster.python": "sent/env/bin/python",
        "generator.events": EVENTS,
        "model.n_factors": FACTORS,
        "checkpoint_interval": "2s",
    }
    common = ["--redis", redis.url, "--state-dir", str(folder.path), "--shards", str(SHARDS)]
    common += [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    shell = Shell(tmp_path / "submitted-here", common)
    connection = connect(redis.url)

    submitted = shell.freshet("submit", "--set", f"generator.rate={SLOW}")
    assert f"{flink_home()}/bin/flink run --detached" in submitted and "--fromSavepoint" not in submitted
    first = number_of(submitted)
    until(lambda: learned(connection) > 0, conf)
    assert "already (RUNNING): stop it first" in shell.freshet("submit", code=2)
    assert retries(conf) == 0
    assert beyond_loopback(conf, "standalonesession") <= set(reporters(conf))
    connection.config_set("maxmemory", 1)
    until(lambda: (retries(conf) or 0) > 0, conf)  # told while Redis takes nothing
    connection.config_set("maxmemory", 0)
    saved = savepoint_of(shell.flink(conf, "savepoint", first, folder.savepoints.as_uri()))
    stopped = savepoint_of(shell.flink(conf, "stop", "--savepointPath", folder.savepoints.as_uri(), first))
    assert {saved.parent, stopped.parent} == {folder.savepoints} and (saved / "_metadata").exists()
    before = learned(connection)
    assert 0 < before < EVENTS

    submitted = shell.freshet("submit", "--parallelism", "2")
    assert f"--parallelism 2 --fromSavepoint {stopped} " in submitted
    second = number_of(submitted)
    until(lambda: learned(connection) == expected().learned, conf)
    assert set(parallelism(conf, second)) >= {"learn 2"}
    shell.flink(conf, "cancel", second)
    until(lambda: state_of(conf, second) == "CANCELED", conf)
    pages = ["/jobmanager/config", "/jobmanager/environment", f"/jobs/{second}/config", f"/jobs/{second}/exceptions"]
    assert not [page for page in pages if shown(json.dumps(ask(conf, page)))]
    logs = {path: path.read_text() for of in (conf.parent / "log", folder.logs) for path in of.iterdir()}
    told = "".join(text for path, text in logs.items() if path.suffix == ".log" and path.parent != folder.logs)
    entries = [json.loads(line) for line in told.splitlines()]
    assert sum("to CANCELED" in entry["message"] for entry in entries) > 1, "not all of it is in the logs"
    assert not [path for path, text in logs.items() if shown(text)]

    counts = json.loads(connection.hget("freshet:ledger", "counts"))
    assert [counts[name] for name in ("read", "late", "duplicate")] == [EVENTS, expected().late, expected().duplicate]
    shards = oracle.replayed(oracle.judged(log())[0], SHARDS, FACTORS)
    difference = oracle.compared(oracle.in_redis(connection), oracle.expected_in_redis(shards))
    assert (difference.lost, difference.twice, difference.unequal[:3]) == (0, 0, [])


def number_of(submitted: str) -> str:
    found = re.search(r"JobID ([0-9a-f]{32})", submitted)
    assert found is not None, submitted
    return found.group(1)


def savepoint_of(said: str) -> Path:
    found = re.search(r"Path: file:(\S+)", said)
    assert found is not None, said
    return Path(found.group(1))


def log() -> Iterator[bytes]:
    generator = Generator(GeneratorConfig(events=EVENTS))
    for number in range(-(-EVENTS // BLOCK)):
        yield from generator.block(number)[: EVENTS - number * BLOCK]


@functools.cache
def expected() -> oracle.Counts:
    return oracle.judged(log())[1]


def learned(connection: Any) -> int:
    summaries = [connection.hget(f"freshet:model:{shard}", "summary") for shard in range(SHARDS)]
    return sum(json.loads(summary)["counts"]["learned"] for summary in summaries if summary)


def ask(conf: Path, path: str) -> Any:
    port = re.search(r'^rest.port: "(\d+)"', (conf / "config.yaml").read_text(), re.MULTILINE)
    assert port is not None
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://127.0.0.1:{port.group(1)}{path}", timeout=60) as answer:
        return json.loads(answer.read())


def beyond_loopback(conf: Path, process: str) -> set[int]:
    """The ports at which a process of the cluster listens for other machines."""
    [numbers] = (conf.parent / "pid").glob(f"*{process}.pid")
    return {
        connection.laddr.port
        for connection in psutil.Process(int(numbers.read_text())).net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
        and not connection.laddr.ip.removeprefix("::ffff:").startswith(("127.", "::1"))
    }


def reporters(conf: Path) -> range:
    """The ports at which they may be."""
    configuration = (conf / "config.yaml").read_text()
    ports = re.search(r'^metrics.reporter.prometheus.port: "(\d+)-(\d+)"', configuration, re.MULTILINE)
    assert ports is not None
    return range(int(ports.group(1)), int(ports.group(2)) + 1)


def retries(conf: Path) -> float | None:
    """What the reporters of a cluster tell of them; None where they tell nothing."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    told = ""
    for port in reporters(conf):
        with contextlib.suppress(OSError), opener.open(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
            told += answer.read().decode()
    found = re.findall(r"^flink_taskmanager_\w*_freshet_redis_retries\{.*\} (\S+)$", told, re.MULTILINE)
    return sum(map(float, found)) if found else None


def state_of(conf: Path, number: str) -> str:
    return str(ask(conf, f"/jobs/{number}")["state"])


def parallelism(conf: Path, number: str) -> list[str]:
    """The names of a job's operators, with how many subtasks each has."""
    vertices = ask(conf, f"/jobs/{number}")["vertices"]
    return [f"{vertex['name'].split(' ->')[0]} {vertex['parallelism']}" for vertex in vertices]


def until(done: Callable[[], bool], conf: Path) -> None:
    """Waits; where it takes too long, shows why the jobs failed."""
    deadline = time.monotonic() + SECONDS
    while not done():
        if time.monotonic() > deadline:
            jobs = [job["jid"] for job in ask(conf, "/jobs/overview")["jobs"]]
            raise AssertionError([ask(conf, f"/jobs/{number}/exceptions") for number in jobs])
        time.sleep(0.3)
