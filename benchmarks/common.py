"""What the benchmarks share: the stream, the plain loop, runs of the job, and how results are shown."""

from __future__ import annotations

import itertools
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import orjson
from river import reco

from udfs.generator import BLOCK, Generator, GeneratorConfig
from udfs.publisher import Entities, Part

RESULTS: Final = Path(__file__).parent / "results"
N_FACTORS: Final = 16


class Made:
    """Entities whose words are made, so that what is measured is their way to Redis."""

    def __init__(self, entities: Entities) -> None:
        self.made = [*entities.parts()]
        self._count = len(entities)

    def __len__(self) -> int:
        return self._count

    def parts(self) -> Iterator[Part]:
        return iter(self.made)


def written(entities: Entities) -> dict[str, dict[bytes, bytes]]:
    """The fields that a write gives each entity, as Redis returns them."""
    found = {}
    for part in entities.parts():
        fields, values = texts_in(part.fields), texts_in(part.values)
        for at, key in enumerate(part.keys):
            found[key] = dict(zip(fields, values[at * len(fields) : (at + 1) * len(fields)], strict=True))
    return found


def texts_in(packed: bytes) -> list[bytes]:
    """The texts, or bytes, in an array of MessagePack."""
    heads = {0xD9: 2, 0xDA: 3, 0xDB: 5}  # how many bytes come before a text of 32 bytes or more, by the first
    found: list[msgspec.Raw] = msgspec.msgpack.decode(packed, type=list[msgspec.Raw])
    return [text[heads.get(text[0], 1) :] for text in map(bytes, found)]


def stream(folder: Path, events: int, users: int = 20_000, items: int = 1_250, interval: int = 10) -> Path:
    """A file of ratings: by default of 20,000 users and 1,250 items at 100 events a second of event time."""
    path = folder / f"events-{events}-{users}-{items}-{interval}.jsonl"
    if not path.exists():
        config = GeneratorConfig(
            users=users, items=items, interval=interval, malformed=0.0, duplicates=0.0, late=0.0, churn=0
        )
        generator = Generator(config)
        scratch = path.with_suffix(".new")
        with scratch.open("wb") as file:
            for number in range(-(-events // BLOCK)):
                lines = generator.block(number)[: events - number * BLOCK]
                file.write(b"\n".join(lines) + b"\n")
        scratch.rename(path)
    return path


def plain_loop(path: Path, limit: int | None = None) -> float:
    """Events a second of ``orjson.loads; predict_one; learn_one``."""
    model = reco.BiasedMF(n_factors=N_FACTORS, seed=0)
    count = 0
    began = time.perf_counter()
    with path.open("rb") as file:
        for line in itertools.islice(file, limit):
            event = orjson.loads(line)
            model.predict_one(event["user_id"], event["item_id"])
            model.learn_one(event["user_id"], event["item_id"], event["event_value"])
            count += 1
    return count / (time.perf_counter() - began)


def job_command(path: Path, folder: Path, **settings: Any) -> list[str]:
    """The command of a run of the whole job; its summary goes to ``summary.json`` in the folder."""
    command = [
        str(Path(sys.executable).parent / "freshet"), "run", "--fresh",
        "--source", f"file:{path}", "--state-dir", str(folder / "state"), "--summary", str(folder / "summary.json"),
        "--set", f"model.n_factors={N_FACTORS}",
    ]  # fmt: skip
    for name, value in settings.items():
        command += ["--set", f"{name.replace('__', '.')}={value}"]
    return command


def run_job(path: Path, folder: Path, **settings: Any) -> dict[str, Any]:
    """One run of the whole job in processes of its own; returns its summary."""
    command = job_command(path, folder, **settings)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}\n{done.stderr}")
    result: dict[str, Any] = orjson.loads((folder / "summary.json").read_bytes())
    return result


def scratch() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="freshet-bench-")


def machine() -> dict[str, Any]:
    return {"cores": os.cpu_count(), "python": platform.python_version(), "system": platform.system()}


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def show(title: str, rows: Sequence[tuple[str, ...]]) -> None:
    """Prints a table; the first row is its head."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    print(f"\n{title}")
    for row in rows:
        print("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)))


def store(name: str, result: Mapping[str, Any]) -> None:
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_bytes(orjson.dumps({**result, "machine": machine()}, option=orjson.OPT_INDENT_2))
    print(f"written to {path.relative_to(Path(__file__).parents[1])}")


def progress(text: str) -> None:
    print(f"  {text}", file=sys.stderr, flush=True)


def rounds(count: int) -> Iterator[int]:
    for number in range(count):
        progress(f"round {number + 1} of {count}")
        yield number
