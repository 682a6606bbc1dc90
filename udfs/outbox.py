"""What one shard's learner writes to Redis, and when.

Groups are written as they come, save where a restarted learner repeats what Redis has heard, and rows were dropped in
it: they would be seen to come back until they are dropped again. What such a replay changes is held until it has passed
what Redis knows, and is then written at once.
"""

from __future__ import annotations

from serving.schema import version
from udfs.learner import Learned, Learner
from udfs.publisher import Publisher, dropped_calls, learned_entities
from udfs.rows import EncodedRows


class Outbox:
    """Writes one shard's rows and header through a publisher, and writes them again to a Redis that lost them.

    Parameters
    ----------
    epoch
        The birth of the state in ms, for versions.
    """

    def __init__(self, publisher: Publisher, learner: Learner, shard: int, shards: int, epoch: int) -> None:
        self._publisher, self._learner = publisher, learner
        self._shard, self._shards, self._epoch = shard, shards, epoch
        self._acknowledged: bytes | None = None  # the version of the header that Redis has taken
        self._replay_until = 0  # in events, learned or diverged
        self._held: Learned | None = None

    def restored(self) -> None:
        """To be called once, when the learner is restored: a checkpoint covers only what Redis has acknowledged.

        Where Redis does not have that, or rows were dropped by other bounds until now, all rows are written.
        """
        learner = self._learner
        self._acknowledged = version(self._epoch, learner.batch_number)
        published = self._publisher.published(self._shard)
        if published is None or published.version < self._acknowledged or learner.rebounded:
            self._write_everything()
        elif published.dropped > sum(learner.dropped.values()):
            self._replay_until = published.events

    def publish(self, learned: Learned, encoded: dict[str, EncodedRows]) -> None:
        """Writes what a group changed, ``encoded`` being its touched rows; returns when Redis has acknowledged it."""
        learner = self._learner
        replaying = learner.learned + learner.diverged < self._replay_until and not learner.ended
        if replaying or self._held is not None:
            held = self._held or learner.nothing()
            held.add(learned)
            # The header is written all the same: it tells whether Redis still has what it was given.
            learned = learner.nothing() if replaying else held
            encoded = learner.encode(learned)
            self._held = held if replaying else None
        before, expected = self._write(learned, encoded), self._acknowledged
        if expected is not None and (before or b"") < expected:
            # Redis was wiped, or put back to an older state: what it has lost comes back from ours.
            self._write_everything()
            self._replay_until = 0
        self._acknowledged = version(self._epoch, learner.batch_number)

    def _write_everything(self) -> None:
        everything = self._learner.everything()
        self._write(everything, self._learner.encode(everything))

    def _write(self, learned: Learned, encoded: dict[str, EncodedRows]) -> bytes | None:
        """Returns the version of the header that Redis had before."""
        learner, keys = self._learner, self._publisher.keys
        entities, items = learned_entities(learner, encoded, keys, self._shard, self._shards, self._epoch)
        drops = dropped_calls(learner, learned.dropped, keys, self._shard, self._shards, self._epoch)
        return self._publisher.learned(entities, items, drops)
