"""The blend in the learner: the same whatever the batches and the crashes, and its rows as they are stored."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tests.shells import batch_of
from udfs.blend import Blend
from udfs.blendmodel import BlendModel
from udfs.building import build
from udfs.growth import GrowthConfig
from udfs.learner import Learned, Learner, LearnerConfig
from udfs.models import ITEM, USER, ModelError
from udfs.popularity import divided, popularise, popularity, popularity_grown
from udfs.ranking import RankingConfig, RankingScores
from udfs.seal import Damaged

T0 = 1_700_000_000_000
PARAMS = {"n_factors": 4, "neighbours": 5, "history": 8, "negatives": 4, "tops": 10}
CONFIG = LearnerConfig(ranking=RankingConfig(every=2), seen=4, group=400)
Event = list[Any]


def views(n: int, seed: int = 0, users: int = 40, items: int = 90) -> list[Event]:
    """Views in baskets of up to three at one time."""
    rng = np.random.default_rng(seed)
    drawn = zip(rng.random(n), rng.random(n), strict=True)
    return [
        [T0 + 60_000 * (at // 3), f"e{at}", f"u{int(users * u * u)}", f"i{int(items * i * i)}", "view", 1.0, 0, at]
        for at, (u, i) in enumerate(drawn)
    ]


class Host:
    """Keeps what the shell keeps, and can crash."""

    def __init__(self, config: LearnerConfig = CONFIG, params: dict[str, Any] | None = None) -> None:
        self._make = lambda: Learner(config, build("blend", params or PARAMS))
        self.learner = self._make()
        self.header: bytes | None = None
        self.rows: dict[tuple[str, str], bytes] = {}

    def crash(self) -> None:
        self.learner = self._make()
        # Maps have no order.
        rows = sorted(self.rows.items(), key=lambda entry: hash(entry[1]))
        self.learner.restore(self.header, ((*key, blob) for key, blob in rows), [])

    def learn(self, events: list[Event], *, ordered: bool = True) -> Iterator[Learned]:
        watermark = events[-1][0] + 1 if ordered else None
        for learned in self.learner.process(batch_of(events, watermark=watermark)):
            for family, rows in self.learner.encode(learned).items():
                self.rows |= {
                    (family, row_id): blob for row_id, blob in zip(rows.row_ids, rows.blobs, strict=True)
                }  # what was touched, and no more
            for family, row_ids in learned.dropped.items():
                for row_id in row_ids:
                    self.rows.pop((family, row_id), None)  # it may have come and gone
            yield learned
        self.learner.finished_batches()
        self.header = self.learner.header()

    def all_of_it(self) -> tuple[dict[tuple[str, str], bytes], bytes, Any]:
        encoded = self.learner.encode(self.learner.everything())
        rows = {(f, i): b for f, of in encoded.items() for i, b in zip(of.row_ids, of.blobs, strict=True)}
        ranking = self.learner.ranking
        return rows, self.learner.model.header(), ranking and ranking.state()


def drained(learned: Iterator[Learned]) -> list[Learned]:
    return list(learned)


@pytest.mark.parametrize("bounds", [GrowthConfig(), GrowthConfig(max_users=15)])
def test_batches_and_crashes_change_nothing(bounds: GrowthConfig) -> None:
    config = LearnerConfig(ranking=RankingConfig(every=2), seen=4, group=400, growth=bounds)
    events = views(1_500)
    whole, parts = Host(config), Host(config)
    drained(whole.learn(events))
    for start, end in ((0, 3), (3, 300), (300, 303), (303, 960), (960, 1_500)):
        drained(parts.learn(events[start:end]))
        parts.crash()
    assert parts.all_of_it() == whole.all_of_it()
    rows, *_ = whole.all_of_it()
    assert parts.rows == rows | parts.rows and parts.rows.keys() == rows.keys()
    assert whole.learner.known(USER) == (15 if bounds.is_bounded else 40)


def test_what_changed_is_stored_and_nothing_else() -> None:
    host = Host()
    drained(host.learn(views(600)))
    before, *_ = host.all_of_it()
    [learned] = host.learn([[T0 + 10**9, "", "u1", "i2", "view", 1.0, 0, 1]])
    after, *_ = host.all_of_it()
    touched = {(family, row_id) for family, rows in learned.touched.items() for row_id in rows}
    changed = {key for key, blob in after.items() if blob != before[key]}
    # A row that was divided since would differ, too, but nothing was.
    assert changed <= touched and len(touched) < 40 < len(after)


def test_a_basket_in_two_batches_is_counted_as_cut() -> None:
    host = Host(LearnerConfig(ranking=RankingConfig(every=1)))
    basket = [[T0, "", "ann", item, "view", 1.0, 0, at] for at, item in enumerate(["tea", "milk", "rum"])]
    drained(host.learn(basket[:2], ordered=False))
    drained(host.learn([*basket[2:], [T0 + 1, "", "bob", "tea", "view", 1.0, 0, 3]], ordered=False))
    scores = host.learner.ranking
    assert isinstance(scores, RankingScores)
    assert scores.cut == 1 and scores.values()["all"]["blend"]["n"] == 4


def test_a_basket_that_others_came_in_between_is_counted_as_cut() -> None:
    host = Host(LearnerConfig(ranking=RankingConfig(every=1)))
    arrived = [("ann", "tea", 0), ("bob", "tea", 1), ("ann", "milk", 0), ("ann", "rum", 2), ("bob", "rum", 2)]
    events = [[T0 + after, "", user, item, "view", 1.0, 0, at] for at, (user, item, after) in enumerate(arrived)]
    drained(host.learn(events, ordered=False))
    assert isinstance(host.learner.ranking, RankingScores)
    assert host.learner.ranking.cut == 1


def test_groups_of_the_learner_do_not_cut_what_happened_at_one_time() -> None:
    events = [[T0, "", f"u{at % 7}", f"i{at % 11}", "view", 1.0, 0, at] for at in range(200)]
    small, large = Host(LearnerConfig(ranking=RankingConfig(), group=10)), Host(LearnerConfig(ranking=RankingConfig()))
    assert len(drained(small.learn(events))) == 1
    drained(large.learn(events))
    assert small.all_of_it() == large.all_of_it()


def test_scores_by_another_protocol_are_left_behind() -> None:
    host = Host()
    drained(host.learn(views(300)))
    other = Learner(LearnerConfig(ranking=RankingConfig(every=2, k=5)), build("blend", PARAMS))
    other.restore(host.header, ((*key, blob) for key, blob in host.rows.items()), [])
    assert other.ranking is not None and other.ranking.values()["all"]["blend"]["n"] == 0
    assert other.learned == 300


@pytest.mark.parametrize("params", [PARAMS | {"neighbours": 6}, PARAMS | {"n_factors": 8}, PARAMS | {"history": 9}])
def test_rows_of_other_sizes_are_refused(params: dict[str, Any]) -> None:
    host = Host()
    drained(host.learn(views(30)))
    other = Host(params=params)
    other.header, other.rows = host.header, host.rows
    with pytest.raises(ValueError, match="set it as it was"):
        other.crash()


def test_a_damaged_tail_is_found() -> None:
    host = Host()
    drained(host.learn(views(60)))
    key = max((key for key in host.rows if key[0] == ITEM), key=lambda key: len(host.rows[key]))
    blob = host.rows[key]
    host.rows[key] = blob[:-3] + bytes([blob[-3] ^ 1]) + blob[-2:]
    with pytest.raises(Damaged, match="is damaged"):
        host.crash()


def test_items_keep_their_rows() -> None:
    with pytest.raises(ModelError, match="items keep their rows"):
        BlendModel(Blend()).drop(ITEM, ["tea"])


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"factors": 2}, "model.factors: blend has no such parameter; it has n_factors"),
        ({"n_factors": 0}, "model.n_factors: 0 is not a whole number of at least 1"),
        ({"gamma": "x"}, "model.gamma: 'x' is not a number of at least 0"),
        ({"window": 1.5}, "model.window: 1.5 is not a whole number of at least 0"),
    ],
)
def test_parameters_are_checked(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        build("blend", params)


def test_popularities_that_were_divided_since_are_restored_bit_for_bit() -> None:
    """At a half-life of two events all are divided each 664 events; one item is met in the beginning only."""
    of, stored = popularity_grown(popularity((2.0, 500.0)), 2), []
    for event in range(7_000):
        popularise(of, 1 if event < 50 else 0)
        if event % 300 == 50:
            stored.append((of.weights[:, 1].copy(), of.scales[:, 2].copy()))
    assert of.scales[0, 2] >= 9 and of.weights[1, 1] > 0.0
    for weights, times in stored:
        assert divided(weights[None], (of.scales[:, 2] - times)[None])[0].tolist() == of.weights[:, 1].tolist()
