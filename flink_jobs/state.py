"""What a state folder remembers between runs, and whether a run may go on from it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import orjson

from flink_jobs.settings import SettingsError
from udfs.requests import Journal
from udfs.tally import Tally

LAYOUT: Final = 1
_ORPHAN_SECONDS: Final = 60.0  # for Flink to end after its command was killed; it takes a second or two
_POLL_SECONDS: Final = 0.05
# What was fixed later than the first manifests were written, and how it was until then.
_ADDED: Final[dict[str, Any]] = {"growth.min_events": [1], "ids.key": "none"}


class StateError(RuntimeError):
    """The state folder can't be used; the message says why and what to do."""


class StateInUse(StateError):
    """Another process holds the state folder."""


@dataclass(frozen=True)
class Manifest:
    """One file that says what the folder holds.

    Attributes
    ----------
    epoch
        Milliseconds at which this state was born: it orders versions in Redis over fresh starts.
    part
        How many inputs have ended in this state.
    source
        Of the last run; ``ended`` says whether its input did.
    fixed
        Settings that the state depends on, and so must stay.
    gather
        Milliseconds in which results of windows are gathered: windows that are open keep it.
    savepoint
        Of the last stop; a newer checkpoint goes before it.
    shards_before
        Redis may still have what so many shards have written, before there were others: it must be taken away.
    on_cluster
        Whether the last job was submitted to a cluster: then nobody holds the folder while it runs, and
        nobody notes its savepoints here.
    """

    epoch: int
    prefix: str
    fixed: dict[str, Any]
    part: int = 0
    source: str = ""
    ended: bool = True
    future_bound: int = 0
    gather: int = 0
    savepoint: str | None = None
    runs: int = 0
    shards_before: int | None = None
    on_cluster: bool = False
    layout: int = field(default=LAYOUT)

    @property
    def run_id(self) -> str:
        return f"{self.epoch}-{self.runs}"


@dataclass(frozen=True)
class Submission:
    """What was drawn once for a job that goes to a cluster, where the job may be built again and again from it.

    Attributes
    ----------
    number
        See :func:`~udfs.publisher.draw_submission`.
    once
        What the submission was made for: made for the same again, it is this one.
    starts
        Of the topic that is read, as :class:`~flink_jobs.kafka.Topic` has them.
    """

    number: int
    once: str | None = None
    starts: dict[int, int] | None = None


