"""Pairs in a table are what they are in a set."""

from __future__ import annotations

import numpy as np
import orjson
from hypothesis import given
from hypothesis import strategies as st

from udfs.daypairs import DayPairs
from udfs.ids import placed

texts = st.sampled_from(["a", "b", "ab", "", "1:a", "\u00e9", "\U0001f375", '"]', "x" * 300]) | st.text(
    "uv", max_size=3
)
pairs = st.lists(st.tuples(texts, texts), max_size=60)


def added(to: DayPairs, some: list[tuple[str, str]]) -> list[bool]:
    (user_ids, users), (item_ids, items) = (placed([pair[side] for pair in some]) for side in (0, 1))
    new: list[bool] = to.add(list(user_ids), list(item_ids), users, items).tolist()
    return new


@given(drawn=pairs, size=st.integers(1, 20), gone=st.sets(texts, max_size=4), at_once=st.integers(1, 9))
def test_pairs_are_those_of_a_set(drawn: list[tuple[str, str]], size: int, gone: set[str], at_once: int) -> None:
    drawn = [(user_id or "u", item_id or "i") for user_id, item_id in drawn]
    table, known = DayPairs(), set[tuple[str, str]]()
    for number, start in enumerate(range(0, len(drawn), size)):
        some = drawn[start : start + size]
        first = [pair not in known and pair not in some[:at] for at, pair in enumerate(some)]
        assert added(table, some) == first
        known.update(some)
        if number == 1:
            assert table.drop(gone) == any(user_id in gone for user_id, _ in known)
            known = {pair for pair in known if pair[0] not in gone}
        again = DayPairs()
        for blob in table.encode(at_once):
            assert set(orjson.loads(blob)[0]) <= {user_id for user_id, _ in known}  # nobody who was forgotten
            again.decode(blob)
        assert set(table) == set(again) == known and len(table) == len(again) == len(known)


def test_many_pairs() -> None:
    table, rng = DayPairs(), np.random.default_rng(7)
    user_ids, item_ids = [f"u{n}" for n in range(3_000)], [f"i{n}" for n in range(500)]
    users, items = rng.integers(0, 3_000, 200_000), rng.integers(0, 500, 200_000)
    new = np.concatenate(
        [table.add(user_ids, item_ids, users[at], items[at]) for at in np.split(np.arange(200_000), 40)]
    )
    _, firsts = np.unique(users * 500 + items, return_index=True)
    assert np.flatnonzero(new).tolist() == sorted(firsts.tolist())
    assert len(table) == len(firsts)
