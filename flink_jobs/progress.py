"""How far a run is: its counts as Redis has them, live while it works, and the summary at the end."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import orjson
from rich.console import Console
from rich.live import Live
from rich.table import Table

from flink_jobs import rankings
from flink_jobs.rankings import number
from serving.schema import Field, Keys
from udfs.metrics import pooled, since, values
from udfs.outbox import covers

_PLAIN_SECONDS: Final = 5.0


@dataclass(frozen=True)
class Standing:
    """Where a run stands.

    Attributes
    ----------
    events
        Of this run: ``read = learned + rejected + late + duplicate + pending``. What an earlier run left
        pending is read again by this one: it is in ``read`` here too, and counted in ``carried``.
    complete
        The input has ended, and all of it is learned.
    replayed
        Events that were learned again after restarts; each counts once in all else.
    fenced
        A job that was submitted later has taken over the prefix.
    attempt
        Which of Flink's attempts at the job has written the ledger. Before the next one has, what is known is of
        the last.
    ranking
        How well the model ranks, see :func:`flink_jobs.rankings.merged`; None where that is not evaluated.
    alive
        When the intake (``""``) and each shard's learner (its number) were last there, by their wall clock in ms.
    """

    events: dict[str, int]
    rejected: dict[str, int] = field(default_factory=dict)
    carried: int = 0
    tile_late: int = 0
    metrics: dict[str, Any] = field(default_factory=dict)
    metrics_run: dict[str, Any] = field(default_factory=dict)
    ranking: dict[str, Any] | None = None
    users: int = 0
    items: int = 0
    writes: int = 0
    replayed: int = 0
    first_read_at: int = 0
    published_at: int = 0
    complete: bool = False
    latest: tuple[str, str] | None = None
    fenced: bool = False
    attempt: int = 0
    alive: dict[str, int] = field(default_factory=dict)


class Monitor:
    """Reads a run's standing from Redis."""

    def __init__(
        self, connection: Any, keys: Keys, shards: int, run_id: str, submission: int, metrics: Sequence[str] = ()
    ) -> None:
        self._redis = connection
        self._keys = keys
        self._shards = shards
        self._run_id = run_id
        self._submission = submission
        self._metrics = metrics
        before = connection.hgetall(keys.ledger)
        self._before = int(before.get(b"writes", 0)), _replayed(before)

    def standing(self, items: int | None = None) -> Standing:
        """Where the run stands; ``items`` is how many there are, if that was counted."""
        pipe = self._redis.pipeline(transaction=False)
        pipe.get(self._keys.fence)
        pipe.hgetall(self._keys.ledger)
        for shard in range(self._shards):
            pipe.hget(self._keys.model(shard), "summary")
        fence, ledger, *blobs = pipe.execute()
        shards = [orjson.loads(blob) for blob in blobs if blob]
        now = standing(ledger, shards, self._run_id, self._shards, self._before, self._metrics, items)
        return replace(now, fenced=int(fence or 0) > self._submission)

    def lacks(self) -> bool:
        """Whether Redis does not have all that learners have begun to write."""
        pipe = self._redis.pipeline(transaction=False)
        for shard in range(self._shards):
            pipe.hget(self._keys.ledger, f"{Field.REACHED}:{shard}")
            pipe.hget(self._keys.model(shard), "reached")
        places = [orjson.loads(place or b"{}") for place in pipe.execute()]
        return not all(map(covers, places[1::2], places[::2]))

    def final(self) -> Standing:
        """The standing with items counted one by one, since each shard has its own row of an item."""
        if self._shards == 1:
            return self.standing()
        known: set[bytes] = set()
        for shard in range(self._shards):
            known.update(item_id for item_id, _ in self._redis.zscan_iter(self._keys.items(shard), count=5_000))
        return self.standing(len(known))


