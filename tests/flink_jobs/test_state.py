"""The state folder: what it remembers, and which run may go on from it."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from flink_jobs.settings import SettingsError
from flink_jobs.state import Manifest, StateError, StateFolder, may_go_on
from udfs.requests import Journal

FIXED = {"shards": 2, "model": {"name": "funk_mf"}, "prefix": "p"}
MANIFEST = Manifest(epoch=7, prefix="p", fixed=FIXED, source="generator", runs=3)


def snapshot(path: Path, at: int) -> Path:
    """A completed snapshot, finished at ``at`` seconds."""
    path.mkdir(parents=True)
    (path / "_metadata").touch()
    os.utime(path / "_metadata", (at, at))
    return path


def test_a_manifest_comes_back(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path / "new" / "state")
    assert folder.load() is None
    folder.store(MANIFEST)
    assert folder.load() == MANIFEST
    folder.store(replace(MANIFEST, runs=4))
    assert folder.load() == replace(MANIFEST, runs=4)
    assert [p.name for p in folder.path.iterdir()] == ["manifest.json"]


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"layout": 1}', '{"layout": 1, "epoch": 1, "more": 2}'])
def test_a_damaged_manifest_says_so(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(StateError, match=r"manifest.json is damaged .* --fresh starts anew"):
        StateFolder(tmp_path).load()


def test_a_newer_manifest_is_refused(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path)
    folder.store(replace(MANIFEST, layout=2))
    with pytest.raises(StateError, match=r"has layout 2, this freshet reads 1"):
        folder.load()


def test_a_run_goes_on_with_the_same_settings() -> None:
    again = may_go_on(MANIFEST, dict(FIXED), "file:a")
    assert again == replace(MANIFEST, source="file:a", ended=False, runs=4)
    assert may_go_on(again, dict(FIXED), "file:a").runs == 5


@pytest.mark.parametrize(
    ("name", "now"), [("shards", 3), ("model", {"name": "funk_mf", "n_factors": 3}), ("prefix", None)]
)
def test_other_settings_are_refused(name: str, now: object) -> None:
    with pytest.raises(SettingsError) as caught:
        may_go_on(MANIFEST, {**FIXED, name: now}, "generator")
    message = str(caught.value)
    assert message.startswith(f"{name}: ") and repr(FIXED[name]) in message and repr(now) in message
    assert "--fresh" in message and "--state-dir" in message


def test_other_shards_are_refused_with_the_command_that_moves_them() -> None:
    with pytest.raises(SettingsError, match="freshet reshard --shards 5 and the other options of the run"):
        may_go_on(MANIFEST, {**FIXED, "shards": 5}, "generator")


def test_another_input_waits_for_the_end_of_this_one() -> None:
    stopped = replace(MANIFEST, ended=False, source="file:a")
    with pytest.raises(SettingsError, match=r"^source: .*'file:a'.*'file:b'"):
        may_go_on(stopped, dict(FIXED), "file:b")
    assert may_go_on(stopped, dict(FIXED), "file:a").runs == 4


def _hold(path: Path, held: multiprocessing.synchronize.Event, done: multiprocessing.synchronize.Event) -> None:  # type: ignore[name-defined]
    with StateFolder(path).locked():
        held.set()
        done.wait(30)


def test_one_run_at_a_time(tmp_path: Path) -> None:
    with (
        StateFolder(tmp_path).locked(),
        pytest.raises(StateError, match="another run is using"),
        StateFolder(tmp_path).locked(),
    ):
        pass
    with StateFolder(tmp_path).locked():
        pass


def test_the_lock_of_a_killed_run_is_free(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    held, done = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(tmp_path, held, done))
    process.start()
    assert held.wait(30)
    with pytest.raises(StateError, match="another run is using"), StateFolder(tmp_path).locked():
        pass
    process.kill()
    process.join()
    with StateFolder(tmp_path).locked():
        pass


def _hold_as_flink(
    path: Path, held: multiprocessing.synchronize.Event, done: multiprocessing.synchronize.Event
) -> None:  # type: ignore[name-defined]
    with path.open("w") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        held.set()
        done.wait(30)


def test_flink_of_a_killed_run_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = multiprocessing.get_context("fork")
    held, done = context.Event(), context.Event()
    folder = StateFolder(tmp_path)
    process = context.Process(target=_hold_as_flink, args=(folder.flink_lock, held, done))
    process.start()
    assert held.wait(30)
    with monkeypatch.context() as patch:
        patch.setattr("flink_jobs.state._ORPHAN_SECONDS", 0.2)
        with pytest.raises(StateError, match=r"was killed .* still runs: end the java process that has .*flink\.lock"):
            folder.locked().__enter__()
    ended = threading.Timer(0.3, done.set)
    ended.start()
    with folder.locked():
        assert done.is_set()
    process.join()


def test_the_newest_snapshot_is_taken(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path)
    assert folder.newest_snapshot(MANIFEST) is None
    saved = snapshot(folder.savepoints / "savepoint-1", 100)
    stopped = replace(MANIFEST, savepoint=str(saved))
    assert folder.newest_snapshot(stopped) == str(saved)
    snapshot(folder.checkpoints / "job" / "chk-1", 50)
    assert folder.newest_snapshot(stopped) == str(saved)
    newer = snapshot(folder.checkpoints / "job" / "chk-2", 200)
    (folder.checkpoints / "job" / "chk-3").mkdir()  # not completed
    assert folder.newest_snapshot(stopped) == str(newer)
    assert folder.newest_snapshot(MANIFEST) == str(newer)


def test_a_savepoint_that_is_gone_is_not_passed_over(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path)
    snapshot(folder.checkpoints / "job" / "chk-1", 50)
    with pytest.raises(StateError, match=r"savepoint-9 is gone; bring it back, or start anew with --fresh"):
        folder.newest_snapshot(replace(MANIFEST, savepoint=str(folder.savepoints / "savepoint-9")))


def test_it_tells_whether_a_run_uses_it(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path)
    assert not folder.in_use
    with folder.locked():
        assert StateFolder(tmp_path).in_use
    assert not folder.in_use


def test_only_the_kept_snapshot_stays(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path)
    kept, old = (snapshot(folder.savepoints / f"savepoint-{n}", n) for n in (2, 1))
    checkpoint = snapshot(folder.checkpoints / "job" / "chk-1", 1)
    folder.drop_snapshots_but(str(kept))
    assert kept.exists() and not old.exists() and not checkpoint.exists()


def test_starting_anew_keeps_the_redis_of_other_prefixes(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path)
    folder.store(MANIFEST)
    snapshot(folder.savepoints / "savepoint-1", 1)
    folder.redis.mkdir()
    (folder.redis / "redis.rdb").touch()
    with Journal(folder.journal).requesting(["ann"], 1):
        pass
    folder.clear()
    assert folder.load() is None and folder.newest_snapshot(MANIFEST) is None
    assert folder.journal.read_bytes() == b""
    assert (folder.redis / "redis.rdb").exists()
    folder.clear()
