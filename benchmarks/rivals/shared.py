"""What the rivals share: the model, the fields of its rows, and notes in Redis of when and how much was learned.

Runs in the environment of bytewax, too: nothing here needs more than redis, River and numpy.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from river import reco

from serving.schema import Field, Keys, encode_vector, sharded

KEYS: Final = Keys("rival")
_CLOCK: Final = "rival:clock"

Row = tuple[str, str, float, bytes]  # family, id, bias and vector


class Clock(NamedTuple):
    """Wall-clock times in ms of the first event and of the last acknowledged write, and the events between them."""

    first: float
    last: float
    learned: int


def new_model(n_factors: int) -> Any:
    return reco.BiasedMF(n_factors=n_factors, seed=0)


def rows(model: Any, users: Iterable[str], items: Iterable[str]) -> list[Row]:
    """What is written of rows that were learned."""
    row: list[Row] = [("user", u, model.u_biases[u], encode_vector(model.u_latents[u])) for u in users]
    return row + [("item", i, model.i_biases[i], encode_vector(model.i_latents[i])) for i in items]


def write(connection: Any, some: Iterable[Row], shard: int = 0, shards: int = 1) -> None:
    """Writes rows in one round trip; returns when Redis has acknowledged them."""
    pipeline = connection.pipeline(transaction=False)
    for family, row_id, bias, vector in some:
        of = shards if family == "item" else 1
        key = KEYS.user(row_id) if family == "user" else KEYS.item(row_id)
        fields = {sharded(Field.BIAS, shard, of): repr(bias), sharded(Field.VECTOR, shard, of): vector}
        pipeline.hset(key, mapping=fields)
    pipeline.execute()


def now() -> float:
    return time.time() * 1_000


def note(connection: Any, part: int | str, first: float, learned: int) -> None:
    """Notes that a part, which began at ``first``, has learned so many events and has them acknowledged."""
    notes = {f"first:{part}": first, f"last:{part}": now(), f"learned:{part}": learned}
    connection.hset(_CLOCK, mapping=notes)


def clock(connection: Any) -> Clock:
    """The notes of all parts together."""
    notes = {name.decode(): float(value) for name, value in connection.hgetall(_CLOCK).items()}
    of = {kind: [v for name, v in notes.items() if name.startswith(kind)] for kind in ("first:", "last:", "learned:")}
    return Clock(min(of["first:"]), max(of["last:"]), int(sum(of["learned:"])))
