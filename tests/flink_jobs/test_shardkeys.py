"""Shard keys: balanced at any parallelism, and the same for ever."""

from __future__ import annotations

import math

import pytest

from flink_jobs.shardkeys import MAX_PARALLELISM, key_group, shard_keys, subtask


@pytest.mark.parametrize("shards", range(1, MAX_PARALLELISM + 1))
def test_shards_are_spread_evenly_at_any_parallelism(shards: int) -> None:
    keys = shard_keys(shards)
    assert len(set(keys)) == shards
    groups = [key_group(key) for key in keys]
    for parallelism in range(1, shards + 1):
        loads = [0] * parallelism
        for group in groups:
            loads[group * parallelism // MAX_PARALLELISM] += 1
        if shards % parallelism == 0:
            assert max(loads) == min(loads), (shards, parallelism, loads)
        elif MAX_PARALLELISM % shards == 0:
            assert max(loads) - min(loads) == 1, (shards, parallelism, loads)
        else:
            share = math.ceil(shards / parallelism)
            assert max(loads) <= share + 1, (shards, parallelism, loads)


def test_a_key_goes_where_its_group_goes() -> None:
    assert [subtask(key, 4) for key in shard_keys(4)] == [0, 1, 2, 3]
    assert [subtask(key, 2) for key in shard_keys(4)] == [0, 0, 1, 1]
    assert {subtask(key, 1) for key in shard_keys(4)} == {0}


def test_keys_are_fixed_for_ever() -> None:
    assert MAX_PARALLELISM == 120
    assert shard_keys(1) == ["shard-0-253"]
    assert shard_keys(4) == ["shard-0-253", "shard-1-19", "shard-2-41", "shard-3-2"]
    assert shard_keys(7)[4:] == ["shard-4-285", "shard-5-67", "shard-6-7"]


def test_key_groups_are_flinks() -> None:
    """Values of ``KeyGroupRangeAssignment.assignToKeyGroup`` of Flink 2.3."""
    keys = ["", "a", "freshet", "shard-0-253", "user-4711", "ZZZZZZZZZZ", "1", "shard-119-0"]
    assert [key_group(key) for key in keys] == [94, 1, 118, 0, 98, 71, 46, 114]
    assert {key_group(f"k{n}") for n in range(5_000)} == set(range(MAX_PARALLELISM))
