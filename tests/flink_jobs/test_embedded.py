"""The embedded Redis: its data stays, and nobody starts it twice."""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import redis

from flink_jobs.embedded import EmbeddedRedisError, embedded_redis, socket_path
from serving.connection import connect


def test_data_outlives_the_server(tmp_path: Path) -> None:
    with embedded_redis(tmp_path / "data") as url:
        connect(url).set("k", "v")
    with pytest.raises(redis.exceptions.ConnectionError):
        connect(url).ping()
    with embedded_redis(tmp_path / "data") as again:
        assert again == url and connect(url).get("k") == b"v"


def test_a_server_that_runs_is_shared_and_left_running(tmp_path: Path) -> None:
    with embedded_redis(tmp_path) as url:
        with embedded_redis(tmp_path) as same:
            assert same == url
        assert connect(url).ping()


def test_what_is_learned_of_a_user_is_one_piece_of_memory(tmp_path: Path) -> None:
    with embedded_redis(tmp_path) as url:
        connection = connect(url)
        connection.hset("learned", mapping={str(field): b"x" * 2_000 for field in range(12)})
        connection.hset("with windows", mapping={str(field): b"x" for field in range(100)})
        found = [connection.object("encoding", key) for key in ("learned", "with windows")]
        assert found[0] in (b"ziplist", b"listpack") and found[1] == b"hashtable"


def test_the_last_user_stops_the_server_whoever_started_it(tmp_path: Path) -> None:
    starter, joiner = embedded_redis(tmp_path), embedded_redis(tmp_path)
    url = starter.__enter__()
    assert joiner.__enter__() == url
    starter.__exit__(None, None, None)
    connect(url).set("k", "v")
    joiner.__exit__(None, None, None)
    with pytest.raises(redis.exceptions.ConnectionError):
        connect(url).ping()
    with embedded_redis(tmp_path) as again:
        assert connect(again).get("k") == b"v"


def test_many_come_and_go(tmp_path: Path) -> None:
    def use(number: int) -> None:
        for _ in range(3):
            with embedded_redis(tmp_path) as url:
                connect(url).set(f"k{number}", "v")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(use, range(4)))
    with embedded_redis(tmp_path) as url:
        assert len(connect(url).keys("k*")) == 4


def test_data_folders_have_servers_of_their_own(tmp_path: Path) -> None:
    assert socket_path(tmp_path / "a") != socket_path(tmp_path / "b")
    assert socket_path(tmp_path / "a") == socket_path(tmp_path / "b" / ".." / "a")
    assert len(str(socket_path(tmp_path / ("x" * 200)))) < 100 or "TMPDIR" in os.environ


def test_the_socket_is_private(tmp_path: Path) -> None:
    with embedded_redis(tmp_path) as url:
        path = Path(url.removeprefix("unix://"))
        assert path.stat().st_mode & 0o077 == 0 and path.parent.stat().st_mode & 0o077 == 0


def test_a_server_that_does_not_start_says_where_to_look(tmp_path: Path) -> None:
    (tmp_path / "redis.rdb").write_bytes(b"no database")
    with pytest.raises(EmbeddedRedisError, match=r"did not start; see .*redis.log"), embedded_redis(tmp_path):
        pass
    assert (tmp_path / "redis.log").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="of other systems psutil may not tell")
def test_glibc_is_told_to_join_what_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def tunables(data: Path) -> str:
        with embedded_redis(data) as url:
            process = psutil.Process(connect(url).info("server")["process_id"])
            return process.environ()["GLIBC_TUNABLES"]

    assert "glibc.malloc.mxfast=0" in tunables(tmp_path / "a")
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.arena_max=2")
    assert tunables(tmp_path / "b") == "glibc.malloc.arena_max=2"
