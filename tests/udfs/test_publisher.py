"""Publishing to a real Redis: whole values, compared and set; and nothing dropped."""

from __future__ import annotations

import socket
import threading
from pathlib import Path
from typing import Any

import orjson
import pytest

from serving.schema import Field, Keys, decode_tiles, decode_vector, tile_field, version
from tests.shells import batch_of, publish
from tests.udfs.cases import rows_of
from udfs.entities import tile_entities
from udfs.learner import Learned, Learner, LearnerConfig, build
from udfs.publisher import Author, Entity, Fenced, Listed, Lost, Publisher, PublishError, draw_submission
from udfs.tilefeed import RECORD, UNIT, escape, paired
from udfs.tombstones import Tombstone

T0 = 1_700_000_000_000
EPOCH = 7
HOUR = 3_600_000


@pytest.fixture
def publisher(redis_url: str, redis_connection: Any) -> Any:
    publisher = Publisher(redis_url, "p")
    yield publisher
    publisher.close()


def write(
    publisher: Publisher,
    entities: list[Entity],
    items: dict[str, int] | None = None,
    header: Entity | None = None,
) -> None:
    author = Author(publisher.keys, 0, 1, EPOCH)
    publisher.take_over(author)
    publisher.learned(author, Listed(entities), items or {}, reached=b"{}", header=header)


def learner_of(events: list[tuple[str, str, float]], kind: str = "biased_mf") -> Learner:
    learner = Learner(LearnerConfig(run_id="r"), build(kind, {"n_factors": 3} if kind != "baseline" else {}))
    rows = [[T0 + n, "", user, item, "rating", y, 0, n] for n, (user, item, y) in enumerate(events)]
    list(learner.process(batch_of(rows)))
    return learner


EVENTS = [("ann", "tea", 5.0), ("ann", "rum", 1.0), ("bob", "tea", 4.0), ("\x00\u00e9:\n", "user:1", 2.0)]


def test_every_field_of_a_user_and_an_item(publisher: Publisher, redis_connection: Any) -> None:
    learner = learner_of(EVENTS)
    publish(publisher, learner)
    user = redis_connection.hgetall("p:user:ann")
    assert set(user) == {b"version", b"count", b"updated_at", b"bias", b"vector", b"shard", b"seen"}
    assert (user[b"count"], user[b"updated_at"], user[b"shard"]) == (b"2", str(T0 + 1).encode(), b"0")
    assert user[b"version"] == version(EPOCH, 1, 2)
    assert orjson.loads(user[b"seen"]) == ["tea", "rum"]
    weights = rows_of(learner.model, "user", "ann")
    assert float(user[b"bias"]) == learner.model.biases("user", weights)[0]
    expected = learner.model.vectors("user", weights)[0].astype("f4")
    assert decode_vector(user[b"vector"]).tolist() == expected.tolist()
    item = redis_connection.hgetall("p:item:tea")
    assert set(item) == {b"version", b"count", b"updated_at", b"bias", b"vector", b"popularity"}
    assert float(item[b"popularity"]) == learner.rows["item"]["tea"].popularity
    assert item[b"version"] == version(EPOCH, 1, 3)
    assert redis_connection.zrange("p:items:0", 0, -1, withscores=True) == [
        (b"rum", 2.0),
        (b"tea", 3.0),
        (b"user:1", 4.0),
    ]
    assert redis_connection.exists("p:user:\x00\u00e9:\n", "p:item:user:1") == 2


def test_the_header_of_a_shard(publisher: Publisher, redis_connection: Any) -> None:
    learner = learner_of(EVENTS)
    publish(publisher, learner)
    header = redis_connection.hgetall("p:model:0")
    assert float(header[b"global_mean"]) == 3.0 and header[b"model"] == b"biased_mf"
    assert (header[b"n_factors"], header[b"shards"], header[b"seq"]) == (b"3", b"1", b"4")
    assert (header[b"users"], header[b"items"], header[b"updated_at"]) == (b"3", b"3", str(T0 + 3).encode())
    assert orjson.loads(header[b"metrics"])["n"] == 4
    assert orjson.loads(header[b"summary"])["counts"]["learned"] == 4
    assert header[b"version"] == version(EPOCH, 1, 4)


