"""The journal of requests: on disk before it counts, stamped once, and met at the same line by every replay."""

from __future__ import annotations

import fcntl
import gzip
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.udfs.test_reading import event, feed_of
from udfs.generator import GeneratorConfig, GeneratorFeed
from udfs.reading import FileFeed, encode_position
from udfs.requests import Inbox, Journal, JournalError, Place, Request, Stamp

NOW = 1_700_000_000_000


def ask(path: Path, *user_ids: str, now: int = NOW) -> list[Request]:
    with Journal(path).requesting(user_ids, now) as made:
        return made


def read(path: Path) -> Journal:
    journal = Journal(path)
    journal.refresh()
    return journal


# --------------------------------------------------------------------------------------------- the file


def test_numbers_go_up_also_by_a_clock_that_goes_back(tmp_path: Path) -> None:
    path = tmp_path / "state" / "requests.jsonl"
    assert ask(path, "ann", "bob") == [(NOW, "ann"), (NOW + 1, "bob")]
    assert ask(path, "ann", now=NOW - 9) == [(NOW + 2, "ann")]
    assert ask(path, 'c\n"', now=NOW + 9) == [(NOW + 9, 'c\n"')]
    assert [request.user_id for request in read(path).requests] == ["ann", "bob", "ann", 'c\n"']


