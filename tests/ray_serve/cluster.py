"""A Ray cluster on this machine with Orcinus on it, and what happens to it: run in .venv-ray, prints JSON.

`python -m tests.ray_serve.cluster ORCINUS` where ORCINUS is the command, words separated by spaces.
"""

import concurrent.futures
import contextlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import httpx
import ray
from ray import serve

FOLDER = Path(__file__).parents[2] / "deploy" / "ray"
sys.path.insert(0, str(FOLDER))

from orcinus_on_ray import Options, build  # noqa: E402
from orcinus_replica import REPLICA_HEADER  # noqa: E402

NUM_STREAMS = 8
NUM_TURNS = 8
PATIENCE_S = 240.0

T = TypeVar("T")


def until(condition: Callable[[], T | None], otherwise: str) -> T:
    deadline = time.monotonic() + PATIENCE_S
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(otherwise)
        time.sleep(0.1)
    return found


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@contextlib.contextmanager
def cluster() -> Iterator[httpx.Client]:
    """Two cores that Ray may give away, and a client of its endpoint."""
    port = free_port()
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, configure_logging=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE_S, trust_env=False) as client:
            yield client
    finally:
        serve.shutdown()
        ray.shutdown()


def ask(client: httpx.Client, prompt: str, **options: Any) -> dict[str, Any]:
    """Return what was answered, and by which replica; a stream's events joined, with the error that ended it."""
    body = {"prompt": prompt, "temperature": 0, "ignore_eos": True, **options}
    if not body.get("stream"):
        response = client.post("/v1/completions", json=body)
        answer = response.json()
        usage = answer.get("usage") or {}
        return {
            "status": response.status_code,
            "replica": response.headers.get(REPLICA_HEADER),
            "text": answer["choices"][0]["text"] if "choices" in answer else None,
            "num_cached": (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0),
            "error": answer.get("error"),
        }
    joined: dict[str, Any] = {"text": "", "error": None, "is_done": False}
    with client.stream("POST", "/v1/completions", json=body) as response:
        joined |= {"status": response.status_code, "replica": response.headers.get(REPLICA_HEADER)}
        for line in response.iter_lines():
            data = line.removeprefix("data: ")
            if data == "[DONE]":
                joined["is_done"] = True
            elif line.startswith("data: "):
                event = json.loads(data)
                joined["error"] = event.get("error") or joined["error"]
                joined["text"] += "".join(choice["text"] for choice in event.get("choices", []))
    return joined


def servers() -> dict[int, int]:
    """The Orcinus servers that Ray's workers have started: process -> its worker."""
    found = {}
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            words = (folder / "cmdline").read_bytes().split(b"\0")
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            is_ours = b"serve" in words and b"--max-num-seqs" in words
            if is_ours and b"ray::" in (Path("/proc") / str(parent) / "cmdline").read_bytes():
                found[int(folder.name)] = parent
    return found


def num_running() -> int:
    replicas = serve.status().applications["default"].deployments["OrcinusReplica"].replica_states
    return replicas.get("RUNNING", 0)


def one_killed_under_load(client: httpx.Client) -> dict[str, Any]:
    """Streams at two replicas, of which one's actor is killed, and questions meanwhile."""
    prompts = [f"{index} whales" for index in range(NUM_STREAMS)]
    options = {"max_tokens": 800, "stream": True}
    with concurrent.futures.ThreadPoolExecutor(NUM_STREAMS + 1) as threads:
        before = servers()
        streams = [threads.submit(ask, client, prompt, **options) for prompt in prompts]
        until(lambda: all_run(NUM_STREAMS), "the streams did not all begin")
        server, worker = next(iter(before.items()))
        os.kill(worker, signal.SIGKILL)
        meanwhile = [ask(client, f"meanwhile {index}", max_tokens=2) for index in range(10)]
        answers = [stream.result() for stream in streams]
    until(lambda: server not in servers(), "the server of the killed replica went on")
    until(lambda: num_running() == 2 and len(servers()) == 2, "no replica came in its place")
    with concurrent.futures.ThreadPoolExecutor(NUM_STREAMS) as threads:
        after = [*threads.map(lambda prompt: ask(client, prompt, **options), prompts)]
    return {"answers": answers, "meanwhile": meanwhile, "after": after}


