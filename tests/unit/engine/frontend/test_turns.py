"""Clients take turns: round robin over those that wait, with places left to those that have none."""

import asyncio
import threading

import pytest

from orcinus.engine.frontend.turns import FairSemaphore, FairThreads, current_client, on_behalf_of


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def enter(semaphore: FairSemaphore, client: str, order: list[str]) -> asyncio.Task[None]:
    async def wait() -> None:
        await semaphore.acquire(client)
        order.append(client)

    return asyncio.create_task(wait())


async def test_a_client_that_asks_once_has_its_turn_after_one_of_a_client_that_asks_often() -> None:
    semaphore, order = FairSemaphore(1), list[str]()
    await semaphore.acquire("a")
    tasks = [enter(semaphore, client, order) for client in "aaaabcb"]
    await settle()
    for _ in tasks:
        semaphore.release(order[-1] if order else "a")
        await settle()
    assert "".join(order) == "abcabaa"


async def test_a_reserved_place_is_for_clients_that_have_none() -> None:
    semaphore, order = FairSemaphore(2, num_reserved=1), list[str]()
    tasks = [enter(semaphore, client, order) for client in "aabc"]
    await settle()
    assert order == ["a", "b"]
    semaphore.release("a")
    await settle()
    assert order == ["a", "b", "a"]
    semaphore.release("a")
    await settle()
    assert order == ["a", "b", "a", "c"]
    await asyncio.gather(*tasks)


async def test_a_place_is_not_lost_where_it_is_given_to_a_task_that_is_cancelled_in_the_same_moment() -> None:
    semaphore, order = FairSemaphore(1), list[str]()
    await semaphore.acquire("a")
    gone = enter(semaphore, "b", order)
    stays = enter(semaphore, "c", order)
    await settle()
    semaphore.release("a")  # to b
    gone.cancel()
    await settle()
    assert order == ["c"]
    await stays


async def test_a_task_that_leaves_the_line_is_passed_over() -> None:
    semaphore, order = FairSemaphore(1), list[str]()
    await semaphore.acquire("a")
    gone, stays = enter(semaphore, "b", order), enter(semaphore, "b", order)
    await settle()
    gone.cancel()
    await settle()
    semaphore.release("a")
    await stays
    semaphore.release("b")
    assert not semaphore._waiting
    assert not semaphore._held


async def test_work_runs_for_the_client_that_is_named_around_it() -> None:
    with on_behalf_of("a"):
        assert await asyncio.create_task(asyncio.sleep(0, current_client())) == "a"
        with on_behalf_of("b"):
            assert current_client() == "b"
        assert current_client() == "a"
    assert current_client() == ""


@pytest.fixture
def threads() -> FairThreads:
    return FairThreads(1, "test")


async def test_threads_go_round_the_clients(threads: FairThreads) -> None:
    may_end, order = threading.Event(), list[str]()

    def ask(client: str) -> asyncio.Task[object]:
        with on_behalf_of(client):
            return asyncio.create_task(threads.run(lambda: order.append(client)))

    first = asyncio.create_task(threads.run(may_end.wait))
    await settle()
    tasks = [ask(client) for client in "aaab"]
    await settle()
    may_end.set()
    await asyncio.gather(first, *tasks)
    assert "".join(order) == "abaa"


async def test_work_that_nobody_waits_for_any_more_keeps_its_thread_until_it_is_done(threads: FairThreads) -> None:
    may_end = threading.Event()
    gone = asyncio.create_task(threads.run(may_end.wait))
    await settle()
    gone.cancel()
    await settle()
    other = asyncio.create_task(threads.run(lambda: "done"))
    await settle()
    assert threads._threads._work_queue.qsize() == 0  # it waits for its turn, where others may pass it
    may_end.set()
    assert await other == "done"


async def test_what_work_raises_is_raised_and_its_place_is_free_again(threads: FairThreads) -> None:
    with pytest.raises(ZeroDivisionError):
        await threads.run(lambda: 1 // 0)
    assert await threads.run(lambda: 1) == 1
