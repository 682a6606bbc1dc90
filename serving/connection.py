"""Connections to Redis, and what to say of them."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit, urlunsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry


def connect(url: str, timeout: float = 10.0) -> Any:
    """A client of the Redis at ``url``: ``redis://``, ``rediss://`` or ``unix://``.

    Raises
    ------
    ValueError
        If the URL has another scheme.
    """
    return redis.Redis.from_url(
        url, socket_timeout=timeout, socket_connect_timeout=timeout, retry=Retry(NoBackoff(), 0), client_name="freshet"
    )


def without_password(url: str) -> str:
    """The URL as it may be shown.

    >>> without_password("redis://app:secret@db:6379/0")
    'redis://app:***@db:6379/0'
    """
    parts = urlsplit(url)
    if parts.password is None:
        return url
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{parts.username or ''}:***@{host}"))
