"""What is drawn for a job on a cluster, once, and the command that submits it. Nothing is submitted here."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from rich.console import Console

from flink_jobs.cli import cli
from flink_jobs.cluster import Cluster, ClusterError, rest_url
from flink_jobs.job import build_and_submit
from flink_jobs.preparing import folder_of, take_up
from flink_jobs.preparing import prepared as prepared_here
from flink_jobs.sections import ClusterSettings
from flink_jobs.settings import Layer, Resolved, SettingsError, resolve
from flink_jobs.state import StateError, StateFolder, StateInUse, Submission
from flink_jobs.submitting import BY_FLINK, packed, prepare
from serving.connection import connect
from serving.schema import Field, Keys
from tests.faults.servers import RedisServer, free_port
from udfs.requests import Inbox, Journal, JournalError


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as running:
        yield running


@pytest.fixture
def redis(server: RedisServer) -> Iterator[Any]:
    connection = connect(server.url)
    connection.flushall()
    yield connection
    connection.close()


def given(server: RedisServer, folder: Path, **more: Any) -> Resolved:
    settings = {"redis": server.url, "state_dir": str(folder), "source": "generator", **more}
    return resolve([Layer("test", {name.replace("__", "."): value for name, value in settings.items()})])


def prepared(resolved: Resolved, *, restore: str | None = BY_FLINK, once: str | None = None) -> str:
    return str(prepare(resolved, [], Console(file=io.StringIO()), restore=restore, once=once))


def snapshot(storage: Path) -> Path:
    path = storage / "savepoints" / "savepoint-1"
    path.mkdir(parents=True)
    (path / "_metadata").touch()
    return path


def drawn(folder: Path) -> Submission:
    submission = StateFolder(folder).submission()
    assert submission is not None
    return submission


def test_what_is_prepared_is_a_new_run_of_the_state_that_fences_off_the_one_before(
    server: RedisServer, redis: Any, tmp_path: Path
) -> None:
    prepared(given(server, tmp_path))
    first, manifest = drawn(tmp_path), StateFolder(tmp_path).load()
    assert manifest is not None and manifest.on_cluster and manifest.gather > 0
    assert int(redis.get(Keys("freshet").fence)) == first.number
    prepared(given(server, tmp_path, parallelism=3))
    again = StateFolder(tmp_path).load()
    assert drawn(tmp_path).number > first.number and again is not None
    assert (again.epoch, again.runs) == (manifest.epoch, manifest.runs + 1)


def test_nothing_else_works_on_a_state_while_a_cluster_does(server: RedisServer, redis: Any, tmp_path: Path) -> None:
    resolved, keys, now = given(server, tmp_path), Keys("freshet"), time.time_ns() // 1_000_000
    prepared(resolved)
    redis.hset(keys.ledger, Field.ALIVE, now - 5_000)
    with (
        pytest.raises(StateInUse, match=r"a job on a cluster works on .*: it gave a sign of life .* ago. Stop it"),
        prepared_here(resolved, Console(file=io.StringIO())),
    ):
        pass
    redis.hset(keys.ledger, Field.ALIVE, now - 31_000)
    snapshot(tmp_path)
    with prepared_here(resolved, Console(file=io.StringIO())) as (ready, _):
        assert ready.manifest.on_cluster


@pytest.mark.parametrize(("silent", "running"), [(5_000, True), (31_000, False)])
def test_a_deletion_knows_of_a_job_on_a_cluster(
    server: RedisServer, redis: Any, tmp_path: Path, silent: int, running: bool
) -> None:
    prepared(given(server, tmp_path))
    redis.hset(Keys("freshet").ledger, Field.ALIVE, time.time_ns() // 1_000_000 - silent)
    words = ["delete-user", "ann", "--redis", server.url, "--state-dir", str(tmp_path), "--json"]
    answer = json.loads(CliRunner().invoke(cli, words).stdout)
    assert answer["running"] is running and list(answer["requests"]) == ["ann"]


def test_nothing_is_drawn_a_second_time_for_the_same(server: RedisServer, redis: Any, tmp_path: Path) -> None:
    prepared(given(server, tmp_path), once="generation 1")
    first = drawn(tmp_path)
    prepared(given(server, tmp_path), once="generation 1")
    assert drawn(tmp_path) == first
    prepared(given(server, tmp_path), once="generation 2")
    assert drawn(tmp_path).number > first.number


def test_the_newest_snapshot_is_taken_up_wherever_it_is(server: RedisServer, redis: Any, tmp_path: Path) -> None:
    storage = tmp_path / "storage"
    resolved = given(server, tmp_path / "state", cluster__storage=storage.as_uri())
    prepared(resolved)
    newest = snapshot(storage)
    assert folder_of(resolved).newest_snapshot(StateFolder(tmp_path / "state").load()) == str(newest)  # type: ignore[arg-type]


@pytest.mark.parametrize("storage", [None, "s3://bucket/freshet"])
def test_without_a_snapshot_to_be_found_a_state_is_not_forgotten(
    server: RedisServer, redis: Any, tmp_path: Path, storage: str | None
) -> None:
    resolved = given(server, tmp_path, cluster__storage=storage)
    prepared(resolved)
    redis.set("freshet:user:ann", "known")
    with pytest.raises(SettingsError, match=r"no snapshot of the state is found in .*freshet submit --restore URI"):
        take_up(resolved, folder_of(resolved), server.url, redis, Console(file=io.StringIO()))
    ready = take_up(resolved, folder_of(resolved), server.url, redis, Console(file=io.StringIO()), "s3://b/savepoint-1")
    assert ready.snapshot == "s3://b/savepoint-1" and redis.exists("freshet:user:ann")


@pytest.mark.parametrize("storage", ["/mnt/freshet", "freshet", "s3"])
def test_storage_must_be_a_uri(storage: str) -> None:
    with pytest.raises(
        SettingsError, match=r"cluster.storage .*write a URI that all machines of the cluster understand"
    ):
        resolve([Layer("--set", {"cluster.storage": storage})])


def test_the_command_has_absolute_paths_and_no_password(
    server: RedisServer, redis: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    events, config = tmp_path / "events.jsonl", tmp_path / "freshet.toml"
    events.write_text('{"user_id": "ann", "item_id": "tea", "timestamp": 1700000000000, "event_value": 5}\n')
    config.write_text('dead_letters = "letters"\n')
    redis.config_set("requirepass", "canary-81")
    try:
        words = [
            "submit",
            "--prepare",
            "--restore",
            "flink",
            "--config",
            "freshet.toml",
            "--source",
            "file:events.jsonl",
        ]
        words += ["--fresh", "--parallelism", "2", "--set", "cluster.archives=env.zip#env,more.zip"]
        answer = CliRunner().invoke(cli, words, env={"FRESHET_REDIS": server.url.replace("//", "//:canary-81@")})
        assert answer.exit_code == 0, answer.output
    finally:
        connect(server.url.replace("//", "//:canary-81@")).config_set("requirepass", "")
    command = answer.stdout
    for word in (
        f"--config {config} ",
        f"--source file:{events} ",
        f"--state-dir {tmp_path / '.freshet'} ",
        f"--dead-letters {tmp_path / 'letters'} ",
        "--parallelism 2 ",
        "--pyArchives 'env.zip#env,more.zip' ",
        f"FLINK_CONF_DIR={tmp_path / '.freshet-cluster' / 'conf'} ",
    ):
        assert word in command
    assert "--fresh" not in command.split("job.py")[1]
    assert "canary" not in answer.output


def test_embedded_redis_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    answer = CliRunner().invoke(cli, ["submit"])
    assert answer.exit_code == 2
    assert "a cluster's workers need one that they reach: --redis redis://HOST:PORT" in answer.output
    assert not (tmp_path / ".freshet").exists()


def test_without_a_cluster_nothing_is_prepared(server: RedisServer, redis: Any, tmp_path: Path) -> None:
    conf = tmp_path / "conf"
    resolved = given(server, tmp_path / "state", cluster__conf=str(conf))
    with pytest.raises(ClusterError, match=r"there is no .*config.yaml: start a cluster \(freshet cluster start\)"):
        prepared(resolved, restore=None)
    conf.mkdir()
    (conf / "config.yaml").write_text(f"rest:\n  address: 127.0.0.1\n  port: {free_port()}\n")
    with pytest.raises(ClusterError, match=r"no Flink cluster answers at http://127\.0\.0\.1:"):
        prepared(resolved, restore=None)
    assert StateFolder(tmp_path / "state").load() is None and redis.dbsize() == 0


def test_the_script_refuses_what_was_not_prepared(server: RedisServer, redis: Any, tmp_path: Path) -> None:
    with pytest.raises(StateError, match=r"nothing was prepared in .*: submit with freshet submit"):
        build_and_submit(given(server, tmp_path))
    prepared(given(server, tmp_path))
    with pytest.raises(SettingsError, match=r"model: the state was learned with"):
        build_and_submit(given(server, tmp_path, model__n_factors=3))


def test_what_a_job_is_prepared_with_tells_its_model(server: RedisServer, redis: Any, tmp_path: Path) -> None:
    prepared(given(server, tmp_path, model__name="auto"))
    manifest = StateFolder(tmp_path).load()
    assert manifest is not None and manifest.fixed["model"] == {"name": "stack"}
    with pytest.raises(SettingsError, match=r"^model: .* 'stack'}, this run has {'name': 'stack', 'n_factors': 3}"):
        build_and_submit(given(server, tmp_path, model__name="auto", model__n_factors=3))


def test_a_damaged_submission_says_so(tmp_path: Path) -> None:
    (tmp_path / "submission.json").write_text('{"number": 1}')
    with pytest.raises(StateError, match=r"submission.json is damaged .* submit again"):
        StateFolder(tmp_path).submission()


def test_a_submission_comes_back(tmp_path: Path) -> None:
    submission = Submission(7, "generation 1", {0: 12, 3: 0})
    StateFolder(tmp_path).store_submission(submission)
    assert StateFolder(tmp_path).submission() == submission
    assert StateFolder(tmp_path).journal.read_bytes() == b""


def test_a_worker_that_does_not_see_the_journal_says_so(tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    assert not Inbox(Journal(path), "kafka", 0).ahead()
    with pytest.raises(JournalError, match=r"requests.jsonl is not there: on a cluster, state_dir must be a folder"):
        Inbox(Journal(path, required=True), "kafka", 0)


def test_workers_can_import_all_of_freshet_from_the_archive(tmp_path: Path) -> None:
    archive = packed(tmp_path / "code")
    assert packed(tmp_path / "code") == archive
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import udfs.functions, udfs.kernels, flink_jobs.job\n"
        "from udfs.publisher import Publisher\n"
        "Publisher('redis://127.0.0.1:1', 'p')\n"  # reads all scripts
        "print(udfs.functions.__file__)"
    )
    asked = [sys.executable, "-P", "-c", code, str(archive)]
    answer = subprocess.run(asked, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert answer.stdout.startswith(str(archive)), answer.stderr


def test_a_taken_port_is_refused(server: RedisServer, tmp_path: Path) -> None:
    cluster = Cluster(ClusterSettings(folder=tmp_path, port=server.port))
    with pytest.raises(ClusterError, match=rf"port {server.port} is taken: give another, --set cluster.port="):
        cluster.start({})
    assert not cluster.stop()


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("rest.address: a\nrest.port: 1\n", "http://a:1"),
        ("rest:\n  address: b\n", "http://b:8081"),
        ("jobmanager:\n  rpc:\n    address: c\n", "http://c:8081"),
        ("", "http://localhost:8081"),
    ],
)
def test_where_a_cluster_is_follows_from_its_configuration(tmp_path: Path, text: str, url: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    assert rest_url(tmp_path) == url


def test_the_archive_has_no_more_than_code(tmp_path: Path) -> None:
    names = zipfile.ZipFile(packed(tmp_path)).namelist()
    assert "udfs/functions.py" in names and "serving/publish_learned.lua" in names
    assert not [name for name in names if not re.search(r"\.(py|lua|properties)$", name)]
