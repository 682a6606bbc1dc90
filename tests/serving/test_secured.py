"""Redis over TLS, with a user that may only write the prefix and one that may only read it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import redis

from flink_jobs.preparing import purge, reachable
from flink_jobs.settings import SettingsError
from serving import Client, key_from
from serving.connection import connect, server_of, without_password
from serving.identity import fingerprint, hidden, key_of
from serving.schema import Keys
from tests.secured import Secured, certificates, secured_redis
from tests.shells import batch_of, publish
from udfs.entities import history_calls
from udfs.learner import Learner, LearnerConfig, build
from udfs.publisher import Author, Listed, Publisher, draw_submission

PASSWORDS = {"freshet-writer": "w" * 40, "freshet-reader": "r" * 40}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    with secured_redis(tmp_path_factory.mktemp("secured"), PASSWORDS) as running:
        yield running


def learner() -> Learner:
    made = Learner(LearnerConfig(), build("biased_mf", {"n_factors": 2}))
    log = [("ann", "tea", 5.0), ("ann", "rum", 1.0), ("bob", "gin", 4.0), ("bob", "tea", 4.0)]
    for _ in made.process(batch_of([[n, "", u, i, "rating", y, 0, n] for n, (u, i, y) in enumerate(log)])):
        pass
    return made


def test_the_writer_writes_the_prefix_and_the_reader_looks_up(server: Secured) -> None:
    writer = reachable(server.url("freshet-writer"))
    purge(writer, Keys("freshet"))
    submission = draw_submission(writer, Keys("freshet"), 1)
    publisher, author = Publisher(server.url("freshet-writer"), "freshet", submission), Author(Keys("freshet"), 0, 1, 7)
    publish(publisher, learner())
    publisher.take_over(author)
    publisher.learned(author, Listed(), {}, reached=b"{}", notes=history_calls(learner(), author, now=1))
    client = Client(server.url("freshet-reader"))
    user, item = client.user("ann"), client.item("tea")
    assert user is not None and user.learned is not None and user.learned.count == 2
    assert item is not None and np.all(np.isfinite(item.learned[0].vector))
    assert [r.item_id for r in client.recommend("ann", 3).items] == ["gin"]
    assert client.recommend("nobody", 1).items and client.similar("tea", 2) and client.score("ann", ["gin"])["gin"]
    assert [(of.time, of.seq) for of in client.metrics()] == [(1, 4)]
    purge(writer, Keys("freshet"))
    assert client.user("ann") is None and not client.metrics()


@pytest.mark.parametrize("command", [("SET", "freshet:x", "1"), ("DEL", "freshet:user:a"), ("EVAL", "return 1", "0")])
def test_the_reader_may_change_nothing(server: Secured, command: tuple[str, ...]) -> None:
    with pytest.raises(redis.exceptions.NoPermissionError):
        connect(server.url("freshet-reader")).execute_command(*command)


@pytest.mark.parametrize(
    "command",
    [
        ("SET", "other:x", "1"),
        ("HGETALL", "other:user:a"),
        ("EVAL", "return redis.call('GET', KEYS[1])", "1", "other:x"),
        ("EVAL", "return redis.call('GET', 'other:x')", "0"),
        ("FLUSHALL",),
        ("CONFIG", "GET", "*"),
        ("ACL", "LIST"),
        ("KEYS", "*"),
    ],
)
@pytest.mark.parametrize("user", list(PASSWORDS))
def test_neither_may_do_anything_elsewhere(server: Secured, user: str, command: tuple[str, ...]) -> None:
    with pytest.raises(redis.exceptions.ResponseError, match=r"(?i)permission|no permissions|ACL|can't access"):
        connect(server.url(user)).execute_command(*command)


def test_nobody_comes_in_without_a_password_or_without_tls(server: Secured) -> None:
    with pytest.raises(redis.exceptions.AuthenticationError):
        connect(f"rediss://localhost:{server.port}?ssl_ca_certs={server.ca}").ping()
    with pytest.raises(redis.exceptions.ConnectionError):
        connect(f"redis://localhost:{server.port}").ping()


def test_a_server_that_is_not_trusted_is_told_no_password(server: Secured, tmp_path: Path) -> None:
    other, _, _ = certificates(tmp_path)
    with pytest.raises(redis.exceptions.ConnectionError, match="CERTIFICATE_VERIFY_FAILED"):
        connect(server.url("freshet-reader").replace(str(server.ca), str(other))).ping()
    with pytest.raises(
        redis.exceptions.ConnectionError, match=r"(?i)mismatch|IP address"
    ):  # no name of its certificate
        connect(server.url("freshet-reader", host="127.0.0.1")).ping()


def test_a_wrong_password_is_not_shown(server: Secured, tmp_path: Path) -> None:
    (tmp_path / "password").write_text("a-wrong-canary\n")
    url = server.url("freshet-writer").replace(str(server.passwords["freshet-writer"]), str(tmp_path / "password"))
    with pytest.raises(SettingsError, match="refused the login") as caught:
        reachable(url)
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize("content", [None, b"", b"\n", b"\xff\xfe"])
def test_a_file_without_a_password_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "password"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SettingsError, match=rf"password_file {path} (can't be read|is empty)"):
        reachable(f"redis://localhost/0?password_file={path}")


def test_a_certificate_that_is_no_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"ssl_ca_certs names {tmp_path}/none, which is no file"):
        connect(f"rediss://localhost/0?ssl_ca_certs={tmp_path}/none")


def test_what_a_url_may_show() -> None:
    assert without_password("rediss://u@h/0?password_file=/f&password=s3cret") == "rediss://u@h/0?password_file=/f"
    assert server_of("redis://:s3cret@h/0?db=2") == "redis://:***@h/0?db=2"


def test_keys_of_ids(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("  0123456789abcdef0123456789abcdef\n")
    key = key_from(path)
    assert key == key_of("0123456789abcdef0123456789abcdef")
    assert hidden("ann", key) != hidden("ann", key + b"0") and len(hidden("ann", key)) == 32
    assert fingerprint(key) not in hidden("ann", key)
    path.write_text("short-canary")
    with pytest.raises(ValueError, match="has 12 bytes, and needs 16 or more") as caught:
        key_from(path)
    assert "canary" not in str(caught.value)
    with pytest.raises(ValueError, match="can't be read: No such file"):
        key_from(tmp_path / "none")
