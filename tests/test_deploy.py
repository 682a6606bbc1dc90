"""What can't be run here, a container engine and Kubernetes, is at least read, put together and held to the schemas."""

from __future__ import annotations

import copy
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from jsonschema import Draft202012Validator

from flink_jobs.kafka import CONNECTOR
from flink_jobs.settings import environment_layer, resolve, toml_layer

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
CRD = KUBERNETES / "schemas" / "META-INF" / "fabric8" / "flinkdeployments.flink.apache.org-v1.yml"
# The newest operator whose schema can be had here is older than Flink 2.3: of all fields only this one is too new.
TOO_NEW: Final = {"flinkVersion": "v1_20"}


def documents(path: Path) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document is not None]


def merged(base: Any, patch: Any) -> Any:
    """As kustomize merges objects of kinds that it does not know, and quantities of those that it does."""
    if not isinstance(base, dict) or not isinstance(patch, dict):
        return patch
    return base | {name: merged(base.get(name), value) for name, value in patch.items()}


def built(folder: Path) -> list[dict[str, Any]]:
    """The objects of a kustomization, patched."""
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    objects: list[dict[str, Any]] = []
    for name in kustomization["resources"]:
        path = (folder / name).resolve()
        objects += built(path) if path.is_dir() else documents(path)
    for entry in kustomization.get("patches", []):
        for patch in documents(folder / entry["path"]):
            [place] = [n for n, of in enumerate(objects) if named(of) == named(patch)]
            objects[place] = merged(objects[place], patch)
    for name in kustomization.get("configurations", []):
        assert documents(folder / name)
    return copy.deepcopy(objects)


def named(of: dict[str, Any]) -> tuple[str, str]:
    return of["kind"], of["metadata"]["name"]


OVERLAYS = sorted((KUBERNETES / "overlays").iterdir())


def deployment(overlay: Path) -> dict[str, Any]:
    [found] = [of for of in built(overlay) if of["kind"] == "FlinkDeployment"]
    return found


@pytest.fixture(scope="session")
def crd() -> Iterator[dict[str, Any]]:
    """The published schema of a FlinkDeployment, by Maven."""
    if not CRD.exists():
        if shutil.which("mvn") is None:
            pytest.skip("no schema of FlinkDeployment: it is fetched with Maven, which is not installed")
        made = subprocess.run(
            ["make", "-C", str(ROOT), "kubernetes-schema"], capture_output=True, text=True, check=False
        )
        if made.returncode:
            pytest.skip(f"no schema: `make kubernetes-schema` failed, the network may be missing: {made.stdout[-300:]}")
    [versions] = [document["spec"]["versions"] for document in documents(CRD)]
    yield closed(versions[0]["schema"]["openAPIV3Schema"])


