"""Golden bytes: what layout 1 wrote is read, and written again, byte for byte (of JSON objects: field for field).

``golden/layout1.json`` holds what each thing looked like when its layout was made. From the first release on it is
never regenerated. A change of a layout counts up the ``LAYOUT`` of what it changes, adds ``golden/layout2.json`` with
what is written then, and a reader that turns what layout 1 wrote into the same numbers. The tests below then read
both files, and those that write compare with the newest.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from flink_jobs.state import Manifest, StateFolder
from serving.schema import Tile, decode_tiles, decode_vector, encode_tile, encode_vector, tile_field, version
from tests.shells import batch_of
from tests.udfs.cases import rows_of
from udfs.batch import Batch
from udfs.chunk import Chunk, Run
from udfs.events import EventFormat
from udfs.generator import GeneratorConfig, GeneratorFeed
from udfs.intake import Intake, IntakeConfig
from udfs.interactions import Interactions
from udfs.learner import Learner, LearnerConfig, build
from udfs.packing import pack_lines
from udfs.reading import FileFeed
from udfs.tilefeed import TileConfig

T0 = 1_700_000_000_000
GOLDEN = Path(__file__).parent / "golden"
TILES = TileConfig(("view", "rating"), 1_800_000, 300_000)
INTAKE = IntakeConfig(EventFormat(), 1, True, True, 5_000, 3_600_000, TILES, ("file", "line"), "7-0", 7)
LEARNER = LearnerConfig(run_id="7-0")
ADAM = {
    "n_factors": 2,
    "bias_optimizer": "Adam",
    "bias_optimizer.lr": 0.1,
    "latent_optimizer": "SGD",
    "latent_optimizer.lr": 0.5,
}


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    return stored(1)


def stored(layout: int) -> dict[str, Any]:
    things: dict[str, Any] = orjson.loads((GOLDEN / f"layout{layout}.json").read_bytes())
    return things


def unhex(stored: dict[str, str]) -> dict[str, bytes]:
    return {name: bytes.fromhex(text) for name, text in stored.items()}


def holds(now: Any, then: Any) -> bool:
    """Whether an object still has all that it had: fields may have come since, as far as readers do without them."""
    if isinstance(now, dict) and isinstance(then, dict):
        return all(name in now and holds(now[name], of) for name, of in then.items())
    return bool(now == then)


def json_holds(now: bytes, then: bytes) -> bool:
    return holds(*(orjson.loads(blob.partition(b"\n")[0]) for blob in (now, then)))  # what follows is its checksum


# The things as they were written. Values are chosen so that nothing depends on a machine's arithmetic.

CHUNK = Chunk(
    [Run("a.csv", 2, 1), Run("b.jsonl", 7, 2)],
    [b"ann,tea,1700000000000", b"\xff", b'{"user_id":"\xc3\xa9","item_id":1,"timestamp":1700000001,"event_id":"e1"}'],
    {"a.csv": ["user_id", "item_id", "timestamp"]},
)
BATCH = Batch(
    T0,
    False,
    ["a.csv", "b.jsonl"],
    Interactions.of(
        [[T0, "", "ann", "tea", "view", 1.0, 0, 2], [T0 + 1_000, "e1", "\u00e9", "1", "rating", 4.5, 1, 8]]
    ),
    pack_lines([b"ann,tea,1700000000000", b"{}"]),
)
MANIFEST = Manifest(
    epoch=T0,
    prefix="freshet",
    fixed={"shards": 2, "model": {"name": "funk_mf", "n_factors": 4}, "tiles": [False]},
    part=1,
    source="file:a.jsonl",
    ended=False,
    future_bound=T0 + 5,
    savepoint="savepoints/savepoint-1",
    runs=3,
)


def judged() -> tuple[Intake, dict[str, bytes]]:
    """An intake that has judged the golden chunk."""
    intake = Intake(INTAKE)
    return intake, intake.process(CHUNK, now=T0 + 9).puts


def learned(kind: str, params: dict[str, Any]) -> Learner:
    """A learner that has learned two ratings; a third event waits."""
    learner = Learner(LEARNER, build(kind, params))
    events = [
        [T0, "", "ann", "tea", "rating", 5.0, 0, 1],
        [T0 + 1, "", "ann", "\u00e9t\u00e9", "rating", 1.0, 0, 2],
        [T0 + 9, "", "bob", "tea", "rating", 2.0, 0, 3],
    ]
    list(learner.process(batch_of(events, watermark=T0 + 5, sources=("a",))))
    return learner


def position_of(path: Path) -> bytes:
    path.write_bytes(b"a\nb\nc\n")
    feed = FileFeed([(str(path), "jsonl")], EventFormat(), "7-0", 1)
    feed.seek(None)
    feed.read()
    return feed.position()


def position_of_the_generator() -> bytes:
    feed = GeneratorFeed(GeneratorConfig(events=9), "7-0", chunk_events=4)
    feed.seek(None)
    feed.read()
    return feed.position()


def rows(learner: Learner) -> dict[str, bytes]:
    return {
        f"{family}:{row_id}": blob
        for family, of in learner.encode(learner.everything()).items()
        for row_id, blob in zip(of.row_ids, of.blobs, strict=True)
    }


def same_but_packed(now: bytes, then: bytes) -> bool:
    """Whether what describes them is the same: how bytes are packed is the library's own affair, and may change."""
    return now.partition(b"\n")[0] == then.partition(b"\n")[0]


