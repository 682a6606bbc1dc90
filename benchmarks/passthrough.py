"""What it costs that bytes cross between Python and the JVM: a job whose operators do nothing.

    python -m benchmarks.passthrough CHUNKFILE REPORT [--chunks 60] [--discard 20]

One operator gives the same chunk again and again, a second hands it on, a third drops it: each chunk crosses the JVM
twice, as it does in the job from the reader to the intake and to a learner, under the same configuration. REPORT gets
the seconds that the chunks after the first ``--discard`` took to arrive.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import orjson
from pyflink.common import Row, Types
from pyflink.datastream import KeyedProcessFunction, ProcessFunction

from flink_jobs.flink import environments, local_configuration, prepare_process
from flink_jobs.settings import resolve
from flink_jobs.streams import keyed, keyed_type

_BYTES: Final = Types.PRIMITIVE_ARRAY(Types.BYTE())
_KEY: Final = "one"


class Give(ProcessFunction):
    """Gives the chunk for each element."""

    def __init__(self, chunk: str) -> None:
        self._path = chunk

    def open(self, runtime_context: Any) -> None:
        self._chunk = Path(self._path).read_bytes()

    def process_element(self, value: int, ctx: ProcessFunction.Context) -> Iterator[Row]:
        yield Row(_KEY, self._chunk)


class HandOn(KeyedProcessFunction):
    def process_element(self, value: bytes, ctx: KeyedProcessFunction.Context) -> Iterator[Row]:
        yield Row(_KEY, value)


class Drop(KeyedProcessFunction):
    """Notes when chunks arrive."""

    def __init__(self, report: str, discard: int) -> None:
        self._report, self._discard = report, discard

    def open(self, runtime_context: Any) -> None:
        self._arrived: list[float] = []

    def process_element(self, value: bytes, ctx: KeyedProcessFunction.Context) -> None:
        self._arrived.append(time.perf_counter())

    def close(self) -> None:
        times = self._arrived[self._discard - 1 :]
        report = {"chunks": len(times) - 1, "seconds": times[-1] - times[0]}
        Path(self._report).write_bytes(orjson.dumps(report))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("chunk", type=Path)
    parser.add_argument("report", type=Path)
    parser.add_argument("--chunks", type=int, default=60)
    parser.add_argument("--discard", type=int, default=20)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="freshet-bench-") as name:
        folder = Path(name).resolve()
        prepare_process(folder / "log")
        options = local_configuration(resolve([]).settings, folder / "checkpoints", None, Path(sys.executable))
        with environments(options) as (env, _):
            given = env.from_collection(list(range(arguments.chunks)), Types.INT())
            chunks = given.process(Give(str(arguments.chunk.resolve())), keyed_type(_BYTES))
            handed = keyed(chunks, _BYTES).process(HandOn(), keyed_type(_BYTES))
            keyed(handed, _BYTES).process(Drop(str(arguments.report.resolve()), arguments.discard), Types.INT())
        env.execute("pass through")


if __name__ == "__main__":
    main()
