"""The learner: record by record whatever the batches, and a crash is just another input."""

from __future__ import annotations

import base64
import itertools
import math
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from river import metrics

from tests.shells import batch_of
from tests.udfs.cases import RIVER, made, ratings, river, stored, weights
from udfs.batch import Batch, Deletion
from udfs.building import FILTERS
from udfs.interactions import Interactions
from udfs.learner import Learned, Learner, LearnerConfig, build
from udfs.metrics import NAMES, Prequential, pooled, since, values
from udfs.models import Array
from udfs.packing import unpack_lines
from udfs.rivermodels import KINDS
from udfs.seal import seal, unseal
from udfs.tail import from_state_name
from udfs.tombstones import Tombstone

T0 = 1_700_000_000_000
CONFIG = LearnerConfig(run_id="run", group=7, seen=3)
Event = list[Any]


def events(n: int, seed: int = 0) -> list[Event]:
    """Ratings of few users and items, one a second, without what a batch adds."""
    return [
        [T0 + 1_000 * number, f"e{number}", user, item, "rating", y, 0, number]
        for number, (user, item, y) in enumerate(ratings(n, seed))
    ]


def raw(event: Event) -> bytes:
    return b"line %d" % event[7]


def batch(of: list[Event], watermark: int | None = None, *, ended: bool = False) -> bytes:
    return batch_of(of, [raw(event) for event in of], watermark=watermark, ended=ended).encode()


def parsed(header: bytes | None) -> dict[str, Any]:
    found: dict[str, Any] = orjson.loads(unseal("the learner's", "header", header or b""))
    return found


class Host:
    """Does what the PyFlink shell does: keeps header, rows and waiting batches, and can crash between elements."""

    def __init__(self, kind: str = "biased_mf", optimizer: str = "SGD", config: LearnerConfig = CONFIG) -> None:
        self._make = lambda: Learner(config, made(kind, optimizer))
        self.learner = self._make()
        self.header: bytes | None = None
        self.rows: dict[tuple[str, str], bytes] = {}
        self.waiting: dict[int, bytes] = {}
        self.tombstones: dict[str, bytes] = {}
        self.learned: list[Learned] = []

    def crash(self) -> None:
        self.learner = self._make()
        if self.header is not None:
            rows = [(family, row_id, blob) for (family, row_id), blob in self.rows.items()]
            self.learner.restore(self.header, rows, list(self.waiting.items()), self.tombstones.items())

    def put(self, blob: bytes) -> None:
        for learned in self.learner.process(Batch.decode(blob)):
            self.learned.append(learned)
            for family, rows in self.learner.encode(learned).items():
                self.rows |= {(family, row_id): blob for row_id, blob in zip(rows.row_ids, rows.blobs, strict=True)}
            for family, row_ids in learned.dropped.items():
                for row_id in row_ids:
                    self.rows.pop((family, row_id), None)
            self.tombstones |= {user_id: tombstone.encode() for user_id, tombstone in learned.deleted.items()}
        self.rows |= {from_state_name(name): counters for name, counters in self.learner.counters()}
        for finished in self.learner.finished_batches():
            self.waiting.pop(finished, None)
        for number in self.learner.to_store:
            waiting = self.learner.waiting_of(number)
            if waiting is not None:
                self.waiting[number] = waiting
        self.header = self.learner.header()

    @property
    def outcome(self) -> tuple[dict[str, Any], dict[tuple[str, str], bytes]]:
        """All that must not depend on how the events came."""
        assert self.header is not None
        header = parsed(self.header)
        del header["batch_number"]
        header.pop("dropped", None)
        return header, self.rows


def by_itself(kind: str, optimizer: str, log: list[Event]) -> Host:
    """One batch an event, in the order of time: the reference."""
    host = Host(kind, optimizer)
    for event in log:
        host.put(batch([[*event]], event[0]))
    host.put(batch([], T0 + 10**9, ended=True))
    return host


# ------------------------------------------------------------------------------------------- learning


