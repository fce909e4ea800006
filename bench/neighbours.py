"""What one client does to another: a chat's inter-token latency, and /live, beside plain and costly requests.

    python -m bench.neighbours [--rounds 2] [--seconds 8] [flags of orcinus serve]

A server with two keys. One client streams one chat after the other; the other, with the second key, sends 31 plain
streams, 150 chats at a time that each have a JSON schema of their own, one answer of 31 choices with 20
log-probabilities for each token, or the last two together. That client is a process of its own, of low priority: it
stands for one on another machine. "Own lag" is how late the reader's event loop was, which is in the other figures. No
OMP_* or ORCINUS_* variable of the shell reaches the server.
"""

import argparse
import asyncio
import contextlib
import itertools
import multiprocessing
import os
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from bench.peers.arms import serve
from bench.peers.machine import describe_machine
from bench.peers.serving import RunningArm, free_port
from orcinus.server.load.report import markdown_table, percentile

if TYPE_CHECKING:
    from multiprocessing.sharedctypes import Synchronized

_KEYS = ("key-of-the-one-who-reads", "key-of-the-one-who-asks")
_NUM_GRAMMARS, _NUM_CHOICES = 150, 31
_WARM_UP_S = 3.0
_HEADINGS = ["beside", "tokens", "ITL p50", "ITL p90", "ITL p99", "/live p99", "/live max", "own lag p99", "answers"]

_LOW_PRIORITY = 10
_MOST_SCHEMAS = 1_000_000  # in a row of the report: no two have the same schema
_SPAWN = multiprocessing.get_context("spawn")

Load = Callable[[httpx.AsyncClient], Awaitable[int]]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.neighbours", description=__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=8.0, help="of reading, for each load and round [default: 8]")
    options, flags = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as directory:
        keys = Path(directory) / "keys"
        keys.write_text("\n".join(_KEYS))
        keys.chmod(0o600)
        port = free_port()
        launch = serve([*flags, "--api-key-file", str(keys)], port)
        with RunningArm(launch, port, Path(directory) / "log"):
            rows = asyncio.run(measure(f"http://127.0.0.1:{port}", options.rounds, options.seconds))
    print("\n".join([f"- {describe_machine()}", "", markdown_table([_HEADINGS, *rows])]))


async def measure(url: str, num_rounds: int, seconds: float) -> list[list[str]]:
    """Return a row for each load and round; times in ms."""
    numbers = itertools.count(step=_MOST_SCHEMAS)
    rows = []
    for _ in range(num_rounds):
        for name in ("nothing", *_LOADS):
            with asking(url, name, next(numbers)) as num_answers:
                await asyncio.sleep(_WARM_UP_S)
                rows.append([name, *await measure_beside(url, seconds), str(num_answers.value)])
    return rows


@contextlib.contextmanager
def asking(url: str, name: str, first_number: int) -> "Iterator[Synchronized[int]]":
    """Let the other client ask while the block lasts. Yields how many answers it has had."""
    num_answers = _SPAWN.Value("i", 0)
    process = _SPAWN.Process(target=ask_for_ever, args=(url, name, first_number, num_answers), daemon=True)
    if name != "nothing":
        process.start()
    try:
        yield num_answers
    finally:
        if name != "nothing":
            assert process.is_alive(), "the client that asks has failed"
            process.terminate()
            process.join()


def ask_for_ever(url: str, name: str, first_number: int, num_answers: "Synchronized[int]") -> None:
    os.nice(_LOW_PRIORITY)
    asyncio.run(_ask_for_ever(url, _LOADS[name](itertools.count(first_number)), num_answers))


async def _ask_for_ever(url: str, loads: Sequence[Load], num_answers: "Synchronized[int]") -> None:
    async with client(url, _KEYS[1]) as asker:
        await asyncio.gather(*(keep_asking(asker, load, num_answers) for load in loads))


async def measure_beside(url: str, seconds: float) -> list[str]:
    async with client(url, _KEYS[0]) as reader:
        lags: list[float] = []
        live: list[float] = []
        async with running(keep_probing(reader, live), keep_sleeping(lags)):
            gaps = await read_streams(reader, seconds)
    figures = [percentile(gaps, share) for share in (50, 90, 99)] + [percentile(live, 99), max(live)]
    return [str(len(gaps)), *(f"{figure * 1e3:.1f}" for figure in [*figures, percentile(lags, 99)])]


