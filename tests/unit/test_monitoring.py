"""What is watched: the rules, the dashboard and the runbook name metrics that there are, and each other.

What only Prometheus itself can tell (that its rules and queries are valid, and that alerts fire when they should) its
`promtool` tells, where it is installed.
"""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from orcinus.server.exposition.declarations import (
    ADMISSION_LIMITS,
    ENDS,
    METRICS,
    OUTCOMES,
    REJECTION_REASONS,
    SPECS,
)
from orcinus.server.metrics import Metrics

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy/prometheus/rules.yml"
RULES_TEST = ROOT / "deploy/prometheus/rules_test.yml"
DASHBOARD = ROOT / "deploy/grafana/orcinus.json"
RUNBOOK = ROOT / "docs/operations.md"

PROMETHEUS_OWN = {"up", "ALERTS"}
TARGET_LABELS = {"job", "instance"}
WORDS = {"and", "or", "unless", "by", "without", "on", "ignoring", "group_left", "group_right", "bool", "offset", "inf"}
VALUES: dict[tuple[str, str], set[str]] = {
    ("orcinus_requests_total", "outcome"): set(OUTCOMES),
    ("orcinus_key_requests_total", "outcome"): set(ENDS),
    ("orcinus_requests_rejected_total", "reason"): set(REJECTION_REASONS),
    ("orcinus_admission_blocked_total", "reason"): set(ADMISSION_LIMITS),
}

needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")


def names_in(query: str) -> set[str]:
    """Return the metrics that a query in PromQL names."""
    bare = re.sub(r'"(\\.|[^"\\])*"', '""', query)
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]", "", bare)
    bare = re.sub(r"\b(by|without|on|ignoring|group_left|group_right) *\([^)]*\)", "", bare)
    words = re.findall(r"(?<![\w:.$])[a-zA-Z_:][\w:]*\b(?! *\()", bare)
    return {word for word in words if word not in WORDS}


def selectors_in(query: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield each metric of a query with what its labels are compared with."""
    for name, inner in re.findall(r"([a-zA-Z_:][\w:]*)\{([^}]*)\}", query):
        yield name, dict(re.findall(r'(\w+) *(?:=~|!~|!=|=) *"([^"]*)"', inner))


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def alerts() -> list[dict[str, Any]]:
    return [rule for rule in rules() if "alert" in rule]


def panels() -> list[dict[str, Any]]:
    return list(json.loads(DASHBOARD.read_text())["panels"])


def dashboard_queries() -> list[str]:
    dashboard = json.loads(DASHBOARD.read_text())
    queries = [target["expr"] for panel in panels() for target in panel.get("targets", [])]
    queries += [annotation["expr"] for annotation in dashboard["annotations"]["list"]]
    return queries


def plain(query: str) -> str:
    """Return a query of the dashboard with values for Grafana's variables."""
    return query.replace("$__rate_interval", "1m").replace("$job", ".*").replace("$instance", ".*")


def exposed_names() -> set[str]:
    """Return what can be asked of a server: the names of its samples, of which some have none at first."""
    names: set[str] = set()
    for line in Metrics().exposition()[0].decode().splitlines():
        if line.startswith("# TYPE "):
            name, kind = line.split()[2:]
            names |= {f"{name}_{part}" for part in ("bucket", "sum", "count")} if kind == "histogram" else {name}
    return names


def base_of(name: str) -> str:
    """Return the declared metric that a sample's name belongs to."""
    return name if name in SPECS else re.sub(r"_(bucket|sum|count)$", "", name)


ALL_QUERIES = [*(rule["expr"] for rule in rules()), *map(plain, dashboard_queries())]


def test_names_are_found_in_a_query_and_nothing_else() -> None:
    query = """
    histogram_quantile(0.95, sum by (le, job) (rate(a_bucket{job=~"x|y", z="b{c"}[5m])))
      / ignoring (le) group_left (k) x:y:rate5m offset 1h and on (instance) (d > 14.4 * 0.05 or vector(1))
    """
    assert names_in(query) == {"a_bucket", "x:y:rate5m", "d"}
    assert list(selectors_in('rate(a{b="c", d=~"e|f"}[5m]) + g')) == [("a", {"b": "c", "d": "e|f"})]


def test_every_query_names_metrics_that_there_are() -> None:
    known = exposed_names() | {rule["record"] for rule in rules() if "record" in rule} | PROMETHEUS_OWN
    unknown = {query: names_in(query) - known for query in ALL_QUERIES}
    assert {query: names for query, names in unknown.items() if names} == {}
    assert all(map(names_in, ALL_QUERIES))


def test_every_query_names_labels_and_values_that_there_are() -> None:
    for name, labels in [found for query in ALL_QUERIES for found in selectors_in(query)]:
        spec = SPECS.get(base_of(name))
        if spec is None:  # a recording rule, or Prometheus' own
            continue
        expected = {*spec.labels, *TARGET_LABELS, *({"le"} if name.endswith("_bucket") else ())}
        assert set(labels) <= expected, name
        for label, value in labels.items():
            if allowed := VALUES.get((spec.name, label)):
                assert set(value.split("|")) <= allowed, f"{name}: {label}={value}"
            if label == "le":
                assert value in map(str, spec.bounds), f"{name} has no bucket up to {value}"


def test_each_rule_records_only_what_is_recorded_before_it() -> None:
    recorded: set[str] = set()
    for rule in rules():
        mine = {name for name in names_in(rule["expr"]) if ":" in name}
        assert mine <= recorded, rule
        recorded |= {rule["record"]} if "record" in rule else set()


def test_objectives_of_the_rules_are_those_of_the_settings() -> None:
    from orcinus.config.settings import Settings

    texts = [rule["expr"] for rule in rules() if "time_to_first_token_seconds_bucket" in rule["expr"]]
    bounds = {labels["le"] for text in texts for name, labels in selectors_in(text) if name.endswith("_bucket")}
    assert bounds == {f"{Settings.model_fields['target_ttft_ms'].default / 1000:g}"}


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: f"{alert['alert']}-{alert['labels']['severity']}")
def test_every_alert_has_its_section_in_the_runbook(alert: dict[str, Any]) -> None:
    page = RUNBOOK.read_text()
    headings = re.findall(r"^### (\w+)$", page, re.MULTILINE)
    assert headings.count(alert["alert"]) == 1
    assert alert["annotations"]["runbook_url"] == f"docs/operations.md#{alert['alert'].lower()}"
    section = page.split(f"### {alert['alert']}\n")[1].split("\n#")[0]
    assert "**Means.**" in section
    assert "**Do.**" in section


