"""A real Kafka broker of one node on loopback, and a client for tests: the connector's own, in the JVM of the test."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from flink_jobs.flink import find_java
from flink_jobs.kafka import client_package

_START_SECONDS: Final = 60
_STOP_SECONDS: Final = 30


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Broker:
    """A process that can be killed and started again on its data.

    Parameters
    ----------
    folder
        Of its data, its properties and its output.
    jars
        The folder with the broker's jars.

    Attributes
    ----------
    servers, secured
        Where it listens: to everyone, and over TLS to who knows :attr:`password`.
    certificate
        What a client of the second must trust, as PEM.
    """

    password = "canary-7f3a91"

    def __init__(self, folder: Path, jars: Path) -> None:
        self.folder = folder
        self._jars = jars
        self._port, self._controller, secured = free_port(), free_port(), free_port()
        self.servers, self.secured = f"127.0.0.1:{self._port}", f"127.0.0.1:{secured}"
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True)
        own = {
            "process.roles": "broker,controller",
            "node.id": "1",
            "controller.quorum.voters": f"1@127.0.0.1:{self._controller}",
            "listeners": f"PLAINTEXT://{self.servers},SASL_SSL://{self.secured},CONTROLLER://127.0.0.1:{self._controller}",
            "advertised.listeners": f"PLAINTEXT://{self.servers},SASL_SSL://{self.secured}",
            "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SASL_SSL:SASL_SSL",
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": "PLAINTEXT",
            "log.dirs": str(folder / "data"),
            "offsets.topic.replication.factor": "1",
            "offsets.topic.num.partitions": "1",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            "transaction.state.log.num.partitions": "1",
            "share.coordinator.state.topic.replication.factor": "1",
            "share.coordinator.state.topic.min.isr": "1",
            "group.initial.rebalance.delay.ms": "0",
            "auto.create.topics.enable": "false",
            "num.network.threads": "2",
            "num.io.threads": "2",
        }
        own |= self._security()
        self._settings = folder / "server.properties"
        self._settings.write_text("".join(f"{name}={value}\n" for name, value in own.items()))
        cluster = uuid.uuid4().hex[:22]
        self._java("kafka.tools.StorageTool", "format", "-t", cluster, "-c", str(self._settings)).wait(_START_SECONDS)

    def _java(self, *command: str) -> subprocess.Popen[bytes]:
        java = Path(find_java()) / "bin" / "java"
        with (self.folder / "output.log").open("ab") as output:
            return subprocess.Popen(
                # Its own group: a Ctrl-C at the tests must not end it before them.
                [str(java), "-Xmx400m", "-XX:+UseSerialGC", "-cp", f"{self._jars}/*", *command],
                stdout=output,
                stderr=output,
                start_new_session=True,
                env={**os.environ, "JAVA_TOOL_OPTIONS": ""},
            )

    def _security(self) -> dict[str, str]:
        store = self.folder / "keys.p12"
        keytool = [str(Path(find_java()) / "bin" / "keytool"), "-keystore", str(store), "-storepass", "changeit"]
        subject = ["-dname", "CN=broker", "-ext", "SAN=ip:127.0.0.1", "-keyalg", "RSA", "-validity", "2"]
        self.certificate = self.folder / "certificate.pem"
        subprocess.run([*keytool, "-genkeypair", "-alias", "broker", *subject], check=True, capture_output=True)
        exported = ["-exportcert", "-alias", "broker", "-rfc", "-file", str(self.certificate)]
        subprocess.run([*keytool, *exported], check=True, capture_output=True)
        return {
            "ssl.keystore.location": str(store),
            "ssl.keystore.type": "PKCS12",
            "ssl.keystore.password": "changeit",
            "sasl.enabled.mechanisms": "PLAIN",
            "listener.name.sasl_ssl.plain.sasl.jaas.config": (
                f'org.apache.kafka.common.security.plain.PlainLoginModule required user_app="{self.password}";'
            ),
        }

    def start(self) -> None:
        self._process = self._java("kafka.Kafka", str(self._settings))
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                break
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._port), timeout=1):
                return
            time.sleep(0.1)
        self.kill()
        raise RuntimeError(f"the broker did not start: {(self.folder / 'output.log').read_text()[-2_000:]}")

    def kill(self) -> None:
        """As a power cut would."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(number)
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@dataclass(frozen=True)
class Record:
    """What is sent and what comes back. ``headers`` in their order."""

    value: bytes | None
    key: bytes | None = None
    headers: Sequence[tuple[str, bytes | None]] = ()
    partition: int | None = None
    timestamp: int | None = None
    offset: int = -1