def test_a_model_without_factors_has_no_vectors(publisher: Publisher, redis_connection: Any) -> None:
    publish(publisher, learner_of(EVENTS, "baseline"))
    assert not redis_connection.hexists("p:user:ann", "vector")
    assert not redis_connection.hexists("p:item:tea", "vector")
    assert redis_connection.hget("p:model:0", "n_factors") == b"0"


def test_fields_of_an_item_are_by_shard(publisher: Publisher, redis_connection: Any) -> None:
    publish(publisher, learner_of(EVENTS[:2]), shards=2)
    publish(publisher, learner_of(EVENTS[2:3]), shard=1, shards=2)
    item = redis_connection.hgetall("p:item:tea")
    names = ("version", "count", "updated_at", "bias", "vector", "popularity")
    assert set(item) == {f"{name}:{shard}".encode() for name in names for shard in (0, 1)}
    assert redis_connection.hget("p:user:bob", "shard") == b"1"
    assert redis_connection.hexists("p:user:bob", "vector")


def test_an_older_version_is_ignored(publisher: Publisher, redis_connection: Any) -> None:
    def put(number: int, value: str) -> None:
        write(
            publisher, [("p:user:x", [Field.VERSION, version(EPOCH, 1, number).decode(), "bias", value])], {"i": number}
        )

    put(5, "five")
    put(4, "four")
    assert redis_connection.hget("p:user:x", "bias") == b"five"
    assert redis_connection.zscore("p:items:0", "i") == 5.0
    put(5, "again")
    assert redis_connection.hget("p:user:x", "bias") == b"again"
    put(6, "six")
    assert redis_connection.hmget("p:user:x", "bias", "version") == [b"six", version(EPOCH, 1, 6)]
    write(publisher, [("p:user:x", [Field.VERSION, version(EPOCH, 2, 0).decode(), "bias", "tried again"])])
    write(publisher, [("p:user:x", [Field.VERSION, version(EPOCH, 1, 9).decode(), "bias", "given up"])])
    assert redis_connection.hget("p:user:x", "bias") == b"tried again"
    write(publisher, [("p:user:x", [Field.VERSION, version(EPOCH + 1, 1, 0).decode(), "bias", "reborn"])])
    assert redis_connection.hget("p:user:x", "bias") == b"reborn"


