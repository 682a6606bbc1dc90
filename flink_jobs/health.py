"""Whether a job makes progress. Its status does not tell: a worker that hangs is RUNNING to Flink."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
import redis

from flink_jobs.state import StateFolder
from serving.schema import Field, Keys


@dataclass(frozen=True)
class Health:
    """What a probe found.

    Attributes
    ----------
    healthy
        Whether there is no reason to say otherwise.
    reasons
        What is wrong, a sentence each.
    events
        Over the state's life: ``read`` and ``learned``.
    ages
        Seconds since the last sign of life of ``intake`` and of each ``shard N``, which take the same way as events up
        to what Redis acknowledges, and of what publishes ``windows``; since an entity was ``published``, which may be
        long ago where no events come; and since the last ``checkpoint``, where there is a state folder. None: never.
    """

    healthy: bool
    reasons: Sequence[str]
    events: Mapping[str, int]
    ages: Mapping[str, float | None]


def examine(
    connection: Any, keys: Keys, folder: StateFolder | None, now: int, max_age: int, max_checkpoint_age: int
) -> Health:
    """Examines a job by what it left in Redis and in its state folder.

    Parameters
    ----------
    now
        Wall clock, ms.
    max_age, max_checkpoint_age
        Milliseconds that a sign of life, or a checkpoint, may be old.
    """
    alive = f"{Field.ALIVE}:".encode()
    try:
        ledger = connection.hgetall(keys.ledger)
        parts = {n.removeprefix(alive): int(moment) for n, moment in ledger.items() if n.startswith(alive)}
        shards = sorted(int(part) for part in parts if part.isdigit())
        summaries = [connection.hget(keys.model(shard), "summary") for shard in shards]
    except (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError) as error:
        return Health(False, [f"Redis does not answer: {error}"], {}, {})

    def age(moment: int | None) -> float | None:
        return (now - moment) / 1_000 if moment else None

    ages = {"intake": age(int(ledger.get(Field.ALIVE.encode(), 0)))}
    ages |= {f"shard {shard}": age(parts[b"%d" % shard]) for shard in shards}
    ages |= {part.decode(): age(moment) for part, moment in parts.items() if not part.isdigit()}
    reasons = []
    if not ledger:
        reasons.append(f"no job has written under the prefix {keys.prefix!r} yet")
    elif not shards:
        reasons.append("no learner has given a sign of life yet: the job starts, or restores its state")
    for part, seconds in ages.items() if ledger else ():
        if seconds is None or seconds > max_age / 1_000:
            ago = "never gave a sign of life" if seconds is None else f"gave its last sign of life {seconds:.0f} s ago"
            reasons.append(f"{part} {ago}: the job is not running, or hangs, or Redis takes no writes")
    ages["published"] = age(int(ledger.get(b"published_at", 0)))
    if folder is not None:
        ages["checkpoint"] = age(folder.last_checkpoint())
        # Before the first one, what is at risk is all since the run began.
        seconds = ages["checkpoint"] or age(int(ledger.get(b"first_read_at", 0)))
        if seconds is not None and seconds > max_checkpoint_age / 1_000:
            reasons.append(f"no checkpoint was completed for {seconds:.0f} s: see Flink's log in {folder.logs}")
    counts = orjson.loads(ledger.get(b"counts", b"{}"))
    events = {
        "read": counts.get("read", 0),
        "learned": sum(orjson.loads(blob)["counts"]["learned"] for blob in summaries if blob),
    }
    return Health(not reasons, reasons, events, ages)