def test_runbook_has_no_alert_that_there_is_not() -> None:
    page = RUNBOOK.read_text()
    headings = {name for name in re.findall(r"^### (\w+)$", page, re.MULTILINE) if name.startswith("Orcinus")}
    assert headings == {alert["alert"] for alert in alerts()}


def test_metrics_that_the_runbook_names_are_there() -> None:
    known = exposed_names() | {rule["record"] for rule in rules() if "record" in rule} | set(SPECS)
    named = set(re.findall(r"\borcinus[_:][a-z0-9_:]+\b", RUNBOOK.read_text()))
    assert named
    assert named <= known


@pytest.mark.parametrize("alert", sorted({alert["alert"] for alert in alerts()}))
def test_every_alert_is_made_to_fire_and_kept_from_it(alert: str) -> None:
    tests = [
        (test, check)
        for test in yaml.safe_load(RULES_TEST.read_text())["tests"]
        for check in test.get("alert_rule_test", [])
        if check["alertname"] == alert
    ]
    firing = [(test, check) for test, check in tests if check.get("exp_alerts")]
    assert firing
    severities = {expected["exp_labels"]["severity"] for _, check in firing for expected in check["exp_alerts"]}
    assert severities == {rule["labels"]["severity"] for rule in alerts() if rule["alert"] == alert}
    for test, check in firing:
        fires = {expected["exp_labels"]["instance"] for expected in check["exp_alerts"]}
        series = "".join(item["series"] for item in test["input_series"])
        assert set(re.findall(r'instance="(\w+)"', series)) - fires, "no instance that must not fire"


def test_panels_are_well_formed_and_ask_the_chosen_data_source() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    ids = [panel["id"] for panel in panels()]
    assert len(set(ids)) == len(ids)
    assert [variable["name"] for variable in dashboard["templating"]["list"]] == ["datasource", "job", "instance"]
    for panel in panels():
        place = panel["gridPos"]
        assert 0 <= place["x"] <= place["x"] + place["w"] <= 24
        if panel["type"] != "row":
            assert panel["title"]
            assert panel["description"]
            assert panel["datasource"]["uid"] == "${datasource}"
            references = [target["refId"] for target in panel["targets"]]
            assert len(set(references)) == len(references) > 0


def test_panels_do_not_overlap() -> None:
    cells = [
        (x, y)
        for panel in panels()
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(set(cells)) == len(cells)


def test_the_dashboard_shows_what_was_asked_for() -> None:
    """Every metric that is about load, but those that tell the same in another way."""
    elsewhere = {
        "orcinus_info",
        "orcinus_model_info",
        "orcinus_slot_utilization_ratio",
        "orcinus_inference_time_seconds",
    }
    elsewhere |= {"orcinus_http_request_duration_seconds"}
    shown = {base_of(name) for query in ALL_QUERIES for name in names_in(query)}
    assert {spec.name for spec in METRICS} - shown == elsewhere


@needs_promtool
def test_promtool_accepts_the_rules() -> None:
    subprocess.run(["promtool", "check", "rules", str(RULES)], check=True, capture_output=True, timeout=60)


@needs_promtool
def test_promtool_finds_that_alerts_fire_when_they_should_and_only_then() -> None:
    command = ["promtool", "test", "rules", str(RULES_TEST)]
    result = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stdout + result.stderr


@needs_promtool
def test_promtool_accepts_every_query_of_the_dashboard(tmp_path: Path) -> None:
    queries = [{"record": f"query:{number}", "expr": plain(query)} for number, query in enumerate(dashboard_queries())]
    path = tmp_path / "queries.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": queries}]}))
    result = subprocess.run(
        ["promtool", "check", "rules", str(path)], check=False, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stdout + result.stderr
