"""Filters and their stack as a model of the job: their raters' arithmetic, and rows that hold all of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.udfs.cases import rows_of, stored
from udfs.building import FILTERS, build
from udfs.filtermodel import FilterModel
from udfs.ids import Group
from udfs.models import Array, Diverged, ModelError
from udfs.ratings import KalmanMF, Rater
from udfs.resharding import check
from udfs.stack import Stack
from udfs.tail import tail_id

Rating = tuple[str, str, float, int]
TWINS: dict[str, Any] = {"stack": Stack, "kalman_mf": KalmanMF}
each = pytest.mark.parametrize("name", FILTERS)


def made(name: str, max_weight: float = 1e6, **params: Any) -> FilterModel:
    model = build(name, params, max_weight)
    assert isinstance(model, FilterModel)
    return model


def ratings(n: int, seed: int = 0, users: int = 12, items: int = 9) -> list[Rating]:
    """Random ratings of few users and items; some are of one session, some not."""
    rng = np.random.default_rng(seed)
    times = 1_700_000_000_000 + np.cumsum(rng.exponential(100_000, n)).astype(int)
    drawn = zip(rng.random(n), rng.random(n), rng.integers(1, 11, n), times.tolist(), strict=True)
    return [(f"u{int(users * u * u)}", f"i{int(items * i * i)}", float(y) / 2, time) for u, i, y, time in drawn]


def groups(
    model: FilterModel, log: list[Rating], user_heirs: dict[str, str] | None = None, item_heirs: Any = None
) -> tuple[Group, Group]:
    users = Group(model.ids["user"], [user for user, _, _, _ in log], user_heirs)
    return users, Group(model.ids["item"], [item for _, item, _, _ in log], item_heirs)


def columns(log: list[Rating]) -> tuple[Array, Array]:
    return np.array([y for _, _, y, _ in log]), np.array([time for _, _, _, time in log])


def learned(model: FilterModel, log: list[Rating], size: int = 10_000) -> list[float]:
    predictions: list[float] = []
    for start in range(0, len(log), size):
        part = log[start : start + size]
        predicted, diverged = model.learn(*groups(model, part), *columns(part))
        assert not diverged
        predictions += predicted.tolist()
    return predictions


def rebuilt(name: str, of: FilterModel, max_weight: float = 1e6) -> FilterModel:
    """A model in another process: its rows come in another order, so they have other numbers."""
    header, rows = stored(of)
    model = made(name, max_weight)
    model.restore_header(header)
    for (family, row_id), blob in sorted(rows.items(), reverse=True):
        model.decode_rows(family, [row_id], [blob])
    return model


@each
def test_it_learns_what_its_twin_does(name: str) -> None:
    """Rater by rater, in doubles: but for the rounding of rows it is the same."""
    log, twin = ratings(3_000, users=60, items=40), TWINS[name]()
    users, items, ys, times = zip(*log, strict=True)
    expected = Rater.learn(twin, users, items, np.array(ys), np.array(times))
    assert learned(made(name), log) == pytest.approx(expected.tolist(), abs=1e-4)


@each
@pytest.mark.parametrize("size", [1, 7, 500])
def test_batches_do_not_matter(name: str, size: int) -> None:
    log, whole, parts = ratings(1_000), made(name), made(name)
    assert learned(parts, log, size) == learned(whole, log)
    assert stored(parts) == stored(whole)


@each
def test_it_goes_on_from_its_rows_as_if_nothing_had_been(name: str) -> None:
    log, whole = ratings(1_400, users=40, items=40), made(name)
    model = made(name)
    predictions = learned(model, log[:600], 100)
    again = rebuilt(name, model)
    assert stored(again) == (model.header(), stored(again)[1]) and sorted(stored(again)[1]) == sorted(stored(model)[1])
    assert predictions + learned(again, log[600:], 33) == learned(whole, log)
    assert {**stored(again)[1]} == stored(whole)[1] and again.header() == whole.header()


@each
def test_a_dropped_row_is_as_if_it_had_never_been_stored(name: str) -> None:
    log, model = ratings(600), made(name)
    learned(model, log[:300])
    gone = [("user", "u0"), ("user", "u3"), ("item", "i1"), ("item", "i0")]
    for family, row_id in gone:
        model.drop(family, [row_id])
    assert not {*gone} & stored(model)[1].keys()
    never = rebuilt(name, model)
    # The first who come get the numbers of those who went.
    more = [("new", "newer", 3.5, log[300][3]), ("u0", "i1", 2.0, log[300][3]), *log[300:]]
    assert learned(model, more, 50) == learned(never, more)
    assert stored(model)[1] == stored(never)[1] and model.header() == never.header()
    with pytest.raises(KeyError, match="nobody"):
        model.drop("user", ["nobody"])


@each
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1e12, 100.5])
@pytest.mark.parametrize("ids", [("u0", "i0"), ("u0", "new"), ("new", "newer")])
def test_what_diverges_leaves_no_trace(name: str, ids: tuple[str, str], value: float) -> None:
    log, model, never = ratings(300), made(name, 100.0), made(name, 100.0)
    mixed = [*log[:20], (*ids, value, log[20][3]), *log[20:200], (*ids, value, log[200][3]), *log[200:]]
    predictions, diverged = model.learn(*groups(model, mixed), *columns(mixed))
    assert sorted(diverged) == [20, 201] and all(part in str(diverged[20]) for part in (*ids, "100"))
    assert predictions.tolist() == learned(never, log, 11)
    assert stored(model) == stored(never) and "new" not in model.ids["user"]
    with pytest.raises(Diverged):
        model.step(*ids, value)


@each
def test_weights_that_leave_their_bound_are_taken_back_event_by_event(name: str) -> None:
    """Values within the bound may lead to weights that are not."""
    bound, log = 0.6, [(user, item, (y - 2.75) / 4, time) for user, item, y, time in ratings(800, users=5, items=4)]
    wild = {"prior": 5.0} if name == "stack" else {"user_bias_noise": 5.0, "item_prior": 9.0}
    model, single = made(name, bound, **wild), made(name, bound, **wild)
    assert max(abs(y) for _, _, y, _ in log) <= bound
    predictions, diverged = model.learn(*groups(model, log), *columns(log))
    assert 5 < len(diverged) < 400
    expected: list[float] = []
    for place, rating in enumerate(log):
        before = stored(single)
        try:
            expected.append(single.step(*rating))
        except Diverged:
            assert place in diverged and stored(single) == before
    assert predictions.tolist() == expected and len(expected) + len(diverged) == len(log)
    assert stored(single) == stored(model)


@each
def test_an_heir_begins_with_the_means_of_another_and_as_unsure_as_a_new_one(name: str) -> None:
    log, shared = ratings(200), tail_id(3)
    whole, parts = made(name), made(name)
    log = [*log, (shared, shared, 5.0, log[-1][3]), (shared, "i0", 5.0, log[-1][3])]
    more = [
        (shared, "i1", 5.0, log[-1][3]),
        ("ann", "tea", 4.5, log[-1][3]),
        ("bob", "i1", 4.0, log[-1][3]),
        ("ann", "i2", 4.5, log[-1][3]),
    ]
    for model in (whole, parts):
        learned(model, log)
    expected = whole.learn(*groups(whole, more, {"ann": shared, "bob": "never"}, {"tea": shared}), *columns(more))[
        0
    ].tolist()
    heirs: Any = (), ({"ann": shared}, {"tea": shared}), ({"bob": "never"}, {}), ()
    assert expected == [
        parts.learn(*groups(parts, [rating], *of), *columns([rating]))[0].item()
        for rating, of in zip(more, heirs, strict=True)
    ]
    assert stored(whole) == stored(parts)
    # It is predicted as whose means it has, but for what is known by counts; and moves further than that.
    other = made(name)
    learned(other, log)
    learned(other, more[:1])
    copied = other.step(shared, shared, 4.5, more[1][3])
    fresh = made(name)
    learned(fresh, [*log, more[0]])
    anew = fresh.step("ann", "tea", 4.5, more[1][3])
    assert abs(expected[1] - copied) < abs(anew - copied)
    user = rows_of(whole, "user", "ann", shared).view("<f4")
    width = whole._blocks["user"][0].width
    assert (user[0, width : 2 * width] > user[1, width : 2 * width]).all()


@each
def test_rows_have_one_size_and_reading_changes_nothing(name: str) -> None:
    model = made(name)
    learned(model, ratings(100))
    before = stored(model)
    for family, size in (("user", 440), ("item", 360)) if name == "stack" else (("user", 72), ("item", 72)):
        ids = list(model.ids[family])
        rows = rows_of(model, family, *ids)
        assert {len(blob) for (of, _), blob in before[1].items() if of == family} == {size}
        assert model.biases(family, rows).shape == (len(ids),)
        assert model.vectors(family, rows).shape == (len(ids), model.n_factors)
        none = rows_of(model, family)
        assert len(none) == len(model.biases(family, none)) == len(model.vectors(family, none)) == 0
    model.global_mean()
    assert stored(model) == before
    assert stored(rebuilt(name, made(name))) == stored(made(name))
    with pytest.raises(ValueError, match=r"the row of user 'ann' has 8 bytes"):
        model.decode_rows("user", ["ann"], [bytes(8)])


@each
def test_biases_and_vectors_give_the_prediction(name: str) -> None:
    """At once after a rating of the user, with the weights of that moment, and so in the session."""
    model, log = made(name), ratings(2_000)
    learned(model, log)
    time = log[-1][3] + 1
    for user in ("u0", "u3"):
        model.step(user, "i5", 3.0, time)
        for item in ("i0", "i2", "i5"):
            users, items = rows_of(model, "user", user), rows_of(model, "item", item)
            [u], [i] = model.vectors("user", users), model.vectors("item", items)
            served = model.global_mean() + model.biases("user", users)[0] + model.biases("item", items)[0] + u @ i
            assert served == pytest.approx(rebuilt(name, model).step(user, item, 3.0, time), abs=1e-5)


def test_similar_items_are_those_of_similar_factors() -> None:
    model = made("stack")
    learned(model, ratings(2_000, users=60, items=40))
    rows = rows_of(model, "item", *model.ids["item"])
    vectors = model.vectors("item", rows)
    factors = np.concatenate(
        [rows.view("<f4")[:, b.at + 1 : b.at + b.width] for b in model._blocks["item"][:4]], axis=1
    )
    cosines = [of @ of.T / np.outer(*[np.linalg.norm(of, axis=1)] * 2) for of in (vectors, factors)]
    assert np.abs(cosines[0] - cosines[1]).max() < 1e-3


def test_the_state_of_another_model_is_refused() -> None:
    model = made("stack")
    with pytest.raises(ValueError, match=r"learned with model = kalman_mf, this job has model = stack"):
        model.restore_header(made("kalman_mf").header())
    with pytest.raises(ValueError, match="learned with raters"):
        model.restore_header(made("stack", n_factors=4).header())
    with pytest.raises(ValueError, match="model = baseline"):
        model.restore_header(build("baseline", {}).header())


@each
def test_shards_are_copied_and_not_merged(name: str) -> None:
    check(made(name), 2, 4)
    with pytest.raises(ModelError, match=f"rows of {name} hold how sure it is .* reshard to a multiple"):
        check(made(name), 4, 2)


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("stack", {"observation": 1}, "stack has no such parameter; it has n_factors, noise, forget, prior, seed"),
        ("kalman_mf", {"forget": 1}, "kalman_mf has no such parameter; it has n_factors, observation, user_bias_prior"),
        ("stack", {"forget": 1.5}, "model.forget: 1.5 is above 1"),
        ("stack", {"n_factors": 0}, "model.n_factors: 0 is not a whole number of at least 1"),
        ("kalman_mf", {"observation": 0}, "model.observation: 0 is not above 0"),
        ("kalman_mf", {"user_noise": -1e-5}, "model.user_noise: -1e-05 is not at least 0"),
        ("kalman_mf", {"spread": "wide"}, "model.spread: 'wide' is not a number"),
        ("tower", {}, "there are baseline, funk_mf, biased_mf, stack, kalman_mf"),
    ],
)
def test_settings_that_make_no_sense_are_refused(name: str, params: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        build(name, params)


def test_settings_are_those_of_the_raters() -> None:
    assert made("stack", n_factors=5).n_factors == 2 * (8 + 2 + 1 + 5 + 6)
    log = ratings(300)
    users, items, ys, times = zip(*log, strict=True)
    twin = KalmanMF(3, 0.5, (0.1, 0.2, 0.3, 0.4), (0.01, 0.02, 0.03, 0.04), 0.5, 7)
    names = ("user_bias", "user", "item_bias", "item")
    priors = {f"{of}_prior": value for of, value in zip(names, twin.priors, strict=True)}
    noise = {f"{of}_noise": value for of, value in zip(names, twin.noise, strict=True)}
    model = made("kalman_mf", n_factors=3, observation=0.5, spread=0.5, seed=7, **priors, **noise)
    expected = twin.learn(users, items, np.array(ys), np.array(times))
    assert learned(model, log) == pytest.approx(expected.tolist(), abs=1e-5)
    still = made("stack", noise=0.0)
    learned(still, log)
    assert learned(still, log) != learned(made("stack"), log)


def test_what_a_weight_is_of_that_never_occurs_does_not_grow_without_end() -> None:
    """Users without a session: in 40,000 events at this rate of forgetting the variance would pass 1e8."""
    model = made("stack", forget=0.9995)
    log = [(f"u{n}", f"i{n % 7}", float(n % 5), 0) for n in range(40_000)]
    learned(model, log)
    assert model.inverse.diagonal().max() == 1.0
    assert np.linalg.eigvalsh(model.inverse).min() > 0.0