def all_run(num_streams: int) -> bool:
    """Whether so many streams run, some of them at each replica."""
    running = [metric_at(server, "orcinus_slots_in_use") for server in servers()]
    return sum(running) >= num_streams and all(running)


def metric_at(server: int, name: str) -> int:
    """Return a number of a server's /metrics."""
    for port in listening(server):
        with contextlib.suppress(httpx.HTTPError):
            for line in httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text.splitlines():
                if line.startswith(f"{name} "):
                    return int(float(line.split()[1]))
    return 0


def left_by_its_client(client: httpx.Client) -> int:
    """Return how many requests the servers saw aborted, once there is one: of a stream whose client has left."""
    body = {"prompt": "On and on", "max_tokens": 1500, "ignore_eos": True, "stream": True}
    with client.stream("POST", "/v1/completions", json=body) as response:
        assert next(response.iter_lines()).startswith("data: {")
    aborted = 'orcinus_requests_total{outcome="abort"}'
    return until(lambda: sum(metric_at(server, aborted) for server in servers()), "nobody was aborted")


def listening(process: int) -> list[int]:
    """The ports that a process listens on."""
    inodes = set()
    for descriptor in (Path("/proc") / str(process) / "fd").iterdir():
        with contextlib.suppress(OSError):
            if (target := str(descriptor.readlink())).startswith("socket:["):
                inodes.add(target[8:-1])
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return [int(words[1].rpartition(":")[2], 16) for words in lines if words[3] == "0A" and words[9] in inodes]


def conversations(client: httpx.Client) -> list[list[dict[str, Any]]]:
    """Two conversations, in turns: each prompt begins with the one before."""
    histories = [f"{name} " + "swims in the sea and sings. " * 20 for name in ("A whale", "One orca", "No shark")]
    turns: list[list[dict[str, Any]]] = [[] for _ in histories]
    for _ in range(NUM_TURNS):
        for index, history in enumerate(histories):
            answer = ask(client, history, max_tokens=8)
            turns[index].append(answer)
            histories[index] = history + answer["text"] + " And then it swims back. "
    return turns


def scaled_by_queue_depth(client: httpx.Client, orcinus: str) -> dict[str, Any]:
    """One replica with two slots, ten long streams, and how many replicas there are then."""
    options = Options(
        orcinus=orcinus, num_slots=2, min_replicas=1, max_replicas=2, upscale_delay_s=1, downscale_delay_s=2, num_cpus=1
    )
    serve.run(build(options))
    until(lambda: len(servers()) == 1 and num_running() == 1, "there was not one replica")
    with concurrent.futures.ThreadPoolExecutor(10) as threads:
        streams = [threads.submit(ask, client, f"{index}", max_tokens=800, stream=True) for index in range(10)]
        until(lambda: num_running() == 2, "no replica was added")
        answers = [stream.result() for stream in streams]
    until(lambda: num_running() == 1 and len(servers()) == 1, "no replica was taken away")
    return {"answers": [(answer["is_done"], answer["error"]) for answer in answers]}


def main() -> None:
    orcinus = sys.argv[1]
    with cluster() as client:
        serve.run(build(Options(orcinus=orcinus, num_slots=16, min_replicas=2, max_replicas=2, num_cpus=1)))
        until(lambda: len(servers()) == 2, "there were not two replicas")
        found: dict[str, Any] = {
            "models": client.get("/v1/models").json(),
            "refused": client.post("/v1/completions", json={"prompt": 1, "nonsense": True}).json(),
            "conversations": conversations(client),
            "num_aborted": left_by_its_client(client),
            "killed": one_killed_under_load(client),
        }
        serve.delete("default")
        until(lambda: not servers(), "servers were left behind")
        found["scaled"] = scaled_by_queue_depth(client, orcinus)
    found["left"] = len(servers())
    print(json.dumps(found))


if __name__ == "__main__":
    main()
