"""What the windows are fed: sums that do not depend on order, and distinct items that add up."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from udfs import tilefeed
from udfs.tilefeed import RECORD, UNIT, OpenSessions, TileConfig, TileFeed, TileFeeder, escape, total, unescape

GAP = 10
CONFIG = TileConfig(("view",), GAP)


@given(st.text(st.sampled_from("ab\x1d\x1e\x1fer"), max_size=8))
def test_escaping_is_undone(text: str) -> None:
    escaped = escape(text)
    assert RECORD not in escaped and UNIT not in escaped
    assert unescape(escaped) == text


def feed_of(
    feeder: TileFeeder, log: list[tuple[str, str, float, int]], watermark: int, number: int, puts: dict[str, bytes]
) -> list[TileFeed]:
    user_ids, item_ids, values, times = zip(*log, strict=True)
    columns = (user_ids, item_ids, ["view"] * len(log), np.array(values), np.array(times))
    return feeder.feed(*columns, watermark, number=number, puts=puts)


@given(st.lists(st.integers(-(10**15), 10**15).map(float) | st.floats(-1e6, 1e6), min_size=1, max_size=20))
def test_values_are_summed_as_whole_millionths(values: list[float]) -> None:
    feeds = feed_of(TileFeeder(CONFIG), [("u", "i", value, 1) for value in values], 1, 0, {})
    records = [record.split(UNIT) for record in feeds[0].events.split(RECORD)]
    limbs = [(int(record[4]), int(record[5])) for record in records]
    assert all(0 <= low < 2**32 and abs(high) < 2**38 for high, low in limbs)
    # Summed in any order, it is the sum of the rounded values.
    assert [total(*pair) for pair in limbs] == pytest.approx(values, abs=1e-6, rel=1e-15)
    together = total(sum(high for high, _ in limbs), sum(low for _, low in limbs))
    assert together == pytest.approx(sum(values), abs=1e-6 * len(values), rel=1e-12)


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
    assert summed(log, [sessions.add(*event) for event in log]) == by_the_book(log)


class Host:
    """Keeps the blobs of a feeder, and can crash after a chunk."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.feeder = TileFeeder(CONFIG)
        self.number = 0

    def put(self, log: list[tuple[str, str, int]], watermark: int = 0, *, ended: bool = False) -> list[int]:
        puts: dict[str, bytes] = {}
        removes: list[str] = []
        added: list[int] = []
        if log:
            fed = [(user, item, 1.0, time) for user, item, time in log]
            [feed] = feed_of(self.feeder, fed, watermark, self.number, puts)
            added = [int(record.split(UNIT)[7]) for record in feed.events.split(RECORD)]
        self.feeder.forget(watermark, ended=ended, number=self.number, puts=puts, removes=removes)
        self.number += 1
        self.blobs |= puts
        for name in removes:
            del self.blobs[name]
        return added

    def crash(self) -> None:
        self.feeder = TileFeeder(CONFIG)
        self.feeder.restore(list(self.blobs.items()))

    @property
    def names(self) -> list[str]:
        return sorted(name for name in self.blobs if not name.startswith("p:"))


@given(events, st.integers(1, 20), st.integers(0, 20), st.integers(1, 3))
def test_sessions_go_on_after_a_crash(log: list[tuple[str, str, int]], size: int, slack: int, items: int) -> None:
    log.sort(key=lambda event: event[2])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tilefeed, "_SLACK", slack)  # whole sessions take the place of events early
        patch.setattr(tilefeed, "_ITEMS", items)
        host = Host()
        adds: list[int] = []
        for start in range(0, len(log), size):
            part = log[start : start + size]
            adds += host.put(part, watermark=part[-1][2])
            host.crash()
    assert summed(log, adds) == by_the_book(log)


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
    assert sessions.add("u", "a", 0) == 1
    assert sessions.close(watermark=GAP) == 1
    assert sessions.add("u", "a", GAP) == 0
    assert sessions.close(watermark=2 * GAP + 1) == 0
