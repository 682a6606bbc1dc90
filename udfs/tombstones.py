"""What is left of a deleted user: enough to keep what was deleted from coming back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import orjson

from serving.schema import Keys, script
from udfs.requests import Request

_PER_CALL: Final = 500


class Tombstone(NamedTuple):
    """What must not come back of a user who was deleted.

    Attributes
    ----------
    number
        Of the request: the tombstone of a later one takes its place.
    seq
        Of the shard at that moment: rows of this ``seq`` and before.
    part, bound
        Windows of this part that begin at ``bound`` (ms) or before, and those of parts before: see
        :class:`~udfs.batch.Deletion`.
    """

    number: int
    seq: int
    part: int
    bound: int

    def encode(self) -> bytes:
        """
        >>> Tombstone.decode(Tombstone(1, 2, 3, 4).encode())
        Tombstone(number=1, seq=2, part=3, bound=4)
        """
        return orjson.dumps(list(self))

    @classmethod
    def decode(cls, blob: bytes) -> Tombstone:
        return cls(*orjson.loads(blob))

    def text(self) -> bytes:
        """As Redis has it.

        >>> Tombstone(9, 2, 3, 4).text()
        b'9 2 3 4'
        """
        return b"%d %d %d %d" % self


# The arguments of the scripts: keys of hashes, and what each script says that it takes for them.
Arguments = tuple[list[str], list[Any]]


def hiding(requests: Sequence[Request], keys: Keys, windows: tuple[int, int] | None = None) -> Arguments:
    """``windows``, once they are known, are part and bound of a :class:`Tombstone`; until then all are held back."""
    rest = "" if windows is None else " {} {}".format(*windows)
    arguments = [word for number, user_id in requests for word in (user_id, number, f"{number} *{rest}")]
    return [keys.user(request.user_id) for request in requests], arguments


def deleting(tombstones: Sequence[tuple[str, Tombstone]], keys: Keys) -> Arguments:
    arguments: list[Any] = []
    for user_id, tombstone in tombstones:
        arguments += (user_id, tombstone.number, tombstone.seq, tombstone.text())
    return [keys.user(user_id) for user_id, _ in tombstones], arguments


def lifting(tombstones: Sequence[tuple[str, Tombstone]]) -> Arguments:
    return [], [word for user_id, tombstone in tombstones for word in (user_id, tombstone.text())]


def hide(connection: Any, keys: Keys, requests: Sequence[Request]) -> None:
    """Removes users from Redis at once, whether a job runs or not: it will delete them for good."""
    for start in range(0, len(requests), _PER_CALL):
        hashes, arguments = hiding(requests[start : start + _PER_CALL], keys)
        connection.eval(script("hide"), 2 + len(hashes), keys.fence, keys.deleted, *hashes, 0, *arguments)
