"""Numbers for ids, against a dictionary."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from udfs import ids as ids_module
from udfs.ids import Group, Ids

# Half a character at the beginning, as the ids of shared rows have; others of one, two and four bytes.
TEXTS = st.text(st.sampled_from(["a", "b", "\0", "é", "😀", "\ud800"]), min_size=1, max_size=4)
ACTIONS = ["add", "remove", "distinct", "expect"]
STEPS = st.lists(st.tuples(st.sampled_from(ACTIONS), st.lists(TEXTS, max_size=12)), max_size=20)
HASHES = [hash, len, lambda text: len(text) - 7, lambda text: hash(text) & 0xF0]


class Slow:
    """The same by a dictionary."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}
        self.free: list[int] = []
        self.size = 0

    def add(self, texts: list[str]) -> list[int]:
        for text in texts:
            if text not in self.numbers:
                self.numbers[text] = self.free.pop() if self.free else self.size
                self.size = max(self.size, self.numbers[text] + 1)
        return [self.numbers[text] for text in texts]

    def remove(self, texts: list[str]) -> list[int]:
        removed = [self.numbers.pop(text) for text in texts]
        self.free += removed
        return removed


@pytest.mark.parametrize("hashed", HASHES)
@given(steps=STEPS)
def test_they_are_those_of_a_dictionary(hashed: object, steps: list[tuple[str, list[str]]]) -> None:
    ids, slow = Ids(), Slow()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ids_module, "hash", hashed, raising=False)  # texts that have one hash
        patch.setattr(ids_module, "_BYTES", 10)  # so that the texts are moved together
        for step, texts in steps:
            if step == "add":
                assert ids.add(texts).tolist() == slow.add(texts)
            elif step == "remove":
                known = [text for text in dict.fromkeys(texts) if text in slow.numbers]
                assert ids.remove(known).tolist() == slow.remove(known)
            elif step == "expect":
                ids.expect(5 * len(texts))
            else:
                distinct, slots, numbers = ids.distinct(texts)
                assert distinct == list(dict.fromkeys(texts))
                assert [distinct[slot] for slot in slots.tolist()] == texts
                assert numbers.tolist() == [slow.numbers.get(text, -1) for text in distinct]
            assert dict(ids) == slow.numbers
            assert len(ids) == len(slow.numbers)
            assert ids.find(texts).tolist() == [slow.numbers.get(text, -1) for text in texts]
            assert [text in ids for text in texts] == [text in slow.numbers for text in texts]
            assert all(ids.names[number] == text for text, number in slow.numbers.items())


def test_an_id_that_is_not_known_can_not_be_removed() -> None:
    ids = Ids()
    ids.add(["tea"])
    with pytest.raises(KeyError, match="rum"):
        ids.remove(["rum"])


def test_many_are_found_while_others_come_and_go() -> None:
    ids, rng = Ids(), np.random.default_rng(1)
    slow = Slow()
    for _ in range(20):
        texts = [f"u{n}" for n in rng.integers(0, 50_000, 5_000).tolist()]
        assert ids.add(texts).tolist() == slow.add(texts)
        going = list(dict.fromkeys(texts))[::3]
        assert ids.remove(going).tolist() == slow.remove(going)
    texts = [f"u{n}" for n in range(50_000)]
    assert ids.find(texts).tolist() == [slow.numbers.get(text, -1) for text in texts]


def test_room_is_made_once_for_those_that_are_expected() -> None:
    ids, slow = Ids(), Slow()
    for texts in (["gone", "tea"], [f"u{n}" for n in range(40)]):
        assert ids.add(texts).tolist() == slow.add(texts)
    assert ids.remove(["gone"]).tolist() == slow.remove(["gone"])
    ids.expect(10_000)
    table = ids._table
    for begin in range(0, 10_000, 1_000):
        texts = [f"u{n}" for n in range(begin, begin + 1_000)]
        assert ids.add(texts).tolist() == slow.add(texts)
    assert ids._table is table
    assert dict(ids) == slow.numbers


def test_a_group_of_shared_rows_has_them_last() -> None:
    ids = Ids()
    ids.add(["tea"])
    group = Group(ids, ["rum", "tea", "rum"], {"rum": "\ud8000"})
    assert (group.distinct, group.slots.tolist(), group.heirs) == (["rum", "tea", "\ud8000"], [0, 1, 0], {0: 2})
    assert group.numbers.tolist() == [-1, 0, -1]
