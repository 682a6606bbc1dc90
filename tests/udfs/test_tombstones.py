"""Tombstones in a real Redis: what was deleted does not come back, what is new is not held back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from serving import Client
from serving.schema import Keys
from tests.shells import publish
from tests.udfs.test_publisher import EVENTS, T0, learner_of, tile
from udfs.entities import tile_entities
from udfs.learner import Learned
from udfs.publisher import Fenced, Publisher
from udfs.requests import Request
from udfs.tombstones import Tombstone, hide

MINUTES = 300_000
ANN, BOB = "p:user:ann", "p:user:bob"
STONE = Tombstone(number=9, seq=4, part=1, bound=T0)


@pytest.fixture
def publisher(redis_url: str, redis_connection: Any) -> Any:
    publisher = Publisher(redis_url, "p")
    yield publisher
    publisher.close()


def tiles(publisher: Publisher, *starts: int, part: int = 1, user: str = "ann", span: str = "5m") -> None:
    records = [tile("user", span, user, start) for start in starts] + [tile("item", span, "tea", starts[0])]
    for record in records:
        publisher.tiles(tile_entities([record], publisher.keys, ["view"], part), {"5m": 10**13}, part)


def fields(connection: Any, key: str = ANN) -> set[str]:
    return {name.decode() for name in connection.hkeys(key)}


def test_a_deleted_user_is_gone_and_older_rows_are_ignored(publisher: Publisher, redis_connection: Any) -> None:
    learner = learner_of(EVENTS)
    publish(publisher, learner)
    tiles(publisher, T0)
    publisher.delete({"ann": STONE, "never:seen": STONE})
    assert redis_connection.hgetall("p:deleted") == {
        b"ann": b"9 4 1 %d" % T0,
        b"never:seen": b"9 4 1 %d" % T0,
    }

    def found() -> dict[bytes, dict[bytes, bytes]]:
        users = {key: redis_connection.hgetall(key) for key in redis_connection.keys("p:user:*")}
        return {key: {name: user[name] for name in user if name != b"version"} for key, user in users.items()}

    others = found()
    assert ANN.encode() not in others and BOB.encode() in others
    publish(publisher, learner)  # a replay, or a Redis that was put back
    assert not redis_connection.exists(ANN) and Client(redis_connection, "p").user("ann") is None
    assert found() == others
    assert redis_connection.exists("p:item:rum", "p:model:0") == 2


def test_a_user_who_comes_back_is_published(publisher: Publisher, redis_connection: Any) -> None:
    publish(publisher, learner_of(EVENTS[:2]))
    publisher.delete({"ann": Tombstone(9, 2, 0, 0)})
    later = learner_of([("bob", "tea", 4.0), ("bob", "rum", 4.0), ("ann", "gin", 3.0)])
    publish(publisher, later)
    state = Client(redis_connection, "p").user("ann")
    assert state is not None and state.learned is not None and (state.learned.count, list(state.seen)) == (1, ["gin"])
    publisher.delete({"ann": Tombstone(9, 2, 0, 0)})  # a replay
    publisher.delete({"ann": Tombstone(8, 1, 0, 0)})  # of an earlier request
    assert redis_connection.hget(ANN, "seen") == b'["gin"]'
    assert redis_connection.hget("p:deleted", "ann").startswith(b"9 ")
    publisher.delete({"ann": Tombstone(10, 3, 0, 0)})
    assert not redis_connection.exists(ANN)


def test_windows_that_may_hold_something_of_before_are_left_out(publisher: Publisher, redis_connection: Any) -> None:
    publisher.delete({"ann": STONE})
    tiles(publisher, T0 - MINUTES, T0, user="ann")
    tiles(publisher, T0 + MINUTES, part=0)
    assert not redis_connection.exists(ANN) and redis_connection.exists("p:item:tea")
    tiles(publisher, T0 - MINUTES, T0 + MINUTES)
    assert fields(redis_connection) == {f"t:5m:{T0 + MINUTES}:1", "pruned"}
    tiles(publisher, 0, part=2)
    assert f"t:5m:{0}:2" in fields(redis_connection)
    tiles(publisher, 0, user="bob")
    assert "t:5m:0:1" in fields(redis_connection, BOB)


def test_a_session_that_began_before_is_left_out(publisher: Publisher, redis_connection: Any) -> None:
    publisher.delete({"ann": STONE})
    tiles(publisher, T0, span="session")
    assert not redis_connection.exists(ANN)
    tiles(publisher, T0 + 1, span="session")
    assert fields(redis_connection) == {"session", "session_end"}


def test_who_is_hidden_is_not_written_until_the_job_has_deleted(publisher: Publisher, redis_connection: Any) -> None:
    learner = learner_of(EVENTS)
    publish(publisher, learner)
    keys = Keys("p")
    hide(redis_connection, keys, [Request(9, "ann"), *(Request(10 + n, f"u{n}") for n in range(1_200))])
    assert redis_connection.hlen("p:deleted") == 1_201
    assert redis_connection.hget("p:deleted", "ann") == b"9 *" and not redis_connection.exists(ANN)
    publish(publisher, learner)
    tiles(publisher, T0 + MINUTES, part=5)
    assert not redis_connection.exists(ANN) and redis_connection.exists(BOB)
    publisher.delete({"ann": Tombstone(8, 1, 0, 0)})  # an earlier request, met by a replay
    assert redis_connection.hget("p:deleted", "ann") == b"9 *"
    publisher.delete({"ann": Tombstone(9, 1, 0, 0)})
    publish(publisher, learner)
    assert "count" in fields(redis_connection)
    publisher.hide([Request(9, "ann")])  # a replay that has not come to it yet
    assert "count" in fields(redis_connection)
    publisher.hide([Request(11, "ann")])
    assert not redis_connection.exists(ANN)


def test_windows_are_judged_as_soon_as_their_bound_is_known(publisher: Publisher, redis_connection: Any) -> None:
    publisher.hide([Request(9, "ann")])
    publisher.hide([Request(9, "ann")], (1, T0))
    publisher.hide([Request(9, "ann")])  # the next chunk of a replay
    assert redis_connection.hget("p:deleted", "ann") == b"9 * 1 %d" % T0
    publish(publisher, learner_of(EVENTS))
    tiles(publisher, T0, T0 + MINUTES)
    assert fields(redis_connection) == {f"t:5m:{T0 + MINUTES}:1", "pruned"}
    publisher.delete({"ann": STONE})
    publisher.hide([Request(9, "ann")], (1, 0))
    assert redis_connection.hget("p:deleted", "ann") == STONE.text()
    assert f"t:5m:{T0 + MINUTES}:1" in fields(redis_connection)


def test_a_lost_tombstone_does_not_take_who_came_back(publisher: Publisher, redis_connection: Any) -> None:
    publish(publisher, learner_of(EVENTS))
    stones: Mapping[str, Tombstone] = {"ann": Tombstone(9, 1, 0, 0), "bob": Tombstone(9, 3, 0, 0)}
    publisher.delete(stones)  # ann's row is of seq 2, bob's of 3
    assert redis_connection.exists(ANN) and not redis_connection.exists(BOB)
    assert redis_connection.hlen("p:deleted") == 2


def test_a_tombstone_is_lifted_unless_it_is_another_by_now(publisher: Publisher, redis_connection: Any) -> None:
    publisher.delete({"ann": STONE, "bob": STONE})
    publisher.hide([Request(12, "bob")])
    publisher.lift({"ann": STONE, "bob": STONE, "carl": STONE})
    assert redis_connection.hgetall("p:deleted") == {b"bob": b"12 *"}
    publisher.lift({})


def test_without_tombstones_nothing_is_left_behind(publisher: Publisher, redis_connection: Any) -> None:
    publish(publisher, learner_of([]), Learned({"user": {}, "item": {}}, []))
    publisher.delete({})
    publisher.hide([])
    assert not redis_connection.exists("p:deleted")


def test_a_replaced_job_deletes_nothing(redis_url: str, publisher: Publisher, redis_connection: Any) -> None:
    publish(publisher, learner_of(EVENTS))
    redis_connection.set("p:fence", 5)
    for write in (
        lambda: publisher.delete({"ann": STONE}),
        lambda: publisher.hide([Request(1, "ann")]),
        lambda: publisher.lift({"ann": STONE}),
    ):
        with pytest.raises(Fenced):
            write()
    assert redis_connection.exists(ANN)
    # Who asks for a deletion is no job.
    hide(redis_connection, Keys("p"), [Request(1, "ann")])
    assert not redis_connection.exists(ANN)
