"""The run before its job: which settings a state binds."""

from __future__ import annotations

import pytest

from flink_jobs.preparing import fixed_settings
from flink_jobs.settings import Layer, SettingsError, resolve
from flink_jobs.state import Manifest, may_go_on


@pytest.mark.parametrize(
    ("name", "value"), [("serving.half_life", "8d"), ("metrics", "MAE"), ("growth.min_events", "2")]
)
def test_what_cannot_be_mixed_stays_the_same(name: str, value: str) -> None:
    manifest = Manifest(epoch=7, prefix="freshet", fixed=fixed_settings(resolve([])))
    may_go_on(manifest, fixed_settings(resolve([Layer("--set", {"metrics": "RMSE,MAE"})])), "generator")
    with pytest.raises(SettingsError, match=rf"^{name}: the state was learned with "):
        may_go_on(manifest, fixed_settings(resolve([Layer("--set", {name: value})])), "generator")
