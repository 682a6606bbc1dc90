"""Who may import whom, read from the source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = ("serving", "udfs", "flink_jobs", "tests", "benchmarks")
ALLOWED = {
    "serving": {"serving"},
    "udfs": {"serving", "udfs"},
    "flink_jobs": {"serving", "udfs", "flink_jobs"},
}
MODULES = [path for room in ALLOWED for path in sorted((ROOT / room).rglob("*.py"))]


def imported(path: Path) -> Iterator[str]:
    """The top-level package of each import of a module, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield (node.module or "").split(".")[0]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_room_imports_only_what_it_may(path: Path) -> None:
    room = path.relative_to(ROOT).parts[0]
    used = set(imported(path))
    assert used & set(OURS) <= ALLOWED[room]
    if room == "serving":
        assert not used & {"pyflink", "river", "rich", "pydantic"}
    if room == "udfs" and path.name != "functions.py":
        assert "pyflink" not in used


def test_the_rooms_were_found() -> None:
    assert {path.name for path in MODULES} >= {"client.py", "functions.py", "topology.py"}
    assert "pyflink" in set(imported(ROOT / "udfs" / "functions.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_nothing_is_pickled(path: Path) -> None:
    assert not set(imported(path)) & {"pickle", "cloudpickle", "dill", "joblib", "shelve"}
