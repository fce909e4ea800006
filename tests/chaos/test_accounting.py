"""The accounts of the chaos run are able to find what they look for: losses made up for them are all reported."""

import copy
import json
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
from tests.chaos.answers import Answer, Call, ChoiceAnswer
from tests.chaos.bad_input import BAD_INPUTS
from tests.chaos.bodies import CHAT, COMPLETIONS, MESSAGES, RESPONSES, Ask
from tests.chaos.plan import Manner, Request
from tests.chaos.reading import StreamReader, UnreadableError, new_reader, read_whole

CATALOGUE = (
    Ask("greedy", COMPLETIONS, {"prompt": "x"}),
    Ask("several", COMPLETIONS, {"prompt": "x", "n": 2}),
    Ask("best of", COMPLETIONS, {"prompt": "x", "n": 1, "best_of": 3}),
    Ask("tools auto", CHAT, {"messages": []}),
    Ask("long response", RESPONSES, {"input": "x"}),
    Ask("long message", MESSAGES, {"messages": []}),
)
BEST_OF, TOOLS, RESPONSE, MESSAGE = range(2, 6)
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
    calls = [Call("roll_dice", '{"sides": 6}'), Call("roll_dice", '{"sides": 6}')]
    return [
        Answer({0: one_choice()}, 4, 3),
        Answer(pair, 4, 4),
        Answer({0: one_choice()}, 4, 9),
        Answer({0: ChoiceAnswer(token_ids=[5, 6], calls=calls, finish_reason="tool_calls")}, 20, 2),
        Answer({0: ChoiceAnswer("abc", finish_reason="incomplete")}, 6, 3),
        Answer({0: ChoiceAnswer("abc", finish_reason="max_tokens")}, 7, 3),
    ]


JUDGE = Judge(CATALOGUE, twins())


def complete(target: int = 0, **changes: Any) -> Outcome:
    """A complete answer whose first choice has these changes."""
    answer = twins()[target]
    for name, value in changes.items():
        setattr(answer.choices[0], name, value)
    return Outcome(Request(1, "stream", target), 200, answer, is_complete=True)


def left(num_tokens: int, manner: Manner = "leave stream", target: int = 0) -> Outcome:
    whole = twins()[target].choices[0]
    seen = ChoiceAnswer(whole.text[:num_tokens], whole.token_ids[:num_tokens], whole.logprobs[:num_tokens])
    answer = Answer({0: seen} if num_tokens else {})
    return Outcome(Request(1, manner, target), 200 if num_tokens else None, answer, has_left=True)


def error(kind: str = "rate_limit_error", message: str = "the queue is full") -> dict[str, Any]:
    return {"message": message, "type": kind, "param": None, "code": None}


def refused(status: int = 429, retry_after: str | None = "3", target: int = 0, **changes: Any) -> Outcome:
    request = Request(1, "whole", target)
    return Outcome(request, status, error={**error(), **changes}, retry_after=retry_after)


def late(num_tokens: int = 0, manner: Manner = "deadline") -> Outcome:
    return Outcome(Request(1, manner, 0), 408, left(num_tokens).answer, error=error("timeout", "too late"))


def anthropic(status: int, kind: str, manner: Manner, **more: str) -> Outcome:
    """An error in answer to a message."""
    given = {"type": kind, "message": "not now", **more}
    return Outcome(Request(1, manner, MESSAGE), status, error=given, retry_after="3")


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
        *((complete(target), "complete") for target in range(len(CATALOGUE))),
        (left(0), "left"),
        *((left(2, target=target), "left") for target in (0, RESPONSE, MESSAGE)),
        (refused(), "refused"),
        (anthropic(429, "rate_limit_error", "stream"), "refused"),
        (late(), "late"),
        (late(2), "late"),
        (late(manner="deadline header"), "late"),
        (anthropic(408, "timeout_error", "deadline"), "late"),
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


@pytest.mark.parametrize(
    "calls",
    [
        [Call("get_weather", '{"city": "Paris"}')],
        [
            Call("get_weather", '{"city": "Paris"}'),
            Call("roll_dice", '{"sides": 6}'),
            Call("roll_dice", '{"sides": 6}'),
        ],
        [Call("get_weather", '{"city": "Paris"}'), Call("roll_dice", '{"sides": 7}')],
        [Call("get_weather", '{"city": "Paris"}'), Call("roll_dices", '{"sides": 6}')],
    ],
)
def test_a_call_that_is_lost_doubled_or_another_is_found(calls: list[Call]) -> None:
    assert "calls from" in problems_of(complete(TOOLS, calls=calls))


@pytest.mark.parametrize("target", [RESPONSE, MESSAGE])
def test_what_is_lost_of_an_answer_without_token_ids_is_found(target: int) -> None:
    assert "text from 1 on" in problems_of(complete(target, text="ac"))
    assert "finish_reason" in problems_of(complete(target, finish_reason="stop"))
    seen = left(2, target=target)
    seen.answer.choices[0].text = "bc"
    assert "text from 0 on" in problems_of(seen)


