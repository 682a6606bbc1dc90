"""A job whose workers are killed and whose Redis is away, full or read-only ends as one that was left alone."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from flink_jobs import runner
from flink_jobs.embedded import embedded_redis
from flink_jobs.flink import JobFailed, RunningJob
from serving import Client
from serving.connection import connect
from tests.faults.injector import Injector, Target, workers
from tests.faults.leg import Plan, Stage, run_leg
from tests.faults.reader import Reader
from tests.flink.harness import Rows, balanced, run_job, stored_rows, write_lines
from tests.flink.test_blended import learned_rows
from tests.flink.test_runs import all_fields, rated_events

N = 60_000
BRIEF = ("cut_connections", "pause_redis", "fill_redis", "make_replica", "forget_scripts")
SETTINGS: Mapping[str, Any] = {"model.n_factors": 4, "model.seed": 3, "batch_bytes": 20_000}


class Left(NamedTuple):
    """What a run leaves: its summary, Redis, and the rows of its state to the bit."""

    summary: dict[str, Any]
    fields: dict[bytes, dict[bytes, bytes]]
    rows: Rows


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"file:{write_lines(tmp_path_factory.mktemp('log') / 'events.jsonl', rated_events(N))}"


@pytest.fixture(scope="module")
def undisturbed(source: str, tmp_path_factory: pytest.TempPathFactory) -> Left:
    """What a run leaves that was left alone."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with embedded_redis((folder / "redis").resolve()) as url:
        summary = run_job(folder, {**SETTINGS, "source": source}, notes=folder / "notes")
        return Left(summary, all_fields(connect(url)), stored_rows(folder / "notes"))


@pytest.mark.parametrize("seed", [1, 2])
def test_faults_leave_no_trace(seed: int, source: str, undisturbed: Left, tmp_path: Path) -> None:
    expected, fields, rows = undisturbed
    faults = ["kill_worker", BRIEF[seed], "kill_worker", *BRIEF[:: 1 if seed % 2 else -1]]
    faults += ["silence_redis"] * (seed == 2)
    with embedded_redis((tmp_path / "redis").resolve()) as url:
        injector = Injector(Target(Client(url), connect(url)), faults, seed, apart=3_000)
        thread = injector.start()
        with Reader(url, [f"r{n}" for n in range(97)]) as reader:
            summary = run_job(tmp_path, {**SETTINGS, "source": source}, notes=tmp_path / "notes")
        thread.join(timeout=1)
        assert len(injector.done) == len(faults), injector.done
        assert reader.report["wrong"] == [] and reader.report["looked"] > 0
        # Something was replayed, or nothing was proved.
        assert summary["replayed"] > 0
        assert balanced(summary["events"])
        assert {k: summary[k] for k in ("events", "metrics")} == {k: expected[k] for k in ("events", "metrics")}
        assert all_fields(connect(url)) == fields
        assert stored_rows(tmp_path / "notes") == rows


@pytest.mark.parametrize("name", ["stack", "blend"])
def test_faults_leave_no_trace_in_other_models(name: str, tmp_path: Path) -> None:
    """Their rows are larger than most, and an event changes weights of all, of a blend rows of other items, too."""
    left, source = [], f"file:{write_lines(tmp_path / 'events.jsonl', rated_events(N // 2))}"
    for faults in ([], ["kill_worker", "cut_connections", "kill_worker"]):
        folder = tmp_path / str(len(faults))
        with embedded_redis((folder / "redis").resolve()) as url:
            injector = Injector(Target(Client(url), connect(url)), faults, 5, apart=4_000)
            thread = injector.start()
            settings = {"model.name": name, "batch_bytes": 20_000, "source": source}
            summary = run_job(folder, settings, notes=folder / "notes")
            thread.join(timeout=1)
            assert len(injector.done) == len(faults), injector.done
            assert (summary["replayed"] > 0) == bool(faults) and balanced(summary["events"])
            fields = (learned_rows if name == "blend" else all_fields)(connect(url))
            of_all = connect(url).hget("freshet:model:0", "blend")
            left.append((summary["metrics"], summary["ranking"], of_all, fields, stored_rows(folder / "notes")))
    assert left[0] == left[1]


def test_a_command_that_was_killed_goes_on(source: str, undisturbed: Left, tmp_path: Path) -> None:
    expected, fields, _ = undisturbed
    settings = [f"--set={name}={value}" for name, value in {**SETTINGS, "checkpoint_interval": "1s"}.items()]
    command = [Path(sys.executable).parent / "freshet", "run", "--source", source, "--state-dir", tmp_path, *settings]
    with embedded_redis((tmp_path / "redis").resolve()) as url:
        client = Client(url)
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while (header := client.header(0)) is None or header.summary["counts"]["learned"] < N // 3:
            assert process.poll() is None
            time.sleep(0.02)
        process.kill()
        process.wait()
        # What it leaves behind may live a moment longer; it is fenced off.
        summary = run_job(tmp_path, {**SETTINGS, "source": source})
        assert 0 < summary["events"]["read"] < N  # it did not start anew
        assert balanced(summary["events"]) and summary["metrics"] == expected["metrics"]
        assert all_fields(connect(url)) == fields


def learned_only(fields: Mapping[bytes, Mapping[bytes, bytes]]) -> dict[bytes, dict[bytes, bytes]]:
    """What learners write: windows that have closed are in no state any more."""
    of_windows = (b"t:", b"session", b"pruned")
    return {key: {k: v for k, v in hashed.items() if not k.startswith(of_windows)} for key, hashed in fields.items()}


