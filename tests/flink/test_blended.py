"""A job with a blend learns what the class does in one pass over the stream, in one run as in two."""

from __future__ import annotations

import random
import threading
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from flink_jobs.embedded import embedded_redis
from serving import Client
from serving.connection import connect
from tests.flink.harness import balanced, run_job, write_lines
from tests.flink.test_runs import all_fields, stop_when
from udfs.blend import Blend, Settings
from udfs.ranking import RankingConfig, RankingScores

T0 = 1_700_000_000_000
MODEL: dict[str, Any] = {
    "model.name": "blend",
    "model.n_factors": 8,
    "model.neighbours": 12,
    "model.teach_first": 2_000,
    "ranking.every": 4,
    "tiles.enabled": False,
    "batch_bytes": 20_000,
}


def baskets(n: int) -> list[bytes]:
    """Purchases of one to six items at a time, written down up to some seconds late."""
    rng, lines, time = random.Random(0), list[tuple[int, bytes]](), T0
    while len(lines) < n:
        time += rng.randrange(2_000)
        user = f"u{int(120 * rng.random() ** 2)}"
        for _ in range(rng.randint(1, 6)):
            event = {"event_id": f"e{len(lines)}", "user_id": user, "item_id": f"i{int(400 * rng.random() ** 3)}"}
            line = orjson.dumps({**event, "event_type": "purchase", "timestamp": time})
            lines.append((time + rng.randrange(4_000), line))
    return [line for _, line in sorted(lines[:n])]


def learned_rows(connection: Any) -> dict[bytes, dict[bytes, bytes]]:
    """Without versions: an item's is that of the batch, and what is read again may be cut otherwise."""
    return {
        key: {name: value for name, value in fields.items() if name != b"version"}
        for key, fields in all_fields(connection).items()
    }


def test_a_blend_learns_what_it_does_in_one_pass(tmp_path: Path) -> None:
    lines = baskets(12_000)
    settings = {**MODEL, "source": f"file:{write_lines(tmp_path / 'events.jsonl', lines)}"}
    with embedded_redis((tmp_path / "whole" / "redis").resolve()) as url:
        whole = run_job(tmp_path / "whole", settings)
        expected, header = learned_rows(connect(url)), Client(url).header(0)
        best = {user: Client(url).recommend(user, 5, exclude_seen=False).items for user in ("u0", "u3", "u50")}

    events = sorted(map(orjson.loads, lines), key=lambda e: (e["timestamp"], e["event_id"]))
    users, items, times = ([e[of] for e in events] for of in ("user_id", "item_id", "timestamp"))
    config = RankingConfig(every=4)
    model = Blend(Settings(teach_first=2_000), neighbours=12, n_factors=8)
    predicted = model.test_then_learn(users, items, np.array(times), config.evaluated(0, len(events)), config)
    scores = RankingScores(config, ("blend", "decayed popularity", "popularity"), ())
    scores.update(
        predicted.better[:, 0], predicted.ties[:, 0], predicted.returning, predicted.head,
        [model.items.names[number] for number in predicted.offered],
    )  # fmt: skip
    assert whole["ranking"]["all"] == scores.values()["all"] and balanced(whole["events"])
    assert header is not None and header.blend is not None
    assert np.array_equal(header.blend.weights, model.parts.weights)
    for user, found in best.items():
        ours = model.scores(model.users[user], max(times))
        assert [ours[model.items[r.item_id]] for r in found] == pytest.approx(sorted(ours)[:-6:-1], abs=1e-4)

    with embedded_redis((tmp_path / "state" / "redis").resolve()) as url:
        stop = threading.Event()
        stop_when(Client(url), 3_000, stop)
        first = run_job(tmp_path / "state", settings, stop=stop)
        assert first["stopped"] and 0 < first["events"]["learned"] < len(lines)
        second = run_job(tmp_path / "state", {**settings, "parallelism": 2})
        assert second["ranking"]["all"] == whole["ranking"]["all"] and balanced(second["events"])
        assert learned_rows(connect(url)) == expected
        assert Client(url).header(0).blend.weights.tolist() == header.blend.weights.tolist()  # type: ignore[union-attr]