# ---------------------------------------------------------------------------------------------- tests


def test_chunk(golden: dict[str, Any]) -> None:
    blob = bytes.fromhex(golden["chunk"])
    assert Chunk.decode(blob) == CHUNK
    packed = bytes.fromhex(golden["packed_chunk"])
    assert Chunk.decode(packed) == CHUNK and same_but_packed(CHUNK.encode(), packed)


def test_batch(golden: dict[str, Any]) -> None:
    blob = bytes.fromhex(golden["batch"])
    assert Batch.decode(blob) == BATCH
    packed = bytes.fromhex(golden["packed_batch"])
    assert Batch.decode(packed) == BATCH and same_but_packed(BATCH.encode(), packed)


def test_intake_is_written() -> None:
    newest = stored(2)["intake"]
    intake, puts = judged()
    assert json_holds(intake.header, newest["header"].encode()) and puts == unhex(newest["blobs"])


@pytest.mark.parametrize("layout", [1, 2])
def test_intake(layout: int) -> None:
    golden = stored(layout)
    header, blobs = golden["intake"]["header"].encode(), unhex(golden["intake"]["blobs"])
    intake, _ = judged()
    again = Intake(INTAKE)
    again.restore(header, blobs.items())
    assert again.header == intake.header
    assert again.event_ids.seen == {("\u00e9", "e1"): T0 + 1_000} and again.newest == {
        "a.csv": T0,
        "b.jsonl": T0 + 1_000,
    }
    assert again.tiles is not None and [*again.tiles.pairs] == [1_699_920_000_000]
    assert set(again.tiles.pairs[1_699_920_000_000]) == {("ann", "tea"), ("\u00e9", "1")}
    assert vars(again.counts) == vars(intake.counts) and again.counts.rejected == {"not_json": 1}


def test_learner_of_biases(golden: dict[str, Any]) -> None:
    header, blobs = golden["baseline"]["header"].encode(), unhex(golden["baseline"]["rows"])
    learner = learned("baseline", {"optimizer": "SGD", "optimizer.lr": 0.25})
    assert json_holds(learner.header(), header)
    assert rows(learner) == blobs


@pytest.mark.parametrize(
    ("name", "kind", "params"),
    [("baseline", "baseline", {"optimizer": "SGD", "optimizer.lr": 0.25}), ("biased_mf", "biased_mf", ADAM)],
)
def test_learner_is_read(golden: dict[str, Any], name: str, kind: str, params: dict[str, Any]) -> None:
    header, blobs = golden[name]["header"].encode(), unhex(golden[name]["rows"])
    waiting = {0: bytes.fromhex(golden[name]["waiting"])}
    learner = Learner(LEARNER, build(kind, params))
    learner.restore(header, [(*n.split(":", 1), blob) for n, blob in blobs.items()], waiting.items())  # type: ignore[misc]
    assert json_holds(learner.header(), header)
    assert rows(learner) == blobs
    user, item = learner.rows["user"]["ann"], learner.rows["item"]["\u00e9t\u00e9"]
    assert (user.count, user.seq, user.updated_at, list(user.seen)) == (2, 2, T0 + 1, ["tea", "\u00e9t\u00e9"])
    assert (item.count, item.seq, item.updated_at) == (1, 2, T0 + 1)
    assert (learner.seq, learner.learned, len(learner.waiting)) == (2, 2, 1)
    assert learner.model.global_mean() == 3.0


@pytest.mark.parametrize("kind", ["kalman_mf", "stack"])
def test_learner_of_filters(golden: dict[str, Any], kind: str) -> None:
    header, blobs = golden[kind]["header"].encode(), unhex(golden[kind]["rows"])
    assert rows(learned(kind, {"n_factors": 2})).keys() == blobs.keys()
    assert json_holds(learned(kind, {"n_factors": 2}).header(), without_arrays(header))
    learner = Learner(LEARNER, build(kind, {"n_factors": 2}))
    waiting = {0: bytes.fromhex(golden[kind]["waiting"])}
    learner.restore(header, [(*n.split(":", 1), blob) for n, blob in blobs.items()], waiting.items())  # type: ignore[misc]
    assert json_holds(learner.header(), header) and rows(learner) == blobs
    assert learner.model.step("ann", "tea", 4.0, T0 + 60_000) == pytest.approx(golden[kind]["prediction"], abs=1e-6)