def standing(
    ledger: Mapping[bytes, bytes],
    shards: list[dict[str, Any]],
    run_id: str,
    n_shards: int,
    before: tuple[int, int],
    metrics: Sequence[str] = (),
    items: int | None = None,
) -> Standing:
    """The run's standing from the ledger's hash and the shards' summaries.

    ``before``: how many entities had been sent, and events been learned again, before the run. ``metrics`` are named in
    any case; ``items`` is how many there are, if that was counted.
    """
    unknown: dict[str, Any] = {name.lower(): None for name in metrics}
    mine = [s for s in shards if s["run_id"] == run_id]
    life = pooled(s["counts"]["means"] for s in shards)
    run = pooled(since(s["counts"]["means"], s["base"]["means"]) for s in mine)
    carried = sum(s["carried"] for s in mine)
    diverged = sum(s["counts"]["diverged"] - s["base"]["diverged"] for s in mine)
    deleted = sum(s["counts"].get("deleted", 0) - s["base"].get("deleted", 0) for s in mine)
    learned = sum(s["counts"]["learned"] - s["base"]["learned"] for s in mine)
    refused = diverged + deleted
    events = {"read": carried, "learned": learned, "rejected": refused, "late": 0, "duplicate": 0, "pending": 0}
    accepted = carried
    rejected = {reason: count for reason, count in (("diverged", diverged), ("deleted", deleted)) if count}
    tile_late = 0
    started = ledger.get(b"run_id", b"").decode() == run_id
    if started:
        counts, base = orjson.loads(ledger[b"counts"]), orjson.loads(ledger[b"base"])
        for name in ("read", "late", "duplicate"):
            events[name] += counts[name] - base[name]
        accepted += counts["accepted"] - base["accepted"]
        tile_late = counts["tile_late"] - base["tile_late"]
        for reason, count in counts["rejected"].items():
            of_run = count - base["rejected"].get(reason, 0)
            if of_run:
                rejected[reason] = of_run
                events["rejected"] += of_run
    events["pending"] = accepted - learned - refused
    if items is None:
        # At least: what one shard knows. Monitor.final counts those that others know besides.
        items = max((s["items"] for s in shards), default=0)
    latest = next((s["latest"] for s in mine if s["latest"]), None)
    return Standing(
        events=events,
        rejected=rejected,
        carried=carried,
        tile_late=tile_late,
        metrics=unknown | values(life),
        metrics_run=unknown | values(run),
        ranking=rankings.merged(sorted(shards, key=lambda s: bool(s["run_id"] != run_id)), items),
        users=sum(s["users"] for s in shards),
        items=items,
        writes=max(int(ledger.get(b"writes", 0)) - before[0], 0),
        replayed=max(_replayed(ledger) - before[1], 0),
        first_read_at=int(ledger.get(b"first_read_at", 0)) if started else 0,
        published_at=int(ledger.get(b"published_at", 0)),
        complete=(
            started
            and ledger.get(b"ended") == b"1"
            and len(mine) == n_shards
            and all(s["ended"] for s in mine)
            and events["pending"] == 0
        ),
        latest=tuple(latest) if latest else None,
        attempt=int(ledger.get(Field.ATTEMPT.encode(), 0)),
        alive={
            name.decode().removeprefix(Field.ALIVE).removeprefix(":"): int(moment)
            for name, moment in ledger.items()
            if name.startswith(Field.ALIVE.encode())
        },
    )


def _replayed(ledger: Mapping[bytes, bytes]) -> int:
    return sum(int(count) for name, count in ledger.items() if name.startswith(Field.REPLAYED.encode()))


class Watchdog:
    """Tells when a job hangs: its status is RUNNING, and some part of it does nothing.

    Parameters
    ----------
    patience
        Seconds that a mark may stay as it is. Twice as long each time in a row: what is restored after the workers
        were ended may take a while.
    """

    def __init__(self, patience: float) -> None:
        self._patience = self._now_patience = patience
        self._marks: dict[str, tuple[object, float]] = {}
        self._hung: str | None = None

    def hung(self, marks: Mapping[str, object], now: float) -> bool:
        """Whether one of the marks has stayed as it is for too long; ``now`` is a monotonic clock in seconds."""
        for name, mark in marks.items():
            if name not in self._marks or self._marks[name][0] != mark:
                self._marks[name] = mark, now
                if name == self._hung:
                    self._hung, self._now_patience = None, self._patience
        oldest = min(marks, key=lambda name: self._marks[name][1], default=None)
        if oldest is None or now - self._marks[oldest][1] < self._now_patience:
            return False
        self._hung, self._now_patience = oldest, 2 * self._now_patience
        self._marks = {name: (mark, now) for name, mark in marks.items()}
        return True


