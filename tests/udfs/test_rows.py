"""Rows as they are stored: what is made of many at once is what would be made of each."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from unittest import mock

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.common import written
from serving.schema import Keys, version
from tests.shells import batch_of
from tests.udfs.cases import made
from udfs import bytekernels
from udfs.building import build
from udfs.entities import LearnedEntities
from udfs.growth import GrowthConfig
from udfs.ids import Group, Ids
from udfs.learner import Learner, LearnerConfig
from udfs.mapstate import put_together
from udfs.models import ITEM, USER, RankingModel
from udfs.pieces import Pieces
from udfs.publisher import Author
from udfs.rows import HEAD, Rows
from udfs.seal import sums
from udfs.tail import state_name, state_names, tail_id, tail_number

T0 = 1_700_000_000_000
_FACTOR = 0x9E3779B97F4A7C15
ROW_IDS = st.lists(
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=8) | st.integers(0, 9).map(tail_id),
    unique=True,
    max_size=12,
)


def stored(family: str, row_id: str, head: bytes, model: bytes, tail: bytes, seen: bytes) -> bytes:
    """A row by the definition of its layout, byte by byte."""
    after = tail + seen
    fixed = head + model
    words = struct.unpack(f"<{len(fixed) // 8}Q", fixed)
    crc = zlib.crc32(after, zlib.crc32(row_id.encode("utf-8", "surrogatepass"), zlib.crc32(family.encode())))
    total = sum((word ^ word >> 32) * pow(_FACTOR, place + 2, 2**64) for place, word in enumerate(words))
    return fixed + struct.pack("<Q", (crc * _FACTOR + total) % 2**64) + after


@given(
    row_ids=ROW_IDS,
    family=st.sampled_from([USER, ITEM]),
    width=st.integers(0, 4),
    tails=st.none() | st.lists(st.binary(max_size=9), min_size=12, max_size=12),
    data=st.data(),
)
def test_rows_are_stored_as_each_would_be(
    row_ids: list[str], family: str, width: int, tails: list[bytes] | None, data: st.DataObject
) -> None:
    n, rows = len(row_ids), Rows(family, Ids())
    group = Group(rows.ids, row_ids)
    group.admit(diverged={})
    times = np.array(data.draw(st.lists(st.integers(-(2**60), 2**60), min_size=n, max_size=n)), dtype=np.int64)
    rows.count(group, times, 1)
    met = data.draw(st.lists(st.lists(st.text(max_size=4), unique=True, max_size=3), min_size=n, max_size=n))
    if family == USER:
        rows.seen.put(group.numbers, met)
    numbers = st.floats(width=64) | st.sampled_from([np.nan, -np.inf, -0.0])
    drawn = data.draw(st.lists(numbers, min_size=n * width, max_size=n * width))
    weights, some = np.array(drawn, dtype="<f8").reshape(n, width), None if tails is None else tails[:n]
    encoded = rows.encode(row_ids, group.numbers, weights, some)
    blobs = [*encoded.blobs]
    for place, row_id in enumerate(row_ids):
        known = rows[row_id]
        tail = b"" if some is None else some[place]
        model = (b"" if some is None else struct.pack("<Q", len(tail))) + weights[place].tobytes()
        layout = 1 if some is None else 2
        head = struct.pack("<IIQqQd", layout, len(model), known.count, known.updated_at, known.seq, known.popularity)
        assert len(head) == HEAD.itemsize
        seen = orjson.dumps(met[place]) if family == USER else b""
        assert blobs[place] == stored(family, row_id, head, model, tail, seen)
    if row_ids:
        again = Rows(family, Ids())
        models = again.restore(row_ids, blobs)
        assert models == [weights[at].tobytes() + (some[at] if some else b"") for at in range(n)]
        assert dict(again) == {row_id: rows[row_id] for row_id in row_ids}


def test_a_checksum_is_of_as_many_ids_and_tails() -> None:
    words, two = np.zeros((2, 3), dtype=np.uint64), Pieces.of([b"a", b"b"])
    for ids, tails in ((two, two[:1]), (two[:1], two)):
        with pytest.raises(ValueError, match="2 rows have"):
            sums(words, "user", ids, tails)


@given(row_ids=ROW_IDS, start=st.integers(0, 12))
def test_names_in_the_state(row_ids: list[str], start: int) -> None:
    ids = Pieces.of_texts(row_ids)[start:]
    expected = [state_name("user", row_id).encode() for row_id in row_ids[start:]]
    assert state_names("user", row_ids[start:], ids) == expected
    values = [b"row"] * len(expected)
    assert put_together(ids, Pieces.of(values)) == put_together(Pieces.of([*ids]), Pieces.of(values))


KINDS: Sequence[tuple[str, str]] = (
    ("baseline", "SGD"), ("biased_mf", "SGD"), ("biased_mf", "SGD/river"), ("stack", ""), ("kalman_mf", ""),
    ("blend", ""),
)  # fmt: skip


@pytest.mark.parametrize(("kind", "optimizer"), KINDS)
@pytest.mark.parametrize("growth", [GrowthConfig(), GrowthConfig(min_events=2)], ids=["all", "tail"])
@pytest.mark.parametrize("shards", [1, 2])
def test_what_redis_gets_of_each_row(kind: str, optimizer: str, growth: GrowthConfig, shards: int) -> None:
    """And it stays what it was, whatever is learned and dropped after it was encoded."""
    model = build(kind, {}) if kind == "blend" else made(kind, optimizer)
    if growth.has_tail and isinstance(model, RankingModel):
        pytest.skip("a blend has no tail")
    learner = Learner(LearnerConfig(growth=growth), model)
    rows = [[T0 + n, "", f"u{n * n % 13}é", f"i{n % 9}", "rating", float(n % 3), 0, n] for n in range(80)]
    [learned] = learner.process(batch_of(rows[:50]))
    encoded, author = learner.encode(learned), Author(Keys("p"), shards - 1, shards, 5, 3)
    entities = LearnedEntities(learner, encoded, author)
    expected, kept = {}, {family: [*of.blobs] for family, of in encoded.items()}
    for family, of in encoded.items():
        key_of = author.keys.user if family == USER else author.keys.item
        biases, vectors = model.biases(family, of.weights), model.vectors(family, of.weights)
        more = model.more_fields(family, of.weights, of.tails)
        for at, row_id in enumerate(of.row_ids):
            known, shared = learner.rows[family][row_id], tail_number(row_id)
            ranks = family == ITEM and isinstance(model, RankingModel)
            fields = {
                "version": version(5, 3, learner.seq if ranks else known.seq),
                "count": str(known.count).encode(),
                "updated_at": str(known.updated_at).encode(),
            }
            if not isinstance(model, RankingModel):
                fields["bias"] = repr(float(biases[at])).encode()
            if vectors.shape[1]:
                fields["vector"] = vectors[at].astype("<f4").tobytes()
            for name, column in more.items():
                fields[name] = column[at].tobytes() if isinstance(column, np.ndarray) else column[at]
            if family == USER:
                fields |= {"shard": str(shards - 1).encode(), "seen": orjson.dumps(known.seen)}
            else:
                fields["popularity"] = repr(known.popularity).encode()
            suffix = f":{shards - 1}" if family == ITEM and shards > 1 else ""
            key = key_of(row_id) if shared is None else author.keys.tail(shards - 1, family, shared)
            expected[key] = {(name + suffix).encode(): value for name, value in fields.items()}
    with mock.patch("udfs.entities._AT_ONCE", 5), mock.patch("udfs.publisher._PER_CALL", 2):
        found = written(entities)
        assert found.keys() == expected.keys()
        for key, fields in found.items():
            wanted = expected[key]
            assert fields.keys() == wanted.keys()
            for name, value in fields.items():
                is_number = name.split(b":")[0] in (b"bias", b"popularity")
                assert value == wanted[name] or (is_number and float(value) == float(wanted[name])), (key, name)
        list(learner.process(batch_of(rows[50:])))
        learner.drop(USER, [row_id for row_id in learner.rows[USER] if tail_number(row_id) is None][:3])
        list(learner.process(batch_of([[T0 + 99, "", "new", "i0", "rating", 1.0, 0, 99]])))
        assert written(entities) == found
        assert {family: [*of.blobs] for family, of in encoded.items()} == kept


def test_kernels_are_compiled_for_one_kind_of_arrays() -> None:
    """Whatever comes: to compile one more takes seconds, in the middle of a job."""
    learner = Learner(LearnerConfig(), made("biased_mf", "SGD"))
    [learned] = learner.process(batch_of([[T0, "", "u", "i", "rating", 1.0, 0, 0]]))
    learner.finished_batches()
    encoded = learner.encode(learned)
    written(LearnedEntities(learner, encoded, Author(Keys("p"), 0, 1, 5)))
    for family, of in encoded.items():
        put_together(state_names(family, of.row_ids, of.ids), of.blobs)
    rows = [
        (family, row_id, blob)
        for family, of in encoded.items()
        for row_id, blob in zip(of.row_ids, of.blobs, strict=True)
    ]
    Learner(LearnerConfig(), made("biased_mf", "SGD")).restore(learner.header(), rows, [])
    for kernel in (bytekernels.put, bytekernels.add_crcs, bytekernels.add_words):
        assert len(kernel.signatures) == 1
