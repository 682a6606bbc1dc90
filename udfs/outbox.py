"""What one shard's learner writes to Redis, and when.

Groups are written as they come, a large one while the next is learned. What is restored from a checkpoint of meanwhile
may be ahead of Redis, which tells how far it is: then all is written again, as where Redis has lost it.

Nothing is written while a restarted learner repeats what Redis has heard. What such a replay changes is held until it
has passed all that Redis knows, and is then written at once, as of a new attempt: so readers see nothing go back, or
come back that was dropped, and Redis ends as the learner is, also where the replay took another order.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future
from itertools import islice
from typing import Final

import orjson

from udfs.entities import LearnedEntities, dropped_calls, header_entity, history_calls
from udfs.learner import Learned, Learner
from udfs.publisher import Author, Lost, Publisher
from udfs.rows import EncodedRows

_AT_ONCE: Final = 20_000
_MANY: Final = 1_000  # entities whose write is not waited for: some 10 ms
_HISTORY_SECONDS: Final = 60.0
_LOG: Final = logging.getLogger("freshet")


def covers(reached: Mapping[str, int], other: Mapping[str, int]) -> bool:
    """Whether who has reached the one has been past the other.

    >>> covers({"a": 7, "b": 2}, {"a": 7}), covers({"a": 7}, {"a": 7, "b": 2})
    (True, False)
    """
    return all(reached.get(name, -1) >= position for name, position in other.items())


class Outbox:
    """Writes one shard's rows and header through a publisher, and writes them again to a Redis that lost them.

    Parameters
    ----------
    learner
        New, or restored.
    author
        Whose attempts are begun here.
    background
        Where writes are made: one thread, or what is at least as good at doing one thing after the other.
    pause
        Seconds between entries in the history of metrics.
    """

    def __init__(
        self,
        publisher: Publisher,
        learner: Learner,
        author: Author,
        background: Executor,
        pause: float = _HISTORY_SECONDS,
    ) -> None:
        self._publisher, self._learner, self._author, self._pause = publisher, learner, author, pause
        self._background = background
        self._writing: Future[None] | None = None  # what is under way
        self._may_last = False  # learning may go on meanwhile
        found = publisher.take_over(author)
        # When the last entry was made, and the ``seq`` up to which there are some: a replay adds none again.
        self._noted_at = -math.inf
        self._noted = -1 if found.version is None else int(found.version.rpartition(b".")[2])
        self._replay_until: Mapping[str, int] | None = None
        self._held = learner.nothing()
        # A checkpoint may cover the last write before Redis has acknowledged it, or says how far that was: what is not
        # there was lost, or has not arrived.
        acknowledged = learner.reached if learner.overdue is None else learner.overdue
        lost = found.version is None or not covers(found.acknowledged, acknowledged)
        if lost:
            if learner.learned or learner.diverged:
                self._write_everything()
        elif not covers(learner.reached, found.reached):
            self._replay_until = found.reached
            publisher.replayed(author, sum(found.reached.values()) - sum(learner.reached.values()))
            if learner.overdue is not None:
                self._held = learner.everything()
            self._held.dropped = learner.owed  # which a checkpoint of meanwhile keeps, as it grows
            learner.overdue = found.acknowledged
        elif learner.overdue is not None:
            self._write_everything()

    def publish(self, learned: Learned, encoded: dict[str, EncodedRows]) -> None:
        """Begins to write what a group changed, ``encoded`` being its touched rows, once Redis has acknowledged what
        was written before. :meth:`keep_up` is to be called when these rows are in the state."""
        self.settle()
        learner = self._learner
        self._publisher.delete(learned.deleted)
        if self._replay_until is not None:
            self._held.add(learned)
            if not covers(learner.reached, self._replay_until) and not learner.ended:
                return
            learned, self._held, self._replay_until = self._held, learner.nothing(), None
            encoded = learner.encode(learned)
        write = self._prepared(learned, encoded, header=True)
        # Who writes all rows again does not know of those that are gone.
        is_large = sum(map(len, learned.touched.values())) >= _MANY
        self._may_last = is_large and not learned.dropped and not learner.ended
        self._writing = self._background.submit(write)

    def keep_up(self) -> None:
        """Returns when Redis has acknowledged what is written, unless that is much."""
        if not self._may_last:
            self.settle()

    def close(self) -> None:
        """Waits for what is under way."""
        writing, self._writing = self._writing, None
        if writing is not None and (error := writing.exception()) is not None:
            _LOG.warning("what was learned last is not in Redis: %s", error)

    def settle(self) -> None:
        """Returns when Redis has acknowledged all that was written."""
        writing, self._writing = self._writing, None
        if writing is None:
            return
        try:
            writing.result()
        except Lost:
            self._write_everything()
            return
        self._caught_up()

    def assure(self) -> None:
        """Writes everything where Redis has lost it, which a group finds by the way, or where someone asks for it."""
        self.settle()
        try:
            asked = self._publisher.asked(self._author) and self._replay_until is None
        except Lost:
            self._write_everything()
            return
        if asked:
            self._write_everything()
            self._publisher.republished(self._author)

    def _write_everything(self) -> None:
        """Writes all rows, as an attempt of its own: again where Redis loses them meanwhile."""
        self._held, self._replay_until = self._learner.nothing(), None
        while True:
            self._publisher.take_over(self._author)
            with contextlib.suppress(Lost):
                self._write_rows()
                self._caught_up()
                return

    def _caught_up(self) -> None:
        self._learner.overdue, self._learner.owed = None, {}

    def _write_rows(self) -> None:
        """Writes all rows, some at a time: encoded, they take several times the memory."""
        self._publisher.delete(self._learner.tombstones)
        for family, rows in self._learner.everything().touched.items():
            left = iter(rows.items())
            while part := dict(islice(left, _AT_ONCE)):
                learned = self._learner.nothing()
                learned.touched[family] = part
                self._prepared(learned, self._learner.encode(learned), header=False)()
                self._publisher.alive(self._author.shard)
        rest = self._learner.nothing()
        rest.dropped = {family: gone - self._learner.rows[family].keys() for family, gone in self._learner.owed.items()}
        self._prepared(rest, self._learner.encode(rest), header=True)()

    def _prepared(self, learned: Learned, encoded: dict[str, EncodedRows], *, header: bool) -> Callable[[], None]:
        """A write of what a group changed, which does not depend on what the learner learns from now on."""
        learner, author = self._learner, self._author
        entities = LearnedEntities(learner, encoded, author)
        drops = dropped_calls(learner, learned.dropped, author)
        head = header_entity(learner, author) if header else None
        notes = history_calls(learner, author, time.time_ns() // 1_000_000) if header and self._notes_scores() else ()
        items, reached, seq = entities.items(), orjson.dumps(learner.reached), learner.seq

        def write() -> None:
            self._publisher.learned(author, entities, items, drops, reached=reached, header=head, notes=notes)
            if notes:
                self._noted_at, self._noted = time.monotonic(), seq

        return write

    def _notes_scores(self) -> bool:
        """Whether an entry in the history is due: now and then, and at the end of the input, if there is news."""
        is_due = self._learner.ended or time.monotonic() - self._noted_at >= self._pause
        return is_due and self._learner.seq > self._noted