def test_of_one_call_each_entity_is_judged_by_itself(publisher: Publisher, redis_connection: Any) -> None:
    """What Redis knows better, or what was buried, leaves its neighbours as they should be, also beside long values."""
    old, new = (version(EPOCH, 1, seq).decode() for seq in (5, 9))
    buried = {f"u{n}": Tombstone(n + 1, 7, 0, 0) for n in range(0, 500, 7)}
    publisher.delete(buried)
    for n in range(0, 500, 5):
        redis_connection.hset(f"p:user:u{n}", mapping={"version": version(EPOCH, 1, 8), "seen": "kept"})

    def entity(n: int) -> Entity:
        return f"p:user:u{n}", [
            Field.VERSION,
            new if n % 2 else old,
            "bias",
            str(n),
            "seen",
            "\u00e9\x00" * (n * n // 5),
        ]

    write(publisher, [entity(n) for n in range(500)])
    for n in range(500):
        found = redis_connection.hgetall(f"p:user:u{n}")
        is_newer = n % 2 == 1
        if is_newer or (n % 5 and n % 7):
            _, (_, number, _, bias, _, seen) = entity(n)
            assert found == {b"version": number.encode(), b"bias": bias.encode(), b"seen": seen.encode()}
        else:
            kept = {b"version": version(EPOCH, 1, 8), b"seen": b"kept"}
            assert found == ({} if n % 5 else kept)


def test_many_entities_are_all_written_and_counted(publisher: Publisher, redis_connection: Any) -> None:
    learner = learner_of([(f"u{n}", f"i{n}", 3.0) for n in range(1_301)])
    publish(publisher, learner)
    assert len(redis_connection.keys("p:user:*")) == len(redis_connection.keys("p:item:*")) == 1_301
    assert redis_connection.hget("p:ledger", "writes") == str(2 * 1_301 + 1).encode()
    assert int(redis_connection.hget("p:ledger", "published_at")) > T0


def test_entities_expire_if_asked_to(redis_url: str, redis_connection: Any) -> None:
    publisher = Publisher(redis_url, "p", ttl=1_000_000)
    publish(publisher, learner_of(EVENTS))
    publisher.tiles(tile_entities([tile("item", "5m", "new", 0)], publisher.keys, ["view"], 0), {})
    for key in ("p:user:ann", "p:item:tea", "p:item:new"):
        assert 0 < redis_connection.pttl(key) <= 1_000_000
    write(Publisher(redis_url, "q"), [("q:user:x", [Field.VERSION, "1", "bias", "0"])])
    assert redis_connection.pttl("q:user:x") == -1


def test_nothing_learned_writes_the_header_only(publisher: Publisher, redis_connection: Any) -> None:
    learner = learner_of([])
    publish(publisher, learner, Learned({"user": {}, "item": {}}, []))
    assert sorted(redis_connection.keys("*")) == [b"p:ledger", b"p:model:0"]


# --------------------------------------------------------------------------------------------- tiles


def tile(family: str, span: str, entity_id: str, start: int, n: int = 1, types: tuple[int, ...] = (1,)) -> str:
    length = {"5m": 300_000, "1h": HOUR, "session": 60_000}[span]
    pairs = [paired(*(*types, 0)[at : at + 2]) for at in range(0, len(types), 2)] if span != "session" else []
    numbers = [start, start + length, paired(n, 1), 0, n * 2_500_000, *pairs]
    return UNIT.join([span, family[0] + escape(entity_id), *map(str, numbers)])


def test_tiles_are_written_whole(publisher: Publisher, redis_connection: Any) -> None:
    odd = "a\x1e\x1f\x1d"
    results = [
        RECORD.join([tile("user", "5m", "ann", T0, 3, (2, 0)), tile("item", "1h", odd, 0, 4, (0, 4))]),
        tile("user", "1h", "ann", T0, 3, (2, 0)),
    ]
    for _ in range(2):  # writing them again changes nothing
        publisher.tiles(tile_entities(results, publisher.keys, ["view", "buy"], 0), {"5m": HOUR, "1h": HOUR})
    ann, other = (decode_tiles(redis_connection.hgetall(key)) for key in ("p:user:ann", f"p:item:{odd}"))
    assert (ann["5m"][T0].events, ann["5m"][T0].sum, ann["5m"][T0].distinct) == (3, 7.5, 1)
    assert ann["5m"][T0].types == {"view": 2} and set(ann) == {"5m", "1h"}
    assert other["1h"][0].types == {"buy": 4}
    tiles = {name for name in redis_connection.hgetall("p:user:ann") if name.startswith(b"t:")}
    assert tiles == {f"t:5m:{T0}".encode(), f"t:1h:{T0}".encode()}


def test_a_window_that_went_on_has_parts(publisher: Publisher, redis_connection: Any) -> None:
    for part in (0, 1):
        publisher.tiles(tile_entities([tile("user", "1h", "ann", 0, 2)], publisher.keys, ["view"], part), {})
    assert decode_tiles(redis_connection.hgetall("p:user:ann"))["1h"][0].events == 4


def test_old_tiles_are_pruned_by_the_write(publisher: Publisher, redis_connection: Any) -> None:
    keep = {"5m": HOUR, "1h": 10 * HOUR}
    for start in (0, 300_000, HOUR, 2 * HOUR):
        records = [tile("user", "5m", "ann", start), tile("user", "1h", "ann", start - start % HOUR)]
        publisher.tiles(tile_entities([RECORD.join(records)], publisher.keys, ["view"], 0), keep)
    write(publisher, [("p:user:ann", [Field.VERSION, "1", "bias", "0.5"])])
    tiles = decode_tiles(redis_connection.hgetall("p:user:ann"))
    assert sorted(tiles["5m"]) == [HOUR, 2 * HOUR]
    assert sorted(tiles["1h"]) == [0, HOUR, 2 * HOUR]
    assert redis_connection.hget("p:user:ann", "bias") == b"0.5"


def test_a_replay_does_not_bring_back_what_was_pruned(publisher: Publisher, redis_connection: Any) -> None:
    starts = range(0, 3 * HOUR, 300_000)
    for _ in range(2):
        for start in starts:
            publisher.tiles(
                tile_entities([tile("user", "5m", "ann", start)], publisher.keys, ["view"], 0), {"5m": HOUR}
            )
        first = redis_connection.hgetall("p:user:ann")
        assert min(decode_tiles(first)["5m"]) >= starts[-1] - HOUR - HOUR // 8
        redis_connection.hset("p:user:ann", "seen", "[]")
        assert redis_connection.hgetall("p:user:ann") == {**first, b"seen": b"[]"}
    assert len(first) == len(decode_tiles(first)["5m"]) + 2


@pytest.mark.parametrize("part", [0, 2])
def test_what_is_pruned_step_by_step_is_what_a_look_at_all_would_find(
    publisher: Publisher, redis_connection: Any, part: int
) -> None:
    keep, starts = {"5m": 2 * HOUR, "1h": 5 * HOUR}, [*range(HOUR, 10 * HOUR, 300_000), 20 * HOUR, 100 * HOUR]
    written: set[tuple[str, int, int]] = set()
    for at, start in enumerate(starts):
        of = part if at > 50 else 0  # the first input has ended
        tiles = [("5m", start), ("1h", start - start % HOUR)]
        records = RECORD.join(tile("user", span, "ann", begin) for span, begin in tiles)
        publisher.tiles(tile_entities([records], publisher.keys, ["view"], of), keep, of)
        written |= {(span, begin, of) for span, begin in tiles}
        pruned = int(redis_connection.hget("p:user:ann", "pruned").split()[0])
        kept = {tile_field(span, begin, of) for span, begin, of in written if begin >= pruned - keep[span]}
        assert {name.decode() for name in redis_connection.hkeys("p:user:ann") if name.startswith(b"t:")} == kept


def test_a_shorter_time_to_keep_holds_for_what_is_there(publisher: Publisher, redis_connection: Any) -> None:
    def write(start: int, keep: int) -> list[int]:
        publisher.tiles(tile_entities([tile("user", "5m", "ann", start)], publisher.keys, ["view"], 0), {"5m": keep})
        return sorted(decode_tiles(redis_connection.hgetall("p:user:ann"))["5m"])

    for start in range(0, 2 * HOUR, 300_000):
        write(start, 10 * HOUR)
    assert write(3 * HOUR, HOUR) == [3 * HOUR]


def test_years_of_windows_of_one_item_close_at_once(publisher: Publisher, redis_connection: Any) -> None:
    def write(first: int) -> None:
        records = RECORD.join(tile("item", "5m", "tea", first + n * 300_000) for n in range(10_000))
        publisher.tiles(tile_entities([records], publisher.keys, ["view"], 0), {"5m": HOUR})

    write(0)
    write(10_000 * 300_000)
    newest = (20_000 - 1) * 300_000
    assert sorted(decode_tiles(redis_connection.hgetall("p:item:tea"))["5m"]) == [
        *range(newest - HOUR, newest + 1, 300_000)
    ]


def test_a_session_never_goes_backwards(publisher: Publisher, redis_connection: Any) -> None:
    def write(*starts: int) -> Any:
        records = RECORD.join(tile("user", "session", "ann", start, n=start // 1_000) for start in starts)
        publisher.tiles(tile_entities([records], publisher.keys, ["view"], 0), {})
        return orjson.loads(redis_connection.hget("p:user:ann", "session"))

    assert write(HOUR) == {"n": 3600, "sum": 9000.0, "distinct": 1, "start": HOUR, "end": HOUR + 60_000}
    assert write(0)["start"] == HOUR
    assert write(3 * HOUR, 2 * HOUR)["start"] == 3 * HOUR


def test_the_ledger_is_written_whole(publisher: Publisher, redis_connection: Any) -> None:
    publisher.ledger({"epoch": 5, "counts": b"{}"}, attempt=2)
    stored = redis_connection.hgetall("p:ledger")
    assert int(stored.pop(b"alive_at")) > T0
    assert stored == {b"epoch": b"5", b"counts": b"{}", b"attempt": b"2"}


def test_a_learner_says_that_it_is_there_once_a_second(publisher: Publisher, redis_connection: Any) -> None:
    publisher.alive(3)
    assert int(redis_connection.hget("p:ledger", "alive_at:3")) > T0
    redis_connection.delete("p:ledger")
    publisher.alive(3)
    assert not redis_connection.exists("p:ledger")


# -------------------------------------------------------------------------------------- Redis is away


def test_redis_away_is_an_error_after_patience_and_without_the_password() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    publisher = Publisher(f"redis://app:s3cret@127.0.0.1:{port}/0", "p", patience=0.05)
    with pytest.raises(PublishError, match=rf"app:\*\*\*@127.0.0.1:{port}/0 took no write for 0.05 s") as caught:
        write(publisher, [("p:user:x", [Field.VERSION, "1", "bias", "0"])])
    assert "s3cret" not in str(caught.value)


def test_redis_is_tried_again_until_it_is_back(redis_url: str, redis_connection: Any, tmp_path: Path) -> None:
    path = tmp_path / "late.sock"
    publisher = Publisher(f"unix://{path}", "p", patience=60.0)
    attempts: list[int] = []
    send = publisher._redis.connection_pool.get_connection

    def appearing(*args: Any, **kwargs: Any) -> Any:
        attempts.append(1)
        if len(attempts) == 3:  # the server comes back
            path.symlink_to(redis_url.removeprefix("unix://"))
        return send(*args, **kwargs)

    publisher._redis.connection_pool.get_connection = appearing
    publisher.ledger({"epoch": 1})
    assert len(attempts) == 3 and redis_connection.hget("p:ledger", "epoch") == b"1"


def test_a_refused_write_is_not_tried_again(publisher: Publisher, redis_connection: Any) -> None:
    redis_connection.set("p:ledger", "not a hash")
    with pytest.raises(PublishError, match=r"refused a write: .*WRONGTYPE"):
        publisher.ledger({"epoch": 1})


def test_a_full_redis_is_waited_for(redis_url: str, redis_connection: Any) -> None:
    publisher = Publisher(redis_url, "p", patience=20.0)
    redis_connection.config_set("maxmemory", 1)
    relief = threading.Timer(0.5, lambda: redis_connection.config_set("maxmemory", 0))
    relief.start()
    try:
        publish(publisher, learner_of(EVENTS))
    finally:
        relief.join()
        redis_connection.config_set("maxmemory", 0)
    assert redis_connection.exists("p:user:ann")


def test_a_redis_that_stays_full_ends_in_an_error(redis_url: str, redis_connection: Any) -> None:
    publisher = Publisher(redis_url, "p", patience=0.3)
    redis_connection.config_set("maxmemory", 1)
    try:
        with pytest.raises(PublishError, match=r"took no write for 0\.3 s: .*OOM"):
            publish(publisher, learner_of(EVENTS))
    finally:
        redis_connection.config_set("maxmemory", 0)
    assert not redis_connection.exists("p:user:ann")


def test_nothing_is_written_to_a_redis_that_lost_the_last_write(publisher: Publisher, redis_connection: Any) -> None:
    author = Author(publisher.keys, 0, 1, EPOCH)
    publisher.take_over(author)

    def put(number: str) -> None:
        entities = Listed([("p:user:x", [Field.VERSION, number, "bias", "0"])] * 600)  # in two calls
        header: Entity = ("p:model:0", [Field.VERSION, number, "model", "m"])
        publisher.learned(author, entities, {"i": 1}, reached=b"{}", header=header)

    def lost() -> None:
        keys = {*redis_connection.scan_iter()}
        with pytest.raises(Lost, match="does not have what was written last under prefix 'p'"):
            publisher.asked(author)
        with pytest.raises(Lost):
            put("9")
        assert redis_connection.hget("p:user:x", "version") != b"9"
        assert {*redis_connection.scan_iter()} <= keys | {b"p:fence", b"p:ledger"}

    put("1")
    put("2")
    copy = {key: redis_connection.dump(key) for key in redis_connection.scan_iter()}
    author.writes -= 1
    put("2")  # it may be sent again
    put("3")
    redis_connection.flushall()
    lost()
    for key, dumped in copy.items():
        redis_connection.restore(key, 0, dumped, replace=True)
    lost()
    publisher.take_over(author)
    put("4")
    assert not publisher.asked(author) and redis_connection.hget("p:model:0", "version") == b"4"


def test_of_two_attempts_at_a_shard_the_earlier_can_write_nothing(publisher: Publisher, redis_connection: Any) -> None:
    author = Author(publisher.keys, 0, 1, EPOCH)
    assert publisher.take_over(author) == (None, {}, {}) and author.attempt == 1
    publish(publisher, learner_of(EVENTS), epoch=EPOCH, attempt=1)
    reached = {"": len(EVENTS)}
    assert publisher.take_over(author) == (version(EPOCH, 1, 4), reached, reached) and author.attempt == 2
    other = Author(publisher.keys, 1, 2, EPOCH)
    publisher.take_over(other)
    assert other.attempt == 1
    with pytest.raises(PublishError, match="a later attempt at this job writes under prefix 'p'"):
        publish(publisher, learner_of(EVENTS[:1]), epoch=EPOCH, attempt=1)
    # Where the ledger is lost, the header tells; where all is, who takes over again.
    publish(publisher, learner_of(EVENTS), epoch=EPOCH, attempt=2)
    redis_connection.delete("p:ledger")
    assert publisher.take_over(Author(publisher.keys, 0, 1, EPOCH)) == (version(EPOCH, 2, 4), reached, {})
    assert redis_connection.hget("p:ledger", "author:0") == b"3 0"
    redis_connection.flushall()
    publisher.take_over(author)
    assert author.attempt == 3
    # What another state has written is not ours.
    publish(publisher, learner_of(EVENTS), epoch=EPOCH, attempt=3)
    assert publisher.take_over(Author(publisher.keys, 0, 1, EPOCH + 1)) == (None, {}, {})


# ----------------------------------------------------------------------------------------------- fence


def test_submissions_go_up_also_by_a_clock_that_goes_back(redis_connection: Any) -> None:
    keys = Keys("p")
    assert [draw_submission(redis_connection, keys, now) for now in (T0, T0, T0 - 9, T0 + 9)] == [
        T0, T0 + 1, T0 + 2, T0 + 9,
    ]  # fmt: skip
    assert redis_connection.get("p:fence") == str(T0 + 9).encode()
    assert draw_submission(redis_connection, Keys("q"), 5) == 5


def test_an_older_job_can_write_nothing(redis_url: str, redis_connection: Any) -> None:
    older, newer = (Publisher(redis_url, "p", draw_submission(redis_connection, Keys("p"), T0 + n)) for n in (1, 2))
    publish(newer, learner_of(EVENTS[:1]))
    everything = {key: redis_connection.dump(key) for key in redis_connection.keys("*")}
    for write in (
        lambda: publish(older, learner_of(EVENTS)),
        lambda: older.tiles(tile_entities([tile("item", "5m", "tea", 0)], older.keys, ["view"], 0), {}),
        lambda: older.ledger({"read": 7}),
    ):
        with pytest.raises(Fenced, match="submitted later, writes under prefix 'p'"):
            write()
    assert {key: redis_connection.dump(key) for key in redis_connection.keys("*")} == everything


def test_a_lost_fence_is_put_up_again(redis_url: str, redis_connection: Any) -> None:
    older, newer = (Publisher(redis_url, "p", number) for number in (1, 2))
    redis_connection.flushall()
    older.ledger({"read": 1})  # nobody knows better yet
    newer.ledger({"read": 2})
    with pytest.raises(Fenced):
        older.ledger({"read": 3})
    assert redis_connection.hget("p:ledger", "read") == b"2"


def test_many_items_are_noted_in_parts(publisher: Publisher, redis_connection: Any) -> None:
    items = {f"i{n}": n for n in range(20_001)}
    write(publisher, [], items)
    assert redis_connection.zcard("p:items:0") == len(items)
