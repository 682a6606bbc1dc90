"""Models: River's arithmetic bit for bit, rows that hold all of it, and one contract for every kind."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import orjson
import pytest
from river import optim

from tests.sums import dot
from tests.udfs.cases import (
    CASES,
    COMPILED,
    MATRIX,
    OPTIMIZERS,
    RIVER,
    made,
    parameters,
    ratings,
    rebuilt,
    river,
    rows_of,
    stored,
    weights,
)
from udfs.building import build
from udfs.compiled import CompiledRanker
from udfs.ids import Group
from udfs.models import Array, Diverged, ModelError
from udfs.plain import PlainBiasedMF
from udfs.rivermodels import KINDS, RiverRanker

each_compiled_case = pytest.mark.parametrize(("kind", "optimizer"), COMPILED)
each_river_case = pytest.mark.parametrize(("kind", "optimizer"), RIVER)
each_case = pytest.mark.parametrize(("kind", "optimizer"), CASES)
each_kind = pytest.mark.parametrize("kind", KINDS)


@each_river_case
def test_learning_is_rivers_bit_for_bit(kind: str, optimizer: str) -> None:
    model, plain = made(kind, optimizer), river(kind, optimizer)
    for user, item, y in ratings(1_500):
        expected = plain.predict_one(user, item)
        plain.learn_one(user, item, y)
        assert model.step(user, item, y) == expected
    assert weights(kind, model.river()) == weights(kind, plain)
    if kind != "funk_mf":
        assert model.global_mean() == plain.global_mean.get()


@pytest.fixture
def summed_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """River sums as the compiled engine does, whatever the BLAS of the machine."""
    for module in ("biased_mf", "funk_mf"):
        monkeypatch.setattr(f"river.reco.{module}.np", SimpleNamespace(dot=dot))


@each_compiled_case
@pytest.mark.usefixtures("summed_alike")
def test_compiled_learning_is_rivers(kind: str, optimizer: str) -> None:
    """And equal bit for bit under SGD and Momentum, whose steps take no powers."""
    model, plain = made(kind, optimizer), river(kind, optimizer)
    assert type(model) is CompiledRanker
    expected, predictions, log = [], [], ratings(3_000, users=60, items=40)
    for user, item, y in log:
        expected.append(plain.predict_one(user, item))
        plain.learn_one(user, item, y)
    for group in (log[:1], log[1:1_000], log[1_000:2_990], log[2_990:]):
        predictions += model.learn(*groups(model, group), ys(group))[0].tolist()
    np.testing.assert_allclose(predictions, expected, rtol=1e-12, atol=1e-12)
    assert close(kind, model.river(), plain)
    if optimizer in ("SGD", "Momentum"):
        assert weights(kind, model.river()) == weights(kind, plain)
    if kind != "funk_mf":
        assert model.global_mean() == plain.global_mean.get()


def ys(log: list[tuple[str, str, float]]) -> Array:
    return np.array([y for _, _, y in log])


def groups(model: RiverRanker, log: list[tuple[str, str, float]]) -> tuple[Group, Group]:
    users = Group(model.ids["user"], [user for user, _, _ in log])
    return users, Group(model.ids["item"], [item for _, item, _ in log])


def close(kind: str, model: Any, other: Any) -> bool:
    """Whether all weights of two River models are equal within 1e-12 of their size."""
    for table, rows in weights(kind, model).items():
        others = weights(kind, other)[table]
        assert rows.keys() == others.keys()
        for row_id, row in rows.items():
            left, right = np.frombuffer(row), np.frombuffer(others[row_id])
            if np.linalg.norm(left - right) > 1e-12 * np.linalg.norm(right):
                return False
    return True


@pytest.mark.parametrize("n_factors", [1, 2, 4, 15])
@pytest.mark.parametrize("params", [{}, {"l2_latent": 0.01, "l2_bias": 0.02, "weight_initializer": "Normal"}])
@pytest.mark.usefixtures("summed_alike")
def test_compiled_sgd_of_few_factors_is_rivers_bit_for_bit(n_factors: int, params: dict[str, Any]) -> None:
    model = build("biased_mf", {"n_factors": n_factors, **params})
    plain = build("biased_mf", {"n_factors": n_factors, **params}).river()
    log = ratings(2_000, users=150, items=70)
    predictions, _ = model.learn(*groups(model, log), ys(log))
    for (user, item, y), prediction in zip(log, predictions, strict=True):
        assert prediction == plain.predict_one(user, item)
        plain.learn_one(user, item, y)
    assert weights("biased_mf", model.river()) == weights("biased_mf", plain)


@pytest.mark.parametrize("n_factors", [16, 33, 64])
def test_compiled_products_of_many_factors_are_rivers_but_for_the_order_of_sums(n_factors: int) -> None:
    model = build("biased_mf", {"n_factors": n_factors})
    plain = build("biased_mf", {"n_factors": n_factors}).river()
    log = ratings(20_000, users=300, items=200)
    expected = []
    for user, item, y in log:
        expected.append(plain.predict_one(user, item))
        plain.learn_one(user, item, y)
    predictions, _ = model.learn(*groups(model, log), ys(log))
    np.testing.assert_allclose(predictions, expected, rtol=1e-12)
    assert close("biased_mf", model.river(), plain)


@pytest.mark.parametrize("schedule", [0.05, optim.schedulers.InverseScaling(0.1, 0.4)])
def test_compiled_learning_follows_the_schedule_of_the_rate(schedule: Any) -> None:
    model = made("biased_mf", "SGD")
    plain = river("biased_mf", "SGD")
    for of in (model.model, plain):
        of.u_latent_optimizer.lr = of.i_latent_optimizer.lr = optim.SGD(schedule).lr
    log = ratings(700)
    for user, item, y in log:
        plain.learn_one(user, item, y)
    for group in (log[:300], log[300:]):
        model.learn(*groups(model, group), ys(group))
    assert close("biased_mf", model.river(), plain)


@each_compiled_case
def test_a_state_may_go_on_with_another_engine(kind: str, optimizer: str) -> None:
    log, models = ratings(900, users=40, items=40), (made(kind, optimizer), made(kind, f"{optimizer}/river"))
    for model in models:
        for rating in log[:300]:
            model.step(*rating)
    # Each goes on from the other's state, and back.
    for part in (log[300:600], log[600:]):
        models = tuple(
            rebuilt(kind, name, *stored(model))
            for name, model in zip((f"{optimizer}/river", optimizer), models, strict=True)
        )[::-1]
        for model in models:
            for rating in part:
                model.step(*rating)
    whole = river(kind, optimizer)
    for user, item, y in log:
        whole.learn_one(user, item, y)
    assert all(close(kind, model.river(), whole) for model in models)


def test_what_is_not_compiled_is_rivers() -> None:
    assert type(build("biased_mf", {})) is CompiledRanker
    assert type(build("biased_mf", {}, engine="river")) is PlainBiasedMF
    for params in ({"loss": "Huber"}, {"optimizer": "NesterovMomentum"}):
        assert type(build("funk_mf", params)) is RiverRanker


@pytest.mark.parametrize("n_factors", [1, 2, 16, 33])
@pytest.mark.parametrize("params", [{}, {"l2_latent": 0.01, "l2_bias": 0.02, "weight_initializer": "Normal"}])
def test_groups_of_vectors_of_any_length_are_learned_as_river_does(n_factors: int, params: dict[str, Any]) -> None:
    log, start = ratings(2_000, users=150, items=70), 0
    model = build("biased_mf", {"n_factors": n_factors, **params}, engine="river")
    plain = build("biased_mf", {"n_factors": n_factors, **params}).river()
    for size in (1, 999, 300, 700):
        group = log[start : start + size]
        start += size
        predictions, diverged = model.learn(*groups(model, group), ys(group))
        assert not diverged
        for (user, item, y), prediction in zip(group, predictions, strict=True):
            assert prediction == plain.predict_one(user, item)
            plain.learn_one(user, item, y)
    assert start == len(log)
    assert weights("biased_mf", model.river()) == weights("biased_mf", plain)


@pytest.mark.parametrize(
    ("kind", "params"),
    [("funk_mf", {}), ("funk_mf", {"optimizer": "Adam"}), ("biased_mf", {"latent_optimizer": "Adam"})],
)
def test_one_factor_is_a_number_to_river(kind: str, params: dict[str, Any]) -> None:
    model, plain = (build(kind, {"n_factors": 1, "seed": 3, **params}, engine="river") for _ in range(2))
    river = plain.river()
    for user, item, y in ratings(300):
        expected = river.predict_one(user, item)
        river.learn_one(user, item, y)
        assert model.step(user, item, y) == expected
    users = dict(model.ids["user"])
    rows = rows_of(model, "user", *users)
    assert model.vectors("user", rows)[:, 0].tolist() == [river.u_latents[user] for user in users]
    assert model.biases("user", rows).tolist() == [
        river.u_biases[user] if kind == "biased_mf" else 0.0 for user in users
    ]
    plain.decode_rows("user", list(users), [row.tobytes() for row in rows])
    assert rows_of(plain, "user", *users).tobytes() == rows.tobytes()


@each_kind
def test_a_group_learns_what_does_not_diverge(kind: str) -> None:
    model, never = made(kind, "SGD", 100.0), made(kind, "SGD", 100.0)
    log = ratings(60)
    mixed = [*log[:20], ("u0", "fresh", 1e12), *log[20:40], ("fresh", "i0", 1e12), ("u0", "i0", -1e12), *log[40:]]
    with np.errstate(all="ignore"):
        predictions, diverged = model.learn(
            Group(model.ids["user"], [user for user, _, _ in mixed]),
            Group(model.ids["item"], [item for _, item, _ in mixed]),
            ys(mixed),
        )
    assert sorted(diverged) == [20, 41, 42]
    assert predictions.tolist() == [never.step(*rating) for rating in log]
    assert stored(model) == stored(never)
    assert "fresh" not in {*model.ids["user"], *model.ids["item"]}


@each_kind
def test_defaults_are_rivers(kind: str) -> None:
    model, plain = build(kind, {}, engine="river"), KINDS[kind].estimator(seed=0)
    for user, item, y in ratings(300):
        expected = plain.predict_one(user, item)
        plain.learn_one(user, item, y)
        assert model.step(user, item, y) == expected
    assert weights(kind, model.river()) == weights(kind, plain)


@each_case
def test_a_model_goes_on_from_its_rows_as_if_nothing_had_been(kind: str, optimizer: str) -> None:
    log = ratings(1_400, users=40, items=40)
    whole, model = made(kind, optimizer), made(kind, optimizer)
    expected = [whole.step(*rating) for rating in log]
    predictions = [model.step(*rating) for rating in log[:600]]
    header, rows = stored(model)
    model = rebuilt(kind, optimizer, header, rows)
    assert stored(model) == (header, rows)
    predictions += [model.step(*rating) for rating in log[600:]]
    assert predictions == expected
    assert stored(model) == stored(whole)


@each_case
@pytest.mark.parametrize("ids", [("u0", "i0"), ("u0", "new"), ("new", "i0"), ("new", "newer")])
def test_what_diverges_leaves_no_trace(kind: str, optimizer: str, ids: tuple[str, str]) -> None:
    log = ratings(400)
    model, never = made(kind, optimizer, 100.0), made(kind, optimizer, 100.0)
    for rating in log[:200]:
        model.step(*rating)
        never.step(*rating)
    before = stored(model)
    for y in (1e12, -1e12, 1e15):
        # Adam and its like take small steps however large the error; what they remember of it is not small.
        with np.errstate(all="ignore"):
            try:
                model.step(*ids, y)
            except Diverged as verdict:
                assert ids[0] in str(verdict) and ids[1] in str(verdict) and "100" in str(verdict)
                assert stored(model) == before
            else:
                assert optimizer.startswith(("AdaGrad", "Adam", "RMSProp")) and kind == "funk_mf"
                return
    for rating in log[200:]:
        assert model.step(*rating) == never.step(*rating)
    assert stored(model) == stored(never)


@each_kind
@pytest.mark.parametrize("created", [999, 1_000, 1_001, 2_400])
def test_draws_are_taken_back_at_any_number_of_rows(kind: str, created: int) -> None:
    params = {**parameters(kind, "SGD"), **({"initializer": "Normal"} if kind == "baseline" else {})}
    model, never = build(kind, params, 100.0), build(kind, params, 100.0)
    for n in range(0, created, 2):
        model.step(f"u{n}", f"i{n}", 3.0)
        never.step(f"u{n}", f"i{n}", 3.0)
    for n in range(3):
        with pytest.raises(Diverged), np.errstate(all="ignore"):
            model.step("new", f"i{n}", 1e12)
        with pytest.raises(Diverged), np.errstate(all="ignore"):
            model.step("new", "newer", 1e12)
    assert stored(model) == stored(never)
    assert model.step("u0", "another", 2.0) == never.step("u0", "another", 2.0)
    assert stored(model) == stored(never)


@pytest.mark.parametrize("optimizer", ["AdaGrad", "Adam", "RMSProp"])
@each_kind
def test_the_bound_is_of_weights_and_not_of_squared_gradients(kind: str, optimizer: str) -> None:
    model, plain = made(kind, optimizer, max_weight=50.0), river(kind, optimizer)
    for n, (user, item, y) in enumerate(ratings(1_000, users=2, items=2)):
        try:
            model.step(user, item, 8 * y)
        except Diverged as verdict:
            raise AssertionError(f"record {n}: {verdict}") from verdict
        plain.learn_one(user, item, 8 * y)
    assert close(kind, model.river(), plain)


@pytest.mark.parametrize("kind", ["baseline", "biased_mf"])
def test_a_loss_that_overflows_is_a_record_that_diverged(kind: str) -> None:
    model = build(kind, {"loss": "Poisson"})
    model.step("u", "i", 3.0)
    before = stored(model)
    with pytest.raises(Diverged), np.errstate(all="ignore"):
        model.step("u", "j", 5_000.0)
    assert stored(model) == before


# -------------------------------------------------------------------------------------- the contract


@each_case
class TestContract:
    """What the learner, the state and the publisher count on, for every model."""

    def test_rows_have_one_size_a_family(self, kind: str, optimizer: str) -> None:
        model = made(kind, optimizer)
        for rating in ratings(50):
            model.step(*rating)
        _, rows = stored(model)
        for family in model.families:
            sizes = {len(blob) for (of, _), blob in rows.items() if of == family}
            assert len(sizes) == 1 and sizes.pop() % 8 == 0

    def test_a_record_touches_its_own_rows_only(self, kind: str, optimizer: str) -> None:
        model = made(kind, optimizer)
        for rating in ratings(100):
            model.step(*rating)
        _, before = stored(model)
        model.step("u1", "i1", 1.0)
        _, after = stored(model)
        changed = {row for row in after if after[row] != before.get(row)}
        assert changed <= {("user", "u1"), ("item", "i1")} and changed

    def test_reading_changes_nothing(self, kind: str, optimizer: str) -> None:
        model = made(kind, optimizer)
        for rating in ratings(100):
            model.step(*rating)
        before = stored(model)
        model.vectors("user", rows_of(model, "user", "u0", "u1"))
        model.biases("item", rows_of(model, "item", "i0"))
        model.global_mean()
        assert stored(model) == before

    def test_biases_and_vectors_give_the_prediction(self, kind: str, optimizer: str) -> None:
        model = made(kind, optimizer)
        for rating in ratings(200):
            model.step(*rating)
        for user, item in (("u0", "i0"), ("u3", "i2")):
            users, items = rows_of(model, "user", user), rows_of(model, "item", item)
            [u], [i] = model.vectors("user", users), model.vectors("item", items)
            assert u.shape == i.shape == (MATRIX[kind],) == (model.n_factors,)
            computed = model.global_mean() + model.biases("user", users)[0] + model.biases("item", items)[0] + u @ i
            assert math.isclose(computed, model.river().predict_one(user, item), rel_tol=1e-12)

    def test_no_ids_give_no_rows(self, kind: str, optimizer: str) -> None:
        model = made(kind, optimizer)
        rows = rows_of(model, "user")
        assert len(rows) == len(model.biases("user", rows)) == len(model.vectors("user", rows)) == 0

    def test_a_dropped_row_is_as_if_it_had_never_been_stored(self, kind: str, optimizer: str) -> None:
        log = ratings(600)
        model = made(kind, optimizer)
        for rating in log[:300]:
            model.step(*rating)
        header, rows = stored(model)
        gone = [("user", "u0"), ("user", "u3"), ("item", "i1")]
        for family, row_id in gone:
            model.drop(family, [row_id])
            del rows[family, row_id]
        never = rebuilt(kind, optimizer, header, rows)
        assert stored(model) == stored(never)
        assert [model.step(*rating) for rating in log[300:]] == [never.step(*rating) for rating in log[300:]]
        assert stored(model) == stored(never)
        with pytest.raises(KeyError, match="nobody"):
            model.drop("user", ["nobody"])

    def test_dropped_rows_leave_their_places(self, kind: str, optimizer: str) -> None:
        model = made(kind, optimizer)
        for n in range(300):
            model.step(f"u{n}", f"i{n}", 3.0)
            if n >= 10:
                model.drop("user", [f"u{n - 10}"])
                model.drop("item", [f"i{n - 10}"])
        assert {family: (len(ids), len(ids.names)) for family, ids in model.ids.items()} == {
            "user": (10, 11),
            "item": (10, 11),
        }

    def test_an_heir_begins_with_the_weights_of_another(self, kind: str, optimizer: str) -> None:
        model, copied = made(kind, optimizer), made(kind, optimizer)
        for of in (model, copied):
            for rating in ratings(60):
                of.step(*rating)
        for family, heir, row_id in (("user", "ann", "u0"), ("item", "tea", "i0")):
            copied.decode_rows(family, [heir], [rows_of(copied, family, row_id).tobytes()])
        log = [("ann", "i1", 3.0), ("u1", "tea", 2.0), ("ann", "tea", 4.0)]
        users = Group(model.ids["user"], [user for user, _, _ in log], {"ann": "u0"})
        items = Group(model.ids["item"], [item for _, item, _ in log], {"tea": "i0"})
        predictions, _ = model.learn(users, items, ys(log))
        assert predictions.tolist() == [copied.step(*rating) for rating in log]
        assert stored(model) == stored(copied)

    def test_an_heir_of_nothing_is_drawn_and_one_that_diverges_leaves_no_trace(self, kind: str, optimizer: str) -> None:
        model, plain = made(kind, optimizer), made(kind, optimizer)
        users, items = Group(model.ids["user"], ["ann"], {"ann": "never"}), Group(model.ids["item"], ["tea"])
        assert model.learn(users, items, np.array([3.0]))[0] == [plain.step("ann", "tea", 3.0)]
        assert stored(model) == stored(plain)
        strict = rebuilt(kind, optimizer, *stored(model), max_weight=1e-9)
        users, items = (
            Group(strict.ids["user"], ["bob"], {"bob": "ann"}),
            Group(strict.ids["item"], ["rum"], {"rum": "tea"}),
        )
        assert list(strict.learn(users, items, np.array([3.0]))[1]) == [0]
        assert stored(strict) == stored(model)

    def test_any_text_is_an_id(self, kind: str, optimizer: str) -> None:
        model = made(kind, optimizer)
        odd = ["probe", "user:1", "\x00", "\U0001f30a", " ", "1"]
        for row_id in odd:
            model.step(row_id, row_id, 2.0)
        header, rows = stored(model)
        assert stored(rebuilt(kind, optimizer, header, rows)) == (header, rows)
        assert len(rows) == 2 * len(odd)

    def test_a_new_model_has_a_header(self, kind: str, optimizer: str) -> None:
        header, rows = stored(made(kind, optimizer))
        assert rows == {}
        model, fresh = rebuilt(kind, optimizer, header, {}), made(kind, optimizer)
        assert [model.step(*r) for r in ratings(50)] == [fresh.step(*r) for r in ratings(50)]

    def test_what_is_rolled_back_is_as_before(self, kind: str, optimizer: str) -> None:
        model = made(kind, optimizer)
        for rating in ratings(50):
            model.step(*rating)
        before = stored(model)
        # Under so small a bound no record is sound, whatever the optimiser.
        strict = rebuilt(kind, optimizer, *before, max_weight=1e-9)
        for user, item in (("u0", "i0"), ("u0", "fresh"), ("fresh", "i0"), ("fresh", "fresh")):
            with pytest.raises(Diverged, match=r"bound of 1e-09"):
                strict.step(user, item, 3.0)
            assert stored(strict) == before


# ------------------------------------------------------------------------------------------- refusals


def test_another_model_is_refused() -> None:
    header = build("baseline", {}).header()
    with pytest.raises(ValueError, match=r"baseline.*biased_mf"):
        build("biased_mf", {}).restore_header(header)


def test_other_factors_are_refused() -> None:
    model = build("biased_mf", {"n_factors": 4})
    with pytest.raises(ValueError, match=r"n_factors = 4.*n_factors = 5"):
        build("biased_mf", {"n_factors": 5}).restore_header(model.header())
    model.step("u", "i", 1.0)
    with pytest.raises(ValueError, match=r"user 'u' has 40 bytes.*n_factors = 5.*48"):
        build("biased_mf", {"n_factors": 5}).decode_rows("user", ["u"], [rows_of(model, "user", "u").tobytes()])


def test_another_optimizer_is_refused() -> None:
    header = made("funk_mf", "Adam").header()
    with pytest.raises(ValueError, match=r"slots = .*'m', 'v'.*slots = .*\[\]"):
        made("funk_mf", "SGD").restore_header(header)


def test_another_layout_is_refused() -> None:
    header = orjson.loads(build("funk_mf", {}).header()) | {"river_rows": 2}
    with pytest.raises(ValueError, match=r"river_rows = 2.*river_rows = 1"):
        build("funk_mf", {}).restore_header(orjson.dumps(header))


@pytest.mark.parametrize(
    ("kind", "params", "message"),
    [
        ("svd", {}, r"model.name: 'svd' is not a model; there are baseline, funk_mf, biased_mf"),
        ("baseline", {"n_factors": 3}, r"model.n_factors: baseline has no such parameter; it has optimizer"),
        ("funk_mf", {"optimizer.lr": 0.1}, r"model.optimizer: None is not one of .*SGD"),
        ("funk_mf", {"optimizer": "Sgd"}, r"model.optimizer: 'Sgd' is not one of .*SGD"),
        ("funk_mf", {"optimizer": "SGD", "optimizer.rate": 1}, r"model.optimizer.rate: SGD has no.*it has lr"),
        ("funk_mf", {"n_factors": 0}, r"model.n_factors: 0 is not a whole number of at least 1"),
        ("funk_mf", {"n_factors": 2.5}, r"model.n_factors: 2.5 is not a whole"),
        ("funk_mf", {"n_factors": True}, r"model.n_factors: True is not a number"),
        ("funk_mf", {"seed": -1}, r"model.seed: -1 is not a whole number of at least 0"),
        ("funk_mf", {"l2": "much"}, r"model.l2: 'much' is not a number"),
        ("funk_mf", {"l2": math.nan}, r"model.l2: nan is not a number"),
        ("funk_mf", {"l2": 1, "l2.x": 1}, r"model.l2.x: l2 is a number"),
        ("funk_mf", {"loss": "Square"}, r"model.loss: 'Square' is not one of .*Squared"),
        ("funk_mf", {"optimizer": "FTRLProximal"}, r"model"),
        ("funk_mf", {"optimizer": "Averager"}, r"model.optimizer: Averager can't be made"),
    ],
)
def test_what_cannot_be_built_says_why(kind: str, params: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        build(kind, params)


def test_optimizers_without_a_place_in_a_row_are_refused_or_right() -> None:
    """Each optimiser of River either passes or is refused; none is taken and then loses state."""
    for name in sorted(n for n, c in vars(optim).items() if isinstance(c, type) and n != "Optimizer"):
        try:
            model = build("funk_mf", {"n_factors": 2, "optimizer": name})
        except ModelError:
            assert name not in OPTIMIZERS
            continue
        log = ratings(120)
        whole = build("funk_mf", {"n_factors": 2, "optimizer": name})
        with np.errstate(all="ignore"):
            expected = [_step(whole, r) for r in log]
            got = [_step(model, r) for r in log[:60]]
            header, rows = stored(model)
            model = build("funk_mf", {"n_factors": 2, "optimizer": name})
            model.restore_header(header)
            for (family, row_id), blob in rows.items():
                model.decode_rows(family, [row_id], [blob])
            got += [_step(model, r) for r in log[60:]]
        assert got == expected, name
        assert stored(model) == stored(whole), name


def _step(model: Any, rating: tuple[str, str, float]) -> float | None:
    try:
        return float(model.step(*rating))
    except Diverged:
        return None


def test_the_seed_decides() -> None:
    first, same, other = (build("funk_mf", {"seed": s}) for s in (1, 1, 2))
    assert first.step("u", "i", 1.0) == same.step("u", "i", 1.0) != other.step("u", "i", 1.0)
    assert copy.deepcopy(first).header() == first.header()
