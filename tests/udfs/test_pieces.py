"""Bytes of many rows in one array are what they would be one by one."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.common import texts_in
from udfs import bytekernels, words
from udfs.pieces import Pieces, side_by_side

PARTS = st.lists(st.binary(max_size=40), max_size=20)
TEXTS = st.lists(st.text(st.characters(codec="utf-8"), max_size=20), min_size=1, max_size=20)


@given(parts=PARTS, start=st.integers(-25, 25), end=st.integers(-25, 25))
def test_a_part_of_them_is_what_a_list_would_give(parts: list[bytes], start: int, end: int) -> None:
    pieces = Pieces.of(parts)
    some = pieces[start:end]
    assert pieces == parts and list(some) == parts[start:end] and len(some) == len(parts[start:end])
    assert some.joined() == b"".join(parts[start:end]) and some.lengths.tolist() == [*map(len, parts[start:end])]
    assert some == Pieces.of(parts[start:end])
    for at in range(-len(parts), len(parts)):
        assert pieces[at] == parts[at]
    with pytest.raises(IndexError):
        pieces[len(parts)]


@given(parts=PARTS, same=st.binary(max_size=10), start=st.integers(0, 20))
def test_side_by_side(parts: list[bytes], same: bytes, start: int) -> None:
    some = parts[start:]
    columns = [same, Pieces.of(parts)[start:], Pieces.of(some), same]
    assert list(side_by_side(columns, len(some))) == [same + part + part + same for part in some]


@pytest.mark.parametrize(("count", "lengths"), [(2, (2, 3)), (2, (1, 2)), (2, (2, 1)), (0, (1,)), (3, (0,))])
def test_columns_of_different_lengths_are_refused(count: int, lengths: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=f"pieces, not {count}"):
        side_by_side([Pieces.of([b"a"] * length) for length in lengths], count)


def test_pieces_are_not_cut_with_a_step() -> None:
    with pytest.raises(ValueError, match="not with a step of -1"):
        Pieces.of([b"a", b"b"])[::-1]


@given(texts=TEXTS)
def test_texts(texts: list[str]) -> None:
    assert Pieces.of_texts(texts) == [text.encode() for text in texts]
    assert Pieces.of_texts(["\ud800tail", *texts])[0] == b"\xed\xa0\x80tail"


@given(ids=PARTS, seed=st.binary(max_size=10), start=st.integers(0, 20))
def test_a_checksum_is_zlibs(ids: list[bytes], seed: bytes, start: int) -> None:
    some = Pieces.of(ids)[start:]
    crcs = np.full(len(some), zlib.crc32(seed), dtype=np.uint64)
    bytekernels.add_crcs(some.data, some.bounds, bytekernels.TABLES, crcs)
    assert crcs.tolist() == [zlib.crc32(part, zlib.crc32(seed)) for part in ids[start:]]


NUMBERS = st.floats(allow_nan=False) | st.floats(-10, 10) | st.sampled_from([0.0, -0.0, 1e-7, 1e22, 5e-324, 1 / 3])


@given(
    rows=st.lists(
        st.tuples(st.integers(-(2**63), 2**63 - 1), NUMBERS, st.integers(0, 10**16 - 1), st.binary(max_size=300)),
        min_size=1,
        max_size=20,
    )
)
def test_words_are_what_they_were(rows: list[tuple[int, float, int, bytes]]) -> None:
    whole, fractions, seqs, contents = (list(column) for column in zip(*rows, strict=True))
    table = np.arange(3 * len(rows), dtype="<f4").reshape(-1, 3)
    columns = [
        words.word("same"),
        *words.numbers(np.array(whole)),
        *words.numbers(np.array(fractions)),
        *words.numbered("v.", np.array(seqs)),
        *words.octets(table),
        *words.texts(Pieces.of(contents)),
    ]
    found = iter(texts_in(words.joined(side_by_side(columns, len(rows)), 6)))
    for row in range(len(rows)):
        same, integer, decimal, number, octets, content = (next(found) for _ in range(6))
        assert (same, integer) == (b"same", str(whole[row]).encode())
        assert np.float64(float(decimal)).tobytes() == np.float64(fractions[row]).tobytes()
        assert number == f"v.{seqs[row]:016d}".encode()
        assert (octets, content) == (table[row].tobytes(), contents[row])
    assert next(found, None) is None


@given(texts=TEXTS)
def test_what_another_packer_wrote_is_unpacked_too(texts: list[str]) -> None:
    every = [*texts, "x" * 31, "x" * 32, "x" * 300, "y" * 70_000]
    assert texts_in(words.array(every)) == [text.encode() for text in every]


@pytest.mark.parametrize(
    "values",
    [
        np.array([2**64 - 1, 0], dtype=np.uint64),
        np.array([0.1, 1 / 3], dtype=np.float32),
        np.array([0.1, np.nan, np.inf]),
        np.zeros(0),
        np.array([(7, 0.5), (8, 0.25)], dtype=[("count", "<u8"), ("popularity", "<f8")])["popularity"],
    ],
    ids=["uint64", "float32", "not finite", "none", "strided"],
)
def test_a_number_is_read_as_the_same(values: Any) -> None:
    found = texts_in(words.joined(side_by_side(words.numbers(values), len(values)), 1))
    if values.dtype.kind == "f":
        assert np.array_equal([*map(float, found)], values.astype(float), equal_nan=True)
    else:
        assert [*map(int, found)] == values.tolist()


def test_no_rows_are_no_words() -> None:
    for columns in (words.numbered("v", np.zeros(0, dtype=np.uint64)), words.octets(np.zeros((0, 3)))):
        assert len(side_by_side(columns, 0)) == 0
