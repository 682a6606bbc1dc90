"""What comes before a job: what it goes on from, where it writes, and the job itself from its settings."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import redis
from rich.console import Console

from flink_jobs.catalogue import load_catalogue
from flink_jobs.embedded import embedded_redis
from flink_jobs.flink import (
    RunningJob,
    environments,
    execute_here,
    load_reporter,
    local_configuration,
    lock_by_jvm,
    windows_parallelism,
)
from flink_jobs.kafka import Kafka
from flink_jobs.nursery import Nursery, nursery
from flink_jobs.settings import AUTO, Resolved, SettingsError
from flink_jobs.state import Manifest, StateFolder, StateInUse, may_go_on
from serving.client import Unreachable
from serving.connection import connect, server_of, without_password
from serving.identity import fingerprint
from serving.schema import LEARNED_OF_ITEM, Field, Keys, sharded, span_ms
from udfs.building import BLEND, build
from udfs.events import EventFormat
from udfs.generator import SOURCE as GENERATOR
from udfs.generator import GeneratorConfig, GeneratorFeed
from udfs.growth import GrowthConfig
from udfs.intake import IntakeConfig
from udfs.learner import LearnerConfig
from udfs.publisher import Publisher, draw_submission
from udfs.ranking import RankingConfig
from udfs.reading import FileFeed, IdleFeed, InputError, input_files, peak_density
from udfs.requests import Journal
from udfs.tally import Tally
from udfs.tilefeed import TileConfig

if TYPE_CHECKING:
    from flink_jobs.topology import Job

SILENT_SECONDS: Final = 30.0  # some beats: a job that is silent for so long does not run


@dataclass(frozen=True)
class Ready:
    """What a job needs before it can be submitted; nobody else uses the state meanwhile.

    Attributes
    ----------
    resolved
        Its settings. Where the model is ``auto``, it is that of the state, if there is one.
    """

    resolved: Resolved
    folder: StateFolder
    url: str
    connection: Any
    keys: Keys
    manifest: Manifest
    snapshot: str | None


@contextlib.contextmanager
def prepared(
    resolved: Resolved, console: Console, meanwhile: Callable[[StateFolder], None] = lambda folder: None
) -> Iterator[tuple[Ready, Nursery]]:
    """All that a job in this process needs, until the block ends: the state folder is locked, and Redis is there.

    ``meanwhile`` begins what takes time, before Redis, which may have to read its data, is waited for.
    """
    folder = folder_of(resolved)
    with folder.locked(), nursery() as workers:
        meanwhile(folder)
        with redis_url(resolved, folder) as url:
            connection = reachable(url)
            _not_on_cluster(folder, connection, Keys(resolved.settings.prefix))
            yield take_up(resolved, folder, url, connection, console), workers


def folder_of(resolved: Resolved) -> StateFolder:
    storage = resolved.settings.cluster.storage
    is_folder = storage is not None and storage.startswith("file:/")
    return StateFolder(resolved.settings.state_dir, Path(urlsplit(str(storage)).path) if is_folder else None)


def take_up(
    resolved: Resolved, folder: StateFolder, url: str, connection: Any, console: Console, snapshot: str | None = None
) -> Ready:
    """What a job goes on from.

    Parameters
    ----------
    snapshot
        That it goes on from, if it does; by default the newest in the folder.
    """
    keys = Keys(resolved.settings.prefix)
    if resolved.settings.fresh:
        folder.clear()
    if (learned := as_learned(resolved, folder.load())) is not resolved:
        console.print(f"model: {learned.model_name}, which the state was learned with", highlight=False)
        resolved = learned
    manifest, snapshot = _take_up(resolved, folder, connection, keys, console, snapshot)
    if manifest.shards_before is not None:
        forget_shards(connection, keys, manifest.shards_before, resolved.settings.shards)
        manifest = replace(manifest, shards_before=None)
    return Ready(resolved, folder, url, connection, keys, manifest, snapshot)


def as_learned(resolved: Resolved, known: Manifest | None) -> Resolved:
    """The settings with the model that a state was learned with, where they leave that open."""
    return (
        resolved if known is None or resolved.model_name != AUTO else resolved.with_model(known.fixed["model"]["name"])
    )


def _not_on_cluster(folder: StateFolder, connection: Any, keys: Keys) -> None:
    """Refuses to work on a state on which a cluster does: it holds no lock, but its job gives signs of life."""
    known = folder.load()
    if known is None or not known.on_cluster:
        return
    silent = silent_seconds(connection, keys)
    if silent < SILENT_SECONDS:
        raise StateInUse(
            f"a job on a cluster works on {folder.path}: it gave a sign of life {silent:.0f} s ago. Stop it (flink "
            f"stop), and wait until it was silent for {SILENT_SECONDS:.0f} s, or give another --state-dir"
        )


def silent_seconds(connection: Any, keys: Keys) -> float:
    """Since the last sign of life of a job under the prefix."""
    return time.time() - int(connection.hget(keys.ledger, Field.ALIVE) or 0) / 1_000


def begin(ready: Ready, files: list[tuple[str, str]], console: Console, **marks: Any) -> tuple[Manifest, int]:
    """Takes over the prefix for a job that is about to be submitted: its manifest, which is stored, and its number.

    ``marks``: what else is to be noted in the manifest.
    """
    resolved, connection, keys, manifest = ready.resolved, ready.connection, ready.keys, ready.manifest
    # From here on a job that still writes under this prefix is fenced off.
    submission = draw_submission(connection, keys, time.time_ns() // 1_000_000)
    if ready.snapshot is None:
        purge(connection, keys)
    if resolved.settings.tiles.enabled and not manifest.gather:
        manifest = replace(manifest, gather=gathering(resolved, manifest, files))
    if resolved.item_topic is None:  # one who followed a topic gives no signs of life any more
        connection.hdel(keys.ledger, f"{Field.ALIVE}:items")
    if resolved.items is not None:
        written, skipped = load_catalogue(resolved.items, connection, keys)
        console.print(
            f"catalogue: {written:,} items" + (f", {skipped:,} lines without a usable item_id" * bool(skipped))
        )
    manifest = replace(manifest, **marks)
    ready.folder.store(manifest)
    return manifest, submission


def files_of(resolved: Resolved) -> list[tuple[str, str]]:
    kind, _, path = resolved.settings.source.partition(":")
    if kind != "file":
        return []
    found = input_files(Path(path).expanduser().resolve())
    files = [(str(p), resolved.settings.format or f) for p, f in found]
    unclear = [p for p, f in files if not f]
    if unclear:
        raise InputError(f"{unclear[0]} ends in neither .jsonl nor .csv: say which it is with --format")
    return files


@contextlib.contextmanager
def redis_url(resolved: Resolved, folder: StateFolder) -> Iterator[str]:
    if resolved.settings.redis == "embedded":
        with embedded_redis(folder.redis) as url:
            yield url
    else:
        yield resolved.settings.redis


def reachable(url: str) -> Any:
    try:
        connection = connect(url)
    except ValueError as error:
        raise SettingsError(str(error)) from None
    try:
        if connection.info("cluster").get("cluster_enabled"):
            raise SettingsError(
                f"redis: {without_password(url)} is a Redis Cluster; freshet compares and sets many keys in one "
                "script, which a cluster can't run: give a single server, or a replicated one"
            )
    except redis.exceptions.AuthenticationError as error:
        raise SettingsError(f"redis: {without_password(url)} refused the login: {error}") from error
    except (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError) as error:
        raise Unreachable(f"Redis at {without_password(url)} does not answer: {error}") from error
    return connection


def purge(connection: Any, keys: Keys) -> None:
    """Deletes all that is known under the prefix, save who may write."""
    if not connection.exists(keys.ledger):
        return
    batch: list[bytes] = []
    for key in connection.scan_iter(match=keys.everything, count=5_000):
        if key != keys.fence.encode():
            batch.append(key)
        if len(batch) >= 5_000:
            connection.unlink(*batch)
            batch = []
    if batch:
        connection.unlink(*batch)


def forget_shards(connection: Any, keys: Keys, before: int, now: int) -> None:
    """Deletes what only the learners of so many shards before have written; what others wrote of an item stays."""
    of_now = {sharded(name, shard, now) for name in LEARNED_OF_ITEM for shard in range(now)}
    fields = [
        f for name in LEARNED_OF_ITEM for shard in range(before) if (f := sharded(name, shard, before)) not in of_now
    ]
    for shard in range(before) if fields else ():
        pipe = connection.pipeline(transaction=False)
        for member, _ in connection.zscan_iter(keys.items(shard), count=5_000):
            pipe.hdel(keys.item(member.decode()), *fields)
            if len(pipe) >= 1_000:
                pipe.execute()
        pipe.execute()
    for shard in range(now, before):
        connection.unlink(keys.items(shard), keys.model(shard))
        of_shards = (Field.ALIVE, Field.REPUBLISH, Field.AUTHOR, Field.REACHED)
        connection.hdel(keys.ledger, *(f"{name}:{shard}" for name in of_shards))


def fixed_settings(resolved: Resolved) -> dict[str, Any]:
    """What learned state depends on: it can't be read, or would not be the same, under other values."""
    settings = resolved.settings
    tiles, growth = settings.tiles, settings.growth
    tail = [growth.min_events, growth.tail_rows, growth.tail_counters]
    return {
        "prefix": settings.prefix,
        "redis": "embedded" if settings.redis == "embedded" else server_of(settings.redis),
        "shards": settings.shards,
        "model": {"name": resolved.model_name, **resolved.model_params},
        "tiles": [tiles.enabled, tiles.spans, tiles.event_types, tiles.session_gap] if tiles.enabled else [False],
        "serving.half_life": settings.serving.half_life,
        "metrics": sorted(settings.metrics),
        "growth.min_events": tail if growth.min_events > 1 else [1],
        "ids.key": "none" if resolved.id_key is None else f"one with the fingerprint {fingerprint(resolved.id_key)}",
    }


