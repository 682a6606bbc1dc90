"""The settings of a run: where each comes from, and whether they go together. Nothing else reads the environment.

Defaults, then the TOML file, then environment variables (``FRESHET_CHECKPOINT_INTERVAL``, with a double
underscore for a dot: ``FRESHET_MODEL__N_FACTORS``), then flags; the later wins.
"""

from __future__ import annotations

import functools
import re
import tomllib
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ValidationError

from flink_jobs.sections import KAFKA_FIXED, Settings, flatten, listed, topic_of
from serving.connection import without_password
from serving.identity import key_from, key_of
from serving.schema import span_ms
from udfs import building
from udfs.models import ModelError, RankingModel

ENVIRONMENT: Final = "FRESHET_"
_MODEL_DEFAULT: Final = "biased_mf"
AUTO: Final = "auto"
CHOICES: Final = (building.STACK, building.BLEND)  # what it may stand for
COMMAND_LINE: Final = ("--set", "flag")
_FREE: Final = (
    "model",
    "field",
    "weight",
    "flink",
    "tiles.keep",
    "kafka.properties",
)  # sections whose keys are not fixed


class SettingsError(ValueError):
    """A setting can't be used; the message names the setting, the value and what is allowed."""


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
        return topic_of(self.settings.source)

    @property
    def items(self) -> Path | None:
        """The file with the catalogue, where it is in one."""
        given = self.settings.items
        return None if given is None or self.item_topic is not None else Path(given).expanduser()

    @property
    def item_topic(self) -> str | None:
        """The topic with the catalogue, where it is in one."""
        return topic_of(self.settings.items)

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
        return topic_of(self.settings.dead_letters)

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

    def with_model(self, name: str) -> Resolved:
        """The same, with the model that ``auto`` stands for.

        Raises
        ------
        SettingsError
            If other settings do not suit it.
        """
        model = {**self.settings.model, "name": name}
        chosen = replace(self, settings=self.settings.model_copy(update={"model": model}))
        _check_model(chosen)
        return chosen

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
        value = listed(value)
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
    ranking = settings.ranking
    if ranking.others == "left out" and (ranking.groups != "held out" or ranking.repeats is False):
        raise SettingsError(
            f"ranking.others: {ranking.others!r} is for groups that are held out, with repeats; ranking.groups is "
            f"{ranking.groups!r}, ranking.repeats is {'false' if ranking.repeats is False else 'true'}"
        )
    _check_model(resolved)
    spans = settings.tiles.spans
    sizes = [span_ms(span) for span in spans]
    if sizes != sorted(set(sizes)) or any(large % sizes[0] for large in sizes):
        raise SettingsError(f"tiles.spans: {spans} must grow, each a multiple of the first")
    if any(span_ms("1d") % size and size % span_ms("1d") for size in sizes):
        raise SettingsError(f"tiles.spans: each of {spans} must divide a day or be whole days, so that windows align")


def _check_model(resolved: Resolved) -> None:
    settings, name = resolved.settings, resolved.model_name
    if name == AUTO:  # what suits one of them may do
        unsuited = []
        for choice in CHOICES:
            try:
                resolved.with_model(choice)
            except SettingsError as error:
                unsuited.append(error)
        if len(unsuited) == len(CHOICES):
            raise unsuited[0]
        return
    max_weight = settings.model.get("max_weight", building.DEFAULT_MAX_WEIGHT)
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
