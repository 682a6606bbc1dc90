"""Kafka, asked through the client that the connector carries, in the JVM of this process; and the tables of topics."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

from flink_jobs.sections import KafkaSettings
from flink_jobs.settings import Resolved, SettingsError
from udfs.reading import InputError

CONNECTOR: Final = "flink-sql-connector-kafka-5.0.0-2.2.jar"
_FETCHED: Final = Path(__file__).resolve().parents[1] / "deploy" / "kafka" / "jars" / CONNECTOR
_SHADED: Final = "org.apache.flink.kafka.shaded.org.apache.kafka"
_KAFKAS: Final = re.compile(r"(?<![\w.])org\.apache\.kafka\.")
_ASK_MS: Final = 20_000
_POLL_MS: Final = 500
_LOADERS: Final[dict[Path, Any]] = {}  # of this process's JVM


def connector(settings: KafkaSettings) -> Path:
    """The jar of Flink's Kafka connector.

    Raises
    ------
    SettingsError
        If it is not there.
    """
    jar = settings.connector or _FETCHED
    if not jar.is_file():
        raise SettingsError(
            f"kafka.connector: there is no {jar}: fetch it with `make kafka` in freshet's source folder, and give its "
            f"place if that is elsewhere (--set kafka.connector=PATH/{CONNECTOR})"
        )
    return jar.resolve()


def client_package(jar: Path) -> Any:
    """The package of Kafka's client, in the JVM that PyFlink talks to."""
    from pyflink.java_gateway import get_gateway

    gateway = get_gateway()
    if jar not in _LOADERS:
        urls = gateway.new_array(gateway.jvm.java.net.URL, 1)
        urls[0] = gateway.jvm.java.net.URL(jar.as_uri())
        _LOADERS[jar] = gateway.jvm.java.net.URLClassLoader(urls, gateway.jvm.ClassLoader.getSystemClassLoader())
    # A thread of Python may have another of Java's each time. PyFlink would give each a loader of its own, but py4j
    # remembers methods by the names of their classes: it takes those of one loader for those of another.
    gateway.jvm.Thread.currentThread().setContextClassLoader(_LOADERS[jar])
    package: Any = gateway.jvm
    for name in _SHADED.split("."):
        package = getattr(package, name)
    return package


def client_properties(settings: KafkaSettings) -> dict[str, str]:
    """What any client of the cluster is configured with; it may hold secrets.

    Raises
    ------
    SettingsError
        If a file can't be read.
    """
    assert settings.bootstrap_servers is not None
    properties = {} if settings.properties_file is None else _properties_file(settings.properties_file)
    own = {"bootstrap.servers": settings.bootstrap_servers}
    # The connector has Kafka's classes under names of its own.
    given = {name: _KAFKAS.sub(f"{_SHADED}.", value) for name, value in (properties | settings.properties).items()}
    return given | own


def _properties_file(path: Path) -> dict[str, str]:
    """A file of Java properties, as Kafka's own tools take it: read by Java itself."""
    from pyflink.java_gateway import get_gateway

    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"kafka.properties_file: {path} can't be read: {error}") from error
    java = get_gateway().jvm.java
    properties = java.util.Properties()
    properties.load(java.io.StringReader(text))
    return {str(name): str(properties.getProperty(name)) for name in properties.stringPropertyNames()}


@dataclass(frozen=True)
class Topic:
    """A topic, as it was found when a run began.

    Attributes
    ----------
    starts
        By the numbers of its partitions, the offsets where a state that is new begins. They are fixed before the job is
        submitted: a restart before the first checkpoint begins there, too.
    """

    name: str
    starts: Mapping[int, int]

    @property
    def partitions(self) -> tuple[str, ...]:
        """The names of its partitions, as Kafka writes them."""
        return tuple(f"{self.name}-{number}" for number in sorted(self.starts))


@dataclass(frozen=True)
class Kafka:
    """What a job has of Kafka: the connector's jar, what clients are configured with, and the topics.

    Attributes
    ----------
    group
        The consumer group.
    source, letters, items
        The topics of events, of dead letters and of the catalogue, as far as there are such.
    """

    jar: Path
    properties: Mapping[str, str]
    group: str
    letters: str | None
    items: str | None
    source: Topic | None = None

    def reading(self, topic: str, starts: Mapping[int, int]) -> Kafka:
        """The same, with the topic of events."""
        return replace(self, source=Topic(topic, starts))


def kafka_of(resolved: Resolved) -> Kafka | None:
    """What a job has of Kafka by its settings, without the topic of events; None if it has nothing.

    Raises
    ------
    SettingsError
        If there is no connector.
    """
    if not resolved.topics:
        return None
    settings = resolved.settings
    group = settings.kafka.group or f"freshet-{settings.prefix}"
    jar = connector(settings.kafka)
    return Kafka(jar, client_properties(settings.kafka), group, resolved.letter_topic, resolved.item_topic)


def find_kafka(resolved: Resolved) -> Kafka | None:
    """The topics of a job, asked for at their cluster; None if it has none. The JVM must be ready to start.

    Raises
    ------
    SettingsError
        If there is no connector, or no client can be made.
    InputError
        If the cluster does not answer, or does not have a topic.
    """
    kafka = kafka_of(resolved)
    if kafka is None:
        return None
    cluster, topic = _Cluster(kafka.jar, kafka.properties), resolved.topic
    if topic is not None:
        kafka = kafka.reading(topic, cluster.starts(topic, resolved.settings.kafka.start, kafka.group))
    for other in (kafka.letters, kafka.items):
        if other is not None:
            cluster.partitions(other)
    return kafka


