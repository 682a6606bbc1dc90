"""Topics: records as text, what is gathered of a partition, and the clocks of partitions."""

from __future__ import annotations

import base64
from dataclasses import replace
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.udfs.test_intake import CONFIG, T0, Host, event
from udfs.batch import Batch
from udfs.chunk import Chunk, Run
from udfs.deadletters import dead_letter, letter_record
from udfs.intake import Intake, IntakeConfig
from udfs.packing import pack_lines, unpack_lines
from udfs.reading import InputError
from udfs.records import FIELD, RECORD, Gathered, TopicRecord, as_text, read_record, value_of
from udfs.requests import Inbox, Journal
from udfs.topics import TopicReader

MAYBE = st.none() | st.binary(max_size=30)
RECORDS = st.builds(
    TopicRecord,
    st.none() | st.integers(-1, 2**60),
    MAYBE,
    st.dictionaries(st.text(max_size=5), MAYBE, max_size=3),
    MAYBE,
)
UNMERGED = replace(CONFIG, merged=False, position_names=("partition", "offset"))


def encodable(record: TopicRecord) -> bool:
    try:
        return all(name.encode() is not None for name in record.headers)
    except UnicodeEncodeError:
        return False


# --------------------------------------------------------------------------------------------- records


@given(RECORDS.filter(encodable))
def test_a_record_of_any_bytes_comes_through(record: TopicRecord) -> None:
    text = as_text(record)
    assert read_record(text) == record
    assert value_of(text) == (record.value or b"")


@given(st.lists(RECORDS.filter(encodable), min_size=1, max_size=5), st.data())
def test_gathered_records_are_told_apart_and_keep_their_offsets(
    records: list[TopicRecord], data: st.DataObject
) -> None:
    offsets = sorted(data.draw(st.sets(st.integers(0, 12), min_size=len(records), max_size=len(records))))
    texts = [as_text(record).decode() for record in records]
    gathered = Gathered(FIELD.join(["t-1", ",".join(map(str, offsets)), RECORD.join(texts)]))
    chunk = Chunk.decode(gathered.chunk(0, len(gathered)).encode())
    assert [read_record(line) for line in chunk.lines] == records
    assert [run.first + k for run in chunk.runs for k in range(run.count)] == offsets


@given(st.lists(st.binary(max_size=12), max_size=6))
def test_records_with_line_feeds_are_packed(lines: list[bytes]) -> None:
    assert unpack_lines(pack_lines(lines)) == lines


def test_a_dead_letter_has_the_whole_record_and_becomes_it_again() -> None:
    record = TopicRecord(5, b"\xff", {"a": b"\x00", "__connect.errors.topic": b"old"}, None)
    line = dead_letter("late", "too late", {"partition": "my-topic-12", "offset": 7}, as_text(record), record=True)
    letter = orjson.loads(line)
    assert (letter["raw"], base64.b64decode(letter["key"]), letter["timestamp"]) == (None, b"\xff", 5)
    again = letter_record(line)
    assert (again.key, again.value, again.timestamp, again.headers["a"]) == (b"\xff", None, 5, b"\x00")
    told = {name.removeprefix("__connect.errors."): value for name, value in again.headers.items() if name != "a"}
    assert told == {
        "topic": b"my-topic",
        "partition": b"12",
        "offset": b"7",
        "connector.name": b"freshet",
        "stage": b"TASK_PUT",
        "exception.class.name": b"late",
        "exception.message": b"too late",
    }


def test_a_record_without_a_value_is_rejected_and_counted() -> None:
    intake = Intake(replace(UNMERGED, records=True))
    values = [None, b"", b" \n", event(0)]
    lines = [as_text(TopicRecord(1, None, {}, value)) for value in values]
    result = intake.process(Chunk([Run("t-0", 4, 4)], lines), now=1)
    assert (intake.counts.read, intake.counts.accepted, intake.counts.rejected) == (4, 1, {"not_json": 3})
    assert [orjson.loads(letter)["position"]["offset"] for letter in result.dead_letters] == [4, 5, 6]


# ---------------------------------------------------------------------------------------------- reader


def gathered(partition: int, *offsets: int) -> str:
    texts = [as_text(TopicRecord(0, None, {}, b"{}")).decode() for _ in offsets]
    return FIELD.join([f"t-{partition}", ",".join(map(str, offsets)), RECORD.join(texts)])


def offsets_of(chunks: list[Chunk]) -> list[tuple[str, int]]:
    return [(run.source, run.first + k) for chunk in chunks for run in chunk.runs for k in range(run.count)]


def test_a_reader_goes_on_where_it_was_and_refuses_a_partition_that_goes_back(tmp_path: Path) -> None:
    def reader(position: bytes | None) -> TopicReader:
        return TopicReader(Inbox(Journal(tmp_path / "journal"), "kafka", 0), position)

    first = reader(None)
    assert offsets_of([*first.read(gathered(0, 3, 4, 9)), *first.read(gathered(1, 0))]) == [
        ("t-0", 3),
        ("t-0", 4),
        ("t-0", 9),
        ("t-1", 0),
    ]
    second = reader(first.position())
    assert second.place == (0, 4)
    assert offsets_of(list(second.read(gathered(0, 10)))) == [("t-0", 10)]
    with pytest.raises(InputError, match=r"t-1 gave offset 0 after 0: .* deleted and made anew"):
        list(second.read(gathered(1, 0)))


