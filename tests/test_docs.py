"""The docs say what the code does: reason codes, settings with their defaults, and links."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flink_jobs.sections import Settings, flatten
from udfs.blend import Blend
from udfs.blend import Settings as BlendSettings
from udfs.building import BLEND, DEFAULT_MAX_WEIGHT, FILTERS, OF_BLEND
from udfs.events import REASONS
from udfs.rivermodels import KINDS

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]

# Sections whose keys are the user's, and how the docs write them.
FREE = {"field": "field.NAME", "weight": "weight.TYPE", "flink": "flink.OPTION"}
INNER = {"tiles.keep": "tiles.keep.SPAN", "kafka.properties": "kafka.properties.NAME"}
FIELDS_OF_LETTERS = ("reason", "message", "position", "raw", "key`, `headers`, `timestamp")
OWN = {"model.name": "biased_mf", "model.clip_prediction": "none", "model.max_weight": f"{DEFAULT_MAX_WEIGHT:g}"}


def rows(page: str) -> Iterator[list[str]]:
    """The cells of each table row that begins with a name in backticks."""
    for line in (ROOT / "docs" / page).read_text().splitlines():
        if line.startswith("| `"):
            yield [cell.strip() for cell in line.strip("|").split(" | ")]


def name_of(row: list[str]) -> str:
    return row[0].strip("` ")


def shown(value: Any) -> str:
    if value is None or value == {}:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return ",".join(f"{name}={of}" for name, of in value.items())
    return ",".join(value) if isinstance(value, list) else str(value)


def defaults() -> dict[str, str]:
    """Every setting but the model's, with its default as the docs write it."""
    tree = Settings().model_dump(mode="json")
    known = {FREE[section]: shown(tree.pop(section)) for section in FREE}
    for section, written in INNER.items():
        outer, inner = section.split(".")
        known[written] = shown(tree[outer].pop(inner))
    del tree["model"]
    return known | {name: shown(value) for name, value in flatten(tree).items()}


def same(text: str, value: str) -> bool:
    """Numbers are compared as numbers: 1e15 is 1000000000000000.0."""
    try:
        return float(text) == float(value)
    except ValueError:
        return text == value


def test_every_reason_is_listed_and_no_other() -> None:
    listed = {name_of(row): row[1] for row in rows("dead-letters.md") if len(row) == 2}
    listed = {name: meaning for name, meaning in listed.items() if name not in FIELDS_OF_LETTERS}
    assert listed == dict(REASONS)


def test_every_setting_is_listed_with_its_default_and_no_other() -> None:
    listed = {name_of(row): row[2].strip("`") for row in rows("settings.md") if len(row) == 4}
    listed = {name: default for name, default in listed.items() if not name.startswith("model.")}
    known = defaults()
    assert listed.keys() == known.keys()
    wrong = {name: (listed[name], value) for name, value in known.items() if not same(listed[name], value)}
    assert not wrong


def test_every_parameter_of_the_models_is_listed_with_its_models_and_no_other() -> None:
    listed = {name_of(row): row for row in rows("settings.md") if name_of(row).startswith("model.")}
    own = {name: listed.pop(name)[2].strip("`") for name in OWN}
    assert all(same(own[name], value) for name, value in OWN.items())
    taking: dict[str, set[str]] = {}
    for model, kind in KINDS.items():
        for parameter in inspect.signature(kind.estimator).parameters:
            taking.setdefault(f"model.{parameter}", set()).add(model)
    parameters_of_blend = inspect.signature(Blend).parameters
    of_blend = {name: parameters_of_blend[own].default for name, own in OF_BLEND.items()} | BlendSettings()._asdict()
    numbers = {**FILTERS, BLEND: of_blend}
    for model, parameters in numbers.items():
        for parameter in parameters:
            taking.setdefault(f"model.{parameter}", set()).add(model)
    every = {*KINDS, *numbers}
    documented = {
        name: every if row[1] == "all" else set(re.findall(r"`(\w+)`", row[1])) for name, row in listed.items()
    }
    assert documented == taking
    own = {f"model.{name}": value for of in numbers.values() for name, value in of.items() if name != "n_factors"}
    assert {name: float(listed[name][2].strip("`")) for name in own} == own


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_resolve(page: Path) -> None:
    text = page.read_text()
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), f"{target} in {page.name}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", linked.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", h).strip().lower().replace(" ", "-") for h in headings}, target
