"""How well the learners of implicit feedback and of ratings do: one pass a stream, each event predicted, then learned.

``python -m benchmarks.ranking`` prints, for the second half of each stream (the settings were tuned on first halves):

- ``online-retail``, record by record with the lines of an invoice shuffled, and with whole invoices held out;
- ``complete-journey``, with groups held out;
- ``movielens-latest-small``: the stack of raters against the best biased MF that a search on the first half finds;
- what bounded rows cost (``--only neighbours``), and shards (``--only shards``);
- each learner alone at the best of a few settings, and published matrix factorisations (``--only references``);
- models of ratings, which are no recommenders of what comes next (``--only raters``).

Learners alone rank what they score, and then the rest by decayed popularity; of ``references`` the rest are tied.
"Others left out" ranks each item among those that are not in its group.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import orjson
from river import facto, optim, reco

from benchmarks.common import progress, show, store
from serving.blend import DECAYED
from serving.schema import shard_of
from udfs.batch import Batch
from udfs.blend import ALL, BLEND, LEFT_OUT, NEW, POPS, RANKERS, Blend
from udfs.building import FILTERS, build
from udfs.embeddings import Embeddings
from udfs.factors import BPR, ISGD, RAISGD
from udfs.ids import Group
from udfs.interactions import Interactions
from udfs.learner import Learner, LearnerConfig
from udfs.models import ITEM, USER, Array
from udfs.neighbours import CoOccurrence, Markov
from udfs.popularity import DecayedPopularity, Repeats
from udfs.ranking import (
    BASELINES,
    MISS,
    NOT_NEW,
    SEGMENTS,
    Predicted,
    RankingConfig,
    RankingScores,
    grouped,
    place,
    scored,
)
from udfs.ratings import Wrapped
from udfs.recommenders import Recommender
from udfs.stack import Stack, default_raters

DATA: Final = Path(__file__).parents[2] / "shared" / "data"
PARTS: Final = ("retail-shuffled", "retail", "journey", "ratings", "neighbours", "shards", "references", "raters")
RATED: Final = "movielens-latest-small"
PROTOCOLS: Final = {ALL: "repeats allowed", NEW: "only new to the user", LEFT_OUT: "others left out"}
K: Final = 10
BATCHES: Final = (10, 100, 1_000)
SHARDS: Final = (1, 2, 4, 8)
# What shards might share of their blends, part by part.
COUNTS: Final = ("popular", "counts", "repeated")
OF_ITEMS: Final = (*COUNTS, "follows", "near", "vectors", "changed")
SHARED: Final = {
    "nothing": (),
    "counts of items": COUNTS,
    "all of items": OF_ITEMS,
    "that and weights": (*OF_ITEMS, "weights", "squares", "scales"),
}
_TURN: Final = 100  # events


@dataclass
class Stream:
    """Events in order; groups lie together."""

    user_ids: list[str]
    item_ids: list[str]
    values: Array
    times: Array

    def __len__(self) -> int:
        return len(self.user_ids)

    def half(self) -> int:
        """Where the second half begins, between two groups."""
        at = len(self) // 2
        while 0 < at < len(self) and (self.times[at], self.user_ids[at]) == (self.times[at - 1], self.user_ids[at - 1]):
            at += 1
        return at

    def part(self, places: Array) -> Stream:
        user_ids, item_ids = ([ids[at] for at in places] for ids in (self.user_ids, self.item_ids))
        return Stream(user_ids, item_ids, self.values[places], self.times[places])


def read(path: Path, limit: int | None, shuffled: bool) -> Stream:
    """A stream; shuffled: the lines of each group in an order that says nothing."""
    groups: dict[tuple[int, str], list[dict[str, Any]]] = {}
    with gzip.open(path / "events.jsonl.gz") as lines:
        for line in itertools.islice(lines, limit):
            event = orjson.loads(line)
            groups.setdefault((event["timestamp"], event["user_id"]), []).append(event)
    rng = random.Random(0)
    for group in groups.values():
        if shuffled:
            rng.shuffle(group)
    events = [event for group in groups.values() for event in group]
    return Stream(
        [event["user_id"] for event in events],
        [event["item_id"] for event in events],
        np.array([event.get("event_value", 1.0) for event in events]),
        np.array([event["timestamp"] for event in events]),
    )


# ------------------------------------------------------------------------------------------- rankings


def blend_pass(
    stream: Stream, config: RankingConfig, rankers: Sequence[int], protocols: Sequence[int], **settings: Any
) -> tuple[Blend, dict[int, RankingScores], dict[str, Any]]:
    """One pass; returns the model, the scores of the second half by protocol, and figures besides."""
    model, half = Blend(**settings), stream.half()
    names = [RANKERS[ranker] for ranker in rankers]
    baselines = [RANKERS[ranker] for ranker in (1 + DECAYED, POPS) if ranker in rankers]
    scores = {protocol: RankingScores(config, names, baselines) for protocol in protocols}
    whole, seconds = [], time.process_time()
    for first, end in ((0, half), (half, len(stream))):
        wanted = config.evaluated(first, end - first)
        part = model.test_then_learn(
            stream.user_ids[first:end], stream.item_ids[first:end], stream.times[first:end], wanted, config, rankers,
            protocols,
        )  # fmt: skip
        whole.append(part)
        if first:
            for at, protocol in enumerate(protocols):
                note(scores[protocol], part, at, [model.items.names[number] for number in part.offered])
        progress(f"{end:,} events")
    columns = [part.better for part in whole], [part.ties for part in whole]
    besides = {
        "seconds": time.process_time() - seconds,
        "whole": [
            hits(*(np.concatenate([of[:, 0, r] for of in column]) for column in columns)) for r in range(len(rankers))
        ],
    }
    return model, scores, besides


def note(scores: RankingScores, part: Predicted, protocol: int, offered: Sequence[str]) -> None:
    counted = part.better[:, protocol, 0] != NOT_NEW
    scores.update(
        part.better[counted, protocol], part.ties[counted, protocol], part.returning[counted], part.head[counted],
        offered,
    )  # fmt: skip


def hits(better: Array, ties: Array) -> float:
    return float(scored(better, ties, K)[:, 0].mean())


def ranking(title: str, stream: Stream, config: RankingConfig, protocols: Sequence[int], every: int) -> dict[str, Any]:
    rankers = list(range(len(RANKERS)))
    config = RankingConfig(k=K, held_out=config.held_out, every=every)
    progress(title)
    model, scores, besides = blend_pass(stream, config, rankers, protocols)
    result: dict[str, Any] = {"seconds": besides["seconds"], "every": every}
    rows: list[tuple[str, ...]] = [("", *(f"{PROTOCOLS[p]}: hit, ndcg, mrr" for p in protocols), "whole stream: hit")]
    for r, name in enumerate(RANKERS):
        cells = [scores[p].values()["all"][name] for p in protocols]
        rows.append((name, *(three(cell) for cell in cells), f"{besides['whole'][r]:.4f}"))
        result[name] = dict(zip((PROTOCOLS[p] for p in protocols), cells, strict=True)) | {"whole": besides["whole"][r]}
    show(f"{title}, second half, @{K}, 1 event in {every}", rows)
    shown = scores[protocols[0]].values(known=len(model.items))
    alone = {name: shown["all"][name]["hit"] for name in RANKERS[1:]}
    best = max(alone, key=alone.__getitem__)
    print(f"  blend / best alone ({best}): {shown['all']['blend']['hit'] / alone[best]:.3f}")
    print(f"  coverage of the blend's lists: {shown['coverage']:.2f}; beaten by: {shown['beaten_by'] or 'none'}")
    print("  blend by segment: " + "; ".join(
        f"{segment} {shown[segment]['blend']['hit'] or 0.0:.4f} of {shown[segment]['blend']['n']:,}"
        for segment in ("new users", "returning users", "head items", "tail items", "recent")
    ))  # fmt: skip
    print(f"  {besides['seconds']:.0f} s of CPU for {len(stream):,} events")
    return result | {"segments": {segment: shown[segment]["blend"] for segment in (*SEGMENTS, "recent")}}


def three(cell: dict[str, Any]) -> str:
    return " ".join(f"{cell[name]:.4f}" for name in ("hit", "ndcg", "mrr")) if cell["n"] else "-"


def neighbours(streams: dict[str, Stream], every: int) -> dict[str, Any]:
    """What is lost where rows keep less."""
    rows: list[tuple[str, ...]] = [("links of an item, items of a user", *streams)]
    result: dict[str, Any] = {}
    for size in (10, 30, 100, 300):
        figures = []
        for stream in streams.values():
            config = RankingConfig(k=K, every=every)
            _, scores, _ = blend_pass(stream, config, [BLEND], [ALL], neighbours=size, seen=size)
            figures.append(scores[ALL].values()["all"]["blend"]["hit"])
        rows.append((f"{size}, {size}", *(f"{of:.4f}" for of in figures)))
        result[str(size)] = dict(zip(streams, figures, strict=True))
    show("What bounded rows cost: hit@10 of the blend, groups held out", rows)
    return result


def shards(streams: dict[str, Stream], every: int) -> dict[str, Any]:
    """What is lost where users are spread over models of their own, as with ``--shards``; and what would be if these
    shared more, at once."""
    rows: list[tuple[str, ...]] = [("shards", "shared", *streams)]
    result: dict[str, Any] = {}
    for count in SHARDS:
        for title, names in SHARED.items() if count > 1 else [("", ())]:
            figures = [shared(stream, count, names, every) for stream in streams.values()]
            rows.append((f"{count}", title, *(f"{of:.4f}" for of in figures)))
            result[f"{count} {title}".strip()] = dict(zip(streams, figures, strict=True))
            progress(f"{count} shards {title}")
    show("What more shards cost: hit@10 of the blend, groups held out, second half of each shard", rows)
    return result


def shared(stream: Stream, count: int, names: Sequence[str], every: int) -> float:
    """The hits of blends that learn the users of a shard each, and share those of their parts that are named."""
    of_users = np.array([shard_of(user_id, count) for user_id in stream.user_ids])
    blends = [Blend() for _ in range(count)]
    for blend in blends:  # an item has one number in all, and no table grows
        users, items = np.array(blend.users.add(stream.user_ids)), np.array(blend.items.add(stream.item_ids))
        blend.fit()
        blend.parts = blend.parts._replace(**{name: getattr(blends[0].parts, name) for name in names})
    config, met, second, hit, n = RankingConfig(k=K, every=every), [0] * count, [0] * count, 0.0, 0
    for shard in range(count):
        second[shard] = stream.part(np.flatnonzero(of_users == shard)).half()
    # A little at a time, in turns; what happened at one time stays together.
    cuts = np.unique(np.searchsorted(stream.times, stream.times[::_TURN]))
    for first, end in itertools.pairwise([*cuts.tolist(), len(stream)]):
        for shard in range(count):
            mine = first + np.flatnonzero(of_users[first:end] == shard)
            if not len(mine):
                continue
            wanted = config.evaluated(met[shard], len(mine)) & (met[shard] + np.arange(len(mine)) >= second[shard])
            met[shard] += len(mine)
            part = blends[shard].rank_then_learn(
                users[mine], items[mine], stream.times[mine], wanted, config, [BLEND], [ALL]
            )
            hit += float(scored(part.better[:, 0, 0], part.ties[:, 0, 0], K)[:, 0].sum())
            n += len(part.better)
    return hit / n


def references(streams: dict[str, Stream], every: int) -> dict[str, Any]:
    """Learners alone, and published matrix factorisations, groups held out; settings were chosen on the first half."""
    grids: list[tuple[Callable[..., Recommender], list[dict[str, Any]]]] = [
        (DecayedPopularity, [{"half_life": of} for of in (1e3, 3e3, 1e4, 3e4)]),
        (Repeats, [{"half_life": of, "seen": 200} for of in (1e3, 1e4)]),
        (Markov, [{"alpha": a, "window": w, "gamma": g} for a in (0.5, 0.75) for w in (3, 10) for g in (0.5, 0.9)]),
        (CoOccurrence, [{"alpha": a, "window": w} for a in (0.5, 0.75) for w in (5, 20)]),
        (Embeddings, [{"negatives": n, "rate": rate} for n in (20, 100) for rate in (0.05, 0.15)]),
        (ISGD, [{"rate": rate, "n_factors": f} for rate in (0.02, 0.1) for f in (16, 64)]),
        (RAISGD, [{"rate": rate, "negatives": n} for rate in (0.05, 0.2) for n in (3, 20)]),
        (BPR, [{"rate": rate, "negatives": n} for rate in (0.05, 0.15) for n in (5, 20)]),
    ]
    rows: list[tuple[str, ...]] = [("hit, ndcg, mrr @10", *streams)]
    result: dict[str, Any] = {}
    for kind, grid in grids:
        cells = []
        for name, stream in streams.items():
            found = [(halves(kind(**settings), stream, every), settings) for settings in grid]
            (_, second), settings = max(found, key=lambda one: float(one[0][0][1]))
            cells.append(" ".join(f"{of:.4f}" for of in second) + f" {settings}")
            result[f"{kind.__name__} {name}"] = {"hit, ndcg, mrr": second.tolist(), "settings": settings}
        rows.append((kind.__name__, *cells))
        progress(kind.__name__)
    show(f"Learners alone, groups held out, second half, 1 event in {every}", rows)
    return result


def halves(model: Recommender, stream: Stream, every: int) -> tuple[Array, Array]:
    """Hit, NDCG and MRR of the halves of a stream, groups held out."""
    users, items = np.array(model.users.add(stream.user_ids)), np.array(model.items.add(stream.item_ids))
    order, starts = grouped(stream.times, users)
    model.fit()
    better, ties, wanted = [], [], np.arange(len(stream)) % every == 0
    for first, end in itertools.pairwise(starts.tolist()):
        events = order[first:end]
        if wanted[events].any():
            # All ids have rows from the start, so what was not met yet is taken out.
            scores = np.where(model.counts[: len(model.items)] > 0, model.scores(int(users[events[0]])), np.nan)
            for event in events[wanted[events]].tolist():
                at = place(scores, int(items[event]))
                better.append(at[0])
                ties.append(at[1])
        model.learn_numbers(users[events], items[events], stream.times[events])
    assert MISS in better
    points, half = scored(np.array(better), np.array(ties), K), len(better) // 2
    return points[:half].mean(axis=0), points[half:].mean(axis=0)


# -------------------------------------------------------------------------------------------- ratings


def errors(ys: Array, predictions: Array, clip: tuple[float, float]) -> tuple[float, float]:
    """RMSE and MAE."""
    apart = ys - np.clip(predictions, *clip)
    return float(np.sqrt(np.mean(apart * apart))), float(np.mean(np.abs(apart)))


def learned(name: str, settings: dict[str, Any], stream: Stream) -> Array:
    """What a model of the job predicts."""
    model = build(name, settings)
    users, items = Group(model.ids[USER], stream.user_ids), Group(model.ids[ITEM], stream.item_ids)
    return model.learn(users, items, stream.values, stream.times)[0]


def by_shards(name: str, settings: dict[str, Any], stream: Stream, count: int) -> Array:
    """What so many models predict, each of the users of a shard."""
    of_users, predictions = np.array([shard_of(user_id, count) for user_id in stream.user_ids]), np.empty(len(stream))
    for shard in range(count):
        mine = np.flatnonzero(of_users == shard)
        predictions[mine] = learned(name, settings, stream.part(mine))
    return predictions


def served(name: str, settings: dict[str, Any], stream: Stream, size: int) -> Array:
    """What readers of Redis predict of each batch, from rows as they were last written; NaN without a row."""
    model, ids = build(name, settings), {USER: stream.user_ids, ITEM: stream.item_ids}
    written: dict[str, dict[str, tuple[float, Array]]] = {USER: {}, ITEM: {}}
    predictions = np.full(len(stream), np.nan)
    for first in range(0, len(stream), size):
        part = slice(first, first + size)
        mean = model.global_mean() if first else 0.0
        for at, (user_id, item_id) in enumerate(zip(*(of[part] for of in ids.values()), strict=True), start=first):
            user, item = written[USER].get(user_id), written[ITEM].get(item_id)
            if user is not None and item is not None:
                predictions[at] = mean + user[0] + item[0] + user[1] @ item[1]
        users, items = (Group(model.ids[family], of[part]) for family, of in ids.items())
        model.learn(users, items, stream.values[part], stream.times[part])
        for family, of in ids.items():
            met = sorted(set(of[part]))
            rows = model.encode_rows(family, met, model.ids[family].find(met))
            vectors = model.vectors(family, rows).astype("<f4").astype("<f8")
            written[family] |= dict(zip(met, zip(model.biases(family, rows), vectors, strict=True), strict=True))
    return predictions


def ratings(stream: Stream) -> dict[str, Any]:
    """The stack, also with the best of 81 settings, against the best of 96 of biased MF, by RMSE on the first half."""
    ys, half = stream.values, len(stream) // 2
    clip = (float(ys[:half].min()), float(ys[:half].max()))
    grid = itertools.product((0.02, 0.03, 0.04, 0.06), (0.02, 0.06, 0.1), (0.05, 0.15), (0.02, 0.1), (4, 16))
    of_biased = [
        {
            "n_factors": n_factors, "bias_optimizer": "SGD", "bias_optimizer.lr": bias_rate, "latent_optimizer": "SGD",
            "latent_optimizer.lr": rate, "latent_initializer": "Normal", "latent_initializer.sigma": spread,
            "l2_latent": l2, "l2_bias": 0.02,
        }
        for bias_rate, rate, spread, l2, n_factors in grid
    ]  # fmt: skip
    of_stack = [
        {"noise": noise, "n_factors": n_factors, "forget": forget, "prior": prior}
        for noise, n_factors, forget, prior in itertools.product(
            (0.5, 1, 2), (8, 16, 32), (0.9998, 0.9999, 1), (0.01, 0.02, 0.05)
        )
    ]
    tried = {
        name: [(learned(name, settings, stream), settings) for settings in of]
        for name, of in (("biased_mf", of_biased), ("stack", of_stack))
    }
    (chosen, settings), (tuned, tuned_settings) = (
        min(of, key=lambda one: errors(ys[:half], one[0][:half], clip)[0]) for of in tried.values()
    )
    by_second = {
        name: sorted(range(len(of)), key=lambda at: errors(ys[half:], of[at][0][half:], clip)[0])
        for name, of in tried.items()
    }
    normal = optim.initializers.Normal
    raters = [
        *default_raters(),
        Wrapped(
            reco.BiasedMF(
                n_factors=10, bias_optimizer=optim.SGD(0.04), latent_optimizer=optim.SGD(0.06), l2_bias=0.02,
                l2_latent=0.02, latent_initializer=normal(sigma=0.05, seed=0), seed=0,
            )
        ),
        Wrapped(
            facto.FMRegressor(
                n_factors=8, weight_optimizer=optim.SGD(0.03), latent_optimizer=optim.SGD(0.03),
                latent_initializer=normal(sigma=0.05, seed=0), seed=0,
            ),
            dictionary=True,
        ),
    ]  # fmt: skip
    filters, stack = Stack(), Stack(raters)
    of_filters = filters.learn(stream.user_ids, stream.item_ids, ys, stream.times)
    of_job = {name: learned(name, {}, stream) for name in FILTERS}
    stacked = stack.learn(stream.user_ids, stream.item_ids, ys, stream.times)
    listed = [
        ("biased MF, chosen on the first half", chosen),
        ("biased MF, best on the second half in hindsight", tried["biased_mf"][by_second["biased_mf"][0]][0]),
        *((f"{type(getattr(r, 'model', r)).__name__}", stack.predictions[:, at]) for at, r in enumerate(raters)),
        ("stack of the filters", of_filters),
        *((f"--model {name}", predictions) for name, predictions in of_job.items()),
        ("--model stack, chosen on the first half", tuned),
        ("--model stack, worst on the second half in hindsight", tried["stack"][by_second["stack"][-1]][0]),
        ("stack of the filters, River's biased MF and FM", stacked),
    ]
    base = [errors(ys[start:], chosen[start:], clip) for start in (half, 0)]
    rows: list[tuple[str, ...]] = [("", "2nd half: RMSE", "MAE", "", "", "whole: RMSE", "MAE", "", "")]
    result: dict[str, Any] = {"settings": settings, "settings of the stack": tuned_settings}
    for name, predictions in listed:
        figures = [errors(ys[start:], predictions[start:], clip) for start in (half, 0)]
        cells = [
            f"{of:{form}}"
            for mine, of_base in zip(figures, base, strict=True)
            for form, values in ((".4f", mine), ("+.2%", [a / b - 1 for a, b in zip(mine, of_base, strict=True)]))
            for of in values
        ]
        rows.append((name, *cells))
        result.setdefault("rows", []).append([name, figures])
    show(f"{RATED}: errors, and how they compare to the first row", rows)
    rows = [("2nd half: RMSE, MAE of ratings whose user and item have rows", *(f"batches of {n:,}" for n in BATCHES))]
    for name, of in (("biased_mf", settings), *((name, {}) for name in FILTERS)):
        found = []
        for size in BATCHES:
            predictions = served(name, of, stream, size)[half:]
            known = ~np.isnan(predictions)
            found.append(errors(ys[half:][known], predictions[known], clip))
        rows.append((f"--model {name}", *(f"{rmse:.4f} {mae:.4f}" for rmse, mae in found)))
        result.setdefault("served", {})[name] = dict(zip(map(str, BATCHES), found, strict=True))
    show("What readers of Redis predict, from rows as they were written after the batch before", rows)
    rows = [("2nd half: RMSE, MAE", *(f"{n} shards" for n in SHARDS))]
    for name, of in (("biased_mf", settings), *((name, {}) for name in FILTERS)):
        spread = [errors(ys[half:], by_shards(name, of, stream, n)[half:], clip) for n in SHARDS]
        rows.append((f"--model {name}", *(f"{rmse:.4f} {mae:.4f}" for rmse, mae in spread)))
        result.setdefault("shards", {})[name] = dict(zip(map(str, SHARDS), spread, strict=True))
    show("What more shards cost", rows)
    return result


# --------------------------------------------------------------------------------- rankings by raters


def raters(streams: dict[str, Stream], every: int) -> dict[str, Any]:
    """How models of ratings rank, as the job learns and evaluates them."""
    shown: dict[str, Any] = {}
    for name, stream in streams.items():
        rows: list[tuple[str, ...]] = [("hit@10, 2nd half", "model", *BASELINES, "events")]
        for model, repeats in itertools.product(("biased_mf", *FILTERS), (True, False)):
            config = RankingConfig(k=K, repeats=repeats, every=every)
            scores = rated(model, stream, config, "rating" if name == RATED else "purchase")
            of = scores.values()["all"]
            label = f"{model}, {PROTOCOLS[ALL if repeats else NEW]}"
            figures = [of[ranker]["hit"] for ranker in scores.names]
            rows.append((label, *(f"{hit:.4f}" for hit in figures), f"{of[model]['n']:,}"))
            shown.setdefault(name, {})[label] = of
            progress(f"{name}: {label} {figures[0]:.4f}")
        show(f"{name}: models of ratings, groups held out, one event in {every}", rows)
    return shown


def rated(model: str, stream: Stream, config: RankingConfig, event_type: str) -> RankingScores:
    """The rankings of the second half; what is no rating teaches a value of 1."""
    learner, half = Learner(LearnerConfig(ranking=config), build(model, {})), stream.half()
    rows = [
        [int(time), "", user_id, item_id, event_type, float(value), 0, at]
        for at, (time, user_id, item_id, value) in enumerate(
            zip(stream.times, stream.user_ids, stream.item_ids, stream.values, strict=True)
        )
    ]
    for first, end in ((0, half), (half, len(stream))):
        assert learner.ranking is not None
        learner.ranking = RankingScores(config, learner.ranking.names, BASELINES)
        for _ in learner.process(Batch(None, True, [""], Interactions.of(rows[first:end]), b"")):
            pass
        learner.finished_batches()
    assert learner.ranking is not None
    return learner.ranking


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help="folder with a folder a stream")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts")
    parser.add_argument("--events", type=int, help="so many of each stream")
    parser.add_argument("--every", type=int, default=1, help="evaluate one event in so many")
    given = parser.parse_args()
    if not given.data.is_dir():
        progress(f"no real event streams in {given.data}: name their folder with --data")
        return
    result: dict[str, Any] = {}
    wanted = set(given.only)
    shuffled = {
        "online-retail": {"retail-shuffled", "retail", "neighbours", "shards", "references", "raters"},
        "complete-journey": {"journey", "neighbours", "shards", "references", "raters"},
    }
    streams = {
        name: read(given.data / name, given.events, shuffled=True) for name, parts in shuffled.items() if parts & wanted
    }
    whole = RankingConfig(k=K)
    held_out = [ALL, NEW, LEFT_OUT]
    if {"ratings", "raters"} & wanted:
        of_ratings = read(given.data / RATED, given.events, shuffled=False)
    if "ratings" in wanted:
        result["ratings"] = ratings(of_ratings)
    if "raters" in wanted:
        result["raters"] = raters({**streams, RATED: of_ratings}, given.every)
    if "journey" in wanted:
        stream = streams["complete-journey"]
        result["journey"] = ranking("complete-journey, groups held out", stream, whole, held_out, given.every)
    if "retail" in wanted:
        stream = streams["online-retail"]
        result["retail"] = ranking("online-retail, whole invoices held out", stream, whole, held_out, given.every)
    if "retail-shuffled" in wanted:
        title = "online-retail, record by record, lines of an invoice shuffled"
        config = RankingConfig(k=K, held_out=False)
        result["retail-shuffled"] = ranking(title, streams["online-retail"], config, [ALL, NEW], given.every)
    if "neighbours" in wanted:
        result["neighbours"] = neighbours(streams, given.every)
    if "shards" in wanted:
        result["shards"] = shards(streams, given.every)
    if "references" in wanted:
        result["references"] = references(streams, max(given.every, 10))
    store("ranking", result)


if __name__ == "__main__":
    main()
