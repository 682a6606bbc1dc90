"""One run as it is operated: metrics, JSON logs, Redis over TLS, ids under a key, and secrets that nothing shows."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from flink_jobs.cli import cli
from serving import Client
from serving.connection import connect
from serving.identity import hidden
from tests.flink.harness import balanced, dead_letters
from tests.secured import Secured, secured_redis
from udfs.telemetry import BEATEN, FLINK, METRICS, SCALE, Metric

ROOT = Path(__file__).parents[2]
PASSWORDS = {"freshet-writer": "redis-canary-7c1f4e", "freshet-reader": "reader-canary-b2d9"}
KEY = "id-canary-5f3a9d27c0e84b16"
OTHER = "kafka-canary-91ae"
CANARIES = (*PASSWORDS.values(), KEY, OTHER)
EVENTS = 4_000


@dataclass(frozen=True)
class Operated:
    """A run that has ended, and what was seen of it before.

    Attributes
    ----------
    printed
        What the command has printed.
    scraped
        Its metrics, as Prometheus reads them, when all was learned.
    pages
        Of Flink's REST.
    listening
        Addresses and ports that its processes listened at; ``rest`` is that of Flink's REST.
    """

    server: Secured
    state: Path
    port: int
    summary: dict[str, Any]
    printed: str
    scraped: str
    pages: dict[str, str]
    listening: list[tuple[str, int]]
    rest: int

    def series(self, metric: Metric | str) -> list[tuple[dict[str, str], float]]:
        """The labels and the values of a metric."""
        name = metric if isinstance(metric, str) else metric.prometheus
        found = re.findall(rf"^{re.escape(name)}\{{(.*)\}} (\S+)$", self.scraped, re.MULTILINE)
        return [(dict(re.findall(r'(\w+)="([^"]*)"', labels)), float(value)) for labels, value in found]

    def total(self, name: str, **labels: str) -> float:
        [metric] = [metric for metric in METRICS if metric.name == name]
        return sum(value for of, value in self.series(metric) if labels.items() <= of.items())

    @property
    def logs(self) -> dict[str, str]:
        return {str(path): path.read_text() for path in (self.state / "log").glob("*")}


@pytest.fixture(scope="module")
def operated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operated]:
    folder = tmp_path_factory.mktemp("operated")
    (folder / "ids.key").write_text(KEY + "\n")
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    state, summary = folder / "state", folder / "summary.json"
    settings = {
        "generator.events": EVENTS,
        "generator.malformed": 0.05,
        "generator.late": 0.05,
        "checkpoint_interval": "1s",
        "prometheus.port": port,
        "model.n_factors": 4,
        "logs": "json",
    }
    arguments = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    arguments += ["--state-dir", str(state), "--shards", "2", "--summary", str(summary)]
    with secured_redis(folder / "redis", PASSWORDS) as server:
        own = {
            name: value for name, value in os.environ.items() if not name.startswith(("FRESHET_", "FLINK_", "LOG4J"))
        }
        secrets = {
            # Both ways: the password in a file, and one in a variable.
            "FRESHET_REDIS": server.url("freshet-writer"),
            "FRESHET_IDS__KEY_FILE": str(folder / "ids.key"),
            "FRESHET_KAFKA__PROPERTIES__SASL__JAAS__CONFIG": OTHER,
        }
        command = [sys.executable, "-m", "tests.flink.operated", str(folder), *arguments]
        ended = subprocess.run(
            command, cwd=ROOT, env={**own, **secrets}, capture_output=True, text=True, timeout=280, check=False
        )
        printed = ended.stdout + ended.stderr
        assert ended.returncode == 0, printed
        seen = json.loads((folder / "seen.json").read_text())
        yield Operated(server, state, port, json.loads(summary.read_text()), printed, **seen)


def test_metrics_are_the_ledger_of_the_run(operated: Operated) -> None:
    events = operated.summary["events"]
    assert balanced(events) and events["learned"] > 0.8 * EVENTS
    assert min(events["rejected"], events["late"], events["duplicate"]) > 0
    counted = {name: operated.total(name) for name in ("read", "learned", "rejected", "late", "duplicate")}
    assert counted == {name: events[name] for name in counted}
    by_reason = {
        of["reason"]: n for of, n in operated.series("flink_taskmanager_job_task_operator_freshet_reason_rejected")
    }
    assert {reason: n for reason, n in by_reason.items() if n} == operated.summary["rejected"]
    assert operated.total("waiting") == 0 and operated.total("tile_late") == operated.summary["tile_late"]
    # One element carries many events: nothing is counted for each.
    assert operated.total("batch_events_sum") == events["learned"] + by_reason.get("diverged", 0)
    assert 0 < operated.total("batch_events_count") == operated.total("batch_events_bucket", le="+Inf") < 100


def test_metrics_tell_the_model(operated: Operated) -> None:
    client = Client(operated.server.url("freshet-reader"))
    header = client.header(0)
    assert header is not None and header.shards == 2
    assert operated.total("rows", family="user") == operated.summary["published"]["users"]
    redis = connect(operated.server.url("freshet-reader"))
    for shard in ("0", "1"):
        summary = json.loads(redis.hget(f"freshet:model:{shard}", "summary"))
        assert operated.total("rows", shard=shard, family="item") == summary["items"]
        for name in ("mae", "rmse"):
            assert operated.total("score_micros", shard=shard, metric=name) == round(summary["metrics"][name] * SCALE)
        assert operated.total("event_lag_ms", shard=shard) > 0


def test_metrics_tell_what_was_published(operated: Operated) -> None:
    assert (
        0 < operated.total("published") <= operated.summary["published"]["writes"]
    )  # windows that were open come later
    writes = operated.total("publish_ms_count", operator_name="learn")
    assert writes == operated.total("publish_ms_bucket", operator_name="learn", le="+Inf") > 0
    assert operated.total("redis_retries") == operated.total("replayed") == 0
    assert operated.total("redis_retries", operator_name="read generator") == 0
    for operator in ("intake", "learn", "publish tiles"):
        assert operated.total("elements", operator_name=operator) > 0


def test_every_metric_is_scraped_with_its_labels_and_no_other(operated: Operated) -> None:
    told = [metric for metric in METRICS if metric is not BEATEN]  # which is of a blend
    for metric in told:
        series = operated.series(metric)
        assert series, metric.name
        assert all(set(metric.labels) <= of.keys() for of, _ in series)
    scraped = set(re.findall(r"^(flink_\w*_freshet_\w+)\{", operated.scraped, re.MULTILINE))
    assert scraped == {metric.prometheus for metric in told}
    assert all(operated.series(name) for name in FLINK)


def test_what_listens_beyond_loopback_is_what_the_docs_say(operated: Operated) -> None:
    loopback = {port for ip, port in operated.listening if ip.removeprefix("::ffff:").startswith(("127.", "::1"))}
    others = {port for _, port in operated.listening} - loopback
    assert operated.rest in loopback and operated.port in others
    # Beam's servers, six for each of four operators in Python: nothing tells them to listen elsewhere.
    assert len(others) <= 1 + 6 * 4


def test_no_canary_is_shown(operated: Operated) -> None:
    assert "execution.checkpointing.interval" in operated.pages["jobmanager/config"]
    assert sum(map(len, operated.logs.values())) > 10_000
    shown = {**operated.logs, **operated.pages, "printed": operated.printed, "metrics": operated.scraped}
    shown["summary"] = json.dumps(operated.summary)
    shown |= {str(path): path.read_text() for path in operated.state.glob("*.json")}
    found = [(place, canary) for place, text in shown.items() for canary in CANARIES if canary in text]
    assert not found


@pytest.mark.parametrize(
    "environment",
    [
        {"FRESHET_IDS__KEY": KEY, "FRESHET_REDIS": f"redis://:{OTHER}@db"},
        {"FRESHET_REDIS": f"redis://db?password={OTHER}", "FRESHET_FLINK__S3__SECRET_KEY": OTHER},
        {"FRESHET_REDIS": f"http://:{OTHER}@db"},
        {"FRESHET_REDIS": f"redis://:{OTHER}@[db"},
        {"FRESHET_IDS": KEY},
        {"FRESHET_IDS__KEY": "short-canary"},
        {"FRESHET_IDS__KEY": KEY, "FRESHET_IDS__KEY_FILE": "/dev/null"},
    ],
)
def test_check_shows_no_canary(environment: dict[str, str], tmp_path: Path) -> None:
    empty = tmp_path / "settings.toml"
    empty.write_text("")
    clean = {name: None for name in os.environ if name.startswith("FRESHET_")}
    result = CliRunner().invoke(cli, ["check", "--config", str(empty)], env={**clean, **environment})
    assert isinstance(result.exception, SystemExit | None)
    assert result.output.strip()
    assert not [canary for canary in (*CANARIES, "short-canary") if canary in result.output]


@pytest.mark.parametrize("name", ["ids.key", "kafka.properties.sasl.jaas.config", "flink.s3.secret-key"])
def test_secrets_are_refused_as_flags(name: str) -> None:
    result = CliRunner().invoke(cli, ["check", "--set", f"{name}={OTHER}{OTHER}"])
    assert result.exit_code == 2 and "a secret on the command line" in result.output
    assert OTHER not in result.output


def test_users_go_by_hidden_ids(operated: Operated) -> None:
    redis = connect(operated.server.url("freshet-writer"))
    keys = {key.decode() for key in redis.scan_iter(match="freshet:user:*", count=5_000)}
    assert len(keys) == operated.summary["published"]["users"] > 100
    assert all(re.fullmatch("freshet:user:[0-9a-f]{32}", key) for key in keys)
    users = {f"u{n}": f"freshet:user:{hidden(f'u{n}', KEY.encode())}" for n in range(5_000)}
    assert keys <= set(users.values())
    user = next(user for user, key in users.items() if key in keys)
    assert Client(operated.server.url("freshet-reader")).user(user) is None
    found = Client(operated.server.url("freshet-reader"), id_key=KEY.encode()).user(user)
    assert found is not None and found.user_id == user and found.learned is not None and found.learned.count > 0
    assert "freshet user ID --redis" in operated.printed


def test_logs_are_json_and_name_the_positions_of_dead_letters_only(operated: Operated) -> None:
    entries = [json.loads(line) for text in operated.logs.values() for line in text.splitlines()]
    assert len(entries) > 50 and all(entry["@timestamp"] and entry["message"] for entry in entries)
    told = [entry["message"] for entry in entries if " so far, the last at " in entry["message"]]
    letters = dead_letters(operated.state / "dead-letters")
    reasons = {letter["reason"] for letter in letters}
    for reason in reasons:
        first = next(letter["position"]["index"] for letter in letters if letter["reason"] == reason)
        assert any(f"{reason}: 1 so far, the last at source generator, index {first}" in line for line in told)
    assert len(told) < 4 * len(reasons)
    for entry in entries:
        assert not re.search(r"user_id|\bu\d+\b", entry["message"]), entry