def _take_up(
    resolved: Resolved,
    folder: StateFolder,
    connection: Any,
    keys: Keys,
    console: Console,
    snapshot: str | None,
) -> tuple[Manifest, str | None]:
    """The manifest of this run, and the snapshot that it goes on from."""
    settings = resolved.settings
    source, now = settings.source, time.time_ns() // 1_000_000
    bound = now + span_ms(settings.events.max_future)
    known = folder.load()
    if known is not None:
        manifest = may_go_on(known, fixed_settings(resolved), source)
        snapshot = snapshot or folder.newest_snapshot(known)
        if snapshot is not None:
            _not_newer(connection, keys, manifest)
            # The bound on timestamps is drawn where an input begins, not at each restart: a replay decides alike.
            return (replace(manifest, future_bound=bound, gather=0) if known.ended else manifest), snapshot
        if known.on_cluster:
            # Nobody notes its savepoints: that none is found does not mean that there is none.
            raise SettingsError(
                f"state_dir: no snapshot of the state is found in {folder.savepoints} or {folder.checkpoints}; "
                "say which to go on from, freshet submit --restore URI, or start anew with --fresh"
            )
        console.print("the last run ended before its first checkpoint: starting anew")
    elif connection.exists(keys.ledger) and not settings.fresh:
        raise SettingsError(
            f"prefix: Redis holds state under {settings.prefix!r} that {folder.path} knows nothing of: give the "
            "--state-dir that it belongs to, or another --prefix, or delete it and start anew with --fresh"
        )
    return Manifest(
        now, settings.prefix, fixed_settings(resolved), source=source, ended=False, future_bound=bound
    ), None


