"""What structured output costs: streams with a JSON schema beside plain ones, and the first use of a schema.

    python -m bench.structured [--model out/peers/qwen3-0.6b] [--streams 32] [--rounds 3] [other flags of orcinus serve]

A server of its own. In each round, in turn: streams with one schema, the same sampled token by token (words that must
not come up, and never would, keep a server from taking forced tokens at once), and plain ones that bring as many tokens
each as the first had. Then chats of one token with schemas that the server has not seen, each asked again: what the
first time takes longer is the schema's. They come one after the other, on an idle server and beside 31 streams.
"""

import argparse
import asyncio
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from bench.neighbours import chat, running
from bench.peers.arms import serve
from bench.peers.machine import describe_machine
from bench.peers.serving import RunningArm, free_port
from orcinus.server.load.report import markdown_table, percentile

_FIELDS = [
    *(("first_name", "string"), ("last_name", "string"), ("street_address", "string"), ("postal_code", "integer")),
    *(("is_member", "boolean"), ("number_of_children", "integer"), ("favourite_colour", "string")),
    *(("email_address", "string"), ("phone_number", "string"), ("further_notes", "string")),
]
_MAX_LENGTH = 12  # of each string
_MAX_TOKENS = 600
_NUM_FIRST_USES = 8
_NUM_BESIDE = 31
_LARGE_FIELDS = 1_500  # about 100 KB
_WARM_UP_S = 6.0  # from the start to the first schema: what is loaded for it is loaded by then

numbers = itertools.count()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.structured", description=__doc__)
    parser.add_argument("--model", default="out/peers/qwen3-0.6b")
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=["streams", "first"], help="of the two parts")
    options, flags = parser.parse_known_args()
    port = free_port()
    launch = serve(
        [*flags, "--model", options.model, "--max-num-seqs", str(max(options.streams, _NUM_BESIDE + 1))], port
    )
    with tempfile.TemporaryDirectory() as directory, RunningArm(launch, port, Path(directory) / "log"):
        tables = asyncio.run(measure(f"http://127.0.0.1:{port}", options))
    print("\n\n".join([f"- {describe_machine()}", *tables]))


async def measure(url: str, options: argparse.Namespace) -> list[str]:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=None, limits=limits) as client:
        await asyncio.sleep(_WARM_UP_S)
        tables = [await first_uses(client)] if options.only != "streams" else []
        if options.only != "first":
            tables.append(await streams(client, options.streams, options.rounds))
        return tables


# --- streams ------------------------------------------------------------------------------------------------


async def streams(client: httpx.AsyncClient, num_streams: int, num_rounds: int) -> str:
    rows = []
    for _ in range(num_rounds):
        schema = schema_of(next(numbers))
        structured = await tokens_and_seconds(client, [with_schema(schema, seed=i) for i in range(num_streams)])
        single = [with_schema(schema, seed=i, bad_words=["\x01\x02\x01"]) for i in range(num_streams)]
        one_by_one = await tokens_and_seconds(client, single)
        num_each = structured[0] // num_streams
        plain = [chat("x", max_tokens=num_each, ignore_eos=True, seed=i) for i in range(num_streams)]
        unconstrained = await tokens_and_seconds(client, plain)
        speeds = [count / seconds for count, seconds in (structured, one_by_one, unconstrained)]
        ratios = [speed / speeds[2] for speed in speeds[:2]]
        rows.append([str(structured[0]), *(f"{speed:.1f}" for speed in speeds), *(f"{ratio:.2f}" for ratio in ratios)])
    headings = ["tokens", "schema, tokens/s", "token by token", "plain", "schema / plain", "token by token / plain"]
    forced = await metric(client, "orcinus_forced_tokens_total")
    return f"{markdown_table([headings, *rows])}\n\nForced tokens in all: {forced:.0f}"


async def tokens_and_seconds(client: httpx.AsyncClient, bodies: list[dict[str, Any]]) -> tuple[int, float]:
    began = time.perf_counter()
    answers = await asyncio.gather(*(post(client, body) for body in bodies))
    seconds = time.perf_counter() - began
    return sum(answer["usage"]["completion_tokens"] for answer in answers), seconds