@contextlib.asynccontextmanager
async def running(*work: Awaitable[None]) -> AsyncIterator[None]:
    """Do the work while the block lasts. Raises what some of it has ended with."""
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
    for end in ends:
        if isinstance(end, Exception):
            raise end


def client(url: str, key: str) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=None)
    return httpx.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=None, limits=limits)


async def read_streams(reader: httpx.AsyncClient, seconds: float) -> list[float]:
    """Return the times between two events of one stream, of streams that begin within so many seconds."""
    gaps: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        body = chat("Tell me a story", max_tokens=600, ignore_eos=True, stream=True, temperature=0.7)
        async with reader.stream("POST", "/v1/chat/completions", json=body) as response:
            response.raise_for_status()
            last: float | None = None
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    now = time.perf_counter()
                    gaps += [] if last is None else [now - last]
                    last = now
    return gaps


async def keep_asking(asker: httpx.AsyncClient, load: Load, num_answers: "Synchronized[int]") -> None:
    while True:
        num = await load(asker)
        num_answers.value += num


async def keep_probing(reader: httpx.AsyncClient, live: list[float]) -> None:
    while True:
        began = time.perf_counter()
        (await reader.get("/live")).raise_for_status()
        live.append(time.perf_counter() - began)
        await asyncio.sleep(0.05)


async def keep_sleeping(lags: list[float]) -> None:
    while True:
        began = time.perf_counter()
        await asyncio.sleep(0.01)
        lags.append(time.perf_counter() - began - 0.01)


async def ask_for_choices(fields: dict[str, Any], asker: httpx.AsyncClient) -> int:
    body = chat("x", max_tokens=1000, n=_NUM_CHOICES, ignore_eos=True, temperature=1, **fields)
    (await asker.post("/v1/chat/completions", json=body)).raise_for_status()
    return 1


async def ask_with_schema(numbers: "itertools.count[int]", asker: httpx.AsyncClient) -> int:
    described = {"name": "answer", "schema": slow_schema(next(numbers)), "strict": True}
    body = chat("x", max_tokens=24, response_format={"type": "json_schema", "json_schema": described})
    response = await asker.post("/v1/chat/completions", json=body)
    if response.status_code == httpx.codes.TOO_MANY_REQUESTS:
        await asyncio.sleep(0.5)
        return 0
    response.raise_for_status()
    return 1


def chat(text: str, **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], **fields}


def slow_schema(number: int) -> dict[str, Any]:
    """Return a schema of some 22 KB, unlike that of any other number."""
    names = [f"field_{number}_{i}" for i in range(40)]
    words = {"enum": [f"v{number}_{j}" for j in range(40)]}
    properties = {
        name: {
            "anyOf": [
                {"type": "string", "pattern": f"^[a-z{i % 10}]{{1,{20 + i}}}(foo|bar|baz{number})*$"},
                {"type": "array", "items": words, "maxItems": 7},
                {"type": "integer", "minimum": number, "maximum": number + 10**6},
            ]
        }
        for i, name in enumerate(names)
    }
    return {"type": "object", "properties": properties, "required": names[:20], "additionalProperties": False}


def _schemas(numbers: "itertools.count[int]") -> list[Load]:
    return [partial(ask_with_schema, numbers)] * _NUM_GRAMMARS


_PLAIN: Load = partial(ask_for_choices, {})
_LOGPROBS: Load = partial(ask_for_choices, {"logprobs": True, "top_logprobs": 20})
# What the other client asks for at once, given the numbers of its schemas.
_LOADS: dict[str, Callable[["itertools.count[int]"], list[Load]]] = {
    "31 plain streams": lambda _: [_PLAIN],
    "150 schemas at a time": _schemas,
    "log-probabilities": lambda _: [_LOGPROBS],
    "both": lambda numbers: [*_schemas(numbers), _LOGPROBS],
}

if __name__ == "__main__":
    main()
