"""What can't be run here, a container engine and Kubernetes, is at least read, put together and held to the schemas."""

from __future__ import annotations

import copy
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from jsonschema import Draft202012Validator

from flink_jobs.flink import prometheus_reporter
from flink_jobs.kafka import CONNECTOR
from flink_jobs.logconf import SILENCED, configured
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


def mounted(service: str) -> dict[str, Path]:
    """The files of ours that a service of the composition sees, by the place where it does."""
    volumes = (volume.split(":") for volume in compose()["services"][service]["volumes"])
    return {of[1]: (DEPLOY / "compose" / of[0]).resolve() for of in volumes if of[0].startswith(".")}


def provisioned(kind: str) -> dict[str, Any]:
    """The only file of Grafana's provisioning of a kind."""
    folder = f"/etc/grafana/provisioning/{kind}/"
    [path] = [path for place, path in mounted("grafana").items() if place.startswith(folder)]
    [found] = documents(path)
    return found


def test_grafana_is_provisioned_with_the_dashboard_and_its_data() -> None:
    [source] = provisioned("datasources")["datasources"]
    host, port = re.fullmatch(r"http://(\w+):(\d+)", source["url"]).groups()  # type: ignore[union-attr]
    assert source["type"] == "prometheus" and f"127.0.0.1:{port}:{port}" in compose()["services"][host]["ports"]
    [provider] = provisioned("dashboards")["providers"]
    folder = provider["options"]["path"]
    shown = [path for place, path in mounted("grafana").items() if str(Path(place).parent) == folder]
    assert shown == [DEPLOY / "monitoring" / "dashboard.json"] and provider["type"] == "file"


def test_prometheus_reads_the_reporters_and_our_rules() -> None:
    files = mounted("prometheus")
    [configuration] = documents(files["/etc/prometheus/prometheus.yml"])
    rules = [files[f"/etc/prometheus/{name}"] for name in configuration["rule_files"]]
    assert rules == [DEPLOY / "monitoring" / "alerts.yaml"]
    [scraped] = [of for job in configuration["scrape_configs"] for of in job["dns_sd_configs"]]
    reporter = prometheus_reporter(str(scraped["port"]))
    for name in scraped["names"]:
        flink = yaml.safe_load(compose()["services"][name]["environment"]["FLINK_PROPERTIES"])
        assert {key: str(flink[key]).lower() for key in reporter} == {k: v.lower() for k, v in reporter.items()}


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.name)
def test_prometheus_may_read_the_reporters_of_pods(overlay: Path) -> None:
    spec = deployment(overlay)["spec"]
    [port] = [of for of in spec["podTemplate"]["spec"]["containers"][0]["ports"] if of["name"] == "metrics"]
    assert prometheus_reporter(str(port["containerPort"])).items() <= spec["flinkConfiguration"].items()
    [policy] = [of["spec"] for of in built(overlay) if of["kind"] == "NetworkPolicy"]
    assert [{"port": port["containerPort"]}] in [rule.get("ports") for rule in policy["ingress"]]


def test_the_compositions_environment_is_settings_of_a_job() -> None:
    environment = compose()["services"]["submit"]["environment"]
    settings = resolve([environment_layer(environment), environment_layer(image_environment())]).settings
    assert settings.kafka.bootstrap_servers == "kafka:9092" and settings.cluster.code == "installed"
    flink = yaml.safe_load(environment["FLINK_PROPERTIES"])
    assert all(not isinstance(value, dict) for value in flink.values())


def shipped_conf() -> Path:
    """The folder of Flink's configuration that apache-flink brings."""
    import pyflink

    return Path(str(pyflink.__file__)).parent / "conf"


def properties(text: str) -> dict[str, str]:
    lines = (line for line in text.splitlines() if line.strip() and not line.startswith("#"))
    return {name.strip(): value.strip() for name, _, value in (line.partition("=") for line in lines)}


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.name)
def test_pods_log_as_the_image_does_and_not_as_the_operator(overlay: Path) -> None:
    [(name, text)] = deployment(overlay)["spec"]["logConfiguration"].items()
    assert properties(text) == properties(configured((shipped_conf() / name).read_text()))