@pytest.mark.parametrize(("kind", "optimizer"), RIVER)
def test_predictions_scores_and_weights_are_rivers_bit_for_bit(kind: str, optimizer: str) -> None:
    log = events(400)
    learner = Learner(LearnerConfig(metrics=NAMES), made(kind, optimizer))
    for start in range(0, len(log), 33):
        list(learner.process(Batch.decode(batch([[*e] for e in log[start : start + 33]]))))
    plain, scores = river(kind, optimizer), {name: getattr(metrics, name)() for name in NAMES}
    for event in log:
        prediction = plain.predict_one(event[2], event[3])
        for score in scores.values():
            score.update(event[5], prediction)
        plain.learn_one(event[2], event[3], event[5])
    assert weights(kind, learner.model.river()) == weights(kind, plain)  # type: ignore[attr-defined]
    expected = {name.lower(): score.get() for name, score in scores.items()} | {"n": 400}
    assert learner.summary()["metrics"] == expected


@pytest.mark.parametrize(("kind", "name"), [("baseline", "initializer"), ("biased_mf", "weight_initializer")])
def test_biases_may_start_with_draws(kind: str, name: str) -> None:
    learner = Learner(LearnerConfig(), build(kind, {name: "Normal"}))
    list(learner.process(Batch.decode(batch(events(5)))))
    learner.finished_batches()
    header, rows = learner.header(), learner.encode(learner.everything())
    again = Learner(LearnerConfig(), build(kind, {name: "Normal"}))
    again.restore(header, [(f, i, b) for f, of in rows.items() for i, b in zip(of.row_ids, of.blobs, strict=True)], [])
    assert again.header() == header


def test_rows_count_and_remember() -> None:
    host = Host(config=LearnerConfig(seen=2, half_life=1_000))
    made_up = [("u", "a", 5), ("u", "b", 1), ("v", "a", 2), ("u", "a", 3), ("u", "c", 4)]
    host.put(batch([[T0 + at, "", user, item, "rating", 3.0, 0, at] for user, item, at in made_up]))
    user, item = host.learner.rows["user"]["u"], host.learner.rows["item"]["a"]
    assert (user.count, user.updated_at, user.seq, list(user.seen)) == (4, T0 + 5, 5, ["a", "c"])
    assert (item.count, item.updated_at, item.seq) == (3, T0 + 5, 4)
    expected = T0 / 1_000 + math.log2(sum(2 ** (at / 1_000) for at in (5, 2, 3)))
    assert math.isclose(item.popularity, expected, rel_tol=1e-12)
    assert host.learner.latest == ("u", "c")


@given(
    log=st.lists(st.tuples(st.sampled_from("uvw"), st.sampled_from("abcdefg")), min_size=1, max_size=40),
    size=st.integers(1, 5),
    group=st.integers(1, 40),
)
def test_users_keep_the_items_they_met_last(log: list[tuple[str, str]], size: int, group: int) -> None:
    host = Host("baseline", config=LearnerConfig(seen=size, group=group))
    host.put(batch([[T0 + at, "", user, item, "rating", 3.0, 0, at] for at, (user, item) in enumerate(log)]))
    for user, row in host.learner.rows["user"].items():
        met = [item for of, item in log if of == user]
        latest = sorted(set(met), key=lambda item: met[::-1].index(item), reverse=True)
        assert list(row.seen) == latest[-size:]


def test_popularity_halves_in_its_half_life_and_does_not_depend_on_order() -> None:
    orders: list[list[float]] = []
    for times in ([0, 1_000, 5_000], [5_000, 0, 1_000]):
        host = Host(config=LearnerConfig(half_life=1_000))
        for at in times:
            host.put(batch([[T0 + at, "", "u", "i", "rating", 3.0, 0, at]]))
        host.put(
            batch([[T0 + 2_000, "", "u", "j", "rating", 3.0, 0, 9], [T0 + 1_000, "", "u", "k", "view", 3.0, 0, 9]])
        )
        orders.append([host.learner.rows["item"][i].popularity for i in "ijk"])
        assert math.isclose(orders[-1][1] - orders[-1][2], 1.0, abs_tol=1e-6)
    assert orders[0] == pytest.approx(orders[1], rel=1e-12)


