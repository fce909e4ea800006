"""Where requests name a budget of thinking, and what becomes of it on its way to the engine."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from orcinus.engine.errors import InvalidRequestError
from orcinus.engine.sampling_params import Grammar, SamplingParams, Thinking
from orcinus.server.apis.chat.body import parse_chat, template_variables
from orcinus.server.apis.thinking_budget import EFFORT_BUDGETS, held_to_budget, thinking_budget
from orcinus.server.reading.thought_marks import ThoughtMarks
from tests.unit.engine.fakes import FakeExecutor, says
from tests.unit.server.serving import Serving, error_of, serving, user

PATHS = {"chat": "/v1/chat/completions", "responses": "/v1/responses", "messages": "/v1/messages"}
BODIES: dict[str, dict[str, Any]] = {
    "chat": {"messages": [user("hi")], "max_tokens": 100},
    "responses": {"input": "hi", "max_output_tokens": 100},
    "messages": {"messages": [user("hi")], "max_tokens": 100},
}
THINKING_TEMPLATE = (
    "{% for message in messages %}<|start|>{{ message.role }}\n"
    "{% if message.reasoning_content %}<think>{{ message.reasoning_content }}</think>\n{% endif %}"
    "{{ message.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think></think>\n{% else %}<think>{% endif %}"
    "{% endif %}"
)
BUDGETED_TEMPLATE = "{% if thinking_budget is defined %}at most {{ thinking_budget }}\n{% endif %}" + THINKING_TEMPLATE
EFFORT_TEMPLATE = "{% if reasoning_effort %}{{ reasoning_effort }}\n{% endif %}" + THINKING_TEMPLATE


class FakeContext:
    """What is asked of a context here."""

    def __init__(self, default: int | None = None, *reads: str) -> None:
        self.default_thinking_budget = default
        self._reads = reads

    def template_reads(self, variable: str) -> bool:
        return variable in self._reads


def budget_of(default: int | None = None, reads: str = "", **body: Any) -> int | None:
    chat = parse_chat({"messages": [user("hi")], **body})
    return thinking_budget(FakeContext(default, reads), chat)  # type: ignore[arg-type]


STATED: list[dict[str, Any]] = [
    {"thinking_budget": 20},
    {"thinking_token_budget": 20},
    {"reasoning": {"max_tokens": 20}},
    {"thinking": {"type": "enabled", "budget_tokens": 20}},
    {"thinking": {"type": "adaptive", "budget_tokens": 20}},
    {"chat_template_kwargs": {"thinking_budget": 20}},
    {"thinking_budget": 20, "reasoning": {"max_tokens": 20}, "reasoning_effort": "high"},
]


@pytest.mark.parametrize("body", STATED)
def test_a_budget_is_taken_by_any_of_its_names_and_before_an_effort_or_the_default(body: dict[str, Any]) -> None:
    assert budget_of(default=9, **body) == 20
    assert budget_of(reads="reasoning_effort", **body) == 20


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"thinking_budget": 20, "thinking_token_budget": 21}, "thinking_token_budget"),
        ({"thinking_budget": 20, "reasoning": {"max_tokens": 0}}, "reasoning.max_tokens"),
        ({"reasoning": {"max_tokens": 5}, "chat_template_kwargs": {"thinking_budget": 6}}, "chat_template_kwargs."),
        ({"chat_template_kwargs": {"thinking_budget": -2}}, "chat_template_kwargs."),
        ({"chat_template_kwargs": {"thinking_budget": "many"}}, "chat_template_kwargs."),
        ({"chat_template_kwargs": {"thinking_budget": True}}, "chat_template_kwargs."),
    ],
)
def test_two_budgets_and_one_that_is_no_number_are_refused(body: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        budget_of(**body)
    assert caught.value.param is not None
    assert caught.value.param.startswith(param)


@pytest.mark.parametrize("effort", [*EFFORT_BUDGETS, "xhigh", "max", "as you like"])
def test_an_effort_is_a_budget_unless_the_template_reads_it(effort: str) -> None:
    assert budget_of(default=9, reasoning_effort=effort) == EFFORT_BUDGETS.get(effort)
    assert budget_of(default=9, reasoning={"effort": effort}) == EFFORT_BUDGETS.get(effort)
    assert budget_of(default=9, reads="reasoning_effort", reasoning_effort=effort) is None


def test_more_effort_is_more_thinking() -> None:
    assert [*EFFORT_BUDGETS] == ["none", "minimal", "low", "medium", "high"]
    assert sorted(EFFORT_BUDGETS.values()) == [*EFFORT_BUDGETS.values()]


def test_the_default_is_for_requests_that_name_none() -> None:
    assert budget_of() is None
    assert budget_of(default=9) == 9
    assert budget_of(default=9, enable_thinking=True) == 9
    assert budget_of(default=9, thinking_budget=-1) is None
    assert budget_of(default=9, chat_template_kwargs={"thinking_budget": -1}) is None
    assert budget_of(default=9, thinking={"type": "disabled", "budget_tokens": 5}) == 9


def test_a_budget_of_nothing_turns_thinking_off_unless_the_request_says_otherwise() -> None:
    assert template_variables(parse_chat({"messages": [user("x")]}), 0) == {"enable_thinking": False, "thinking": False}
    assert template_variables(parse_chat({"messages": [user("x")]}), 1) == {}
    asked = parse_chat({"messages": [user("x")], "enable_thinking": True})
    assert template_variables(asked, 0) == {"enable_thinking": True, "thinking": True}


@pytest.fixture
async def thoughtful(tmp_path: Path) -> AsyncIterator[Serving]:
    async with serving(tmp_path, template=THINKING_TEMPLATE) as served:
        yield served


async def sampling_of(served: Serving, endpoint: str, **body: Any) -> SamplingParams:
    """Return what the engine is asked for."""
    asked: list[SamplingParams] = []
    submit = served.engine.submit

    def noting(request: Any) -> Any:
        asked.append(request.sampling)
        return submit(request)

    served.engine.submit = noting  # type: ignore[method-assign]
    try:
        response = await served.post(PATHS[endpoint], **BODIES[endpoint], **body)
    finally:
        served.engine.submit = submit  # type: ignore[method-assign]
    assert response.status_code == 200, response.text
    return asked[0]


def budget_in(sampling: SamplingParams) -> int | None:
    return None if sampling.thinking is None else sampling.thinking.budget


NAMED: list[tuple[str, dict[str, Any], int | None]] = [
    ("chat", {}, None),
    ("chat", {"thinking_budget": 20}, 20),
    ("chat", {"reasoning_effort": "low"}, 1024),
    ("chat", {"enable_thinking": False, "thinking_budget": 20}, None),  # the template has ended the thought
    ("chat", {"reasoning_effort": "none"}, None),
    ("chat", {"thinking_budget": 0}, None),
    ("chat", {"thinking_budget": 0, "enable_thinking": True}, 0),
    ("responses", {"thinking_budget": 20}, 20),
    ("responses", {"thinking_token_budget": 20}, 20),
    ("responses", {"reasoning": {"effort": "medium"}}, 8192),
    ("responses", {"chat_template_kwargs": {"thinking_budget": 20}}, 20),
    ("messages", {"thinking": {"type": "enabled", "budget_tokens": 20}}, 20),
    ("messages", {"thinking": {"type": "adaptive"}, "output_config": {"effort": "high"}}, 24_576),
    ("messages", {"thinking": {"type": "adaptive"}, "output_config": {"effort": "max"}}, None),
    ("messages", {"thinking": {"type": "disabled", "budget_tokens": 200}}, None),
    ("messages", {"thinking_budget": 20}, 20),
    ("messages", {"chat_template_kwargs": {"thinking_budget": 20}}, 20),
]


@pytest.mark.parametrize(("endpoint", "body", "expected"), NAMED)
async def test_every_api_hands_the_budget_on(
    thoughtful: Serving, endpoint: str, body: dict[str, Any], expected: int | None
) -> None:
    sampling = await sampling_of(thoughtful, endpoint, **body)
    assert budget_in(sampling) == expected
    if sampling.thinking is not None:
        assert bytes(sampling.thinking.forced_tokens) == b"</think>\n"


@pytest.mark.parametrize(
    ("endpoint", "body", "param"),
    [
        ("chat", {"thinking_budget": -2}, "thinking_budget"),
        ("chat", {"thinking_token_budget": 2**31}, "thinking_token_budget"),
        ("chat", {"reasoning": {"max_tokens": -1}}, "reasoning.max_tokens"),
        ("chat", {"chat_template_kwargs": {"thinking_budget": 1.5}}, "chat_template_kwargs.thinking_budget"),
        ("responses", {"thinking_budget": "x"}, "thinking_budget"),
        ("responses", {"reasoning": {"effort": "hard"}}, "reasoning.effort"),
        ("messages", {"thinking": {"type": "enabled", "budget_tokens": -1}}, "thinking.budget_tokens"),
        ("messages", {"thinking": {"type": "enabled", "budget_tokens": 100}}, "thinking.budget_tokens"),
        ("messages", {"thinking": {"type": "enabled", "budget_tokens": 9}, "thinking_budget": 8}, "thinking.budget"),
    ],
)
async def test_wrong_budgets_are_refused_by_their_names(
    thoughtful: Serving, endpoint: str, body: dict[str, Any], param: str
) -> None:
    response = await thoughtful.post(PATHS[endpoint], **BODIES[endpoint], **body)
    if endpoint == "messages":
        assert response.status_code == 400
        assert response.json()["error"]["message"].startswith(param)
    else:
        assert error_of(response, 400)["param"] == param


async def test_anthropics_budget_is_less_than_max_tokens(thoughtful: Serving) -> None:
    thinking = {"type": "enabled", "budget_tokens": 100}
    response = await thoughtful.post(PATHS["messages"], **BODIES["messages"], thinking=thinking)
    error = response.json()["error"]
    assert (response.status_code, error["type"]) == (400, "invalid_request_error")
    assert error["message"] == "thinking.budget_tokens (100) must be less than max_tokens (100)"
    counted = {**BODIES["messages"], "thinking": thinking}
    del counted["max_tokens"]
    assert (await thoughtful.post("/v1/messages/count_tokens", **counted)).status_code == 200


async def test_the_default_of_the_server_is_handed_on(tmp_path: Path) -> None:
    async with serving(tmp_path, template=THINKING_TEMPLATE, default_thinking_budget=7) as served:
        assert [budget_in(await sampling_of(served, endpoint)) for endpoint in PATHS] == [7, 7, 7]
        assert budget_in(await sampling_of(served, "chat", thinking_budget=-1)) is None


async def test_a_template_that_knows_of_budgets_is_told(tmp_path: Path) -> None:
    executor = FakeExecutor(says("x"))
    async with serving(tmp_path, executor, template=BUDGETED_TEMPLATE) as served:
        for body in ({"thinking_token_budget": 20}, {"chat_template_kwargs": {"thinking_budget": 20}}, {}):
            await sampling_of(served, "chat", **body)
    news = [new for plan in executor.plans for new in plan.new_requests]
    assert [new.token_ids[:10] == [*b"at most 20"] for new in news] == [True, True, False]


async def test_a_template_that_reads_efforts_has_them_in_place_of_a_budget(tmp_path: Path) -> None:
    async with serving(tmp_path, template=EFFORT_TEMPLATE) as served:
        assert budget_in(await sampling_of(served, "chat", reasoning_effort="low")) is None
        assert budget_in(await sampling_of(served, "chat", reasoning_effort="low", thinking_budget=20)) == 20


async def test_a_model_that_does_not_think_is_asked_for_no_budget(tmp_path: Path) -> None:
    async with serving(tmp_path) as served:
        for endpoint in PATHS:
            assert (await sampling_of(served, endpoint, thinking_budget=20)).thinking is None


async def test_completions_take_a_budget_and_have_nothing_to_hold_it_to(thoughtful: Serving) -> None:
    await thoughtful.complete(max_tokens=1, thinking_budget="any", thinking_token_budget=3)


OPENED = "<|start|>assistant\n<think>"


async def test_without_a_budget_or_a_thought_there_is_nothing_to_hold(thoughtful: Serving) -> None:
    context, bare = thoughtful.app.state.context, SamplingParams(max_tokens=50)
    assert (await held_to_budget(context, bare, OPENED, 20)).thinking is not None
    assert await held_to_budget(context, bare, OPENED, None) == bare
    assert await held_to_budget(context, bare, f"{OPENED}</think>\n", 20) == bare


async def test_a_thought_before_a_grammar_has_the_budget(thoughtful: Serving) -> None:
    context = thoughtful.app.state.context
    own = Thinking(end=(7,), start=8)
    bare = SamplingParams(grammar=Grammar("regex", "a", own))
    held = await held_to_budget(context, bare, OPENED, 20)
    assert held.thinking is None
    assert held.grammar == Grammar("regex", "a", Thinking(end=(7,), start=8, budget=20, forced=(*b"</think>\n",)))
    unthinking = SamplingParams(grammar=Grammar("regex", "a"))
    assert await held_to_budget(context, unthinking, OPENED, 20) == unthinking


class Channels:
    """A context whose model thinks in channels."""

    async def thought_marks(self) -> ThoughtMarks:
        return ThoughtMarks(Thinking(end=(1,), openings=((2, 3, 4),), forced=(1, 5, 6), recurs=True), None)


@pytest.mark.parametrize(("grammar", "forced"), [(None, (1, 5, 6)), (Grammar("regex", "a"), (1,))])
async def test_in_channels_a_grammar_says_what_follows_the_end(
    grammar: Grammar | None, forced: tuple[int, ...]
) -> None:
    held = await held_to_budget(Channels(), SamplingParams(grammar=grammar), "<|start|>assistant", 20)  # type: ignore[arg-type]
    assert held.grammar == grammar
    assert held.thinking == Thinking(end=(1,), openings=((2, 3, 4),), forced=forced, recurs=True, budget=20)


async def test_whatever_the_template_makes_of_a_trial_a_budget_is_held(tmp_path: Path) -> None:
    refusing = "{% if messages|length > 1 %}{{ raise_exception('one at a time') }}{% endif %}" + THINKING_TEMPLATE
    async with serving(tmp_path, template=refusing) as served:
        sampling = await sampling_of(served, "chat", thinking_budget=3)
        assert sampling.thinking is not None
        assert bytes(sampling.thinking.forced_tokens) == b"\n</think>\n\n"
