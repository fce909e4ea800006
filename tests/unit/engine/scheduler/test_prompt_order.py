import pytest

from orcinus.engine.messages import AddRequest
from orcinus.engine.sampling_params import SamplingParams
from orcinus.engine.scheduler.prompt_order import soonest_first
from orcinus.engine.scheduler.request import Request

TOKEN_S = 0.001


def request(name: str, num_tokens: int, at_s: float = 0.0, client: str = "", priority: int = 0) -> Request:
    added = AddRequest(
        request_id=name,
        prompt_token_ids=[1] * num_tokens,
        sampling=SamplingParams(),
        arrival_time=at_s,
        client=client,
        priority=priority,
    )
    return Request(added, sequence_number=0)


def order(*prompts: Request, token_s: float = TOKEN_S) -> str:
    return "".join(prompt.request_id for prompt in soonest_first(prompts, token_s))


def test_the_shortest_of_those_that_came_together_is_first() -> None:
    assert order(request("a", 300), request("b", 100), request("c", 200)) == "bca"


def test_what_is_left_of_a_prompt_counts() -> None:
    long = request("a", 1_000)
    long.num_computed_tokens = 950
    assert order(request("b", 100), long) == "ab"


@pytest.mark.parametrize(("later_s", "expected"), [(1.7, "ba"), (1.9, "ab")])
def test_a_prompt_is_passed_by_those_that_come_within_twice_the_time_it_takes(later_s: float, expected: str) -> None:
    assert order(request("a", 1_000), request("b", 100, later_s)) == expected


def test_as_long_as_nothing_is_known_of_times_the_first_to_arrive_is_first() -> None:
    assert order(request("a", 1_000), request("b", 1, 0.001), token_s=0.0) == "ab"


def test_priority_goes_before_length() -> None:
    assert order(request("a", 1_000, priority=0), request("b", 1, priority=1)) == "ab"


def test_clients_keep_their_order_however_short_the_prompts_of_the_next_one_are() -> None:
    prompts = [request("a", 900, client="x"), request("b", 800, client="x"), request("c", 1, client="y")]
    assert order(*prompts) == "bac"
