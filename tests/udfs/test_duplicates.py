"""Event ids in arrays are what they are in a dictionary, over deletions, compactions and restarts."""

from __future__ import annotations

from unittest import mock

import numpy as np
import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from udfs import duplicates
from udfs.duplicates import EventIds
from udfs.interactions import Interactions

HORIZON = 20
# Ids that look like each other's; two that a user and an id make in several ways; none.
texts = st.sampled_from(["a", "ab", "b", "\u00e9", "x" * 40])
event = st.tuples(st.integers(0, 100), texts, texts | st.just("") | st.sampled_from(["1", "2", "bb"]))
step = st.lists(event, min_size=1, max_size=12) | st.integers(0, 100) | st.sets(texts, max_size=2) | st.none()


class Plain:
    """The same by the definition."""

    def __init__(self) -> None:
        self.seen: dict[tuple[str, str], int] = {}
        self.stored: list[list[tuple[str, str]]] = []
        self.newest: list[int] = []

    def sift(self, events: list[tuple[int, str, str]], remembered_from: list[int]) -> dict[int, int]:
        """The places of duplicates, and when these had come before."""
        found, kept = dict[int, int](), list[tuple[int, tuple[str, str]]]()
        for at, (time, user_id, event_id) in enumerate(events):
            if not event_id:
                continue
            first = self.seen.get((user_id, event_id))
            if first is not None and abs(time - first) <= HORIZON and first >= remembered_from[at]:
                found[at] = first
                continue
            self.seen[user_id, event_id] = time if first is None else max(first, time)
            kept.append((time, (user_id, event_id)))
        if kept:
            self.stored.append([key for _, key in kept])
            self.newest.append(max(time for time, _ in kept))
        return found

    def forget(self, watermark: int) -> None:
        oldest = watermark - HORIZON
        due = [at for at, newest in enumerate(self.newest) if newest < oldest]
        for at in reversed(due):
            for key in self.stored.pop(at):
                if self.seen.get(key, oldest) < oldest:
                    del self.seen[key]
            del self.newest[at]

    def drop(self, user_ids: set[str]) -> None:
        self.seen = {key: time for key, time in self.seen.items() if key[0] not in user_ids}


@given(steps=st.lists(step, max_size=25), least=st.sampled_from([1, 2, 8, 1_024]))
@example(steps=[[(0, "a", "bb"), (0, "ab", "b")], {"a"}, None, [(1, "a", "bb"), (1, "ab", "b")]], least=1)
def test_ids_are_those_of_a_dictionary(
    steps: list[list[tuple[int, str, str]] | int | set[str] | None], least: int
) -> None:
    with mock.patch.object(duplicates, "_LEAST", least):  # soon full, soon written anew
        ids, plain, blobs = EventIds(HORIZON), Plain(), dict[str, bytes]()
        for number, now in enumerate(steps):
            puts, removes = dict[str, bytes](), list[str]()
            if isinstance(now, list):
                remembered_from = [max(time for time, _, _ in now[: at + 1]) - 2 * HORIZON for at in range(len(now))]
                events = Interactions.of(
                    [
                        [time, event_id, user_id, "i", "view", 1.0, 0, at]
                        for at, (time, user_id, event_id) in enumerate(now)
                    ]
                )
                found = ids.sift(events, np.arange(len(now)), np.array(remembered_from), number, puts)
                expected = plain.sift(now, remembered_from)
                assert {at: int(message.rsplit(" ", 1)[1]) for at, message in found.items()} == expected
            elif isinstance(now, int):
                ids.forget(now, removes)
                plain.forget(now)
            elif isinstance(now, set):
                ids.drop(now, puts, removes)
                plain.drop(now)
                assert not any(user_id in now for user_id, _ in ids.seen)
            else:
                ids = EventIds(HORIZON)
                for name, blob in blobs.items():
                    ids.restore(name, blob)
            blobs |= puts
            for name in removes:
                del blobs[name]
            assert ids.seen == plain.seen
            assert len(blobs) == ids.blobs
            assert ids._count - ids._forgotten == len(plain.seen)


def test_ids_are_taken_up_as_layout_1_has_them() -> None:
    ids = EventIds(HORIZON)
    ids.restore("d:0", orjson.dumps([[7, 9], ["3:anne1", "1:\u00e9:2"]]))
    ids.restore("d:1", orjson.dumps([[8], ["3:anne1"]]))
    assert ids.seen == {("ann", "e1"): 8, ("\u00e9", ":2"): 9}


def test_many_ids() -> None:
    ids, rng = EventIds(1_000), np.random.default_rng(3)
    blobs: dict[str, bytes] = {}
    for number in range(40):
        draws = rng.integers(0, 4_000, 2_000).tolist()
        rows = [[1 + 300 * number, f"e{draw}", f"u{draw % 77}", "i", "view", 1.0, 0, 0] for draw in draws]
        removes: list[str] = []
        found = ids.sift(Interactions.of(rows), np.arange(2_000), np.zeros(2_000, dtype=np.int64), number, blobs)
        assert len(found) > 2_000 - len(set(draws)) - 1
        ids.forget(300 * number, removes)
        for name in removes:
            del blobs[name]
    assert len(ids.seen) < 4_001 and len(ids._table) < 2**15 and len(ids._text) < 2**17


def test_another_text_of_the_same_hash_is_another_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "hashes_of", lambda texts: np.zeros(len(texts), dtype=np.int64))
    ids = EventIds(HORIZON)
    rows = [[5, event_id, user_id, "i", "view", 1.0, 0, 0] for user_id in ("a", "ab") for event_id in ("b", "bb", "b")]
    found = ids.sift(Interactions.of(rows), np.arange(6), np.zeros(6, dtype=np.int64), 0, {})
    assert sorted(found) == [2, 5] and len(ids.seen) == 4
