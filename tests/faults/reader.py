"""A process that looks up all the while, and notes what must not be: a version that went back, a value that is torn.

``python -m tests.faults.reader URL SHARDS ID...`` reads orders from its input, a line each, and answers each with a
line: ``pause``; ``forget`` goes on, without what was seen before; ``end`` answers with a report as JSON.
"""

from __future__ import annotations

import contextlib
import hashlib
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson
import redis

from serving.connection import connect
from serving.schema import Field, Keys, sharded

_ROOT = Path(__file__).parents[2]
_OF_BOTH = (Field.VERSION, Field.COUNT, Field.UPDATED_AT, Field.BIAS, Field.VECTOR)


class Watch:
    """What was seen of each entity: of each version, a digest of all that was written with it."""

    def __init__(self) -> None:
        self.looked = 0
        self.wrong: list[str] = []
        self._newest: dict[str, bytes] = {}
        self._digests: dict[tuple[str, bytes], bytes] = {}

    def see(self, name: str, fields: Sequence[bytes | None]) -> None:
        """Takes the learned fields of an entity, the version first; all None where it is unknown."""
        version, *others = fields
        newest = self._newest.get(name)
        if version is None:
            if newest is not None or any(value is not None for value in others):
                self.wrong.append(f"{name} lost its version")
            return
        self.looked += 1
        if newest is not None and version < newest:
            self.wrong.append(f"{name} went from {newest!r} back to {version!r}")
        self._newest[name] = version
        if None in others:
            self.wrong.append(f"{name} has a part of its fields at {version!r}")
            return
        digest = hashlib.blake2b(orjson.dumps([value.hex() for value in others if value is not None])).digest()
        if self._digests.setdefault((name, version), digest) != digest:
            self.wrong.append(f"{name} has two values at {version!r}")

    def forget(self) -> None:
        self._newest.clear()
        self._digests.clear()


def look(connection: Any, keys: Keys, shards: int, users: Sequence[str], items: Sequence[str], watch: Watch) -> None:
    """Looks all of them up, each with one command."""
    pipe = connection.pipeline(transaction=False)
    names: list[tuple[str, int]] = []
    for user_id in users:
        names.append((keys.user(user_id), 1))
        pipe.hmget(keys.user(user_id), [*_OF_BOTH, Field.SEEN])
    own = [*_OF_BOTH, Field.POPULARITY]
    for item_id in items:
        names.append((keys.item(item_id), shards))
        pipe.hmget(keys.item(item_id), [sharded(name, shard, shards) for shard in range(shards) for name in own])
    for (name, of), fields in zip(names, pipe.execute(), strict=True):
        for shard in range(of):
            size = len(fields) // of
            watch.see(f"{name}/{shard}", fields[shard * size : (shard + 1) * size])


def main(url: str, shards: int, ids: Sequence[str]) -> None:
    connection, keys, watch = connect(url), Keys("freshet"), Watch()
    users, items = [i for i in ids if not i.startswith("i")], [i for i in ids if i.startswith("i")]
    orders: queue.Queue[str] = queue.Queue()

    def listen() -> None:
        for line in sys.stdin:
            orders.put(line.strip())
        orders.put("end")

    threading.Thread(target=listen, daemon=True).start()
    paused = False
    while True:
        try:
            order = orders.get(timeout=None if paused else 0.05)
        except queue.Empty:
            with contextlib.suppress(redis.exceptions.RedisError):  # Redis away is the job's matter
                look(connection, keys, shards, users, items, watch)
            continue
        if order == "end":
            print(orjson.dumps({"looked": watch.looked, "wrong": watch.wrong[:50]}).decode(), flush=True)
            return
        paused = order == "pause"
        if order == "forget":
            watch.forget()
        print(order, flush=True)


class Reader:
    """Runs the process; its report is there when the block has ended."""

    def __init__(self, url: str, ids: Sequence[str], shards: int = 1) -> None:
        self._command = [sys.executable, "-m", "tests.faults.reader", url, str(shards), *ids]
        self.report: Mapping[str, Any] = {}

    def __enter__(self) -> Reader:
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=_ROOT
        )
        return self

    def __exit__(self, *_: object) -> None:
        self.report = orjson.loads(self._ask("end"))
        self._process.wait()

    @contextlib.contextmanager
    def forgetting(self) -> Iterator[None]:
        """Does not look during the block, in which Redis loses what it acknowledged, and then knows nothing."""
        self._ask("pause")
        try:
            yield
        finally:
            self._ask("forget")

    def _ask(self, order: str) -> str:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{order}\n")
        self._process.stdin.flush()
        return self._process.stdout.readline()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3:])
