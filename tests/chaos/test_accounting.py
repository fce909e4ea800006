"""The accounts of the chaos run are able to find what they look for: losses made up for them are all reported."""

import copy
from typing import Any

import pytest

from tests.chaos.accounting import (
    GENERATION_TOKENS,
    PROMPT_TOKENS,
    QUARANTINED,
    RESTARTS,
    Expectation,
    Judge,
    Outcome,
    Verdict,
    fault_problems,
    growth_problem,
    http_problems,
    rest_problems,
)
from tests.chaos.answers import Answer, ChoiceAnswer, StreamReader, UnreadableError, read_whole
from tests.chaos.bad_input import BAD_INPUTS
from tests.chaos.bodies import COMPLETIONS, Ask
from tests.chaos.plan import Manner, Request

CATALOGUE = (Ask("greedy", COMPLETIONS, {"prompt": "x"}), Ask("several", COMPLETIONS, {"prompt": "x", "n": 2}))
LOGPROBS = [["a", -0.5, {"a": -0.5}, 0], ["b", -1.5, {"b": -1.5}, 1], ["c", -2.5, {"c": -2.5}, 2]]
REST = {
    "orcinus_slots_in_use": 0.0,
    "orcinus_queue_depth": 0.0,
    "orcinus_kv_blocks_in_use": 0.0,
    "orcinus_http_requests_in_progress": 1.0,
}


def one_choice() -> ChoiceAnswer:
    return ChoiceAnswer(text="abc", token_ids=[5, 6, 7], logprobs=copy.deepcopy(LOGPROBS), finish_reason="length")


def twins() -> list[Answer]:
    pair = {0: one_choice(), 1: ChoiceAnswer(text="z", token_ids=[9], finish_reason="stop")}
    return [Answer({0: one_choice()}, 4, 3), Answer(pair, 4, 4)]


JUDGE = Judge(CATALOGUE, twins())


def complete(target: int = 0, **changes: Any) -> Outcome:
    """A complete answer whose first choice has these changes."""
    answer = twins()[target]
    for name, value in changes.items():
        setattr(answer.choices[0], name, value)
    return Outcome(Request(1, "stream", target), 200, answer, is_complete=True)


def left(num_tokens: int, manner: Manner = "leave stream") -> Outcome:
    whole = one_choice()
    seen = ChoiceAnswer(whole.text[:num_tokens], whole.token_ids[:num_tokens], whole.logprobs[:num_tokens])
    answer = Answer({0: seen} if num_tokens else {})
    return Outcome(Request(1, manner, 0), 200 if num_tokens else None, answer, has_left=True)


def error(kind: str = "rate_limit_error", message: str = "the queue is full") -> dict[str, Any]:
    return {"message": message, "type": kind, "param": None, "code": None}


def refused(status: int = 429, retry_after: str | None = "3", target: int = 0, **changes: Any) -> Outcome:
    request = Request(1, "whole", target)
    return Outcome(request, status, error={**error(), **changes}, retry_after=retry_after)


def late(num_tokens: int = 0) -> Outcome:
    return Outcome(Request(1, "deadline", 0), 408, left(num_tokens).answer, error=error("timeout", "too late"))


def bad(name: str, status: int) -> Outcome:
    [place] = [place for place, given in enumerate(BAD_INPUTS) if given.name == name]
    return Outcome(Request(1, "bad", place), status, error=error(message="it is cut off"), retry_after="1")


def problems_of(outcome: Outcome, *, is_draining: bool = False) -> str:
    verdict = JUDGE.judge(outcome, is_draining=is_draining)
    assert (verdict.kind == "wrong") == bool(verdict.problems)
    return "; ".join(verdict.problems)


