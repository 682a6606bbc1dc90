"""The command line: its outputs and exit codes are a contract."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from click.testing import CliRunner, Result

from flink_jobs.cli import cli
from flink_jobs.embedded import embedded_redis
from flink_jobs.state import Manifest, StateFolder
from serving.connection import without_password
from serving.identity import fingerprint, hidden
from tests.shells import batch_of, publish
from udfs.entities import tile_entities
from udfs.learner import Learner, LearnerConfig, build
from udfs.publisher import Publisher
from udfs.requests import Journal
from udfs.tilefeed import paired

T0 = 1_700_000_000_000
Invoke = Callable[..., Result]


@pytest.fixture
def invoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Invoke:
    """Runs a command in an empty folder and with nothing in the environment."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("FRESHET_")]:
        monkeypatch.delenv(name)

    def run(*arguments: str, **environment: str) -> Result:
        result = CliRunner().invoke(cli, arguments, env=environment)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    return run


def fill(url: str, prefix: str = "freshet") -> None:
    """What a job would have left."""
    publisher = Publisher(url, prefix)
    learner = Learner(LearnerConfig(run_id="r"), build("biased_mf", {"n_factors": 2}))
    log = [("ann", "tea", 5.0), ("ann", "rum", 1.0), ("bob", "gin", 4.0), ("bob", "tea", 4.0)]
    events = [[T0 + n, "", user, item, "rating", y, 0, n] for n, (user, item, y) in enumerate(log)]
    list(learner.process(batch_of(events)))
    publish(publisher, learner)
    tile = ["5m", "uann", 1704067200000, 1704067500000, paired(2, 2), 0, 6000000, paired(2, 0)]
    session = ["session", "uann", 1704067201000, 1704067209000, paired(2, 2), 0, 6000000]
    for record in (tile, session):
        publisher.tiles(tile_entities(["\x1f".join(map(str, record))], publisher.keys, ["rating"], 0), {})
    publisher._redis.hset(f"{prefix}:item:tea", "catalogue", b'{"item_id":"tea","title":"Green tea"}')


@pytest.fixture
def look(invoke: Invoke, redis_url: str, redis_connection: Any) -> Invoke:
    """Runs a look-up on a Redis that has something."""
    fill(redis_url)
    return lambda *arguments: invoke(*arguments, "--redis", redis_url)


# ------------------------------------------------------------------------------------------- look-ups


def test_user_as_json(look: Invoke) -> None:
    result = look("user", "ann", "--json")
    answer = orjson.loads(result.stdout)
    assert result.exit_code == 0 and result.stdout.count("\n") == 1
    assert set(answer) == {
        "user_id", "shard", "vector", "bias", "count", "updated_at", "version", "seen", "session", "tiles"
    }  # fmt: skip
    assert (answer["user_id"], answer["shard"], answer["count"], answer["seen"]) == ("ann", 0, 2, ["tea", "rum"])
    assert len(answer["vector"]) == 2 and answer["updated_at"] == T0 + 1
    assert answer["version"] == "0000000000007.00000001.0000000000000002"
    start = 1_704_067_200_000
    assert answer["session"] == {"start": start + 1_000, "end": start + 9_000, "events": 2, "distinct": 2}
    tile = {"n": 2, "sum": 6.0, "mean": 3.0, "distinct": 2, "types": {"rating": 2}}
    assert answer["tiles"] == {"5m": {str(start): tile}}


def test_item_as_json(look: Invoke) -> None:
    answer = orjson.loads(look("item", "tea", "--json").stdout)
    assert set(answer) == {
        "item_id", "vector", "bias", "count", "updated_at", "version", "shards", "catalogue", "tiles"
    }  # fmt: skip
    assert (answer["count"], answer["catalogue"]["title"]) == (2, "Green tea")
    assert answer["shards"]["0"]["vector"] == answer["vector"] and len(answer["vector"]) == 2


def test_recommend_as_json(look: Invoke) -> None:
    answer = orjson.loads(look("recommend", "ann", "-k", "5", "--json").stdout)
    assert (answer["user_id"], answer["known"]) == ("ann", True)
    assert [item["item_id"] for item in answer["items"]] == ["gin"]
    popular = look("recommend", "nobody", "-k", "1", "--json")
    answer = orjson.loads(popular.stdout)
    assert popular.exit_code == 0 and not answer["known"]
    assert answer["items"][0]["item_id"] == "tea" and answer["items"][0]["catalogue"]["title"] == "Green tea"


def test_similar_as_json(look: Invoke) -> None:
    answer = orjson.loads(look("similar", "tea", "--json").stdout)
    assert answer["item_id"] == "tea" and {item["item_id"] for item in answer["items"]} == {"gin", "rum"}


