"""What the PyFlink shells do between the plain objects, for tests without Flink."""

from __future__ import annotations

from collections.abc import Iterable

from udfs.learner import Learned, Learner
from udfs.publisher import Entity, Publisher, learned_entities


def publish(
    publisher: Publisher,
    learner: Learner,
    learned: Learned | None = None,
    *,
    shard: int = 0,
    shards: int = 1,
    epoch: int = 7,
) -> None:
    """Writes what was learned, or all that is known, to Redis."""
    rows = learner.encode(learned or learner.everything())
    publisher.learned(*learned_entities(learner, rows, publisher.keys, shard, shards, epoch))


def entity_fields(entities: Iterable[Entity]) -> dict[str, dict[bytes, bytes]]:
    """The fields that a write gives each entity, its version aside, as Redis returns them."""

    def text(value: bytes | str | int) -> bytes:
        return value if isinstance(value, bytes) else str(value).encode()

    found = {}
    for key, (_, _, _, *words) in entities:
        found[key] = dict(zip(map(text, words[::2]), map(text, words[1::2]), strict=True))
    return found
