"""What ``flink run`` runs: builds the job from the options of the run, and from what ``freshet submit`` has drawn.

It draws nothing and changes nothing, so it may run again: a job manager that takes over runs it once more.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import click


def name(prefix: str) -> str:
    """Of a job, as Flink shows it."""
    return f"freshet {prefix}"


def build_and_submit(resolved: Any) -> None:
    """Builds the job in the environment that Flink's client has prepared, and submits it."""
    from flink_jobs.flink import environments, job_configuration
    from flink_jobs.kafka import kafka_of
    from flink_jobs.preparing import as_learned, files_of, fixed_settings, folder_of, job_of
    from flink_jobs.settings import SettingsError
    from flink_jobs.state import StateError, may_go_on
    from flink_jobs.topology import build

    settings, folder = resolved.settings, folder_of(resolved)
    manifest, submission = folder.load(), folder.submission()
    if manifest is None or submission is None or not manifest.on_cluster:
        raise StateError(
            f"nothing was prepared in {folder.path}: submit with freshet submit, or prepare with freshet submit "
            "--prepare and the same options"
        )
    resolved = as_learned(resolved, manifest)
    may_go_on(manifest, fixed_settings(resolved), settings.source)
    kafka = kafka_of(resolved)
    if kafka is not None and resolved.topic is not None:
        if submission.starts is None:
            raise SettingsError(f"source: the submission in {folder.path} was prepared for another source")
        kafka = kafka.reading(resolved.topic, submission.starts)
    storage = settings.cluster.storage or folder.path.as_uri()
    values = job_configuration(settings, f"{storage}/checkpoints", settings.parallelism)
    with environments(values) as (env, table_env):
        # How many subtasks there are is Flink's to say, by `flink run -p` or its own configuration.
        parallelism = int(env.get_parallelism())
        table_env.get_config().set("table.exec.resource.default-parallelism", str(parallelism))
        resolved = replace(resolved, settings=settings.model_copy(update={"parallelism": parallelism}))
        run_id, files = manifest.run_id, files_of(resolved)
        build(env, table_env, job_of(resolved, manifest, settings.redis, files, run_id, submission.number, kafka))
    env.execute_async(name(settings.prefix))


def main() -> None:
    from flink_jobs.options import job_errors, run_options, settings_from

    @click.command()
    @run_options
    def job(**options: Any) -> None:
        with job_errors():
            build_and_submit(settings_from(options))

    job.main(prog_name="freshet", args=sys.argv[1:])


if __name__ == "__main__":
    main()
