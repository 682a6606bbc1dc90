"""Jobs under faults need what other jobs need."""

from tests.flink.conftest import flink_process

__all__ = ["flink_process"]
