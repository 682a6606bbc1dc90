"""What can't be read is refused, and named: every bit of what is stored counts, and nothing may be missing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import orjson
import pytest

from tests.udfs import test_intake, test_learner
from tests.udfs.cases import made
from tests.udfs.test_learner import T0, batch, events
from udfs.events import EventFormat
from udfs.generator import GeneratorConfig, GeneratorFeed
from udfs.intake import Intake
from udfs.learner import Learner
from udfs.pieces import Pieces
from udfs.reading import decode_position
from udfs.seal import Damaged, seal, sums, unseal

REMEDY = "; bring back an older checkpoint or copy of the state, or start anew with --fresh"


def spoiled(blob: bytes) -> Iterator[bytes]:
    """A blob with each of its bits flipped, of each other length, and with other bytes at its ends."""
    for bit in range(8 * len(blob)):
        flipped = bytearray(blob)
        flipped[bit // 8] ^= 1 << bit % 8
        yield bytes(flipped)
    yield from (blob[:length] for length in range(len(blob)))
    yield from (blob[at:] for at in range(1, len(blob)))
    yield from (blob + more for more in (b"\x00", b"\n", b"]", blob))
    yield b"\x00" + blob


def learner_host(kind: str = "biased_mf") -> test_learner.Host:
    """A learner's state with rows of two families and a batch of which events wait."""
    host = test_learner.Host(kind)
    host.put(batch(events(6), T0 + 4_000))
    assert host.waiting and len(host.rows) > 4
    return host


def intake_host() -> test_intake.Host:
    host = test_intake.Host()
    host.put([test_intake.event(0, event_id="x"), test_intake.event(1, user="v", event_id="y"), b"junk"])
    assert sorted(name[0] for name in host.blobs) == ["e", "q", "s"]
    return host


# ------------------------------------------------------------------------------------------------ rows


@pytest.mark.parametrize("family", ["user", "item"])
def test_a_row_with_any_bit_or_length_changed_is_refused(family: str) -> None:
    host = learner_host()
    [row_id, *_] = [row_id for of, row_id in host.rows if of == family]
    rows = [(*key, blob) for key, blob in host.rows.items() if key != (family, row_id)]
    learner = Learner(test_learner.CONFIG, made("biased_mf", "SGD"))
    for blob in spoiled(host.rows[family, row_id]):
        with pytest.raises(Damaged, match=f"the row of {family} '{row_id}' (is damaged: its|has layout)") as caught:
            learner.restore(host.header, [*rows, (family, row_id, blob)], host.waiting.items())
        assert str(caught.value).endswith(REMEDY)


