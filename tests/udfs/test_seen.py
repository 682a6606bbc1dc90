"""What users met last: against lists, whatever moves and is forgotten on the way."""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from udfs import seen as module
from udfs.ids import Group, Ids
from udfs.seen import Seen

USERS = 6
events = st.lists(st.tuples(st.integers(0, USERS - 1), st.sampled_from([*"abcdefghij", "\n,", "\u00e9"])), max_size=40)
steps = st.one_of(
    st.tuples(st.just("meet"), events, st.integers(1, 5)),
    st.tuples(st.just("put"), st.integers(0, USERS - 1), st.lists(st.sampled_from("klmnop"), unique=True, max_size=12)),
    st.tuples(st.just("clear"), st.integers(0, USERS - 1)),
)


def meet(of: Seen, met: list[tuple[int, str]], size: int) -> None:
    users, items = (
        Group(Ids(), list(column)) for column in ([str(user) for user, _ in met], [item for _, item in met])
    )
    of.meet(np.array(users.distinct, dtype=np.intp), users.slots, items.distinct, items.slots, size)


@given(st.lists(steps, max_size=12))
def test_it_is_a_list_for_each_user(drawn: list[Any]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_PLACES", 3)
        patch.setattr(module, "_NAMES", 3)
        seen, expected = Seen(), [list[str]() for _ in range(USERS)]
        seen.fit(USERS)
        for name, *of in drawn:
            if name == "meet":
                met, size = of
                meet(seen, met, size)
                for user, item in met:
                    before = [known for known in expected[user] if known != item]
                    expected[user] = [*before, item][-size:]
            elif name == "put":
                seen.put(np.array(of[:1]), of[1:])
                expected[of[0]] = of[1]
            else:
                seen.clear(np.array(of))
                expected[of[0]] = []
            assert [list(seen[user]) for user in range(USERS)] == expected
        written = seen.json(np.arange(USERS))
        assert [orjson.loads(history) for history in written] == expected
        assert written == [orjson.dumps(history) for history in expected]


def test_what_nobody_has_seen_any_more_is_forgotten() -> None:
    seen = Seen()
    seen.fit(1)
    for start in range(0, 1_000_000, 10_000):
        meet(seen, [(0, str(item)) for item in range(start, start + 10_000)], 50)
    assert list(seen[0]) == [str(item) for item in range(999_950, 1_000_000)]
    assert len(seen._names) < 250_000 and len(seen._items) < 10_000


def test_histories_that_grow_together_do_not_keep_what_they_left() -> None:
    seen, users = Seen(), 50_000
    seen.fit(users)
    for item in range(64):
        seen.meet(np.arange(users), np.arange(users), [str(item)], np.zeros(users, dtype=np.intp), 64)
    assert len(seen[7]) == 64 and len(seen._items) < 3 * 64 * users
