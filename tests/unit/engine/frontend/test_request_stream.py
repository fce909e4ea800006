"""A stream that is dropped: its request is aborted by the event loop, wherever the collector runs."""

import asyncio
import gc
import threading
from typing import Any

from orcinus.engine.frontend.live_request import LiveRequest
from orcinus.engine.frontend.request_stream import RequestStream
from orcinus.engine.outputs import GenerationRequest
from orcinus.engine.sampling_params import SamplingParams


class Aborts:
    """Notes the threads in which it was called."""

    def __init__(self) -> None:
        self.threads: list[int] = []

    def __call__(self) -> None:
        self.threads.append(threading.get_ident())


def stream_of(aborts: Aborts, *choices: str) -> RequestStream:
    nothing: Any = None
    live = LiveRequest(GenerationRequest(request_id="r", prompts=[[1]], sampling=SamplingParams()))
    live.choices.update(dict.fromkeys(choices, nothing))
    return RequestStream(live, aborts, [1])


async def test_it_is_aborted_by_the_loop_in_its_own_time() -> None:
    aborts = Aborts()
    held = [stream_of(aborts, "unfinished")]
    held.clear()
    gc.collect()
    assert aborts.threads == [], "the collector may come in the middle of anything"
    await asyncio.sleep(0)
    assert aborts.threads == [threading.get_ident()]


async def test_dropped_in_another_thread_it_is_aborted_in_that_of_the_loop() -> None:
    aborts = Aborts()
    held = [stream_of(aborts, "unfinished")]
    await asyncio.to_thread(held.clear)
    await asyncio.sleep(0)
    assert aborts.threads == [threading.get_ident()]


async def test_one_that_has_ended_is_not_aborted() -> None:
    aborts = Aborts()
    held = [stream_of(aborts)]
    held.clear()
    gc.collect()
    await asyncio.sleep(0)
    assert aborts.threads == []


def test_one_that_outlives_its_loop_is_not_aborted() -> None:
    aborts = Aborts()

    async def make() -> RequestStream:
        return stream_of(aborts, "unfinished")

    held = [asyncio.run(make())]
    held.clear()
    gc.collect()
    assert aborts.threads == []