# --- one request ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outcome", "kind"),
    [
        (complete(), "complete"),
        (complete(1), "complete"),
        (left(0), "left"),
        (left(2), "left"),
        (refused(), "refused"),
        (late(), "late"),
        (late(2), "late"),
        (bad("cut off", 400), "bad"),
        (Outcome(Request(1, "garbage", 0)), "bad"),
    ],
)
def test_an_outcome_as_it_should_be_is_what_it_is(outcome: Outcome, kind: str) -> None:
    assert JUDGE.judge(outcome).kind == kind


def test_a_lost_token_is_found() -> None:
    assert "2 tokens, not 3" in problems_of(complete(token_ids=[5, 6]))
    assert "token_ids from 1 on" in problems_of(complete(token_ids=[5, 7]))


def test_a_doubled_token_is_found() -> None:
    assert "4 tokens, not 3" in problems_of(complete(token_ids=[5, 6, 6, 7]))


def test_a_doubled_token_is_found_in_a_stream_that_was_left() -> None:
    outcome = left(2)
    outcome.answer.choices[0].token_ids = [5, 5]
    assert "token_ids from 1 on" in problems_of(outcome)


def test_lost_and_other_text_is_found() -> None:
    assert "text from 2 on" in problems_of(complete(text="ab"))
    assert "text from 1 on" in problems_of(complete(text="aXc"))


def test_another_finish_reason_is_found() -> None:
    assert "finish_reason 'stop', not 'length'" in problems_of(complete(finish_reason="stop"))


def test_other_logprobs_are_found_and_rounding_is_not() -> None:
    near, far = copy.deepcopy(LOGPROBS), copy.deepcopy(LOGPROBS)
    near[1][1] = -1.50001
    far[1][1] = -1.6
    assert not problems_of(complete(logprobs=near))
    assert "logprobs from 1 on" in problems_of(complete(logprobs=far))
    assert "logprobs" in problems_of(complete(logprobs=LOGPROBS[:2]))


def test_without_a_tolerance_the_last_bit_counts() -> None:
    logprobs = copy.deepcopy(LOGPROBS)
    logprobs[1][1] = -1.5000000000000002
    strict = Judge(CATALOGUE, twins(), tolerance=0)
    assert strict.judge(complete()).kind == "complete"
    assert strict.judge(complete(logprobs=logprobs)).kind == "wrong"


def test_another_usage_is_found() -> None:
    outcome = complete()
    outcome.answer.completion_tokens = 4
    assert "usage 4+4, not 4+3" in problems_of(outcome)


def test_a_missing_choice_is_found() -> None:
    outcome = complete(1)
    del outcome.answer.choices[1]
    assert "choices [0], not [0, 1]" in problems_of(outcome)


def test_a_stream_without_its_end_is_found() -> None:
    outcome = Outcome(Request(1, "stream", 0), 200, twins()[0])
    assert "without [DONE]" in problems_of(outcome)


def test_a_5xx_is_found() -> None:
    assert "status 500" in problems_of(refused(500, type="server_error"))
    assert "503 while not draining" in problems_of(refused(503))
    assert not problems_of(refused(503), is_draining=True)


def test_an_error_inside_of_a_stream_is_found() -> None:
    outcome = Outcome(Request(1, "stream", 0), 200, left(2).answer, error=error("server_error", "gone"))
    assert "an error that nothing was to cause" in problems_of(outcome)


def test_a_408_of_a_request_without_a_deadline_is_found() -> None:
    outcome = Outcome(Request(1, "whole", 0), 408, error=error("timeout", "too late"))
    assert "an error that nothing was to cause" in problems_of(outcome)


def test_a_refusal_without_a_time_to_come_back_is_found() -> None:
    assert "Retry-After None" in problems_of(refused(retry_after=None))
    assert "Retry-After '900'" in problems_of(refused(retry_after="900"))


def test_an_error_of_another_form_is_found() -> None:
    assert "of another form" in problems_of(refused(detail="x"))
    assert "shows its inside" in problems_of(refused(message="Traceback (most recent call last)"))


