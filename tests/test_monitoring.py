"""What is shipped for Prometheus and Grafana speaks of metrics that there are, and the docs of all of them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.test_docs import name_of, rows
from udfs.telemetry import FLINK, METRICS

MONITORING = Path(__file__).parents[1] / "deploy" / "monitoring"
OURS = {metric.prometheus: metric for metric in METRICS}
NAME = re.compile(r"flink_\w+")


def expressions(file: str) -> list[str]:
    if file == "alerts.yaml":
        text = (MONITORING / file).read_text()
        return re.findall(r"expr: (?:>-\n)?((?:.+\n?)+?)(?=        (?:for|labels):)", text)
    return list(queries(json.loads((MONITORING / file).read_text())))


def queries(node: Any) -> Iterator[str]:
    """The queries of a dashboard, wherever in it."""
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        if key in ("expr", "query") and isinstance(value, str):
            yield value
        elif isinstance(value, dict | list):
            yield from queries(value)


@pytest.mark.parametrize("file", ["alerts.yaml", "dashboard.json"])
def test_every_metric_that_is_asked_for_exists(file: str) -> None:
    asked = [name for expression in expressions(file) for name in NAME.findall(expression)]
    assert len(asked) > 10
    assert set(asked) <= OURS.keys() | FLINK.keys()


@pytest.mark.parametrize("file", ["alerts.yaml", "dashboard.json"])
def test_labels_that_are_grouped_by_are_those_of_the_metric(file: str) -> None:
    of_flink = {"job_name", "operator_name", "subtask_index", "task_name"}
    for expression in expressions(file):
        asked = [OURS[name] for name in NAME.findall(expression) if name in OURS]
        known = of_flink.union(*(metric.labels for metric in asked))
        for labels in re.findall(r"by \(([^)]*)\)", expression):
            assert {label.strip() for label in labels.split(",")} <= known, expression


def test_the_dashboard_shows_every_metric() -> None:
    text = " ".join(expressions("dashboard.json"))
    shown = set(NAME.findall(text))
    counted = {name for name in OURS if name.endswith("_count")}  # what a mean is divided by, where one is shown
    assert OURS.keys() - counted <= shown
    assert FLINK.keys() - {"flink_jobmanager_job_runningTime"} <= shown


def test_there_is_an_alert_for_each_thing_that_goes_wrong() -> None:
    text = (MONITORING / "alerts.yaml").read_text()
    names = re.findall(r"alert: (\w+)", text)
    assert len(names) == len(expressions("alerts.yaml")) == len(set(names))
    assert {"FreshetNoProgress", "FreshetCheckpointOld", "FreshetDeadLetters", "FreshetLag"} <= set(names)
    assert "FreshetRedisRetries" in names


def test_the_docs_list_every_metric_and_no_other() -> None:
    prefix = "flink_taskmanager_job_task_operator_freshet_"
    listed = {name_of(row): row[1:] for row in rows("metrics.md")}
    ours = {
        name.removeprefix(prefix): [", ".join(f"`{label}`" for label in metric.labels), metric.unit, metric.help]
        for name, metric in OURS.items()
    }
    assert listed == ours | {name: [meaning] for name, meaning in FLINK.items()}
