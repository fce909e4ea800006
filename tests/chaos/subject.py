"""The server that the chaos is for: started small, so that it is soon full; its engine found, killed and frozen.

Knows processes, signals and /metrics; not who asks, nor what is right.
"""

import re
import signal
import time
from dataclasses import dataclass

import psutil
from prometheus_client.parser import text_string_to_metric_families

from tests.chaos.accounting import RESTARTS, rest_problems
from tests.chaos.bodies import MAX_MODEL_LEN
from tests.chaos.plan import FaultKind
from tests.server_process import PATIENCE_S, ServerProcess, is_alive, until

KEYS = ("first-key", "second-key")
MODEL = ("--device", "cpu", "--dtype", "float32", "--max-model-len", str(MAX_MODEL_LEN), "--seed", "1")
# Four slots that cannot all be filled with long requests, so that some are preempted; a queue that bursts overflow.
_SIZES = ("--max-num-seqs", "4", "--block-size", "16", "--kv-cache-memory", "1920KiB", "--max-queue-len", "12")
SMALL = (*MODEL, *_SIZES, "--scheduling-policy", "fair")
ROOMY = (*MODEL, "--max-num-seqs", "8")
PAUSE_S = 3.0
_POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class Memory:
    """Resident bytes at rest."""

    server: int
    engine: int


class Subject:
    """A running server."""

    def __init__(self, *args: str) -> None:
        keys = [word for key in KEYS for word in ("--api-key", key)]
        self.process = ServerProcess(*args, *keys)
        self.url = self.process.url
        self.processes: set[psutil.Process] = set()

    def samples(self) -> dict[str, float]:
        """Every sample of /metrics that is no histogram's, by its name with its labels as it is written there."""
        families = text_string_to_metric_families(self.process.get("/metrics").text)
        plain = [family for family in families if family.type != "histogram"]
        return {_written(sample.name, sample.labels): sample.value for family in plain for sample in family.samples}

    def engine(self) -> psutil.Process | None:
        """The engine process that there is now, if there is one."""
        self.processes.update(self.process.children())
        return self.process.engine()

    def hit(self, kind: FaultKind) -> bool:
        """Do this to the engine, and wait until the server has dealt with it. Whether an engine died of it."""
        engine = until(self.engine, "there is no engine process to hit")
        num_restarts = self.samples().get(RESTARTS, 0)
        if kind == "pause":
            engine.send_signal(signal.SIGSTOP)
            time.sleep(PAUSE_S)
            engine.send_signal(signal.SIGCONT)
            return False
        engine.send_signal(signal.SIGKILL if kind == "kill" else signal.SIGSTOP)
        until(lambda: self.samples().get(RESTARTS, 0) > num_restarts, f"the engine was not restarted after a {kind}")
        return True

    def rest(self) -> tuple[dict[str, float], list[str]]:
        """The counters once nothing runs, and what did not come to rest."""
        deadline = time.monotonic() + PATIENCE_S
        until(lambda: self.process.get("/ready").status_code == 200, "the server is not ready again")
        while (problems := rest_problems(samples := self.samples())) and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        return samples, problems

    def memory(self) -> Memory:
        engine = until(self.engine, "there is no engine process to measure")
        return Memory(psutil.Process(self.process.pid).memory_info().rss, engine.memory_info().rss)

    def orphans(self) -> list[int]:
        """Processes that the server left behind, once it is gone."""
        return [process.pid for process in self.processes if is_alive(process)]

    def log_problems(self) -> list[str]:
        """Lines that only a fault of ours writes."""
        return [line.strip() for line in self.process.lines if re.search(r"Traceback|^\w*(Error|Exception)\b", line)]


def _written(name: str, labels: dict[str, str]) -> str:
    pairs = ",".join(f'{label}="{value}"' for label, value in labels.items())
    return f"{name}{{{pairs}}}" if pairs else name
