"""What makes later starts quicker, done once in an environment: by running a small job."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import Final

from rich.console import Console

from flink_jobs.classes import make_archive
from flink_jobs.flink import JVM, find_java
from flink_jobs.runner import run
from flink_jobs.settings import Layer, resolve

_EVENTS: Final = 20_000


def warm_up() -> Path:
    """Compiles what learns, and archives the Java classes of a job; returns where these are.

    Raises
    ------
    OSError
        If the environment's folder can't be written.
    JavaError, JobFailed
        If the job can't run.
    """
    with tempfile.TemporaryDirectory(prefix="freshet-") as name:
        small = {
            "state_dir": str(Path(name) / "state"),
            "dead_letters": str(Path(name) / "dead-letters"),
            "generator.events": _EVENTS,
        }
        resolved = resolve([Layer("warm-up", small)])
        return make_archive(find_java(), JVM, lambda: run(resolved, Console(file=io.StringIO())))
