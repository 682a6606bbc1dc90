"""The intake: the ledger balances, and what is decided depends on the log alone."""

from __future__ import annotations

import base64
import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from serving.identity import hidden
from serving.schema import shard_of
from udfs.batch import Batch
from udfs.chunk import Chunk, Run
from udfs.events import EventFormat, EventParser
from udfs.intake import Intake, IntakeConfig, IntakeResult
from udfs.packing import unpack_lines
from udfs.requests import Request
from udfs.seal import seal, unseal
from udfs.tilefeed import DAY, OF_USER, RECORD, UNIT, TileConfig, split_pair, unescape

T0 = 1_700_000_000_000
CONFIG = IntakeConfig(
    fmt=EventFormat(),
    shards=1,
    event_time=True,
    merged=True,
    out_of_orderness=5_000,
    dedup_horizon=20_000,
    tiles=TileConfig(("view", "rating"), 30 * 60_000, 300_000),
    position_names=("file", "line"),
    run_id="run",
    epoch=7,
)


def event(at: int, user: str = "u", item: str = "i", event_id: str = "", **more: Any) -> bytes:
    """An event ``at`` milliseconds after :data:`T0`."""
    named = {"user_id": user, "item_id": item, "timestamp": T0 + at, "event_id": event_id, **more}
    return orjson.dumps(named)


