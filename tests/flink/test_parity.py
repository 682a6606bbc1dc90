"""The job learns what River learns in a plain loop, bit for bit: over shards, parallelism, order and restarts."""

from __future__ import annotations

import math
import random
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from river import metrics, optim

from serving.schema import shard_of
from tests.flink.harness import Rows, balanced, lines_of, run_job, stored_rows, write_lines
from tests.sums import BiasedMF
from udfs.ratings import KalmanMF, Rater
from udfs.stack import Stack

MODEL = {
    "model.n_factors": 8,
    "model.latent_optimizer": "SGD",
    "model.latent_optimizer.lr": 0.05,
    "model.seed": 73,
    "model.clip_prediction": "0.5,5",
}
# Small batches, so that a short stream still makes many.
SMALL = {"batch_bytes": 100_000, "tiles.enabled": False}


def plain_loop(lines: Sequence[bytes]) -> tuple[BiasedMF, float, float]:
    model = BiasedMF(n_factors=8, latent_optimizer=optim.SGD(0.05), seed=73)
    mae, rmse = metrics.MAE(), metrics.RMSE()
    for event in sorted(map(orjson.loads, lines), key=lambda e: (e["timestamp"], e["event_id"])):
        user, item, y = event["user_id"], event["item_id"], event["event_value"]
        prediction = min(max(model.predict_one(user, item), 0.5), 5.0)
        mae.update(y, prediction)
        rmse.update(y, prediction)
        model.learn_one(user, item, y)
    return model, mae.get(), rmse.get()


def rows_of(model: BiasedMF) -> Rows:
    rows: Rows = {}
    for family, biases, latents in (
        ("user", model.u_biases, model.u_latents),
        ("item", model.i_biases, model.i_latents),
    ):
        for row_id in biases:
            rows[family, row_id] = struct.pack("<d", biases[row_id]) + latents[row_id].tobytes()
    return rows


@pytest.fixture(scope="module")
def movielens(data: Path) -> list[bytes]:
    return lines_of(data / "movielens-latest-small" / "events.jsonl.gz")


@pytest.fixture(scope="module")
def part(movielens: list[bytes]) -> list[bytes]:
    """Enough of the stream for many batches, little enough for many runs."""
    return movielens[:20_000]


@pytest.fixture(scope="module")
def expected(part: list[bytes]) -> tuple[Rows, float, float]:
    model, mae, rmse = plain_loop(part)
    return rows_of(model), mae, rmse


def check(summary: dict[str, Any], notes: Sequence[Path], expected: tuple[Rows, float, float], n: int) -> None:
    rows, mae, rmse = expected
    assert balanced(summary["events"])
    assert summary["metrics"] == {"mae": mae, "rmse": rmse, "n": n}
    assert stored_rows(*notes) == rows


def test_whole_of_movielens_equals_a_river_loop(tmp_path: Path, data: Path, movielens: list[bytes]) -> None:
    source = f"file:{data / 'movielens-latest-small' / 'events.jsonl.gz'}"
    summary = run_job(tmp_path / "state", {**MODEL, "source": source, "dedup.horizon": "1m"}, notes=tmp_path / "notes")
    assert summary["events"]["learned"] == len(movielens)
    model, mae, rmse = plain_loop(movielens)
    check(summary, [tmp_path / "notes"], (rows_of(model), mae, rmse), len(movielens))


@pytest.mark.parametrize("parallelism", [1, 2, 4])
def test_parallelism_and_order_within_the_allowance_change_nothing(
    parallelism: int, tmp_path: Path, part: list[bytes], expected: tuple[Rows, float, float]
) -> None:
    allowance = 5_000
    rng = random.Random(parallelism)
    moved = [(orjson.loads(line)["timestamp"] + rng.uniform(0, allowance), line) for line in part]
    shuffled = [line for _, line in sorted(moved)]
    assert shuffled != part
    source = write_lines(tmp_path / "events.jsonl", shuffled)
    settings = {**MODEL, **SMALL, "source": f"file:{source}", "parallelism": parallelism, "out_of_orderness": "5s"}
    summary = run_job(tmp_path / "state", settings, notes=tmp_path / "notes")
    check(summary, [tmp_path / "notes"], expected, len(part))


