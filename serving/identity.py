"""Ids of users that are kept under a key, so that neither Redis nor a log tells who they are."""

from __future__ import annotations

import hmac
from pathlib import Path
from typing import Final

_DIGITS: Final = 32  # 128 bits: no two of a billion users meet
_LEAST: Final = 16


def hidden(user_id: str, key: bytes) -> str:
    """What stands for a user: HMAC-SHA256 of the id's UTF-8 bytes, its first 32 hexadecimal digits. Fixed for ever.

    >>> hidden("42", b"a key of 16 bytes or more")
    '23d2d0df7e48e6c38bdc4173b47c6157'
    """
    return hmac.digest(key, user_id.encode(), "sha256").hex()[:_DIGITS]


def key_of(text: str) -> bytes:
    """A key from its text, surrounding white space left out.

    Raises
    ------
    ValueError
        If it is too short to be one; the message does not hold it.
    """
    key = text.strip().encode()
    if len(key) < _LEAST:
        raise ValueError(f"the key has {len(key)} bytes, and needs {_LEAST} or more: `openssl rand -hex 32` makes one")
    return key


def key_from(path: Path) -> bytes:
    """A key from a file.

    Raises
    ------
    ValueError
        If it can't be read, or holds none.
    """
    try:
        return key_of(path.read_text())
    except OSError as error:
        raise ValueError(f"{path} can't be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not text: write the key in hexadecimal digits or base64") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def fingerprint(key: bytes) -> str:
    """Tells one key from another, and nothing else of it."""
    return hidden("", key)[:16]
