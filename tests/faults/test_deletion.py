"""A user who is deleted in the middle of a run is gone, and stays so when a worker dies and when Redis is wiped."""

from __future__ import annotations

import random
import shutil
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson
from click.testing import CliRunner

from flink_jobs.cli import cli
from flink_jobs.embedded import embedded_redis
from flink_jobs.state import StateFolder
from serving import Client
from serving.connection import connect
from tests.faults.injector import kill_worker
from tests.flink.harness import balanced, run_job, stored_rows, write_lines
from tests.flink.test_runs import all_fields, rated_events
from udfs.requests import Journal

N = 60_000
GONE, BACK = "r3", "r5"  # of one nothing comes after the deletion, the other goes on
LATER = "r8"  # is deleted between two runs
SETTINGS: Mapping[str, Any] = {
    "model.n_factors": 4,
    "model.seed": 3,
    "batch_bytes": 20_000,
    "checkpoint_interval": "3s",
    "tiles.spans": ["5m", "1h"],
}


def learned(client: Client) -> int:
    header = client.header(0)
    return 0 if header is None else int(header.summary["counts"]["learned"])


def delete(folder: Path, *user_ids: str) -> Any:
    result = CliRunner().invoke(cli, ["delete-user", *user_ids, "--json", "--state-dir", str(folder)])
    assert result.exit_code == 0, result.output
    return orjson.loads(result.stdout)


class Watch:
    """Deletes users once a quarter of the log is learned, kills a worker just after, and looks for them ever since."""

    def __init__(self, folder: Path, url: str) -> None:
        self._folder, self._client = folder, Client(url)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.looked = self.count_before = 0
        self.wrong: list[str] = []
        self.answer: dict[str, Any] = {}

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while learned(self._client) < N // 4:
            time.sleep(0.01)
        before = self._client.user(BACK)
        assert before is not None and before.learned is not None
        self.count_before = before.learned.count
        self.answer = delete(self._folder, GONE, BACK)
        at, killed, highest = learned(self._client), False, 0
        while not self._over.wait(0.005):
            users = self._client.users([GONE, BACK])
            if not killed and learned(self._client) > at + 1_000:
                # The last checkpoint is from before the deletion, or not: either way nobody comes back.
                kill_worker(random.Random(1), None)
                killed = True
            self.looked += 1
            if users[GONE] is not None:
                self.wrong.append(f"{GONE} came back: {users[GONE]}")
            back = users[BACK]
            if back is not None and back.learned is not None:
                if back.learned.count < highest or (not highest and back.learned.count >= self.count_before):
                    self.wrong.append(f"{BACK} has {back.learned.count} events after {highest}")
                highest = back.learned.count


def lines() -> list[bytes]:
    """Of one user nothing comes but in the beginning."""
    return [line for number, line in enumerate(rated_events(N)) if number < N // 6 or f'"{GONE}"'.encode() not in line]


def test_a_deleted_user_stays_deleted(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "events.jsonl", lines())
    settings = {**SETTINGS, "source": f"file:{source}"}
    folder = tmp_path / "state"
    with embedded_redis((folder / "redis").resolve()) as url:
        with Watch(folder, url) as watch:
            summary = run_job(folder, settings, notes=tmp_path / "notes")
        assert watch.wrong == [] and watch.looked > 20
        assert watch.answer["running"] and watch.answer["redis"]
        assert balanced(summary["events"])
        fields = all_fields(connect(url))
        assert f"freshet:user:{GONE}".encode() not in fields
        journal = Journal(StateFolder(folder).journal)
        journal.refresh()
        [place] = {stamp.place for stamp in journal.stamps.values()}
        assert 0 < place.lines < len(lines()) and len(journal.requests) == 2
        # Windows of before the deletion, which closed after it, are not there either.
        newest = max(orjson.loads(line)["timestamp"] for line in lines()[: place.lines])
        back = Client(url).user(BACK)
        after = sum(f'"{BACK}"'.encode() in line for line in lines()[place.lines :])
        assert back is not None and back.learned is not None and back.learned.count == after
        assert min(start for of in back.tiles.values() for start in of) > newest

        # The next run begins without them, and without one who is deleted in between, also where Redis forgot all.
        other = tmp_path / "other"
        other.mkdir()
        shutil.copy(StateFolder(folder).journal, StateFolder(other).journal)
        assert not delete(folder, LATER)["running"] and Client(url).user(LATER) is None
        connect(url).flushall()
        assert LATER not in {orjson.loads(line)["user_id"] for line in rated_events(N + 40)[N:]}
        write_lines(source, [*lines(), *rated_events(N + 40)[N:]])
        again = run_job(folder, settings)
        assert balanced(again["events"]) and again["events"]["read"] == 40
        assert Client(url).user(GONE) is None and Client(url).user(LATER) is None
        assert again["published"]["users"] == len({f"r{n}" for n in range(97)} - {GONE, LATER})

    # Left alone, with the same stamps, it is the same to the byte.
    write_lines(source, lines())
    with embedded_redis((other / "redis").resolve()) as url:
        expected = run_job(other, settings, notes=tmp_path / "notes-other")
        assert {k: expected[k] for k in ("events", "metrics")} == {k: summary[k] for k in ("events", "metrics")}
        assert all_fields(connect(url)) == fields
        assert stored_rows(tmp_path / "notes") == stored_rows(tmp_path / "notes-other")