def test_a_missing_choice_is_found() -> None:
    outcome = complete(1)
    del outcome.answer.choices[1]
    assert "choices [0], not [0, 1]" in problems_of(outcome)


def test_a_stream_without_its_end_is_found() -> None:
    outcome = Outcome(Request(1, "stream", 0), 200, twins()[0])
    assert "the answer has no end" in problems_of(outcome)


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
    assert "of another form" in problems_of(anthropic(429, "rate_limit_error", "stream", code="queue_full"))
    assert "of another form" in problems_of(refused(target=MESSAGE))
    assert "an error that nothing was to cause" in problems_of(anthropic(408, "timeout", "deadline"))


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


CERTAIN = verdicts(complete(), complete(1), refused(), bad("unknown path", 404))


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


def test_sequences_that_nobody_is_shown_are_counted() -> None:
    shown = verdicts(complete(BEST_OF))
    assert Expectation(JUDGE, CERTAIN + shown).is_exact
    assert not count_problems(shown, length=5, prompt=12, tokens=16)
    assert "sequences that ended" in count_problems(shown, length=4, prompt=12, tokens=16)
    assert 'outcome="length"' in count_problems(shown, length=4, stop=2, prompt=12, tokens=16)
    assert GENERATION_TOKENS in count_problems(shown, length=5, prompt=12, tokens=10), "of the one that was shown"


def test_a_refused_best_of_counts_as_one_sequence_or_as_all_of_them() -> None:
    assert not count_problems(verdicts(refused(target=BEST_OF)), rejected=4)
    assert 'outcome="rejected"' in count_problems(verdicts(refused(target=BEST_OF)), rejected=5)


def test_every_api_has_its_own_word_for_what_is_counted() -> None:
    seen = verdicts(complete(TOOLS), complete(RESPONSE), complete(MESSAGE))
    assert not count_problems(seen, stop=2, length=4, prompt=41, tokens=15)
    assert 'outcome="stop"' in count_problems(seen, length=5, prompt=41, tokens=15), "calls of tools count as stop"
    assert PROMPT_TOKENS in count_problems(seen, stop=2, length=4, prompt=40, tokens=15)


@pytest.mark.parametrize("target", [RESPONSE, MESSAGE])
def test_a_client_that_left_an_answer_without_token_ids_had_been_let_in(target: int) -> None:
    seen = verdicts(left(1, target=target))
    prompt = 8 + (twins()[target].prompt_tokens or 0)
    assert not count_problems(seen, abort=1, prompt=prompt, tokens=8)
    assert not count_problems(seen, length=3, prompt=prompt, tokens=10)
    assert "sequences that ended" in count_problems(seen)
    assert GENERATION_TOKENS in count_problems(seen, abort=1, prompt=prompt, tokens=11)


def test_bad_input_counts_where_an_endpoint_was_asked() -> None:
    assert not count_problems(verdicts(bad("token unknown", 400)), rejected=2)
    assert not count_problems(verdicts(bad("token unknown", 429)), rejected=2), "the queue was full"
    assert not count_problems(verdicts(bad("cut off", 400)), rejected=2)
    assert 'outcome="rejected"' in count_problems(verdicts(bad("token unknown", 400)))
    assert not count_problems(verdicts(bad("no key", 401)))


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
    assert not [*http_problems(answered(s200=5), answered(s200=7, s429=1, s404=1), CERTAIN)]
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


def read_lines(*lines: str, path: str = COMPLETIONS) -> StreamReader:
    reader = new_reader(path)
    for line in lines:
        reader.feed(line)
    return reader


FIRST = 'data: {"choices": [{"index": 0, "text": "a", "token_ids": [5], "finish_reason": null}], "usage": null}'
LAST = 'data: {"choices": [{"index": 0, "text": "b", "token_ids": [6], "finish_reason": "stop"}], "usage": null}'
USAGE = 'data: {"choices": [], "usage": {"prompt_tokens": 4, "completion_tokens": 2}}'


def test_a_stream_and_a_whole_answer_read_alike() -> None:
    choice = {"index": 0, "text": "ab", "token_ids": [5, 6], "finish_reason": "stop", "logprobs": None}
    whole = read_whole(COMPLETIONS, {"choices": [choice], "usage": {"prompt_tokens": 4, "completion_tokens": 2}})
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


def call_piece(index: int, arguments: str, name: str | None = None) -> str:
    function = {"arguments": arguments} if name is None else {"name": name, "arguments": arguments}
    choice = {"index": 0, "delta": {"tool_calls": [{"index": index, "function": function}]}, "finish_reason": None}
    return f"data: {json.dumps({'choices': [choice]})}"


def test_calls_that_are_streamed_read_like_whole_ones() -> None:
    first = (call_piece(0, "", "roll_dice"), call_piece(0, '{"sides"'), call_piece(0, ": 6}"))
    function = {"name": "roll_dice", "arguments": '{"sides": 6}'}
    calls = [{"id": "a", "function": function}, {"id": "b", "function": {"name": "stop", "arguments": ""}}]
    message = {"content": None, "tool_calls": calls}
    whole = read_whole(CHAT, {"choices": [{"index": 0, "message": message, "finish_reason": None}]})
    assert read_lines(*first, call_piece(1, "", "stop"), path=CHAT).answer == whole