def test_targets_of_events_that_are_no_ratings() -> None:
    config = LearnerConfig(weights={"purchase": 5.0, "rating": 9.0}, default_weight=2.0, metrics=("MAE",))
    host = Host("baseline", config=config)
    for kind, value, target in (("purchase", 30.0, 5.0), ("view", 1.0, 2.0), ("rating", 4.0, 4.0)):
        before = host.learner.model.model.global_mean  # type: ignore[attr-defined]
        total = before.get() * before.n
        host.put(batch([[T0, "", f"u{value}", f"i{value}", kind, value, 0, 1]]))
        assert host.learner.model.global_mean() * before.n == pytest.approx(total + target)


def test_predictions_are_clipped_for_scoring_only() -> None:
    log = [(0, 500.0), (1, 1.0), (2, 2.0)]
    free, clipped = Host("baseline"), Host("baseline", config=LearnerConfig(clip=(0.5, 5.0)))
    for host in (free, clipped):
        host.put(batch([[T0 + at, "", "u", "i", "rating", y, 0, at] for at, y in log]))
    assert free.rows == clipped.rows
    plain, score = river("baseline", "SGD"), metrics.MAE()
    for _, y in log:
        score.update(y, min(max(plain.predict_one("u", "i"), 0.5), 5.0))
        plain.learn_one("u", "i", y)
    assert clipped.learner.summary()["metrics"]["mae"] == score.get()


def test_what_diverges_is_a_dead_letter_and_nothing_else() -> None:
    log = events(60)
    bad = [T0 + 30_500, "bad", "u0", "never", "rating", 1e14, 0, 999]
    clean, host = Host(), Host()
    for target, of in ((clean, log), (host, [*log[:31], bad, *log[31:]])):
        target.put(batch([[*e] for e in of]))
    assert host.rows == clean.rows and ("item", "never") not in host.rows
    assert [len(learned.dead_letters) for learned in host.learned].count(1) == 1
    [letter] = [orjson.loads(letter) for learned in host.learned for letter in learned.dead_letters]
    assert letter["reason"] == "diverged" and "never" in letter["message"]
    assert letter["position"] == {"file": "log", "line": 999}
    assert base64.b64decode(letter["raw"]) == b"line 999"
    before, after = (parsed(h.header) for h in (clean, host))
    assert after["counts"].pop("diverged") == 1 and before["counts"].pop("diverged") == 0
    assert after == before


@pytest.mark.parametrize("kind", [*KINDS, *FILTERS])
def test_a_group_of_nothing_but_what_diverges_touches_nothing(kind: str) -> None:
    host = Host(kind)
    host.put(batch(events(7)))
    rows = {**host.rows}
    host.put(
        batch([[T0 + 9_000, "", user, item, "rating", 1e14, 0, 1] for user, item in (("new", "i0"), ("u0", "new"))])
    )
    assert host.learned[-1].touched == {"user": {}, "item": {}} and len(host.learned[-1].dead_letters) == 2
    assert host.rows == rows and host.learner.learned == 7 and host.learner.diverged == 2
    assert "new" not in host.learner.rows["user"] and "new" not in host.learner.rows["item"]


def test_a_group_names_exactly_what_it_touched() -> None:
    host = Host()
    log = events(40)
    host.put(batch([[*e] for e in log]))
    for number, learned in enumerate(host.learned):
        of = log[number * 7 : number * 7 + 7]
        assert set(learned.touched["user"]) == {e[2] for e in of}
        assert set(learned.touched["item"]) == {e[3] for e in of}
        assert all(len(ids) == len(set(ids)) for ids in learned.touched.values())


@pytest.mark.parametrize("kind", [*KINDS, *FILTERS])
def test_an_id_that_was_dropped_is_new_when_it_comes_again(kind: str) -> None:
    log = events(80)
    host, never = Host(kind), Host(kind)
    for target in (host, never):
        target.put(batch([[*e] for e in log[:40]]))
    for family, row_id in (("user", "u0"), ("user", "u1"), ("item", "i0")):
        host.learner.drop(family, [row_id])
        for target in (host, never):
            del target.rows[family, row_id]
    never.header = host.learner.header()
    never.crash()
    assert host.learner.summary()["users"] == never.learner.summary()["users"]
    for target in (host, never):
        target.put(batch([[*e] for e in log[40:]]))
    assert host.outcome == never.outcome
    again = [e for e in log[40:] if e[2] == "u0"]
    row = host.learner.rows["user"]["u0"]
    assert row.count == len(again) and row.seen == never.learner.rows["user"]["u0"].seen


