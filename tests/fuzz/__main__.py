"""Feeds hostile lines to parser, intake and learner: ``python -m tests.fuzz [--inputs 1000000 --seed S]``.

One line in ten is poisoned, one user has half of all traffic, and the process crashes and goes on from its state again
and again. Where atheris is installed, it looks for lines that break the parser, guided by coverage. Exits with 1 if
anything that must hold does not.
"""

from __future__ import annotations

import importlib.util
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from tests.fuzz.trial import Trial, Violation

_CHUNK = 4_000
_LOG = 100_000  # lines, after which an input ends and another begins


@click.command()
@click.option("--inputs", default=1_000_000, show_default=True, help="Lines to feed.")
@click.option("--seed", type=int, help="Repeats a run; otherwise drawn and shown.")
@click.option("--guided", default=20, show_default=True, help="Seconds of coverage-guided search, if atheris is there.")
def main(inputs: int, seed: int | None, guided: int) -> None:
    """Feeds hostile lines to parser, intake and learner."""
    seed = random.randrange(2**32) if seed is None else seed
    console, began, done = Console(), time.monotonic(), 0
    console.print(f"seed {seed}", highlight=False)
    outcomes: Counter[str] = Counter()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    rng = random.Random(seed)
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("hostile lines", total=inputs)
        while done < inputs:
            of_log, fed = min(inputs - done, _LOG), 0
            # Ratings on a scale of five; every fourth log has no bound but the one that is set by default.
            trial = Trial(rng.randrange(2**32), max_value=1e15 if done // _LOG % 4 == 1 else 5.0)
            try:
                while fed < of_log:
                    count = trial.feed(min(_CHUNK, of_log - fed), csv=rng.random() < 0.2)
                    fed += count
                    progress.advance(task, count)
                    if rng.random() < 0.1:
                        trial.crash()
                trial.finish()
            except Violation as error:
                progress.stop()
                console.print(f"violated after {done + fed:,} lines: {error}", style="red", highlight=False)
                console.print(f"again with --inputs {inputs} --seed {seed}", highlight=False)
                sys.exit(1)
            done += fed
            outcomes += trial.outcomes
            outcomes["learned"] += trial.learner.learned
            outcomes["blank"] += fed - trial.read
            outcomes["of the user with half of the traffic"] += trial.of_crowd
            outcomes["also parsed by Python's json, alike"] += trial.compared
    seconds = time.monotonic() - began
    title = f"{done / seconds:,.0f} lines a second for {seconds:.0f} s, no violation"
    table = Table("inputs", f"{done:,}", title=title)
    for name, count in outcomes.most_common():
        table.add_row(name, f"{count:,}")
    console.print(table)
    if importlib.util.find_spec("atheris") is None:
        console.print("atheris is not installed: no coverage-guided search (pip install atheris)", highlight=False)
    elif guided:
        options = [f"-max_total_time={guided}", f"-seed={seed % 2**31 or 1}", "-verbosity=0"]
        with tempfile.TemporaryDirectory() as folder:
            words = [sys.executable, "-m", "tests.fuzz.guided", *options, f"-artifact_prefix={folder}/", folder]
            if subprocess.run(words, check=False).returncode:
                console.print("coverage-guided search: violated", style="red")
                sys.exit(1)
        console.print(f"coverage-guided search of the parser: {guided} s, no violation", highlight=False)


if __name__ == "__main__":
    main()
