"""The manifests: they fit their schemas, and they agree with the program that they deploy."""

import re
import shutil
from copy import deepcopy
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from orcinus.config.settings import Settings, load_settings
from tests.unit.deploy.combinations import rendered_with
from tests.unit.deploy.files import (
    DEPLOY,
    KUBERNETES,
    KUBERNETES_VERSIONS,
    check_resource,
    container_of,
    environment_of,
    environment_of_image,
    image_user,
    needs_kubectl,
    one,
    read,
    read_all,
    render,
)

BASE = KUBERNETES / "base"
COMPONENTS = KUBERNETES / "components"


@pytest.fixture
def deployment() -> dict[str, Any]:
    return read(BASE / "deployment.yaml")


# --- schemas --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
@pytest.mark.parametrize(
    "path", sorted(p for p in BASE.glob("*.yaml") if p.name != "kustomization.yaml"), ids=lambda p: p.name
)
def test_resource_fits_the_schema_of_kubernetes(path: Path, version: str) -> None:
    kubernetes_validate.validate(read(path), version, strict=True)


def test_schema_check_refuses_a_misspelt_field(deployment: dict[str, Any]) -> None:
    wrong = deepcopy(deployment)
    wrong["spec"]["template"]["spec"]["terminationGracePeriod"] = 60
    with pytest.raises(kubernetes_validate.ValidationError):
        check_resource(wrong)


@pytest.mark.parametrize(
    ("manifest", "path", "value"),
    [
        ("pod-monitor/podmonitor.yaml", ("podMetricsEndpoints", 0, "timeout"), "10s"),
        ("service-monitor/servicemonitor.yaml", ("endpoints", 0, "interval"), "15 s"),
        ("prometheus-rule/prometheusrule.yaml", ("groups", 0, "rules", 0, "severity"), "page"),
        ("autoscaling-keda/scaledobject.yaml", ("triggers", 0, "metadata", "threshold"), 8),
        ("scale-to-zero/interceptorroute.yaml", ("scalingMetric", "concurrency", "targetValue"), 0),
        ("inference-gateway/inferencepool.yaml", ("endpointPickerRef", "port"), {}),
        ("inference-gateway/httproute.yaml", ("rules", 0, "timeouts", "request"), "30"),
    ],
)
def test_schema_of_an_operator_takes_the_manifest_and_refuses_a_mistake(
    manifest: str, path: tuple[str | int, ...], value: object
) -> None:
    resource = read(COMPONENTS / manifest)
    check_resource(resource)
    place: Any = resource["spec"]
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        check_resource(resource)


@pytest.mark.parametrize(
    ("manifest", "place"),
    [
        ("inference-gateway/inferencepool.yaml", "endpointPickerRef"),
        ("scale-to-zero/interceptorroute.yaml", "target"),
    ],
)
def test_reference_to_a_service_without_a_port_is_refused(manifest: str, place: str) -> None:
    resource = read(COMPONENTS / manifest)
    del resource["spec"][place]["port"]
    with pytest.raises(jsonschema.ValidationError, match="port"):
        check_resource(resource)


# --- variants and components ----------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(KUBERNETES.rglob("kustomization.yaml")), ids=lambda p: p.parent.name)
def test_kustomization_names_files_that_exist(path: Path) -> None:
    kustomization = read(path)
    component = kustomization["apiVersion"] == "kustomize.config.k8s.io/v1alpha1"
    assert kustomization["kind"] == ("Component" if component else "Kustomization")
    for name in [*kustomization.get("resources", []), *kustomization.get("components", [])]:
        assert (path.parent / name).exists(), name


@pytest.mark.parametrize("overlay", ["kustomization.yaml", "gpu/kustomization.yaml"])
def test_variant_offers_every_component_in_an_order_that_works(overlay: str) -> None:
    text = (KUBERNETES / overlay).read_text()
    named = re.findall(r"components/([\w-]+)", re.sub(r"^# .*", "", text))
    alternatives = re.findall(r"# or ([\w-]+)", text)
    assert set(named + alternatives) | {"gpu"} == {path.parent.name for path in COMPONENTS.glob("*/kustomization.yaml")}
    assert named.index("autoscaling-keda") < named.index("scale-to-zero")


@pytest.mark.parametrize("overlay", ["kustomization.yaml", "gpu/kustomization.yaml"])
def test_no_variant_needs_an_operator_and_all_have_the_image_of_one_place(overlay: str) -> None:
    components = {Path(name).name for name in read(KUBERNETES / overlay)["components"]}
    assert components <= {"gpu", "image"}
    [image] = read(COMPONENTS / "image/kustomization.yaml")["images"]
    assert set(image) == {"name", "newName"}
    assert container_of(read(BASE / "deployment.yaml"))["image"] == f"{image['name']}:cpu"
    [cuda] = read(COMPONENTS / "gpu/kustomization.yaml")["images"]
    assert cuda == {"name": image["name"], "newTag": "cuda"}


