"""A learner whose model ranks says how well: whatever the batches, after restarts, and by one protocol at a time."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.shells import batch_of
from tests.udfs.counting import GROWTH, Counting
from udfs.growth import GrowthConfig
from udfs.learner import Learner, LearnerConfig, build
from udfs.ranking import BASELINES, MISS, RARELY, RankingConfig, RankingScores

T0 = 1_700_000_000_000
CONFIG = RankingConfig(k=3, window=20)
Log = list[list[Any]]


def log_of(n: int, seed: int = 0) -> Log:
    """Events of which some of a user are at one time, and of which what is popular drifts."""
    rng = np.random.default_rng(seed)
    times = T0 + np.cumsum(rng.random(n) < 0.5)
    items = (rng.geometric(0.2, n) + np.arange(n) // 20) % 15
    return [
        [int(t), "", f"u{rng.integers(4)}", f"i{item}", "view", 1.0, 0, at]
        for at, (t, item) in enumerate(zip(times, items, strict=True))
    ]


def learner_of(config: RankingConfig | None = CONFIG) -> Learner:
    return Learner(LearnerConfig(ranking=config), Counting())


def learn(learner: Learner, log: Log) -> None:
    for _ in learner.process(batch_of(log)):
        pass
    learner.finished_batches()


def rating_learner(
    config: RankingConfig | None,
    case: tuple[str, dict[str, Any], Any] = ("biased_mf", {"n_factors": 3}, "compiled"),
    **more: Any,
) -> Learner:
    """A learner whose model predicts values, which are noise here, with an opinion that soon shows."""
    name, params, engine = case
    return Learner(LearnerConfig(ranking=config, half_life=20, **more), build(name, params, engine=engine))


def restored(
    learner: Learner,
    config: RankingConfig | None,
    other: Learner | None = None,
    counters: dict[str, bytes] | None = None,
) -> Learner:
    """The learner of the next process; ``counters`` are what all before it have stored of tails."""
    rows = [
        (family, row_id, blob)
        for family, of in learner.encode(learner.everything()).items()
        for row_id, blob in zip(of.row_ids, of.blobs, strict=True)
    ]
    counters = {} if counters is None else counters
    counters.update(learner.counters())
    rows += [(*name.split(":", 1), blob) for name, blob in counters.items()]
    other = other or learner_of(config)
    other.restore(learner.header(), rows, [])
    return other


def by_sorting(log: Log, config: RankingConfig) -> tuple[float, float]:
    """How many of the events are hits of each ranker, by slow code; ties count their share."""
    groups: dict[Any, Log] = {}
    for at, event in enumerate(log):
        groups.setdefault((event[0], event[2]) if config.held_out else at, []).append(event)
    counts: dict[str, float] = {}
    faded: dict[str, float] = {}
    hits, events = [0.0, 0.0], itertools.count()
    for group in groups.values():
        for event in group:
            for ranker, scores in enumerate((faded, counts)):
                if event[3] in scores:
                    above = sum(of > scores[event[3]] for of in scores.values())
                    same = sum(of == scores[event[3]] for of in scores.values())
                    hits[ranker] += min(max(config.k - above, 0), same) / same
        for event in group:
            counts[event[3]] = counts.get(event[3], 0.0) + 1.0
            faded[event[3]] = faded.get(event[3], 0.0) + GROWTH ** next(events)
    return hits[0] / len(log), hits[1] / len(log)


@pytest.mark.parametrize("held_out", [True, False])
def test_what_a_learner_says_is_what_sorting_gives(held_out: bool) -> None:
    log, config = log_of(200), replace(CONFIG, held_out=held_out)
    learner = learner_of(config)
    learn(learner, log)
    assert learner.ranking is not None
    overall = learner.ranking.values()["all"]
    assert (overall["faded"]["hit"], overall["popularity"]["hit"]) == pytest.approx(by_sorting(log, config))
    assert overall["faded"]["n"] == 200 and 0.0 < overall["popularity"]["hit"] < overall["faded"]["hit"] < 1.0


@given(cuts=st.sets(st.integers(1, 119)), every=st.sampled_from([1, 7]), stopped=st.booleans())
def test_batches_and_restarts_do_not_matter_where_groups_are_whole(cuts: set[int], every: int, stopped: bool) -> None:
    log = log_of(120)
    config = replace(CONFIG, every=every)
    whole, parts = learner_of(config), learner_of(config)
    learn(whole, log)
    bounds = [0, *sorted(cut for cut in cuts if log[cut][0] != log[cut - 1][0]), len(log)]
    for start, end in itertools.pairwise(bounds):
        learn(parts, log[start:end])
        parts = restored(parts, config) if stopped else parts
    assert parts.summary()["ranking"] == whole.summary()["ranking"]
    assert parts.ranking is not None and parts.ranking.cut == 0
    assert parts.ranking.values()["all"]["faded"]["n"] == len(range(0, 120, every))


def test_a_basket_that_straddles_two_batches_is_counted() -> None:
    learner = learner_of()
    basket = [[T0, "", "ann", item, "view", 1.0, 0, at] for at, item in enumerate(("tea", "rum", "gin"))]
    learn(learner, basket[:1])
    learn(learner, basket[1:])
    learn(learner, [[T0 + 1, "", "ann", "tea", "view", 1.0, 0, 3]])
    assert learner.ranking is not None and learner.ranking.cut == 1


@pytest.mark.parametrize("other", [replace(CONFIG, k=4), replace(CONFIG, held_out=False), replace(CONFIG, every=2)])
def test_scores_of_another_protocol_are_left_behind(other: RankingConfig) -> None:
    learner = learner_of()
    learn(learner, log_of(50))
    same, changed, longer = (restored(learner, of) for of in (CONFIG, other, replace(CONFIG, window=200)))
    assert same.summary()["ranking"] == longer.summary()["ranking"] == learner.summary()["ranking"]
    assert changed.ranking is not None and changed.ranking.values()["all"]["faded"]["n"] == 0
    assert changed.learned == 50 and len(changed.rows["item"]) == len(learner.rows["item"])
    learn(changed, log_of(50, seed=1))
    assert changed.ranking.values()["all"]["faded"]["n"] == len(range(0, 50, other.every))


def test_nothing_is_evaluated_where_none_is_asked_for() -> None:
    silent = learner_of(None)
    learn(silent, log_of(30))
    rating = rating_learner(replace(CONFIG, every=0))
    learn(rating, log_of(30))
    assert silent.summary()["ranking"] is None is rating.summary()["ranking"] and rating.learned == 30
    assert restored(silent, CONFIG).ranking is not None


def test_a_state_says_itself_what_it_is_of() -> None:
    learner = learner_of(replace(CONFIG, every=3, held_out=False))
    learn(learner, log_of(90))
    summary = orjson.loads(orjson.dumps(learner.summary()))
    read = RankingScores.of(summary["ranking"])
    assert learner.ranking is not None and read.values(9) == learner.ranking.values(9)
    assert read.baselines == ["popularity"] and read.state() == learner.ranking.state()


# ------------------------------------------------------------------------------------- models of ratings

RATERS: list[tuple[str, dict[str, Any], Any]] = [
    ("baseline", {}, "compiled"),
    ("biased_mf", {"n_factors": 3}, "compiled"),
    ("biased_mf", {"n_factors": 3}, "river"),
    ("funk_mf", {"n_factors": 3, "optimizer": "Adam", "optimizer.lr": 0.1}, "river"),
    ("kalman_mf", {"n_factors": 3}, "compiled"),
    ("stack", {"n_factors": 3}, "compiled"),
]
PROTOCOLS = [
    CONFIG,
    replace(CONFIG, every=3),
    replace(CONFIG, repeats=False),
    replace(CONFIG, held_out=False),
    replace(CONFIG, others="left out"),
]


def rated(n: int, seed: int = 0) -> Log:
    """Events with values, so that who is asked about them has an opinion."""
    rng = np.random.default_rng(seed)
    return [
        [*event[:4], "rating", float(value), *event[6:]]
        for event, value in zip(log_of(n), rng.random(n) * 5, strict=True)
    ]


def slowly(log: Log, config: RankingConfig, case: tuple[str, dict[str, Any], Any]) -> RankingScores:
    """What is evaluated, event by event, from a learner that knows nothing of it, and with sorted lists."""
    learner, scores = rating_learner(None, case, seen=4), RankingScores(config, [case[0], *BASELINES], BASELINES)
    due = []
    for at in range(0, len(log), config.every):
        mine = [k for k in range(len(log)) if (log[k][0], log[k][2]) == (log[at][0], log[at][2])]
        due.append((mine[0] if config.held_out else at, at, {log[k][3] for k in mine} - {log[at][3]}))
    learned = 0
    for first, at, others in sorted(due, key=lambda of: of[:2]):
        if first > learned:
            learn(learner, log[learned:first])
            learned = first
        (_, _, user_id, item_id, *_), items = log[at], learner.rows["item"]
        counts = {i: float(items[i].count) for i in items}
        faded = {i: items[i].popularity for i in items}
        opinion, user = dict(faded), learner.rows["user"].get(user_id)
        if user is not None:
            model = learner.model
            of_user = model.encode_rows("user", [user_id], model.ids["user"].find([user_id]))
            of_items = model.encode_rows("item", list(items), model.ids["item"].find(list(items)))
            values = model.global_mean() + model.biases("user", of_user)[0] + model.biases("item", of_items)
            if model.n_factors:
                values = values + model.vectors("item", of_items) @ model.vectors("user", of_user)[0]
            opinion = dict(zip(items, values.tolist(), strict=True))
        seen = set(user.seen) if user is not None and not config.repeats else set()
        if item_id in seen:
            continue
        without = seen | (others if config.others == "left out" else set())
        better, ties = [], []
        for of in (opinion, faded, counts):
            known = item_id in of
            own = of.get(item_id, 0.0)
            ranked = [value for i, value in of.items() if i not in without and i != item_id]
            better.append(sum(value > own and abs(value - own) > 1e-9 for value in ranked) if known else MISS)
            ties.append(sum(abs(value - own) <= 1e-9 for value in ranked) if known else 0)
        head = item_id in faded and sum(v > faded[item_id] for v in faded.values()) < config.head * len(items)
        best = sorted((i for i in opinion if i not in without), key=lambda i: (-opinion[i], i))[: config.k]
        scores.update(np.array([better]), np.array([ties]), np.array([user is not None]), np.array([head]), best)
    return scores


@pytest.mark.parametrize("case", RATERS, ids=lambda case: f"{case[0]}-{case[2]}")
@pytest.mark.parametrize("config", PROTOCOLS, ids=lambda config: "-".join(map(str, config.named().values())))
def test_a_model_of_ratings_is_ranked_as_slow_code_does(
    case: tuple[str, dict[str, Any], Any], config: RankingConfig
) -> None:
    log = rated(160)
    learner, plain = rating_learner(config, case, seen=4), rating_learner(None, case, seen=4)
    learn(learner, log)
    learn(plain, log)
    assert learner.ranking is not None
    found, expected = learner.ranking.values(15), slowly(log, config, case).values(15)
    for segment in ("all", "new users", "returning users", "head items", "tail items", "recent"):
        for name, of in expected[segment].items():
            assert found[segment][name] == pytest.approx(of), (segment, name)
    assert found["coverage"] == pytest.approx(expected["coverage"])
    assert found["model"] == case[0] and found["all"]["popularity"]["n"] > 0
    assert 0.0 < found["all"][case[0]]["hit"] < 1.0
    # Nothing that is learned depends on it.
    everything = [
        [of.blobs for of in one.encode(one.everything()).values()] + [one.model.header(), one.scores.means]
        for one in (learner, plain)
    ]
    assert everything[0] == everything[1]


@given(
    cuts=st.sets(st.integers(1, 119)),
    every=st.sampled_from([1, 7]),
    stopped=st.booleans(),
    bounds=st.sampled_from([{}, {"max_users": 3, "max_items": 8}, {"min_events": 3, "tail_rows": 2}]),
)
def test_batches_and_restarts_do_not_matter_to_models_of_ratings(
    cuts: set[int], every: int, stopped: bool, bounds: dict[str, int]
) -> None:
    log = rated(120)
    config = replace(CONFIG, every=every)

    def new() -> Learner:
        return rating_learner(config, growth=GrowthConfig(**bounds))

    whole, parts, counters = new(), new(), {}
    learn(whole, log)
    at_ends = [0, *sorted(cut for cut in cuts if log[cut][0] != log[cut - 1][0]), len(log)]
    for start, end in itertools.pairwise(at_ends):
        learn(parts, log[start:end])
        parts = restored(parts, config, new(), counters) if stopped else parts
    assert parts.summary()["ranking"] == whole.summary()["ranking"]
    assert parts.ranking is not None and parts.ranking.cut == 0


def test_a_tail_and_what_was_dropped_is_not_ranked() -> None:
    learner = rating_learner(CONFIG, growth=GrowthConfig(min_events=2, tail_rows=2))
    learn(learner, [[T0 + k, "", "ann", item, "rating", 5.0, 0, k] for k, item in enumerate(["tea", "rum", "tea"])])
    assert learner.known("item") == 1 and len(learner.model.ids["item"]) > 1
    learn(learner, [[T0 + 9, "", "ann", "tea", "rating", 5.0, 0, 9]])
    assert learner.ranking is not None
    shown = learner.ranking.values(learner.known("item"))
    # The first three were not known; tea then is the only one that is ranked.
    assert shown["all"]["biased_mf"] == {"hit": 0.25, "ndcg": 0.25, "mrr": 0.25, "n": 4}
    assert shown["all"]["popularity"]["hit"] == 0.25 and shown["coverage"] == pytest.approx(1.0)


def test_by_default_events_of_models_of_ratings_are_evaluated_rarely() -> None:
    config = replace(CONFIG, rarely=True)
    chosen = np.flatnonzero(config.evaluated(0, 400_000))
    assert chosen.tolist() == [*range(0, 20_000, 100), *(n * 100_000 + k for n in range(1, 4) for k in range(20))]
    whole = [config.evaluated(first, 30) for first in range(19_900, 20_100, 30)]
    assert np.concatenate(whole)[:200].tolist() == config.evaluated(19_900, 200).tolist()
    assert not any(replace(config, every=0).evaluated(0, 1_000))
    # Beyond 10,000 items each second, beyond 20,000 each third.
    taken = [
        [at for at in chosen.tolist() if not config.passed_over(at, known)] for known in (0, 10_000, 10_001, 30_000)
    ]
    assert [len(of) for of in taken] == [260, 260, 100 + 20, 67 + 20]
    assert RankingConfig.of(config.named()) == replace(config, every=1, window=10_000)


def test_many_items_are_ranked_more_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("udfs.ranking.RARELY", RARELY._replace(dense=2, items=10))
    learner = rating_learner(replace(CONFIG, rarely=True))
    learn(learner, [[T0 + k, "", "ann", f"i{k}", "rating", 1.0, 0, k] for k in range(40)])
    # Of the even ones all up to 10 known items, each second up to 20, each third up to 30, and each fourth.
    assert learner.ranking is not None
    evaluated = [k for k in range(0, 40, 2) if k // 2 % max(-(-k // 10), 1) == 0]
    assert learner.ranking.values()["all"]["biased_mf"]["n"] == len(evaluated) == 12


def test_a_basket_of_a_model_of_ratings_that_straddles_two_batches_is_counted() -> None:
    learner = rating_learner(CONFIG)
    basket = [[T0, "", "ann", item, "view", 1.0, 0, at] for at, item in enumerate(("tea", "rum", "gin"))]
    learn(learner, basket[:1])
    learn(learner, basket[1:])
    assert learner.ranking is not None and learner.ranking.cut == 1


def test_an_item_with_no_share_of_its_events_is_ranked_all_the_same() -> None:
    """As those are that a reshard has copied to more shards than it had events."""
    learner = rating_learner(replace(CONFIG, k=10))
    learn(learner, [[T0 + k, "", "ann", f"i{k}", "rating", float(k), 0, k] for k in range(6)])
    learner.rows["item"].heads["count"][learner.model.ids["item"].find(["i5"])] = 0
    learner.drop("item", ["i1"])
    assert learner.evaluation is not None
    event = batch_of([[T0 + 9, "", "ann", "i5", "rating", 5.0, 0, 9]]).events
    ranked = learner.evaluation.predicted(event, 0, 0, met=6)
    assert ranked is not None and ranked.better[0, 1:].tolist() == [0, 4] and ranked.ties[0].tolist() == [0, 0, 0]
    offered = {learner.model.ids["item"].names[number] for number in ranked.offered}
    assert offered == {"i0", "i2", "i3", "i4", "i5"}
    predicted = learner.model.predicted("ann")
    own = predicted[learner.model.ids["item"]["i5"]]
    assert ranked.better[0, 0] == sum(predicted[learner.model.ids["item"][item]] > own for item in offered)


def test_a_protocol_that_is_new_begins_with_the_run() -> None:
    first = rating_learner(CONFIG)
    learn(first, log := rated(60))
    following = rating_learner(replace(CONFIG, k=5, every=50))
    restored(first, None, following)
    learn(following, [[T0 + 10_000 + at, *event[1:]] for at, event in enumerate(log)])
    assert following.ranking is not None
    assert following.ranking.values()["all"]["popularity"]["n"] == 2  # the first of the run, and the fiftieth after