@pytest.mark.parametrize("command", ["user", "item", "similar"])
def test_an_unknown_id_is_null_and_exits_with_3(look: Invoke, command: str) -> None:
    result = look(command, "nobody", "--json")
    assert (result.exit_code, result.stdout) == (3, "null\n")
    result = look(command, "nobody")
    assert result.exit_code == 3 and result.stdout == "" and "nobody is unknown" in result.stderr


def test_answers_for_people(look: Invoke) -> None:
    assert (
        "count        2" in look("user", "ann").stdout and "tiles 5m     1, with 2 events" in look("user", "ann").stdout
    )
    assert "Green tea" in look("item", "tea").stdout
    assert look("recommend", "ann").stdout.split()[:2] == ["1", "gin"]
    assert "nobody is unknown; this is popular now" in look("recommend", "nobody").stdout
    assert "rum" in look("similar", "tea").stdout


def test_an_item_of_several_shards_is_shown_with_plain_lists(
    invoke: Invoke, redis_url: str, redis_connection: Any
) -> None:
    publisher = Publisher(redis_url, "freshet")
    for shard in range(2):
        learner = Learner(LearnerConfig(run_id="r"), build("biased_mf", {"n_factors": 2}))
        list(learner.process(batch_of([[T0, "", f"u{shard}", "tea", "rating", 4.0, 0, 0]])))
        publish(publisher, learner, shard=shard, shards=2)
    shown = invoke("item", "tea", "--redis", redis_url).stdout
    assert "shard 0      {'vector': [" in shown and "shard 1      {'vector': [" in shown
    assert "array" not in shown and "count        2" in shown


def test_ids_that_look_like_options(invoke: Invoke, redis_url: str, redis_connection: Any) -> None:
    redis_connection.hset("freshet:user:-1", "seen", b'["tea"]')
    result = invoke("user", "--json", "--redis", redis_url, "--", "-1")
    assert result.exit_code == 0 and orjson.loads(result.stdout)["seen"] == ["tea"]


def test_the_embedded_redis_is_started_for_a_look_up(invoke: Invoke, tmp_path: Path) -> None:
    result = invoke("user", "ann")
    assert result.exit_code == 1 and "there is no state in .freshet" in result.stderr
    with embedded_redis(tmp_path / "elsewhere" / "redis") as url:
        fill(url, "p")
    result = invoke("user", "ann", "--state-dir", "elsewhere", "--prefix", "p", "--json")
    assert result.exit_code == 0 and orjson.loads(result.stdout)["count"] == 2


def test_a_redis_that_is_away_exits_with_1(invoke: Invoke) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    result = invoke("user", "ann", "--redis", f"redis://:s3cret@127.0.0.1:{port}")
    assert result.exit_code == 1 and "does not answer" in result.stderr and "s3cret" not in result.output
    result = invoke("user", "ann", "--redis", "http://127.0.0.1")
    assert result.exit_code == 1 and result.stderr.startswith("freshet: ")


# -------------------------------------------------------------------------------------------- deletion


def state(folder: Path, redis: str, prefix: str = "freshet") -> StateFolder:
    """A folder as a run would have left it."""
    made = StateFolder(folder)
    made.store(Manifest(7, prefix, {"redis": redis}))
    return made


def requested(folder: StateFolder) -> list[str]:
    journal = Journal(folder.journal)
    journal.refresh()
    return [request.user_id for request in journal.requests]


def test_a_deleted_user_is_unknown_at_once(look: Invoke, tmp_path: Path, redis_url: str, redis_connection: Any) -> None:
    folder = state(tmp_path / ".freshet", redis_url)
    result = look("delete-user", "ann", "nobody", "--json")
    answer = orjson.loads(result.stdout)
    assert result.exit_code == 0 and set(answer) == {"requests", "running", "redis"}
    assert set(answer["requests"]) == {"ann", "nobody"} and (answer["running"], answer["redis"]) == (False, True)
    assert requested(folder) == ["ann", "nobody"]
    assert look("user", "ann").exit_code == 3 and look("user", "bob").exit_code == 0
    assert redis_connection.hget("freshet:deleted", "ann") == b"%d *" % answer["requests"]["ann"]
    shown = look("delete-user", "bob").stdout
    assert shown == "bob: no longer in Redis; no job is running: they leave the state when the next run begins\n"
    with folder.locked():
        assert "the running job deletes them" in look("delete-user", "carl").stdout