@needs_kubectl
@pytest.mark.parametrize("name", ["", "gpu"])
def test_variant_with_every_line_in_use_fits_the_schemas(name: str, tmp_path: Path) -> None:
    shutil.copytree(KUBERNETES, tmp_path / "kubernetes")
    overlay = tmp_path / "kubernetes" / name / "kustomization.yaml"
    overlay.write_text(re.sub(r"# - (?=(\.\./)?components)", "- ", overlay.read_text()))
    resources = render(overlay.parent)
    assert {"ScaledObject", "InterceptorRoute", "PodMonitor", "InferencePool"} <= {r["kind"] for r in resources}
    for resource in resources:
        check_resource(resource)


@needs_kubectl
@pytest.mark.parametrize("name", ["base", "", "gpu"])
def test_rendered_variant_fits_the_schemas(name: str) -> None:
    for resource in render(KUBERNETES / name):
        check_resource(resource)


@needs_kubectl
def test_gpu_variant_asks_for_a_gpu_and_the_cuda_image() -> None:
    container = container_of(one(render(KUBERNETES / "gpu"), "Deployment"))
    assert container["image"] == "orcinus:cuda"
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert {"name": "ORCINUS_DEVICE", "value": "cuda"} in container["env"]


@needs_kubectl
def test_api_keys_component_mounts_the_file_that_the_setting_names() -> None:
    deployment = one(rendered_with("api-keys"), "Deployment")
    key_file = environment_of(deployment)["ORCINUS_API_KEY_FILE"]
    (mount,) = [m for m in container_of(deployment)["volumeMounts"] if key_file.startswith(m["mountPath"])]
    volumes = {v["name"]: v for v in deployment["spec"]["template"]["spec"]["volumes"]}
    assert volumes[mount["name"]]["secret"]["secretName"] == "orcinus-api-keys"


@needs_kubectl
def test_model_volume_takes_the_place_of_the_folder_that_ends_with_its_pod() -> None:
    resources = rendered_with("model-volume")
    volumes = {v["name"]: v for v in one(resources, "Deployment")["spec"]["template"]["spec"]["volumes"]}
    claim = one(resources, "PersistentVolumeClaim", "orcinus-models")
    assert volumes["huggingface"] == {
        "name": "huggingface",
        "persistentVolumeClaim": {"claimName": claim["metadata"]["name"]},
    }
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]  # a roll-over has two pods at a time


@needs_kubectl
def test_openshift_component_leaves_the_user_to_the_platform() -> None:
    for resource in rendered_with("inference-gateway", "openshift"):
        if resource["kind"] == "Deployment":
            context = resource["spec"]["template"]["spec"]["securityContext"]
            assert context == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}


# --- the pods -------------------------------------------------------------------------------------------


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


def test_roll_over_waits_as_long_as_a_start_may_take(deployment: dict[str, Any]) -> None:
    probe = container_of(deployment)["startupProbe"]
    assert deployment["spec"]["progressDeadlineSeconds"] > probe["periodSeconds"] * probe["failureThreshold"]


def test_replicas_are_left_to_whoever_scales(deployment: dict[str, Any]) -> None:
    assert "replicas" not in deployment["spec"]


def test_a_drained_node_gives_up_one_pod_and_never_none() -> None:
    assert read(BASE / "poddisruptionbudget.yaml")["spec"]["maxUnavailable"] == 1


def test_replicas_are_spread_over_zones_and_nodes_but_start_anyway(deployment: dict[str, Any]) -> None:
    constraints = deployment["spec"]["template"]["spec"]["topologySpreadConstraints"]
    assert [c["topologyKey"] for c in constraints] == ["topology.kubernetes.io/zone", "kubernetes.io/hostname"]
    assert {c["whenUnsatisfiable"] for c in constraints} == {"ScheduleAnyway"}


def test_a_token_of_the_hub_is_passed_on_where_there_is_one(deployment: dict[str, Any]) -> None:
    [token] = [entry for entry in container_of(deployment)["env"] if entry["name"] == "HF_TOKEN"]
    assert token["valueFrom"]["secretKeyRef"]["optional"] is True


