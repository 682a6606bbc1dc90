"""Every setting: its type, its default and its bounds. Where they come from, :mod:`flink_jobs.settings` says."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr

from serving.schema import span_ms
from udfs import metrics
from udfs.events import FIELDS
from udfs.ranking import BLOCKS
from udfs.tail import BLOCK, MOST


def _span(value: Any) -> Any:
    if not isinstance(value, str):
        raise ValueError("write a whole number and a unit, such as 100ms, 30s, 5m, 1h or 1d")
    span_ms(value)
    return value


def _seconds(value: str) -> str:
    if span_ms(value) % 1_000:
        raise ValueError("write whole seconds, such as 30s, 5m, 1h or 1d")
    return value


def listed(value: Any) -> Any:
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


def _path(value: Any) -> Any:
    return Path(value).expanduser() if isinstance(value, str) else value


def _prefix(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.\-]{1,100}", value):
        raise ValueError("write 1 to 100 letters, digits or any of _ . -")
    return value


def _source(value: str) -> str:
    kind, _, rest = value.partition(":")
    if value != "generator" and not (kind in ("file", "kafka") and rest):
        raise ValueError("write generator, file:PATH or kafka:TOPIC")
    return _topic(value)


def _topic(value: str) -> str:
    kind, sign, topic = value.partition(":")
    if kind == "kafka" and sign and not re.fullmatch(r"[A-Za-z0-9._\-]{1,249}", topic):
        raise ValueError("write kafka:TOPIC; a topic's name has up to 249 letters, digits or any of . _ -")
    return value


def topic_of(value: str | None) -> str | None:
    kind, _, topic = (value or "").partition(":")
    return topic if kind == "kafka" else None


def _start(value: str) -> str:
    if value in ("earliest", "latest", "group") or value.isdecimal():
        return value
    try:
        datetime.fromisoformat(value)
    except ValueError as error:
        raise ValueError("write earliest, latest, group, or a time: ISO-8601 or milliseconds") from error
    return value


def _redis(value: str) -> str:
    if value != "embedded" and not re.match(r"(redis|rediss|unix)://", value):
        raise ValueError("write embedded, or a URL that starts with redis://, rediss:// or unix://")
    return value


def _ports(value: Any) -> Any:
    """A port, or a range of them, as Flink takes it."""
    text = str(value)
    found = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", text)
    first, last = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not 1 <= first <= last <= 65_535:
        raise ValueError("write a port, 1 to 65535, or a range such as 9249-9259, of which each process takes one")
    return text


def _metrics(value: list[str]) -> list[str]:
    unknown = [name for name in value if name not in metrics.NAMES]
    if unknown:
        raise ValueError(f"{unknown[0]!r} is not one of {', '.join(metrics.NAMES)}")
    return value


def _columns(value: dict[str, str]) -> dict[str, str]:
    unknown = [name for name in value if name not in FIELDS]
    if unknown:
        raise ValueError(f"{unknown[0]!r} is not a field of an event; there are {', '.join(FIELDS)}")
    return value


def _uri(value: str) -> str:
    if not re.match(r"[a-z][a-z0-9+.\-]*://?/", value + "/"):
        raise ValueError("write a URI that all machines of the cluster understand, such as file:///mnt/... or s3://...")
    return value.rstrip("/")


# Options of Flink that what freshet promises rests on, and how a run sets them instead.
FLINK_FIXED: Final[Mapping[str, str]] = {
    "parallelism.default": "set parallelism",
    "execution.checkpointing.interval": "set checkpoint_interval",
    "execution.checkpointing.dir": "set state_dir",
    "execution.checkpointing.savepoint-dir": "set state_dir",
    "execution.checkpointing.storage": "checkpoints are files in state_dir",
    "execution.checkpointing.externalized-checkpoint-retention": "a run that was killed goes on from its checkpoint",
    "execution.checkpointing.mode": "each event is learned once",
    "execution.state-recovery.path": "a run goes on from what is in state_dir",
    "execution.state-recovery.ignore-unclaimed-state": "a run goes on from what is in state_dir",
    "execution.runtime-mode": "the job is a stream",
    "pipeline.max-parallelism": "the shards' keys are found for it",
    "python.executable": "workers are forked from a process of the run",
    "python.client.executable": "workers are forked from a process of the run",
    "python.execution-mode": "workers are processes of their own",
    "table.local-time-zone": "windows are in UTC",
}


def _flink(value: dict[str, Any]) -> dict[str, str]:
    fixed = next((name for name in value if name in FLINK_FIXED), None)
    if fixed is not None:
        raise ValueError(f"freshet sets {fixed} itself: {FLINK_FIXED[fixed]}")
    # As Flink reads them, also where TOML knows types.
    return {name: str(of).lower() if isinstance(of, bool) else str(of) for name, of in value.items()}


# The same for Kafka's clients.
KAFKA_FIXED: Final[Mapping[str, str]] = {
    "bootstrap.servers": "set kafka.bootstrap_servers",
    "group.id": "set kafka.group",
    "auto.offset.reset": "set kafka.start",
    "enable.auto.commit": "offsets are committed with checkpoints",
    "partition.discovery.interval.ms": "set kafka.discovery_interval",
    "key.deserializer": "records are read as bytes",
    "value.deserializer": "records are read as bytes",
    "key.serializer": "dead letters are written as bytes",
    "value.serializer": "dead letters are written as bytes",
}


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """
    >>> flatten({"model": {"n_factors": 4}, "shards": 2})
    {'model.n_factors': 4, 'shards': 2}
    """
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def _texts(value: Any) -> Any:
    """Options as Java reads them, also where TOML knows types."""
    if not isinstance(value, Mapping):
        return value
    return {name: str(of).lower() if isinstance(of, bool) else str(of) for name, of in flatten(value).items()}


Span = Annotated[str, BeforeValidator(_span)]
Seconds = Annotated[Span, AfterValidator(_seconds)]
Folder = Annotated[Path, BeforeValidator(_path)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class GeneratorSettings(_Section):
    events: int = Field(200_000, ge=0, description="events that a run reads")
    seed: int = Field(1, ge=0)
    rate: float = Field(0.0, ge=0, description="events a second; 0 is unlimited")
    interval: int = Field(1_000, ge=1, description="milliseconds of event time between events")
    users: int = Field(2_000, ge=1)
    items: int = Field(500, ge=1)
    churn: int = Field(20, ge=0, description="users that come, and go, in 1,000 events")
    malformed: float = Field(0.01, ge=0, le=1)
    duplicates: float = Field(0.01, ge=0, le=1)
    late: float = Field(0.01, ge=0, le=1)


class EventSettings(_Section):
    max_id_bytes: int = Field(256, ge=4, le=65_536)
    max_value: float = Field(1e15, gt=0, le=1e15, description="largest event_value, either sign")
    max_future: Span = Field("1d", description="how far beyond the first start a timestamp may lie")
    default_type: str = Field("auto", min_length=1, description="type of an event that names none")


class DedupSettings(_Section):
    horizon: Span = "1h"


_KEEP: Final = {"5m": "2h", "1h": "3d", "1d": "90d"}
_KEEP_TIMES: Final = 100  # a tile of a span that has no keep stays so many times the span


def _kept(value: Any) -> Any:
    """What is given, over the defaults."""
    return _KEEP | value if isinstance(value, dict) else value


class TileSettings(_Section):
    enabled: bool = True
    spans: Annotated[list[Seconds], BeforeValidator(listed)] = Field(["5m", "1h", "1d"], min_length=1)
    keep: Annotated[dict[str, Span], BeforeValidator(_kept)] = Field(_KEEP, description="how long a tile stays")
    event_types: Annotated[list[str], BeforeValidator(listed)] = ["view", "click", "cart", "purchase", "rating"]
    session_gap: Seconds = "30m"

    @property
    def kept(self) -> dict[str, str]:
        """For each of the spans, how long its tiles stay in Redis."""
        return {span: self.keep.get(span) or f"{_KEEP_TIMES * span_ms(span) // 1_000}s" for span in self.spans}


class LearnerSettings(_Section):
    engine: Literal["compiled", "river"] = Field("compiled", description="what learns, where there is compiled code")


class ServingSettings(_Section):
    seen: int = Field(50, ge=1, le=100_000, description="recent items that a user's row keeps")
    half_life: Span = Field("7d", description="of an item's popularity")
    expire_after: Span | None = Field(None, description="how long an entity stays in Redis after its last write")


class GrowthSettings(_Section):
    max_users: int | None = Field(None, ge=1, description="most users that a shard knows")
    max_items: int | None = Field(None, ge=1, description="most items that a shard knows")
    expire_after: Span | None = Field(None, description="event time after which a row goes that no event has met")
    min_events: int = Field(1, ge=1, le=MOST + 1, description="with which of its events an id gets a row of its own")
    tail_rows: int = Field(1_024, ge=1, le=1_000_000, description="rows that ids without one share, in a family")
    tail_counters: int = Field(1_048_576, ge=BLOCK, le=1 << 30, description="bytes in which their events are counted")


class KafkaSettings(_Section):
    bootstrap_servers: str | None = Field(None, min_length=1, description="HOST:PORT, several with commas")
    connector: Folder | None = Field(None, description="jar; by default where make kafka puts it")
    start: Annotated[str, AfterValidator(_start)] = Field("earliest", description="where a new state begins")
    group: str | None = Field(None, min_length=1, description="consumer group; by default freshet- and the prefix")
    idle_after: Span = Field("30s", description="a partition that gives nothing for so long is not waited for")
    discovery_interval: Span = Field("1m", description="time between looks for new partitions")
    gather: Span = Field("100ms", description="time in which records are gathered before they are handed over")
    properties_file: Folder | None = Field(None, description="file of client properties, which may hold secrets")
    properties: Annotated[dict[str, str], BeforeValidator(_texts)] = Field({}, description="client properties")


class RankingSettings(_Section):
    k: int = Field(10, ge=1, le=1_000, description="length of the lists")
    every: int | None = Field(None, ge=0, description="each how many events one is evaluated; 0 is none")
    window: int | None = Field(None, ge=BLOCKS, description="evaluated events that recent scores are over")
    groups: Literal["held out", "event by event"] = Field("held out", description="what a user did at one time")
    repeats: bool | None = Field(None, description="whether items count that the user met before")
    others: Literal["ranked", "left out"] = Field("ranked", description="the other items of a group")


class PrometheusSettings(_Section):
    port: Annotated[str, BeforeValidator(_ports)] | None = Field(
        None, description="where metrics are read, on all addresses; by default nowhere"
    )


class IdSettings(_Section):
    key_file: Folder | None = Field(None, description="file with the key that the ids of users are hidden under")
    key: SecretStr | None = Field(None, description="the key itself, from the environment")


class ClusterSettings(_Section):
    folder: Folder = Field(Path(".freshet-cluster"), description="what freshet cluster keeps: conf, logs, processes")
    port: int = Field(8081, ge=1, le=65_535, description="of Flink's REST interface, on loopback")
    task_managers: int = Field(1, ge=1, le=100)
    slots: int = Field(2, ge=1, le=120, description="of each task manager")
    heap: str = Field("1g", pattern=r"^[0-9]+[mg]$", description="of each task manager, for the job")
    conf: Folder | None = Field(None, description="folder of Flink's configuration, of another cluster to submit to")
    storage: Annotated[str, AfterValidator(_uri)] | None = Field(
        None, description="URI for checkpoints and savepoints; by default in state_dir"
    )
    python: str | None = Field(None, min_length=1, description="the workers' Python; by default the submitter's")
    archives: Annotated[list[str], BeforeValidator(listed)] | None = Field(None, description="sent along for it")
    code: Literal["sent", "installed"] = Field("sent", description="how workers come to freshet's code")


class RedisSettings(_Section):
    patience: Span = Field("30s", description="how long a worker tries again while Redis is away")


class Settings(_Section):
    """All settings of a run, typed and within their bounds.

    >>> Settings(checkpoint_interval="1s").checkpoint_interval
    '1s'
    """

    source: Annotated[str, AfterValidator(_source)] = "generator"
    format: Literal["jsonl", "csv"] | None = Field(None, description="by default the file's ending tells")
    items: Annotated[str, AfterValidator(_topic)] | None = Field(None, description="catalogue: a file, or kafka:TOPIC")
    field: Annotated[dict[str, str], AfterValidator(_columns)] = Field({}, description="our field name to yours")
    timestamp_unit: Literal["auto", "ms", "s", "iso"] = "auto"
    time: Literal["event", "processing"] | None = Field(None, description="by default event for bounded input")
    model: dict[str, Any] = Field({}, description="name, parameters of the River class, clip_prediction, max_weight")
    weight: dict[str, float] = Field({}, description="target of an event that is not a rating, by its type")
    metrics: Annotated[list[str], BeforeValidator(listed), AfterValidator(_metrics)] = ["MAE", "RMSE"]
    shards: int = Field(1, ge=1, le=120)
    parallelism: int = Field(1, ge=1, le=120)
    redis: Annotated[str, AfterValidator(_redis)] = "embedded"
    redis_client: RedisSettings = RedisSettings()
    prefix: Annotated[str, AfterValidator(_prefix)] = "freshet"
    dead_letters: Annotated[str, AfterValidator(_topic)] | None = Field(
        None, description="folder or kafka:TOPIC; by default dead-letters in state_dir"
    )
    state_dir: Folder = Path(".freshet")
    fresh: bool = False
    summary: Folder | None = None
    checkpoint_interval: Span = "10s"
    out_of_orderness: Span = Field("5s", description="how far behind an event may be before it is late")
    batch_bytes: int = Field(16_000_000, ge=1, le=64_000_000, description="how much input is read and learned at once")
    flink: Annotated[dict[str, str], BeforeValidator(_flink)] = Field({}, description="Flink's own options")
    generator: GeneratorSettings = GeneratorSettings()
    kafka: KafkaSettings = KafkaSettings()
    prometheus: PrometheusSettings = PrometheusSettings()
    ids: IdSettings = IdSettings()
    logs: Literal["text", "json"] = Field("text", description="format of Flink's log in state_dir")
    events: EventSettings = EventSettings()
    dedup: DedupSettings = DedupSettings()
    tiles: TileSettings = TileSettings()
    learner: LearnerSettings = LearnerSettings()
    serving: ServingSettings = ServingSettings()
    growth: GrowthSettings = GrowthSettings()
    ranking: RankingSettings = RankingSettings()
    cluster: ClusterSettings = ClusterSettings()