def test_learner_of_a_blend(golden: dict[str, Any]) -> None:
    params = {"n_factors": 2, "neighbours": 3, "history": 4, "tops": 2}
    header, blobs = golden["blend"]["header"].encode(), unhex(golden["blend"]["rows"])
    assert rows(learned("blend", params)).keys() == blobs.keys()
    learner = Learner(LEARNER, build("blend", params))
    waiting = {0: bytes.fromhex(golden["blend"]["waiting"])}
    learner.restore(header, [(*n.split(":", 1), blob) for n, blob in blobs.items()], waiting.items())  # type: ignore[misc]
    assert json_holds(learner.header(), header) and rows(learner) == blobs
    ranked = learner.model.blend.scores(learner.model.ids["user"]["ann"], T0 + 9)  # type: ignore[attr-defined]
    assert ranked == pytest.approx(golden["blend"]["scores"], abs=1e-6)


def without_arrays(header: bytes) -> bytes:
    """What is learned depends on the arithmetic of a machine, in the last bit."""
    stored = orjson.loads(header.partition(b"\n")[0])
    del stored["model"]["arrays"], stored["counts"]["means"]
    return orjson.dumps(stored)


def test_a_row_is_documented_numbers(golden: dict[str, Any]) -> None:
    """Layout, length of the model's part, count, updated_at, seq, popularity; weights and slots; checksum; seen."""
    blob = bytes.fromhex(golden["biased_mf"]["rows"]["user:ann"])
    assert blob[0] == 1 and int.from_bytes(blob[4:8], "little") == 40
    assert [int.from_bytes(blob[at : at + 8], "little") for at in (8, 16, 24)] == [2, T0 + 1, 2]
    bias, _, _, *factors = np.frombuffer(blob[40:80], "<f8").tolist()  # the bias, Adam's m and v of it, the factors
    learner = learned("biased_mf", ADAM)
    weights = rows_of(learner.model, "user", "ann")
    assert learner.model.biases("user", weights)[0] == pytest.approx(bias)
    assert learner.model.vectors("user", weights)[0].tolist() == pytest.approx(factors)
    # The checksum, in plain words: a polynomial in one odd number, of mixed words, after a CRC-32 of the rest.
    check, factor = zlib.crc32(blob[88:], zlib.crc32(b"ann", zlib.crc32(b"user"))), 0x9E3779B97F4A7C15
    total = check * factor
    for place, word in enumerate(struct.unpack("<10Q", blob[:80]), 2):
        total += (word ^ word >> 32) * factor**place
    assert int.from_bytes(blob[80:88], "little") == total % 2**64
    assert blob[88:] == '["tea","\u00e9t\u00e9"]'.encode()


def test_position_of_a_feed(golden: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a position names its file
    position = golden["position"].encode()
    assert json_holds(position_of(Path("a.jsonl")), position)
    feed = FileFeed([("a.jsonl", "jsonl")], EventFormat(), "7-0")
    feed.seek(position)
    assert feed.read().lines == [b"b", b"c"]


def test_position_of_the_generator(golden: dict[str, Any]) -> None:
    position = golden["generator_position"].encode()
    assert json_holds(position_of_the_generator(), position)
    feed = GeneratorFeed(GeneratorConfig(events=9), "7-0", chunk_events=4)
    feed.seek(position)
    chunk = feed.read()
    assert chunk is not None and [(run.first, run.count) for run in chunk.runs] == [(4, 4)]


def test_manifest(golden: dict[str, Any], tmp_path: Path) -> None:
    folder = StateFolder(tmp_path)
    folder.store(MANIFEST)
    assert holds(orjson.loads((tmp_path / "manifest.json").read_bytes()), orjson.loads(golden["manifest"]))
    (tmp_path / "manifest.json").write_text(golden["manifest"])
    assert folder.load() == MANIFEST


def test_redis_fields(golden: dict[str, Any]) -> None:
    vector = np.array([0.5, -1.25, 3.0e-5, 1e30])
    assert encode_vector(vector).hex() == golden["redis"]["vector"]
    assert decode_vector(bytes.fromhex(golden["redis"]["vector"])).tolist() == vector.astype("f4").tolist()
    assert version(T0, 3, 42).decode() == golden["redis"]["version"]
    tile = encode_tile(3, 7.5, 2, {"view": 2, "buy": 1})
    fields = {tile_field("5m", T0).encode(): tile, tile_field("5m", T0, 2).encode(): tile}
    assert {name.decode(): blob.decode() for name, blob in fields.items()} == golden["redis"]["tiles"]
    assert decode_tiles(fields) == {"5m": {T0: Tile(T0, 6, 15.0, 4, {"view": 4, "buy": 2})}}