def test_pod_has_no_rights_and_writes_only_where_a_volume_is(deployment: dict[str, Any]) -> None:
    pod, container = deployment["spec"]["template"]["spec"], container_of(deployment)
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["enableServiceLinks"] is False
    assert str(pod["securityContext"]["runAsUser"]) in image_user()
    written = {Path(environment_of_image()["HF_HOME"]), Path("/tmp")}
    assert written <= {Path(mount["mountPath"]) for mount in container["volumeMounts"]}


# --- what finds the pods --------------------------------------------------------------------------------


def test_everything_that_selects_pods_selects_these(deployment: dict[str, Any]) -> None:
    labels = deployment["spec"]["template"]["metadata"]["labels"].items()
    spec = deployment["spec"]
    spread = [c["labelSelector"] for c in spec["template"]["spec"]["topologySpreadConstraints"]]
    selectors = [
        spec["selector"],
        *spread,
        {"matchLabels": read(BASE / "service.yaml")["spec"]["selector"]},
        read(BASE / "poddisruptionbudget.yaml")["spec"]["selector"],
        read(COMPONENTS / "network-policy/networkpolicy.yaml")["spec"]["podSelector"],
        read(COMPONENTS / "pod-monitor/podmonitor.yaml")["spec"]["selector"],
        read(COMPONENTS / "inference-gateway/inferencepool.yaml")["spec"]["selector"],
    ]
    assert all(set(selector) == {"matchLabels"} for selector in selectors)
    assert all(selector["matchLabels"].items() <= labels for selector in selectors)


def test_service_monitor_selects_the_service_and_no_other() -> None:
    selector = read(COMPONENTS / "service-monitor/servicemonitor.yaml")["spec"]["selector"]["matchLabels"].items()
    assert selector <= read(BASE / "service.yaml")["metadata"]["labels"].items()
    others = [r for r in read_all(COMPONENTS / "inference-gateway/endpoint-picker.yaml") if r["kind"] == "Service"]
    assert len(others) == 1
    assert not selector <= others[0]["metadata"]["labels"].items()


def test_ports_are_those_of_the_container(deployment: dict[str, Any]) -> None:
    (port,) = container_of(deployment)["ports"]
    (service,) = read(BASE / "service.yaml")["spec"]["ports"]
    pods = read(COMPONENTS / "pod-monitor/podmonitor.yaml")["spec"]["podMetricsEndpoints"]
    services = read(COMPONENTS / "service-monitor/servicemonitor.yaml")["spec"]["endpoints"]
    policy = read(COMPONENTS / "network-policy/networkpolicy.yaml")["spec"]
    pool = read(COMPONENTS / "inference-gateway/inferencepool.yaml")["spec"]
    route = read(COMPONENTS / "scale-to-zero/interceptorroute.yaml")["spec"]["target"]
    assert {service["targetPort"], pods[0]["port"], policy["ingress"][0]["ports"][0]["port"]} == {port["name"]}
    assert services[0]["port"] == service["name"]
    assert pool["targetPorts"] == [{"number": port["containerPort"]}]
    assert route == {"service": "orcinus", "port": service["port"]}


def test_monitors_scrape_what_is_served_and_call_the_job_as_compose_does(served_paths: set[str]) -> None:
    pod = read(COMPONENTS / "pod-monitor/podmonitor.yaml")["spec"]
    service = read(COMPONENTS / "service-monitor/servicemonitor.yaml")["spec"]
    assert {pod["podMetricsEndpoints"][0]["path"], service["endpoints"][0]["path"]} <= served_paths
    label = "app.kubernetes.io/name"
    assert pod["jobLabel"] == service["jobLabel"] == label
    jobs = {job["job_name"] for job in read(DEPLOY / "prometheus/prometheus.yml")["scrape_configs"]}
    assert read(BASE / "service.yaml")["metadata"]["labels"][label] in jobs


def test_rules_of_the_operator_are_those_of_prometheus() -> None:
    resource = read(COMPONENTS / "prometheus-rule/prometheusrule.yaml")
    assert resource["spec"] == read(DEPLOY / "prometheus/rules.yml")


# --- scaling and the gateway ----------------------------------------------------------------------------


def names_of_metrics() -> set[str]:
    return set(
        re.findall(r"^\| `(orcinus_\w+)", (DEPLOY.parent / "docs/reference/metrics.md").read_text(), re.MULTILINE)
    )


