"""What a blend's look-ups give from a real Redis: what the model itself would."""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson
import pytest

from serving import Client
from serving.schema import shard_of
from tests.shells import batch_of, publish
from udfs.blendmodel import BlendModel
from udfs.learner import Learner, LearnerConfig, build
from udfs.publisher import Publisher
from udfs.ranking import RankingConfig

T0 = 1_700_000_000_000
EPOCH = 1_600_000_000_000
PARAMS = {"n_factors": 6, "neighbours": 8, "history": 12, "negatives": 4, "tops": 15}


class World:
    """Learners that publish as the job does."""

    def __init__(self, url: str, shards: int = 1) -> None:
        self.publisher, self.shards, self.time = Publisher(url, "w"), shards, T0
        config = LearnerConfig(seen=5, ranking=RankingConfig(every=3))
        self.learners = [Learner(config, build("blend", PARAMS)) for _ in range(shards)]

    def learn(self, log: list[tuple[str, str]], step: int = 3_000_000) -> None:
        for shard, learner in enumerate(self.learners):
            events = []
            for user, item in log:
                if shard_of(user, self.shards) == shard:
                    events.append([self.time, "", user, item, "view", 1.0, 0, 1])
                    self.time += step if len(events) % 3 == 0 else 0
            for learned in learner.process(batch_of(events)):
                publish(self.publisher, learner, learned, shard=shard, shards=self.shards, epoch=EPOCH)

    def scores(self, user: str) -> dict[str, float]:
        """The model's own."""
        learner = self.learners[shard_of(user, self.shards)]
        model = learner.model
        assert isinstance(model, BlendModel)
        number = model.ids["user"][user]
        time = max(learner.updated_at, int(model.blend.parts.met.times[number]) + 1)
        found = model.blend.scores(number, time)
        return {item: float(found[at]) for item, at in model.ids["item"].items()}


def log_of(n: int, seed: int = 0, users: int = 25, items: int = 60) -> list[tuple[str, str]]:
    rng = np.random.default_rng(seed)
    return [
        (f"u{int(users * u * u)}", f"i{int(items * i * i)}") for u, i in zip(rng.random(n), rng.random(n), strict=True)
    ]


@pytest.fixture
def client(redis_connection: Any) -> Client:
    return Client(redis_connection, "w")


@pytest.mark.parametrize("shards", [1, 3])
def test_scores_are_the_models(redis_url: str, client: Client, shards: int) -> None:
    world = World(redis_url, shards)
    for part in range(3):  # a client that looks on is brought up to date by what changed
        world.learn(log_of(500, part))
        for user in ("u0", "u3", "u20"):
            expected = world.scores(user)
            found = client.score(user, list(expected))
            assert found == pytest.approx(expected, rel=1e-5, abs=1e-5)
            best = client.recommend(user, 10, exclude_seen=False)
            assert best.known
            order = sorted(expected, key=lambda item: (-expected[item], item))[:10]
            # Equal but for float32 at the edges.
            assert [expected[r.item_id] for r in best.items] == pytest.approx([expected[i] for i in order], abs=1e-5)


def test_seen_items_are_ranked_as_they_are_evaluated(redis_url: str, client: Client, redis_connection: Any) -> None:
    world = World(redis_url)
    world.learn(log_of(400))
    state = client.user("u1")
    assert state is not None and len(state.seen) == 5
    new = client.recommend("u1", 20, exclude_seen=True)
    assert not {r.item_id for r in new.items} & set(state.seen)
    assert client.recommend("u1", 20) == client.recommend("u1", 20, exclude_seen=False) != new
    # A job that serves only what is new to the user says so in its header.
    summary = orjson.loads(redis_connection.hget("w:model:0", "summary"))
    assert summary["repeats"] is True
    summary["repeats"] = False
    redis_connection.hset("w:model:0", "summary", orjson.dumps(summary))
    assert client.recommend("u1", 20) == new


def test_a_new_users_first_event_changes_the_answer(redis_url: str, client: Client) -> None:
    world = World(redis_url)
    world.learn(
        [pair for n in range(60) for pair in ((f"a{n}", "tea"), (f"a{n}", "milk"), (f"b{n}", "rum"), (f"b{n}", "cola"))]
    )
    popular = client.recommend("eve", 1)
    assert not popular.known
    for first, then in (("rum", "cola"), ("tea", "milk")):
        user = f"new-{first}"
        world.learn([(user, first)])
        best = client.recommend(user, 1, exclude_seen=True)
        assert best.known and best.items[0].item_id == then


def test_history_and_similar_items(redis_url: str, client: Client) -> None:
    world = World(redis_url)
    world.learn(log_of(400))
    state = client.user("u2")
    assert state is not None and state.history is not None
    model = world.learners[0].model
    names = model.ids["item"].names  # type: ignore[attr-defined]
    assert [names[number] for number in state.history.items][-5:] == list(state.seen)
    similar = client.similar("i0", 5)
    assert similar is not None and len(similar) == 5 and similar[0].score <= 1.0


def test_an_item_that_expired_is_left_out(redis_url: str, redis_connection: Any, client: Client) -> None:
    world = World(redis_url)
    world.learn(log_of(300))
    before = client.score("u1", ["i1"])
    user = client.user("u1")
    assert user is not None
    redis_connection.delete(client.keys.item(user.seen[-1]))
    after = client.score("u1", ["i1"])
    assert before["i1"] is not None and after["i1"] is not None
    assert len(client.recommend("u1", 10).items) == 10
