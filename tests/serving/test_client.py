"""Look-ups against a real Redis: equal to brute force, and up to date."""

from __future__ import annotations

import socket
from types import SimpleNamespace
from typing import Any

import numpy as np
import orjson
import pytest

from serving import Client, Session, Unreachable
from serving.schema import Field, Keys, shard_of, tail_of
from tests.shells import batch_of, publish
from tests.udfs.cases import rows_of
from udfs.entities import LearnedEntities, header_entity, tile_entities
from udfs.growth import GrowthConfig
from udfs.interactions import Interactions
from udfs.learner import Learner, LearnerConfig, build
from udfs.publisher import Author, Listed, Publisher
from udfs.ranking import RankingConfig
from udfs.ratings import KalmanMF
from udfs.stack import Stack, default_raters
from udfs.tail import tail_id, tail_number
from udfs.tilefeed import paired

T0 = 1_700_000_000_000
EPOCH = 1_600_000_000_000


class World:
    """Learners that publish, as the job does, without the job."""

    def __init__(
        self,
        url: str,
        shards: int = 1,
        kind: str = "biased_mf",
        epoch: int = EPOCH,
        factors: int = 4,
        growth: GrowthConfig | None = None,
        ranking: RankingConfig | None = None,
    ) -> None:
        self.publisher = Publisher(url, "w")
        self.shards, self.epoch, self.time = shards, epoch, T0
        params = {} if kind == "baseline" else {"n_factors": factors}
        config = LearnerConfig(seen=5, growth=growth or GrowthConfig(), ranking=ranking)
        self.learners = [Learner(config, build(kind, params)) for _ in range(shards)]

    def learn(self, log: list[tuple[str, str, float]]) -> None:
        for shard, learner in enumerate(self.learners):
            events = []
            for user, item, y in log:
                if shard_of(user, self.shards) == shard:
                    events.append([self.time, "", user, item, "rating", y, 0, 1])
                    self.time += 1_000
            for learned in learner.process(batch_of(events)):
                publish(self.publisher, learner, learned, shard=shard, shards=self.shards, epoch=self.epoch)

    def predictions(self, user: str) -> dict[str, float]:
        """The model's own answers, for all items of the user's shard."""
        learner = self.learners[shard_of(user, self.shards)]
        model: Any = learner.model
        plain = model.river()
        return {item: plain.predict_one(user, item) for item in learner.rows["item"]}


def log_of(n: int, seed: int = 0, users: int = 20, items: int = 30) -> list[tuple[str, str, float]]:
    rng = np.random.default_rng(seed)
    drawn = zip(rng.integers(0, users, n), rng.integers(0, items, n), rng.integers(1, 6, n), strict=True)
    return [(f"u{u}", f"i{i}", float(y)) for u, i, y in drawn]


@pytest.fixture
def client(redis_connection: Any) -> Client:
    return Client(redis_connection, "w")


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("kind", ["baseline", "funk_mf", "biased_mf"])
def test_recommendations_are_the_models_best(redis_url: str, client: Client, kind: str, shards: int) -> None:
    world = World(redis_url, shards, kind)
    world.learn(log_of(600))
    for user in ("u0", "u7", "u19"):
        predicted = world.predictions(user)
        seen = set(world.learners[shard_of(user, shards)].rows["user"][user].seen)
        assert len(seen) == 5
        for exclude in (True, False):
            best = client.recommend(user, 8, exclude_seen=exclude)
            assert best.known and best.user_id == user
            scores = {r.item_id: r.score for r in best.items}
            assert len(scores) == 8 and not (exclude and seen & set(scores))
            for item, score in scores.items():
                assert score == pytest.approx(predicted[item], abs=1e-5)
            order = [r.score for r in best.items]
            assert order == sorted(order, reverse=True)
            left = [value for item, value in predicted.items() if item not in scores and not (exclude and item in seen)]
            assert max(left) <= min(order) + 1e-5


