"""Bounded growth: what is dropped follows from the order of events alone, and no bound is ever exceeded."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.udfs.cases import made
from tests.udfs.test_learner import T0, Event, Host, batch
from udfs.growth import GrowthConfig
from udfs.learner import Learned, LearnerConfig
from udfs.seal import unseal

growths = st.builds(
    GrowthConfig,
    max_users=st.none() | st.integers(1, 20),
    max_items=st.none() | st.integers(1, 20),
    expire_after=st.none() | st.integers(1, 40_000),
)
# Few ids come often and many once; some events diverge, some bring two new ids.
logs = st.lists(
    st.tuples(
        st.integers(0, 3_000),
        st.integers(0, 5) | st.integers(0, 60),
        st.integers(0, 5) | st.integers(0, 60),
        st.sampled_from([1.0, 2.0, 3.5, 5.0, 5.0, 1e14]),
    ),
    min_size=1,
    max_size=80,
)


def log_of(drawn: list[tuple[int, int, int, float]]) -> list[Event]:
    times = itertools.accumulate(pause for pause, _, _, _ in drawn)
    return [
        [T0 + time, f"e{at:03}", f"u{user}", f"i{item}", "rating", y, 0, at]
        for at, (time, (_, user, item, y)) in enumerate(zip(times, drawn, strict=True))
    ]


def config(growth: GrowthConfig, group: int = 7) -> LearnerConfig:
    return LearnerConfig(run_id="run", group=group, seen=3, growth=growth)


class Guarded(Host):
    """A host whose rows are counted after each call of the model."""

    def __init__(self, kind: str, growth: GrowthConfig, group: int) -> None:
        super().__init__(kind, config=config(growth, group))
        make, caps = self._make, {"user": growth.max_users, "item": growth.max_items}

        def guarded() -> Any:
            learner = make()
            learn = learner.model.learn

            def counted(*of: Any) -> Any:
                outcome = learn(*of)
                for family, cap in caps.items():
                    assert cap is None or len(learner.model.ids[family]) <= cap
                return outcome

            learner.model.learn = counted  # type: ignore[method-assign]
            return learner

        self._make = guarded
        self.learner = guarded()


def slowly(kind: str, growth: GrowthConfig, log: list[Event]) -> Host:
    """The same, event by event, in words that need no proof."""
    host, clock = Host(kind), 0
    caps = {"user": growth.max_users, "item": growth.max_items}

    def drop(family: str, row_ids: list[str]) -> None:
        host.learner.drop(family, row_ids)
        for row_id in row_ids:
            del host.rows[family, row_id]

    for event in log:
        rows = host.learner.rows
        if growth.expire_after is not None:
            eighth = max(1, growth.expire_after // 8)
            if event[0] // eighth != clock // eighth:
                oldest = event[0] - event[0] % eighth - growth.expire_after
                for family in rows:
                    drop(family, [row_id for row_id, row in rows[family].items() if row.updated_at < oldest])
        for family, row_id in (("user", event[2]), ("item", event[3])):
            cap = caps[family]
            if cap is not None and row_id not in rows[family] and len(rows[family]) == cap:
                by_age = sorted(rows[family], key=lambda of: rows[family][of].seq)
                drop(family, by_age[: max(1, cap // 8)])
        host.put(batch([[*event]]))
        clock = max(clock, event[0])
    return host


def without_growth(host: Host) -> Any:
    header, rows = host.outcome
    header.pop("growth", None)
    return header, rows, host.learner.dropped


# -------------------------------------------------------------------------------------------- learning


@given(
    drawn=logs,
    growth=growths,
    group=st.integers(1, 90),
    cuts=st.sets(st.integers(1, 79)),
    crashes=st.sets(st.integers(0, 80)),
    kind=st.sampled_from(["biased_mf", "baseline"]),
)
def test_what_stays_follows_from_the_order_of_events(
    drawn: list[tuple[int, int, int, float]],
    growth: GrowthConfig,
    group: int,
    cuts: set[int],
    crashes: set[int],
    kind: str,
) -> None:
    log = log_of(drawn)
    expected = slowly(kind, growth, log)
    host = Guarded(kind, growth, group)
    bounds = sorted({0, len(log), *(cut for cut in cuts if cut < len(log))})
    for number, (start, stop) in enumerate(itertools.pairwise(bounds)):
        if number in crashes:
            host.crash()
        host.put(batch([[*event] for event in log[start:stop]]))
    assert set(host.rows) == {(f, i) for f, of in host.learner.rows.items() for i in of}
    # A restart counts batches, and each event of the slow way was one.
    mine, theirs = without_growth(host), without_growth(expected)
    assert mine == theirs


def test_the_cap_holds_and_an_eighth_goes_at_once() -> None:
    host = Guarded("biased_mf", GrowthConfig(max_users=80, max_items=16), 1_000)
    sizes = set()
    for start in range(0, 3_000, 300):
        host.put(batch([[T0 + n, "", f"u{n}", f"i{n % 40}", "rating", 3.0, 0, n] for n in range(start, start + 300)]))
        sizes.add(len(host.learner.rows["user"]))
        assert len(host.learner.model.ids["user"].names) == 80 and len(host.learner.rows["item"]) <= 16
    assert max(sizes) <= 80 and min(sizes) > 70
    summary = host.learner.summary()
    assert (summary["users"], summary["items"]) == (len(host.learner.rows["user"]), len(host.learner.rows["item"]))
    assert host.learner.dropped["user"] == 3_000 - summary["users"]


def test_rows_expire_that_no_event_has_met() -> None:
    host = Host(config=config(GrowthConfig(expire_after=8_000)))
    for at, user in ((0, "ann"), (100, "bob"), (7_900, "bob"), (8_999, "eve")):
        host.put(batch([[T0 + at, "", user, "tea", "rating", 3.0, 0, 1]]))
    assert set(host.learner.rows["user"]) == {"ann", "bob", "eve"}
    host.put(batch([[T0 + 9_000, "", "eve", "tea", "rating", 3.0, 0, 1]]))  # the eighth begins in which ann is too old
    assert set(host.learner.rows["user"]) == {"bob", "eve"} and set(host.learner.rows["item"]) == {"tea"}
    assert host.learned[-1].dropped == {"user": {"ann"}}
    assert ("user", "ann") not in host.rows


def test_an_input_that_goes_back_in_time_drops_nothing() -> None:
    host = Host(config=config(GrowthConfig(expire_after=8_000)))
    host.put(batch([[T0, "", "ann", "tea", "rating", 3.0, 0, 1]]))
    host.put(batch([[T0 - 10**9 + n, "", f"u{n}", "tea", "rating", 3.0, 0, 1] for n in range(20)]))
    assert len(host.learner.rows["user"]) == 21


def test_a_lower_cap_holds_from_the_next_event_on() -> None:
    log = [[T0 + n, "", f"u{n}", f"i{n % 3}", "rating", 3.0, 0, n] for n in range(50)]
    host = Host(config=config(GrowthConfig(max_users=40)))
    host.put(batch([[*event] for event in log]))
    assert not host.learner.rebounded
    host._make = lambda: Guarded("biased_mf", GrowthConfig(max_users=10), 7).learner
    host.crash()
    assert host.learner.rebounded and len(host.learner.rows["user"]) > 10
    host.put(batch([[T0 + 90, "", "u0", "i0", "rating", 3.0, 0, 1]]))
    assert len(host.learner.rows["user"]) <= 10 and len(host.rows) <= 13
    host.crash()
    assert not host.learner.rebounded


def test_without_bounds_a_header_names_none() -> None:
    host = Host(config=config(GrowthConfig()))
    host.put(batch([[T0, "", "ann", "tea", "rating", 3.0, 0, 1]]))
    assert not {"growth", "dropped"} & set(orjson.loads(unseal("", "header", host.header or b"")))


# ------------------------------------------------------------------------------------ what was changed


def test_what_comes_again_was_not_dropped() -> None:
    learned = Learned({"user": {"ann": 0, "bob": 1}, "item": {}})
    learned.drop("user", ["ann", "eve"])
    learned.add(Learned({"user": {"eve": 0}, "item": {"tea": 0}}, ["letter"], {"user": {"bob"}}))
    assert learned.touched == {"user": {"eve": 0}, "item": {"tea": 0}}
    assert learned.dropped == {"user": {"ann", "bob"}} and learned.dead_letters == ["letter"]


# ---------------------------------------------------------------------------------------------- memory


@pytest.mark.parametrize("optimizer", ["SGD", "Adam"])
def test_ids_that_come_once_leave_nothing(optimizer: str) -> None:
    """Tables, names and dictionaries stay as long as the caps, however many ids pass."""
    host = Host("biased_mf", optimizer, config(GrowthConfig(max_users=500, max_items=100), group=5_000))
    rng = np.random.default_rng(0)
    for start in range(0, 50_000, 5_000):
        y = rng.integers(1, 6, 5_000)
        host.put(
            batch(
                [
                    [T0 + n, "", f"u{n}", f"i{n}", "rating", float(y[n - start]), 0, n]
                    for n in range(start, start + 5_000)
                ]
            )
        )
    learner, model = host.learner, host.learner.model
    for family, cap in (("user", 500), ("item", 100)):
        assert len(model.ids[family].names) == cap and len(learner.rows[family].heads) <= 1_024
    assert len(learner.rows["user"].seen) == 500
    tables = [*model._columns["user"], *model._columns["item"]]  # type: ignore[attr-defined]
    assert all(len(rows) <= 500 for rows, _ in tables)
    assert len(host.rows) <= 600
    assert made("biased_mf", optimizer).header() != model.header()
