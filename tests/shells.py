"""What the PyFlink shells do between the plain objects, for tests without Flink."""

from __future__ import annotations

from udfs.learner import Learned, Learner
from udfs.publisher import Publisher, learned_entities


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
