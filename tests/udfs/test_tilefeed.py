"""What the windows are fed: sums that do not depend on order, and distinct items that add up."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from udfs import tilefeed
from udfs.tilefeed import (
    OF_ITEM,
    OF_USER,
    RECORD,
    UNIT,
    OpenSessions,
    TileConfig,
    TileFeed,
    TileFeeder,
    escape,
    paired,
    split_pair,
    total,
    unescape,
)

GAP = 10
SPAN = 25
TYPES = ("view", "buy", "rating")
CONFIG = TileConfig(TYPES, GAP, SPAN)

Event = tuple[str, str, str, float, int]  # user, item, type, value, time


def fed(feeder: TileFeeder, log: Sequence[Event], watermark: int, number: int, puts: dict[str, bytes]) -> TileFeed:
    users, items, types, values, times = zip(*log, strict=True)
    return feeder.feed(users, items, types, np.array(values), np.array(times), watermark, number, puts)


def records(text: str) -> list[tuple[str, list[int]]]:
    return [(unescape(raw), [*map(int, numbers)]) for raw, *numbers in (r.split(UNIT) for r in text.split(RECORD))]


@given(st.text(st.sampled_from("ab\x1d\x1e\x1fer"), max_size=8))
def test_escaping_is_undone(text: str) -> None:
    escaped = escape(text)
    assert RECORD not in escaped and UNIT not in escaped
    assert unescape(escaped) == text


@given(st.lists(st.integers(-(10**15), 10**15).map(float) | st.floats(-1e6, 1e6), min_size=1, max_size=20))
def test_values_are_summed_as_whole_millionths(values: list[float]) -> None:
    log = [("u", "i", "view", value, SPAN * n) for n, value in enumerate(values)]
    feed = fed(TileFeeder(CONFIG), log, 1, 0, {})
    limbs = [(high, low) for key, (_, _, high, low, *_) in records(feed.tiles) if key == "uu"]
    assert all(0 <= low < 2**32 and abs(high) < 2**38 for high, low in limbs)
    # Summed in any order, it is the sum of the rounded values.
    assert [total(*pair) for pair in limbs] == pytest.approx(values, abs=1e-6, rel=1e-15)
    together = total(sum(high for high, _ in limbs), sum(low for _, low in limbs))
    assert together == pytest.approx(sum(values), abs=1e-6 * len(values), rel=1e-12)
    feed = fed(TileFeeder(CONFIG), [(*event[:4], 0) for event in log], 1, 0, {})
    whole = [numbers for _, numbers in records(feed.tiles) + records(feed.sessions)]
    assert all(numbers[2:4] == [sum(high for high, _ in limbs), sum(low for _, low in limbs)] for numbers in whole)


@given(st.lists(st.tuples(st.integers(0, 2**20), st.integers(-(2**20), 2**20)), min_size=1, max_size=50))
def test_counts_are_summed_in_pairs(pairs: list[tuple[int, int]]) -> None:
    first, second = zip(*pairs, strict=True)
    assert split_pair(sum(paired(*pair) for pair in pairs)) == (sum(first), sum(second))


# ------------------------------------------------------------------------------------------- sessions

events = st.lists(
    st.tuples(st.sampled_from("uv"), st.sampled_from("abc"), st.integers(0, 120)), min_size=1, max_size=60
)


def by_the_book(log: list[tuple[str, str, int]]) -> dict[tuple[str, int, int], int]:
    """Distinct items of each session: its events sorted, cut where more than a gap lies between two."""
    found: dict[tuple[str, int, int], int] = {}
    for user in {user for user, _, _ in log}:
        mine = sorted((time, item) for u, item, time in log if u == user)
        cuts = [0, *(n for n in range(1, len(mine)) if mine[n][0] - mine[n - 1][0] > GAP), len(mine)]
        for start, end in itertools.pairwise(cuts):
            span = mine[start:end]
            found[user, span[0][0], span[-1][0]] = len({item for _, item in span})
    return found


def summed(log: list[tuple[str, str, int]], adds: list[int]) -> dict[tuple[str, int, int], int]:
    """What each event added, summed over the sessions."""
    sums = dict.fromkeys(by_the_book(log), 0)
    for (user, _, time), added in zip(log, adds, strict=True):
        for session in sums:
            if session[0] == user and session[1] <= time <= session[2]:
                sums[session] += added
    return sums


@given(events)
def test_what_events_add_in_any_order_is_the_distinct_count(log: list[tuple[str, str, int]]) -> None:
    sessions = OpenSessions(GAP)
    adds = [sessions.add(user, {item}, time, time) for user, item, time in log]
    assert summed(log, adds) == by_the_book(log)


class Host:
    """Keeps the blobs of a feeder, and can crash after a chunk."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.feeder = TileFeeder(CONFIG)
        self.number = 0

    def put(self, log: list[tuple[str, str, int]], watermark: int = 0, *, ended: bool = False) -> TileFeed:
        return self.feed([(user, item, "view", 1.0, time) for user, item, time in log], watermark, ended=ended)

    def feed(self, log: Sequence[Event], watermark: int = 0, *, ended: bool = False) -> TileFeed:
        puts: dict[str, bytes] = {}
        removes: list[str] = []
        feed = fed(self.feeder, log, watermark, self.number, puts) if log else TileFeed("", "", 0)
        self.feeder.forget(watermark, ended=ended, number=self.number, puts=puts, removes=removes)
        self.number += 1
        self.blobs |= puts
        for name in removes:
            del self.blobs[name]
        return feed

    def crash(self) -> None:
        self.feeder = TileFeeder(CONFIG)
        self.feeder.restore(list(self.blobs.items()))

    @property
    def names(self) -> list[str]:
        return sorted(name for name in self.blobs if not name.startswith("q:"))