def test_any_two_flipped_bits_of_a_fixed_part_change_its_checksum() -> None:
    words = np.zeros((1, 17), dtype=np.uint64)  # the last is the checksum's place
    words[:, :16] = np.random.default_rng(1).integers(0, 2**63, (1, 16), dtype=np.uint64)
    bits = np.arange(16 * 64)
    flips = np.zeros((len(bits), 17), dtype=np.uint64)
    flips[bits, bits // 64] = np.uint64(1) << (bits % 64).astype(np.uint64)
    right = sums(words, "user", Pieces.of([b"u"]), Pieces.of([b""]))
    for first in bits[::3]:
        both = words ^ flips[first] ^ flips[first + 1 :]
        ids, tails = Pieces.of([b"u"] * len(both)), Pieces.of([b""] * len(both))
        assert not np.any(sums(both, "user", ids, tails) == right)


def test_a_row_under_another_key_is_refused() -> None:
    host = learner_host()
    [first, second, *_] = [key for key in host.rows if key[0] == "user"]
    host.rows[first], host.rows[second] = host.rows[second], host.rows[first]
    with pytest.raises(Damaged, match=r"the row of user '\w+' is damaged"):
        host.crash()
    host = learner_host()
    [blob, *_] = [blob for (family, _), blob in host.rows.items() if family == "item"]
    host.rows["item", "other"] = blob
    with pytest.raises(Damaged, match="the row of item 'other' is damaged"):
        host.crash()


def test_one_damaged_row_is_found_among_many() -> None:
    host = test_learner.Host()
    host.put(batch([[T0, "", f"u{n}", f"i{n}", "rating", 3.0, 0, n] for n in range(12_000)]))
    blob = host.rows["user", "u11000"]
    host.rows["user", "u11000"] = blob[:60] + bytes([blob[60] ^ 4]) + blob[61:]
    with pytest.raises(Damaged, match="the row of user 'u11000' is damaged: its"):
        host.crash()


def test_rows_of_another_family_are_refused() -> None:
    host = learner_host()
    host.rows["context", "u0"] = host.rows["user", "u0"]
    with pytest.raises(Damaged, match=r"rows of 'context', biased_mf has \['user', 'item'\]"):
        host.crash()


# -------------------------------------------------------------------------------------- what is missing


def test_a_learner_without_its_header_never_starts_from_zero() -> None:
    for keep in ("rows", "waiting"):
        host = learner_host()
        rows = [(*key, blob) for key, blob in host.rows.items()] if keep == "rows" else []
        waiting = list(host.waiting.items()) if keep == "waiting" else []
        with pytest.raises(Damaged, match="has rows or waiting batches, but no header"):
            Learner(test_learner.CONFIG, made("biased_mf", "SGD")).restore(None, rows, waiting)
    fresh = Learner(test_learner.CONFIG, made("biased_mf", "SGD"))
    fresh.restore(None, [], [])
    assert fresh.learned == 0


def test_rows_and_batches_that_are_missing_or_too_many_are_counted() -> None:
    host = learner_host()
    users = sum(1 for family, _ in host.rows if family == "user")
    del host.rows["user", "u0"]
    with pytest.raises(Damaged, match=rf"counts {{'user': {users}, .*its state has {{'user': {users - 1}, "):
        host.crash()
    host = learner_host()
    host.waiting = {}
    with pytest.raises(Damaged, match=r"1 waiting batches, its state has .* and 0"):
        host.crash()
    host = learner_host()
    older = host.header
    host.put(batch([[T0 + 9_000, "", "new", "i0", "rating", 3.0, 0, 9]], T0 + 10_000))
    host.header = older  # of another moment than the rows
    with pytest.raises(Damaged, match="counts"):
        host.crash()


def test_an_intake_without_its_header_or_a_blob_is_refused() -> None:
    host = intake_host()
    with pytest.raises(Damaged, match="the intake's state has 3 blobs, but no header"):
        Intake(test_intake.CONFIG).restore(None, host.blobs.items())
    for name in host.blobs:
        left = {n: blob for n, blob in host.blobs.items() if n != name}
        with pytest.raises(Damaged, match="counts 3 blobs, its state has 2"):
            Intake(test_intake.CONFIG).restore(host.header, left.items())
    Intake(test_intake.CONFIG).restore(None, [])


# ---------------------------------------------------------------------------------------- small things


def restore_learner(host: test_learner.Host) -> Callable[..., None]:
    learner = Learner(test_learner.CONFIG, made("baseline", "SGD"))
    rows = [(*key, blob) for key, blob in host.rows.items()]
    return lambda header, waiting: learner.restore(header, rows, [(0, waiting)])


def restore_blob(name: str) -> Callable[[bytes], None]:
    host = intake_host()
    return lambda blob: Intake(test_intake.CONFIG).restore(host.header, {**host.blobs, name: blob}.items())


def seek_generator(position: bytes) -> None:
    GeneratorFeed(GeneratorConfig(), "r").seek(position)


def generator_position() -> bytes:
    feed = GeneratorFeed(GeneratorConfig(), "r")
    feed.seek(None)
    return feed.position()


def small_things() -> Iterator[Any]:
    learner, intake = learner_host("baseline"), intake_host()
    of = restore_learner(learner)
    header, waiting = learner.header, learner.waiting[0]
    yield pytest.param("the learner's 'header'", header, lambda blob: of(blob, waiting), id="learner")
    yield pytest.param("the learner's 'batch 0'", waiting, lambda blob: of(header, blob), id="batch")
    restore = Intake(test_intake.CONFIG).restore
    yield pytest.param("the intake's 'header'", intake.header, lambda b: restore(b, intake.blobs.items()), id="intake")
    for name, blob in intake.blobs.items():
        yield pytest.param(f"the intake's '{name}'", blob, restore_blob(name), id=name[0])
    yield pytest.param("the reader's 'position'", generator_position(), seek_generator, id="position")


@pytest.mark.parametrize(("name", "blob", "restore"), list(small_things()))
def test_a_small_thing_with_any_bit_or_length_changed_is_refused(
    name: str, blob: bytes, restore: Callable[[bytes], None]
) -> None:
    restore(blob)
    for other in spoiled(blob):
        with pytest.raises(Damaged, match=f"{name} is damaged: its {len(other)} bytes end in .*, their checksum is"):
            restore(other)


def test_a_batch_under_another_number_is_refused() -> None:
    host = learner_host()
    host.waiting = {1: host.waiting[0]}
    with pytest.raises(Damaged, match="'batch 1' is damaged"):
        host.crash()


def test_a_newer_position_or_model_is_refused() -> None:
    stored = orjson.loads(unseal("", "position", generator_position()))
    assert decode_position(generator_position()) == stored
    with pytest.raises(ValueError, match=r"position has layout 2, this freshet reads 1"):
        decode_position(seal("position", orjson.dumps({**stored, "layout": 2})))
    header = orjson.loads(made("biased_mf", "SGD").header())
    with pytest.raises(ValueError, match=r"river_rows = 2, this job has river_rows = 1"):
        made("biased_mf", "SGD").restore_header(orjson.dumps({**header, "river_rows": 2}))


def test_a_file_feed_refuses_a_damaged_position(tmp_path: Any) -> None:
    from udfs.reading import FileFeed

    (tmp_path / "a.jsonl").write_bytes(b"a\nb\n")

    def feed() -> FileFeed:
        return FileFeed([(str(tmp_path / "a.jsonl"), "jsonl")], EventFormat(), "r")

    first = feed()
    first.seek(None)
    for position in (b"", first.position()[:-1], first.position().replace(b'"offset":0', b'"offset":1')):
        with pytest.raises(Damaged, match="the reader's 'position' is damaged"):
            feed().seek(position)
