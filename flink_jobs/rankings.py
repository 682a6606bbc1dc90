"""How well a model ranks, over all shards, and as people read it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table

from udfs.building import BLEND
from udfs.ranking import METRICS, RARELY, SEGMENTS, RankingScores


def merged(summaries: Sequence[Mapping[str, Any]], known: int) -> dict[str, Any] | None:
    """The scores over shards, as :meth:`~udfs.ranking.RankingScores.values` gives them; None where no shard ranks.

    Parameters
    ----------
    summaries
        As learners give them. What another run has left is taken in where it was scored by the protocol of the first.
    known
        How many items there are.
    """
    states = [summary.get("ranking") for summary in summaries]
    if not states or states[0] is None:
        return None
    total = RankingScores.of(states[0])
    for state in states[1:]:
        if state is not None and total.fits(state):
            total.merge(RankingScores.of(state))
    return total.values(known)


def line(ranking: Mapping[str, Any]) -> str:
    """How well the model has ranked of late, beside the best of its baselines."""
    k, recent = ranking["protocol"]["k"], ranking["recent"]
    if not recent[ranking["model"]]["n"]:
        return ""
    own = " ".join(f"{name}@{k}={number(recent[ranking['model']][name])}" for name in METRICS[:2])
    best = max(ranking["baselines"], key=lambda name: recent[name]["ndcg"], default=None)
    if best is None:
        return own
    return f"{own} vs {best} {number(recent[best]['hit'])} {number(recent[best]['ndcg'])}"


def protocol(ranking: Mapping[str, Any]) -> str:
    """What was evaluated, and how."""
    of = ranking["protocol"]
    every = "every event" if of["every"] == 1 else f"1 event in {of['every']}"
    if of["every"] == "rarely":
        every = f"{RARELY.row} events in {RARELY.sparse:,} (of the first {RARELY.first:,} 1 in {RARELY.dense})"
    parts = [every, of["items"]]
    parts.append(f"groups {of['groups']}" if of["groups"] == "held out" else of["groups"])
    if of["others of the group"] != "ranked":
        parts.append(f"others of the group {of['others of the group']}")
    return ", ".join(parts)


def table(ranking: Mapping[str, Any]) -> Table:
    """The model beside its baselines, of late, and by segment."""
    model, k = ranking["model"], ranking["protocol"]["k"]
    shown = Table(title=f"ranking: {protocol(ranking)}", title_justify="left", caption_justify="left")
    shown.add_column("")
    for name in (*(f"{metric}@{k}" for metric in METRICS), "events"):
        shown.add_column(name, justify="right")
    for label, of in _rows(ranking, model):
        shown.add_row(label, *(number(of[metric]) for metric in METRICS), f"{of['n']:,}")
    notes = []
    if ranking["coverage"] is not None:
        notes.append(f"{ranking['coverage']:.0%} of the items came in the model's lists.")
    if ranking["cut_groups"]:
        notes.append(f"{ranking['cut_groups']:,} groups went on in another batch, and were predicted as two.")
    shown.caption = " ".join(notes) or None
    return shown


def _rows(ranking: Mapping[str, Any], model: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    yield from ranking["all"].items()
    for name, of in ranking["recent"].items():
        yield f"{name}, recent", of
    for segment in SEGMENTS[1:]:
        yield f"{model}, {segment}", ranking[segment][model]


def verdicts(ranking: Mapping[str, Any]) -> Iterator[str]:
    """A sentence for each baseline that has hits and is not beaten: a warning of a blend, of which this is the task."""
    model, k, overall = ranking["model"], ranking["protocol"]["k"], ranking["all"]
    own, kind = overall[model], "warning" if model == BLEND else "note"
    reason = "has learned too little yet, or does not suit this stream"
    if model != BLEND:
        reason = "tells what is liked, which need not be what comes next: for that there is --model blend"
    for name in ranking["beaten_by"]:
        theirs = overall[name]["ndcg"]
        if not theirs:
            continue
        yield (
            f"{kind}: {name} ranks {'better than' if theirs > own['ndcg'] else 'as well as'} the model (ndcg@{k} "
            f"{number(theirs)} against {number(own['ndcg'])}, over {own['n']:,} events): {model} {reason}."
        )


def number(value: float | None) -> str:
    """A metric's value as it is shown.

    >>> number(0.12345), number(None)
    ('0.1235', '-')
    """
    return "-" if value is None or not math.isfinite(value) else f"{value:.4f}"
