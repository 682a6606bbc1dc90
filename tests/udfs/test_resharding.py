"""Other shards: copies to the bit, models that become comparable, and sums that stay."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.shells import batch_of
from tests.udfs.cases import CASES, COMPILED, made, ratings, rows_of
from udfs.blendmodel import BlendModel
from udfs.building import build
from udfs.intake import shard_of
from udfs.learner import Learner, LearnerConfig
from udfs.metrics import pooled
from udfs.models import ITEM, USER, ModelError, RowModel
from udfs.packing import unpack_lines
from udfs.resharding import Exchange, ShardState, check, move, parts, rotation

CONFIG = LearnerConfig(run_id="1")
MODEL = functools.partial(build, "biased_mf", {"n_factors": 4, "latent_optimizer": "SGD", "latent_optimizer.lr": 0.05})
EVENTS = [
    [1_000 * n, "", user, item, "rating", y, 0, n]
    for n, (user, item, y) in enumerate(ratings(2_000, users=40, items=30))
]


def learned(shards: int, model: Any = MODEL, events: Sequence[list[Any]] = EVENTS, watermark: int | None = None) -> Any:
    """Learners that have met the events, and of which those at or after the watermark wait."""
    learners = [Learner(CONFIG, model()) for _ in range(shards)]
    for shard, learner in enumerate(learners):
        for start in range(0, len(events), 500):
            mine = [list(e) for e in events[start : start + 500] if shard_of(e[2], shards) == shard]
            lines = [orjson.dumps(event) for event in mine]
            for _ in learner.process(batch_of(mine, lines, watermark=watermark, sources=("a.jsonl",))):
                learner.finished_batches()
    return learners


def state_of(learner: Learner) -> ShardState:
    rows = {
        f"{family}:{name}": blob
        for family, part in learner.encode(learner.everything()).items()
        for name, blob in zip(part.row_ids, part.blobs, strict=True)
    }
    waiting = {number: blob for number in learner.batches if (blob := learner.waiting_of(number)) is not None}
    return ShardState(learner.header(), rows, waiting, {})


def restored(state: ShardState, model: Any = MODEL, run_id: str = "2") -> Learner:
    learner = Learner(LearnerConfig(run_id=run_id), model())
    assert state.header is not None
    rows = [(*name.split(":", 1), blob) for name, blob in state.rows.items()]
    learner.restore(state.header, rows, state.waiting.items())  # type: ignore[arg-type]
    return learner


def resharded(olds: Sequence[ShardState], shards: int, model: Any = MODEL) -> list[ShardState]:
    new: dict[int, ShardState] = {}
    for sources, targets in parts(len(olds), shards):
        new |= dict(zip(targets, move([olds[s] for s in sources], targets, shards, model, CONFIG), strict=True))
    return [new[shard] for shard in range(shards)]


def predictions(model: RowModel, users: Sequence[str]) -> np.ndarray[Any, Any]:
    """Of each user and all items that a model knows, in the order of their ids."""
    items = sorted(model.ids[ITEM])
    u = rows_of(model, USER, *users)
    i = rows_of(model, ITEM, *items)
    products = model.vectors(USER, u) @ model.vectors(ITEM, i).T
    biases = model.biases(USER, u)[:, None] + model.biases(ITEM, i)[None, :]
    return np.asarray(model.global_mean() + biases + products)


@pytest.mark.parametrize(("kind", "optimizer"), [*CASES, ("stack", "")])
@pytest.mark.parametrize(("before", "after"), [(1, 4), (2, 4)])
def test_a_split_copies_to_the_bit(kind: str, optimizer: str, before: int, after: int) -> None:
    model = functools.partial(made, kind, optimizer)
    olds = [state_of(learner) for learner in learned(before, model)]
    new = resharded(olds, after, model)
    for shard, state in enumerate(new):
        old, now = restored(olds[shard % before], model), restored(state, model)
        assert now.model.header() == old.model.header()
        assert list(now.model.ids[ITEM]) == list(old.model.ids[ITEM])
        items = old.model.ids[ITEM]
        assert rows_of(now.model, ITEM, *items).tobytes() == rows_of(old.model, ITEM, *items).tobytes()
        heads = now.rows[ITEM].heads[: len(items)]
        for name in ("updated_at", "seq"):
            assert (heads[name] == old.rows[ITEM].heads[name][: len(items)]).all()
        assert now.seq == old.seq
    users = {n: b for state in new for n, b in state.rows.items() if n.startswith("user:")}
    assert users == {n: b for state in olds for n, b in state.rows.items() if n.startswith("user:")}
    for shard, state in enumerate(new):
        assert all(shard_of(n[5:], after) == shard for n in state.rows if n.startswith("user:"))


@pytest.mark.parametrize(("before", "after"), [(1, 4), (4, 1), (4, 2), (2, 6), (3, 5), (7, 2)])
def test_sums_over_shards_stay(before: int, after: int) -> None:
    learners = learned(before, watermark=1_500_000)
    new = [restored(state) for state in resharded([state_of(learner) for learner in learners], after)]
    for name in ("learned", "diverged"):
        assert sum(getattr(n, name) for n in new) == sum(getattr(old, name) for old in learners)
    assert [n.learned for n in new] == [sum(r.count for r in n.rows[USER].values()) for n in new]
    old_means, means = (pooled(x.scores.means for x in some) for some in (learners, new))
    assert {k: n for k, (n, _) in means.items()} == {k: n for k, (n, _) in old_means.items()}
    assert [m for _, m in means.values()] == pytest.approx([m for _, m in old_means.values()], rel=1e-12)

    def totals(some: Sequence[Learner]) -> dict[str, tuple[int, float]]:
        found: dict[str, tuple[int, float]] = {}
        for learner in some:
            for name, row in learner.rows[ITEM].items():
                count, popularity = found.get(name, (0, -np.inf))
                found[name] = count + row.count, float(np.logaddexp2(popularity, row.popularity))
        return found

    was, now = totals(learners), totals(new)
    assert {name: count for name, (count, _) in was.items()} == {name: count for name, (count, _) in now.items()}
    assert [now[name][1] for name in was] == pytest.approx([popularity for _, popularity in was.values()])

    # What waits goes with its user, once, with its own line.
    waiting = sorted(event for n in new for event in n.waiting.rows())
    assert waiting == EVENTS[1_500:] and [n.carried for n in new] == [len(n.waiting) for n in new]
    for shard, n in enumerate(new):
        assert all(shard_of(user_id, after) == shard for user_id in n.waiting.user_ids)
        where = zip(n.waiting.batches.tolist(), n.waiting.lines.tolist(), strict=True)
        for event, (number, at) in zip(n.waiting.rows(), where, strict=True):
            assert orjson.loads(unpack_lines(n.batches[number][2])[at]) == event
        # What comes next is later than all that was stored.
        assert n.batch_number > max(n.batches) and all(
            r.seq <= n.seq for rows in n.rows.values() for r in rows.values()
        )
        assert set(n.waiting.times) and n.released == 1_500_000


@pytest.mark.parametrize(("before", "after"), [(1, 4), (2, 4)])
def test_after_a_split_each_shard_goes_on_as_the_old_one_would(before: int, after: int) -> None:
    olds = learned(before, events=EVENTS[:1_000])
    new = [restored(state) for state in resharded([state_of(old) for old in olds], after)]
    user = "u0"
    more = [list(event) for event in EVENTS[1_000:] if event[2] == user]
    assert len(more) > 10
    for learner in (olds[shard_of(user, before)], new[shard_of(user, after)]):
        list(learner.process(batch_of(more, sources=("b",))))
    for family in (USER, ITEM):
        old, now = (learner.model for learner in (olds[shard_of(user, before)], new[shard_of(user, after)]))
        met = [user] if family == USER else list({event[3] for event in more})
        rows = [rows_of(m, family, *met).tobytes() for m in (old, now)]
        assert rows[0] == rows[1]


@given(st.integers(0, 10_000), st.integers(1, 8), st.integers(0, 40))
def test_a_rotation_is_found_exactly_and_any_is_orthogonal(seed: int, k: int, more: int) -> None:
    rng = np.random.default_rng(seed)
    a, weights = rng.normal(size=(k + more, k)), rng.random(k + more) + 0.1
    turn, _ = np.linalg.qr(rng.normal(size=(k, k)))
    assert np.allclose(rotation(a, a @ turn, weights), turn, atol=1e-6)
    any_ = rotation(a, rng.normal(size=a.shape), weights)
    assert np.allclose(any_ @ any_.T, np.eye(k))
    b = rng.normal(size=a.shape)
    best = rotation(a, b, weights)

    def loss(r: Any) -> float:
        return float((weights[:, None] * (a @ r - b) ** 2).sum())

    assert loss(best) <= min(loss(turn), loss(np.eye(k))) + 1e-9


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("after", [1, 3])
def test_copies_in_rotated_spaces_become_the_one_that_they_are(seed: int, after: int) -> None:
    # Two shards with the items of one model, in another space each, and users of their own: as if one had been learned.
    [one] = learned(1)
    rng = np.random.default_rng(seed)
    whole = state_of(one)
    olds = []
    for shard in range(2):
        turn, _ = np.linalg.qr(rng.normal(size=(4, 4)))
        copy = restored(whole)
        learner = Learner(CONFIG, MODEL())
        learner.model.restore_header(one.model.header())
        learner.learned = 1_000 + shard
        for family in (USER, ITEM):
            names = [n for n in copy.model.ids[family] if family == ITEM or shard_of(n, 2) == shard]
            weights = rows_of(copy.model, family, *names)
            weights[:, 1:] = weights[:, 1:] @ turn
            blobs = copy.rows[family].encode(names, copy.model.ids[family].find(names), weights).blobs
            for name, blob in zip(names, blobs, strict=True):
                [part] = learner.rows[family].restore([name], [blob])
                learner.model.decode_rows(family, [name], [part])
        olds.append(state_of(learner))
    for state in resharded(olds, after):
        new = restored(state)
        users = list(new.model.ids[USER])
        assert np.allclose(predictions(new.model, users), predictions(one.model, users), atol=1e-9)


@pytest.mark.parametrize(("kind", "optimizer"), [(k, o) for k, o in COMPILED if o in ("SGD", "Momentum")])
def test_before_items_are_averaged_no_prediction_moves(
    kind: str, optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = functools.partial(made, kind, optimizer)
    olds = learned(3, model)
    aligned: list[Any] = []

    def last(tables: Any) -> Any:
        aligned.extend(tables)
        return tables[0]

    monkeypatch.setattr("udfs.resharding._merged", last)
    [state] = move([state_of(old) for old in olds], [0], 1, model, CONFIG)
    new = restored(state, model)
    for old, items in zip(olds, aligned, strict=True):
        users = list(old.model.ids[USER])
        # The users as they were moved, with the items of their own shard.
        mixed = Learner(CONFIG, model())
        mixed.model.restore_header(new.model.header())
        weights = rows_of(new.model, USER, *users)
        for family, names, rows in ((USER, users, weights), (ITEM, items.names, items.weights)):
            mixed.model.decode_rows(family, names, [row.tobytes() for row in rows])
        assert np.allclose(predictions(mixed.model, users), predictions(old.model, users), atol=1e-12)


def test_items_become_means_by_their_counts() -> None:
    # In a model without vectors nothing but the biases of items is averaged.
    model = functools.partial(build, "baseline", {})
    olds = learned(2, model)
    new = restored(resharded([state_of(old) for old in olds], 1, model)[0], model)
    for name, row in new.rows[ITEM].items():
        known = [old for old in olds if name in old.rows[ITEM]]
        biases = [float(rows_of(old.model, ITEM, name)[0, 0]) for old in known]
        counts = [old.rows[ITEM][name].count for old in known]
        bias = float(rows_of(new.model, ITEM, name)[0, 0])
        assert bias == pytest.approx(np.average(biases, weights=counts))
        assert row.updated_at == max(old.rows[ITEM][name].updated_at for old in known)
    means = [old.model.global_mean() for old in olds]
    assert new.model.global_mean() == pytest.approx(np.average(means, weights=[old.learned for old in olds]))


@pytest.mark.parametrize(("kind", "optimizer"), [(k, o) for k, o in COMPILED if o not in ("SGD", "Momentum")])
def test_what_can_not_be_merged_is_refused_with_its_name(kind: str, optimizer: str) -> None:
    model = made(kind, optimizer)
    check(model, 2, 6)
    with pytest.raises(ModelError, match=f"learned with {optimizer} hold"):
        check(model, 2, 3)


def test_shards_that_have_met_nothing() -> None:
    nothing = ShardState(None, {}, {}, {})
    assert resharded([nothing, nothing], 3) == [nothing] * 3
    some = state_of(learned(1)[0])
    for state in resharded([some, nothing], 1):
        assert restored(state).model.header() == restored(some).model.header()


def test_an_exchange_hands_over_whole_states(tmp_path: Path) -> None:
    exchange, state = Exchange(tmp_path), state_of(learned(2, watermark=1_000_000)[0])
    assert not exchange.given(0) and not exchange.ready and not exchange.taken("a")
    exchange.give(0, state)
    exchange.put(1, state)
    exchange.note_ready()
    exchange.note_taken("a")
    assert exchange.given(0) and exchange.ready and exchange.taken("a") and not exchange.taken("b")
    assert exchange.old(0) == exchange.new(1) == state
    assert not list(tmp_path.glob("*.scratch"))


def test_a_blend_is_copied() -> None:
    model: Any = functools.partial(build, "blend", {"n_factors": 4, "neighbours": 5, "history": 8, "tops": 5})
    [before] = learned(1, model)
    for shard, state in enumerate(resharded([state_of(before)], 3, model)):
        after, of_old = restored(state, model).model, before.model
        assert isinstance(after, BlendModel) and isinstance(of_old, BlendModel)
        assert set(after.ids[USER]) == {user for user in of_old.ids[USER] if shard_of(user, 3) == shard}
        assert list(after.ids[ITEM]) == list(of_old.ids[ITEM])  # and so has the same numbers
        for user, number in after.ids[USER].items():
            assert np.array_equal(after.blend.scores(number), of_old.blend.scores(of_old.ids[USER][user]))
    with pytest.raises(ModelError, match="blend: the links and counts of several shards can't be merged"):
        check(model(), 2, 3)