@pytest.mark.parametrize("repeats", [True, False])
@pytest.mark.parametrize("kind", ["baseline", "biased_mf", "kalman_mf", "stack"])
def test_what_is_recommended_is_what_is_evaluated(redis_url: str, client: Client, kind: str, repeats: bool) -> None:
    world = World(redis_url, kind=kind, ranking=RankingConfig(k=5, repeats=repeats, every=7))
    world.learn(log_of(600))
    header = client.header()
    assert header is not None and header.repeats is repeats
    [learner] = world.learners
    assert learner.evaluation is not None
    for user in ("u0", "u7", "nobody"):
        event = Interactions.of([[world.time, "", user, "an item that is new", "rating", 3.0, 0, 1]])
        evaluated = learner.evaluation.predicted(event, 0, 0, met=0)
        assert evaluated is not None
        offered = {learner.model.ids["item"].names[number] for number in evaluated.offered}
        assert {r.item_id for r in client.recommend(user, 5).items} == offered and len(offered) == 5
        if user != "nobody" and not repeats:
            assert not offered & set(learner.rows["user"][user].seen)


@pytest.mark.parametrize("repeats", [True, False])
def test_what_is_served_is_set_also_where_nothing_is_evaluated(redis_url: str, client: Client, repeats: bool) -> None:
    world = World(redis_url, ranking=RankingConfig(repeats=repeats, every=0))
    world.learn([("ann", "tea", 5.0), ("bob", "rum", 4.0)])
    assert ("tea" in {r.item_id for r in client.recommend("ann").items}) is repeats


def test_recommendations_end_with_the_items(redis_url: str, client: Client) -> None:
    world = World(redis_url)
    world.learn([("ann", "tea", 5.0), ("bob", "rum", 4.0), ("bob", "gin", 3.0)])
    assert [len(client.recommend("ann", k).items) for k in (0, 1, 2, 10)] == [0, 1, 2, 2]
    assert len(client.recommend("ann", 10, exclude_seen=False).items) == 3


def test_equal_scores_are_ordered_by_id_whatever_was_learned_last(redis_url: str, redis_connection: Any) -> None:
    world = World(redis_url, kind="baseline")
    items = [f"i{n:02}" for n in range(40)]
    world.learn([(f"u{n}", items[n * 17 % 40], 3.0) for n in range(40)])
    early = Client(redis_connection, "w")
    assert [r.item_id for r in early.recommend("u0", 5).items] == items[1:6]
    world.learn([("late", item, 3.0) for item in items[:3][::-1]])
    late = Client(redis_connection, "w")
    for client in (early, late):
        assert [r.item_id for r in client.recommend("u0", 5).items] == items[1:6]


def test_an_unknown_user_gets_what_is_popular_now(redis_url: str, client: Client) -> None:
    assert client.recommend("nobody").items == [] and not client.recommend("nobody").known
    world = World(redis_url, shards=3)
    log = [(f"u{n}", item, 3.0) for n, item in enumerate(["tea"] * 6 + ["rum"] * 3 + ["gin"])]
    world.learn(log)
    best = client.recommend("nobody", 2)
    assert not best.known and [r.item_id for r in best.items] == ["tea", "rum"]
    totals: dict[str, float] = {}
    for learner in world.learners:
        for item, row in learner.rows["item"].items():
            totals[item] = totals.get(item, 0.0) + 2.0 ** (row.popularity - T0 / LearnerConfig().half_life)
    expected = np.log2([totals["tea"], totals["rum"]]) + T0 / LearnerConfig().half_life
    assert [r.score for r in best.items] == pytest.approx(expected.tolist())


