"""The catalogue: one line an item, whatever the file."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest

from flink_jobs.catalogue import load_catalogue
from serving import Client
from serving.schema import Keys
from udfs.reading import InputError

JSONL = (
    b"""\xef\xbb\xbf{"item_id": "tea", "title": "Tea", "tags": ["hot"]}
{"item_id": 7, "title": "Seven"}

{"title": "nobody"}
{"item_id": ""}
{"item_id": true}
{"item_id": 1.5}
[1]
not json
{"item_id": "tea", "title": "Green tea"}
{"item_id": "deep", "in": """
    + b"[" * 300
    + b"]" * 300
    + b"""}
"""
)
CSV = '\ufeffitem_id,title\r\ntea,"Tea, hot"\r\n,nobody\r\ncaf\u00e9,x\r\n'.encode()


def titles(connection: Any, *ids: str) -> list[Any]:
    states = Client(connection, "p").items(ids)
    return [(state.catalogue or {}).get("title") if (state := states[i]) else None for i in ids]


@pytest.mark.parametrize("packed", [False, True])
def test_json_lines(tmp_path: Path, redis_connection: Any, packed: bool) -> None:
    path = tmp_path / ("items.jsonl.gz" if packed else "items.jsonl")
    path.write_bytes(gzip.compress(JSONL) if packed else JSONL)
    assert load_catalogue(path, redis_connection, Keys("p")) == (3, 7)
    assert titles(redis_connection, "tea", "7", "x") == ["Green tea", "Seven", None]
    tea = Client(redis_connection, "p").item("7")
    assert tea is not None and tea.catalogue == {"item_id": "7", "title": "Seven"} and tea.learned == {}


def test_csv(tmp_path: Path, redis_connection: Any) -> None:
    path = tmp_path / "items.csv"
    path.write_bytes(CSV)
    assert load_catalogue(path, redis_connection, Keys("p")) == (2, 1)
    assert titles(redis_connection, "tea", "caf\u00e9") == ["Tea, hot", "x"]


def test_csv_rows_of_another_length(tmp_path: Path, redis_connection: Any) -> None:
    path = tmp_path / "items.csv"
    path.write_bytes(b"item_id,title\ntea\nrum,Rum,and,more\n")
    assert load_catalogue(path, redis_connection, Keys("p")) == (1, 1)
    assert titles(redis_connection, "tea", "rum") == [None, None]


def test_many_items(tmp_path: Path, redis_connection: Any) -> None:
    path = tmp_path / "items.jsonl"
    path.write_bytes(b"".join(b'{"item_id":%d}\n' % n for n in range(4_001)))
    assert load_catalogue(path, redis_connection, Keys("p")) == (4_001, 0)
    assert len(redis_connection.keys("p:item:*")) == 4_001


def test_a_csv_that_is_none_is_named(tmp_path: Path, redis_connection: Any) -> None:
    path = tmp_path / "items.csv"
    path.write_bytes(b"item_id,title\ntea," + b"x" * 200_000 + b"\n")
    with pytest.raises(InputError, match=r"--items: .*items.csv is not CSV: field larger"):
        load_catalogue(path, redis_connection, Keys("p"))


def test_files_that_are_none(tmp_path: Path, redis_connection: Any) -> None:
    with pytest.raises(InputError, match=r"--items: there is no file"):
        load_catalogue(tmp_path / "absent.csv", redis_connection, Keys("p"))
    (tmp_path / "items.txt").touch()
    with pytest.raises(InputError, match=r"--items: .*items.txt ends in none of"):
        load_catalogue(tmp_path / "items.txt", redis_connection, Keys("p"))
