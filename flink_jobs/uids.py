"""Uids for operators that SQL makes.

SQL operators have no stable uid of their own. The ones behind a stream are named here by their place in the
query and by their kind, which are the same for the same query, whatever else ran in the JVM and at any
parallelism. So a savepoint taken with open windows finds them again.
"""

from __future__ import annotations

import re
from typing import Any

from pyflink.datastream import DataStream


def pin_uids(stream: DataStream, prefix: str) -> None:
    """Gives each operator upstream of ``stream`` that has no uid yet one that starts with ``prefix``."""
    seen: set[int] = set()
    pending: list[Any] = [stream._j_data_stream.getTransformation()]
    number = 0
    while pending:
        transformation = pending.pop()
        if transformation.getId() in seen:
            continue
        seen.add(transformation.getId())
        kind = transformation.getClass().getSimpleName()
        if transformation.getUid() is None and kind in _WITH_OPERATOR:
            name = re.sub(r"\[\d+\]|\W+", "-", str(transformation.getName()))[:60]
            transformation.setUid(f"{prefix}-{number}-{name}")
            number += 1
        pending.extend(transformation.getInputs())


# Transformations without an operator (partition, union, side output) can't have a uid.
_WITH_OPERATOR = (
    "OneInputTransformation",
    "TwoInputTransformation",
    "SourceTransformation",
    "LegacySourceTransformation",
    "TimestampsAndWatermarksTransformation",
)