def test_a_user_with_tiles_only_is_not_known(redis_url: str, client: Client) -> None:
    world = World(redis_url)
    world.learn([("ann", "tea", 5.0)])
    numbers = [1704067200000, 1704067500000, paired(2, 1), 0, 3000000, paired(2, 0)]
    record = "\x1f".join(["5m", "unew", *map(str, numbers)])
    world.publisher.tiles(tile_entities([record], world.publisher.keys, ["view"], 0), {})
    state = client.user("new")
    assert state is not None and state.learned is None and state.shard is None
    assert state.last("5m", 1_704_067_500_000).events == 2
    assert not client.recommend("new").known


@pytest.mark.parametrize("shards", [1, 3])
def test_similar_items_are_those_of_the_highest_cosine(redis_url: str, client: Client, shards: int) -> None:
    world = World(redis_url, shards)
    world.learn(log_of(600))
    for item in ("i0", "i13"):
        learner = max(world.learners, key=lambda learner: learner.rows["item"][item].count)
        ids = list(learner.rows["item"])
        vectors = learner.model.vectors("item", rows_of(learner.model, "item", *ids))
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        cosines = dict(zip(ids, (vectors @ vectors[ids.index(item)]).tolist(), strict=True))
        del cosines[item]
        found = client.similar(item, 6)
        assert found is not None
        expected = sorted(cosines, key=lambda i: -cosines[i])[:6]
        assert [r.item_id for r in found] == expected
        assert [r.score for r in found] == pytest.approx([cosines[i] for i in expected], abs=1e-5)


def test_similar_without_vectors_or_without_an_item(redis_url: str, client: Client, redis_connection: Any) -> None:
    World(redis_url, kind="baseline").learn([("ann", "tea", 5.0), ("ann", "rum", 5.0)])
    redis_connection.hset("w:item:shelf", "catalogue", b'{"item_id":"shelf"}')
    assert client.similar("never") is None
    assert client.similar("tea") == [] and client.similar("shelf") == []


@pytest.mark.parametrize("shards", [1, 2])
def test_scores_are_predictions(redis_url: str, client: Client, shards: int) -> None:
    world = World(redis_url, shards)
    world.learn(log_of(300))
    expected = world.predictions("u3")
    scores = client.score("u3", [*expected, "never"])
    assert scores.pop("never") is None
    assert scores == pytest.approx(expected, abs=1e-5)
    assert client.score("nobody", ["i1", "i2"]) == {"i1": None, "i2": None}


TWINS: dict[str, Any] = {"stack": lambda: Stack(default_raters(n_factors=4)), "kalman_mf": lambda: KalmanMF(4)}


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("kind", TWINS)
def test_scores_and_recommendations_of_filters_are_predictions(
    redis_url: str, client: Client, kind: str, shards: int
) -> None:
    """Of rows that were written at once: later changes of the stack's weights are in those alone that change, too."""
    world, log = World(redis_url, shards, kind), log_of(900)
    time, twins = world.time, [TWINS[kind]() for _ in range(shards)]
    last: dict[str, int] = {}
    for shard, twin in enumerate(twins):
        for user, item, y in log:
            if shard_of(user, shards) == shard:
                twin.learn_one(user, item, y, time)
                last[user] = time
                time += 1_000
    world.learn(log)
    for user in ("u0", "u7", "u19"):
        twin = twins[shard_of(user, shards)]
        expected = {item: twin.predict_one(user, item, last[user]) for item in twin.items}
        assert client.score(user, list(expected)) == pytest.approx(expected, abs=2e-5)
        best = client.recommend(user, 8, exclude_seen=False).items
        assert {r.item_id: r.score for r in best} == pytest.approx(
            {r.item_id: expected[r.item_id] for r in best}, abs=2e-5
        )
        assert min(r.score for r in best) >= sorted(expected.values())[-8] - 2e-5


