"""How well a model ranks, over all shards: in the standing of a run, on the way and at its end."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import numpy as np
import orjson
import pytest
from rich.console import Console

from flink_jobs import rankings
from flink_jobs.preparing import ranking_of
from flink_jobs.progress import Display, Monitor, Standing, standing, summary_table
from flink_jobs.settings import Layer, SettingsError, resolve
from serving.schema import Keys
from tests.flink_jobs.test_progress import Job
from tests.shells import publish
from tests.udfs.counting import Counting
from tests.udfs.test_evaluating import log_of
from udfs.publisher import Publisher
from udfs.ranking import MISS, RankingConfig, RankingScores

CONFIG = RankingConfig(k=3, window=40)


def lines(n: int, seed: int = 0) -> list[bytes]:
    return [
        orjson.dumps({"user_id": user, "item_id": item, "timestamp": time, "event_type": "view"})
        for time, _, user, item, *_ in log_of(n, seed)
    ]


def job_of(shards: int, config: RankingConfig | None = CONFIG, n: int = 300) -> Job:
    job = Job(shards, Counting, config)
    job.put(lines(n))
    job.put([], ended=True)
    return job


def values_of(scores: list[tuple[float, float]], names: tuple[str, ...] = ("faded", "popularity")) -> dict[str, Any]:
    """What is shown where rankers had these shares of hits at rank 1 and at rank 2."""
    of = RankingScores(RankingConfig(k=10, every=10), names, names[1:])
    at = np.arange(100)
    bounds = [(round(100 * first), round(100 * (first + second))) for first, second in scores]
    better = np.stack([np.where(at < one, 0, np.where(at < two, 1, MISS)) for one, two in bounds], axis=1)
    of.update(better, np.zeros_like(better), at % 2 == 0, at % 4 == 0, ["tea", "rum"])
    return of.values(8)


def printed(*things: Any) -> str:
    out = io.StringIO()
    console = Console(file=out, width=120)
    for thing in things:
        console.print(thing, highlight=False)
    return out.getvalue()


@pytest.mark.parametrize("shards", [1, 3])
def test_a_run_ranks_as_its_shards_together(shards: int) -> None:
    job = job_of(shards)
    now = job.standing
    total = RankingScores(CONFIG, Counting.rankers, Counting.baselines)
    for learner in job.learners:
        assert learner.ranking is not None
        total.merge(learner.ranking)
    assert now.ranking == total.values(now.items)
    assert now.ranking is not None and now.ranking["all"]["faded"]["n"] == now.events["learned"] == 300
    assert orjson.loads(orjson.dumps(now.ranking)) == now.ranking
    assert now.ranking["protocol"]["groups"] == "held out" and 0.0 < now.ranking["coverage"] <= 1.0


def test_models_of_ratings_have_a_ranking_too_and_runs_that_evaluate_nothing_have_none() -> None:
    job = Job(2, ranking=CONFIG)
    events = [{"user_id": "ann", "item_id": i, "event_value": 3.0, "timestamp": 1 + n} for n, i in enumerate("abab")]
    job.put([orjson.dumps(event) for event in events], ended=True)
    ranking = job.standing.ranking
    assert ranking is not None and ranking["model"] == "baseline" and ranking["all"]["popularity"]["n"] == 4
    assert job_of(2, None).standing.ranking is None
    assert standing({}, [], "7-0", 2, (0, 0)).ranking is None


def test_what_a_run_by_another_protocol_has_left_is_not_added() -> None:
    job = job_of(2)
    left = [orjson.loads(orjson.dumps(learner.summary())) for learner in job.learners]
    job.ranking = replace(CONFIG, k=5)
    job.stop()
    job.put(lines(60, seed=1))
    job.put([], ended=True)
    new = job.learners[1].summary()
    # The other shard has not written yet.
    now = standing(job.ledger, [left[0], new], job.run_id, 2, (0, 0)).ranking
    assert now is not None and now["protocol"]["k"] == 5
    assert now["all"]["faded"]["n"] == new["counts"]["learned"] - left[1]["counts"]["learned"]
    whole = job.standing.ranking
    assert whole is not None and whole["all"]["faded"]["n"] == 60
    # Where this run evaluates nothing, what another has left is not shown.
    new["ranking"] = None
    assert standing(job.ledger, [left[0], new], job.run_id, 2, (0, 0)).ranking is None


def test_a_run_by_the_same_protocol_goes_on_with_the_scores() -> None:
    job = job_of(2)
    job.stop()
    job.put(lines(60, seed=1))
    job.put([], ended=True)
    now = job.standing
    assert now.ranking is not None and now.ranking["all"]["faded"]["n"] == 360 and now.events["learned"] == 60


def test_coverage_is_of_all_items_in_the_end(redis_url: str, redis_connection: Any) -> None:
    publisher, job = Publisher(redis_url, "p"), Job(2, Counting, CONFIG)
    monitor = Monitor(redis_connection, Keys("p"), 2, job.run_id, 0)
    # Each shard knows the items of its own users only.
    job.put(
        [
            orjson.dumps({"user_id": user, "item_id": f"{user}-{at}", "timestamp": 1_700_000_000_000 + at})
            for user in ("1", "42")
            for at in range(10)
        ]
    )
    job.put([], ended=True)
    publisher.ledger(job.intake.ledger_fields())
    for shard, learner in enumerate(job.learners):
        assert learner.learned == 10
        publish(publisher, learner, shard=shard, shards=2)
    meanwhile, end = monitor.standing(), monitor.final()
    assert (meanwhile.items, end.items) == (10, 20) and meanwhile.ranking is not None and end.ranking is not None
    assert meanwhile.ranking["coverage"] == 1.0
    assert end.ranking["coverage"] == pytest.approx(18 / 20, abs=0.02)  # the last of each came in no list
    publisher.close()


def test_progress_says_how_well_the_model_ranks_beside_its_best_baseline() -> None:
    ranking = values_of([(0.2, 0.1), (0.1, 0.0), (0.15, 0.1)], ("blend", "popularity", "decayed popularity"))
    assert rankings.line(ranking) == "hit@10=0.3000 ndcg@10=0.2631 vs decayed popularity 0.2500 0.2131"
    out = io.StringIO()
    with Display(Console(file=out, width=250)) as display:
        display._last_line = -1e9
        errors = {"mae": None, "rmse": None, "n": 0}
        display.show(Standing({"read": 5}, metrics_run=errors, ranking=ranking), "running")
        assert "hit@10=0.3000 ndcg@10=0.2631 vs decayed popularity" in printed(
            display._table(Standing({"read": 5}, metrics_run=errors, ranking=ranking), "running")
        )
    assert " hit@10=0.3000 ndcg@10=0.2631 vs decayed popularity 0.2500 0.2131 published=0" in out.getvalue()
    assert "mae" not in out.getvalue()


def test_before_anything_is_evaluated_progress_says_nothing() -> None:
    nothing = RankingScores(CONFIG, ["blend", "popularity"], ["popularity"]).values()
    assert rankings.line(nothing) == "" and list(rankings.verdicts(nothing)) == []
    assert "-" in printed(rankings.table(nothing))
    alone = values_of([(0.2, 0.1)], ("blend",))
    assert rankings.line(alone) == "hit@10=0.3000 ndcg@10=0.2631"


def test_the_end_shows_the_model_beside_its_baselines() -> None:
    ranking = values_of([(0.2, 0.1), (0.1, 0.0)], ("blend", "popularity")) | {"cut_groups": 3}
    text = printed(rankings.table(ranking))
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if line.startswith("│")]
    assert rows[0] == ["blend", "0.3000", "0.2631", "0.2500", "100"]
    assert rows[1] == ["popularity", "0.1000", "0.1000", "0.1000", "100"]
    assert [row[0] for row in rows[2:]] == [
        "blend, recent", "popularity, recent", "blend, new users", "blend, returning users", "blend, head items",
        "blend, tail items",
    ]  # fmt: skip
    assert [row[4] for row in rows[4:]] == ["50", "50", "25", "75"]
    assert "ranking: 1 event in 10, repeats allowed, groups held out" in text
    assert "25% of the items came in the model's lists. 3 groups went on in another batch" in text.replace("\n", " ")
    assert list(rankings.verdicts(ranking)) == []


@pytest.mark.parametrize(
    ("of_popularity", "said"),
    [
        (
            (0.3, 0.0),
            "better than the model (ndcg@10 0.3000 against 0.2631, over 100 events): ",
        ),
        (
            (0.2, 0.1),
            "as well as the model (ndcg@10 0.2631 against 0.2631, over 100 events): ",
        ),
    ],
)
def test_a_baseline_that_the_model_does_not_beat_is_named(of_popularity: tuple[float, float], said: str) -> None:
    [verdict] = rankings.verdicts(values_of([(0.2, 0.1), of_popularity, (0.0, 0.0)], ("blend", "popularity", "last")))
    assert verdict.startswith(f"warning: popularity ranks {said}")


def test_that_popularity_ranks_better_than_a_model_of_ratings_is_no_warning() -> None:
    [verdict] = rankings.verdicts(values_of([(0.2, 0.1), (0.3, 0.0)], ("biased_mf", "popularity")))
    assert verdict.startswith("note: popularity ranks better than the model") and "--model blend" in verdict


def test_where_nothing_has_hits_nothing_is_said() -> None:
    ranking = values_of([(0.0, 0.0), (0.0, 0.0)], ("biased_mf", "popularity"))
    assert ranking["beaten_by"] == ["popularity"] and list(rankings.verdicts(ranking)) == []


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (RankingConfig(every=1), "every event, repeats allowed, groups held out"),
        (RankingConfig(every=10, repeats=False), "1 event in 10, only new to the user, groups held out"),
        (RankingConfig(held_out=False), "every event, repeats allowed, event by event"),
        (
            RankingConfig(others="left out"),
            "every event, repeats allowed, groups held out, others of the group left out",
        ),
        (
            RankingConfig(rarely=True, repeats=False),
            "20 events in 100,000 (of the first 20,000 1 in 100), only new to the user, groups held out",
        ),
    ],
)
def test_the_protocol_is_said(config: RankingConfig, said: str) -> None:
    assert rankings.protocol(RankingScores(config, ["blend"]).values()) == said


def test_errors_are_left_out_of_the_summary_of_a_model_that_ranks() -> None:
    none = {"mae": None, "n": 0}
    summary = {
        "events": {"read": 1}, "metrics_run": none, "metrics": none, "replayed": 0, "events_per_second": None,
        "published": {"users": 1, "items": 2, "writes": 3}, "seconds": {"total": 1.5},
        "ranking": values_of([(0.1, 0.1)], ("a",)),
    }  # fmt: skip
    assert "mae" not in printed(summary_table(summary, {}))
    assert "mae (all runs)" in printed(summary_table(summary | {"ranking": None}, {}))


# ------------------------------------------------------------------------------------------- settings


def ranking_settings(model: str = "blend", **values: Any) -> RankingConfig:
    given = {"model.name": model} | {f"ranking.{name}": value for name, value in values.items()}
    return ranking_of(resolve([Layer("--set", given)]))


def test_settings_say_what_is_evaluated() -> None:
    assert ranking_settings() == RankingConfig(k=10, every=10, window=10_000)
    # None is, but groups are still what they are: a model may learn by them.
    assert ranking_settings(every="0", groups="event by event") == RankingConfig(every=0, held_out=False)
    given = ranking_settings(k="5", every="1", window="200", groups="event by event", repeats="false")
    assert given == RankingConfig(k=5, held_out=False, repeats=False, every=1, window=200)
    assert ranking_settings(others="left out") == RankingConfig(every=10, others="left out")
    # Models of ratings leave out what users have seen, served and evaluated, and are evaluated more seldom.
    rarely = RankingConfig(every=10, repeats=False, rarely=True, window=200)
    assert ranking_settings("biased_mf") == ranking_settings("stack") == rarely
    assert ranking_settings("kalman_mf", repeats="true", every="5") == RankingConfig(every=5)
    assert ranking_settings("baseline", others="left out") == replace(rarely, repeats=True, others="left out")


@pytest.mark.parametrize(
    "values",
    [{"k": "0"}, {"every": "-1"}, {"window": "19"}, {"groups": "whole"}, {"others": "no"}, {"repeats": "perhaps"}],
)
def test_settings_that_are_not_allowed_are_refused(values: dict[str, str]) -> None:
    [name] = values
    with pytest.raises(SettingsError, match=rf"^ranking\.{name} \(from --set\)"):
        ranking_settings(**values)


@pytest.mark.parametrize("besides", [{"groups": "event by event"}, {"repeats": "false"}])
def test_others_are_left_out_of_groups_that_are_held_out_with_repeats(besides: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match=r"^ranking\.others: .left out. is for groups .*, with repeats"):
        ranking_settings(others="left out", **besides)
