"""Settings: layers, origins, and errors that name the setting, the value and what is allowed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flink_jobs.flink import local_configuration
from flink_jobs.sections import FLINK_FIXED, flatten
from flink_jobs.settings import (
    Layer,
    SettingsError,
    assignment,
    environment_layer,
    resolve,
    toml_layer,
)
from serving.schema import span_ms


def given(**values: Any) -> Any:
    """Resolved settings; a double underscore is a dot."""
    return resolve([Layer("--set", {name.replace("__", "."): value for name, value in values.items()})])


def test_defaults_are_documented_ones() -> None:
    resolved = resolve([])
    settings = resolved.settings
    assert (settings.source, settings.redis, settings.prefix, settings.shards) == (
        "generator",
        "embedded",
        "freshet",
        1,
    )
    assert (resolved.model_name, resolved.model_params, resolved.clip) == ("biased_mf", {}, None)
    assert resolved.max_weight == 1e6 and settings.metrics == ["MAE", "RMSE"]
    assert settings.tiles.spans == ["5m", "1h", "1d"] and span_ms(settings.dedup.horizon) == 3_600_000
    assert {origin for _, _, origin in resolved.rows()} == {"default"}


def test_the_later_layer_wins_and_is_the_origin(tmp_path: Path) -> None:
    path = tmp_path / "freshet.toml"
    path.write_text(
        'shards = 2\nprefix = "file"\n[model]\nn_factors = 3\n[dedup]\nhorizon = "2h"\n[field]\nuser_id = "uid"\n'
    )
    resolved = resolve(
        [
            toml_layer(path),
            environment_layer(
                {"FRESHET_SHARDS": "3", "FRESHET_MODEL__N_FACTORS": "4", "FRESHET_TILES__ENABLED": "false", "HOME": "/"}
            ),
            Layer("--set", {"model.n_factors": "5"}),
            Layer("flag", {"shards": "6"}),
        ]
    )
    settings = resolved.settings
    assert (settings.shards, settings.prefix, settings.dedup.horizon) == (6, "file", "2h")
    assert resolved.model_params == {"n_factors": 5} and settings.field == {"user_id": "uid"}
    assert settings.tiles.enabled is False
    shown = {name: (value, origin) for name, value, origin in resolved.rows()}
    assert shown["shards"] == (6, "flag") and shown["prefix"] == ("file", str(path))
    assert shown["tiles.enabled"] == (False, "environment") and shown["redis"] == ("embedded", "default")


def test_text_becomes_what_it_reads_as() -> None:
    resolved = given(
        model__latent_optimizer="Adam",
        model__latent_optimizer__lr="0.01",
        model__l2_bias="1e-3",
        model__clip_prediction="0.5, 5",
        model__max_weight="1000",
        metrics="MAE, SMAPE",
        tiles__spans="10m,1h",
        tiles__keep__10m="1d",
        weight__purchase="5",
        generator__rate="1.5",
    )
    assert resolved.model_params == {"latent_optimizer": "Adam", "latent_optimizer.lr": 0.01, "l2_bias": 0.001}
    assert resolved.clip == (0.5, 5.0) and resolved.max_weight == 1000.0
    settings = resolved.settings
    assert settings.metrics == ["MAE", "SMAPE"] and settings.tiles.spans == ["10m", "1h"]
    assert settings.tiles.keep["10m"] == "1d" and settings.weight == {"purchase": 5.0}
    assert settings.generator.rate == 1.5


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("sharts", "2", "known here: source, format"),
        ("generator.event", "2", "known here: events, seed"),
        ("tiles.spans.x", "2", "there is no such setting"),
        ("generator", "7", "is not a section; it has events"),
        ("shards", "0", "greater than or equal to 1"),
        ("shards", "121", "less than or equal to 120"),
        ("shards", "many", "valid integer"),
        ("shards", "1.5", "valid integer"),
        ("parallelism", "0", "greater than or equal to 1"),
        ("source", "kafka", "write generator, file:PATH or kafka:TOPIC"),
        ("source", "file:", "write generator, file:PATH or kafka:TOPIC"),
        ("format", "xml", "'jsonl' or 'csv'"),
        ("timestamp_unit", "us", "'auto', 'ms', 's' or 'iso'"),
        ("time", "wall", "'event' or 'processing'"),
        ("redis", "localhost:6379", "write embedded, or a URL that starts with redis://"),
        ("prefix", "a b", "letters, digits"),
        ("prefix", "", "letters, digits"),
        ("prefix", "p*", "letters, digits"),
        ("prefix", "app:test", "letters, digits or any of _ . -"),
        ("model", 5, "is not a section; give model.NAME"),
        ("field", "uid", "is not a section; give field.NAME"),
        ("dedup.horizon", "4s", "less than out_of_orderness, '5s'"),
        ("tiles.spans", "1500ms", "write whole seconds"),
        ("tiles.session_gap", "500ms", "write whole seconds"),
        ("metrics", "MAE,R2", "'R2' is not one of MAE, MSE, RMSE"),
        ("field.user", "uid", "'user' is not a field of an event; there are user_id, item_id"),
        ("weight.view", "much", "valid number"),
        ("checkpoint_interval", "10", "is not a span; write a whole number and a unit"),
        ("checkpoint_interval", 10, "write a whole number and a unit"),
        ("out_of_orderness", "-5s", "is not a span"),
        ("dedup.horizon", "1w", "is not a span"),
        ("tiles.keep.5m", "long", "is not a span"),
        ("tiles.spans", "", "is not a span"),
        ("tiles.spans", "1h,5m", "must grow, each a multiple of the first"),
        ("tiles.spans", "5m,7m", "must grow, each a multiple of the first"),
        ("tiles.spans", "7m", "must divide a day or be whole days"),
        ("events.max_id_bytes", "3", "greater than or equal to 4"),
        ("generator.late", "1.1", "less than or equal to 1"),
        ("generator.seed", "-1", "greater than or equal to 0"),
        ("batch_bytes", "0", "greater than or equal to 1"),
        ("serving.seen", "0", "greater than or equal to 1"),
        ("model.name", "svd", "there are baseline, funk_mf, biased_mf"),
        ("model.factors", "2", "biased_mf has no such parameter; it has n_factors"),
        ("model.n_factors", "0", "whole number of at least 1"),
        ("model.max_weight", "0", "a number between 0 and 1e150"),
        ("model.max_weight", "big", "a number between 0 and 1e150"),
        ("model.clip_prediction", "5,1", "not two numbers LOW,HIGH with LOW < HIGH"),
        ("model.clip_prediction", "5", "not two numbers LOW,HIGH with LOW < HIGH"),
        ("model.clip_prediction", "nan,nan", "not two numbers LOW,HIGH with LOW < HIGH"),
    ],
)
def test_errors_name_the_setting_the_value_and_what_is_allowed(name: str, value: Any, allowed: str) -> None:
    with pytest.raises(SettingsError) as caught:
        resolve([Layer("--set", {name: value})])
    message = str(caught.value)
    assert allowed in message
    assert message.startswith((f"{name} (from --set)", f"{name}:", f"{name.split('.')[0]} (from --set)"))
    if value not in ("", "2") and "," not in str(value):
        assert repr(value) in message or str(value) in message


def test_an_error_says_where_the_value_came_from() -> None:
    layers = [environment_layer({"FRESHET_SHARDS": "zero"}), Layer("flag", {"prefix": "p"})]
    with pytest.raises(SettingsError, match=r"^shards \(from environment\): 'zero' is not allowed"):
        resolve(layers)
    with pytest.raises(SettingsError, match=r"^dedup.horizons \(from environment\): there is no such setting"):
        resolve([environment_layer({"FRESHET_DEDUP__HORIZONS": "1h"})])


def test_a_span_of_tiles_that_is_not_named_keeps_its_default() -> None:
    assert given(tiles__keep__5m="12h").settings.tiles.kept == {"5m": "12h", "1h": "3d", "1d": "90d"}
    tiles = given(tiles__spans="10m,1h", tiles__keep={"1h": "7d"}).settings.tiles
    assert {span: span_ms(keep) for span, keep in tiles.kept.items()} == {"10m": 60_000_000, "1h": 604_800_000}
    assert ("tiles.keep.10m", "60000s", "default") in given(tiles__spans="10m").rows()


def test_seconds_may_be_written_in_milliseconds() -> None:
    assert given(tiles__spans="60000ms", tiles__session_gap="2000ms").settings.tiles.session_gap == "2000ms"


def test_the_model_alone_is_its_name(tmp_path: Path) -> None:
    path = tmp_path / "freshet.toml"
    path.write_text('model = "baseline"\n')
    for layer in (
        toml_layer(path),
        environment_layer({"FRESHET_MODEL": "baseline"}),
        Layer("--set", dict([assignment("model=baseline")])),
    ):
        resolved = resolve([layer])
        assert resolved.model_name == "baseline" and ("model.name", "baseline", layer.origin) in resolved.rows()
    flag = Layer("flag", {"model.name": "funk_mf"})
    assert resolve([toml_layer(path), flag]).model_name == "funk_mf"


def test_what_is_remembered_for_duplicates_reaches_over_what_may_be_late() -> None:
    with pytest.raises(SettingsError, match=r"^dedup.horizon: '1h' is less than out_of_orderness, '2h'"):
        given(out_of_orderness="2h")
    assert given(out_of_orderness="1h").settings.out_of_orderness == "1h"


def test_rows_show_what_will_be_used() -> None:
    shown = {name: value for name, value, _ in given(state_dir="there").rows()}
    assert shown["time"] == "event" and shown["dead_letters"] == "there/dead-letters"
    shown = {name: value for name, value, _ in given(time="processing", dead_letters="here").rows()}
    assert shown["time"] == "processing" and shown["dead_letters"] == "here"


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"--config .*absent.toml: No such file"):
        toml_layer(tmp_path / "absent.toml")
    (tmp_path / "bad.toml").write_text("shards = = 2")
    with pytest.raises(SettingsError, match=r"bad.toml is not TOML"):
        toml_layer(tmp_path / "bad.toml")


def test_assignments() -> None:
    assert assignment(" model.l2 = 0.5") == ("model.l2", "0.5")
    assert assignment("field.user_id=a=b") == ("field.user_id", "a=b")
    for text in ("shards", "=2", " =2"):
        with pytest.raises(SettingsError, match="write KEY=VALUE"):
            assignment(text)


def test_trees_are_flattened() -> None:
    assert flatten({"a": {"b": {"c": 1}, "d": {}}, "e": [1]}) == {"a.b.c": 1, "a.d": {}, "e": [1]}


def test_settings_do_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        resolve([]).settings.shards = 3


def test_options_of_flink_are_passed_on_as_text(tmp_path: Path) -> None:
    path = tmp_path / "freshet.toml"
    path.write_text('[flink]\nstate.backend.type = "rocksdb"\nexecution.checkpointing.unaligned.enabled = true\n')
    resolved = resolve([toml_layer(path), Layer("--set", {"flink.rest.port": "8081"})])
    assert resolved.settings.flink == {
        "state.backend.type": "rocksdb",
        "execution.checkpointing.unaligned.enabled": "true",
        "rest.port": "8081",
    }
    values = local_configuration(resolved.settings, tmp_path, None, tmp_path)
    assert (values["state.backend.type"], values["rest.port"]) == ("rocksdb", "8081")
    assert ("flink.rest.port", "8081", "--set") in resolved.rows()


@pytest.mark.parametrize("name", FLINK_FIXED)
def test_options_of_flink_that_promises_rest_on_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=f"freshet sets {name} itself: {FLINK_FIXED[name]}"):
        resolve([Layer("--set", {f"flink.{name}": "x"})])


KAFKA = {"source": "kafka:ratings", "kafka.bootstrap_servers": "localhost:9092"}
JAAS = "kafka.properties.sasl.jaas.config"


def test_a_topic_is_learned_as_it_comes_unless_it_is_said_otherwise() -> None:
    assert resolve([Layer("--set", KAFKA)]).time == "processing"
    assert resolve([Layer("--set", {**KAFKA, "time": "event"})]).time == "event"


def test_a_secret_comes_from_the_environment_or_a_file_and_is_not_shown(tmp_path: Path) -> None:
    layer = environment_layer({"FRESHET_KAFKA__PROPERTIES__SASL__JAAS__CONFIG": "canary"})
    resolved = resolve([Layer("flag", KAFKA), layer])
    assert resolved.settings.kafka.properties == {"sasl.jaas.config": "canary"}
    assert (JAAS, "(not shown)", "environment") in resolved.rows()
    config = tmp_path / "freshet.toml"
    config.write_text('[kafka.properties]\nsasl.jaas.config = "canary"\nfetch.max.bytes = 7\n')
    resolved = resolve([toml_layer(config), Layer("flag", KAFKA)])
    assert resolved.settings.kafka.properties == {"sasl.jaas.config": "canary", "fetch.max.bytes": "7"}
    assert "canary" not in str(resolved.rows())
    for origin in ("--set", "flag"):
        with pytest.raises(SettingsError, match="a secret on the command line") as caught:
            resolve([Layer(origin, {**KAFKA, JAAS: "canary"})])
        assert "canary" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"kafka.properties.group.id": "x"}, "freshet sets it itself: set kafka.group"),
        ({"dead_letters": "kafka:ratings"}, "its dead letters would be read again"),
        ({"dead_letters": "kafka:x", "items": "kafka:x"}, "its dead letters would be read again"),
        ({"items": "kafka:ratings"}, "items: 'ratings' is the topic of the events"),
        ({"items": "kafka:a/b"}, "write kafka:TOPIC"),
        ({"kafka.bootstrap_servers": ""}, "kafka.bootstrap_servers"),
        ({"kafka.start": "tomorrow"}, "write earliest, latest, group, or a time"),
        ({"kafka.gather": "2m"}, "is not within 1ms and 1m"),
        ({"format": "csv"}, "csv is for files"),
        ({"source": "generator", "dead_letters": "kafka:a/b"}, "write kafka:TOPIC"),
    ],
)
def test_settings_of_kafka_that_can_not_be(given: dict[str, str], message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        resolve([Layer("--set", {**KAFKA, **given})])
    assert message in str(caught.value)
