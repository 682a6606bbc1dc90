"""Connections to Redis, and what to say of them."""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

_PASSWORD_FILE: Final = "password_file"


def connect(url: str, timeout: float = 10.0) -> Any:
    """A client of the Redis at ``url``: ``redis://``, ``rediss://`` or ``unix://``.

    What redis-py takes in a URL can be there, such as ``?ssl_ca_certs=PATH``; and ``?password_file=PATH``, a file of
    which the first line is the password. Under ``rediss://`` the server must have a certificate for its name.

    Raises
    ------
    ValueError
        If the URL has another scheme, or a file that it names can't be read.
    """
    options: dict[str, Any] = {}
    query = dict(parse_qsl(urlsplit(url).query))
    if _PASSWORD_FILE in query:
        options["password"] = _first_line(query[_PASSWORD_FILE])
        url = _without(url, {_PASSWORD_FILE, "password"})
    if url.startswith("rediss://"):
        options["ssl_check_hostname"] = True  # redis-py's own default takes anybody's certificate
        for name in ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile"):
            if name in query and not Path(query[name]).is_file():
                raise ValueError(f"redis: {name} names {query[name]}, which is no file")
    return redis.Redis.from_url(
        url,
        socket_timeout=timeout,
        socket_connect_timeout=timeout,
        retry=Retry(NoBackoff(), 0),
        client_name="freshet",
        **options,
    )


def _first_line(path: str) -> str:
    try:
        lines = Path(path).expanduser().read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ValueError(f"redis: {_PASSWORD_FILE} {path} can't be read: {why}") from None
    if not lines or not lines[0]:
        raise ValueError(f"redis: {_PASSWORD_FILE} {path} is empty; its first line is the password")
    return lines[0]


def _without(url: str, names: Container[str]) -> str:
    """The URL without some parts of its query."""
    parts = urlsplit(url)
    kept = [(name, value) for name, value in parse_qsl(parts.query, keep_blank_values=True) if name not in names]
    return urlunsplit(parts._replace(query=urlencode(kept, safe="/:")))


def has_password(url: str) -> bool:
    """Whether the URL itself holds a password.

    >>> has_password("redis://:secret@db"), has_password("rediss://app@db?password_file=/run/secrets/redis")
    (True, False)
    """
    parts = urlsplit(url)
    return parts.password is not None or "password" in dict(parse_qsl(parts.query))


def without_password(url: str) -> str:
    """The URL as it may be shown.

    >>> without_password("redis://app:secret@db:6379/0")
    'redis://app:***@db:6379/0'
    >>> without_password("redis://db?password=secret&db=1")
    'redis://db?db=1'
    """
    if not has_password(url):
        return url
    parts = urlsplit(_without(url, {"password"}) if "password=" in urlsplit(url).query else url)
    if parts.password is None:
        return urlunsplit(parts)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{parts.username or ''}:***@{host}"))


def server_of(url: str) -> str:
    """The URL without what only tells how to log in by files: where a state is, whoever asks.

    >>> server_of("rediss://app@db:6380/0?password_file=/run/secrets/redis&ssl_ca_certs=/etc/ca.pem")
    'rediss://app@db:6380/0'
    """
    names = {name for name, _ in parse_qsl(urlsplit(url).query) if name.startswith("ssl_") or name == _PASSWORD_FILE}
    return without_password(_without(url, names) if names else url)
