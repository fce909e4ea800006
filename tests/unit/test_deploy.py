"""The container and cluster files: they fit their schemas, and they agree with the program they deploy.

No engine of containers and no cluster is needed. What a tool outside Python would check (kubectl, promtool,
hadolint) is checked where the tool is installed.
"""

import ast
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import compose_spec
import jsonschema
import kubernetes_validate
import pytest
import yaml

from orcinus.config.settings import Settings
from orcinus.server.process.health_check import addresses

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
BASE = KUBERNETES / "base"
COMPOSE_FILES = (DEPLOY / "compose.yaml", DEPLOY / "compose.gpu.yaml")
# 1.30 is the first release whose preStop knows `sleep`.
KUBERNETES_VERSIONS = ["1.30", "1.32", "1.34", kubernetes_validate.latest_version()]

# The operator's custom resource is in no package of schemas: these are the fields in use and their neighbours, from
# https://prometheus-operator.dev/docs/api-reference/api/#monitoring.coreos.com/v1.PodMonitor
POD_MONITOR_SCHEMA: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "properties": {
        "apiVersion": {"const": "monitoring.coreos.com/v1"},
        "kind": {"const": "PodMonitor"},
        "metadata": {"type": "object", "required": ["name"]},
        "spec": {
            "type": "object",
            "additionalProperties": False,
            "required": ["selector", "podMetricsEndpoints"],
            "properties": {
                "jobLabel": {"type": "string"},
                "podTargetLabels": {"type": "array", "items": {"type": "string"}},
                "namespaceSelector": {"type": "object"},
                "selector": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {
                        "matchLabels": {"type": "object", "additionalProperties": {"type": "string"}},
                        "matchExpressions": {"type": "array"},
                    },
                },
                "podMetricsEndpoints": {
                    "type": "array",
                    "minItems": 1,
                    "items": {
                        "type": "object",
                        "additionalProperties": False,
                        "properties": {
                            "port": {"type": "string"},
                            "portNumber": {"type": "integer"},
                            "path": {"type": "string", "pattern": "^/"},
                            "scheme": {"enum": ["http", "https", "HTTP", "HTTPS"]},
                            "interval": {"$ref": "#/$defs/duration"},
                            "scrapeTimeout": {"$ref": "#/$defs/duration"},
                            "honorLabels": {"type": "boolean"},
                            "relabelings": {"type": "array"},
                            "metricRelabelings": {"type": "array"},
                        },
                    },
                },
            },
        },
    },
    "$defs": {"duration": {"type": "string", "pattern": "^([0-9]+(ms|s|m|h|d|w|y))+$"}},
}