def test_a_deletion_takes_its_place_between_records_and_again_in_a_replay(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    before = TopicReader(Inbox(Journal(tmp_path / "journal"), "kafka", 0), None)
    chunks = list(before.read(gathered(0, 0, 1, 2)))
    with journal.requesting(["ann"], 7):
        pass
    chunks += before.read(gathered(0, 3, 4))
    assert [len(chunk.lines) for chunk in chunks] == [3, 0, 2]
    assert [request.user_id for request in chunks[1].deletions] == ["ann"]

    again = TopicReader(Inbox(Journal(tmp_path / "journal"), "kafka", 0), None)
    hidden = again.ahead()
    assert hidden is not None and [request.user_id for request in hidden.ahead] == ["ann"]
    replayed = list(again.read(gathered(0, 0, 1, 2, 3, 4)))
    assert [len(chunk.lines) for chunk in replayed] == [3, 0, 2]
    assert again.taken == before.taken == 7


def test_no_record_from_before_a_deletion_comes_after_it_when_partitions_come_in_another_order(tmp_path: Path) -> None:
    def reader() -> TopicReader:
        return TopicReader(Inbox(Journal(tmp_path / "journal"), "kafka", 0), None)

    journal = Journal(tmp_path / "journal")
    before = reader()
    list(before.read(gathered(0, 0, 1)))
    list(before.read(gathered(1, 0, 1, 2)))
    with journal.requesting(["ann"], 7):
        pass
    assert before.requests() is not None

    again = reader()
    # More records than were read before the deletion, but not all of those.
    assert all(not chunk.deletions for chunk in again.read(gathered(1, 0, 1, 2, 3, 4, 5)))
    assert again.requests() is None
    chunks = list(again.read(gathered(0, 0, 1, 2)))
    assert [(len(chunk.lines), len(chunk.deletions)) for chunk in chunks] == [(2, 0), (0, 1), (1, 0)]


# -------------------------------------------------------------------------------------------- watermark


def put(intake: Intake, source: str, *times: int, now: int = 1) -> Batch:
    lines = [event(at, event_id=f"{source}{at}") for at in times]
    return Batch.decode(intake.process(Chunk([Run(source, 0, len(lines))], lines), now).batches[0])


def waiting_for(*partitions: str, idle_after: int = 0) -> IntakeConfig:
    return replace(UNMERGED, partitions=partitions, idle_after=idle_after)


def test_a_new_source_does_not_take_the_watermark_back_and_is_not_late() -> None:
    host = Host(UNMERGED)
    host.put([event(100_000)], source="t-0")
    host.put([event(10_000), event(8_000)], source="t-1")
    assert host.intake.watermark == T0 + 95_000
    counts = host.intake.counts
    assert (counts.accepted, counts.late, counts.tile_late) == (3, 0, 2)
    assert host.fed == 1
    host.crash()
    assert host.intake.watermark == T0 + 95_000


def test_partitions_that_are_known_are_waited_for() -> None:
    intake = Intake(waiting_for("t-0", "t-1"))
    assert put(intake, "t-0", 100_000).watermark == 0
    assert put(intake, "t-1", 20_000).watermark == T0 + 15_000
    assert put(intake, "t-0", 200_000).watermark == T0 + 15_000
    assert put(intake, "t-1", 300_000).watermark == T0 + 195_000
    assert intake.counts.tile_late == 0


def test_a_partition_that_gives_nothing_is_waited_for_only_so_long() -> None:
    intake = Intake(waiting_for("t-0", "t-1", idle_after=10_000))
    assert put(intake, "t-0", 100_000, now=0).watermark == 0
    assert put(intake, "t-0", 101_000, now=5_000).watermark == 0
    assert put(intake, "t-0", 102_000, now=10_000).watermark == T0 + 97_000
    # It comes again, from behind: accepted, learned at once, and left out of windows.
    assert put(intake, "t-1", 1_000, now=11_000).watermark == T0 + 97_000
    assert (intake.counts.accepted, intake.counts.tile_late) == (4, 1)


def test_time_in_which_nobody_is_heard_makes_nobody_idle() -> None:
    intake = Intake(waiting_for("t-0", "t-1", idle_after=10_000))
    put(intake, "t-0", 100_000, now=0)
    assert put(intake, "t-0", 101_000, now=3_600_000).watermark == 0


def test_what_waits_is_due_when_all_are_idle_though_nothing_comes() -> None:
    intake = Intake(waiting_for("t-0", "t-1", idle_after=10_000))
    assert intake.tick(0) is None
    put(intake, "t-0", 100_000, now=0)
    put(intake, "t-1", 20_000, now=0)
    results = [intake.tick(now) for now in (5_000, 10_000, 15_000)]
    assert results[0] is None and results[2] is None
    assert results[1] is not None
    assert Batch.decode(results[1].batches[0]).watermark == T0 + 95_000


def test_ids_are_remembered_by_the_watermark_which_idle_partitions_do_not_hold() -> None:
    host = Host(waiting_for("t-0", "t-1", idle_after=10_000))
    host.put([event(0, event_id="a")], source="t-1")
    host.put([event(0, event_id="b")], source="t-0")
    host.put([event(1_000, event_id="a")], source="t-1")
    assert host.reasons == ["duplicate"]
