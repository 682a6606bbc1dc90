"""Hostile input, a few seconds of it; ``python -m tests.fuzz`` has a million lines."""

from __future__ import annotations

import functools

import pytest

from tests.fuzz import hostile
from tests.fuzz.hostile import Hostile, obvious
from tests.fuzz.trial import MAX_WEIGHT, Trial, Violation
from tests.udfs.cases import made

LINES = 2_400


@pytest.mark.parametrize(
    ("kind", "optimizer"),
    [("biased_mf", "SGD"), ("biased_mf", "Adam"), ("funk_mf", "Momentum"), ("baseline", "AdaGrad")],
)
@pytest.mark.parametrize("max_value", [5.0, 1e15])
def test_hostile_lines_leave_weights_finite_and_the_ledger_balanced(
    kind: str, optimizer: str, max_value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hostile, "HEAVY", 50)
    model = functools.partial(made, kind, optimizer, MAX_WEIGHT)
    trial = Trial(len(kind), max_value=max_value, model=model)
    for number in range(4):
        trial.feed(LINES // 4, csv=number == 2)
        trial.crash()
    trial.finish()
    assert trial.compared > LINES // 10
    assert 0.4 < trial.of_crowd / trial.fed < 0.6
    assert {"not_json", "not_csv", "invalid_id", "id_too_long", "late", "duplicate"} <= set(trial.outcomes)
    assert max_value > 5 or trial.learner.learned > LINES // 2


def test_what_is_rejected_leaves_no_trace() -> None:
    """The lines that were learned, by themselves, give the same rows."""
    lines = [line for _, line in zip(range(LINES), iter(Hostile(3).json_line, None), strict=False)]
    trial, alone = Trial(0), Trial(0)
    trial.put(lines)
    trial.finish()
    alone.put([line for number, line in enumerate(lines, 1) if number not in trial.refused])
    alone.finish()
    assert sum(alone.outcomes.values()) == 0
    assert alone.rows == trial.rows


def test_the_slow_parser_is_another_one() -> None:
    assert obvious(b'{"user_id":1,"item_id":"i","timestamp":1700000000}', 5.0) == (
        1_700_000_000_000, "", "1", "i", "view", 1.0,
    )  # fmt: skip
    assert [obvious(line, 5.0) for line in (b'{"user_id":NaN}', b'{"user_id":"\\ud800"}', b"[]", b"{}")] == [
        "not_json", "not_json", "not_object", "missing_id",
    ]  # fmt: skip


def test_a_violation_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    trial = Trial(1)
    monkeypatch.setattr("udfs.deadletters.base64.b64encode", lambda raw: b"eA==")
    with pytest.raises(Violation, match="is not what its dead letter holds"):
        trial.feed(500)
