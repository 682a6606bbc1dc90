"""`freshet delete-user`."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import click
import orjson
from redis.exceptions import RedisError

from flink_jobs.embedded import EmbeddedRedisError, embedded_redis
from flink_jobs.options import FAILED, UNUSABLE, fail, id_key, job_installed, lookup_options
from serving.identity import fingerprint, hidden


@click.command("delete-user")
@click.argument("user_ids", metavar="ID...", nargs=-1, required=True)
@lookup_options
def delete_user(user_ids: tuple[str, ...], redis: str, prefix: str, state_dir: Path, as_json: bool) -> None:
    """Delete users: from Redis at once, and from the state by the job that runs, or with the next run."""
    with job_installed():
        from flink_jobs.preparing import SILENT_SECONDS, silent_seconds
        from flink_jobs.state import StateError, StateFolder
        from serving.connection import connect, server_of
        from serving.schema import Keys
        from udfs.requests import Journal, JournalError
        from udfs.tombstones import hide
    folder = StateFolder(state_dir)
    try:
        manifest = folder.load()
    except StateError as error:
        fail(str(error), UNUSABLE)
    if manifest is None:
        fail(f"there is no state in {state_dir}; run a job first, or give --state-dir", UNUSABLE)
    for option, mine, its in (
        ("redis", server_of(redis), manifest.fixed["redis"]),
        ("prefix", prefix, manifest.prefix),
    ):
        if mine != its:
            fail(f"the state in {state_dir} writes under another --{option}: give --{option} {its}", UNUSABLE)
    if not all(user_ids) or any(user_id != user_id.encode(errors="ignore").decode() for user_id in user_ids):
        fail("an ID is empty, or not UTF-8", UNUSABLE)
    try:
        key = id_key()
    except ValueError as error:
        fail(str(error), UNUSABLE)
    under = "none" if key is None else f"one with the fingerprint {fingerprint(key)}"
    if under != (its := manifest.fixed.get("ids.key", "none")):
        fail(
            f"ids.key: the ids in {state_dir} are hidden under {its}, here is {under}: give the key that the job has, "
            "FRESHET_IDS__KEY_FILE=PATH",
            UNUSABLE,
        )
    kept_as = user_ids if key is None else tuple(hidden(user_id, key) for user_id in user_ids)
    away, running = "", False
    try:
        with Journal(folder.journal).requesting(kept_as, time.time_ns() // 1_000_000) as requests:
            # Before its reader may stamp them: what the job leaves in Redis comes after.
            try:
                with contextlib.ExitStack() as stack:
                    url = stack.enter_context(embedded_redis(folder.redis)) if redis == "embedded" else redis
                    connection = connect(url)
                    hide(connection, Keys(prefix), requests)
                    # On a cluster it holds no lock.
                    running = manifest.on_cluster and silent_seconds(connection, Keys(prefix)) < SILENT_SECONDS
            except (RedisError, EmbeddedRedisError) as error:
                away = str(error)
    except JournalError as error:
        fail(str(error), UNUSABLE)
    running = running or folder.in_use
    if as_json:
        answer = {"requests": dict(zip(user_ids, (r.number for r in requests), strict=True))}
        click.echo(orjson.dumps({**answer, "running": running, "redis": not away}).decode())
    else:
        when = (
            "the running job deletes them from its state within a second or so"
            if running
            else ("no job is running: they leave the state when the next run begins")
        )
        what = "no longer in Redis" if not away else "noted"
        click.echo(f"{', '.join(user_ids)}: {what}; {when}")
    if away:
        fail(f"Redis failed: {away}; the request is noted, and the job removes them from Redis, too", FAILED)