# --------------------------------------------------------------------------- batches, orders and crashes


@given(
    n=st.integers(1, 40),
    seed=st.integers(0, 5),
    order=st.randoms(use_true_random=False),
    cuts=st.sets(st.integers(1, 39)),
    crashes=st.sets(st.integers(0, 40)),
    case=st.sampled_from([("biased_mf", "Adam"), ("funk_mf", "Momentum"), ("baseline", "AdaGrad"), ("stack", "")]),
)
def test_batches_arrival_and_crashes_change_nothing(
    n: int, seed: int, order: Any, cuts: set[int], crashes: set[int], case: tuple[str, str]
) -> None:
    log = events(n, seed)
    expected = by_itself(*case, log).outcome
    arrival = [*log]
    order.shuffle(arrival)
    bounds = sorted({0, n, *(c for c in cuts if c < n)})
    host = Host(*case)
    for number, (start, stop) in enumerate(itertools.pairwise(bounds)):
        if number in crashes:
            host.crash()
        # As the intake promises: nothing that comes later is older than the watermark.
        watermark = min((e[0] for e in arrival[stop:]), default=T0 + 10**9)
        host.put(batch([[*e] for e in arrival[start:stop]], watermark))
    host.crash()
    host.put(batch([], T0 + 10**9, ended=True))
    assert host.outcome == expected
    assert host.waiting == {} and not len(host.learner.waiting)


@given(n=st.integers(1, 40), cuts=st.sets(st.integers(1, 39)), crashes=st.sets(st.integers(0, 40)))
def test_without_a_watermark_events_are_learned_as_they_arrive(n: int, cuts: set[int], crashes: set[int]) -> None:
    log = events(n)[::-1]
    whole = Host()
    whole.put(batch([[*e] for e in log]))
    bounds = sorted({0, n, *(c for c in cuts if c < n)})
    host = Host()
    for number, (start, stop) in enumerate(itertools.pairwise(bounds)):
        if number in crashes:
            host.crash()
        host.put(batch([[*e] for e in log[start:stop]]))
    assert host.outcome == whole.outcome


def test_events_of_one_time_are_learned_in_the_order_of_their_ids() -> None:
    log = [[T0, f"e{n:02}", f"u{n % 3}", f"i{n % 4}", "rating", float(n % 5), 0, n] for n in range(20)]
    expected = by_itself("biased_mf", "SGD", log).outcome
    host = Host()
    host.put(batch([[*e] for e in log[::-1]], T0))
    assert host.learner.learned == 0 and len(host.learner.waiting) == 20
    host.put(batch([], T0 + 10**9, ended=True))
    assert host.outcome == expected


def test_what_waits_is_counted_and_survives() -> None:
    host = Host()
    log = events(10)
    host.put(batch([[*e] for e in log], T0 + 4_000))
    assert host.learner.summary()["pending"] == 6 and host.learner.learned == 4
    host.crash()
    assert host.learner.summary()["pending"] == 6 and list(host.waiting) == [0]


def test_a_run_that_goes_on_counts_what_it_took_over() -> None:
    host = Host()
    host.put(batch([[*e] for e in events(10)], T0 + 4_000))
    host._make = lambda: Learner(LearnerConfig(run_id="second", seen=3), made("biased_mf", "SGD"))
    host.crash()
    host.put(batch([], T0 + 10**9, ended=True))
    summary = host.learner.summary()
    assert (summary["run_id"], summary["carried"], summary["base"]["learned"], summary["counts"]["learned"]) == (
        "second",
        6,
        4,
        10,
    )
    assert summary["metrics_run"]["n"] == 6 and summary["metrics"]["n"] == 10
    assert summary["ended"] is True


# ------------------------------------------------------------------------------------------- deletion


def deletion(*user_ids: str, number: int = 1, part: int = 0, bound: int = 0) -> bytes:
    return Batch(
        None, False, [], Interactions.of([]), b"", tuple(Deletion(number, u, part, bound) for u in user_ids)
    ).encode()


