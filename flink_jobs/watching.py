"""A job that runs, from its submission to its savepoint: its progress, and what hangs or is lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import redis

from flink_jobs.flink import JobFailed, RunningJob, StopRefused
from flink_jobs.nursery import Nursery
from flink_jobs.progress import Display, Monitor, Standing, Watchdog

_POLL_SECONDS: Final = 0.2
_STOP_SECONDS: Final = 60.0
_ASK_SECONDS: Final = 2.0  # between questions to Flink that take it some milliseconds


class Watch:
    """A job from its submission to its savepoint: shows its progress, and ends workers that hang."""

    def __init__(
        self,
        job: RunningJob,
        monitor: Monitor,
        display: Display,
        watchdog: Watchdog,
        workers: Nursery,
        interrupted: threading.Event,
    ) -> None:
        self._job = job
        self._monitor = monitor
        self._display = display
        self._watchdog = watchdog
        self._workers = workers
        self._interrupted = interrupted
        self._standing = Standing({"read": 0})
        self._checkpointing: tuple[int, int] | None = None
        self._asked_at = 0.0
        self._lacking = False

    def until_stopped(self, savepoints: Path) -> tuple[bool, str]:
        """Whether the whole input was learned, and the savepoint.

        Raises
        ------
        JobFailed
            If the job failed for good, or goes on but gives no savepoint.
        """
        refused: dict[int, float] = {}  # since when, by attempt: what a restart has mended is no reason to give up
        while True:
            complete = self._until_done()
            try:
                return complete, self._job.stop(savepoints, drain=complete, meanwhile=self._while_stopping)
            except StopRefused as error:
                since = refused.setdefault(self._job.attempt, time.monotonic())
                if time.monotonic() - since > _STOP_SECONDS:
                    raise JobFailed(str(error)) from error
                time.sleep(_POLL_SECONDS)

    def _until_done(self) -> bool:
        """True when the input is learned, False when an interrupt came."""
        while True:
            standing = self._look("")
            if standing.fenced:
                self._job.cancel()
                raise JobFailed(
                    "another job, submitted later, writes under the same prefix: this one has ended for good. What it "
                    "learned since its last checkpoint is lost; go on with the other, or give one of them another "
                    "--prefix"
                )
            if self._job.ended:
                raise self._job.failure()
            # After a restart Redis is ahead of the job, until the job has caught up.
            if standing.complete and standing.attempt == self._job.attempt:
                return True
            if self._interrupted.is_set():
                return False
            self._ask_flink()
            self._end_if_hung(standing.alive | self._checkpoint_mark())
            self._interrupted.wait(_POLL_SECONDS)

    def _ask_flink(self) -> None:
        """Looks, now and then, at its checkpoints, and for task managers that are gone."""
        if time.monotonic() - self._asked_at < _ASK_SECONDS:
            return
        self._asked_at, self._checkpointing = time.monotonic(), self._job.checkpointing
        lacking = self._job.lacks_task_managers()
        if lacking and self._lacking:  # not one that is just coming
            self._display.say("a task manager is lost: starting another; the job goes on from its checkpoint")
            self._job.start_task_manager()
        self._lacking = lacking and not self._lacking

    def _checkpoint_mark(self) -> dict[str, object]:
        """What must move while a checkpoint is under way: it finds a worker that hangs and has no beat."""
        return {} if self._checkpointing is None else {"checkpoint": self._checkpointing}

    def _while_stopping(self) -> None:
        standing = self._look(", stopping")
        self._ask_flink()
        # Windows that close write; that nobody has beats any more is as it should be.
        self._end_if_hung({"stop": (standing.writes, standing.published_at, standing.alive)})
        time.sleep(_POLL_SECONDS)

    def _look(self, note: str) -> Standing:
        try:
            self._standing = self._monitor.standing()
        except (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError):
            note += ", Redis does not answer"  # the job waits for it, and fails when it has waited too long
        self._display.show(self._standing, self._job.status.lower() + note)
        return self._standing

    def _end_if_hung(self, marks: Mapping[str, object]) -> None:
        if self._watchdog.hung(marks, time.monotonic()):
            self._display.say(
                "no progress: ending the workers, which seem to hang; the job goes on from its checkpoint"
            )
            self._workers.end_workers()
