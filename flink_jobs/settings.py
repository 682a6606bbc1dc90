"""Every setting of a run: where it comes from, its type, its bounds. Nothing else reads the environment.

Defaults, then the TOML file, then environment variables (``FRESHET_CHECKPOINT_INTERVAL``, with a double
underscore for a dot: ``FRESHET_MODEL__N_FACTORS``), then flags; the later wins.
"""

from __future__ import annotations

import functools
import re
import tomllib
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError

from serving.connection import without_password
from serving.identity import key_from, key_of
from serving.schema import span_ms
from udfs import building, metrics
from udfs.events import FIELDS
from udfs.models import ModelError, RankingModel
from udfs.tail import BLOCK, MOST

ENVIRONMENT: Final = "FRESHET_"


class SettingsError(ValueError):
    """A setting can't be used; the message names the setting, the value and what is allowed."""


def _span(value: Any) -> Any:
    if not isinstance(value, str):
        raise ValueError("write a whole number and a unit, such as 100ms, 30s, 5m, 1h or 1d")
    span_ms(value)
    return value


def _seconds(value: str) -> str:
    if span_ms(value) % 1_000:
        raise ValueError("write whole seconds, such as 30s, 5m, 1h or 1d")
    return value


def _listed(value: Any) -> Any:
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


def _topic_of(value: str | None) -> str | None:
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
_SECRET: Final = re.compile(r"password|secret|jaas|credential|token|(^|[.-])key$|user\.info|certificate\.chain")


def is_secret(name: str) -> bool:
    """Whether a setting holds what nobody may see.

    >>> is_secret("kafka.properties.sasl.jaas.config"), is_secret("kafka.properties.ssl.truststore.location")
    (True, False)
    >>> is_secret("flink.s3.secret-key"), is_secret("ids.key"), is_secret("ids.key_file")
    (True, True, False)
    """
    for section in ("kafka.properties.", "flink."):
        if name.startswith(section):
            return _SECRET.search(name.removeprefix(section)) is not None
    return name == "ids.key"


def shown(name: str, value: Any) -> Any:
    """A setting's value as it may be shown, also where it is wrong."""
    if name == "redis" and isinstance(value, str):
        try:
            return without_password(value)
        except ValueError:  # no URL at all
            return "(not shown)"
    return "(not shown)" if is_secret(name) or name == "ids" else value


def withhold(environ: MutableMapping[str, str]) -> None:
    """Takes the settings that hold secrets out of an environment that others will see: processes log theirs.

    >>> environ = {"FRESHET_REDIS": "redis://:s3cret@db", "FRESHET_SHARDS": "2"}
    >>> withhold(environ)
    >>> environ
    {'FRESHET_SHARDS': '2'}
    """
    for key in [key for key in environ if key.startswith(ENVIRONMENT)]:
        name = _setting_of(key)
        if name == "redis" or is_secret(name):
            del environ[key]


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
    spans: Annotated[list[Seconds], BeforeValidator(_listed)] = Field(["5m", "1h", "1d"], min_length=1)
    keep: Annotated[dict[str, Span], BeforeValidator(_kept)] = Field(_KEEP, description="how long a tile stays")
    event_types: Annotated[list[str], BeforeValidator(_listed)] = ["view", "click", "cart", "purchase", "rating"]
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
    archives: Annotated[list[str], BeforeValidator(_listed)] | None = Field(None, description="sent along for it")
    code: Literal["sent", "installed"] = Field("sent", description="how workers come to freshet's code")


class RedisSettings(_Section):
    patience: Span = Field("30s", description="how long a worker tries again while Redis is away")