def test_arguments_without_their_call_and_a_call_that_begins_twice_are_found() -> None:
    for pieces in ((call_piece(0, "{}"),), (call_piece(0, "", "a"), call_piece(0, "", "a")), (call_piece(1, "", "a"),)):
        with pytest.raises(UnreadableError):
            read_lines(*pieces, path=CHAT)


def named(*events: dict[str, Any]) -> list[str]:
    return [line for event in events for line in (f"event: {event['type']}", f"data: {json.dumps(event)}", "")]


def numbered(*events: dict[str, Any]) -> list[str]:
    return named(*({**event, "sequence_number": number} for number, event in enumerate(events)))


CALL_ITEM = {"type": "function_call", "name": "roll_dice", "arguments": '{"sides": 6}'}
TEXT_ITEM = {"type": "message", "content": [{"type": "output_text", "text": "ab", "logprobs": []}]}
TOLD = {"status": "completed", "output": [TEXT_ITEM, CALL_ITEM], "usage": {"input_tokens": 4, "output_tokens": 9}}
SAID: list[dict[str, Any]] = [
    {"type": "response.created"},
    {"type": "response.output_text.delta", "delta": "a", "logprobs": []},
    {"type": "response.output_text.delta", "delta": "b", "logprobs": []},
    {"type": "response.output_item.added", "item": {**CALL_ITEM, "arguments": ""}},
    {"type": "response.function_call_arguments.delta", "delta": '{"sides": 6}'},
]


def completed(**changes: Any) -> dict[str, Any]:
    return {"type": "response.completed", "response": {**TOLD, **changes}}


def test_a_response_reads_alike_streamed_and_whole() -> None:
    reader = read_lines(*numbered(*SAID, completed()), path=RESPONSES)
    assert reader.is_done
    assert reader.answer == read_whole(RESPONSES, TOLD)
    assert reader.answer.choices[0].calls == [Call("roll_dice", '{"sides": 6}')]
    assert not read_lines(*numbered(*SAID), path=RESPONSES).is_done


@pytest.mark.parametrize(
    "lines",
    [
        numbered(*SAID[1:-1], completed()),
        numbered(*SAID[:2], *SAID[3:], completed()),
        numbered(*SAID, SAID[-1], completed()),
        numbered(*SAID, completed(output=[TEXT_ITEM])),
        numbered(*SAID)[:3] + numbered(*SAID)[6:],
        numbered(*SAID, completed(), completed()),
    ],
    ids=["no arguments", "text lost", "arguments twice", "call not told", "number left out", "two ends"],
)
def test_a_response_that_contradicts_itself_is_found(lines: list[str]) -> None:
    with pytest.raises(UnreadableError):
        read_lines(*lines, path=RESPONSES)


BLOCKS: list[dict[str, Any]] = [
    {"type": "message_start"},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "ab"}},
    {"type": "content_block_stop", "index": 0},
    {"type": "content_block_start", "index": 1, "content_block": {"type": "tool_use", "name": "roll_dice"}},
    {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": '{"sides":6}'}},
    {"type": "content_block_stop", "index": 1},
    {
        "type": "message_delta",
        "delta": {"stop_reason": "tool_use"},
        "usage": {"input_tokens": 1, "cache_read_input_tokens": 3, "output_tokens": 9},
    },
    {"type": "message_stop"},
]


def test_a_message_reads_alike_streamed_and_whole() -> None:
    content = [{"type": "text", "text": "ab"}, {"type": "tool_use", "name": "roll_dice", "input": {"sides": 6}}]
    usage = {"input_tokens": 4, "cache_read_input_tokens": 0, "output_tokens": 9}
    reader = read_lines(*named(*BLOCKS), path=MESSAGES)
    assert reader.is_done
    assert reader.answer == read_whole(MESSAGES, {"content": content, "stop_reason": "tool_use", "usage": usage})


@pytest.mark.parametrize("missing", [1, 3, 4, 5, 6, 7])
def test_a_message_of_which_an_event_is_missing_is_found(missing: int) -> None:
    with pytest.raises(UnreadableError):
        read_lines(*named(*BLOCKS[:missing], *BLOCKS[missing + 1 :]), path=MESSAGES)


@pytest.mark.parametrize("path", [RESPONSES, MESSAGES])
def test_an_error_ends_a_stream_of_named_events(path: str) -> None:
    event = {"type": "error", "error": {"type": "timeout", "message": "too late"}, "sequence_number": 0}
    reader = read_lines(*named(event), path=path)
    assert reader.is_done
    assert reader.error == event["error"]


def test_an_event_of_another_name_than_it_says_is_found() -> None:
    with pytest.raises(UnreadableError):
        read_lines("event: ping", *named(*BLOCKS)[1:], path=MESSAGES)
