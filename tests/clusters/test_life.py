"""A job's life on a standalone cluster, by Flink's own commands.

Its workers share nothing with the submitter but the state folder: no working directory, no PYTHONPATH, and their Python
is one that came along in an archive and has no freshet in it.
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
import subprocess
import tarfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from flink_jobs.cluster import flink_home
from flink_jobs.state import StateFolder
from serving.connection import connect
from tests.clusters.standalone import (
    CANARIES,
    Shell,
    Standalone,
    number_of,
    outside,
    python_with,
    savepoint_of,
    shown,
    standalone,
)
from tests.faults import oracle
from tests.faults.servers import RedisServer, free_port
from udfs.generator import BLOCK, Generator, GeneratorConfig

EVENTS, SHARDS, FACTORS = 20_000, 2, 4
SLOW = 25  # events a second, of the first job: it must not come to its end

pytestmark = pytest.mark.timeout(1_500)


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive with a Python that has all that freshet needs, and not freshet."""
    folder = tmp_path_factory.mktemp("python")
    asked = [str(python_with(folder / "env")), "-c", "import pyflink, river, udfs"]
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
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Standalone]:
    first = free_port()
    ports = f"{first}-{min(first + 20, 65_535)}"  # the next one may be taken
    with standalone(
        tmp_path_factory.mktemp("cluster"), {"logs": "json", "prometheus.port": ports}, CANARIES
    ) as running:
        yield running


def test_a_job_is_stopped_resumed_rescaled_and_cancelled_and_has_learned_what_an_undisturbed_one_would_have(
    cluster: Standalone, redis: RedisServer, python: Path, tmp_path: Path
) -> None:
    folder = StateFolder(tmp_path / "state")
    settings = {
        "cluster.conf": cluster.conf,
        "cluster.archives": f"{python}#sent",
        "cluster.python": "sent/env/bin/python",
        "generator.events": EVENTS,
        "model.n_factors": FACTORS,
        "checkpoint_interval": "2s",
    }
    common = ["--redis", redis.url, "--state-dir", str(folder.path), "--shards", str(SHARDS)]
    common += [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    shell = Shell(tmp_path / "submitted-here", common, CANARIES)
    connection = connect(redis.url)

    submitted = shell.freshet("submit", "--set", f"generator.rate={SLOW}")
    assert f"{flink_home()}/bin/flink run --detached" in submitted and "--fromSavepoint" not in submitted
    first = number_of(submitted)
    cluster.until(lambda: learned(connection) > 0)
    assert "already (RUNNING): stop it first" in shell.freshet("submit", code=2)
    assert retries(cluster) == 0
    assert beyond_loopback(cluster, "standalonesession") <= set(reporters(cluster))
    connection.config_set("maxmemory", 1)
    cluster.until(lambda: (retries(cluster) or 0) > 0)  # told while Redis takes nothing
    connection.config_set("maxmemory", 0)
    saved = savepoint_of(shell.flink(cluster.conf, "savepoint", first, folder.savepoints.as_uri()))
    stopped = savepoint_of(shell.flink(cluster.conf, "stop", "--savepointPath", folder.savepoints.as_uri(), first))
    assert {saved.parent, stopped.parent} == {folder.savepoints} and (saved / "_metadata").exists()
    before = learned(connection)
    assert 0 < before < EVENTS

    submitted = shell.freshet("submit", "--parallelism", "2")
    assert f"--parallelism 2 --fromSavepoint {stopped} " in submitted
    second = number_of(submitted)
    cluster.until(lambda: learned(connection) == expected().learned)
    assert set(cluster.parallelism(second)) >= {"learn 2"}
    shell.flink(cluster.conf, "cancel", second)
    cluster.until(lambda: cluster.state_of(second) == "CANCELED")
    pages = ["/jobmanager/config", "/jobmanager/environment", f"/jobs/{second}/config", f"/jobs/{second}/exceptions"]
    assert not [page for page in pages if shown(json.dumps(cluster.ask(page)))]
    logs = {path: path.read_text() for of in (cluster.folder / "log", folder.logs) for path in of.iterdir()}
    told = "".join(text for path, text in logs.items() if path.suffix == ".log" and path.parent != folder.logs)
    entries = [json.loads(line) for line in told.splitlines()]
    assert sum("to CANCELED" in entry["message"] for entry in entries) > 1, "not all of it is in the logs"
    assert not [path for path, text in logs.items() if shown(text)]

    counts = json.loads(connection.hget("freshet:ledger", "counts"))
    assert [counts[name] for name in ("read", "late", "duplicate")] == [EVENTS, expected().late, expected().duplicate]
    shards = oracle.replayed(oracle.judged(log())[0], SHARDS, FACTORS)
    difference = oracle.compared(oracle.in_redis(connection), oracle.expected_in_redis(shards))
    assert (difference.lost, difference.twice, difference.unequal[:3]) == (0, 0, [])


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


def beyond_loopback(cluster: Standalone, process: str) -> set[int]:
    """The ports at which a process of the cluster listens for other machines."""
    [numbers] = (cluster.folder / "pid").glob(f"*{process}.pid")
    return {
        connection.laddr.port
        for connection in psutil.Process(int(numbers.read_text())).net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
        and not connection.laddr.ip.removeprefix("::ffff:").startswith(("127.", "::1"))
    }


def reporters(cluster: Standalone) -> range:
    """The ports at which they may be."""
    configuration = (cluster.conf / "config.yaml").read_text()
    ports = re.search(r'^metrics.reporter.prometheus.port: "(\d+)-(\d+)"', configuration, re.MULTILINE)
    assert ports is not None
    return range(int(ports.group(1)), int(ports.group(2)) + 1)


def retries(cluster: Standalone) -> float | None:
    """What the reporters of a cluster tell of them; None where they tell nothing."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    told = ""
    for port in reporters(cluster):
        with contextlib.suppress(OSError), opener.open(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
            told += answer.read().decode()
    found = re.findall(r"^flink_taskmanager_\w*_freshet_redis_retries\{.*\} (\S+)$", told, re.MULTILINE)
    return sum(map(float, found)) if found else None
