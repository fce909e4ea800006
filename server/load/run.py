"""The load itself: sends requests when they are due, no more at a time than allowed, and collects what was measured."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from orcinus.server.load.answers import RequestFailedError, RequestRecord
from orcinus.server.load.prompts import LoadItem
from orcinus.server.load.target import Target


@dataclass(frozen=True, slots=True)
class LoadRun:
    """Every request's record, in the order of sending, on a clock that begins with the first one.

    `client_cpu` is how much of one core this process took meanwhile.
    """

    records: list[RequestRecord]
    duration_s: float
    client_cpu: float


async def run_load(
    target: Target,
    items: Sequence[LoadItem],
    *,
    arrivals: Sequence[float],
    max_concurrency: int | None,
    on_done: Callable[[], object],
) -> LoadRun:
    """Send each item at its time in `arrivals`, in seconds from now, or as soon as fewer are under way."""
    bodies = [target.body(item) for item in items]
    slots = asyncio.Semaphore(max_concurrency or len(items))
    tasks: list[asyncio.Task[RequestRecord]] = []
    started_s, cpu_s = target.client.clock(), time.process_time()
    async with asyncio.TaskGroup() as group:
        for item, body, due_s in zip(items, bodies, arrivals, strict=True):
            await _until(started_s + due_s, target)
            await slots.acquire()
            tasks.append(group.create_task(_ask(target, item, body, slots, on_done)))
    cpu_s = time.process_time() - cpu_s
    wall_s = target.client.clock() - started_s
    records = [_shifted(task.result(), started_s) for task in tasks]
    duration_s = max(record.ended_s for record in records) - min(record.sent_s for record in records)
    return LoadRun(records, duration_s, cpu_s / wall_s)


async def _until(due_s: float, target: Target) -> None:
    if (wait_s := due_s - target.client.clock()) > 0:
        await asyncio.sleep(wait_s)


async def _ask(
    target: Target, item: LoadItem, body: bytes, slots: asyncio.Semaphore, on_done: Callable[[], object]
) -> RequestRecord:
    sent_s = target.client.clock()
    try:
        return await target.ask(item, body)
    except RequestFailedError as error:
        return RequestRecord(
            sent_s=sent_s,
            ended_s=target.client.clock(),
            asked_prompt_tokens=item.prompt_tokens,
            asked_output_tokens=item.max_tokens,
            chunk_times_s=[],
            failure=error.reason,
            error=str(error),
        )
    finally:
        slots.release()
        on_done()


def _shifted(record: RequestRecord, by_s: float) -> RequestRecord:
    """The record with times that are relative to `by_s`."""
    return replace(
        record,
        sent_s=record.sent_s - by_s,
        ended_s=record.ended_s - by_s,
        chunk_times_s=[time_s - by_s for time_s in record.chunk_times_s],
    )
