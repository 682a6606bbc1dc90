"""What the PyFlink shells do between the plain objects, for tests without Flink."""

from __future__ import annotations

from udfs.learner import Learned, Learner
from udfs.publisher import Publisher, dropped_calls, learned_entities


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
    learned = learned or learner.everything()
    where = (publisher.keys, shard, shards, epoch)
    drops = dropped_calls(learner, learned.dropped, *where)
    publisher.learned(*learned_entities(learner, learner.encode(learned), *where), drops)