def read_all(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


def read(path: Path) -> dict[str, Any]:
    (document,) = read_all(path)
    return document


def check_resource(resource: dict[str, Any], version: str = KUBERNETES_VERSIONS[-1]) -> None:
    if resource["kind"] == "PodMonitor":
        jsonschema.validate(resource, POD_MONITOR_SCHEMA)
    else:
        kubernetes_validate.validate(resource, version, strict=True)


def container_of(deployment: dict[str, Any]) -> dict[str, Any]:
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    return dict(container)


@pytest.fixture
def deployment() -> dict[str, Any]:
    return read(BASE / "deployment.yaml")


@pytest.fixture(scope="module")
def served_paths() -> set[str]:
    from orcinus.server.app import create_app

    app = create_app(MagicMock(), Settings())
    return set(app.openapi()["paths"]) | {getattr(route, "path", "") for route in app.routes}


# --- Kubernetes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
@pytest.mark.parametrize("name", ["deployment.yaml", "service.yaml"])
def test_resource_fits_the_schema_of_kubernetes(name: str, version: str) -> None:
    kubernetes_validate.validate(read(BASE / name), version, strict=True)


def test_schema_check_refuses_a_misspelt_field(deployment: dict[str, Any]) -> None:
    wrong = deepcopy(deployment)
    wrong["spec"]["template"]["spec"]["terminationGracePeriod"] = 60
    with pytest.raises(kubernetes_validate.ValidationError):
        check_resource(wrong)


def test_pod_monitor_fits_the_schema_of_the_operator() -> None:
    pod_monitor = read(KUBERNETES / "components/pod-monitor/podmonitor.yaml")
    check_resource(pod_monitor)
    pod_monitor["spec"]["podMetricsEndpoints"][0]["timeout"] = "10s"
    with pytest.raises(jsonschema.ValidationError):
        check_resource(pod_monitor)


@pytest.mark.parametrize("path", sorted(KUBERNETES.rglob("kustomization.yaml")), ids=lambda p: p.parent.name)
def test_kustomization_names_files_that_exist(path: Path) -> None:
    kustomization = read(path)
    component = kustomization["apiVersion"] == "kustomize.config.k8s.io/v1alpha1"
    assert kustomization["kind"] == ("Component" if component else "Kustomization")
    for name in [*kustomization.get("resources", []), *kustomization.get("components", [])]:
        assert (path.parent / name).exists(), name


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed: overlays not rendered")
@pytest.mark.parametrize("name", ["base", "", "gpu"])
def test_rendered_kustomization_fits_the_schemas(name: str) -> None:
    for resource in render(KUBERNETES / name):
        check_resource(resource)


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed: overlays not rendered")
def test_gpu_overlay_asks_for_a_gpu_and_the_cuda_image() -> None:
    resources = {resource["kind"]: resource for resource in render(KUBERNETES / "gpu")}
    container = container_of(resources["Deployment"])
    assert container["image"] == "orcinus:cuda"
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert {"name": "ORCINUS_DEVICE", "value": "cuda"} in container["env"]


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed: overlays not rendered")
def test_api_keys_component_mounts_the_file_that_the_setting_names(tmp_path: Path) -> None:
    shutil.copytree(KUBERNETES, tmp_path / "kubernetes")
    overlay = tmp_path / "kubernetes/kustomization.yaml"
    overlay.write_text(overlay.read_text().replace("# - components", "- components"))
    (deployment,) = [r for r in render(overlay.parent) if r["kind"] == "Deployment"]
    check_resource(deployment)
    container = container_of(deployment)
    (key_file,) = [e["value"] for e in container["env"] if e["name"] == "ORCINUS_API_KEY_FILE"]
    (mount,) = [m for m in container["volumeMounts"] if key_file.startswith(m["mountPath"])]
    volumes = {v["name"]: v for v in deployment["spec"]["template"]["spec"]["volumes"]}
    assert volumes[mount["name"]]["secret"]["secretName"] == "orcinus-api-keys"


@pytest.mark.parametrize("overlay", ["kustomization.yaml", "gpu/kustomization.yaml"])
def test_no_variant_needs_the_operator_and_all_have_the_image_of_one_place(overlay: str) -> None:
    components = read(KUBERNETES / overlay)["components"]
    assert not [name for name in components if name.endswith("pod-monitor")]
    assert components[-1].endswith("components/image")  # after what brings the tag, under the name of the base
    [image] = read(KUBERNETES / "components/image/kustomization.yaml")["images"]
    assert set(image) == {"name", "newName"}
    assert container_of(read(BASE / "deployment.yaml"))["image"] == f"{image['name']}:cpu"
    [cuda] = read(KUBERNETES / "components/gpu/kustomization.yaml")["images"]
    assert cuda == {"name": image["name"], "newTag": "cuda"}


def test_a_token_of_the_hub_is_passed_on_where_there_is_one(deployment: dict[str, Any]) -> None:
    [token] = [entry for entry in container_of(deployment)["env"] if entry["name"] == "HF_TOKEN"]
    assert token["valueFrom"]["secretKeyRef"]["optional"] is True
    compose = read(COMPOSE_FILES[0])["services"]["orcinus"]["environment"]
    assert compose["HF_TOKEN"] == "${HF_TOKEN:-}"


def render(folder: Path) -> list[dict[str, Any]]:
    done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=True, timeout=60)
    return list(yaml.safe_load_all(done.stdout))


@pytest.mark.parametrize(
    ("probe", "path"), [("startupProbe", "/ready"), ("livenessProbe", "/live"), ("readinessProbe", "/ready")]
)
def test_probe_asks_a_path_that_the_server_has(
    deployment: dict[str, Any], served_paths: set[str], probe: str, path: str
) -> None:
    container = container_of(deployment)
    assert container[probe]["httpGet"]["path"] == path
    assert path in served_paths
    assert container[probe]["httpGet"]["port"] in {port["name"] for port in container["ports"]}


def test_grace_period_covers_the_sleep_before_and_the_drain(deployment: dict[str, Any]) -> None:
    pod = deployment["spec"]["template"]["spec"]
    sleep_s = container_of(deployment)["lifecycle"]["preStop"]["sleep"]["seconds"]
    margin_s = 5
    assert pod["terminationGracePeriodSeconds"] >= sleep_s + Settings().drain_timeout_s + margin_s


def test_service_and_pod_monitor_select_the_pods_and_their_port(
    deployment: dict[str, Any], served_paths: set[str]
) -> None:
    labels = deployment["spec"]["template"]["metadata"]["labels"].items()
    ports = {port["name"] for port in container_of(deployment)["ports"]}
    service = read(BASE / "service.yaml")["spec"]
    pod_monitor = read(KUBERNETES / "components/pod-monitor/podmonitor.yaml")["spec"]
    (endpoint,) = pod_monitor["podMetricsEndpoints"]

    assert service["selector"].items() <= labels
    assert pod_monitor["selector"]["matchLabels"].items() <= labels
    assert {service["ports"][0]["targetPort"], endpoint["port"]} <= ports
    assert endpoint["path"] in served_paths


