"""Every combination of components is rendered by kubectl, fits the schemas, and names nothing that is not there."""

import json
import subprocess
from collections.abc import Iterator
from functools import cache

import pytest

from tests.unit.deploy.combinations import MONITORS, SCALING, SINGLE, Combination, rendered, rendered_with, subsets
from tests.unit.deploy.files import (
    KUBERNETES,
    KUBERNETES_VERSIONS,
    Document,
    check_resource,
    container_of,
    needs_kubectl,
    one,
)

pytestmark = needs_kubectl
WITH = {
    "prometheus-rule": "PrometheusRule",
    "network-policy": "NetworkPolicy",
    "inference-gateway": "InferencePool",
    "model-volume": "PersistentVolumeClaim",
    "pod-monitor": "PodMonitor",
    "service-monitor": "ServiceMonitor",
    "autoscaling-hpa": "HorizontalPodAutoscaler",
    "autoscaling-keda": "ScaledObject",
    "scale-to-zero": "InterceptorRoute",
}


@cache
def check_once(resource: str) -> None:
    """Check a resource against its schema: most are the same in hundreds of combinations."""
    check_resource(json.loads(resource))


def check(components: Combination, resources: list[Document]) -> None:
    """Check one combination: schemas, the kinds that its components stand for, and references within the pod."""
    for resource in resources:
        check_once(json.dumps(resource, sort_keys=True))
    kinds = {resource["kind"] for resource in resources}
    assert {name for name, kind in WITH.items() if kind in kinds} == set(components) & WITH.keys(), components
    deployment = one(resources, "Deployment")
    pod, container = deployment["spec"]["template"]["spec"], container_of(deployment)
    variables = [entry["name"] for entry in container["env"]]
    assert len(variables) == len(set(variables)), components
    assert {m["name"] for m in container["volumeMounts"]} == {v["name"] for v in pod["volumes"]}, components
    assert container["image"] == ("orcinus:cuda" if "gpu" in components else "orcinus:cpu")
    assert ("ORCINUS_API_KEY_FILE" in variables) == ("api-keys" in components)
    assert ("runAsUser" in pod["securityContext"]) != ("openshift" in components)
    claims = {r["metadata"]["name"] for r in resources if r["kind"] == "PersistentVolumeClaim"}
    used = {v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"] if "persistentVolumeClaim" in v}
    assert used == claims, components


def in_pairs() -> Iterator[Combination]:
    """Yield the combinations in which each pair of components that go together stands once at least."""
    yield ()
    for monitor in MONITORS[1:]:
        for scaling in SCALING[1:]:
            yield (*SINGLE, *monitor, *scaling)
    yield from ((name,) for name in SINGLE)


def test_each_component_alone_and_all_together_fit_the_schemas() -> None:
    combinations = list(in_pairs())
    for components, resources in zip(combinations, rendered(combinations), strict=True):
        check(components, resources)


@pytest.mark.slow
@pytest.mark.parametrize("scaling", SCALING, ids=lambda names: "+".join(names) or "unscaled")
@pytest.mark.parametrize("monitor", MONITORS, ids=lambda names: "+".join(names) or "unwatched")
def test_every_combination_fits_the_schemas(monitor: Combination, scaling: Combination) -> None:
    combinations = [(*names, *monitor, *scaling) for names in subsets(SINGLE)]
    assert len(combinations) == 2 ** len(SINGLE)
    for components, resources in zip(combinations, rendered(combinations), strict=True):
        check(components, resources)


def test_every_component_is_in_some_combination() -> None:
    named = {name for components in in_pairs() for name in components} | {"image"}
    assert named == {path.parent.name for path in KUBERNETES.glob("components/*/kustomization.yaml")}


@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
def test_all_together_fit_every_release_of_kubernetes(version: str) -> None:
    for resource in rendered_with(*SINGLE, *MONITORS[1], *SCALING[-1]):
        check_resource(resource, version)


def test_a_component_that_does_not_exist_is_refused() -> None:
    with pytest.raises(subprocess.CalledProcessError):
        rendered_with("no-such-component")