def closed(schema: Any) -> Any:
    """The schema, refusing what it does not know: a misspelt field would be dropped in silence."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {name: closed(part) for name, part in schema.items()}
    if inner.get("x-kubernetes-int-or-string") or inner.get("x-kubernetes-preserve-unknown-fields"):
        return {}
    if isinstance(inner.get("properties"), dict) and "additionalProperties" not in inner:
        inner["additionalProperties"] = False
    return inner


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.name)
def test_each_overlay_holds_to_the_operators_schema(overlay: Path, crd: dict[str, Any]) -> None:
    spec = deployment(overlay)["spec"]
    assert spec["flinkVersion"] == "v2_3"
    errors = list(Draft202012Validator(crd["properties"]["spec"]).iter_errors(spec | TOO_NEW))
    assert not [f"{error.json_path}: {error.message[:200]}" for error in errors]


def test_the_schema_finds_a_misspelt_field(crd: dict[str, Any]) -> None:
    spec = deployment(OVERLAYS[0])["spec"] | TOO_NEW
    for wrong in ({"upgrademode": "savepoint"}, {"upgradeMode": "savepoints"}):
        bad = spec | {"job": spec["job"] | wrong}
        assert list(Draft202012Validator(crd["properties"]["spec"]).iter_errors(bad))


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.name)
def test_objects_of_kubernetes_hold_to_its_schemas(overlay: Path) -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate to check these")
    for of in built(overlay):
        if of["kind"] != "FlinkDeployment":
            validate.validate(of, validate.latest_version(), strict=True)


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.name)
def test_a_job_is_upgraded_by_savepoint_watched_and_not_root(overlay: Path) -> None:
    spec = deployment(overlay)["spec"]
    flink = spec["flinkConfiguration"]
    assert spec["job"]["upgradeMode"] == "savepoint" and flink["high-availability.type"] == "kubernetes"
    assert flink["kubernetes.operator.cluster.health-check.enabled"] == "true"
    assert flink["kubernetes.operator.cluster.health-check.checkpoint-progress.enabled"] == "true"
    pod = spec["podTemplate"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    containers = pod["containers"] + spec["jobManager"]["podTemplate"]["spec"]["initContainers"]
    assert all(of["securityContext"]["allowPrivilegeEscalation"] is False for of in containers)
    assert {"state", "settings"} == {volume["name"] for volume in pod["volumes"]}
    # Both ends of a submission work on one folder, under one configuration.
    prepare = spec["jobManager"]["podTemplate"]["spec"]["initContainers"][0]["args"]
    for option in ("--config", "--state-dir"):
        assert value_of(prepare, option) == value_of(spec["job"]["args"], option)
    assert flink["execution.checkpointing.dir"] == f"file://{value_of(prepare, '--state-dir')}/checkpoints"
    # No secret is in what is committed.
    assert not re.search(r"password|secretKeyRef", yaml.safe_dump(spec), re.IGNORECASE)


def value_of(words: list[str], option: str) -> str:
    return words[words.index(option) + 1]


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.name)
def test_the_example_settings_are_those_of_a_job(overlay: Path) -> None:
    resolved = resolve([toml_layer(overlay / "freshet.toml.example")])
    assert resolved.topic == "events" and resolved.settings.redis.startswith("rediss://")
    kustomization = yaml.safe_load((overlay / "kustomization.yaml").read_text())
    for name in kustomization["secretGenerator"][0]["files"]:
        assert (overlay / f"{name}.example").exists()
        ignored = subprocess.run(["git", "check-ignore", "-q", str(overlay / name)], cwd=ROOT, check=False)
        assert ignored.returncode == 0, f"{name} could be committed"


def compose() -> dict[str, Any]:
    [found] = documents(DEPLOY / "compose" / "compose.yaml")
    return found


def test_the_composition_has_all_its_parts_pinned_and_on_loopback() -> None:
    services = compose()["services"]
    assert {"kafka", "redis", "jobmanager", "taskmanager", "producer", "prometheus", "grafana"} <= services.keys()
    for name, service in services.items():
        assert re.search(r":v?\d+\.\d+\.\d+(-[a-z]+)?$", service["image"]), name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
        for dependency in service.get("depends_on", {}):
            assert dependency in services
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            known = (DEPLOY / "compose" / source).exists() if source.startswith(".") else source in compose()["volumes"]
            assert known, volume


def test_the_compositions_environment_is_settings_of_a_job() -> None:
    environment = compose()["services"]["submit"]["environment"]
    settings = resolve([environment_layer(environment), environment_layer(image_environment())]).settings
    assert settings.kafka.bootstrap_servers == "kafka:9092" and settings.cluster.code == "installed"
    flink = yaml.safe_load(environment["FLINK_PROPERTIES"])
    assert all(not isinstance(value, dict) for value in flink.values())


def dockerfile() -> str:
    return (DEPLOY / "docker" / "Dockerfile").read_text()


def image_environment() -> dict[str, str]:
    text = dockerfile().replace("\\\n", " ")
    return dict(re.findall(r"(\w+)=(\S+)", next(line for line in text.splitlines() if line.startswith("ENV"))))


def test_the_image_is_pinned_and_not_root() -> None:
    text = dockerfile()
    assert text.rindex("USER flink") > text.rindex("FROM ")
    for base in re.findall(r"^ARG \w+=(.+)$", text, re.MULTILINE):
        assert re.search(r":\d+\.\d+\.\d+-", base), base
    assert image_environment()["FRESHET_KAFKA__CONNECTOR"].endswith(f"/{CONNECTOR}")
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for words in re.findall(r"^COPY (?!--from)(.+)$", text, re.MULTILINE):
        for source in words.split()[:-1]:
            assert (ROOT / source).exists(), source
            assert any(Path(source).is_relative_to(entry) for entry in allowed), source


def test_the_entrypoint_writes_flinks_configuration(tmp_path: Path) -> None:
    conf = tmp_path / "conf"
    conf.mkdir()
    import pyflink

    shutil.copy(Path(str(pyflink.__file__)).parent / "conf" / "config.yaml", conf)
    environment = {
        "PATH": os.environ["PATH"],
        "FLINK_CONF_DIR": str(conf),
        "FLINK_PROPERTIES": compose()["services"]["submit"]["environment"]["FLINK_PROPERTIES"],
    }
    for _ in range(2):  # a container may start again
        command = [str(DEPLOY / "docker" / "entrypoint.sh"), "echo", "done"]
        answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert answer.stdout == "done\n"
        values = yaml.safe_load((conf / "config.yaml").read_text())
        assert values["jobmanager.rpc.address"] == "jobmanager" and "--add-opens" in values["env.java.opts.all"]


def test_stripped_flink_is_where_both_its_scripts_and_the_package_look_for_it(tmp_path: Path) -> None:
    environment, flink = tmp_path / "freshet", tmp_path / "flink"
    pyflink = environment / "lib" / "python3.11" / "site-packages" / "pyflink"
    for folder in ("bin", "conf", "lib", "opt", "plugins", "log", "examples"):
        (pyflink / folder).mkdir(parents=True)
    for name in ("flink", "pyflink-udf-runner.sh"):
        (pyflink / "bin" / name).touch()
    (environment / "bin").mkdir()
    (environment / "bin" / "pip").symlink_to(shutil.which("true") or "")
    subprocess.run(["sh", str(DEPLOY / "docker" / "strip.sh"), str(environment), str(flink)], check=True)
    assert (flink / "bin" / "flink").stat().st_mode & 0o111
    # Workers are started by this one, from the package.
    assert (pyflink / "bin" / "pyflink-udf-runner.sh").resolve() == flink / "bin" / "pyflink-udf-runner.sh"
    assert not (pyflink / "examples").exists()
