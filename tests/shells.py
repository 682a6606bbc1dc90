"""What the PyFlink shells do between the plain objects, for tests without Flink."""

from __future__ import annotations

import orjson

from udfs.learner import Learned, Learner
from udfs.publisher import Author, Publisher, dropped_calls, header_entity, learned_entities


def publish(
    publisher: Publisher,
    learner: Learner,
    learned: Learned | None = None,
    *,
    shard: int = 0,
    shards: int = 1,
    epoch: int = 7,
    attempt: int = 1,
) -> None:
    """Writes what was learned, or all that is known, to Redis."""
    learned = learned or learner.everything()
    author = Author(publisher.keys, shard, shards, epoch, attempt)
    drops = dropped_calls(learner, learned.dropped, author)
    entities, items = learned_entities(learner, learner.encode(learned), author)
    header = header_entity(learner, author)
    publisher.learned(author, entities, items, drops, reached=orjson.dumps(learner.reached), header=header)