def test_a_deleted_user_leaves_rows_and_waiting_lines() -> None:
    host, log = Host(), events(60)
    host.put(batch([[*e] for e in log[:30]], T0 + 10_000))
    host.put(batch([[*e] for e in log[30:]], T0 + 40_000))
    waiting, learned = host.learner.waiting, host.learner.learned
    gone = waiting.user_ids.count("u0")
    # Stored batches hold lines that were learned since, too.
    assert gone and host.learner.latest is not None and "u0" in host.learner.rows["user"]
    host.learner.latest = ("u0", "i0")
    host.put(deletion("u0", "never", number=7, bound=T0 + 59_000))
    assert host.learned[-1].touched == {"user": {}, "item": {}} and host.learned[-1].dead_letters == []
    assert "u0" not in host.learner.rows["user"] and ("user", "u0") not in host.rows and host.learner.latest is None
    lines = [line for _, _, lines in host.learner.batches.values() for line in unpack_lines(lines)]
    kept = [raw(event) for event in host.learner.waiting.rows()]
    assert sorted(lines) == sorted(kept) and len(kept) == len(waiting) - gone
    for number, blob in host.waiting.items():
        stored = Batch.decode(unseal("", f"batch {number}", blob))
        assert "u0" not in stored.events.user_ids
        assert unpack_lines(stored.lines) == [raw(event) for event in stored.events.rows()]
    summary = host.learner.summary()
    assert summary["counts"]["deleted"] == gone and summary["pending"] + gone + learned == 60
    assert host.learner.tombstones == {u: Tombstone(7, learned, 0, T0 + 59_000) for u in ("u0", "never")}
    host.crash()
    host.put(batch([], T0 + 10**9, ended=True))
    assert host.learner.summary()["pending"] == 0 and "u0" not in host.learner.rows["user"] and host.waiting == {}
    host.put(batch([[T0, "", "u0", "i0", "rating", 3.0, 0, 1]]))
    assert host.learner.rows["user"]["u0"].count == 1


def test_letters_of_what_waited_keep_their_lines() -> None:
    host = Host()
    wild = [[T0 + at, "", user, "i", "rating", 1e14, 0, at] for at, user in enumerate(("u", "v", "u", "w"))]
    host.put(batch(wild, T0))
    host.put(deletion("u"))
    host.put(batch([], T0 + 10**9, ended=True))
    letters = [orjson.loads(letter) for learned in host.learned for letter in learned.dead_letters]
    assert [base64.b64decode(letter["raw"]) for letter in letters] == [b"line 1", b"line 3"]


def test_a_request_takes_effect_once() -> None:
    host = Host()
    host.put(batch(events(20)))
    host.put(deletion("u0", number=5))
    host.put(batch([[*e] for e in events(20)]))
    before, rows = host.learner.tombstones, {**host.rows}
    assert ("user", "u0") in rows
    for number in (5, 4):  # as another log brings it again
        host.put(deletion("u0", "u1", number=number))
        assert host.learned[-1].deleted == {}
    assert host.learner.tombstones == before and host.rows == rows
    host.crash()
    host.put(deletion("u0", number=6))
    assert ("user", "u0") not in host.rows and host.learner.tombstones["u0"].number == 6


def test_tombstones_of_inputs_that_ended_hold_nothing_back() -> None:
    host = Host()
    host.put(deletion("ann", number=1, part=0))
    host.put(deletion("bob", number=2, part=1))
    host._make = lambda: Learner(LearnerConfig(part=1), made("biased_mf", "SGD"))
    host.crash()
    assert set(host.learner.tombstones) == {"ann", "bob"} and set(host.learner.passed_tombstones) == {"ann"}