def test_scores_of_a_stack_whose_rows_were_written_at_other_times(redis_url: str, client: Client) -> None:
    """The weights of the moment are in the rows of the moment: what that costs is small against the error."""
    world, log = World(redis_url, kind="stack"), log_of(4_000, users=40, items=60)
    for start in range(0, len(log), 50):
        world.learn(log[start : start + 50])
    plain: Any = Stack(default_raters(n_factors=4))
    users, items, ys = zip(*log, strict=True)
    times = T0 + 1_000 * np.arange(len(log))
    plain.learn(users, items, np.array(ys), times)
    for user in ("u0", "u7", "u19"):
        scores = client.score(user, list(plain.items))
        apart = [scores[item] - plain.predict_one(user, item, times[-1]) for item in plain.items]  # type: ignore[operator]
        assert np.sqrt(np.mean(np.square(apart))) < 0.15


def test_items_are_similar_by_the_factors_of_a_stack(redis_url: str, client: Client) -> None:
    world = World(redis_url, kind="stack")
    world.learn(log_of(900))
    learner = world.learners[0]
    vectors = learner.model.vectors("item", rows_of(learner.model, "item", *learner.model.ids["item"]))[
        :, : 8 + 2 + 1 + 4
    ]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    ids = list(learner.model.ids["item"])
    cosines = dict(zip(ids, (vectors @ vectors[ids.index("i3")]).tolist(), strict=True))
    found = client.similar("i3", 6)
    assert found is not None
    assert [r.score for r in found] == pytest.approx([cosines[r.item_id] for r in found], abs=1e-3)
    assert min(r.score for r in found) > sorted(cosines.values())[-7] - 1e-3


def test_states_are_what_was_learned(redis_url: str, client: Client, redis_connection: Any) -> None:
    world = World(redis_url, shards=2)
    world.learn(log_of(200))
    redis_connection.hset("w:item:i1", Field.CATALOGUE, orjson.dumps({"item_id": "i1", "title": "Tea"}))
    user = client.user("u4")
    shard = shard_of("u4", 2)
    learner = world.learners[shard]
    assert user is not None and user.shard == shard and user.learned is not None
    assert user.learned.count == learner.rows["user"]["u4"].count
    assert user.learned.updated_at == learner.rows["user"]["u4"].updated_at
    [vector] = learner.model.vectors("user", rows_of(learner.model, "user", "u4"))
    assert user.learned.vector.tolist() == vector.astype("f4").tolist()
    assert list(user.seen) == list(learner.rows["user"]["u4"].seen) and user.session is None
    item = client.item("i1")
    assert item is not None and item.catalogue == {"item_id": "i1", "title": "Tea"}
    assert set(item.learned) == {0, 1}
    for shard, learned in item.learned.items():
        assert learned.count == world.learners[shard].rows["item"]["i1"].count
        assert learned.popularity == world.learners[shard].rows["item"]["i1"].popularity
    assert client.known_items() == {i for learner in world.learners for i in learner.rows["item"]}


def test_what_is_unknown_is_none_and_leaves_nothing(client: Client, redis_connection: Any) -> None:
    assert client.user("x") is None and client.item("x") is None and client.similar("x") is None
    assert client.header() is None and client.known_items() == set()
    assert client.users(["a", "b"]) == {"a": None, "b": None} and client.users([]) == {}
    client.recommend("x")
    assert redis_connection.keys("*") == []


def test_the_header(redis_url: str, client: Client) -> None:
    world = World(redis_url, shards=2)
    world.learn(log_of(50))
    header = client.header(1)
    assert header is not None
    assert (header.model, header.n_factors, header.shards) == ("biased_mf", 4, 2)
    assert header.global_mean == world.learners[1].model.global_mean()
    assert header.summary["counts"]["learned"] == world.learners[1].learned


def test_a_session(redis_connection: Any, client: Client) -> None:
    session = {"n": 4, "sum": 9.0, "distinct": 2, "start": 10, "end": 20}
    redis_connection.hset("w:user:ann", mapping={"session": orjson.dumps(session), "session_end": 20})
    state = client.user("ann")
    assert state is not None and state.session == Session(start=10, end=20, events=4, distinct=2)


ODD = ["", " ", ":", "user:1", "\x00", "\u00e9\U0001f30a", "a\nb", "*", "0", "-1", "x" * 500]