class KafkaClient:
    """Topics, sending and reading, through the client that the connector carries."""

    def __init__(self, connector: Path, properties: Mapping[str, str]) -> None:
        self._connector = connector
        self._properties = dict(properties)

    @property
    def _jvm(self) -> Any:
        """Asked for anew each time: where a thread of Python has another of Java's, that one does not know the jar."""
        return client_package(self._connector)

    def _config(self, **more: str) -> Any:
        from pyflink.java_gateway import get_gateway

        config = get_gateway().jvm.java.util.Properties()
        for name, value in {**self._properties, **{k.replace("_", "."): v for k, v in more.items()}}.items():
            config.setProperty(name, value)
        return config

    def create(self, topic: str, partitions: int = 1, **configs: str) -> None:
        """Creates a topic, and waits until each partition has a leader: what is sent before may be refused for good."""
        from pyflink.java_gateway import get_gateway

        java = get_gateway().jvm.java.util
        jvm = self._jvm
        new = jvm.clients.admin.NewTopic(topic, partitions, 1)
        new.configs(java.HashMap({k.replace("_", "."): v for k, v in configs.items()}))
        with self._admin(jvm) as admin:
            admin.createTopics(java.Collections.singleton(new)).all().get()
            wanted = java.HashMap()
            for partition in range(partitions):
                wanted.put(jvm.common.TopicPartition(topic, partition), jvm.clients.admin.OffsetSpec.latest())
            self._until_known(lambda: admin.listOffsets(wanted).all().get())

    @staticmethod
    def _until_known(ask: Callable[[], object]) -> None:
        """The controller has made the topic; the broker, on a busy machine, may hear of it later."""
        from py4j.protocol import Py4JJavaError

        end = time.monotonic() + _START_SECONDS
        while True:
            try:
                ask()
                return
            except Py4JJavaError as error:
                if "UnknownTopicOrPartitionException" not in str(error) or time.monotonic() > end:
                    raise
            time.sleep(0.1)

    def grow(self, topic: str, partitions: int) -> None:
        from pyflink.java_gateway import get_gateway

        java = get_gateway().jvm.java.util
        jvm = self._jvm
        more = jvm.clients.admin.NewPartitions.increaseTo(partitions)
        with self._admin(jvm) as admin:
            admin.createPartitions(java.Collections.singletonMap(topic, more)).all().get()

    def commit(self, group: str, topic: str, offsets: Mapping[int, int]) -> None:
        """As a consumer group would."""
        from pyflink.java_gateway import get_gateway

        jvm, places = self._jvm, get_gateway().jvm.java.util.HashMap()
        for partition, offset in offsets.items():
            place = jvm.clients.consumer.OffsetAndMetadata(offset)
            places.put(jvm.common.TopicPartition(topic, partition), place)
        with self._admin(jvm) as admin:
            admin.alterConsumerGroupOffsets(group, places).all().get()

    @contextlib.contextmanager
    def _admin(self, jvm: Any) -> Iterator[Any]:
        admin = jvm.clients.admin.Admin.create(self._config())
        try:
            yield admin
        finally:
            admin.close()

    def send(self, topic: str, records: Sequence[Record]) -> None:
        """Sends records in their order, and waits for the broker to have them; raises where it has not taken one."""
        serializer = "org.apache.flink.kafka.shaded.org.apache.kafka.common.serialization.ByteArraySerializer"
        config = self._config(
            key_serializer=serializer, value_serializer=serializer, acks="all", linger_ms="20", batch_size="200000"
        )
        jvm = self._jvm
        producer = jvm.clients.producer.KafkaProducer(config)
        answers = []
        try:
            for record in records:
                sent = jvm.clients.producer.ProducerRecord(
                    topic, record.partition, record.timestamp, record.key, record.value
                )
                for name, value in record.headers:
                    sent.headers().add(name, value)
                answers.append(producer.send(sent))
            producer.flush()
            for answer in answers:
                answer.get()
        finally:
            producer.close()

    def read(self, topic: str, partition: int = 0) -> list[Record]:
        """All that a partition holds by now."""
        from pyflink.java_gateway import get_gateway

        java = get_gateway().jvm.java
        deserializer = "org.apache.flink.kafka.shaded.org.apache.kafka.common.serialization.ByteArrayDeserializer"
        config = self._config(key_deserializer=deserializer, value_deserializer=deserializer)
        jvm = self._jvm
        consumer = jvm.clients.consumer.KafkaConsumer(config)
        found: list[Record] = []
        try:
            place = jvm.common.TopicPartition(topic, partition)
            places = java.util.Collections.singletonList(place)
            consumer.assign(places)
            end = consumer.endOffsets(places).get(place)
            consumer.seekToBeginning(places)
            while consumer.position(place) < end:
                records = consumer.poll(java.time.Duration.ofMillis(500)).iterator()
                while records.hasNext():
                    record = records.next()
                    headers = [(h.key(), h.value()) for h in record.headers().toArray()]
                    found.append(
                        Record(
                            record.value(), record.key(), headers, partition, record.timestamp(), int(record.offset())
                        )
                    )
        finally:
            consumer.close()
        return found