def first_values(kafka: Kafka, most: int) -> Generator[list[bytes]]:
    """Records of the topic of events, as they come: of each partition from where a new state begins, or those before
    that it takes to have ``most``.

    Raises
    ------
    SettingsError
        If no client can be made.
    InputError
        If the cluster does not give them.
    """
    assert kafka.source is not None
    return _Cluster(kafka.jar, kafka.properties).values(kafka.source, most)


class _Cluster:
    """Questions to a cluster."""

    def __init__(self, jar: Path, properties: Mapping[str, str]) -> None:
        from pyflink.java_gateway import get_gateway

        self._java = get_gateway().jvm.java
        self._kafka = client_package(jar)
        self._properties = properties

    @contextlib.contextmanager
    def _client(self, about: str, kind: Literal["admin", "consumer"] = "admin") -> Iterator[Any]:
        from py4j.protocol import Py4JJavaError

        config = self._java.util.Properties()
        # Less than the client's own: who waits is a person.
        timeouts = {"request.timeout.ms": str(_ASK_MS // 2), "default.api.timeout.ms": str(_ASK_MS)}
        as_bytes = f"{_SHADED}.common.serialization.ByteArrayDeserializer"
        reading = {
            "key.deserializer": as_bytes,
            "value.deserializer": as_bytes,
            "isolation.level": "read_committed",
            "enable.auto.commit": "false",  # also where a file of properties names a group
        }
        for name, value in (timeouts | dict(self._properties) | (reading if kind == "consumer" else {})).items():
            config.setProperty(name, value)
        servers = self._properties["bootstrap.servers"]
        try:
            clients = self._kafka.clients
            client = clients.admin.Admin.create(config) if kind == "admin" else clients.consumer.KafkaConsumer(config)
        except Py4JJavaError as error:
            raise SettingsError(f"kafka: no client can be made with these settings: {_cause(error)}") from None
        try:
            yield client
        except Py4JJavaError as error:
            raise InputError(f"Kafka at {servers} {about}: {_cause(error)}") from None
        finally:
            client.close()

    def partitions(self, topic: str) -> list[int]:
        """The numbers of a topic's partitions."""
        with self._client(f"has no usable topic {topic!r} (create it, or name another)") as client:
            names = self._java.util.Collections.singletonList(topic)
            found = client.describeTopics(names).allTopicNames().get().get(topic).partitions()
            return [int(partition.partition()) for partition in found]

    def starts(self, topic: str, start: str, group: str) -> dict[int, int]:
        numbers = self.partitions(topic)
        with self._client(f"does not tell the offsets of {topic!r}") as client:
            earliest = self._offsets(client, topic, numbers, "earliest")
            if start == "earliest":
                return earliest
            if start == "group":
                return earliest | self._committed(client, topic, numbers, group)
            latest = self._offsets(client, topic, numbers, "latest")
            if start == "latest":
                return latest
            at = self._offsets(client, topic, numbers, start)
            return {number: latest[number] if at[number] < 0 else at[number] for number in numbers}

    def values(self, topic: Topic, most: int) -> Generator[list[bytes]]:
        with self._client(f"does not give the records of {topic.name!r}", "consumer") as client:
            places = self._java.util.ArrayList()
            for number in topic.starts:
                places.add(self._kafka.common.TopicPartition(topic.name, number))
            client.assign(places)
            firsts, ends = client.beginningOffsets(places), client.endOffsets(places)
            for place in places:
                start = min(topic.starts[place.partition()], ends[place] - most)
                client.seek(place, max(firsts[place], start))
            until = time.monotonic() + _ASK_MS / 1_000
            while time.monotonic() < until and any(client.position(place) < ends[place] for place in places):
                records = client.poll(self._java.time.Duration.ofMillis(_POLL_MS)).iterator()
                yield [value for record in records if (value := record.value()) is not None]

    def _offsets(self, client: Any, topic: str, numbers: list[int], of: str) -> dict[int, int]:
        spec = self._kafka.clients.admin.OffsetSpec
        wanted = spec.earliest() if of == "earliest" else spec.latest() if of == "latest" else None
        if wanted is None:
            wanted = spec.forTimestamp(start_ms(of))
        question, place = self._java.util.HashMap(), self._kafka.common.TopicPartition
        for number in numbers:
            question.put(place(topic, number), wanted)
        answer = client.listOffsets(question).all().get()
        return {number: int(answer.get(place(topic, number)).offset()) for number in numbers}

    def _committed(self, client: Any, topic: str, numbers: list[int], group: str) -> dict[int, int]:
        answer = client.listConsumerGroupOffsets(group).partitionsToOffsetAndMetadata().get()
        places = {number: answer.get(self._kafka.common.TopicPartition(topic, number)) for number in numbers}
        return {number: int(place.offset()) for number, place in places.items() if place is not None}


def start_ms(text: str) -> int:
    """A moment as settings write it, in milliseconds.

    >>> start_ms("2024-01-01T00:00:00Z"), start_ms("2024-01-01"), start_ms("1704067200000")
    (1704067200000, 1704067200000, 1704067200000)
    """
    if text.isdecimal():
        return int(text)
    moment = datetime.fromisoformat(text)
    return round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1_000)


def _cause(error: Any) -> str:
    """What went wrong, without the names of Java's classes and never with the client's configuration."""
    java = error.java_exception
    while java.getCause() is not None:
        java = java.getCause()
    return re.sub(r"^[\w.$]+(?:Exception|Error): ", "", str(java.getMessage() or java.getClass().getSimpleName()))
