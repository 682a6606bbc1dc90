"""Jobs whose model is told by their events: chosen where the state is new, and kept from then on."""

from __future__ import annotations

import io
import threading
from pathlib import Path
from typing import Any

import orjson
import pytest
from rich.console import Console

from flink_jobs.embedded import embedded_redis
from flink_jobs.runner import run
from serving import Client
from tests.flink.harness import balanced, resolved, write_lines

SMALL = {"model.n_factors": 2, "tiles.enabled": False}


def line(at: int, kind: str) -> bytes:
    event = {"user_id": f"u{at % 7}", "item_id": f"i{at * at % 503}", "timestamp": 1_700_000_000_000 + 60_000 * at}
    return orjson.dumps({**event, "event_id": str(at), "event_type": kind, "event_value": at % 5 + 1})


def learned(folder: Path, source: Path) -> tuple[dict[str, Any], str]:
    """The summary of a run, and what it printed."""
    out = io.StringIO()
    given = resolved(folder, {"model.name": "auto", "source": f"file:{source}", **SMALL})
    return run(given, Console(file=out, width=150), interrupted=threading.Event()), out.getvalue()


@pytest.mark.parametrize(
    ("kinds", "name"), [(("rating", "purchase"), "stack"), (("purchase", "rating"), "blend")], ids=["stack", "blend"]
)
def test_the_first_events_choose_and_later_ones_do_not(kinds: tuple[str, str], name: str, tmp_path: Path) -> None:
    with embedded_redis((tmp_path / "state" / "redis").resolve()) as url:
        client = Client(url)
        for number, kind in enumerate(kinds):
            lines = [line(at, kind) for at in range(300 * number, 300 * (number + 1))]
            summary, said = learned(tmp_path / "state", write_lines(tmp_path / f"{number}.jsonl", lines))
            assert summary["model"] == name and summary["events"]["learned"] == 300 and balanced(summary["events"])
            assert (f"model: {name}, as " in said) == (number == 0)
            assert (f"model: {name}, which the state was learned with" in said) == (number == 1)
        best = client.recommend("u3", 3)
        assert best.known and len(best.items) == 3
        header = client.header(0)
        assert header is not None and header.model == name
