"""Rankings are scored as one would by sorting and shuffling, however the events are cut into batches."""

from __future__ import annotations

import itertools
import math

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from udfs.models import ModelError
from udfs.ranking import MISS, Distinct, RankingConfig, RankingScores, grouped, place, scored


def by_permutation(scores: list[float], item: int, k: int) -> list[float]:
    """The same by all orders of equal items."""
    outcomes = []
    for order in itertools.permutations(range(len(scores))):
        if all(scores[a] >= scores[b] for a, b in itertools.pairwise(order)):
            rank = order.index(item) + 1
            outcomes.append([1.0, 1 / math.log2(1 + rank), 1 / rank] if rank <= k else [0.0, 0.0, 0.0])
    return np.mean(outcomes, axis=0).tolist()


@given(st.lists(st.sampled_from([0.0, 1.0, 2.0]), min_size=1, max_size=6), st.data())
def test_ties_are_the_mean_over_all_orders(scores: list[float], data: st.DataObject) -> None:
    item = data.draw(st.integers(0, len(scores) - 1))
    k = data.draw(st.integers(1, 4))
    better, ties = place(np.array(scores), item)
    assert scored(np.array([better]), np.array([ties]), k)[0] == pytest.approx(by_permutation(scores, item, k))


def test_no_score_and_no_number_are_misses() -> None:
    assert place(np.array([1.0, math.nan]), 1) == (MISS, 0)
    assert place(np.array([1.0]), 1) == (MISS, 0)
    assert not scored(np.array([MISS]), np.array([0]), 10).any()


def test_items_left_out_do_not_count_but_the_item_itself_does() -> None:
    scores = np.array([5.0, 4.0, 3.0, 3.0, 1.0])
    assert place(scores, 2, without=np.array([0, 2, 3])) == (1, 0)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 2)), max_size=30))
def test_groups_hold_all_events_of_a_user_at_a_time(pairs: list[tuple[int, int]]) -> None:
    pairs = sorted(pairs, key=lambda pair: pair[0])
    order, starts = grouped(np.array([t for t, _ in pairs]), np.array([u for _, u in pairs], dtype=int))
    groups = [[pairs[at] for at in order[a:b]] for a, b in itertools.pairwise(starts)]
    expected: dict[tuple[int, int], list[int]] = {}
    for at, pair in enumerate(pairs):
        expected.setdefault(pair, []).append(at)
    assert [group[0] for group in groups] == list(expected)
    assert order.tolist() == [at for places in expected.values() for at in places]


def events(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(-1, 15, (n, 2)), rng.integers(0, 3, (n, 2)), rng.random(n) < 0.5, rng.random(n) < 0.3


def fresh(window: int = 40) -> RankingScores:
    return RankingScores(RankingConfig(k=5, window=window), ["model", "popularity"], ["popularity"])


@pytest.mark.parametrize("step", [1, 7, 100])
def test_batches_do_not_matter_and_state_comes_back(step: int) -> None:
    better, ties, returning, head = events(100)
    whole, parts = fresh(), fresh()
    whole.update(better, ties, returning, head, ["tea", "rum"])
    for at in range(0, 100, step):
        end = at + step
        parts.update(better[at:end], ties[at:end], returning[at:end], head[at:end], ["tea", "rum"])
        restored = fresh()
        restored.restore(orjson.loads(orjson.dumps(parts.state())))
        parts = restored
    assert parts.state() == whole.state()
    assert parts.values(2) == whole.values(2)


def test_the_recent_scores_are_those_of_the_last_events() -> None:
    better, ties, returning, head = events(100)
    scores = fresh(window=40)
    scores.update(better, ties, returning, head)
    assert scores.values()["recent"]["model"]["n"] == 40
    last = scored(better[-40:, 0], ties[-40:, 0], 5).mean(axis=0)
    assert [scores.values()["recent"]["model"][name] for name in ("hit", "ndcg", "mrr")] == pytest.approx(last.tolist())


def test_shards_add_up() -> None:
    better, ties, returning, head = events(90)
    parts = []
    for shard in range(3):
        part = fresh()
        part.update(*(of[shard::3] for of in (better, ties, returning, head)), offered=[f"i{shard}"])
        parts.append(part)
    total = parts[0]
    total.merge(parts[1])
    total.merge(parts[2])
    whole = fresh()
    whole.update(better, ties, returning, head, offered=["i0", "i1", "i2"])
    assert total.sums == pytest.approx(whole.sums)
    assert total.offered.registers == whole.offered.registers
    with pytest.raises(ModelError):
        total.merge(RankingScores(RankingConfig(k=3), ["model", "popularity"]))


def test_segments_part_the_events() -> None:
    better, ties, returning, head = events(100)
    scores = fresh()
    scores.update(better, ties, returning, head)
    shown = scores.values()
    assert shown["new users"]["model"]["n"] == int((~returning).sum())
    assert shown["head items"]["model"]["hit"] == pytest.approx(scored(better[head, 0], ties[head, 0], 5)[:, 0].mean())


def test_a_model_that_popularity_beats_says_so() -> None:
    scores = fresh()
    scores.update(np.array([[3, 0]]), np.zeros((1, 2), dtype=int), np.array([True]), np.array([True]))
    assert scores.values()["beaten_by"] == ["popularity"]


def test_every_tenth_event_is_every_tenth_however_they_come() -> None:
    config = RankingConfig(every=10)
    whole = config.evaluated(0, 95)
    assert whole.sum() == 10
    assert np.array_equal(np.concatenate([config.evaluated(0, 33), config.evaluated(33, 62)]), whole)


@pytest.mark.parametrize("n", [0, 5, 3_000, 60_000])
def test_many_texts_are_counted_within_a_few_percent(n: int) -> None:
    some = Distinct()
    some.add(f"item-{number}" for number in range(n))
    assert some.count() == pytest.approx(n, rel=0.05)
