"""Renders the base with any components, many combinations by one call of kubectl: each in a namespace of its own."""

import itertools
import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import yaml

from tests.unit.deploy.files import KUBERNETES, Document, render

# What stands by itself, in the order of the variants; what excludes each other comes as alternatives.
SINGLE = ("gpu", "api-keys", "model-volume", "network-policy", "prometheus-rule", "inference-gateway", "openshift")
MONITORS = ((), ("pod-monitor",), ("service-monitor",))
SCALING = ((), ("autoscaling-hpa",), ("autoscaling-keda",), ("autoscaling-keda", "scale-to-zero"))

Combination = tuple[str, ...]


def subsets(names: Sequence[str]) -> Iterable[Combination]:
    return itertools.chain.from_iterable(itertools.combinations(names, size) for size in range(len(names) + 1))


def rendered_with(*components: str) -> list[Document]:
    """Return the base with these components and the image, as one apply would send it."""
    (resources,) = rendered([components])
    return resources


def rendered(combinations: Sequence[Combination]) -> list[list[Document]]:
    """Return the resources of each combination, their namespaces taken off again."""
    with tempfile.TemporaryDirectory(prefix="orcinus-kustomize-") as name:
        folder = Path(name).resolve()
        for number, components in enumerate(combinations):
            _write(folder / f"c{number}", components)
        _write_kustomization(folder, resources=[f"c{number}" for number in range(len(combinations))])
        resources = render(folder)
    by_namespace: dict[str, list[Document]] = {f"c{number}": [] for number in range(len(combinations))}
    for resource in resources:
        by_namespace[resource["metadata"].pop("namespace")].append(resource)
    return list(by_namespace.values())


def _write(folder: Path, components: Combination) -> None:
    folder.mkdir()
    base = os.path.relpath(KUBERNETES / "base", folder)
    paths = [os.path.relpath(KUBERNETES / "components" / name, folder) for name in (*components, "image")]
    _write_kustomization(folder, namespace=folder.name, resources=[base], components=paths)


def _write_kustomization(folder: Path, **fields: object) -> None:
    head = {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization"}
    (folder / "kustomization.yaml").write_text(yaml.safe_dump({**head, **fields}))
