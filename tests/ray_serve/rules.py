"""What the rules of deploy/ray decide, without a cluster: run in .venv-ray, prints JSON."""

import asyncio
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "deploy" / "ray"))

from orcinus_on_ray import _events, _prefix_of, by_queue_depth
from prefix_router import PrefixRouter, SentPrefixes, blocks_of
from ray.exceptions import RayActorError

TEXT = "x" * 1280  # ten blocks


def ranked(*replicas: tuple[int, int], scope: str = "key") -> list[int]:
    """Return the order of replicas, each with so many calls of 32 slots and so many of TEXT's characters sent there."""
    router: Any = object.__new__(PrefixRouter)
    router.initialize_state(num_slots=32)
    router._replica_queue_len_cache = {index: num_calls for index, (num_calls, _) in enumerate(replicas)}
    for index, (_, num_chars) in enumerate(replicas):
        call = SimpleNamespace(text=TEXT[:num_chars], scope="key")
        router.on_request_routed(SimpleNamespace(args=[call]), index, None)
    candidates = [SimpleNamespace(replica_id=index) for index in range(len(replicas))]
    request = SimpleNamespace(args=[SimpleNamespace(text=TEXT, scope=scope)])
    ranks = asyncio.run(router.choose_replicas(candidates, request))
    return [replica.replica_id for (replica,) in ranks]


def wanted(*replicas: tuple[int, int], queued: int = 0, num_slots: int = 10) -> float:
    """Return how many replicas are wanted where each has so many running and waiting."""
    metrics = {
        "slots_in_use": {index: running for index, (running, _) in enumerate(replicas)},
        "queue_depth": {index: waiting for index, (_, waiting) in enumerate(replicas)},
        "slots": dict.fromkeys(range(len(replicas)), num_slots),
    }
    context: Any = SimpleNamespace(
        aggregated_metrics=metrics, total_queued_requests=queued, target_num_replicas=len(replicas)
    )
    return by_queue_depth(context)[0]


def bounded() -> int:
    sent = SentPrefixes(most=50)
    for index in range(30):
        sent.add(blocks_of(f"{index} {TEXT}", ""))
    return len(sent)


async def events(*parts: bytes, is_lost: bool) -> list[str]:
    async def given() -> Any:
        for part in parts:
            yield part
        if is_lost:
            raise RayActorError

    return [event.decode() async for event in _events(given())]


def main() -> None:
    found = {
        "least load": ranked((2, 0), (1, 0), (3, 0)),
        "prefix": ranked((0, 0), (7, 1280)),
        "loaded too much": ranked((0, 0), (8, 1280)),
        "part of it": [ranked((0, 0), (3, 512)), ranked((0, 0), (4, 512))],
        "other scope": ranked((0, 0), (1, 1280), scope="other"),
        "wanted": [
            wanted((8, 0)),
            wanted((9, 0)),
            wanted((10, 7)),
            wanted((10, 0), (2, 0)),
            wanted((0, 0)),
            wanted(queued=3),
            wanted((8, 0), queued=1),
        ],
        "bounded": bounded(),
        "prefixes": [
            _prefix_of(body)
            for body in (b'{"prompt": "a", "cache_salt": "s"}', b'{"messages": [1], "tools": [2]}', b"no JSON", b"[1]")
        ],
        "whole events": asyncio.run(events(b"data: 1\n", b"\ndata: 2\n\ndata: 3", b"\n\n", is_lost=False)),
        "cut off": asyncio.run(events(b"data: 1\n\ndata: 2", is_lost=True)),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