def test_any_text_is_an_id(redis_url: str, client: Client) -> None:
    world = World(redis_url)
    world.learn([(odd, odd[::-1], 4.0) for odd in ODD])
    for odd in ODD:
        user, item = client.user(odd), client.item(odd[::-1])
        assert user is not None and user.seen == [odd[::-1]] and item is not None
    assert {r.item_id for r in client.recommend("\x00", 50, exclude_seen=False).items} == {odd[::-1] for odd in ODD}


# ------------------------------------------------------------------------------------- staying fresh


def test_a_client_sees_what_changes(redis_url: str, client: Client) -> None:
    world = World(redis_url)
    world.learn(log_of(200))
    client.recommend("u1")
    world.learn([("u1", "brand-new", 5.0), *log_of(100, seed=1)])
    world.learn([(f"v{n}", f"more{n}", 3.0) for n in range(1_100)])  # more than the arrays hold at first
    predicted = world.predictions("u1")
    best = client.recommend("u1", 2_000, exclude_seen=False)
    assert {r.item_id: r.score for r in best.items} == pytest.approx(predicted, abs=1e-5)


def test_a_client_may_be_behind_by_so_much(
    redis_url: str, redis_connection: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("serving.client.time", SimpleNamespace(monotonic=lambda: now[0]))
    client, world = Client(redis_connection, "w", max_age=10.0), World(redis_url)
    author = Author(world.publisher.keys, 0, 1, EPOCH)
    world.publisher.take_over(author)

    def learn(item_id: str) -> None:
        [learner] = world.learners
        [learned] = learner.process(batch_of([[T0, "", "ann", item_id, "rating", 3.0, 0, 1]]))
        entities = LearnedEntities(learner, learner.encode(learned), author)
        header = header_entity(learner, author)
        world.publisher.learned(author, entities, entities.items(), reached=b"{}", header=header)

    def found() -> set[str]:
        return {best.item_id for best in client.recommend("ann", 100, exclude_seen=False).items}

    learn("tea")
    assert found() == {"tea"}
    learn("rum")
    now[0] += 9.5
    assert found() == {"tea"}
    user = client.user("ann")
    assert user is not None and user.seen == ["tea", "rum"]
    now[0] += 0.5
    assert found() == {"tea", "rum"}
    # What another job has learned is read at once: its numbers of items are others.
    redis_connection.flushall()
    World(redis_url, epoch=EPOCH + 1).learn([("ann", "gin", 3.0)])
    assert found() == {"gin"}


@pytest.mark.parametrize("shards", [1, 2])
def test_a_client_forgets_what_was_dropped(redis_url: str, client: Client, shards: int) -> None:
    world = World(redis_url, shards, growth=GrowthConfig(max_items=24))
    for start in range(0, 400, 40):
        world.learn([(f"u{n % 7}", f"i{n}", float(n % 5)) for n in range(start, start + 40)])
        for user in ("u0", "u1"):
            best = client.recommend(user, 1_000, exclude_seen=False)
            assert {r.item_id: r.score for r in best.items} == pytest.approx(world.predictions(user), abs=1e-5)
            assert client.recommend(user, 3).items  # what the user has seen may be gone
        known = {item for learner in world.learners for item in learner.rows["item"]}
        assert client.known_items() == {r.item_id for r in client.recommend("nobody", 1_000).items} == known
    assert client.item("i0") is None and client.similar("i0") is None
    assert client.score("u0", ["i0"]) == {"i0": None}


@pytest.mark.parametrize("shards", [1, 3])
def test_what_has_no_row_is_scored_by_the_row_that_it_shares(redis_url: str, client: Client, shards: int) -> None:
    world = World(redis_url, shards, growth=GrowthConfig(min_events=3, tail_rows=4))
    world.learn([*log_of(400, users=30, items=40), ("rare", "rarer", 4.0)])
    assert client.user("rare") is None and client.item("rarer") is None
    for user in ("rare", "never", "u3"):
        shard = shard_of(user, shards)
        learner = world.learners[shard]
        assert len(learner.rows["user"]) == 4 + learner.summary()["users"]
        plain, ids = learner.model.river(), {family: set(rows) for family, rows in learner.rows.items()}  # type: ignore[attr-defined]
        items = ["i1", "i2", "rarer", "unheard"]
        rows = {i: i if i in ids["item"] else tail_id(tail_of(i, 4)) for i in items}
        row = user if user in ids["user"] else tail_id(tail_of(user, 4))
        expected = {i: plain.predict_one(row, of) for i, of in rows.items()}
        assert client.score(user, items) == pytest.approx(expected, abs=1e-5)
        best = client.recommend(user, 1_000, exclude_seen=False)
        assert best.known == (user in ids["user"])
        known = [learner.rows["item"] for learner in (world.learners if not best.known else [learner])]
        assert {r.item_id for r in best.items} == {i for of in known for i in of if tail_number(i) is None}
    assert sum(learner.summary()["users"] for learner in world.learners) == len(client._redis.keys("w:user:*"))


def test_a_client_sees_a_job_that_started_anew(redis_url: str, client: Client, redis_connection: Any) -> None:
    World(redis_url).learn(log_of(300))
    assert client.recommend("u1").items
    redis_connection.flushall()
    assert client.recommend("u1").items == []
    world = World(redis_url, shards=3, epoch=EPOCH + 1, factors=7)
    world.learn([(f"u{n}", f"new{n % 9}", 3.0) for n in range(40)])
    assert {shard_of(f"u{n}", 3) for n in range(9)} == {0, 1, 2}
    for user in (f"u{n}" for n in range(9)):
        best = client.recommend(user, 100, exclude_seen=False)
        assert {r.item_id: r.score for r in best.items} == pytest.approx(world.predictions(user), abs=1e-5)


def test_a_client_that_came_before_the_header_finds_the_items_later(redis_url: str, client: Client) -> None:
    world = World(redis_url, shards=2)
    learner = world.learners[shard_of("ann", 2)]
    rows = [[T0, "", "ann", item, "rating", 3.0, 0, 1] for item in ("tea", "rum")]
    list(learner.process(batch_of(rows)))
    author = Author(Keys("w"), shard_of("ann", 2), 2, EPOCH)
    world.publisher.take_over(author)
    entities = LearnedEntities(learner, learner.encode(learner.everything()), author)
    client._redis.delete("w:model:0", "w:model:1")
    # Redis answers readers between the parts of a write.
    world.publisher.learned(author, entities, entities.items(), reached=b"{}")
    assert client.recommend("ann", exclude_seen=False).items == []
    world.publisher.learned(author, Listed(), {}, reached=b"{}", header=header_entity(learner, author))
    assert {r.item_id for r in client.recommend("ann", exclude_seen=False).items} == {"tea", "rum"}


# -------------------------------------------------------------------------------------------- faults


@pytest.mark.parametrize(
    "call",
    [
        lambda c: c.user("x"),
        lambda c: c.items(["x"]),
        lambda c: c.header(),
        lambda c: c.known_items(),
        lambda c: c.score("x", ["y"]),
        lambda c: c.recommend("x"),
        lambda c: c.similar("x"),
    ],
)
def test_a_redis_that_does_not_answer_is_one_error(call: Any) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    with pytest.raises(Unreachable, match=rf"Redis at redis://:\*\*\*@127.0.0.1:{port} does not answer") as caught:
        call(Client(f"redis://:s3cret@127.0.0.1:{port}"))
    assert "s3cret" not in str(caught.value)


def test_prefixes_are_apart(redis_url: str, client: Client, redis_connection: Any) -> None:
    World(redis_url).learn([("ann", "tea", 5.0)])
    assert client.user("ann") is not None
    assert Client(redis_connection, "other").user("ann") is None
