"""The PyFlink job that comes to mind first: ``map -> key_by -> process``, an event an element.

    python -m benchmarks.rivals.plain_pyflink FILE --redis URL [--factors 16]

Flink's file source gives lines, a map reads the JSON, and one keyed function predicts and learns each event with River,
puts the user's row, the item's row and the mean into keyed state, and writes both rows to Redis by a pipeline of 500
events. Checkpoints every 10 s, exactly once within Flink; after a crash the model is built anew from the rows. Unlike
freshet it drops no duplicates, sets nothing late aside, has no windows, and a checkpoint may cover writes that Redis
has not acknowledged. Python workers are processes, as on a cluster; PyFlink's bundles are as they come.
"""

from __future__ import annotations

import argparse
import struct
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

import numpy as np
import orjson
from pyflink.common import Configuration, Types, WatermarkStrategy
from pyflink.datastream import KeyedProcessFunction, RuntimeContext, StreamExecutionEnvironment
from pyflink.datastream.connectors.file_system import FileSource, StreamFormat
from pyflink.datastream.state import MapStateDescriptor, ValueStateDescriptor

from benchmarks.rivals import shared
from flink_jobs.flink import prepare_process
from serving.connection import connect

_BYTES: Final = Types.PRIMITIVE_ARRAY(Types.BYTE())
_EVENT: Final = Types.TUPLE([Types.STRING(), Types.STRING(), Types.DOUBLE()])
_BUFFERED: Final = 500  # events
_MEAN: Final = "<dd"  # number and mean


def parsed(line: str) -> tuple[str, str, float]:
    event = orjson.loads(line)
    return event["user_id"], event["item_id"], event["event_value"]


class Learn(KeyedProcessFunction):
    """Predicts, learns, stores and publishes one event at a time."""

    def __init__(self, redis_url: str, n_factors: int) -> None:
        self._redis_url, self._n_factors = redis_url, n_factors

    def open(self, runtime_context: RuntimeContext) -> None:
        self._rows = runtime_context.get_map_state(MapStateDescriptor("rows", Types.STRING(), _BYTES))
        self._mean = runtime_context.get_state(ValueStateDescriptor("mean", _BYTES))
        self._redis = connect(self._redis_url)
        self._model: Any = None
        self._users: set[str] = set()
        self._items: set[str] = set()
        self._first, self._learned, self._buffered = 0.0, 0, 0

    def process_element(self, value: Any, ctx: KeyedProcessFunction.Context) -> None:
        if self._model is None:
            self._model, self._first = self._restored(), shared.now()
        model, (user, item, rating) = self._model, value
        model.predict_one(user, item)
        model.learn_one(user, item, rating)
        self._rows.put(f"u{user}", _packed(model.u_biases[user], model.u_latents[user]))
        self._rows.put(f"i{item}", _packed(model.i_biases[item], model.i_latents[item]))
        self._mean.update(struct.pack(_MEAN, model.global_mean.n, model.global_mean.get()))
        self._users.add(user)
        self._items.add(item)
        self._learned += 1
        self._buffered += 1
        if self._buffered == _BUFFERED:
            self._flush()

    def close(self) -> None:
        if self._model is not None:
            self._flush()
        self._redis.close()

    def _flush(self) -> None:
        shared.write(self._redis, shared.rows(self._model, self._users, self._items))
        shared.note(self._redis, 0, self._first, self._learned)
        self._users.clear()
        self._items.clear()
        self._buffered = 0

    def _restored(self) -> Any:
        model = shared.new_model(self._n_factors)
        mean = self._mean.value()
        if mean is not None:
            model.global_mean.n, model.global_mean._mean = struct.unpack(_MEAN, mean)
        for name, blob in self._rows.items():
            row = np.frombuffer(blob).copy()
            biases, latents = (model.u_biases, model.u_latents) if name[0] == "u" else (model.i_biases, model.i_latents)
            biases[name[1:]], latents[name[1:]] = float(row[0]), row[1:]
        return model


def _packed(bias: float, vector: np.ndarray[Any, Any]) -> bytes:
    return struct.pack("<d", bias) + vector.tobytes()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--redis", required=True)
    parser.add_argument("--factors", type=int, default=16)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="freshet-rival-") as name:
        folder = Path(name)
        prepare_process(folder / "log")
        config = Configuration()
        for option, value in {
            "parallelism.default": "1",
            "execution.checkpointing.interval": "10 s",
            "execution.checkpointing.mode": "EXACTLY_ONCE",
            "execution.checkpointing.dir": (folder / "checkpoints").as_uri(),
            "rest.port": "0",
            "rest.bind-port": "0",
            "python.executable": sys.executable,
            "python.client.executable": sys.executable,
        }.items():
            config.set_string(option, value)
        env = StreamExecutionEnvironment.get_execution_environment(config)
        source = FileSource.for_record_stream_format(StreamFormat.text_line_format(), str(arguments.file)).build()
        (
            env.from_source(source, WatermarkStrategy.no_watermarks(), "file")
            .map(parsed, output_type=_EVENT)
            .key_by(lambda event: "0", key_type=Types.STRING())
            .process(Learn(arguments.redis, arguments.factors), Types.INT())
        )
        env.execute("plain")
        print(shared.clock(connect(arguments.redis)))


if __name__ == "__main__":
    main()