def test_both_autoscalers_follow_queue_and_slots_with_the_same_thresholds() -> None:
    keda = read(COMPONENTS / "autoscaling-keda/scaledobject.yaml")["spec"]
    hpa = read(COMPONENTS / "autoscaling-hpa/horizontalpodautoscaler.yaml")["spec"]
    thresholds = {
        re.fullmatch(r'sum\((\w+)\{job="orcinus"\}\)', trigger["metadata"]["query"])[1]: float(  # type: ignore[index]
            trigger["metadata"]["threshold"]
        )
        for trigger in keda["triggers"]
    }
    assert thresholds.keys() <= names_of_metrics()
    assert thresholds == {
        metric["pods"]["metric"]["name"]: kubernetes_quantity(metric["pods"]["target"]["averageValue"])
        for metric in hpa["metrics"]
    }
    assert set(thresholds) == {"orcinus_queue_depth", "orcinus_slot_utilization_ratio"}
    assert keda["advanced"]["horizontalPodAutoscalerConfig"]["behavior"] == hpa["behavior"]
    assert (keda["minReplicaCount"], keda["maxReplicaCount"]) == (hpa["minReplicas"], hpa["maxReplicas"])


def kubernetes_quantity(text: str) -> float:
    return float(text.removesuffix("m")) / 1000 if text.endswith("m") else float(text)


@needs_kubectl
def test_scaling_to_zero_adds_what_is_counted_while_there_is_no_pod() -> None:
    resources = rendered_with("autoscaling-keda", "scale-to-zero")
    spec = one(resources, "ScaledObject")["spec"]
    route = one(resources, "InterceptorRoute")
    assert spec["minReplicaCount"] == 0
    assert [trigger["type"] for trigger in spec["triggers"]] == ["prometheus", "prometheus", "external-push"]
    assert spec["triggers"][-1]["metadata"]["interceptorRoute"] == route["metadata"]["name"]


@needs_kubectl
def test_gateway_reaches_the_pods_by_way_of_the_picker() -> None:
    resources = rendered_with("inference-gateway")
    picker = "orcinus-endpoint-picker"
    pool, service, deployment = (
        one(resources, "InferencePool"),
        one(resources, "Service", picker),
        one(resources, "Deployment", picker),
    )
    (backend,) = one(resources, "HTTPRoute")["spec"]["rules"][0]["backendRefs"]
    assert (backend["kind"], backend["name"]) == ("InferencePool", pool["metadata"]["name"])
    assert (backend["group"], "v1") == tuple(pool["apiVersion"].split("/"))
    reference = pool["spec"]["endpointPickerRef"]
    assert reference["name"] == picker
    assert reference["port"]["number"] == service["spec"]["ports"][0]["port"]
    assert service["spec"]["selector"] == deployment["spec"]["template"]["metadata"]["labels"]
    assert f"--pool-name={pool['metadata']['name']}" in container_of(deployment)["args"]


@needs_kubectl
def test_picker_may_read_its_configuration_and_what_it_watches() -> None:
    resources = rendered_with("inference-gateway")
    picker = "orcinus-endpoint-picker"
    pod = one(resources, "Deployment", picker)["spec"]["template"]["spec"]
    (config_map,) = [r for r in resources if r["kind"] == "ConfigMap"]
    (volume,) = [v for v in pod["volumes"] if "configMap" in v]
    assert volume["configMap"]["name"] == config_map["metadata"]["name"]
    (file_name,) = config_map["data"]
    assert (
        f"--config-file={pod['containers'][0]['volumeMounts'][0]['mountPath']}/{file_name}"
        in pod["containers"][0]["args"]
    )
    config = yaml.safe_load(config_map["data"][file_name])
    profile = {plugin["pluginRef"] for plugin in config["schedulingProfiles"][0]["plugins"]}
    assert profile == {plugin["type"] for plugin in config["plugins"]}
    binding, role = one(resources, "RoleBinding", picker), one(resources, "Role", picker)
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert (
        pod["serviceAccountName"]
        == binding["subjects"][0]["name"]
        == one(resources, "ServiceAccount", picker)["metadata"]["name"]
    )


# --- settings -------------------------------------------------------------------------------------------


@needs_kubectl
def test_every_variable_of_the_pods_is_a_setting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An unknown one, or a value that is not allowed, would keep the server from starting."""
    deployment = one(rendered_with("gpu", "api-keys", "inference-gateway"), "Deployment")
    variables = {k: v for k, v in environment_of(deployment).items() if k.startswith("ORCINUS_")}
    assert {"ORCINUS_DEVICE", "ORCINUS_API_KEY_FILE", "ORCINUS_METRICS_NAMES"} <= variables.keys()
    keys = tmp_path / "keys"
    keys.write_text("secret\n")
    for name, value in {**variables, "ORCINUS_API_KEY_FILE": str(keys)}.items():
        monkeypatch.setenv(name, value)
    load_settings()