# --- the first use ------------------------------------------------------------------------------------------


async def first_uses(client: httpx.AsyncClient) -> str:
    kinds: dict[str, Callable[[int], dict[str, Any]]] = {"10 fields": schema_of, "100 KB": large_schema}
    rows = []
    for kind, make in kinds.items():
        rows.append([kind, "nothing", *await first_use(client, make), ""])
        print(rows[-1], file=sys.stderr)
    for beside in ("nothing", "10 fields"):
        async with busy(client) as gaps:
            figures = await first_use(client, kinds[beside]) if beside in kinds else await wait()
        rows.append([beside, f"{_NUM_BESIDE} streams", *figures, f"{percentile(gaps, 99) * 1e3:.1f}"])
    headings = ["schema", "beside", "new, ms", "most", "again, ms", "difference, ms", "ITL p99 of the streams, ms"]
    return markdown_table([headings, *rows])


async def first_use(client: httpx.AsyncClient, make: Callable[[int], dict[str, Any]]) -> list[str]:
    """Return medians of the time that a schema takes when it is new, the most of these, when it is not, and between."""
    new, again = [], []
    for _ in range(_NUM_FIRST_USES):
        body = with_schema(make(next(numbers)), max_tokens=1)
        new.append(await timed(post(client, body)))
        again.append(await timed(post(client, body)))
    differences = [first - second for first, second in zip(new, again, strict=True)]
    figures = statistics.median(new), max(new), statistics.median(again), statistics.median(differences)
    return [f"{figure * 1e3:.1f}" for figure in figures]


async def wait() -> list[str]:
    await asyncio.sleep(_WARM_UP_S)
    return ["", "", "", ""]


@asynccontextmanager
async def busy(client: httpx.AsyncClient) -> AsyncIterator[list[float]]:
    """Keep plain streams running while the block lasts. Yields the times between the events of one, when they end."""
    gaps: list[float] = []

    async def ask() -> None:
        while True:
            await post(client, chat("x", n=_NUM_BESIDE - 1, max_tokens=400, ignore_eos=True))

    async def read() -> None:
        while True:
            body = chat("x", max_tokens=400, ignore_eos=True, stream=True)
            async with client.stream("POST", "/v1/chat/completions", json=body) as response:
                response.raise_for_status()
                last = None
                async for line in response.aiter_lines():
                    if line.startswith("data: {"):
                        now = time.perf_counter()
                        gaps.extend([] if last is None else [now - last])
                        last = now

    async with running(ask(), read()):
        await asyncio.sleep(2.0)
        gaps.clear()
        yield gaps


# --- requests -----------------------------------------------------------------------------------------------


def with_schema(schema: dict[str, Any], *, max_tokens: int = _MAX_TOKENS, **fields: Any) -> dict[str, Any]:
    described = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
    return chat("x", max_tokens=max_tokens, response_format=described, **fields)


def schema_of(number: int) -> dict[str, Any]:
    """Return a schema of ten fields, unlike that of any other number."""
    return object_of({f"{name}_{number}": typed(kind) for name, kind in _FIELDS})


def large_schema(number: int) -> dict[str, Any]:
    properties = {f"field_{i}_of_{number}": typed(_FIELDS[i % len(_FIELDS)][1]) for i in range(_LARGE_FIELDS)}
    schema = object_of(properties)
    assert 90_000 < len(json.dumps(schema)) < 180_000
    return schema


def object_of(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}


def typed(kind: str) -> dict[str, Any]:
    bounds = {"string": {"maxLength": _MAX_LENGTH}, "integer": {"minimum": 0, "maximum": 99_999}}
    return {"type": kind, **bounds.get(kind, {})}


async def post(client: httpx.AsyncClient, body: dict[str, Any]) -> Any:
    response = await client.post("/v1/chat/completions", json=body)
    if response.is_error:
        raise RuntimeError(response.text)
    return response.json()


async def timed(work: Awaitable[Any]) -> float:
    began = time.perf_counter()
    await work
    return time.perf_counter() - began


async def metric(client: httpx.AsyncClient, name: str) -> float:
    lines = (await client.get("/metrics")).text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name} "))


if __name__ == "__main__":
    main()
