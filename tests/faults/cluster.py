"""A Flink cluster in this process, whose task managers can be killed and whose job manager can lose its leadership."""

from __future__ import annotations

import random
import threading
import time
from typing import Any, Final

_SECONDS: Final = 60.0


class Cluster:
    """Runs one job at a time; give :meth:`execute` to :func:`flink_jobs.runner.run`.

    Parameters
    ----------
    task_managers
        How many there are; each has slots for its share of the job, and one that is killed is replaced.
    """

    def __init__(self, task_managers: int = 1) -> None:
        self._task_managers = task_managers
        self._lock = threading.Lock()
        self._mini: Any = None
        self._job: Any = None
        self._alive: list[int] = []

    def execute(self, env: Any) -> Any:
        """Starts a cluster, submits the job to it, and returns Flink's client of the job; the cluster ends with it."""
        from pyflink.java_gateway import get_gateway

        jvm = get_gateway().jvm
        runtime, java_env = jvm.org.apache.flink.runtime, env._j_stream_execution_environment
        graph = env._generate_stream_graph(clear_transformations=True, job_name="freshet")
        values = jvm.org.apache.flink.configuration.Configuration(java_env.getConfiguration())
        parallelism = int(values.toMap()["parallelism.default"])
        loader = java_env.getUserClassloader()
        utils = jvm.org.apache.flink.client.deployment.executors.PipelineExecutorUtils
        graph = utils.getStreamGraph(graph, values)
        built = (
            getattr(runtime.minicluster, "MiniClusterConfiguration$Builder")()
            .setConfiguration(values)
            .setNumTaskManagers(self._task_managers)
            .setNumSlotsPerTaskManager(-(-parallelism // self._task_managers))
            .setHaServices(getattr(runtime.minicluster, "MiniCluster$HaServices").WITH_LEADERSHIP_CONTROL)
            .withRandomPorts()
            .build()
        )
        mini = runtime.minicluster.MiniCluster(built)
        mini.start()
        self._keep_checkpoints(mini, jvm)
        job = mini.submitJob(graph).get().getJobID()
        client = runtime.minicluster.MiniClusterJobClient
        ends = jvm.java.lang.Class.forName(f"{client._fqn}$JobFinalizationBehavior")  # private to its package
        behaviour = next(of for of in ends.getEnumConstants() if str(of.toString()) == "SHUTDOWN_CLUSTER")
        with self._lock:
            self._mini, self._job, self._alive = mini, job, list(range(self._task_managers))
        return client(job, mini, loader, behaviour)

    def _keep_checkpoints(self, mini: Any, jvm: Any) -> None:
        """Has a new leader begin with its predecessor's checkpoints, as one does whose cluster keeps them in ZooKeeper
        or Kubernetes; by itself this one would begin where the job was submitted."""
        services = mini.getHaLeadershipControl().get()
        field = services.getClass().getDeclaredField("checkpointRecoveryFactory")
        field.setAccessible(True)
        self._stores = _Stores(jvm)
        factory = jvm.org.apache.flink.runtime.checkpoint.PerJobCheckpointRecoveryFactory(self._stores)
        field.set(services, factory)

    def replace_task_manager(self, rng: random.Random) -> str:
        """Kills a task manager, and starts another in its place."""
        with self._lock:
            at = rng.randrange(len(self._alive))
            index = self._alive.pop(at)
            self._mini.terminateTaskManager(index)
            self._mini.startTaskManager()
            self._alive.append(max([index, *self._alive]) + 1)
            return f"task manager {index} killed and replaced"

    def change_leader(self, away: float) -> None:
        """Takes the leadership from the job's manager, and gives it to another after ``away`` seconds."""
        with self._lock:
            control = self._mini.getHaLeadershipControl().get()
            control.revokeJobMasterLeadership(self._job).get()
            time.sleep(away)
            control.grantJobMasterLeadership(self._job).get()


class _Stores:
    """Makes the store of completed checkpoints of a leader; Java calls it."""

    class Java:
        implements = [
            "org.apache.flink.runtime.checkpoint.PerJobCheckpointRecoveryFactory$CheckpointStoreRecoveryHelper"
        ]

    def __init__(self, jvm: Any) -> None:
        self._jvm = jvm

    def recoverCheckpointStore(  # noqa: N802 - Java's name
        self, at_most: int, previous: Any, registries: Any, executor: Any, mode: Any
    ) -> Any:
        known = self._jvm.java.util.ArrayList() if previous is None else previous.getAllCheckpoints()
        registry = registries.create(executor, known, mode)
        return self._jvm.org.apache.flink.runtime.checkpoint.EmbeddedCompletedCheckpointStore(at_most, known, registry)