def test_a_wiped_redis_is_written_again(source: str, undisturbed: Left, tmp_path: Path) -> None:
    expected, fields, _ = undisturbed
    with embedded_redis((tmp_path / "redis").resolve()) as url:
        faults = ["wipe_redis", "kill_worker", "wipe_redis"]
        injector = Injector(Target(Client(url), connect(url)), faults, 3, apart=8_000)
        injector.start()
        summary = run_job(tmp_path, {**SETTINGS, "source": source})
        assert len(injector.done) == len(faults), injector.done
        assert summary["metrics"] == expected["metrics"] and balanced(summary["events"])
        assert learned_only(all_fields(connect(url))) == learned_only(fields)
        assert set(Client(url).known_items()) == {key.decode().split(":", 2)[2] for key in fields if b":item:" in key}


def test_a_worker_that_hangs_is_ended(
    source: str, undisturbed: Left, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, fields, rows = undisturbed
    monkeypatch.setattr(runner, "_HUNG_SECONDS", 2.0)
    with embedded_redis((tmp_path / "redis").resolve()) as url:
        injector = Injector(Target(Client(url), connect(url)), ["stop_worker"], 4, apart=20_000)
        injector.start()
        settings = {**SETTINGS, "source": source, "redis_client.patience": "1s"}
        summary = run_job(tmp_path, settings, notes=tmp_path / "notes")
        assert len(injector.done) == 1, "it did not go on"
        assert summary["metrics"] == expected["metrics"] and balanced(summary["events"])
        assert all_fields(connect(url)) == fields
        assert stored_rows(tmp_path / "notes") == rows


@pytest.mark.parametrize("fault", ["kill", "suspend"])
def test_workers_that_fail_while_the_job_stops(
    fault: str, source: str, undisturbed: Left, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis has all by then, the state that is restored has not: it must be learned again before it is saved."""
    expected, fields, rows = undisturbed
    monkeypatch.setattr(runner, "_HUNG_SECONDS", 2.0)
    stop, stops = RunningJob.stop, 0

    def failing(self: RunningJob, *args: Any, **kwargs: Any) -> str:
        nonlocal stops
        stops += 1
        if stops == 1:
            for worker in workers():  # all: which of them a stop still needs is drawn by the time
                getattr(worker, fault)()
        return stop(self, *args, **kwargs)

    monkeypatch.setattr(RunningJob, "stop", failing)
    with embedded_redis((tmp_path / "redis").resolve()) as url:
        settings = {**SETTINGS, "source": source, "redis_client.patience": "1s", "checkpoint_interval": "1h"}
        summary = run_job(tmp_path, settings, notes=tmp_path / "notes")
        assert stops > 1
        assert summary["metrics"] == expected["metrics"] and balanced(summary["events"])
        assert all_fields(connect(url)) == fields
        assert stored_rows(tmp_path / "notes") == rows
        # The savepoint has it all: nothing is left to learn.
        again = run_job(tmp_path, {**SETTINGS, "source": source})
        assert again["events"]["read"] == 0 and again["metrics"] == expected["metrics"]


def test_a_job_that_was_replaced_ends_for_good(source: str, tmp_path: Path) -> None:
    with embedded_redis((tmp_path / "redis").resolve()) as url:
        outcome: list[BaseException | dict[str, Any]] = []

        def older() -> None:
            try:
                settings = {**SETTINGS, "source": "generator", "generator.rate": 2_000, "generator.events": 200_000}
                outcome.append(run_job(tmp_path / "older", {**settings, "redis": url}))
            except JobFailed as error:
                outcome.append(error)

        thread = threading.Thread(target=older)
        thread.start()
        client = Client(url)
        while client.header(0) is None:
            assert thread.is_alive()
        newer = run_job(tmp_path / "newer", {**SETTINGS, "source": source, "redis": url, "fresh": True})
        thread.join(timeout=60)
        [error] = outcome
        assert isinstance(error, JobFailed) and "submitted later" in str(error)
        # What the older one went on to learn is not in Redis.
        header = client.header(0)
        assert header is not None and header.summary["counts"]["learned"] == newer["events"]["learned"] == N
        assert client.user("u1") is None


MIXED = (
    # In workers and in Flink, with a savepoint in between; aligned, then unaligned.
    Plan(
        11,
        40_000,
        "hashmap",
        (
            Stage(1, ("throw_before", "fail_checkpoints", "throw_after", "change_leader")),
            Stage(2, ("throw_published", "replace_task_manager", "kill_worker"), unaligned=True),
        ),
        checkpoints=20,
    ),
    # In Redis and on the way there.
    Plan(
        12,
        65_000,
        "rocksdb",
        (
            Stage(
                2,
                (
                    "restart_redis",
                    "delay_network",
                    "half_request",
                    "put_back_redis",
                    "kill_worker",
                    "throw_published",  # mostly something to replay, also where a checkpoint came just before
                    "drop_reply",
                    "restart_redis_empty",
                    "cut",
                    "half_reply",
                    "hold_redis",
                    "reset_connections",
                ),
            ),
        ),
        checkpoints=20,
    ),
)


@pytest.mark.parametrize("plan", MIXED, ids=lambda plan: plan.backend)
def test_mixed_faults_leave_what_a_replay_in_one_process_leaves(plan: Plan, tmp_path: Path) -> None:
    outcome = run_leg(tmp_path, plan)
    assert outcome.violations == []
    assert outcome.checkpoints >= 20