def test_a_user_is_looked_up_and_deleted_by_the_key_of_the_state(
    invoke: Invoke, redis_url: str, redis_connection: Any, tmp_path: Path
) -> None:
    key = "0123456789abcdef"
    folder = state(tmp_path / ".freshet", redis_url)
    manifest = folder.load()
    assert manifest is not None
    under = f"one with the fingerprint {fingerprint(key.encode())}"
    folder.store(replace(manifest, fixed=manifest.fixed | {"ids.key": under}))
    known = hidden("ann", key.encode())
    redis_connection.hset(f"freshet:user:{known}", "seen", "[]")
    (tmp_path / "key").write_text(f"{key}\n")
    with_file = {"FRESHET_REDIS": redis_url, "FRESHET_IDS__KEY_FILE": str(tmp_path / "key")}
    for environment in (with_file, {"FRESHET_REDIS": redis_url, "FRESHET_IDS__KEY": key}):
        assert orjson.loads(invoke("user", "ann", "--json", **environment).stdout)["user_id"] == "ann"
    assert invoke("user", "ann", FRESHET_REDIS=redis_url).exit_code == 3
    for environment in ({}, {"FRESHET_IDS__KEY": "another" + key}):
        result = invoke("delete-user", "ann", FRESHET_REDIS=redis_url, **environment)
        assert result.exit_code == 2 and f"are hidden under {under}" in result.stderr and key not in result.output
    assert invoke("delete-user", "ann", **with_file).exit_code == 0
    assert requested(folder) == [known] and not redis_connection.exists(f"freshet:user:{known}")


@pytest.mark.parametrize("words", [("check",), ("user", "ann"), ("health",)])
def test_a_password_on_the_command_line_is_warned_of(words: tuple[str, ...], invoke: Invoke) -> None:
    result = invoke(*words, "--redis", "redis://:s3cret@127.0.0.1:1")
    assert result.exit_code == (0 if words == ("check",) else 1)
    assert "warning: --redis holds a password" in result.stderr and "s3cret" not in result.output
    for url in ("redis://:s3cret@127.0.0.1:1", "redis://app@127.0.0.1:1?password_file=/dev/null"):
        assert "warning" not in invoke(*words, FRESHET_REDIS=url).stderr
    assert "s3cret" not in invoke(*words, "--redis", "redis://:s3cret@[db").output  # no URL


def test_a_submission_is_refused_with_a_password_on_the_command_line(invoke: Invoke, tmp_path: Path) -> None:
    for words in (("--redis", "redis://:s3cret@db"), ("--set", "redis=redis://db?password=s3cret")):
        result = invoke("submit", *words, "--state-dir", str(tmp_path / "state"))
        assert result.exit_code == 2 and "on the command line of flink run, too" in result.stderr
        assert "s3cret" not in result.output and not (tmp_path / "state").exists()


def test_metrics_are_at_a_port(invoke: Invoke) -> None:
    assert "prometheus.port" in invoke("check", "--set", "prometheus.port=9249-9259").stdout
    for wrong in ("0", "70000", "9259-9249", "http"):
        result = invoke("check", "--set", f"prometheus.port={wrong}")
        assert result.exit_code == 2 and "write a port, 1 to 65535" in result.stderr