def test_a_torn_line_is_no_request_and_is_cut_away(tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    ask(path, "ann")
    whole = path.read_bytes()
    for torn in (b'{"request":17', b'{"stamped":[1],"log":"file","place":[0,1]}'):
        path.write_bytes(whole + torn)
        journal = read(path)
        assert [request.user_id for request in journal.requests] == ["ann"] and journal.stamps == {}
        ask(path, "bob")
        assert [request.user_id for request in read(path).requests] == ["ann", "bob"]
        assert path.read_bytes().count(b"\n") == 2 and path.read_bytes().endswith(b'"bob"}\n')
        journal.refresh()
        assert [request.user_id for request in journal.requests] == ["ann", "bob"]
        path.write_bytes(whole)


def test_a_line_of_someone_else_is_named(tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    for line in (b"ann\n", b"[]\n", b"{}\n", b'{"request":1}\n'):
        path.write_bytes(line)
        with pytest.raises(JournalError, match=r"requests\.jsonl holds a line that is no request"):
            read(path)


def test_many_may_ask_at_once(tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    code = (
        "import sys; from pathlib import Path; from udfs.requests import Journal\n"
        "for n in range(50):\n"
        "    with Journal(Path(sys.argv[1])).requesting([f'{sys.argv[2]}{n}'], 1): pass\n"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code, path, name]) for name in "abc"]
    assert [process.wait() for process in processes] == [0, 0, 0]
    requests = read(path).requests
    assert {user_id for _, user_id in requests} == {f"{name}{n}" for name in "abc" for n in range(50)}
    assert [number for number, _ in requests] == list(range(1, 151))


def test_a_stamp_is_written_once(tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    [request] = ask(path, "ann")
    first, second = read(path), read(path)  # a reader that was given up may live a moment longer
    first.stamp("file", Place(0, 7))
    second.stamp("file", Place(0, 9))
    assert first.stamps == {request.number: Stamp("file", Place(0, 7))} == read(path).stamps == second.stamps
    assert len(path.read_bytes().splitlines()) == 2


def test_nothing_is_stamped_while_someone_asks(tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    inbox = Inbox(Journal(path), "file", 0)
    with Journal(path).requesting(["ann"], NOW):
        assert inbox.due(Place(0, 1), ended=False) == []
        assert [request.user_id for request in inbox.ahead()] == ["ann"]
    assert [request.user_id for request in inbox.due(Place(0, 2), ended=False)] == ["ann"]
    assert read(path).stamps[NOW] == Stamp("file", Place(0, 2)) and inbox.ahead() == []


def test_an_emptied_journal_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    ask(path, "ann")
    journal = read(path)
    Journal(path).forget()
    assert path.read_bytes() == b""
    journal.refresh()
    assert journal.requests == [] and journal.stamps == {}
    Journal(tmp_path / "absent" / "requests.jsonl").forget()
    with path.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


# -------------------------------------------------------------------------------------------- the inbox


def test_without_requests_nothing_is_made(tmp_path: Path) -> None:
    inbox = Inbox(Journal(tmp_path / "requests.jsonl"), "file", 0)
    assert inbox.due(Place(3, 5), ended=True) == [] and inbox.limit(Place(3, 5)) is None
    assert list(tmp_path.iterdir()) == []


def test_a_request_takes_effect_where_it_is_stamped(tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    ask(path, "ann")
    read(path).stamp("file", Place(1, 100))
    ask(path, "bob")
    read(path).stamp("file", Place(1, 120))
    inbox = Inbox(Journal(path), "file", 0)
    assert inbox.due(Place(0, 90), ended=False) == [] and len(inbox.ahead()) == 2
    assert inbox.limit(Place(0, 90)) is None  # the input ends before it
    assert inbox.limit(Place(1, 90)) == 10
    assert inbox.due(Place(1, 100), ended=False) == [(NOW, "ann")]
    assert inbox.limit(Place(1, 100)) == 20 and inbox.taken == NOW
    assert inbox.due(Place(1, 100), ended=True) == [(NOW + 1, "bob")]  # the log has become shorter
    again = Inbox(Journal(path), "file", NOW)
    assert again.due(Place(1, 121), ended=False) == [(NOW + 1, "bob")]


def test_what_another_log_has_met_takes_effect_at_once(tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    ask(path, "ann")
    read(path).stamp("file", Place(1, 100))
    inbox = Inbox(Journal(path), "generator", 0)
    assert inbox.limit(Place(0, 0)) is None
    assert inbox.due(Place(0, 0), ended=False) == [(NOW, "ann")]


# --------------------------------------------------------------------------------------------- a replay


def flow(feed: Any, inbox: Inbox, found: list[str], steps: int) -> None:
    """What the reader does, ``steps`` times: requests and lines in the order in which they go on."""
    for _ in range(steps):
        found += [f"delete {request.user_id}" for request in inbox.due(feed.place, ended=feed.ended)]
        if feed.ended:
            return
        chunk = feed.read(inbox.limit(feed.place))
        assert chunk is not None
        found += [line.decode() for line in chunk.lines] + ["end"] * chunk.ended


@given(
    asked=st.lists(st.integers(0, 12), min_size=1, max_size=4),
    crash=st.integers(0, 12),
    sizes=st.tuples(st.integers(1, 400), st.integers(1, 400)),
    log=st.sampled_from(["one file", "two files", "packed", "generator"]),
)
def test_a_replay_meets_requests_between_the_same_lines(
    tmp_path_factory: pytest.TempPathFactory, asked: list[int], crash: int, sizes: tuple[int, int], log: str
) -> None:
    folder = tmp_path_factory.mktemp("log")
    lines = [event(1_000 * at, f"u{at}") for at in range(30)]
    packed = log == "packed"
    paths = [folder / f"{name}.jsonl{'.gz' * packed}" for name in ("a", "b")[: 2 if log == "two files" else 1]]
    for number, path in enumerate(paths):
        text = b"".join(line + b"\n" for line in lines[number :: len(paths)])
        path.write_bytes(gzip.compress(text) if packed else text)

    def feed(size: int) -> Any:
        if log == "generator":
            config = GeneratorConfig(events=30, users=3, items=3)
            return GeneratorFeed(config, "run", chunk_events=1 + size // 60)
        return feed_of(*paths, chunk_bytes=size)

    journal = folder / "requests.jsonl"
    first = feed(sizes[0])
    first.seek(None)
    inbox, found = Inbox(Journal(journal), "log", 0), []
    position, taken, before = first.position(), 0, 0
    for step in range(70):
        if step == crash:
            position, taken, before = first.position(), inbox.taken, len(found)
        if step in asked:
            ask(journal, f"s{step}")
        flow(first, inbox, found, 1)
    assert found.count("end") == 1 and sum(entry.startswith("delete") for entry in found) == len(set(asked))

    again = feed(sizes[1])
    again.seek(position)
    replayed = found[:before]
    flow(again, Inbox(Journal(journal), "log", taken), replayed, 100)
    assert replayed == found


def test_the_next_input_is_another_place(tmp_path: Path) -> None:
    path, journal = tmp_path / "a.jsonl", tmp_path / "requests.jsonl"
    path.write_bytes(b"a\nb\n")
    ended = feed_of(path)
    ended.seek(None)
    found: list[str] = []
    flow(ended, Inbox(Journal(journal), "file", 0), found, 5)
    ask(journal, "ann")
    later = feed_of(path, run_id="second")
    later.seek(ended.position())
    assert ended.place == later.place == Place(1, 2)
    path.write_bytes(b"a\nb\nc\n")
    flow(later, Inbox(Journal(journal), "file", 0), found, 5)
    assert found == ["a", "b", "end", "delete ann", "c", "end"] and later.place == Place(2, 3)
    # Replayed from the beginning, in one run: the first end is not met again.
    whole: FileFeed = feed_of(path, run_id="third")
    whole.seek(None)
    replayed: list[str] = []
    flow(whole, Inbox(Journal(journal), "file", 0), replayed, 5)
    assert replayed == ["a", "b", "c", "end", "delete ann"]


def test_positions_of_before_are_read(tmp_path: Path) -> None:
    feed = GeneratorFeed(GeneratorConfig(events=3), "run")
    feed.seek(encode_position({"next": 2, "until": 3, "ended": False, "run_id": "run"}))
    assert feed.place == Place(0, 2)
