"""A run, in a process of its own, that looks around before it stops.

``python -m tests.flink.operated FOLDER ARGUMENT...``

The arguments are those of ``freshet run``. What was seen goes to ``seen.json`` in the folder.
"""

from __future__ import annotations

import json
import re
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import psutil

from flink_jobs.cli import cli
from flink_jobs.flink import RunningJob

_AT_REST = re.compile(
    r"^(flink_\w*_freshet_(?:\w*_)?(?:read|learned|rejected|published|batch_events_sum)\{.*)$", re.MULTILINE
)
_CHECKPOINT = re.compile(r"^flink_jobmanager_job_lastCheckpointCompletedTimestamp\{.*\} [1-9]", re.MULTILINE)


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=30) as answer:
        text: str = answer.read().decode()
    return text


def scrape(port: str) -> str:
    """Metrics when they have come to rest, after a checkpoint."""
    before: list[str] = []
    for _ in range(100):
        text = get(f"http://localhost:{port}/metrics")
        now = sorted(_AT_REST.findall(text))
        if now and now == before and _CHECKPOINT.search(text):
            return text
        before = now
        time.sleep(1)
    raise AssertionError("metrics do not come to rest")


def look(job: Any, port: str) -> dict[str, Any]:
    """What a job shows while it runs."""
    address = job._cluster().getRestAddress().get().toString()
    pages = {page: get(f"{address}/{page}") for page in ("config", "jobmanager/config", "jobs/overview")}
    [running] = json.loads(pages["jobs/overview"])["jobs"]
    for page in ("", "/config", "/plan", "/exceptions", "/checkpoints", "/accumulators"):
        pages[f"jobs{page}"] = get(f"{address}/jobs/{running['jid']}{page}")
    listening = {
        (connection.laddr.ip, connection.laddr.port)
        for process in psutil.Process().children(recursive=True)
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    rest = int(address.rpartition(":")[2])
    return {"scraped": scrape(port), "pages": pages, "listening": sorted(listening), "rest": rest}


def main(folder: Path, *arguments: str) -> None:
    port = next(word.partition("=")[2] for word in arguments if word.startswith("prometheus.port="))
    stop = RunningJob.stop

    def stop_after_a_look(job: RunningJob, *words: Any, **named: Any) -> str:
        """All is learned, and the job still runs."""
        (folder / "seen.json").write_text(json.dumps(look(job, port)))
        return stop(job, *words, **named)

    RunningJob.stop = stop_after_a_look  # type: ignore[method-assign]
    cli.main(["run", *arguments], prog_name="freshet")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