class StateFolder:
    """A folder with the embedded Redis, savepoints, checkpoints, the journal of requests and the manifest.

    Parameters
    ----------
    storage
        Where savepoints and checkpoints are, if elsewhere.
    """

    def __init__(self, path: Path, storage: Path | None = None) -> None:
        self.path = path.resolve()
        self.redis = self.path / "redis"
        self.savepoints = (storage or self.path) / "savepoints"
        self.checkpoints = (storage or self.path) / "checkpoints"
        self.logs = self.path / "log"
        self.flink_lock = self.path / "flink.lock"
        self.journal = self.path / "requests.jsonl"
        self.exchange = self.path / "reshard"
        self._manifest = self.path / "manifest.json"
        self._submission = self.path / "submission.json"

    @property
    def in_use(self) -> bool:
        """Whether a run holds the folder."""
        try:
            with self.locked():
                return False
        except StateError:
            return True

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the folder for this process.

        The Flink of a command that was killed lives on for a moment, and may still complete a checkpoint and discard
        the one before. So it is waited for.

        Raises
        ------
        StateInUse
            If another run holds it, or what a killed one left of Flink does not end.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / "lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise StateInUse(f"another run is using {self.path}; wait for it, or give --state-dir") from error
            self._wait_for_flink()
            yield

    def _wait_for_flink(self) -> None:
        """Until no JVM holds its lock."""
        until = time.monotonic() + _ORPHAN_SECONDS
        with self.flink_lock.open("w") as file:
            while True:
                try:
                    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except (BlockingIOError, PermissionError) as error:  # systems differ in which
                    if time.monotonic() > until:
                        raise StateInUse(
                            f"a command on {self.path} was killed {_ORPHAN_SECONDS:.0f} s ago or more, and its Flink "
                            f"still runs: end the java process that has {self.flink_lock} open, or give --state-dir"
                        ) from error
                    time.sleep(_POLL_SECONDS)
                else:
                    return

    def load(self) -> Manifest | None:
        if not self._manifest.exists():
            return None
        try:
            stored = orjson.loads(self._manifest.read_bytes())
            if stored["layout"] != LAYOUT:
                raise StateError(
                    f"{self._manifest} has layout {stored['layout']}, this freshet reads {LAYOUT}: "
                    "use the version that wrote it, or start anew with --fresh"
                )
            return Manifest(**stored)
        except (orjson.JSONDecodeError, TypeError, KeyError) as error:
            raise StateError(f"{self._manifest} is damaged ({error}); --fresh starts anew") from error

    def store(self, manifest: Manifest) -> None:
        """Replaces the manifest as a whole, or not at all."""
        self._replace(self._manifest, manifest)

    def submission(self) -> Submission | None:
        """What was last prepared for a cluster."""
        try:
            stored = orjson.loads(self._submission.read_bytes())
            starts = stored["starts"]
            return Submission(
                int(stored["number"]), stored["once"], starts and {int(number): at for number, at in starts.items()}
            )
        except FileNotFoundError:
            return None
        except (orjson.JSONDecodeError, TypeError, KeyError, ValueError) as error:
            raise StateError(f"{self._submission} is damaged ({error}): remove it, and submit again") from error

    def store_submission(self, submission: Submission) -> None:
        """Replaces it, and sees to it that there is a journal: workers of a cluster must see the file."""
        self.journal.touch()
        self._replace(self._submission, submission)

    def _replace(self, path: Path, content: Manifest | Submission) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        scratch = path.with_suffix(".new")
        with scratch.open("wb") as file:
            file.write(orjson.dumps(asdict(content), option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS))
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)

    def clear(self) -> None:
        """Forgets the learned state, but not the embedded Redis, which has other prefixes too."""
        for folder in (self.savepoints, self.checkpoints, self.exchange):
            shutil.rmtree(folder, ignore_errors=True)
        self._manifest.unlink(missing_ok=True)
        self._submission.unlink(missing_ok=True)
        Journal(self.journal).forget()
        Tally.of_retries(self.journal).forget()

    def newest_snapshot(self, manifest: Manifest) -> str | None:
        """The savepoint of the last stop, or a completed checkpoint that is newer: the run did not end well.

        Of a job on a cluster, whichever is newest.
        """
        candidates = [Path(manifest.savepoint)] if manifest.savepoint else []
        if manifest.on_cluster:
            candidates += self.savepoints.glob("savepoint-*")
        candidates += self._checkpoints()
        alive = [p for p in candidates if (p / "_metadata").exists()]
        if manifest.savepoint and Path(manifest.savepoint) not in alive and not manifest.on_cluster:
            raise StateError(f"the savepoint {manifest.savepoint} is gone; bring it back, or start anew with --fresh")
        return str(max(alive, key=_completed_at)) if alive else None

    def _checkpoints(self) -> list[Path]:
        """The folders of completed checkpoints."""
        return [path.parent for path in self.checkpoints.glob("*/chk-*/_metadata")]

    def last_checkpoint(self) -> int | None:
        """When the newest checkpoint was completed, by the wall clock in ms."""
        times = [_completed_at(path) for path in self._checkpoints()]
        return max(times) // 1_000_000 if times else None

    def drop_snapshots_but(self, keep: str) -> None:
        """Removes what a newer savepoint has replaced."""
        for path in self.savepoints.glob("savepoint-*"):
            if path != Path(keep):
                shutil.rmtree(path, ignore_errors=True)
        for path in self.checkpoints.glob("*"):
            if path not in Path(keep).parents:
                shutil.rmtree(path, ignore_errors=True)


def _completed_at(snapshot: Path) -> int:
    """When a checkpoint or savepoint was completed, by the wall clock in ns."""
    return (snapshot / "_metadata").stat().st_mtime_ns


def may_go_on(manifest: Manifest, fixed: dict[str, Any], source: str) -> Manifest:
    """The manifest of a run that goes on from ``manifest`` with these settings.

    Raises
    ------
    SettingsError
        If the state was learned with other settings, or its input has not ended and this is another.
    """
    for name, before in (_ADDED | manifest.fixed).items():
        now = fixed.get(name, _ADDED.get(name))
        if now != before and name == "shards":
            raise SettingsError(
                f"shards: the state was learned with {before!r}, this run has {now!r}: move it with freshet reshard "
                f"--shards {now} and the other options of the run, set it as it was, give another --state-dir, or "
                "start anew with --fresh"
            )
        if now != before:
            raise SettingsError(
                f"{name}: the state was learned with {before!r}, this run has {now!r}: "
                "set it as it was, give another --state-dir, or start anew with --fresh"
            )
    if not manifest.ended and manifest.source != source:
        raise SettingsError(
            f"source: the state stopped in the middle of {manifest.source!r}, and its open windows belong to it; "
            f"finish that first (the same --source again), or start anew with --fresh, before {source!r}"
        )
    return replace(manifest, source=source, ended=False, runs=manifest.runs + 1)