class Display:
    """Shows a run's progress: a live table on a terminal, quiet plain lines elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Live | None = None
        self._last_line = 0.0
        self._previous: tuple[float, int] | None = None
        self._rate = 0.0

    def __enter__(self) -> Display:
        if self._console.is_terminal:
            self._live = Live(console=self._console, refresh_per_second=8, transient=True)
            self._live.__enter__()
        return self

    def __exit__(self, *exc: Any) -> None:
        if self._live is not None:
            self._live.__exit__(*exc)

    def show(self, now: Standing, state: str) -> None:
        moment = time.monotonic()
        if self._previous is not None and moment - self._previous[0] >= 1.0:
            self._rate = (now.events["read"] - self._previous[1]) / (moment - self._previous[0])
            self._previous = (moment, now.events["read"])
        elif self._previous is None and now.events["read"]:
            self._previous = (moment, now.events["read"])
        if self._live is not None:
            self._live.update(self._table(now, state))
        elif moment - self._last_line >= _PLAIN_SECONDS:
            self._last_line = moment
            counts = " ".join(f"{name}={count}" for name, count in now.events.items())
            scores = " ".join(f"{k}={number(v)}" for k, v in _errors(now.metrics_run, now.ranking).items())
            if now.ranking is not None:
                scores = " ".join(filter(None, (scores, rankings.line(now.ranking))))
            self._console.print(
                f"{state} {counts} events/s={self._rate:.0f} {scores} published={now.writes}", highlight=False
            )

    def say(self, text: str) -> None:
        """Prints a line, above the table where there is one."""
        self._console.print(text, highlight=False)

    def _table(self, now: Standing, state: str) -> Table:
        table = Table.grid(padding=(0, 2))
        table.add_row("[bold]freshet[/]", state)
        for name, count in now.events.items():
            table.add_row(name, f"{count:>12,}")
        table.add_row("events/s", f"{self._rate:>12,.0f}")
        for name, value in _errors(now.metrics_run, now.ranking).items():
            table.add_row(name, f"{number(value):>12}")
        if now.ranking is not None:
            table.add_row("ranking", rankings.line(now.ranking))
        table.add_row("published", f"{now.writes:>12,}")
        return table


def _errors(metrics: Mapping[str, Any], ranking: Mapping[str, Any] | None) -> dict[str, Any]:
    """The errors of predictions; of a model that ranks there are none."""
    return {} if ranking is not None and not metrics["n"] else {k: v for k, v in metrics.items() if k != "n"}


def summary_table(summary: Mapping[str, Any], rejected: Mapping[str, int]) -> Table:
    """The end of a run as people read it."""
    table = Table(title="freshet: what this run did", title_justify="left", show_header=False)
    for name, count in summary["events"].items():
        table.add_row(name, f"{count:,}")
        if name == "rejected":
            for reason, of_reason in sorted(rejected.items()):
                table.add_row(f"  {reason}", f"{of_reason:,}")
    for metrics, of in (("metrics_run", "this run"), ("metrics", "all runs")):
        for name, value in _errors(summary[metrics], summary["ranking"]).items():
            table.add_row(f"{name} ({of})", number(value))
    published = summary["published"]
    table.add_row("in Redis", f"{published['users']:,} users, {published['items']:,} items")
    table.add_row("entities sent", f"{published['writes']:,}")
    if summary["replayed"]:
        table.add_row("replayed", f"{summary['replayed']:,}")
    rate = summary["events_per_second"]
    table.add_row("events/s", "-" if rate is None else f"{rate:,.0f}")
    table.add_row("seconds", f"{summary['seconds']['total']:.1f} in all")
    return table
