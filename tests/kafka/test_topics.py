"""Topics of a real broker, learned by whole runs."""

from __future__ import annotations

import random
import threading
import time
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from flink_jobs.embedded import embedded_redis
from flink_jobs.kafka import find_kafka
from flink_jobs.settings import SettingsError
from serving import Client
from serving.connection import connect
from tests.faults.injector import any_worker, living_workers
from tests.flink.harness import Rows, balanced, dead_letters, lines_of, resolved, run_job, stored_rows, write_lines
from tests.kafka.broker import Broker, KafkaClient, Record
from udfs.generator import Generator, GeneratorConfig

MODEL = {"model.n_factors": 4, "model.seed": 3}
CONNECT = "__connect.errors."
_WAIT_SECONDS = 600  # for a machine that is busy with other things
_STILL_SECONDS = 300  # after which nothing more is expected


class TopicRun:
    """A run that reads a topic, beside the test."""

    begun: list[TopicRun] = []

    def __init__(self, folder: Path, settings: Mapping[str, Any], notes: Path | None = None) -> None:
        self.begun.append(self)
        self.stop = threading.Event()
        self.summary: dict[str, Any] = {}
        self.error: BaseException | None = None
        self._arguments = (folder, settings, notes)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        folder, settings, notes = self._arguments
        try:
            self.summary = run_job(folder, settings, notes=notes, stop=self.stop)
        except BaseException as error:  # noqa: BLE001
            self.error = error

    def until(self, connection: Any, **counts: int) -> None:
        """Waits until the ledger or the learner has counted so many."""
        now: dict[str, int] = {}
        changed = time.monotonic()
        while self._thread.is_alive() and any(now.get(name, 0) < count for name, count in counts.items()):
            assert time.monotonic() < changed + _STILL_SECONDS, f"waited for {counts}, there are {now}"
            time.sleep(0.05)
            before, now = now, counted(connection)
            if now != before:
                changed = time.monotonic()

    def until_known(self, connection: Any, titles: Mapping[str, str | None]) -> None:
        """Waits until the catalogue has these titles of items; None: no entry."""
        client, deadline = Client(connection), time.monotonic() + _WAIT_SECONDS

        def known() -> dict[str, Any]:
            catalogue = {
                item_id: item.catalogue if item else None for item_id, item in client.items(list(titles)).items()
            }
            return {item_id: entry and entry.get("title") for item_id, entry in catalogue.items()}

        while self._thread.is_alive() and known() != titles:
            assert time.monotonic() < deadline, f"waited for {titles}, there are {known()}"
            time.sleep(0.05)

    def end(self) -> None:
        self.stop.set()
        self._thread.join(_WAIT_SECONDS)

    def stopped_at(self, connection: Any, **counts: int) -> dict[str, Any]:
        """The summary of a run that was stopped as soon as so many are counted."""
        self.until(connection, **counts)
        self.end()
        if self.error is not None:
            raise self.error
        return self.summary


def counted(connection: Any) -> dict[str, int]:
    """What Redis has of the intake's and the learner's counts."""
    counts = orjson.loads(connection.hget("freshet:ledger", "counts") or b"{}")
    summary = orjson.loads(connection.hget("freshet:model:0", "summary") or b"{}")
    return {**{k: v for k, v in counts.items() if k != "rejected"}, **summary.get("counts", {})}


@pytest.fixture()
def connection(tmp_path: Path) -> Iterator[Any]:
    """The embedded Redis of ``tmp_path / state``, which the runs of a test share."""
    with embedded_redis((tmp_path / "state" / "redis").resolve()) as url:
        yield connect(url)
        while TopicRun.begun:  # also where the test has failed: the next has this process and its JVM, too
            TopicRun.begun.pop().end()


def topic_settings(broker: Broker, topic: str, **more: Any) -> dict[str, Any]:
    return {"source": f"kafka:{topic}", "kafka.bootstrap_servers": broker.servers, **MODEL, **more}


