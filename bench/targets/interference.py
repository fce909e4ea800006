"""Streams that decode, alone and then while long prompts arrive, over HTTP: when each of their tokens came.

It knows nothing of targets and of what the times add up to.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench.targets.figures import Window
from orcinus.server.load.answers import AnswerStream, LoadError, RequestFailedError, RequestRecord
from orcinus.server.load.http_client import HttpClient
from orcinus.server.load.prompts import LoadItem
from orcinus.server.load.target import GREEDY, Target, first_model

_COMPLETIONS = "/v1/completions"
_TIMEOUT_S = 900.0
_SETTLED_TOKENS = 8
_POLL_S = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Interference:
    """Times at which the tokens of each stream came, in the two windows, and what became of the prompts."""

    streams: list[list[float]]
    alone: Window
    with_prompts: Window
    prompts: list[RequestRecord]


async def decode_beside_prompts(
    base_url: str,
    streams: Sequence[LoadItem],
    prompts: Sequence[LoadItem],
    *,
    alone_s: float,
    every_s: float,
    sampling: Mapping[str, float] = GREEDY,
) -> Interference:
    """The streams are cut off after the last prompt's answer; they must be asked for more tokens than come until then.

    Raises `LoadError` where one of them ends before.
    """
    async with HttpClient(base_url, None, _TIMEOUT_S) as client:
        target = Target(client, await first_model(client), "completions", sampling, ignore_eos=True)
        answers = [AnswerStream() for _ in streams]
        tasks = [
            asyncio.create_task(_read(target, item, answer)) for item, answer in zip(streams, answers, strict=True)
        ]
        try:
            return await _measure(target, tasks, answers, prompts, alone_s=alone_s, every_s=every_s)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def _measure(
    target: Target,
    tasks: Sequence["asyncio.Task[None]"],
    answers: Sequence[AnswerStream],
    prompts: Sequence[LoadItem],
    *,
    alone_s: float,
    every_s: float,
    sampling: Mapping[str, float] = GREEDY,
) -> Interference:
    while min(len(answer.chunk_times_s) for answer in answers) < _SETTLED_TOKENS:
        await asyncio.sleep(_POLL_S)
        _check_still_running(tasks)
    clock = target.client.clock
    started_s = clock()
    await asyncio.sleep(alone_s)
    alone = Window(started_s, clock())
    records = await asyncio.gather(*(_ask_later(target, item, i * every_s) for i, item in enumerate(prompts)))
    with_prompts = Window(alone.end_s, clock())
    _check_still_running(tasks)
    return Interference(
        streams=[answer.chunk_times_s for answer in answers], alone=alone, with_prompts=with_prompts, prompts=records
    )


async def _read(target: Target, item: LoadItem, answer: AnswerStream) -> None:
    response = await target.client.post(_COMPLETIONS, target.body(item), answer.feed)
    if response.status != 200:
        raise RequestFailedError(f"HTTP {response.status}", response.body[:200].decode("utf-8", "replace"))


async def _ask_later(target: Target, item: LoadItem, delay_s: float) -> RequestRecord:
    await asyncio.sleep(delay_s)
    return await target.ask(item, target.body(item))


def _check_still_running(tasks: Sequence["asyncio.Task[None]"]) -> None:
    for task in tasks:
        if task.done():
            task.result()  # raises what ended it
            raise LoadError("a stream came to its end before the prompts did: the context is too short for them")