def _not_newer(connection: Any, keys: Keys, manifest: Manifest) -> None:
    """Refuses to go on under a prefix that a younger state has written: readers would see none of it."""
    versions = [connection.hget(keys.model(shard), Field.VERSION) for shard in range(manifest.fixed["shards"])]
    if any(v is not None and int(v.partition(b".")[0]) > manifest.epoch for v in versions):
        raise SettingsError(
            f"prefix: Redis holds under {keys.prefix!r} what a younger state has written, and would take nothing of "
            "this one: go on with that --state-dir, or start anew with --fresh"
        )


def gathering(resolved: Resolved, manifest: Manifest, files: list[tuple[str, str]]) -> int:
    from flink_jobs.windows import gathering_span

    settings = resolved.settings
    if resolved.topic is not None:
        density = float("inf")  # what is read live is written when its window closes
    elif files:
        density = peak_density(files, event_format(resolved, manifest))
    else:
        density = 1 / settings.generator.interval
    return gathering_span(span_ms(settings.tiles.spans[0]), density)


def event_format(resolved: Resolved, manifest: Manifest) -> EventFormat:
    settings = resolved.settings
    return EventFormat(
        columns=settings.field,
        timestamp_unit=settings.timestamp_unit,
        default_type=settings.events.default_type,
        max_id_bytes=settings.events.max_id_bytes,
        max_value=settings.events.max_value,
        future_bound=manifest.future_bound,
    )