def generated(count: int) -> list[bytes]:
    generator = Generator(GeneratorConfig())
    lines = [line for block in range(-(-count // 1_000)) for line in generator.block(block)]
    return lines[:count]


def learned_from_file(folder: Path, lines: list[bytes], **settings: Any) -> tuple[dict[str, Any], Rows, list[Any]]:
    """What a run over a file with the same lines gives."""
    source = write_lines(folder / "log.jsonl", lines)
    notes = folder / "notes"
    summary = run_job(folder / "state", {"source": f"file:{source}", **MODEL, **settings}, notes=notes)
    return summary, stored_rows(notes), dead_letters(folder / "state" / "dead-letters")


def test_a_topic_of_one_partition_is_learned_as_a_file_is(
    tmp_path: Path, broker: Broker, kafka: KafkaClient, connection: Any
) -> None:
    lines = generated(6_000)
    kafka.create("ratings")
    kafka.send("ratings", [Record(line) for line in lines])
    notes = tmp_path / "notes"
    run = TopicRun(tmp_path / "state", topic_settings(broker, "ratings", time="processing"), notes)
    summary = run.stopped_at(connection, read=len(lines), learned=5_800)
    expected, rows, letters = learned_from_file(tmp_path / "file", lines, time="processing")
    assert summary["events"] == expected["events"] and balanced(summary["events"])
    assert summary["events"]["read"] == len(lines) and summary["events"]["rejected"] > 0
    assert stored_rows(notes) == rows
    found = dead_letters(tmp_path / "state" / "dead-letters")
    assert [(d["reason"], d["raw"], d["position"]["offset"] + 1) for d in found] == [
        (d["reason"], d["raw"], d["position"]["line"]) for d in letters
    ]
    assert {d["position"]["partition"] for d in found} == {"ratings-0"}


@pytest.mark.parametrize("start", ["earliest", "latest"])
def test_the_first_records_of_a_topic_tell_its_model(
    start: str, tmp_path: Path, broker: Broker, kafka: KafkaClient, connection: Any
) -> None:
    """Those before where it begins, if there are no others yet. Nothing is committed, whatever group a file names."""
    topic = f"purchases-{start}"
    kafka.create(topic, 2)
    (properties := tmp_path / "client.properties").write_text(f"group.id=of-{topic}\n")
    settings = {
        **topic_settings(broker, topic, **{"kafka.start": start, "kafka.properties_file": str(properties)}),
        **{"model.name": "auto", "tiles.enabled": False},
    }
    with pytest.raises(SettingsError, match=f"^model.name: .* kafka:{topic} has none .* --model blend"):
        run_job(tmp_path / "state", settings)
    purchases = [Record(rating(k, event_type="purchase"), partition=k % 2) for k in range(1_500)]
    kafka.send(topic, [Record(None, b"gone"), Record(b"{"), *purchases[:1_200]])
    run = TopicRun(tmp_path / "state", settings)
    begins = 0 if start == "earliest" else 1_202
    if begins:
        deadline = time.monotonic() + _WAIT_SECONDS
        while not connection.exists("freshet:ledger"):  # it has begun, and so knows where
            assert time.monotonic() < deadline
            time.sleep(0.05)
    kafka.send(topic, purchases[1_200:])
    summary = run.stopped_at(connection, read=1_502 - begins)
    assert summary["model"] == "blend" and summary["events"]["read"] == 1_502 - begins
    by_group = find_kafka(
        resolved(tmp_path / "state", settings | {"kafka.start": "group", "kafka.group": f"of-{topic}"})
    )
    assert by_group is not None and by_group.source is not None and set(by_group.source.starts.values()) == {0}


def test_a_new_users_first_event_changes_what_they_are_recommended(
    tmp_path: Path, broker: Broker, kafka: KafkaClient, connection: Any
) -> None:
    """Milk comes with tea and cola with rum, for each user with one of them; tea and milk are the more popular."""
    pairs = [pair for k in range(400) for pair in ((k, "tea"), (k, "milk"))] + [
        pair for k in range(400, 700) for pair in ((k, "rum"), (k, "cola"))
    ]
    random.Random(0).shuffle(pairs)
    kafka.create("visits")

    def visit(k: int, user_id: str, item_id: str) -> Record:
        event = {"user_id": user_id, "item_id": item_id, "event_type": "view", "timestamp": 1_700_000_000_000 + k * 700}
        return Record(orjson.dumps(event))

    kafka.send("visits", [visit(k, f"u{user}", item) for k, (user, item) in enumerate(pairs)])
    of_blend = {"model.name": "blend", "time": "processing", "tiles.enabled": False}
    run = TopicRun(
        tmp_path / "state", {"source": "kafka:visits", "kafka.bootstrap_servers": broker.servers, **of_blend}
    )
    run.until(connection, learned=len(pairs))
    client = Client(connection)
    before = client.recommend("newcomer", 2)
    assert not before.known and {best.item_id for best in before.items} == {"tea", "milk"}
    kafka.send("visits", [visit(len(pairs), "newcomer", "rum")])
    run.until(connection, learned=len(pairs) + 1)
    after = client.recommend("newcomer", 1, exclude_seen=True)
    assert after.known and after.items[0].item_id == "cola"
    run.end()


def rating(k: int, **more: Any) -> bytes:
    """Dense in time, of few users and items."""
    event = {
        "event_id": f"e{k}",
        "user_id": f"u{k * 7919 % 97}",
        "item_id": f"i{k * 104729 % 53}",
        "event_value": k % 9 / 2 + 0.5,
        "timestamp": 1_700_000_000_000 + k * 700 - (k * 31 % 5) * 400,
    }
    return orjson.dumps(event | more)


def test_poison_goes_to_a_topic_as_it_came_and_the_reader_goes_on(
    tmp_path: Path, broker: Broker, kafka: KafkaClient, connection: Any
) -> None:
    poison = [
        Record(bytes(range(256)), b"\xff\x00", [("trace", b"\xfe\x00"), ("empty", b""), ("none", None)]),
        Record(None, b"tombstone"),
        Record(b""),
        Record(b" \n "),
        Record("\u2028\u2029\u2400".encode(), "\u2029".encode(), [("\u2028\u2029", "\u2400".encode())]),
        Record(b"[1]", timestamp=0),
        Record(b'{"user_id":', timestamp=1_700_000_000_123),
        Record(b"[" * 100_000),
    ]
    good = [Record(rating(k).replace(b",", b",\n"), str(k).encode(), [("n", b"1")]) for k in range(300)]
    huge = Record(rating(300, event_value=1e14), b"\xe9", [("why", b"it diverges")])
    again = Record(rating(299), b"again")
    late = Record(rating(0, event_id="late"), b"late")
    end = [Record(rating(10_000 + k)) for k in range(3)]
    kafka.create("poisoned")
    kafka.create("letters")
    kafka.create("catalogue", 2, cleanup_policy="compact")
    # Of two partitions; a key of its own, or none; poison; and one that is taken away again.
    kafka.send("catalogue", [Record(value, b"i1", partition=0) for value in (b'{"title":"Old"}', b'{"title":"One"}')])
    kafka.send("catalogue", [replace(record, key=record.key or b"poison", partition=1) for record in poison])
    kafka.send(
        "catalogue", [Record(b'{"item_id":"i2","title":"Two"}', b"{2}"), Record(b"{}", b"i3"), Record(None, b"i3")]
    )
    kafka.send("poisoned", [*poison[:4], *good[:200], *poison[4:], *good[200:], huge, again, late, *end])
    run = TopicRun(
        tmp_path / "state",
        topic_settings(
            broker,
            "poisoned",
            time="event",
            dead_letters="kafka:letters",
            items="kafka:catalogue",
            **{"model.max_weight": 1e6},
        ),
    )
    run.until_known(connection, {"i1": "One", "i2": "Two", "i3": None})
    kafka.send("catalogue", [Record(None, b"i1"), Record(b'{"title":"Three"}', b"i3"), Record(b"poison", b"i3")])
    run.until_known(connection, {"i1": None, "i2": "Two", "i3": "Three"})
    summary = run.stopped_at(connection, read=len(poison) + 306, learned=len(good))
    assert balanced(summary["events"])
    assert summary["events"] | {"learned": 0, "pending": 0} == {
        "read": len(poison) + 306,
        "learned": 0,
        "rejected": len(poison) + 1,
        "late": 1,
        "duplicate": 1,
        "pending": 0,
    }
    sent = kafka.read("poisoned")
    letters = {int(dict(letter.headers)[CONNECT + "offset"] or b""): letter for letter in kafka.read("letters")}
    reasons: dict[int, bytes | None] = {}
    for offset, letter in letters.items():
        original, headers = sent[offset], dict(letter.headers)
        told = {name: headers.pop(name) for name in list(headers) if name.startswith(CONNECT)}
        assert (letter.key, letter.value, letter.timestamp) == (original.key, original.value, original.timestamp)
        # The connector writes no header that has no value.
        assert headers == {name: value for name, value in original.headers if value is not None}
        assert (told[CONNECT + "topic"], told[CONNECT + "partition"]) == (b"poisoned", b"0")
        reasons[offset] = told[CONNECT + "exception.class.name"]
    first, second = range(4), range(204, 208)
    assert reasons == {
        **dict.fromkeys((*first, *second), b"not_json"),
        205: b"not_object",
        308: b"diverged",
        309: b"duplicate",
        310: b"late",
    }


def counts_of_users(connection: Any, user_ids: Iterable[str]) -> dict[str, int]:
    found = Client(connection).users(sorted(user_ids))
    return {user_id: user.learned.count for user_id, user in found.items() if user is not None and user.learned}


def test_partitions_are_learned_as_they_come_over_a_stop_and_a_killed_worker(
    tmp_path: Path, broker: Broker, kafka: KafkaClient, connection: Any, data: Path
) -> None:
    lines = lines_of(data / "online-retail" / "events.jsonl.gz", 12_000)
    events = [orjson.loads(line) for line in lines]
    topic = "as-it-comes"
    kafka.create(topic, 3)
    records = [
        Record(line, partition=zlib.crc32(event["user_id"].encode()) % 3)
        for line, event in zip(lines, events, strict=True)
    ]
    settings = topic_settings(broker, topic, **{"tiles.enabled": False})

    kafka.send(topic, records[:5_000])
    stopped = TopicRun(tmp_path / "state", settings).stopped_at(connection, read=3_000)
    kafka.send(topic, records[5_000:8_000])
    # One checkpoint at the most comes meanwhile: as a rule there is something to replay.
    run = TopicRun(tmp_path / "state", settings | {"checkpoint_interval": "10m"})
    run.until(connection, read=7_000, learned=5_100)
    before = {worker.pid for worker in living_workers()}
    any_worker(random.Random(1)).kill()
    kafka.send(topic, records[8_000:10_000])
    run.until(connection, read=10_000)
    assert before.isdisjoint(worker.pid for worker in living_workers()), "no worker died, or the job did not restart"
    kafka.send(topic, records[10_000:])
    summary = run.stopped_at(connection, read=12_000, learned=12_000)

    assert balanced(summary["events"]) and summary["events"]["pending"] == 0
    assert stopped["events"]["read"] - stopped["events"]["pending"] + summary["events"]["read"] == 12_000
    counts = Counter(event["user_id"] for event in events)
    assert counts_of_users(connection, counts) == counts