def test_pod_has_no_rights_and_writes_only_where_a_volume_is(deployment: dict[str, Any]) -> None:
    pod, container = deployment["spec"]["template"]["spec"], container_of(deployment)
    user = str(pod["securityContext"]["runAsUser"])
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["enableServiceLinks"] is False
    assert user in image_user()
    written = {Path(environment_of_image()["HF_HOME"]), Path("/tmp")}
    assert written <= {Path(mount["mountPath"]) for mount in container["volumeMounts"]}


# --- compose and Prometheus -----------------------------------------------------------------------------


@pytest.mark.parametrize("path", COMPOSE_FILES, ids=lambda p: p.name)
def test_compose_file_fits_the_specification(path: Path) -> None:
    compose_spec.PyCompose.from_yaml(path.read_text())


def test_compose_check_refuses_a_misspelt_field() -> None:
    wrong = COMPOSE_FILES[0].read_text().replace("stop_grace_period", "stop_grace")
    with pytest.raises(ValueError, match="stop_grace"):
        compose_spec.PyCompose.from_yaml(wrong)


def test_compose_waits_longer_than_the_drain_before_it_kills() -> None:
    grace = read(COMPOSE_FILES[0])["services"]["orcinus"]["stop_grace_period"]
    assert int(grace.removesuffix("s")) >= Settings().drain_timeout_s + 5


def test_compose_builds_the_variants_that_the_dockerfile_has() -> None:
    variants = {stage.removeprefix("torch-") for stage in stage_names() if stage.startswith("torch-")}
    services = [read(path)["services"]["orcinus"] for path in COMPOSE_FILES]
    assert {service["build"]["args"]["VARIANT"] for service in services} == variants
    assert all(s["image"] == f"orcinus:{s['build']['args']['VARIANT']}" for s in services)


