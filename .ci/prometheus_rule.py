"""Writes the PrometheusRule of Kubernetes from the rules of Prometheus, which it has word for word.

    python .ci/prometheus_rule.py [--check]

kubectl cannot make the one from the other: a kustomization takes no file of another form into a resource. With --check,
exits non-zero where the resource is out of date. Uses the standard library alone.
"""

import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[1]
RULES = ROOT / "deploy/prometheus/rules.yml"
RESOURCE = ROOT / "deploy/kubernetes/components/prometheus-rule/prometheusrule.yaml"
HEAD = """\
# Made by `make docs` from deploy/prometheus/rules.yml: change that.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: orcinus
  labels:
    app.kubernetes.io/name: orcinus
spec:
"""


def main() -> None:
    text = HEAD + textwrap.indent(RULES.read_text(), "  ")
    if "--check" not in sys.argv:
        RESOURCE.write_text(text)
    elif RESOURCE.read_text() != text:
        sys.exit(f"{RESOURCE.relative_to(ROOT)} is out of date: run make docs")


if __name__ == "__main__":
    main()
