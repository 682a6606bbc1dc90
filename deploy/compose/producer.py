"""Plays freshet's generator to a topic of Kafka, as fast as it is told, until it is stopped.

It sends through the client that Flink's connector carries, so it needs nothing that the job does not need.
"""

from __future__ import annotations

import argparse
import itertools
import os
import time
from pathlib import Path

from flink_jobs.flink import prepare_process
from flink_jobs.kafka import client_package, connector
from flink_jobs.settings import Layer, environment_layer, resolve
from udfs.generator import Generator, GeneratorConfig

SERIALIZER = "org.apache.flink.kafka.shaded.org.apache.kafka.common.serialization.ByteArraySerializer"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--servers", required=True)
    parser.add_argument("--topic", required=True)
    parser.add_argument("--rate", type=int, default=500, help="events a second")
    parser.add_argument("--events", type=int, default=10**9)
    options = parser.parse_args()
    settings = resolve([environment_layer(os.environ), Layer("--servers", {"source": "generator"})]).settings
    prepare_process(Path.home())
    from pyflink.java_gateway import get_gateway

    kafka = client_package(connector(settings.kafka))
    properties = get_gateway().jvm.java.util.Properties()
    for name, value in {
        "bootstrap.servers": options.servers,
        "key.serializer": SERIALIZER,
        "value.serializer": SERIALIZER,
        "linger.ms": "20",
    }.items():
        properties.setProperty(name, value)
    producer = kafka.clients.producer.KafkaProducer(properties)
    generator = Generator(GeneratorConfig(events=options.events))
    lines = itertools.islice(itertools.chain.from_iterable(map(generator.block, itertools.count())), options.events)
    began = time.monotonic()
    for number, line in enumerate(lines):
        if number % 50 == 0:
            time.sleep(max(0.0, began + number / options.rate - time.monotonic()))
        producer.send(kafka.clients.producer.ProducerRecord(options.topic, line))
    producer.close()


if __name__ == "__main__":
    main()