@given(
    n=st.integers(1, 40),
    cuts=st.sets(st.integers(1, 39)),
    at=st.integers(0, 40),
    crashes=st.sets(st.integers(0, 41)),
    kind=st.sampled_from(["biased_mf", "funk_mf", "baseline", "stack"]),
)
def test_batches_and_crashes_change_nothing_about_a_deletion(
    n: int, cuts: set[int], at: int, crashes: set[int], kind: str
) -> None:
    log, at = events(n), min(at, n)

    def host(bounds: list[int], crashes: set[int]) -> Host:
        host = Host(kind)
        for number, (start, stop) in enumerate(itertools.pairwise(bounds)):
            if number in crashes:
                host.crash()
            host.put(batch([[*e] for e in log[start:stop]], T0 + 1_000 * stop - 5_000))
            if stop == at:
                host.put(deletion("u0", "u1"))
        host.crash()
        host.put(batch([], T0 + 10**9, ended=True))
        return host

    # A replay cuts the log elsewhere, but always where the request took effect.
    expected = host(sorted({0, at, n}), set())
    replayed = host(sorted({0, at, n, *(c for c in cuts if c < n)}), crashes)
    assert replayed.outcome == expected.outcome and replayed.tombstones == expected.tombstones
    assert replayed.learner.learned + replayed.learner.deleted == n


# ------------------------------------------------------------------------------------------- refusals


def _stored() -> Host:
    host = Host()
    host.put(batch(events(5)))
    return host


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (("baseline", {}), r"model = biased_mf.*model = baseline"),
        (("biased_mf", {"n_factors": 6}), r"n_factors = 4.*n_factors = 6"),
        (("biased_mf", {"n_factors": 4, "latent_optimizer": "Adam"}), r"slots"),
    ],
)
def test_the_state_of_another_model_is_refused(model: tuple[str, dict[str, Any]], message: str) -> None:
    host = _stored()
    assert host.header is not None
    with pytest.raises(ValueError, match=message):
        Learner(CONFIG, build(*model)).restore(host.header, [], [])


def test_newer_layouts_are_refused() -> None:
    host = _stored()
    newer = seal("header", orjson.dumps({**parsed(host.header), "layout": 2}))
    with pytest.raises(ValueError, match=r"layout 2.*reads 1"):
        Learner(CONFIG, made("biased_mf", "SGD")).restore(newer, [], [])
    blob = b"\x03" + host.rows["user", "u0"][1:]
    with pytest.raises(ValueError, match=r"user 'u0' has layout 3.*reads 1 and 2"):
        Learner(CONFIG, made("biased_mf", "SGD")).restore(host.header, [("user", "u0", blob)], [])


def test_a_restored_learner_has_the_same_model() -> None:
    host = _stored()
    before = stored(host.learner.model)  # type: ignore[arg-type]
    host.crash()
    assert stored(host.learner.model) == before  # type: ignore[arg-type]
    assert host.learner.header() == host.header


# --------------------------------------------------------------------------------------------- metrics

pairs = st.lists(st.tuples(st.floats(0.5, 5), st.floats(0.5, 5)), max_size=30)


def columns(log: list[tuple[float, float]]) -> Array:
    return np.array(log).reshape(-1, 2).T


@given(pairs, st.integers(0, 30))
def test_means_are_rivers_and_can_be_taken_up(log: list[tuple[float, float]], cut: int) -> None:
    scores = Prequential(NAMES)
    scores.update(*columns(log[:cut]))
    again = Prequential(NAMES)
    again.restore(orjson.loads(orjson.dumps(scores.means)))
    again.update(*columns(log[cut:]))
    plain = {name: getattr(metrics, name)() for name in NAMES}
    for metric in plain.values():
        for y, prediction in log:
            metric.update(y, prediction)
    shown = values(again.means)
    assert shown.pop("n") == len(log)
    # River squares by a power, which may round otherwise.
    assert shown == {name.lower(): pytest.approx(m.get(), rel=1e-12) if log else None for name, m in plain.items()}


@given(pairs, pairs)
def test_means_are_subtracted_and_pooled(first: list[tuple[float, float]], second: list[tuple[float, float]]) -> None:
    def means(log: list[tuple[float, float]]) -> Any:
        scores = Prequential(["MAE", "RMSE"])
        scores.update(*columns(log))
        return scores.means

    for name, (n, mean) in since(means(first + second), means(first)).items():
        expected = means(second)[name]
        assert n == expected[0] and mean == pytest.approx(expected[1], abs=1e-9)
    for name, (n, mean) in pooled([means(first), means(second)]).items():
        expected = means(first + second)[name]
        assert n == expected[0] and mean == pytest.approx(expected[1], abs=1e-9)
    assert since(means(first), {}) == pooled([means(first)]) == means(first)
