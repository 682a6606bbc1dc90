"""Jobs are planned by one thread of Java, which Flink's planner keeps some of what it needs with."""

from __future__ import annotations

import gc
import threading
from typing import Any

from flink_jobs.flink import environments
from flink_jobs.topics import heartbeat


def test_what_other_threads_collect_waits(monkeypatch: Any) -> None:
    from pyflink.java_gateway import get_gateway

    gateway = get_gateway()
    of_java = [gateway.jvm.java.util.ArrayList() for _ in range(5_000)]
    client = gateway._gateway_client
    while len(client.deque) > 1:
        client.deque.pop().close()
    opened, open_connection, done = [], client._create_connection, threading.Event()

    def create() -> Any:
        opened.append(threading.current_thread())
        return open_connection()

    def littering() -> None:
        while of_java and not done.wait(0.002):
            circle = [of_java.pop()]
            circle.append(circle)
            more: list[Any] = [[] for _ in range(gc.get_threshold()[0])]  # so many that Python looks what is in use
            del circle, more

    monkeypatch.setattr(client, "_create_connection", create)
    thread = threading.Thread(target=littering)
    with environments({}) as (_, table_env):
        thread.start()
        try:
            for _ in range(3):
                heartbeat(table_env, "CAST(beat AS STRING) AS record")
            assert len(of_java) < 5_000
            assert opened == []
            gc.enable()  # as without the context
            for _ in range(3):
                heartbeat(table_env, "CAST(beat AS STRING) AS record")
        finally:
            done.set()
            thread.join()
    assert thread in opened