def test_no_log_has_the_environment_of_the_workers() -> None:
    silenced = properties("\n".join(SILENCED))
    of_runs = [path.read_text() for path in (ROOT / "flink_jobs").glob("log4j-*.properties")]
    of_clusters = [configured(path.read_text(), "json") for path in shipped_conf().glob("log4j*.properties")]
    assert len(of_runs) == 2 and len(of_clusters) >= 3
    assert all(silenced.items() <= properties(text).items() for text in (*of_runs, *of_clusters))
    assert of_clusters == [configured(text, "json") for text in of_clusters]


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
    for name in ("config.yaml", "log4j-console.properties"):
        shutil.copy(shipped_conf() / name, conf)
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "FLINK_CONF_DIR": str(conf),
        "FRESHET_LOGS": "json",
        "FLINK_PROPERTIES": compose()["services"]["submit"]["environment"]["FLINK_PROPERTIES"],
    }
    for _ in range(2):  # a container may start again
        command = [str(DEPLOY / "docker" / "entrypoint.sh"), "echo", "done"]
        answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert answer.stdout == "done\n"
        values = yaml.safe_load((conf / "config.yaml").read_text())
        assert values["jobmanager.rpc.address"] == "jobmanager" and "--add-opens" in values["env.java.opts.all"]
        of_logs = properties((conf / "log4j-console.properties").read_text())
        assert of_logs["appender.console.layout.type"] == "JsonTemplateLayout"


def test_the_image_has_no_more_packages_than_the_job_needs() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    job = [*project["dependencies"], *project["optional-dependencies"]["job"]]
    needed = {re.match(r"[\w.-]+", line)[0].lower().replace(".", "-") for line in job}  # type: ignore[index]
    locked = re.split(r"^(?=\w)", (ROOT / "requirements.lock").read_text(), flags=re.MULTILINE)[1:]
    wanted_by = {of.partition("==")[0]: set(re.findall(r"^    # +(?:via )?(\S+)$", of, re.MULTILINE)) for of in locked}
    while more := {name for name, others in wanted_by.items() if others & needed} - needed:
        needed |= more
    script = (DEPLOY / "docker" / "strip.sh").read_text().replace("\\\n", " ")
    stripped = re.search(r"uninstall --quiet --yes (.+)$", script, re.MULTILINE)
    assert stripped is not None and needed <= wanted_by.keys()
    assert set(stripped.group(1).split()) == wanted_by.keys() - needed


def test_stripped_flink_is_where_both_its_scripts_and_the_package_look_for_it(tmp_path: Path) -> None:
    environment, flink = tmp_path / "freshet", tmp_path / "flink"
    pyflink = environment / "lib" / "python3.11" / "site-packages" / "pyflink"
    for folder in ("bin", "conf", "lib", "opt", "plugins", "log", "examples"):
        (pyflink / folder).mkdir(parents=True)
    for name in ("flink", "pyflink-udf-runner.sh"):
        (pyflink / "bin" / name).touch()
    (environment / "bin").mkdir()
    (environment / "bin" / "pip").symlink_to(shutil.which("true") or "")
    (environment / "bin" / "python").symlink_to(sys.executable)
    shutil.copy(shipped_conf() / "log4j-console.properties", pyflink / "conf")
    strip = ["sh", str(DEPLOY / "docker" / "strip.sh"), str(environment), str(flink)]
    subprocess.run(strip, env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}, check=True)
    assert SILENCED[1] in (flink / "conf" / "log4j-console.properties").read_text()
    assert (flink / "bin" / "flink").stat().st_mode & 0o111
    # Workers are started by this one, from the package.
    assert (pyflink / "bin" / "pyflink-udf-runner.sh").resolve() == flink / "bin" / "pyflink-udf-runner.sh"
    assert not (pyflink / "examples").exists()