def test_a_deletion_is_noted_while_redis_is_away(invoke: Invoke, tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"redis://:s3cret@127.0.0.1:{closed.getsockname()[1]}"
    folder = state(tmp_path / ".freshet", without_password(url))
    result = invoke("delete-user", "ann", "--redis", url)
    assert result.exit_code == 1 and "Redis failed" in result.stderr and "the request is noted" in result.stderr
    assert requested(folder) == ["ann"] and result.stdout.startswith("ann: noted; ")
    assert "s3cret" not in result.output


def test_the_embedded_redis_is_started_for_a_deletion(invoke: Invoke, tmp_path: Path) -> None:
    state(tmp_path / ".freshet", "embedded")
    with embedded_redis(tmp_path / ".freshet" / "redis") as url:
        fill(url)
    assert invoke("delete-user", "ann").exit_code == 0
    assert invoke("user", "ann").exit_code == 3 and invoke("user", "bob").exit_code == 0


def test_a_deletion_needs_the_state_that_it_is_meant_for(invoke: Invoke, tmp_path: Path) -> None:
    result = invoke("delete-user", "ann")
    assert result.exit_code == 2 and "there is no state in .freshet" in result.stderr
    folder = state(tmp_path / ".freshet", "redis://db:6379", "movies")
    for arguments, message in (
        ((), "give --redis redis://db:6379"),
        (("--redis", "redis://db:6379"), "give --prefix movies"),
        (("--redis", "redis://db:6379", "--prefix", "movies", ""), "an ID is empty"),
    ):
        result = invoke("delete-user", "ann", *arguments)
        assert result.exit_code == 2 and message in result.stderr
    folder.journal.write_text("ann\n")
    result = invoke("delete-user", "ann", "--redis", "redis://db:6379", "--prefix", "movies")
    assert result.exit_code == 2 and "a line that is no request" in result.stderr
    assert invoke("delete-user").exit_code == 2


# ---------------------------------------------------------------------------------------------- check


def test_check_shows_every_setting_and_its_origin(invoke: Invoke, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").touch()
    (tmp_path / "f.toml").write_text("shards = 2\n")
    result = invoke(
        "check", "--config", "f.toml", "--source", "file:a.jsonl", "--set", "model.n_factors=3",
        "--field", "user_id=uid", "--model", "funk_mf", "--redis", "redis://:s3cret@db", FRESHET_PREFIX="env",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.stdout.splitlines()]
    assert lines[0] == ["input:", str(tmp_path / "a.jsonl"), "(jsonl)"]
    shown = {line[0]: (line[2], " ".join(line[3:])) for line in lines[1:]}
    assert shown["shards"] == ("2", "(f.toml)") and shown["prefix"] == ("env", "(environment)")
    assert shown["model.n_factors"] == ("3", "(--set)") and shown["model.name"] == ("funk_mf", "(flag)")
    assert shown["field.user_id"] == ("uid", "(flag)") and shown["redis"] == ("redis://:***@db", "(flag)")
    assert shown["checkpoint_interval"] == ("10s", "(default)")
    assert not (tmp_path / ".freshet").exists()


@pytest.mark.parametrize("command", ["check", "run"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--shards", "0"), "shards (from flag): '0' is not allowed"),
        (("--set", "sharts=1"), "sharts (from --set): there is no such setting"),
        (("--set", "shards"), "--set shards: write KEY=VALUE"),
        (("--field", "user_id"), "--field user_id: write NAME=COLUMN"),
        (("--model", "svd"), "'svd' is not a model"),
        (("--config", "absent.toml"), "--config absent.toml"),
        (("--source", "file:absent"), "there is no file or folder"),
        (("--source", "kafka:x"), "kafka.bootstrap_servers"),
        (("--source", "kafka:a b"), "write kafka:TOPIC"),
        (("--set", "kafka.properties.sasl.jaas.config=x"), "a secret on the command line"),
        (("--redis", "db:6379"), "write embedded, or a URL"),
    ],
)
def test_bad_settings_exit_with_2_before_anything_starts(
    invoke: Invoke, tmp_path: Path, command: str, arguments: tuple[str, ...], message: str
) -> None:
    result = invoke(command, *arguments)
    assert result.exit_code == 2 and message in result.stderr
    assert result.stderr.startswith("freshet: ") and "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_no_known_ending_needs_a_format(invoke: Invoke, tmp_path: Path) -> None:
    (tmp_path / "events.log").touch()
    result = invoke("check", "--source", "file:events.log")
    assert result.exit_code == 2 and "say which it is with --format" in result.stderr
    result = invoke("check", "--source", "file:events.log", "--format", "csv")
    assert result.exit_code == 0 and "events.log (csv)" in result.stdout


def test_a_prefix_that_belongs_to_another_state_is_not_overwritten(
    invoke: Invoke, redis_url: str, redis_connection: Any
) -> None:
    fill(redis_url)
    Publisher(redis_url, "freshet").ledger({"epoch": 7})
    result = invoke("run", "--redis", redis_url, "--state-dir", "other")
    assert result.exit_code == 2 and "knows nothing of" in result.stderr and "--fresh" in result.stderr


def test_health_tells_by_its_exit_code(invoke: Invoke, redis_url: str, redis_connection: Any, tmp_path: Path) -> None:
    arguments = ["health", "--redis", redis_url, "--state-dir", str(tmp_path / "none")]
    result = invoke(*arguments)
    assert result.exit_code == 1 and "no job has written" in result.stderr
    publisher = Publisher(redis_url, "freshet")
    publisher.ledger({"counts": b"{}"})
    publisher.alive(0)
    result = invoke(*arguments, "--json")
    found = orjson.loads(result.stdout)
    assert result.exit_code == 0 and found["healthy"] and set(found["ages"]) == {"intake", "shard 0", "published"}
    result = invoke(*arguments, "--max-age", "soon")
    assert result.exit_code == 2 and "is not a span" in result.stderr


def test_version_and_help(invoke: Invoke) -> None:
    assert invoke("--version").stdout.startswith("freshet, version ")
    for command in ("run", "check", "reshard", "user", "item", "recommend", "similar", "delete-user"):
        assert invoke(command, "-h").exit_code == 0
        assert command in invoke("-h").stdout
