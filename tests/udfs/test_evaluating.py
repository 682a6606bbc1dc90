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
from udfs.learner import Learner, LearnerConfig, build
from udfs.ranking import RankingConfig, RankingScores

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


def restored(learner: Learner, config: RankingConfig | None) -> Learner:
    """The learner of the next process."""
    rows = [
        (family, row_id, blob)
        for family, of in learner.encode(learner.everything()).items()
        for row_id, blob in zip(of.row_ids, of.blobs, strict=True)
    ]
    other = learner_of(config)
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


def test_nothing_is_evaluated_where_none_is_asked_for_and_of_models_that_rate() -> None:
    silent = learner_of(None)
    learn(silent, log_of(30))
    rating = Learner(LearnerConfig(ranking=CONFIG), build("baseline", {}))
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