def test_four_shards_equal_four_loops(tmp_path: Path, part: list[bytes]) -> None:
    source = write_lines(tmp_path / "events.jsonl", part)
    settings = {**MODEL, **SMALL, "source": f"file:{source}", "shards": 4, "parallelism": 2}
    summary = run_job(tmp_path / "state", settings, notes=tmp_path / "notes")
    assert summary["events"]["learned"] == len(part)
    # A file of notes is one model's, and so one shard's.
    found = [stored_rows_of(file) for file in (tmp_path / "notes").glob("*.rows")]
    found = [rows for rows in found if rows]
    loops = [
        rows_of(plain_loop([line for line in part if shard_of(orjson.loads(line)["user_id"], 4) == shard])[0])
        for shard in range(4)
    ]
    assert sorted(found, key=sorted) == sorted(loops, key=sorted)


def stored_rows_of(file: Path) -> Rows:
    rows: Rows = {}
    for line in file.read_bytes().splitlines():
        family, row_id, blob = orjson.loads(line)
        rows[family, row_id] = bytes.fromhex(blob)
    return rows


def test_a_folder_is_merged_by_time(tmp_path: Path, part: list[bytes], expected: tuple[Rows, float, float]) -> None:
    for number in range(4):
        write_lines(tmp_path / "in" / f"{number}.jsonl", part[number::4])
    settings = {**MODEL, **SMALL, "source": f"file:{tmp_path / 'in'}", "parallelism": 4}
    summary = run_job(tmp_path / "state", settings, notes=tmp_path / "notes")
    assert summary["events"]["late"] == 0
    check(summary, [tmp_path / "notes"], expected, len(part))


@pytest.mark.parametrize("name", ["kalman_mf", "stack"])
def test_filters_learn_what_they_do_in_a_plain_loop(name: str, tmp_path: Path, part: list[bytes]) -> None:
    """Rows are float32, so within what that rounds; but the same rows in one run as in two, at any parallelism."""
    twin: Rater = Stack() if name == "stack" else KalmanMF()
    events = sorted(map(orjson.loads, part), key=lambda e: (e["timestamp"], e["event_id"]))
    users, items, ys, times = ([e[of] for e in events] for of in ("user_id", "item_id", "event_value", "timestamp"))
    apart = np.clip(twin.learn(users, items, np.array(ys), np.array(times)), 0.5, 5.0) - ys
    stamps = [orjson.loads(line)["timestamp"] for line in part]
    cut = next(at for at in range(9_000, len(part)) if stamps[at] != stamps[at - 1])
    model = {"model.name": name, "model.clip_prediction": "0.5,5", **SMALL}
    found = []
    for parallelism, parts in enumerate(([part], [part[:cut], part[cut:]]), start=1):
        notes = []
        for number, lines in enumerate(parts):
            source = write_lines(tmp_path / f"{parallelism}-{number}.jsonl", lines)
            notes.append(tmp_path / f"notes-{parallelism}-{number}")
            settings = {**model, "source": f"file:{source}", "parallelism": parallelism}
            summary = run_job(tmp_path / f"state-{parallelism}", settings, notes=notes[-1])
        assert balanced(summary["events"]) and summary["metrics"]["n"] == len(part)
        assert summary["metrics"]["mae"] == pytest.approx(np.abs(apart).mean(), abs=1e-6)
        assert summary["metrics"]["rmse"] == pytest.approx(math.sqrt(np.square(apart).mean()), abs=1e-6)
        found.append((summary["metrics"], stored_rows(*notes)))
    assert found[0] == found[1]


def test_input_in_two_runs_equals_one(tmp_path: Path, part: list[bytes], expected: tuple[Rows, float, float]) -> None:
    # The first input ends, its windows close, and the state goes on with another file.
    # Cut between two moments: what happens at one moment is learned in the order of the event ids.
    times = [orjson.loads(line)["timestamp"] for line in part]
    cut = next(at for at in range(9_000, len(part)) if times[at] != times[at - 1])
    notes = []
    for name, lines in (("first", part[:cut]), ("second", part[cut:])):
        source = write_lines(tmp_path / f"{name}.jsonl", lines)
        notes.append(tmp_path / f"notes-{name}")
        summary = run_job(tmp_path / "state", {**MODEL, "source": f"file:{source}"}, notes=notes[-1])
        assert summary["events"]["read"] == len(lines)
        assert summary["metrics_run"]["n"] == len(lines)
    check(summary, notes, expected, len(part))