def test_bad_input_that_is_answered_is_found() -> None:
    assert "cut off: status 200, not [400]" in problems_of(bad("cut off", 200))
    assert "garbage was answered with 500" in problems_of(Outcome(Request(1, "garbage", 0), 500))


def test_a_broken_connection_is_found() -> None:
    assert "reset" in problems_of(Outcome(Request(1, "whole", 0), trouble="ReadError: reset"))


# --- the counters of a round ----------------------------------------------------------------------------


def counters(**grown: int) -> dict[str, float]:
    """As after the round that is `CERTAIN`, with these changes."""
    names = {"stop": 1, "length": 2, "abort": 0, "timeout": 0, "error": 0, "rejected": 1, "prompt": 8, "tokens": 7}
    given = {**names, **grown}
    outcomes = {f'orcinus_requests_total{{outcome="{name}"}}': float(given[name]) for name in [*names][:6]}
    return {**outcomes, PROMPT_TOKENS: float(given["prompt"]), GENERATION_TOKENS: float(given["tokens"])}


def verdicts(*outcomes: Outcome) -> list[Verdict]:
    return [JUDGE.judge(outcome) for outcome in outcomes]


CERTAIN = verdicts(complete(), complete(1), refused(), bad("cut off", 400))


def count_problems(more: list[Verdict], **grown: int) -> str:
    return "; ".join(Expectation(JUDGE, CERTAIN + more).problems({}, counters(**grown)))


def test_even_counters_are_exact_where_nobody_left() -> None:
    assert Expectation(JUDGE, CERTAIN).is_exact
    assert not count_problems([])


@pytest.mark.parametrize("name", ["stop", "length", "abort", "timeout", "error", "rejected", "prompt", "tokens"])
@pytest.mark.parametrize("change", [-1, 1])
def test_every_counter_that_is_off_by_one_is_found(name: str, change: int) -> None:
    value = {"stop": 1, "length": 2, "rejected": 1, "prompt": 8, "tokens": 7}.get(name, 0) + change
    assert "clients saw" in count_problems([], **{name: value})


def test_a_refused_request_counts_as_one_sequence_or_as_its_choices() -> None:
    several = verdicts(refused(target=1))
    assert 'outcome="rejected"' in count_problems(several, rejected=1)
    assert not count_problems(several, rejected=2)
    assert not count_problems(several, rejected=3)
    assert 'outcome="rejected"' in count_problems(several, rejected=4)


def test_bad_input_counts_where_it_came_to_the_engines_door() -> None:
    assert not count_problems(verdicts(bad("token unknown", 400)), rejected=2)
    assert not count_problems(verdicts(bad("token unknown", 429)), rejected=2), "the queue was full"
    assert 'outcome="rejected"' in count_problems(verdicts(bad("token unknown", 400)))


def test_a_wrong_answer_that_is_complete_was_counted() -> None:
    wrong = verdicts(complete(text="another"))
    assert wrong[0].kind == "wrong"
    assert not count_problems(wrong, length=3, prompt=12, tokens=10)


def test_a_client_that_left_may_have_been_aborted_or_just_done() -> None:
    seen = verdicts(left(2))
    assert not Expectation(JUDGE, CERTAIN + seen).is_exact
    assert not count_problems(seen, abort=1, prompt=12, tokens=9)
    assert not count_problems(seen, length=3, prompt=12, tokens=10)
    assert "sequences that ended" in count_problems(seen, prompt=12, tokens=9)
    assert "sequences that ended" in count_problems(seen, abort=1, length=3, prompt=12, tokens=9)
    assert GENERATION_TOKENS in count_problems(seen, abort=1, prompt=12, tokens=8)
    assert GENERATION_TOKENS in count_problems(seen, abort=1, prompt=12, tokens=11)


def test_a_client_that_left_unseen_may_never_have_come() -> None:
    unseen = verdicts(left(0, "leave whole"))
    assert not count_problems(unseen)
    assert not count_problems(unseen, abort=1, prompt=12, tokens=9)
    assert 'outcome="abort"' in count_problems(unseen, abort=2, prompt=12)


