"""Reads what is deployed: manifests, compose files and the Dockerfile, and checks manifests against their schemas.

Kubernetes' own kinds are checked by kubernetes-validate, in strict mode. Those of the operators are checked by
`schemas/`, which state facts of each operator's published definitions: the fields that are in use here and their plain
neighbours, with their types and bounds. A field that a schema leaves out is refused, although the operator may know it.
"""

import json
import re
import shutil
import subprocess
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

ROOT = Path(__file__).parents[3]
DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
# 1.30 is the first release whose preStop knows `sleep`.
KUBERNETES_VERSIONS = ["1.30", "1.32", "1.34", kubernetes_validate.latest_version()]
LATEST = KUBERNETES_VERSIONS[-1]
SCHEMAS = Path(__file__).with_name("schemas")

Document = dict[str, Any]

needs_kubectl = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed: nothing rendered")


def read_all(path: Path) -> list[Document]:
    return list(yaml.safe_load_all(path.read_text()))


def read(path: Path) -> Document:
    (document,) = read_all(path)
    return document


def render(folder: Path) -> list[Document]:
    """Return what `kubectl apply -k` of the folder would send."""
    done = subprocess.run(
        ["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=True, timeout=120
    )
    return list(yaml.load_all(done.stdout, Loader=yaml.CSafeLoader))


def check_resource(resource: Document, version: str = LATEST) -> None:
    """Raise a ValidationError (of kubernetes-validate or of jsonschema) where the API would refuse the resource."""
    _check_text(json.dumps(resource, sort_keys=True), version)


@cache
def _check_text(text: str, version: str) -> None:
    resource = json.loads(text)
    if operator_schema := schema_of_operator(resource["kind"]):
        operator_schema.validate(resource)
    else:
        kubernetes_validate.validate(resource, version, strict=True)


@cache
def schema_of_operator(kind: str) -> jsonschema.Draft202012Validator | None:
    path = SCHEMAS / f"{kind.lower()}.yaml"
    return jsonschema.Draft202012Validator(read(path)) if path.exists() else None


def one(resources: Iterable[Document], kind: str, name: str = "orcinus") -> Document:
    (found,) = [r for r in resources if (r["kind"], r["metadata"]["name"]) == (kind, name)]
    return found


def container_of(deployment: Document) -> Document:
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    return dict(container)


def environment_of(deployment: Document) -> dict[str, str]:
    """Return the variables whose value is written down."""
    return {entry["name"]: entry["value"] for entry in container_of(deployment)["env"] if "value" in entry}


def instructions() -> list[tuple[str, str]]:
    """Return the Dockerfile's instructions and their arguments, continuation lines joined."""
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
