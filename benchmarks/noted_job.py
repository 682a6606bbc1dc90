"""Runs the job as ``freshet run`` does, and notes which of its processes does what.

    python -m benchmarks.noted_job FOLDER NAME=VALUE ...

Writes ``summary.json`` into the folder, and into its ``parts`` a file for each Python worker: named by the process, it
holds the names of the job's parts that it serves.
"""

from __future__ import annotations

import argparse
import functools
import io
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from flink_jobs.runner import run
from flink_jobs.settings import Layer, assignment, resolve

READ, INTAKE, LEARN, TILES = "read", "intake", "learn", "publish tiles"
_PARTS: Final = {"IntakeFunction": INTAKE, "LearnFunction": LEARN, "PublishTilesFunction": TILES}


def _noted(folder: str, make: Callable[[], Any]) -> Any:
    """Makes what a worker asks for, and notes who asked: each part has a publisher of its own, the reader a feed."""
    asking = type(sys._getframe(1).f_locals.get("self")).__name__
    with (Path(folder) / str(os.getpid())).open("a") as file:
        file.write(_PARTS.get(asking, READ) + "\n")
    return make()


def parts(folder: Path) -> dict[int, str]:
    """The parts of each process, joined, by its id."""
    return {int(f.name): "+".join(sorted(set(f.read_text().split("\n")) - {""})) for f in (folder / "parts").iterdir()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("settings", nargs="*", metavar="NAME=VALUE")
    arguments = parser.parse_args()
    notes = arguments.folder / "parts"
    notes.mkdir()

    def adapt(job: Any) -> Any:
        source = replace(job.source, open_feed=functools.partial(_noted, str(notes), job.source.open_feed))
        return replace(job, source=source, publisher=functools.partial(_noted, str(notes), job.publisher))

    own = {
        "state_dir": str(arguments.folder / "state"),
        "summary": str(arguments.folder / "summary.json"),
        "fresh": True,
    }
    settings = dict(map(assignment, arguments.settings))
    run(resolve([Layer("benchmark", {**own, **settings})]), Console(file=io.StringIO()), adapt)


if __name__ == "__main__":
    main()
