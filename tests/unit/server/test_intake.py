"""Requests on their way in: how many, of whom, and how they are ended from outside."""

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack

import pytest

from orcinus.config.limits import ClientLimits, Limit
from orcinus.engine.errors import DrainingError, QueueFullError, QuotaError, RequestTimeoutError
from orcinus.server.intake import Intake, Passage


async def test_one_more_than_there_are_places_is_refused_with_the_limit_and_the_number() -> None:
    intake = Intake(2)
    async with intake.enter(), intake.enter():
        with pytest.raises(QueueFullError, match=r"at most 2 requests .*\(max_preparing\), and 2 are"):
            intake.check_room("")
        with pytest.raises(QueueFullError):
            await AsyncExitStack().enter_async_context(intake.enter("other"))
    intake.check_room("")


async def test_a_client_with_a_name_has_half_of_the_places() -> None:
    intake = Intake(4)
    async with intake.enter("a"), intake.enter("a"):
        with pytest.raises(QuotaError, match=r"at most 2 requests of one client .*half of max_preparing\), and 2 are"):
            intake.check_room("a")
        intake.check_room("b")
        intake.check_room("")
    intake.check_room("a")


@pytest.mark.parametrize("client", ["", "a"])
async def test_a_client_has_no_more_than_it_may_have_running_and_waiting(client: str) -> None:
    intake = Intake(100, ClientLimits(max_requests=Limit(1, "max_requests_per_key")))
    async with intake.enter(client):
        with pytest.raises(QuotaError, match=r"at most 1 .*\(max_requests_per_key\), and 1 are"):
            intake.check_room(client)


async def enter(intake: Intake, act: Callable[[Passage], None]) -> None:
    """Enter, act, and stay."""
    async with intake.enter() as passage:
        act(passage)
        await asyncio.Event().wait()


async def test_a_request_that_is_too_late_ends_with_the_error_of_its_deadline() -> None:
    def be_late(passage: Passage) -> None:
        passage.end_in(60, RequestTimeoutError("later"))
        passage.end_in(0, RequestTimeoutError("late"))

    intake = Intake(1)
    with pytest.raises(RequestTimeoutError, match="late"):
        await enter(intake, be_late)
    await intake.wait_empty()


async def test_a_time_out_within_is_not_taken_for_its_own() -> None:
    def time_out(passage: Passage) -> None:
        passage.end_in(60, RequestTimeoutError("late"))
        raise TimeoutError("inner")

    with pytest.raises(TimeoutError, match="inner"):
        await enter(Intake(1), time_out)


async def test_the_end_of_the_server_counts_whatever_deadline_is_set_after_it() -> None:
    intake = Intake(1)

    def give_up(passage: Passage) -> None:
        intake.give_up()
        passage.end_in(60, RequestTimeoutError("late"))

    with pytest.raises(DrainingError):
        await enter(intake, give_up)
