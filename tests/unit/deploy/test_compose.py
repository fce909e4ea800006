"""The compose files and what they mount: Prometheus and Grafana."""

import re
import shutil
import subprocess
from pathlib import Path

import compose_spec
import pytest

from orcinus.config.settings import Settings
from tests.unit.deploy.files import DEPLOY, read, stage_names

COMPOSE_FILES = (DEPLOY / "compose.yaml", DEPLOY / "compose.gpu.yaml")


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


def mounts(service: str) -> dict[str, Path]:
    """Return where in the container each file or folder of deploy/ is mounted."""
    volumes = [volume.split(":") for volume in read(COMPOSE_FILES[0])["services"][service]["volumes"]]
    return {target: DEPLOY / source for source, target, *_ in volumes if source.startswith(".")}


@pytest.mark.parametrize("service", ["prometheus", "grafana"])
def test_what_is_mounted_exists_and_cannot_be_written(service: str) -> None:
    assert mounts(service)
    assert not [source for source in mounts(service).values() if not source.exists()]
    volumes = read(COMPOSE_FILES[0])["services"][service]["volumes"]
    assert all(volume.endswith(":ro") for volume in volumes if volume.startswith("."))


def test_prometheus_reads_the_rules() -> None:
    (rules,) = read(DEPLOY / "prometheus/prometheus.yml")["rule_files"]
    configuration = "/etc/prometheus/prometheus.yml"
    assert {configuration, f"/etc/prometheus/{rules}"} <= mounts("prometheus").keys()


def test_grafana_asks_the_prometheus_of_the_compose_file() -> None:
    (source,) = read(DEPLOY / "grafana/provisioning/datasources/prometheus.yaml")["datasources"]
    assert source["type"] == "prometheus"
    assert source["isDefault"] is True
    host, port = source["url"].removeprefix("http://").split(":")
    assert host in read(COMPOSE_FILES[0])["services"]
    assert f"127.0.0.1:{port}:{port}" in read(COMPOSE_FILES[0])["services"][host]["ports"]


def test_grafana_finds_the_dashboard_where_it_is_mounted() -> None:
    (provider,) = read(DEPLOY / "grafana/provisioning/dashboards/orcinus.yaml")["providers"]
    folder = provider["options"]["path"]
    dashboard = mounts("grafana")[f"{folder}/orcinus.json"]
    assert dashboard == DEPLOY / "grafana/orcinus.json"
    assert mounts("grafana")["/etc/grafana/provisioning"] == DEPLOY / "grafana/provisioning"


def test_only_this_machine_reaches_what_needs_no_password() -> None:
    services = read(COMPOSE_FILES[0])["services"].values()
    assert all(re.match(r"127\.0\.0\.1:", port) for service in services for port in service["ports"])


def test_a_token_of_the_hub_is_passed_on() -> None:
    assert read(COMPOSE_FILES[0])["services"]["orcinus"]["environment"]["HF_TOKEN"] == "${HF_TOKEN:-}"