def test_a_request_that_was_late_counts_as_that() -> None:
    assert not count_problems(verdicts(late()), timeout=1, prompt=12)
    assert 'outcome="timeout"' in count_problems(verdicts(late()), prompt=12)


def answered(**statuses: int) -> dict[str, float]:
    posts = {
        f'orcinus_http_requests_total{{route="/v1/completions",method="POST",status="{status[1:]}"}}': float(number)
        for status, number in statuses.items()
    }
    return {**posts, 'orcinus_http_requests_total{route="/live",method="GET",status="200"}': 99.0}


def test_answers_that_never_came_and_answers_that_were_not_counted_are_found() -> None:
    assert not [*http_problems(answered(s200=5), answered(s200=7, s429=1, s400=1), CERTAIN)]
    assert "3 answers with status 200" in "".join(http_problems({}, answered(s200=3, s429=1), CERTAIN))
    assert "0 answers with status 429" in "".join(http_problems({}, answered(s200=2), CERTAIN))
    assert "1 answers with status 500" in "".join(http_problems({}, answered(s200=2, s429=1, s500=1), CERTAIN))


# --- the server as a whole ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*REST])
def test_what_does_not_come_back_is_found(name: str) -> None:
    assert not rest_problems(REST)
    assert name in rest_problems({**REST, name: 2.0})[0]
    assert name in rest_problems({other: value for other, value in REST.items() if other != name})[0]


def test_restarts_that_nothing_explains_are_found() -> None:
    before, after = {RESTARTS: 1.0, QUARANTINED: 0.0}, {RESTARTS: 3.0, QUARANTINED: 0.0}
    assert not [*fault_problems(before, after, 2)]
    assert [*fault_problems(before, after, 1)]
    assert [*fault_problems(before, after, 3)]
    assert [*fault_problems(before, {**after, QUARANTINED: 1.0}, 2)]


def test_growing_memory_is_found_and_warming_up_is_not() -> None:
    mib = 1 << 20
    assert growth_problem("it", [100 * mib, *[180 * mib] * 9]) is None
    assert growth_problem("it", [(100 + 10 * step) * mib for step in range(10)]) is not None
    assert growth_problem("it", [100 * mib, 900 * mib]) is None, "too few to tell"


# --- reading --------------------------------------------------------------------------------------------


def read_lines(*lines: str) -> StreamReader:
    reader = StreamReader()
    for line in lines:
        reader.feed(line)
    return reader


FIRST = 'data: {"choices": [{"index": 0, "text": "a", "token_ids": [5], "finish_reason": null}], "usage": null}'
LAST = 'data: {"choices": [{"index": 0, "text": "b", "token_ids": [6], "finish_reason": "stop"}], "usage": null}'
USAGE = 'data: {"choices": [], "usage": {"prompt_tokens": 4, "completion_tokens": 2}}'


def test_a_stream_and_a_whole_answer_read_alike() -> None:
    choice = {"index": 0, "text": "ab", "token_ids": [5, 6], "finish_reason": "stop", "logprobs": None}
    whole = read_whole({"choices": [choice], "usage": {"prompt_tokens": 4, "completion_tokens": 2}})
    reader = read_lines(FIRST, "", ": keep-alive", "", LAST, USAGE, "data: [DONE]")
    assert reader.is_done
    assert reader.answer == whole


@pytest.mark.parametrize(
    "lines",
    [
        (FIRST, "data: [DONE]", LAST),
        (FIRST, LAST, LAST),
        ('data: {"error": {}}', FIRST),
        ("data: {",),
        ("event: ping",),
        ('data: {"choices": [], "usage": NaN}',),
    ],
)
def test_what_no_client_can_read_is_found(lines: tuple[str, ...]) -> None:
    with pytest.raises(UnreadableError):
        read_lines(*lines)
