"""Feeds: the same lines from any position, in any chunks; and the generator's stream."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from udfs.chunk import Chunk, Run
from udfs.events import EventFormat, EventParser, Rejected
from udfs.generator import BLOCK, SOURCE, START, Generator, GeneratorConfig, GeneratorFeed
from udfs.intake import Intake, IntakeConfig
from udfs.reading import FileFeed, IdleFeed, InputError, encode_position, input_files, peak_density

T0 = 1_700_000_000_000


def event(at: int, user: str = "u") -> bytes:
    return orjson.dumps({"user_id": user, "item_id": "i", "timestamp": T0 + at})


def feed_of(*paths: Path, run_id: str = "run", chunk_bytes: int = 2_000_000, kind: str = "jsonl") -> FileFeed:
    return FileFeed([(str(path), kind) for path in paths], EventFormat(), run_id, chunk_bytes)


def drained(feed: Any, position: bytes | None = None) -> list[tuple[str, int, bytes]]:
    """All that is left: source, position and line."""
    feed.seek(position)
    found: list[tuple[str, int, bytes]] = []
    while not feed.ended:
        chunk = feed.read()
        assert chunk is not None
        found += placed(chunk)
    return found


def placed(chunk: Chunk) -> list[tuple[str, int, bytes]]:
    assert Chunk.decode(chunk.encode()) == chunk
    places = [(run.source, run.first + k) for run in chunk.runs for k in range(run.count)]
    return [(source, position, line) for (source, position), line in zip(places, chunk.lines, strict=True)]


def lines_of(found: list[tuple[str, int, bytes]]) -> list[tuple[int, bytes]]:
    return [(position, line) for _, position, line in found]


# ------------------------------------------------------------------------------------------ one file


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", []),
        (b"a\nb\n", [(1, b"a"), (2, b"b")]),
        (b"a\nb", [(1, b"a"), (2, b"b")]),
        (b"a\r\nb\r\n", [(1, b"a"), (2, b"b")]),
        (b"a\n\n \nb\n", [(1, b"a"), (2, b""), (3, b" "), (4, b"b")]),
        (b"\xef\xbb\xbfa\nb\n", [(1, b"a"), (2, b"b")]),
        (b"\xef\xbb\xbf", []),
        (b"\n", [(1, b"")]),
        (b"a\rb\x0bc\x85d\n\xff", [(1, b"a\rb\x0bc\x85d"), (2, b"\xff")]),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_lines_of_a_file(tmp_path: Path, content: bytes, expected: list[tuple[int, bytes]], packed: bool) -> None:
    path = tmp_path / ("a.jsonl.gz" if packed else "a.jsonl")
    path.write_bytes(gzip.compress(content) if packed else content)
    found = drained(feed_of(path))
    assert lines_of(found) == expected
    assert {source for source, _, _ in found} <= {str(path)}


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_a_csv_file_has_a_header(tmp_path: Path, bom: bytes, end: bytes) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(bom + end.join([b'user_id,"item,id",timestamp', b'u,"a,b",5', b"", b"v,c,6"]))
    feed = feed_of(path, kind="csv", chunk_bytes=1)
    feed.seek(None)
    chunk = feed.read()
    assert chunk.headers == {str(path): ["user_id", "item,id", "timestamp"]}
    assert placed(chunk) == [(str(path), 2, b'u,"a,b",5')]
    again = feed_of(path, kind="csv")
    again.seek(feed.position())
    rest = again.read()
    assert rest.headers == chunk.headers
    assert lines_of(placed(rest)) == [(3, b""), (4, b"v,c,6")]


@given(
    content=st.lists(st.sampled_from([b"a", b"bb", b"", b"c" * 40, b"d\r"]), max_size=30),
    size=st.integers(1, 60),
    ends=st.booleans(),
    packed=st.booleans(),
)
def test_a_feed_goes_on_from_any_position(
    tmp_path_factory: pytest.TempPathFactory, content: list[bytes], size: int, ends: bool, packed: bool
) -> None:
    path = tmp_path_factory.mktemp("feed") / ("a.jsonl.gz" if packed else "a.jsonl")
    text = b"\n".join(content) + b"\n" * ends
    path.write_bytes(gzip.compress(text) if packed else text)
    whole = drained(feed_of(path))
    position: bytes | None = None
    found: list[tuple[str, int, bytes]] = []
    while True:  # a new process for each chunk
        feed = feed_of(path, chunk_bytes=size)
        feed.seek(position)
        if feed.ended:
            break
        found += placed(feed.read())
        position = feed.position()
    assert found == whole


def test_appended_lines_are_read_by_the_next_run_only(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"a\nb\n" + b"x" * 5_000 + b"\n")
    feed = feed_of(path)
    assert len(drained(feed)) == 3
    position = feed.position()
    with path.open("ab") as file:
        file.write(b"c\nd")
    assert drained(feed_of(path), position) == []
    assert lines_of(drained(feed_of(path, run_id="second"), position)) == [(4, b"c"), (5, b"d")]


def test_a_short_file_that_grew_is_the_same_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"a\n")
    feed = feed_of(path)
    drained(feed)
    path.write_bytes(b"a\nb\n")
    assert lines_of(drained(feed_of(path, run_id="second"), feed.position())) == [(2, b"b")]


def test_a_replaced_file_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"a\nb\n")
    feed = feed_of(path)
    drained(feed)
    path.write_bytes(b"c\nd\ne\n")
    found = drained(feed_of(path, run_id="second"), feed.position())
    assert lines_of(found) == [(1, b"c"), (2, b"d"), (3, b"e")]


def test_another_file_begins_at_its_start_and_the_first_keeps_its_place(tmp_path: Path) -> None:
    first, other = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    first.write_bytes(b"a\n")
    other.write_bytes(b"b\n")
    feed = feed_of(first)
    drained(feed)
    then = feed_of(other, run_id="second")
    assert len(drained(then, feed.position())) == 1
    assert drained(feed_of(first, run_id="third"), then.position()) == []


# -------------------------------------------------------------------------------------------- folders


def test_a_folder_is_merged_by_time_and_each_line_keeps_its_number(tmp_path: Path) -> None:
    a, b = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    a.write_bytes(b"\n".join([event(0), b"junk", event(30), event(20), event(60)]))
    b.write_bytes(b"\n".join([event(10), event(40), b""]))
    found = drained(feed_of(a, b))
    assert [(Path(source).stem, position) for source, position, _ in found] == [
        ("a", 1),
        ("a", 2),
        ("b", 1),
        ("a", 3),
        ("a", 4),
        ("b", 2),
        ("a", 5),
    ]
    assert found[4][2] == event(20)


def test_formats_mix_in_a_folder(tmp_path: Path) -> None:
    a, b = tmp_path / "a.jsonl", tmp_path / "b.csv.gz"
    a.write_bytes(event(0) + b"\n" + event(20) + b"\n")
    b.write_bytes(gzip.compress(b"user_id,item_id,timestamp\r\nu,i,%d\r\n" % (T0 + 10)))
    feed = FileFeed(input_files(tmp_path) and [(str(p), f) for p, f in input_files(tmp_path)], EventFormat(), "run")
    assert [position for _, position, _ in drained(feed)] == [1, 2, 2]


@given(
    logs=st.lists(st.lists(st.integers(-1, 50), max_size=12), min_size=2, max_size=4),
    size=st.integers(30, 400),
)
def test_a_merged_feed_goes_on_from_any_position(
    tmp_path_factory: pytest.TempPathFactory, logs: list[list[int]], size: int
) -> None:
    folder = tmp_path_factory.mktemp("feed")
    paths = []
    for number, log in enumerate(logs):
        path = folder / f"{number}.jsonl"
        path.write_bytes(b"".join((event(at) if at >= 0 else b"junk") + b"\n" for at in log))
        paths.append(path)
    whole = drained(feed_of(*paths))
    position: bytes | None = None
    found: list[tuple[str, int, bytes]] = []
    while True:
        feed = feed_of(*paths, chunk_bytes=size)
        feed.seek(position)
        if feed.ended:
            break
        found += placed(feed.read())
        position = feed.position()
    assert found == whole
    for number, log in enumerate(logs):
        own = [position for source, position, _ in whole if source == str(paths[number])]
        assert own == list(range(1, len(log) + 1))
    # Files in the order of their own times are in the order of time together.
    if all(log == sorted(log) and -1 not in log for log in logs):
        times = [orjson.loads(line)["timestamp"] for _, _, line in whole]
        assert times == sorted(times)


def test_inputs_that_cannot_be_read_say_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no file or folder"):
        input_files(tmp_path / "absent")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(InputError, match=r"has no file that ends in \.jsonl"):
        input_files(tmp_path)
    assert input_files(tmp_path / "notes.txt") == [(tmp_path / "notes.txt", "")]
    for name in ("b.csv", "a.jsonl.gz", "c.jsonl"):
        (tmp_path / name).touch()
    (tmp_path / "d.csv").mkdir()
    assert [(p.name, f) for p, f in input_files(tmp_path)] == [
        ("a.jsonl.gz", "jsonl"),
        ("b.csv", "csv"),
        ("c.jsonl", "jsonl"),
    ]


# ------------------------------------------------------------------------------------------ generator


def generated(config: GeneratorConfig, chunk_events: int = 16_000, run_id: str = "run") -> list[tuple[str, int, bytes]]:
    return drained(GeneratorFeed(config, run_id, chunk_events))


def test_the_stream_is_the_same_in_any_chunks_and_from_any_position() -> None:
    config = GeneratorConfig(events=2_345)
    whole = generated(config)
    assert [(source, position) for source, position, _ in whole] == [(SOURCE, n) for n in range(2_345)]
    assert generated(config, 777) == whole
    position: bytes | None = None
    found: list[tuple[str, int, bytes]] = []
    while True:
        feed = GeneratorFeed(config, "run", 999)
        feed.seek(position)
        if feed.ended:
            break
        chunk = feed.read()
        assert chunk is not None
        found += placed(chunk)
        position = feed.position()
    assert found == whole
    following = GeneratorFeed(config, "second")
    then = drained(following, position)
    assert [number for _, number, _ in then] == list(range(2_345, 4_690))
    assert whole + then == generated(GeneratorConfig(events=4_690))


def test_the_seed_decides() -> None:
    assert Generator(GeneratorConfig(seed=3)).block(2) == Generator(GeneratorConfig(seed=3)).block(2)
    assert Generator(GeneratorConfig(seed=3)).block(2) != Generator(GeneratorConfig(seed=4)).block(2)


def test_a_rate_gives_no_more_than_its_time_allows() -> None:
    now = [100.0]
    feed = GeneratorFeed(GeneratorConfig(events=50, rate=10.0), "run", clock=lambda: now[0])
    feed.seek(None)
    assert feed.pause() > 0 and feed.read() is None
    now[0] += 2.05
    chunk = feed.read()
    assert chunk is not None and len(chunk.lines) == 20 and feed.read() is None
    now[0] += 60
    chunk = feed.read()
    assert chunk is not None and len(chunk.lines) == 30 and not chunk.ended
    last = feed.read()
    assert last is not None and last.ended and feed.ended


def test_shares_are_as_stated() -> None:
    config = GeneratorConfig(malformed=0.05, duplicates=0.03, late=0.04)
    intake = Intake(IntakeConfig(EventFormat(), 1, True, True, 5_000, 3_600_000, None, (SOURCE, "index"), "run", 1))
    generator = Generator(config)
    for number in range(20):
        lines = generator.block(number)
        assert len(lines) == BLOCK
        intake.process(Chunk([Run(SOURCE, number * BLOCK, BLOCK)], lines), now=1)
    counts, n = intake.counts, 20 * BLOCK
    repeated_bad = 0.03 * (0.05 + 0.04)  # a copy of a line that is itself unfit is not a duplicate
    assert sum(counts.rejected.values()) / n == pytest.approx(0.05, abs=0.006)
    assert counts.late / n == pytest.approx(0.04, abs=0.006)
    assert counts.duplicate / n == pytest.approx(0.03 - repeated_bad, abs=0.005)
    assert set(counts.rejected) == {
        "not_json",
        "not_object",
        "missing_id",
        "invalid_id",
        "invalid_timestamp",
    }


def test_without_faults_every_event_is_fit() -> None:
    config = GeneratorConfig(malformed=0, duplicates=0, late=0, interval=250)
    parser: Callable[[bytes], Any] = EventParser(EventFormat()).parse_json
    events = [parser(line) for line in Generator(config).block(3)]
    assert not any(type(event) is Rejected for event in events)
    assert [event[1] for event in events] == [f"g{n}" for n in range(3_000, 4_000)]
    for number, event in enumerate(events, 3_000):
        assert 0 <= START + number * 250 - event[0] < 4_000
        assert event[5] in np.arange(0.5, 5.5, 0.5)


def test_the_truth_explains_the_ratings() -> None:
    generator = Generator(GeneratorConfig(malformed=0, duplicates=0, late=0))
    parser = EventParser(EventFormat())
    events: list[Any] = [parser.parse_json(line) for number in range(5) for line in generator.block(number)]
    users = np.array([int(event[2][1:]) for event in events])
    items = np.array([int(event[3][1:]) for event in events])
    rated = np.array([event[5] for event in events])
    truth = generator.truth(users, items, 0.0)
    assert np.corrcoef(truth, rated)[0, 1] > 0.8
    assert np.abs(truth.clip(0.5, 5) - rated).mean() < 0.45


# -------------------------------------------------------------------------------------- what can't be read


@pytest.mark.parametrize("first", [b"user_id,item_id\ra,b\rc,d", b"user_id," + b"x" * 200_000])
def test_a_first_line_that_is_no_header_is_named(first: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(first + b"\na,b\n")
    with pytest.raises(InputError, match=r"a\.csv: the first line is not a CSV header"):
        peak_density([(str(path), "csv")], EventFormat())
    with pytest.raises(InputError, match=r"a\.csv: the first line is not a CSV header"):
        FileFeed([(str(path), "csv")], EventFormat(), "r").seek(None)


def test_a_file_name_that_is_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.jsonl")
    path.write_bytes(b"")
    for place in (path, tmp_path):
        with pytest.raises(InputError, match=r"caf\\udce9\.jsonl' is not UTF-8.*: rename it"):
            input_files(place)


def test_a_feed_that_stands_by_keeps_its_place() -> None:
    feed = IdleFeed()
    feed.seek(None)
    assert feed.place == (0, 0) and feed.read() is None and not feed.ended
    position = encode_position({"next": 7, "inputs": 2, "lines": 7})
    feed.seek(position)
    assert feed.place == (2, 7) and feed.position() == position
