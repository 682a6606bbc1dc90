"""Settings of Kafka that only a broker can judge: where a run starts, what it finds, and how it is let in."""

from __future__ import annotations

import io
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from flink_jobs.kafka import find_kafka
from flink_jobs.runner import run
from flink_jobs.settings import Layer, Resolved, SettingsError, resolve
from tests.flink.harness import balanced
from tests.kafka.broker import Broker, KafkaClient, Record
from tests.kafka.test_topics import TopicRun, connection, rating, topic_settings
from udfs.reading import InputError

__all__ = ["connection"]


def settings_of(servers: str, **more: Any) -> Resolved:
    return resolve([Layer("test", {"source": "kafka:starts", "kafka.bootstrap_servers": servers, **more})])


def starts(servers: str, **more: Any) -> dict[int, int]:
    found = find_kafka(settings_of(servers, **more))
    assert found is not None and found.source is not None
    return dict(found.source.starts)


def test_a_new_state_begins_where_it_is_told_to(broker: Broker, kafka: KafkaClient) -> None:
    moment = int(time.time() * 1_000)
    kafka.create("starts", 2)
    kafka.send("starts", [Record(b"{}", partition=0, timestamp=moment + k * 1_000) for k in range(5)])
    kafka.send("starts", [Record(b"{}", partition=1, timestamp=moment)])
    assert starts(broker.servers) == {0: 0, 1: 0}
    assert starts(broker.servers, **{"kafka.start": "latest"}) == {0: 5, 1: 1}
    # A partition that has nothing so new: what comes next.
    assert starts(broker.servers, **{"kafka.start": str(moment + 2_500)}) == {0: 3, 1: 1}
    assert starts(broker.servers, **{"kafka.start": "2001-09-09"}) == {0: 0, 1: 0}
    kafka.commit("reading", "starts", {0: 4})
    assert starts(broker.servers, **{"kafka.start": "group", "kafka.group": "reading"}) == {0: 4, 1: 0}


def test_what_is_not_there_is_named(broker: Broker, jars: Path) -> None:
    with pytest.raises(InputError, match=r"has no usable topic 'absent' \(create it, or name another\)"):
        find_kafka(settings_of(broker.servers, source="kafka:absent"))
    with pytest.raises(InputError, match="has no usable topic 'absent'"):
        find_kafka(settings_of(broker.servers, source="generator", dead_letters="kafka:absent"))
    with pytest.raises(SettingsError, match=r"no client can be made .* No resolvable bootstrap urls"):
        find_kafka(settings_of("no.such.host.invalid:9092"))
    with pytest.raises(SettingsError, match=r"no /nowhere.jar: fetch it with `make kafka`"):
        find_kafka(settings_of(broker.servers, **{"kafka.connector": "/nowhere.jar"}))


def test_partitions_that_come_later_are_found_and_idle_ones_hold_nothing(
    tmp_path: Path, broker: Broker, kafka: KafkaClient, connection: Any
) -> None:
    kafka.create("growing", 2)
    kafka.send("growing", [Record(rating(k), partition=0) for k in range(100)])
    settings = topic_settings(
        broker, "growing", time="event", **{"kafka.idle_after": "2s", "kafka.discovery_interval": "1s"}
    )
    job = TopicRun(tmp_path / "state", settings)
    # The second partition has nothing: what is ready is learned all the same, and all of it when both are idle.
    job.until(connection, learned=90)
    kafka.grow("growing", 3)
    kafka.send("growing", [Record(rating(1_000 + k), partition=2) for k in range(100)])
    summary = job.stopped_at(connection, read=200, learned=190)
    assert balanced(summary["events"]) and summary["events"]["late"] == 0


def test_a_secured_broker_is_read_and_the_secret_is_seen_nowhere(
    tmp_path: Path, broker: Broker, kafka: KafkaClient, connection: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    kafka.create("secured")
    kafka.create("secured-letters")
    kafka.send("secured", [*(Record(rating(k)) for k in range(50)), Record(b"poison")])
    secrets = tmp_path / "client.properties"
    login = "org.apache.kafka.common.security.plain.PlainLoginModule required"
    secrets.write_text(
        f'sasl.jaas.config={login} username="app" password="{broker.password}";\n'
        f"ssl.truststore.location={broker.certificate}\n"
    )
    settings = {
        **topic_settings(broker, "secured", dead_letters="kafka:secured-letters"),
        "kafka.bootstrap_servers": broker.secured,
        "kafka.properties_file": str(secrets),
        "kafka.properties.security.protocol": "SASL_SSL",
        "kafka.properties.sasl.mechanism": "PLAIN",
        "kafka.properties.ssl.truststore.type": "PEM",
    }
    summary = TopicRun(tmp_path / "state", settings).stopped_at(connection, read=51, learned=50)
    assert balanced(summary["events"])
    assert [letter.value for letter in kafka.read("secured-letters")] == [b"poison"]

    # Given otherwise, and wrong: refused, with nothing of it in the message.
    wrong = f'{login} username="app" password="{broker.password}-wrong";'
    given = {name: value for name, value in settings.items() if name != "kafka.properties_file"} | {
        "kafka.properties.sasl.jaas.config": wrong,
        "kafka.properties.ssl.truststore.location": str(broker.certificate),
        "state_dir": str(tmp_path / "other"),
    }
    refused = resolve([Layer("environment", given)])
    output = io.StringIO()
    with pytest.raises(InputError, match="Authentication failed") as caught:
        run(refused, Console(file=output), interrupted=threading.Event())
    seen = [str(caught.value), output.getvalue(), str(refused.rows()), str(summary)]
    assert not [text for text in seen if broker.password in text]
    files = [file for folder in (tmp_path / "state", tmp_path_factory.getbasetemp()) for file in folder.rglob("*")]
    own = {secrets, *broker.folder.rglob("*")}
    leaks = [
        file for file in files if file.is_file() and file not in own and broker.password.encode() in file.read_bytes()
    ]
    assert not leaks