def test_prometheus_scrapes_the_service_of_the_compose_file(served_paths: set[str]) -> None:
    compose = read(COMPOSE_FILES[0])["services"]
    scraped = {job["job_name"]: job for job in read(DEPLOY / "prometheus/prometheus.yml")["scrape_configs"]}
    ((target,),) = [config["targets"] for config in scraped["orcinus"]["static_configs"]]
    host, port = target.split(":")
    assert host in compose
    assert compose[host]["ports"] == [f"127.0.0.1:{port}:{port}"]
    assert scraped["orcinus"].get("metrics_path", "/metrics") in served_paths


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_accepts_the_configuration_of_prometheus() -> None:
    command = ["promtool", "check", "config", str(DEPLOY / "prometheus/prometheus.yml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


# --- the image ------------------------------------------------------------------------------------------


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions and their arguments, continuation lines joined."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    text = re.sub(r"\\\n\s*", "", "\n".join(lines))
    pairs = [line.split(maxsplit=1) for line in text.splitlines() if line.strip()]
    return [(keyword, argument) for keyword, argument in pairs]


def last(keyword: str) -> str:
    return [argument for name, argument in instructions() if name == keyword][-1]


def stage_names() -> list[str]:
    return [argument.split(" AS ")[1] for name, argument in instructions() if name == "FROM"]


def image_user() -> list[str]:
    return last("USER").split(":")


def environment_of_image() -> dict[str, str]:
    return dict(pair.split("=", 1) for pair in last("ENV").split())


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="hadolint is not installed")
def test_hadolint_has_nothing_to_say() -> None:
    done = subprocess.run(
        ["hadolint", str(ROOT / "Dockerfile")], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout


def test_server_is_the_first_process_of_the_image_and_not_root() -> None:
    assert json.loads(last("ENTRYPOINT")) == ["orcinus"]
    assert json.loads(last("CMD")) == ["serve"]
    assert all(part.isdigit() and int(part) > 0 for part in image_user())


def test_any_user_of_group_0_may_write_where_the_server_writes() -> None:
    [made] = [argument for name, argument in instructions() if name == "RUN" and "install --directory" in argument]
    [command] = [part for part in made.split("&&") if "install --directory" in part]
    words = command.split()
    assert {"--group=0", "--mode=0775"} <= set(words)
    environment = environment_of_image()
    assert {environment["HF_HOME"], environment["HOME"], last("WORKDIR")} <= set(words)


def test_image_listens_where_its_port_is_exposed() -> None:
    environment = environment_of_image()
    assert environment["ORCINUS_HOST"] == "0.0.0.0"
    assert environment["ORCINUS_PORT"] == last("EXPOSE") == str(Settings().port)


def test_image_copies_all_that_the_wheel_is_made_of_and_the_build_context_has_it() -> None:
    copied = {
        source
        for name, argument in instructions()
        if name == "COPY" and not argument.startswith("--from")
        for source in argument.split()[:-1]
    }
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = {name.rstrip("*") for name in project["tool"]["setuptools"]["packages"]["find"]["include"]}
    linked = {path.name for path in (ROOT / "orcinus").iterdir() if path.is_symlink()}
    assert copied == packages | linked | {"pyproject.toml", "setup.py", "README.md", "LICENSE"}
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied == allowed


def test_dependency_layer_lists_the_dependencies_of_the_project() -> None:
    (command,) = [a for name, a in instructions() if name == "RUN" and "tomllib" in a]
    script = re.fullmatch(r'python -c "(.*)"\s*> requirements\.txt', command)
    assert script is not None
    done = subprocess.run(
        [sys.executable, "-c", script[1]], capture_output=True, text=True, check=True, cwd=ROOT, timeout=60
    )
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert done.stdout.splitlines() == project["project"]["dependencies"]


@contextmanager
def answering(status: int, asked: list[str]) -> Iterator[int]:
    """A server that answers every GET with `status`; yields its port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(("status", "exit_code"), [(200, 0), (503, 1)])
def test_health_check_of_the_image_follows_readiness(status: int, exit_code: int) -> None:
    command = json.loads(last("HEALTHCHECK").split(" CMD ")[1])
    assert command[0] == "python"
    asked: list[str] = []
    with answering(status, asked) as port:
        environment = {**os.environ, "ORCINUS_PORT": str(port)}
        done = subprocess.run([sys.executable, *command[1:]], env=environment, timeout=60, check=False)
    assert (done.returncode, asked) == (exit_code, ["/ready"])


@pytest.mark.parametrize(
    ("host", "port", "expected"),
    [
        (None, None, [("127.0.0.1", 8000)]),
        ("0.0.0.0", "9000", [("127.0.0.1", 9000)]),
        ("0.0.0.0", "tcp://10.0.0.1:8000", [("127.0.0.1", Settings().port)]),
        ("0.0.0.0", "", [("127.0.0.1", 8000)]),
        ("::", "8000", [("::1", 8000), ("127.0.0.1", 8000)]),
        ("[::1]", "8000", [("::1", 8000)]),
        ("10.1.2.3", "8000", [("10.1.2.3", 8000)]),
    ],
)
def test_health_check_asks_where_the_server_listens(
    host: str | None, port: str | None, expected: list[tuple[str, int]]
) -> None:
    given = {"ORCINUS_HOST": host, "ORCINUS_PORT": port}
    assert addresses({name: value for name, value in given.items() if value is not None}) == expected


def test_health_check_of_a_server_on_both_families_needs_one_of_them() -> None:
    command = json.loads(last("HEALTHCHECK").split(" CMD ")[1])
    asked: list[str] = []
    with answering(200, asked) as port:  # on IPv4 alone
        environment = {**os.environ, "ORCINUS_PORT": str(port), "ORCINUS_HOST": "::"}
        done = subprocess.run([sys.executable, *command[1:]], env=environment, timeout=60, check=False)
    assert (done.returncode, asked) == (0, ["/ready"])


def test_health_check_fails_where_nothing_listens() -> None:
    with answering(200, []) as port:
        pass
    command = json.loads(last("HEALTHCHECK").split(" CMD ")[1])
    environment = {**os.environ, "ORCINUS_PORT": str(port)}
    done = subprocess.run([sys.executable, *command[1:]], env=environment, timeout=60, check=False, capture_output=True)
    assert done.returncode == 1


# --- Ray ------------------------------------------------------------------------------------------------


def test_ray_options_in_the_readme_and_the_file_are_those_that_there_are() -> None:
    source = (DEPLOY / "ray" / "orcinus_on_ray.py").read_text()
    (options,) = [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef) and node.name == "Options"]
    names = {
        node.target.id for node in options.body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    readme = (DEPLOY / "ray" / "README.md").read_text()
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", readme.partition("| option |")[2], re.MULTILINE)
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == names
    (application,) = yaml.safe_load((DEPLOY / "ray" / "serve.yaml").read_text())["applications"]
    assert set(application["args"]) <= names
    module, _, function = application["import_path"].partition(":")
    assert (DEPLOY / "ray" / f"{module}.py").is_file()
    assert any(isinstance(node, ast.FunctionDef) and node.name == function for node in ast.parse(source).body)
