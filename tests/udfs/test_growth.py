"""Bounded growth: what is dropped follows from the order of events alone, and no bound is ever exceeded."""

from __future__ import annotations

import itertools
import zlib
from collections import Counter
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.shells import batch_of
from tests.udfs.cases import made, rows_of
from tests.udfs.test_learner import T0, Event, Host, batch
from udfs.growth import GrowthConfig
from udfs.learner import Learned, Learner, LearnerConfig
from udfs.seal import unseal
from udfs.tail import Tail, from_state_name, state_name, tail_id, tail_number

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

    def __init__(self, kind: str, growth: GrowthConfig, group: int, optimizer: str = "SGD") -> None:
        super().__init__(kind, optimizer, config(growth, group))
        make, caps = self._make, {"user": growth.max_users, "item": growth.max_items}

        def guarded() -> Any:
            learner = make()
            learn = learner.model.learn

            def counted(*of: Any) -> Any:
                outcome = learn(*of)
                for family, cap in caps.items():
                    own = [row_id for row_id in learner.model.ids[family] if tail_number(row_id) is None]
                    assert cap is None or len(own) <= cap
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
    header.pop("counted", None)
    return header, rows, host.learner.dropped


# -------------------------------------------------------------------------------------------- learning


@given(
    drawn=logs,
    growth=growths,
    group=st.integers(1, 90),
    cuts=st.sets(st.integers(1, 79)),
    crashes=st.sets(st.integers(0, 80)),
    kind=st.sampled_from(["biased_mf", "baseline", "stack"]),
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
    assert host.learner.overdue is None
    host._make = lambda: Guarded("biased_mf", GrowthConfig(max_users=10), 7).learner
    host.crash()
    assert host.learner.overdue is not None and len(host.learner.rows["user"]) > 10
    host.put(batch([[T0 + 90, "", "u0", "i0", "rating", 3.0, 0, 1]]))
    assert len(host.learner.rows["user"]) <= 10 and len(host.rows) <= 13
    host.crash()
    assert host.learner.overdue == {"": 50}  # nobody has written anything


def test_without_bounds_a_header_names_none() -> None:
    host = Host(config=config(GrowthConfig()))
    host.put(batch([[T0, "", "ann", "tea", "rating", 3.0, 0, 1]]))
    assert not {"growth", "dropped"} & set(orjson.loads(unseal("", "header", host.header or b"")))


# -------------------------------------------------------------------------------------------- the tail

tails = st.builds(
    GrowthConfig,
    max_users=st.none() | st.integers(1, 20),
    max_items=st.none() | st.integers(1, 20),
    expire_after=st.none() | st.integers(1, 40_000),
    min_events=st.integers(2, 4),
    tail_rows=st.integers(1, 20),
    tail_counters=st.just(256) | st.just(65_536),
)


@given(
    drawn=logs,
    growth=tails,
    group=st.integers(1, 90),
    cuts=st.sets(st.integers(1, 79)),
    crashes=st.sets(st.integers(0, 80)),
    case=st.sampled_from([("biased_mf", "SGD"), ("funk_mf", "Adam"), ("stack", "")]),
)
def test_who_gets_a_row_follows_from_the_order_of_events(
    drawn: list[tuple[int, int, int, float]],
    growth: GrowthConfig,
    group: int,
    cuts: set[int],
    crashes: set[int],
    case: tuple[str, str],
) -> None:
    log = log_of(drawn)
    expected = Host(*case, config(growth))
    for event in log:
        expected.put(batch([[*event]]))
    host = Guarded(case[0], growth, group, case[1])
    bounds = sorted({0, len(log), *(cut for cut in cuts if cut < len(log))})
    for number, (start, stop) in enumerate(itertools.pairwise(bounds)):
        if number in crashes:
            host.crash()
        host.put(batch([[*event] for event in log[start:stop]]))
    assert host.outcome == expected.outcome
    summary = host.learner.summary()
    for family, count in (("user", summary["users"]), ("item", summary["items"])):
        assert count == len([of for f, of in host.rows if f == family and tail_number(of) is None])


@given(drawn=logs, least=st.integers(2, 4), shared=st.integers(1, 20))
def test_the_tail_is_what_it_says(drawn: list[tuple[int, int, int, float]], least: int, shared: int) -> None:
    """Against a learner that is told the rows, and a counter that counts; so many counters do not collide."""
    log = log_of(drawn)
    host = Host(config=config(GrowthConfig(min_events=least, tail_rows=shared)))
    host.put(batch([[*event] for event in log]))
    told, counts = Host(config=LearnerConfig(run_id="run")), Counter[tuple[str, str]]()
    for event in log:
        routed, heirs = [*event], []
        for column, family in ((2, "user"), (3, "item")):
            row_id, ids = event[column], told.learner.model.ids[family]
            tail = tail_id(zlib.crc32(row_id.encode() + b"\0") % shared)
            if row_id in ids:
                continue
            if counts[family, row_id] < least - 1:
                counts[family, row_id] += 1
                routed[column] = tail
            elif tail in ids:
                told.learner.model.decode_rows(family, [row_id], [rows_of(told.learner.model, family, tail).tobytes()])
                heirs.append((family, row_id))
        [learned] = told.learner.process(batch_of([routed], [b"line"]))
        if learned.dead_letters:
            for family, row_id in heirs:
                told.learner.model.drop(family, [row_id])
    for family in ("user", "item"):
        mine, theirs = host.learner.model.ids[family], told.learner.model.ids[family]
        assert set(mine) == set(theirs)
        for row_id in mine:
            row, expected = host.learner.rows[family][row_id], told.learner.rows[family][row_id]
            assert (row.count, row.updated_at, row.seq) == (expected.count, expected.updated_at, expected.seq)
            of_both = [rows_of(of.learner.model, family, row_id).tobytes() for of in (host, told)]
            assert of_both[0] == of_both[1]


def test_what_users_have_seen_are_items_and_shared_rows_have_seen_nothing() -> None:
    host = Host(config=config(GrowthConfig(min_events=3, tail_rows=1)))
    for at in range(6):
        host.put(batch([[T0 + at, "", "ann", f"i{at}", "rating", 3.0, 0, at]]))
    assert host.learner.rows["user"]["ann"].seen == ("i3", "i4", "i5")
    assert host.learner.rows["user"]["ann"].count == 4
    assert host.learner.rows["user"][tail_id(0)].seen == ()
    assert set(host.learner.rows["item"]) == {tail_id(0)}
    assert (host.learner.summary()["users"], host.learner.summary()["items"]) == (1, 0)


@given(
    ids=st.lists(st.integers(0, 40), max_size=200),
    cut=st.integers(0, 200),
)
def test_counters_are_never_too_low_and_can_be_taken_up(ids: list[int], cut: int) -> None:
    tail, again = Tail(3, 8, 512), Tail(3, 8, 512)
    counts = Counter[int]()
    stored: dict[int, bytes] = {}
    for at, number in enumerate(ids):
        if at == cut:
            for block, counters in stored.items():
                again.restore(block, counters)
            again.added = tail.added
            tail, again = again, tail
        if tail.is_full:
            tail.age()
            counts = Counter({of: count // 2 for of, count in counts.items()})
        tail.count(f"i{number}")
        counts[number] += 1
        stored |= dict(tail.changed())
        assert all(tail.is_due(f"i{of}") for of, count in counts.items() if count >= 2)


def test_a_state_with_a_tail_needs_one() -> None:
    host = Host(config=config(GrowthConfig(min_events=2)))
    host.put(batch([[T0, "", "ann", "tea", "rating", 3.0, 0, 1]]))
    host._make = lambda: Learner(config(GrowthConfig()), made("biased_mf", "SGD"))
    with pytest.raises(ValueError, match=r"growth\.min_events above 1, this job has 1"):
        host.crash()


def test_few_ids_are_taken_for_others() -> None:
    """Of ids that came once among as many as are remembered, few look as if they had come before."""
    tail = Tail(2, 1, 65_536)
    wrong = 0
    for number in range(16_384):
        wrong += tail.is_due(f"{number}")
        tail.count(f"{number}")
    assert tail.is_full and wrong < 0.05 * 16_384


def test_a_block_too_many_is_refused() -> None:
    with pytest.raises(ValueError, match="block 4 of 256 counters has no place among 4"):
        Tail(2, 1, 1_024).restore(4, bytes(256))


@pytest.mark.parametrize("row_id", ["a", "a:b", "tail 7", "", ":", tail_id(7)])
def test_names_in_the_state_can_be_read(row_id: str) -> None:
    name = state_name("user", row_id)
    assert from_state_name(name) == ("user", row_id)
    assert name.encode()


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
    assert learner.rows["user"].seen.places <= 1_024
    tables = [*model._columns["user"], *model._columns["item"]]  # type: ignore[attr-defined]
    assert all(len(rows) <= 500 for rows, _ in tables)
    assert len(host.rows) <= 600
    assert made("biased_mf", optimizer).header() != model.header()
