"""A job whose model ranks says how well, and goes on where it stopped."""

from __future__ import annotations

import io
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from flink_jobs.embedded import embedded_redis
from flink_jobs.runner import run
from serving import Client
from tests.flink.harness import resolved
from tests.udfs.counting import Counting

SETTINGS = {
    "generator.events": 6_000, "shards": 2, "tiles.enabled": False,
    "ranking.every": 3, "ranking.k": 5, "ranking.repeats": True,
}  # fmt: skip


def ranked(folder: Path) -> tuple[dict[str, Any], str]:
    """The summary of a run, and what it printed."""
    out = io.StringIO()
    console = Console(file=out, width=150)
    given = resolved(folder, SETTINGS)
    return run(given, console, lambda job: replace(job, model=Counting), threading.Event()), out.getvalue()


def test_a_job_says_how_well_its_model_ranks_and_goes_on(tmp_path: Path) -> None:
    with embedded_redis((tmp_path / "state" / "redis").resolve()) as url:
        client = Client(url)
        learned = [0, 0]
        for number in (1, 2):
            summary, text = ranked(tmp_path / "state")
            headers = [client.header(shard) for shard in range(2)]
            learned = [header.summary["counts"]["learned"] for header in headers if header is not None]
            ranking = summary["ranking"]
            assert sum(learned) > 5_000 * number
            evaluated = [-(-n // 3) for n in learned]  # each third event of a shard, and the first
            assert ranking["all"]["faded"]["n"] == ranking["all"]["popularity"]["n"] == sum(evaluated)
            assert 0.0 < ranking["all"]["faded"]["hit"] < 1.0 and 0.0 < ranking["coverage"] <= 1.0
            # The last entries of the history are of all that was learned.
            newest = {of.shard: of for of in client.metrics()}
            assert [newest[shard].seq for shard in range(2)] == learned
            for shard, of in newest.items():
                assert of.ranking is not None and of.ranking["all"]["faded"]["n"] == evaluated[shard]
                assert of.ranking["protocol"] == ranking["protocol"]
            assert "ranking: 1 event in 3, repeats allowed, groups held out" in text and "hit@5" in text
            assert all(f"note: {name} ranks" in text for name in ranking["beaten_by"])
            assert summary["metrics"] == {"mae": None, "rmse": None, "n": 0} and "mae (" not in text