# ------------------------------------------------------------------------------------- partial sums

# Close to each other and far apart, in any order, with ties; ids that look like each other's and like separators.
logs = st.lists(
    st.tuples(
        st.sampled_from(["u", "uu", "v,\x1e"]),
        st.sampled_from(["a", "u", "],["]),
        st.sampled_from([*TYPES, "other"]),
        st.integers(-(10**12), 10**12).map(lambda millionths: millionths / 10**6),
        st.integers(0, 120) | st.sampled_from([0, GAP, 86_399_999, 86_400_000]),
    ),
    min_size=1,
    max_size=60,
)
Sums = list[int]  # events, millionths, distinct, then counts by type


def added(sums: Sequence[Sums]) -> Sums:
    return [sum(column) for column in zip(*sums, strict=True)]


def single(log: Sequence[Event], new: Sequence[int]) -> list[Sums]:
    return [
        [1, round(value * 10**6), first, *(int(kind == name) for name in TYPES)]
        for (_, _, kind, value, _), first in zip(log, new, strict=True)
    ]


def obvious_tiles(log: Sequence[Event]) -> dict[tuple[str, int], Sums]:
    """Event by event: a pair counts where it comes first in its day."""
    met: set[tuple[int, str, str]] = set()
    new = []
    for user, item, _, _, time in log:
        pair = (time // 86_400_000, user, item)
        new.append(int(pair not in met))
        met.add(pair)
    found: dict[tuple[str, int], list[Sums]] = {}
    for (user, item, _, _, time), sums in zip(log, single(log, new), strict=True):
        for key in (OF_USER + user, OF_ITEM + item):
            found.setdefault((key, time // SPAN), []).append(sums)
    return {key: added(sums) for key, sums in found.items()}


def obvious_sessions(log: Sequence[Event]) -> dict[tuple[str, int, int], Sums]:
    """A user's events sorted, cut where more than a gap lies between two."""
    found = {}
    distinct = by_the_book([(user, item, time) for user, item, _, _, time in log])
    for user, start, end in distinct:
        mine = [event for event in log if event[0] == user and start <= event[4] <= end]
        sums = added(single(mine, [0] * len(mine)))[:2]
        found[OF_USER + user, start, end] = [*sums, distinct[user, start, end]]
    return found


def sums_of(numbers: list[int]) -> Sums:
    met, high, low, *pairs = numbers
    n, distinct = split_pair(met)
    by_type = [count for pair in pairs for count in split_pair(pair)]
    assert all(count == 0 for count in by_type[len(TYPES) :])
    return [n, high * 2**32 + low, distinct, *by_type[: len(TYPES)]]


def windowed(feeds: Sequence[TileFeed]) -> dict[tuple[str, int], Sums]:
    """What tumbling windows make of the feed."""
    found: dict[tuple[str, int], list[Sums]] = {}
    for feed in feeds:
        for key, (time, *numbers) in records(feed.tiles):
            found.setdefault((key, time // SPAN), []).append(sums_of(numbers))
    return {key: added(sums) for key, sums in found.items()}


def in_sessions(feeds: Sequence[TileFeed]) -> dict[tuple[str, int, int], Sums]:
    """What session windows make of the feed: all its records sorted, cut where more than a gap lies between two."""
    rows = sorted((record for feed in feeds for record in records(feed.sessions)), key=lambda r: (r[0], r[1][0]))
    found: dict[tuple[str, int, int], Sums] = {}
    sessions: list[list[tuple[str, list[int]]]] = []
    for key, numbers in rows:
        last = sessions[-1][-1] if sessions else None
        if last is None or last[0] != key or numbers[0] - last[1][0] > GAP:
            sessions.append([])
        sessions[-1].append((key, numbers))
    for session in sessions:
        (key, (start, *_)), (_, (end, *_)) = session[0], session[-1]
        found[key, start, end] = added([sums_of(numbers[1:])[:3] for _, numbers in session if len(numbers) > 1])
    return found


@given(logs, st.integers(1, 30))
@example([("u", "a", "view", 1.0, time) for time in (0, 20, 10)], 2)  # the last event joins two sessions of one item
@example([("u", "a", "view", 1.0, time) for time in range(0, 60, GAP)], 9)  # each event keeps the session together
def test_partial_sums_give_the_windows_of_single_events(log: list[Event], size: int) -> None:
    host = Host()
    feeds = []
    for start in range(0, len(log), size):
        feeds.append(host.feed(log[start : start + size]))
        host.crash()
    assert windowed(feeds) == obvious_tiles(log)
    assert in_sessions(feeds) == obvious_sessions(log)


@given(logs)
def test_a_record_is_at_the_time_of_an_event(log: list[Event]) -> None:
    feed = fed(TileFeeder(CONFIG), log, 0, 0, {})
    times = {(key, time) for user, item, *_, time in log for key in (OF_USER + user, OF_ITEM + item)}
    assert {(key, numbers[0]) for key, numbers in records(feed.tiles) + records(feed.sessions)} <= times


@given(logs)
def test_a_chunk_has_one_record_for_each_tile(log: list[Event]) -> None:
    feed = fed(TileFeeder(CONFIG), log, 0, 0, {})
    assert len(records(feed.tiles)) == len(obvious_tiles(log))


def test_a_run_is_kept_together_by_few_records() -> None:
    log = [("u", "a", "view", 1.0, time) for time in (0, 1, 2, 9, 10, 11, 12, 19, 21, 22, 22, 50, 55)]
    feed = fed(TileFeeder(CONFIG), log, 0, 0, {})
    times = [(time, len(more)) for _, (time, *more) in records(feed.sessions)]
    assert sorted(times) == [(0, 3), (10, 0), (19, 0), (22, 0), (50, 3), (55, 0)]


@given(events, st.integers(1, 20), st.integers(0, 20), st.integers(1, 3))
def test_sessions_go_on_after_a_crash(log: list[tuple[str, str, int]], size: int, slack: int, items: int) -> None:
    log.sort(key=lambda event: event[2])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tilefeed, "_SLACK", slack)  # whole sessions take the place of events early
        patch.setattr(tilefeed, "_ITEMS", items)
        host = Host()
        feeds = []
        for start in range(0, len(log), size):
            part = log[start : start + size]
            feeds.append(host.put(part, watermark=part[-1][2]))
            host.crash()
    found = {(key[1:], start, end): sums[2] for (key, start, end), sums in in_sessions(feeds).items()}
    assert found == by_the_book(log)


def test_state_of_closed_sessions_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tilefeed, "_SLACK", 3)
    host = Host()
    host.put([("u", "a", 0), ("v", "a", 5)])
    host.put([("v", "b", 9)], watermark=9)
    assert host.names == ["s:0", "s:1"]
    host.put([("v", "c", 12)], watermark=11)  # no event from here on can touch u's session
    assert host.names == ["w:2:0"]
    assert host.feeder._sessions.close(11) == 3
    host.put([], watermark=12, ended=True)
    assert host.names == []


def test_an_event_just_a_gap_later_joins_the_session() -> None:
    sessions = OpenSessions(GAP)
    assert sessions.add("u", {"a"}, 0, 0) == 1
    assert sessions.close(watermark=GAP) == 1
    assert sessions.add("u", {"a"}, GAP, GAP) == 0
    assert sessions.close(watermark=2 * GAP + 1) == 0
