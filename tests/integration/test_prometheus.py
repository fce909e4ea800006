"""Debian's Prometheus scrapes a real server under load, with our rules, and knows what the load generator saw."""

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from orcinus.server.cli import main
from tests.server_process import ServerProcess, StartServer, until
from tests.unit.test_monitoring import RULES, panels, plain

NUM_REQUESTS = 24
NUM_SLOTS = 3
LOAD = ("--prompt-tokens", "uniform:8..32", "--output-tokens", "uniform:4..12", "--ignore-eos")

# What a server on a CPU without named keys, faults and meters of energy has nothing to show for.
MAY_BE_EMPTY = {
    "Alerts",
    "HTTP errors by status",
    "Sequences by key",
    "Failed, by key",
    "Generated tokens by key",
    "Prompt tokens by key",
    "Power",
    "Energy of a generated token",
    "Drafts accepted, by position",  # random prompts may bring none
    "Drafts tried, by position",
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),  # on a machine that is busy
    pytest.mark.skipif(shutil.which("prometheus") is None, reason="Prometheus is not installed"),
]


class Prometheus:
    """A Prometheus that scrapes one server every second, and its query API."""

    def __init__(self, directory: Path, target: str) -> None:
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(RULES)],
            "scrape_configs": [{"job_name": "orcinus", "static_configs": [{"targets": [target]}]}],
        }
        path = directory / "prometheus.yml"
        path.write_text(yaml.safe_dump(config))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{probe.getsockname()[1]}"
        self._log = (directory / "prometheus.log").open("w")
        command = [
            "prometheus",
            f"--config.file={path}",
            f"--storage.tsdb.path={directory / 'data'}",
            f"--web.listen-address={address}",
        ]
        self._process = subprocess.Popen(command, stdout=self._log, stderr=subprocess.STDOUT)
        self._http = httpx.Client(base_url=f"http://{address}", timeout=60, trust_env=False)

    def close(self) -> None:
        self._http.close()
        self._process.terminate()
        self._process.wait(60)
        self._log.close()

    def is_ready(self) -> bool:
        assert self._process.poll() is None, Path(self._log.name).read_text()
        try:
            return self._http.get("/-/ready").status_code == 200
        except httpx.TransportError:
            return False

    def get(self, path: str, **params: str) -> Any:
        response = self._http.get(f"/api/v1/{path}", params=params)
        assert response.status_code == 200, response.text
        return response.json()["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        return list(self.get("query", query=expression)["result"])

    def value(self, expression: str) -> float:
        [sample] = self.query(expression)
        return float(sample["value"][1])

    def wait_for_scrape(self) -> None:
        """Wait until the server was scraped as it is now."""
        now = time.time()
        until(
            lambda: any(float(sample["value"][1]) > now for sample in self.query("timestamp(orcinus_slots)")),
            "nothing was scraped",
        )


@pytest.fixture
def server(start_server: StartServer) -> ServerProcess:
    return start_server("--metrics-names", "orcinus,vllm", "--max-num-seqs", str(NUM_SLOTS))


@pytest.fixture
def prometheus(server: ServerProcess, tmp_path: Path) -> Iterator[Prometheus]:
    running = Prometheus(tmp_path, server.url.removeprefix("http://"))
    try:
        until(running.is_ready, "Prometheus was not ready")
        until(lambda: running.query("orcinus_slots"), "nothing was scraped")
        yield running
    finally:
        running.close()


def load(server: ServerProcess, path: Path) -> dict[str, Any]:
    """Put load on the server, and return what the load generator saw."""
    argv = ["--base-url", server.url, "--num-requests", str(NUM_REQUESTS), "--max-concurrency", "8"]
    assert main(["bench", "serve", *argv, *LOAD, "--json", str(path)]) == 0
    [run] = json.loads(path.read_text())["runs"]
    assert run["summary"]["num_succeeded"] == NUM_REQUESTS
    return dict(run)


def test_prometheus_knows_what_the_load_generator_saw(
    server: ServerProcess, prometheus: Prometheus, tmp_path: Path
) -> None:
    run = load(server, tmp_path / "numbers.json")
    output_tokens = run["summary"]["output_tokens"]
    prometheus.wait_for_scrape()
    num_probes, num_probe_tokens = 1, 1  # of the load generator, before it begins

    for names in ("orcinus_", "vllm:"):
        assert prometheus.value(f"{names}generation_tokens_total") == output_tokens + num_probe_tokens
        assert prometheus.value(f"{names}time_to_first_token_seconds_count") == NUM_REQUESTS + num_probes
        gaps = output_tokens - NUM_REQUESTS
        assert prometheus.value(f"{names}inter_token_latency_seconds_count") == gaps
    assert prometheus.value('orcinus_requests_total{outcome="length"}') == NUM_REQUESTS + num_probes
    assert prometheus.value('vllm:request_success_total{finished_reason="length"}') == NUM_REQUESTS + num_probes
    assert prometheus.value("orcinus_slots_in_use") == prometheus.value("vllm:num_requests_running") == 0
    assert prometheus.value('orcinus_admission_blocked_total{reason="slots"}') > 0, "eight clients, three slots"
    prompts = prometheus.value("orcinus_prompt_tokens_total")
    assert prompts == prometheus.value("vllm:prompt_tokens_total") == prometheus.value("vllm:request_prompt_tokens_sum")
    held = prometheus.value("orcinus_slot_seconds_total")
    assert 0 < held <= prometheus.value("orcinus_slot_capacity_seconds_total")
    first_s = prometheus.value("orcinus_time_to_first_token_seconds_sum")
    assert 0 < first_s <= prometheus.value("sum without (outcome) (orcinus_e2e_latency_seconds_sum)")

    until(lambda: f" of {NUM_SLOTS} slots (" in server.log, "the log had no line of what there was to do")
    rules_are_evaluated(prometheus)
    panels_show_something(prometheus, server)
    its_end_is_noticed(prometheus, server)


def rules_are_evaluated(prometheus: Prometheus) -> None:
    def evaluated() -> list[dict[str, Any]] | None:
        rules = [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]
        return rules if all(rule["health"] != "unknown" for rule in rules) else None

    rules = until(evaluated, "rules were not evaluated")
    assert len(rules) == sum(len(group["rules"]) for group in yaml.safe_load(RULES.read_text())["groups"])
    assert [rule for rule in rules if rule["health"] != "ok"] == []
    assert [rule["name"] for rule in rules if rule.get("state") == "firing"] == []
    until(lambda: prometheus.query("orcinus:generation_tokens:rate5m > 0"), "no tokens a second were recorded")
    assert prometheus.value("orcinus:completion:ratio_rate5m") == 1.0


def panels_show_something(prometheus: Prometheus, server: ServerProcess) -> None:
    """Every query of the dashboard is answered, and has data where this server has any."""
    server.http.post("/v1/completions", json={"prompt": "x", "temperature": 9})  # is refused
    until(lambda: prometheus.query('orcinus_requests_rejected_total{reason="invalid"} > 0'), "nothing was refused")
    for panel in panels():
        for target in panel.get("targets", []):
            shown = prometheus.query(plain(target["expr"]))
            assert shown or panel["title"] in MAY_BE_EMPTY, f"{panel['title']}: {target['expr']}"


def its_end_is_noticed(prometheus: Prometheus, server: ServerProcess) -> None:
    server.terminate()
    server.wait()
    pending = 'ALERTS{alertname="OrcinusDown", alertstate="pending"}'
    until(lambda: prometheus.query(pending), "nobody noticed that the server is gone")