class Settings(_Section):
    """All settings of a run, typed and within their bounds.

    >>> resolve([Layer("flag --set", {"checkpoint_interval": "1s"})]).settings.checkpoint_interval
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
    metrics: Annotated[list[str], BeforeValidator(_listed), AfterValidator(_metrics)] = ["MAE", "RMSE"]
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
    cluster: ClusterSettings = ClusterSettings()


_FREE: Final = (
    "model",
    "field",
    "weight",
    "flink",
    "tiles.keep",
    "kafka.properties",
)  # sections whose keys are not fixed
_MODEL_DEFAULT: Final = "biased_mf"
COMMAND_LINE: Final = ("--set", "flag")


@dataclass(frozen=True)
class Layer:
    """Settings of one origin, by dotted names."""

    origin: str
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Resolved:
    """The settings, and for each that was given where it came from (others: ``default``)."""

    settings: Settings
    origins: Mapping[str, str]

    @property
    def time(self) -> Literal["event", "processing"]:
        """Files and the generator end, and so are learned in event time unless it is set otherwise; a topic does not,
        and so is learned as it comes."""
        return self.settings.time or ("processing" if self.topic else "event")

    @property
    def topic(self) -> str | None:
        """The topic that is read, if it is one."""
        return _topic_of(self.settings.source)

    @property
    def items(self) -> Path | None:
        """The file with the catalogue, where it is in one."""
        given = self.settings.items
        return None if given is None or self.item_topic is not None else Path(given).expanduser()

    @property
    def item_topic(self) -> str | None:
        """The topic with the catalogue, where it is in one."""
        return _topic_of(self.settings.items)

    @property
    def topics(self) -> tuple[str, ...]:
        """All topics that are read or written."""
        return tuple(topic for topic in (self.topic, self.letter_topic, self.item_topic) if topic is not None)

    @property
    def dead_letters(self) -> Path:
        """The folder for them, where they do not go to a topic."""
        given = self.settings.dead_letters
        own = given is None or self.letter_topic is not None
        return self.settings.state_dir / "dead-letters" if own else Path(str(given)).expanduser()

    @property
    def letter_topic(self) -> str | None:
        """The topic for dead letters, where they go to one."""
        return _topic_of(self.settings.dead_letters)

    @property
    def id_keys(self) -> Callable[[], bytes] | None:
        """What gives the key that the ids of users are hidden under: from its file where it is asked."""
        ids = self.settings.ids
        if ids.key_file is not None:
            return functools.partial(key_from, ids.key_file.resolve())
        return None if ids.key is None else functools.partial(key_of, ids.key.get_secret_value())

    @property
    def id_key(self) -> bytes | None:
        return None if self.id_keys is None else self.id_keys()

    @property
    def model_name(self) -> str:
        return str(self.settings.model.get("name", _MODEL_DEFAULT))

    @property
    def model_params(self) -> dict[str, Any]:
        own = ("name", "clip_prediction", "max_weight")
        return {k: v for k, v in self.settings.model.items() if k not in own}

    @property
    def clip(self) -> tuple[float, float] | None:
        bounds = self.settings.model.get("clip_prediction")
        return None if bounds is None else (float(bounds[0]), float(bounds[1]))

    @property
    def max_weight(self) -> float:
        return float(self.settings.model.get("max_weight", building.DEFAULT_MAX_WEIGHT))

    def rows(self) -> list[tuple[str, Any, str]]:
        """Every setting with its value and its origin, for ``freshet check``: what a run will use."""
        values = flatten(self.settings.model_dump(mode="json"))
        letters = self.settings.dead_letters if self.letter_topic else str(self.dead_letters)
        values |= {"time": self.time, "dead_letters": letters}
        values |= {f"tiles.keep.{span}": keep for span, keep in self.settings.tiles.kept.items()}
        for section in ("model", "weight", "field", "flink", "kafka.properties"):
            values.pop(section, None)
        values.setdefault("model.name", self.model_name)
        none = values["ids.key"] is None
        return [
            (name, value if name == "ids.key" and none else shown(name, value), self.origins.get(name, "default"))
            for name, value in sorted(values.items())
        ]


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


def toml_layer(path: Path) -> Layer:
    try:
        with path.open("rb") as file:
            return Layer(str(path), flatten(tomllib.load(file)))
    except OSError as error:
        raise SettingsError(f"--config {path}: {error.strerror}") from error
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"--config {path} is not TOML: {error}") from error


def environment_layer(environ: Mapping[str, str]) -> Layer:
    named = {_setting_of(key): value for key, value in environ.items() if key.startswith(ENVIRONMENT)}
    return Layer("environment", named)


def _setting_of(variable: str) -> str:
    return variable.removeprefix(ENVIRONMENT).lower().replace("__", ".")


def assignment(text: str) -> tuple[str, str]:
    """
    >>> assignment("model.n_factors=16")
    ('model.n_factors', '16')
    """
    name, sign, value = text.partition("=")
    if not sign or not name.strip():
        raise SettingsError(f"--set {text}: write KEY=VALUE")
    return name.strip(), value.strip()


def resolve(layers: Sequence[Layer]) -> Resolved:
    """The settings that the layers give, the later over the earlier.

    Raises
    ------
    SettingsError
        For an unknown name or a value that is not allowed; it says where it came from.
    """
    merged: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for layer in layers:
        for name, value in layer.values.items():
            if name == "model" and isinstance(value, str):
                name = "model.name"  # short for it, as the flag is
            merged[name] = value
            origins[name] = layer.origin
    tree: dict[str, Any] = {}
    for name, value in merged.items():
        _known(name, value, origins[name])
        section = next((s for s in _FREE if name.startswith(f"{s}.")), None)
        path = [*section.split("."), name[len(section) + 1 :]] if section else name.split(".")
        branch = tree
        for part in path[:-1]:
            branch = branch.setdefault(part, {})
        branch[path[-1]] = _model_value(path[-1], value) if section == "model" else value
    try:
        settings = Settings.model_validate(tree)
    except ValidationError as error:
        raise SettingsError(_first_error(error, origins)) from error
    resolved = Resolved(settings, origins)
    _check_together(resolved)
    return resolved


def _known(name: str, value: Any, origin: str) -> None:
    """Names are checked before values, so that a misspelt section is named whole."""
    if any(name.startswith(f"{section}.") for section in _FREE):
        return
    if name in _FREE and not isinstance(value, Mapping):
        raise SettingsError(f"{name} (from {origin}): {_quoted(name, value)} is not a section; give {name}.NAME")
    fields: Any = Settings.model_fields
    for part in name.split("."):
        if part not in fields:
            raise SettingsError(f"{name} (from {origin}): there is no such setting; known here: {', '.join(fields)}")
        inner = fields[part].annotation
        is_section = isinstance(inner, type) and issubclass(inner, BaseModel)
        fields = inner.model_fields if is_section else {}
    if fields and not isinstance(value, Mapping):
        raise SettingsError(
            f"{name} (from {origin}): {_quoted(name, value)} is not a section; it has {', '.join(fields)}"
        )


def _model_value(name: str, value: Any) -> Any:
    """Model parameters have no fixed types: text from a flag becomes the number that it reads as."""
    if name == "clip_prediction":
        value = _listed(value)
        try:
            low, high = (float(bound) for bound in value)
        except (TypeError, ValueError):
            low, high = 1.0, 0.0
        if not low < high:
            raise SettingsError(f"model.clip_prediction: {value!r} is not two numbers LOW,HIGH with LOW < HIGH")
        return [low, high]
    if not isinstance(value, str):
        return value
    for read in (int, float):
        try:
            return read(value)
        except ValueError:
            continue
    return {"true": True, "false": False}.get(value.lower(), value)


def _first_error(error: ValidationError, origins: Mapping[str, str]) -> str:
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"] if not isinstance(part, int))
    near = (o for n, o in origins.items() if n == name or name.startswith(f"{n}.") or n.startswith(f"{name}."))
    origin = next(near, "default")
    message = first["msg"].removeprefix("Value error, ")
    return f"{name} (from {origin}): {_quoted(name, first['input'])} is not allowed: {message}"


def _quoted(name: str, value: Any) -> str:
    safe = shown(name, value)
    return repr(value) if safe is value else str(safe)


def _check_together(resolved: Resolved) -> None:
    """What only shows when settings are taken together."""
    settings = resolved.settings
    _check_kafka(resolved)
    _check_secrets(resolved)
    horizon, disorder = settings.dedup.horizon, settings.out_of_orderness
    if span_ms(horizon) < span_ms(disorder):
        raise SettingsError(
            f"dedup.horizon: {horizon!r} is less than out_of_orderness, {disorder!r}: "
            "an event would be forgotten while an older copy of it can still come"
        )
    name, max_weight = resolved.model_name, settings.model.get("max_weight", building.DEFAULT_MAX_WEIGHT)
    if isinstance(max_weight, bool) or not isinstance(max_weight, int | float) or not 0 < max_weight < 1e150:
        raise SettingsError(f"model.max_weight: {max_weight!r} is not a number between 0 and 1e150")
    try:
        model = building.build(name, resolved.model_params, float(max_weight))
    except ModelError as error:
        raise SettingsError(str(error)) from error
    if isinstance(model, RankingModel):
        growth = settings.growth
        for bound, is_set in (("max_items", growth.max_items is not None), ("min_events", growth.min_events > 1)):
            if is_set:
                raise SettingsError(
                    f"growth.{bound}: {name} links items to each other, and each keeps a row of its own: leave it out; "
                    "growth.max_users and growth.expire_after bound the users"
                )
    spans = settings.tiles.spans
    sizes = [span_ms(span) for span in spans]
    if sizes != sorted(set(sizes)) or any(large % sizes[0] for large in sizes):
        raise SettingsError(f"tiles.spans: {spans} must grow, each a multiple of the first")
    if any(span_ms("1d") % size and size % span_ms("1d") for size in sizes):
        raise SettingsError(f"tiles.spans: each of {spans} must divide a day or be whole days, so that windows align")


def _check_secrets(resolved: Resolved) -> None:
    for name, origin in resolved.origins.items():
        if is_secret(name) and origin in COMMAND_LINE:
            section = name.partition(".")[0]
            file = {"ids": "ids.key_file", "flink": "--config"}.get(section, "kafka.properties_file")
            raise SettingsError(
                f"{name} (from {origin}): a secret on the command line is seen by all users of the machine: put it "
                f"into a file, {file}, or into the environment, "
                f"{ENVIRONMENT}{name.upper().replace('.', '__')}"
            )
    ids = resolved.settings.ids
    if ids.key is not None and ids.key_file is not None:
        raise SettingsError("ids.key: ids.key_file is given, too; give one of them")
    try:
        _ = resolved.id_key
    except ValueError as error:
        raise SettingsError(f"{'ids.key' if ids.key_file is None else 'ids.key_file'}: {error}") from None


def _check_kafka(resolved: Resolved) -> None:
    kafka = resolved.settings.kafka
    for name in kafka.properties:
        if name in KAFKA_FIXED:
            raise SettingsError(f"kafka.properties.{name}: freshet sets it itself: {KAFKA_FIXED[name]}")
    topics = resolved.topics
    if topics and kafka.bootstrap_servers is None:
        raise SettingsError(
            f"kafka.bootstrap_servers: where is the Kafka that has {topics[0]!r}? "
            "--set kafka.bootstrap_servers=HOST:PORT"
        )
    letters, items = resolved.letter_topic, resolved.item_topic
    if letters is not None and letters in (resolved.topic, items):
        raise SettingsError(f"dead_letters: {letters!r} is a topic that is read: its dead letters would be read again")
    if items is not None and items == resolved.topic:
        raise SettingsError(f"items: {items!r} is the topic of the events: a catalogue needs one of its own")
    if resolved.topic is not None and resolved.settings.format == "csv":
        raise SettingsError("format: records of a topic are JSON objects, csv is for files")
    if span_ms(kafka.gather) > span_ms("1m"):
        raise SettingsError(f"kafka.gather: {kafka.gather!r} is not within 1ms and 1m")