def ranking_of(resolved: Resolved) -> RankingConfig:
    """How rankings are evaluated: a blend reckons scores as it learns, for models of ratings all items are ranked anew;
    and by default each is evaluated as it is served."""
    given, ranks = resolved.settings.ranking, resolved.model_name == BLEND
    repeats = given.repeats
    if repeats is None:
        repeats = ranks or given.others == "left out"
    rarely = given.every is None and not ranks
    every = 10 if given.every is None else given.every
    window = given.window or (200 if rarely else 10_000)
    held_out = given.groups == "held out"
    return RankingConfig(given.k, held_out, repeats, given.others, every, window, rarely=rarely)


def job_of(
    resolved: Resolved,
    manifest: Manifest,
    url: str,
    files: list[tuple[str, str]] | None,
    run_id: str,
    submission: int,
    kafka: Kafka | None = None,
) -> Job:
    """The topology's parts, from the settings; without ``files``, of a job that reads nothing."""
    settings = resolved.settings
    windows = settings.parallelism if manifest.on_cluster else windows_parallelism(settings)
    # Imported here: PyFlink takes seconds, and settings should be judged without it.
    from flink_jobs.letters import LetterFiles, LetterTopic
    from flink_jobs.sources import FeedSource, TopicSource
    from flink_jobs.topics import TopicStream
    from flink_jobs.topology import Job, Source
    from flink_jobs.windows import Windows

    def stream(kafka: Kafka, name: str, table: str, starts: Mapping[int, int] | None = None) -> TopicStream:
        gather, discovery = span_ms(settings.kafka.gather), span_ms(settings.kafka.discovery_interval)
        return TopicStream(name, table, kafka.properties, kafka.group, gather, discovery, starts)

    fmt = event_format(resolved, manifest)
    # A request that a worker can't see would never take effect, and nobody would know.
    path = StateFolder(settings.state_dir).journal
    journal = functools.partial(Journal, path, required=manifest.on_cluster)
    source: Source
    topic = None if kafka is None else kafka.source
    if kafka is not None and topic is not None:
        source = TopicSource(stream(kafka, topic.name, "topic", topic.starts), journal)
    elif files is None:
        source = FeedSource(settings.source.partition(":")[0], IdleFeed, ("", ""), journal)
    elif files:
        feed: Any = functools.partial(FileFeed, files, fmt, run_id, settings.batch_bytes)
        source = FeedSource("file", feed, ("file", "line"), journal)
    else:
        config = GeneratorConfig(**settings.generator.model_dump())
        feed = functools.partial(GeneratorFeed, config, run_id)
        source = FeedSource(GENERATOR, feed, ("source", "index"), journal)
    serving, tiles, growth = settings.serving, settings.tiles, settings.growth
    ttl = span_ms(serving.expire_after) if serving.expire_after else 0
    patience = span_ms(settings.redis_client.patience) / 1_000
    return Job(
        source=source,
        intake=IntakeConfig(
            fmt=fmt,
            shards=settings.shards,
            event_time=resolved.time == "event",
            merged=source.merged,
            out_of_orderness=span_ms(settings.out_of_orderness),
            dedup_horizon=span_ms(settings.dedup.horizon),
            tiles=TileConfig(tuple(tiles.event_types), span_ms(tiles.session_gap), span_ms(tiles.spans[0]))
            if tiles.enabled
            else None,
            position_names=source.position_names,
            run_id=run_id,
            epoch=manifest.epoch,
            part=manifest.part,
            partitions=() if topic is None else topic.partitions,
            idle_after=0 if topic is None else span_ms(settings.kafka.idle_after),
            records=resolved.topic is not None,
            id_key=resolved.id_keys,
        ),
        learner=LearnerConfig(
            weights=dict(settings.weight),
            clip=resolved.clip,
            metrics=tuple(settings.metrics),
            seen=serving.seen,
            half_life=span_ms(serving.half_life),
            growth=GrowthConfig(
                max_users=growth.max_users,
                max_items=growth.max_items,
                expire_after=span_ms(growth.expire_after) if growth.expire_after else None,
                min_events=growth.min_events,
                tail_rows=growth.tail_rows,
                tail_counters=growth.tail_counters,
            ),
            ranking=ranking_of(resolved),
            repeatable=source.merged or resolved.time == "event",
            position_names=source.position_names,
            records=resolved.topic is not None,
            run_id=run_id,
            part=manifest.part,
        ),
        model=functools.partial(
            build, resolved.model_name, resolved.model_params, resolved.max_weight, settings.learner.engine
        ),
        publisher=functools.partial(Publisher, url, settings.prefix, submission, ttl, patience, Tally.of_retries(path)),
        windows=Windows(tiles.spans, tiles.event_types, tiles.session_gap, manifest.gather, windows)
        if tiles.enabled
        else None,
        keep={span: span_ms(keep) for span, keep in tiles.kept.items()},
        dead_letters=LetterFiles(str(resolved.dead_letters.resolve()))
        if kafka is None or kafka.letters is None
        else LetterTopic(kafka.letters, kafka.properties),
        shards=settings.shards,
        part=manifest.part,
        items=None if kafka is None or kafka.items is None else stream(kafka, kafka.items, "items"),
    )


def submit(
    job: Job,
    resolved: Resolved,
    folder: StateFolder,
    snapshot: str | None,
    python: Path,
    execute: Callable[[Any], Any] = execute_here,
    changes: Mapping[str, str] | None = None,
    jar: Path | None = None,
) -> RunningJob:
    """``changes``: to Flink's configuration, by its names; ``jar``: of a connector."""
    from flink_jobs.topology import build as build_topology

    values = local_configuration(resolved.settings, folder.checkpoints, snapshot, python)
    if jar is not None:
        values["pipeline.jars"] = jar.as_uri()
    if resolved.settings.prometheus.port is not None:
        load_reporter()
    with environments({**values, **(changes or {})}) as (env, table_env):
        build_topology(env, table_env, job)
    release = lock_by_jvm(folder.flink_lock)
    with contextlib.ExitStack() as where_it_fails:
        where_it_fails.callback(release)
        job_client = execute(env)
        where_it_fails.pop_all()
    return RunningJob(job_client, release)