class Host:
    """Does what the PyFlink shell does: keeps header and blobs, and can crash between chunks."""

    def __init__(self, config: IntakeConfig = CONFIG) -> None:
        self.config = config
        self.header: bytes | None = None
        self.blobs: dict[str, bytes] = {}
        self.intake = Intake(config)
        self.accepted: list[list[Any]] = []
        self.lines: list[bytes] = []
        self.letters: list[dict[str, Any]] = []
        self.feed: list[list[str]] = []
        self.watermarks: list[int] = []
        self.line = 1

    def crash(self) -> None:
        self.intake = Intake(self.config)
        if self.header is not None:
            self.intake.restore(self.header, list(self.blobs.items()))

    def put(self, lines: Sequence[bytes], source: str = "log", *, ended: bool = False) -> IntakeResult:
        chunk = Chunk([Run(source, self.line, len(lines))], lines, ended=ended)
        result = self.intake.process(Chunk.decode(chunk.encode()), now=9)
        self.line += len(lines)
        self.blobs |= result.puts
        for name in result.removes:
            del self.blobs[name]
        self.header = self.intake.header
        for blob in result.batches.values():
            batch = Batch.decode(blob)
            self.accepted += batch.events.rows()
            self.lines += unpack_lines(batch.lines)
        self.letters += [orjson.loads(letter) for letter in result.dead_letters]
        for feed in result.tile_feeds:
            self.feed += [record.split(UNIT) for record in feed.tiles.split(RECORD)]
            self.watermarks.append(feed.watermark)
        return result

    @property
    def tiles(self) -> dict[tuple[str, int], list[int]]:
        """What windows of five minutes make of the feed."""
        sums: dict[tuple[str, int], list[int]] = {}
        for entity, time, *numbers in self.feed:
            tile = sums.setdefault((entity, int(time) // 300_000), [0] * len(numbers))
            tile[:] = (had + int(number) for had, number in zip(tile, numbers, strict=True))
        return sums

    @property
    def fed(self) -> int:
        """The events of the feed."""
        return sum(split_pair(int(record[2]))[0] for record in self.feed if record[0][0] == OF_USER)

    @property
    def reasons(self) -> list[str]:
        return [letter["reason"] for letter in self.letters]

    @property
    def ids(self) -> list[str]:
        return [row[1] for row in self.accepted]


# ------------------------------------------------------------------------------------------- decisions


def test_late_is_decided_against_the_newest_before_it_in_its_file() -> None:
    host = Host()
    host.put([event(0), event(10_000), event(5_000), event(4_999), event(20_000), event(14_999)])
    assert host.reasons == ["late", "late"]
    assert [letter["position"]["line"] for letter in host.letters] == [4, 6]
    # Another file has a newest of its own.
    host.put([event(4_999)], source="other")
    assert host.reasons == ["late", "late"]


def test_what_is_refused_does_not_move_the_clock() -> None:
    host = Host()
    host.put([event(0), event(50_000, event_value=[]), event(-5_000)])
    assert host.reasons == ["invalid_value"]


def test_a_duplicate_moves_the_clock_of_its_file_as_the_merge_counts_it() -> None:
    host = Host()
    host.put([event(10_000, event_id="x"), event(29_000, event_id="x"), event(24_000), event(23_999)])
    assert host.reasons == ["duplicate", "late"]
    assert host.intake.watermark == T0 + 24_000


def test_a_record_has_the_first_reason_that_holds() -> None:
    host = Host()
    host.put([event(0, event_id="x"), event(10_000)])
    host.put([event(0, event_id="x", event_value="bad"), event(0, event_id="x"), event(10_000, event_id="x")])
    assert host.reasons == ["invalid_value", "late", "duplicate"]


def test_a_duplicate_has_the_same_user_and_event_id_within_the_horizon() -> None:
    host = Host()
    host.put([event(0, event_id="x", item="first")])
    host.put([event(20_000, event_id="x", item="second")])
    assert host.reasons == ["duplicate"]
    host.put([event(20_001, event_id="x", item="third"), event(20_001, user="v", event_id="x")])
    assert [row[3] for row in host.accepted] == ["first", "third", "i"]


def test_ids_do_not_run_into_each_other() -> None:
    host = Host()
    host.put(
        [event(0, user="a", event_id="bc"), event(0, user="ab", event_id="c"), event(0, user="1:a", event_id="bc")]
    )
    assert host.reasons == []
    host = Host()
    host.put([event(0, user="a", item="bc"), event(0, user="ab", item="c")])
    assert [split_pair(int(record[2])) for record in host.feed] == [(1, 1)] * 4


def test_without_an_event_id_nothing_is_a_duplicate() -> None:
    host = Host()
    host.put(
        [event(0), event(0), event(0, event_id=None), orjson.dumps({"user_id": "u", "item_id": "i", "timestamp": T0})]
    )
    assert host.reasons == [] and host.intake.counts.accepted == 4


def test_in_processing_time_nothing_is_late() -> None:
    host = Host(replace(CONFIG, event_time=False))
    result = host.put([event(100_000), event(0), event(-(10**9))])
    assert host.reasons == [] and host.intake.counts.accepted == 3
    assert host.intake.counts.tile_late == 2 and host.fed == 1
    assert Batch.decode(result.batches[0]).watermark is None


def test_a_dead_letter_holds_the_original_bytes() -> None:
    host = Host()
    raw = b'\xff\x00{"user_id": '
    host.put([event(0), b"", raw], source="a.jsonl")
    [letter] = host.letters
    assert base64.b64decode(letter["raw"]) == raw
    assert letter["position"] == {"file": "a.jsonl", "line": 3}
    assert host.intake.counts.read == 2


def test_the_watermark_follows_the_newest_file_where_they_are_merged() -> None:
    for merged, expected in ((True, 15_000), (False, 5_000)):
        host = Host(replace(CONFIG, merged=merged))
        assert host.intake.watermark == 0
        host.put([event(10_000)], source="a")
        result = host.put([event(20_000)], source="b")
        assert Batch.decode(result.batches[0]).watermark == T0 + expected
        assert host.intake.watermark == T0 + expected


def test_the_end_of_the_input_is_passed_on_and_the_next_input_has_a_time_of_its_own() -> None:
    host = Host()
    assert not Batch.decode(host.put([event(50_000)]).batches[0]).ended
    result = host.put([], ended=True)
    assert host.intake.ended and Batch.decode(result.batches[0]).ended
    assert Batch.decode(result.batches[0]).watermark == T0 + 45_000
    host.crash()
    assert host.intake.ended
    host.put([event(0)])
    assert host.reasons == [] and not host.intake.ended


def test_csv_rows_are_read_by_the_header_of_their_file() -> None:
    intake = Intake(CONFIG)
    headers = {"a.csv": ["user_id", "item_id", "timestamp"]}
    runs = [Run("a.csv", 2, 1), Run("b.jsonl", 1, 1), Run("a.csv", 3, 1)]
    result = intake.process(Chunk(runs, [b"u,i,1700000000000", event(0), b"u,i"], headers), now=1)
    assert Batch.decode(result.batches[0]).events.rows() == [
        [T0, "", "u", "i", "view", 1.0, 0, 2],
        [T0, "", "u", "i", "view", 1.0, 1, 1],
    ]
    assert [orjson.loads(letter)["reason"] for letter in result.dead_letters] == ["not_csv"]


@pytest.mark.parametrize("shards", [1, 2, 7])
def test_a_user_stays_in_a_shard(shards: int) -> None:
    intake = Intake(replace(CONFIG, shards=shards))
    lines = [event(0, user=f"u{n}", item=str(n)) for n in range(50)]
    result = intake.process(Chunk([Run("a", 1, 50)], lines), now=1)
    assert sorted(result.batches) == list(range(shards))  # each learner hears of the watermark
    found = 0
    for shard, blob in result.batches.items():
        batch = Batch.decode(blob)
        for row, raw in zip(batch.events.rows(), unpack_lines(batch.lines), strict=True):
            assert shard_of(row[2], shards) == shard
            assert orjson.loads(raw)["item_id"] == row[3]
            found += 1
    assert found == 50


def test_shards_are_fixed_for_ever() -> None:
    assert [shard_of(user, 120) for user in ("", "1", "42", "\u00e9", "u1999")] == [0, 23, 8, 86, 43]


# ---------------------------------------------------------------------------------------------- state


def test_what_no_event_can_meet_any_more_is_removed() -> None:
    host = Host()
    host.put([event(0, event_id="x")])
    assert sorted(host.blobs) == ["e:0", f"q:{T0 // DAY * DAY}:0", "s:0"]
    host.put([event(25_000, event_id="y")])
    assert "e:0" in host.blobs
    host.put([event(25_001, event_id="z")])
    assert "e:0" not in host.blobs and len(host.intake.event_ids.seen) == 2
    host.put([event(2 * DAY + 10_000)])
    assert sorted(host.intake.tiles.pairs) == [(T0 + 2 * DAY) // DAY * DAY]
    assert [name for name in host.blobs if name.startswith("e:")] == []


def test_state_is_bounded() -> None:
    host = Host()
    sizes = []
    for n in range(300):
        host.put([event(1_000 * n + k, event_id=f"{n}-{k}") for k in range(10)])
        sizes.append(len(host.intake.event_ids.seen))
    assert max(sizes) <= 10 * 27
    assert len([name for name in host.blobs if name.startswith("e:")]) <= 27


def test_a_newer_layout_is_refused() -> None:
    host = Host()
    host.put([event(0)])
    assert host.header is not None
    stored = orjson.loads(unseal("the intake's", "header", host.header))
    newer = seal("header", orjson.dumps({**stored, "layout": 3}))
    with pytest.raises(ValueError, match=r"layout 3.*reads 1 and 2"):
        Intake(CONFIG).restore(newer, [])


def test_a_new_run_counts_from_a_new_base() -> None:
    host = Host()
    host.put([event(0), b"x"])
    host.put([], ended=True)
    host.config = replace(CONFIG, run_id="second")
    host.crash()
    assert host.intake.first_read_at is None
    host.put([event(1)])
    fields = host.intake.ledger_fields()
    assert fields["run_id"] == b"second" and fields["ended"] == 0 and fields["first_read_at"] == 9
    assert orjson.loads(fields["base"])["read"] == 2  # type: ignore[arg-type]
    assert orjson.loads(fields["counts"])["read"] == 3  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------- tile feed


odd_ids = st.text(st.sampled_from("ab\x1d\x1e\x1fe"), min_size=1, max_size=4)


@given(st.lists(st.tuples(odd_ids, odd_ids, odd_ids), min_size=1, max_size=5))
def test_ids_with_separators_come_through_the_tile_feed(events: list[tuple[str, str, str]]) -> None:
    host = Host()
    host.put([event(0, user=u, item=i, event_type=t) for u, i, t in events])
    assert {unescape(record[0]) for record in host.feed} == {key for u, i, _ in events for key in (f"u{u}", f"i{i}")}
    assert all(len(record) == 6 for record in host.feed)


def test_a_type_goes_by_its_place() -> None:
    host = Host()
    host.put([event(0, event_type=kind, event_value=1.0) for kind in ("rating", "view", "rating", "other")])
    assert [(split_pair(int(record[2]))[0], split_pair(int(record[5]))) for record in host.feed] == [(4, (1, 2))] * 2


def test_the_feed_has_the_watermark_after_its_chunk() -> None:
    host = Host()
    host.put([event(0), event(9_000)])
    # Two below the intake's own, which an event may still have.
    assert host.watermarks == [T0 + 9_000 - 5_000 - 2]


@given(
    st.lists(st.tuples(st.integers(0, 3 * DAY), st.sampled_from("uvw"), st.sampled_from("ijk")), max_size=40),
    st.integers(1, 7),
)
def test_first_of_day_adds_up_to_exact_distinct_counts(log: list[tuple[int, str, str]], size: int) -> None:
    log.sort()
    host = Host()
    for start in range(0, len(log), size):
        host.put([event(at, user, item) for at, user, item in log[start : start + size]])
        host.crash()
    counted: dict[tuple[int, str], int] = {}
    for entity, time, met, *_ in host.feed:
        key = (int(time) // DAY, entity)
        counted[key] = counted.get(key, 0) + split_pair(int(met))[1]
    exact: dict[tuple[int, str], set[str]] = {}
    for at, user, item in log:
        exact.setdefault(((T0 + at) // DAY, f"u{user}"), set()).add(item)
        exact.setdefault(((T0 + at) // DAY, f"i{item}"), set()).add(user)
    assert counted == {key: len(items) for key, items in exact.items()}


# -------------------------------------------------------------------------------------------- deletion


def delete(host: Host, *user_ids: str, number: int = 1) -> dict[int, Batch]:
    result = host.intake.delete([Request(number + k, user_id) for k, user_id in enumerate(user_ids)])
    host.blobs |= result.puts
    for name in result.removes:
        del host.blobs[name]
    host.header = host.intake.header
    assert result.dead_letters == [] and result.tile_feeds == []
    return {shard: Batch.decode(blob) for shard, blob in result.batches.items()}


def test_a_deletion_goes_to_the_users_shard_and_changes_no_count() -> None:
    host = Host(replace(CONFIG, shards=4, part=2))
    host.put([event(0), event(9_000), event(7_000)])
    host.put([], ended=True)
    before = host.intake.ledger_fields()
    batches = delete(host, "42", "b", "42")
    assert {shard: [d.user_id for d in batch.deletions] for shard, batch in batches.items()} == {
        shard_of("42", 4): ["42", "42"], shard_of("b", 4): ["b"],
    }  # fmt: skip
    [first, *_] = batches[0].deletions
    assert first == (1, "42", 2, T0 + 9_000)  # the windows of the input that ended may still be open
    assert all(not len(batch.events) and batch.watermark is None and not batch.ended for batch in batches.values())
    assert host.intake.ledger_fields() == before and host.intake.ended


def test_what_windows_may_hold_is_bounded_by_the_newest_event_of_the_part() -> None:
    host = Host(replace(CONFIG, part=1))
    assert delete(host, "u")[0].deletions[0].bound == 0
    host.put([event(5_000), event(3_000)])
    host.put([event(4_000)], source="other")
    assert delete(host, "u")[0].deletions[0].bound == T0 + 5_000
    host.put([], ended=True)
    host.crash()  # of the same part, with the windows that it had
    assert delete(host, "u")[0].deletions[0].bound == T0 + 5_000
    host.config = replace(CONFIG, part=2, run_id="next")
    host.crash()
    assert delete(host, "u")[0].deletions[0].bound == 0


def test_nothing_is_remembered_of_a_deleted_user() -> None:
    host = Host()
    host.put([event(0, "ann", "tea", "x"), event(1, "bob", "tea", "y"), event(2, "a", "nntea", "x")])
    host.put([event(3, "ann", "rum", "z")])
    delete(host, "ann")
    assert b'"3:ann' not in b"".join(host.blobs.values()) and b'"ann"' not in b"".join(host.blobs.values())
    for crash in (False, True):
        if crash:
            host.crash()
        intake = host.intake
        assert set(intake.event_ids.seen) == {("bob", "y"), ("a", "x")}
        assert intake.tiles is not None and set(itertools.chain(*intake.tiles.pairs.values())) == {
            ("bob", "tea"),
            ("a", "nntea"),
        }
    host.feed.clear()
    host.put([event(4, "ann", "tea", "x"), event(5, "bob", "tea", "y")])
    assert host.reasons == ["duplicate"]  # bob's
    assert [split_pair(int(record[2])) for record in host.feed] == [(1, 1)] * 2  # tea is new to ann


@given(
    log=st.lists(
        st.tuples(st.integers(0, 60_000), st.sampled_from("uvw"), st.sampled_from("ij"), st.sampled_from(["", "x"])),
        max_size=30,
    ),
    size=st.integers(1, 10),
    crashes=st.booleans(),
)
def test_after_a_deletion_it_is_as_if_the_user_had_never_been(
    log: list[tuple[int, str, str, str]], size: int, crashes: bool
) -> None:
    """For what is remembered; the clock stays where it is."""
    log.sort()
    host, other = Host(), Host()
    for start in range(0, len(log), size):
        part = log[start : start + size]
        host.put([event(*one) for one in part])
        # The other meets the same times, and nothing of u.
        other.put([event(at, user if user != "u" else "nobody", item, i) for at, user, item, i in part])
    delete(host, "u")
    delete(other, "nobody")
    if crashes:
        host.crash()
    assert host.intake.event_ids.seen == other.intake.event_ids.seen
    assert host.intake.tiles is not None and other.intake.tiles is not None
    pairs, expected = ({d: set(p) for d, p in of.tiles.pairs.items() if p} for of in (host.intake, other.intake))
    assert pairs == expected


# ------------------------------------------------------------------------------------------ properties

good = st.builds(
    event,
    st.integers(0, 60_000),
    st.sampled_from("uv"),
    st.sampled_from("ij"),
    st.sampled_from(["", "x", "y", "z"]),
)
junk = st.binary(max_size=20).map(lambda raw: raw.replace(b"\n", b""))
logs = st.lists(st.one_of(good, good, good, junk), max_size=40)


@given(log=logs, event_time=st.booleans())
def test_the_ledger_balances(log: list[bytes], event_time: bool) -> None:
    host = Host(replace(CONFIG, event_time=event_time, shards=3))
    host.put(log)
    counts = host.intake.counts
    assert counts.read == sum(1 for raw in log if raw.strip())
    assert counts.read == counts.accepted + sum(counts.rejected.values()) + counts.late + counts.duplicate
    assert len(host.accepted) == counts.accepted == len(host.lines)
    assert len(host.letters) == counts.read - counts.accepted
    assert host.reasons.count("late") == counts.late and host.reasons.count("duplicate") == counts.duplicate
    assert host.fed == counts.accepted - counts.tile_late
    known = set(log)
    assert set(host.lines) <= known
    assert {base64.b64decode(letter["raw"]) for letter in host.letters} <= known


def by_the_book(log: list[bytes], lag: int, horizon: int) -> list[str]:
    """The decisions on one file, the slow and obvious way: each looks at all that came before."""
    parser = EventParser(EventFormat())
    decisions: list[str] = []
    accepted: list[tuple[int, str, str]] = []
    newest = 0
    for raw in log:
        if not raw.strip():
            continue
        parsed = parser.parse_json(raw)
        if isinstance(parsed[0], str):
            decisions.append(parsed[0])
            continue
        time, event_id, user = parsed[0], parsed[1], parsed[2]
        late, newest = newest - time > lag, max(newest, time)
        if late:
            decisions.append("late")
        elif event_id and any(u == user and e == event_id and abs(t - time) <= horizon for t, e, u in accepted):
            decisions.append("duplicate")
        else:
            decisions.append("accepted")
            accepted.append((time, event_id, user))
    return decisions


@example(
    files=[
        [event(0, event_id="x"), event(15_000, event_id="x"), event(9_000)],
        [event(14_900)],
    ]
)
@given(files=st.lists(logs, min_size=2, max_size=3))
def test_no_accepted_event_is_behind_the_watermark_of_merged_files(files: list[list[bytes]]) -> None:
    parser = EventParser(EventFormat())
    order = []
    for number, log in enumerate(files):
        place = 0
        for at, raw in enumerate(log):
            parsed = parser.parse_json(raw)
            place = place if isinstance(parsed[0], str) else max(place, parsed[0])
            order.append((place, number, at))
    host = Host()
    for _, number, at in sorted(order):
        before, known = host.intake.watermark, len(host.accepted)
        host.put([files[number][at]], source=str(number))
        assert all(row[0] >= before for row in host.accepted[known:])


@given(log=logs, cuts=st.lists(st.integers(0, 40)), crashes=st.sets(st.integers(0, 40)))
def test_decisions_do_not_depend_on_chunks_or_on_crashes(log: list[bytes], cuts: list[int], crashes: set[int]) -> None:
    whole = Host()
    whole.put(log)
    bounds = sorted({0, len(log), *(c for c in cuts if c < len(log))})
    host = Host()
    for number, (start, stop) in enumerate(itertools.pairwise(bounds)):
        if number in crashes:
            host.crash()
        host.put(log[start:stop])
    strip = [row[:6] for row in host.accepted]
    assert strip == [row[:6] for row in whole.accepted]
    assert host.letters == whole.letters
    assert host.tiles == whole.tiles
    assert host.intake.counts == whole.intake.counts
    counted = [d for d in by_the_book(log, 5_000, 20_000) if d != "accepted"]
    assert counted == whole.reasons


@example(log=[event(0, event_id="x"), event(60_000), event(0, event_id="x")], cuts=[2], crashes=set())
@example(
    log=[event(30_000, event_id="x"), event(0, event_id="x"), event(45_000), event(30_000, event_id="x")],
    cuts=[1, 2, 3],
    crashes={3},
)
@given(log=logs, cuts=st.lists(st.integers(0, 40)), crashes=st.sets(st.integers(0, 40)))
def test_nor_do_they_in_processing_time(log: list[bytes], cuts: list[int], crashes: set[int]) -> None:
    config = replace(CONFIG, event_time=False)
    whole = Host(config)
    whole.put(log)
    bounds = sorted({0, len(log), *(c for c in cuts if c < len(log))})
    host = Host(config)
    for number, (start, stop) in enumerate(itertools.pairwise(bounds)):
        if number in crashes:
            host.crash()
        host.put(log[start:stop])
    assert host.letters == whole.letters
    assert host.intake.counts == whole.intake.counts


@example(
    first=[event(0, event_id="x"), event(60_000, event_id="y")],
    second=[event(0, event_id="x")],
    size=1,
    event_time=True,
    lag=5_000,
)
@given(
    first=logs,
    second=logs,
    size=st.integers(1, 40),
    event_time=st.booleans(),
    lag=st.sampled_from([5_000, 50_000]),
)
def test_nor_does_an_input_that_follows_another(
    first: list[bytes], second: list[bytes], size: int, event_time: bool, lag: int
) -> None:
    config = replace(CONFIG, event_time=event_time, out_of_orderness=lag)
    whole, host = Host(config), Host(config)
    for log in (first, second):
        whole.put(log)
        whole.put([], ended=True)
        for start in range(0, len(log), size):
            host.put(log[start : start + size])
            host.crash()
        host.put([], ended=True)
        host.crash()
    assert host.letters == whole.letters
    assert host.tiles == whole.tiles
    assert host.intake.counts == whole.intake.counts


@pytest.mark.parametrize("merged", [True, False])
@pytest.mark.parametrize("event_time", [True, False])
@given(
    log=st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 90), st.sampled_from("xyz")), max_size=25),
    cuts=st.sets(st.integers(1, 24)),
)
def test_each_source_has_a_clock_however_the_log_is_cut(
    merged: bool, event_time: bool, log: list[tuple[str, int, str]], cuts: set[int]
) -> None:
    config = replace(CONFIG, merged=merged, event_time=event_time, dedup_horizon=30_000, out_of_orderness=20_000)

    def judged(bounds: list[int]) -> tuple[list[str], object, int]:
        intake, letters = Intake(config), []
        for start, end in itertools.pairwise(bounds):
            part = log[start:end]
            lines = [event(1_000 * time, event_id=event_id) for _, time, event_id in part]
            runs = [Run(source, start + at, 1) for at, (source, _, _) in enumerate(part)]
            letters += intake.process(Chunk(runs, lines), now=1).dead_letters
        return letters, intake.counts, intake.watermark

    one_by_one = judged(list(range(len(log) + 1)))
    assert judged(sorted({0, len(log), *(cut for cut in cuts if cut < len(log))})) == one_by_one


# ------------------------------------------------------------------------------------------ hidden ids


def key() -> bytes:
    return b"0123456789abcdef"


def test_users_go_on_by_hidden_ids_and_nothing_else_changes() -> None:
    log = [event(n, user=f"u{n % 3}", item=f"i{n}", event_id=str(n // 2)) for n in range(40)]
    plain, secret = Host(replace(CONFIG, shards=1)), Host(replace(CONFIG, shards=1, id_key=key))
    for host in (plain, secret):
        host.put(log)
        host.put(log[:5], ended=True)
    assert plain.intake.counts == secret.intake.counts and plain.intake.counts.duplicate >= 5
    assert [row[2] for row in secret.accepted] == [hidden(row[2], key()) for row in plain.accepted]
    assert [row[3] for row in secret.accepted] == [row[3] for row in plain.accepted]
    # The original bytes stay what they were.
    assert [letter["raw"] for letter in secret.letters] == [letter["raw"] for letter in plain.letters]
    told = orjson.dumps([letter["message"] for letter in secret.letters]).decode()
    assert not any(f"'u{n}'" in told for n in range(3))


def test_a_hidden_user_has_the_shard_of_the_hidden_id() -> None:
    host = Host(replace(CONFIG, shards=8, id_key=key))
    result = host.put([event(1, user="ann")], ended=True)
    with_events = [shard for shard, blob in result.batches.items() if len(Batch.decode(blob).events)]
    assert with_events == [shard_of(hidden("ann", key()), 8)]
