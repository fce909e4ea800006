"""How many tokens a chat's thoughts may have: what the request says, by any of the names for it, or the default.

The engine holds the model to it (`engine.grammar.thought`). Knows nothing of tokens' ids.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import msgspec

from orcinus.engine.errors import InvalidRequestError
from orcinus.engine.sampling_params import SamplingParams, Thinking
from orcinus.server.apis.chat.body import ChatBody, one_of, stated_effort
from orcinus.server.context import ServingContext
from orcinus.server.errors import shown
from orcinus.server.requests.schemas import MAX_TOKENS, UNLIMITED

EFFORT_BUDGETS: Mapping[str, int] = MappingProxyType(
    {"none": 0, "minimal": 512, "low": 1024, "medium": 8192, "high": 24_576}
)
"""Of templates that do not read `reasoning_effort` themselves. Any other effort is without a budget."""
_TEMPLATE_VARIABLE = "thinking_budget"
_VARIABLE_PLACE = f"chat_template_kwargs.{_TEMPLATE_VARIABLE}"


def thinking_budget(ctx: ServingContext, body: ChatBody) -> int | None:
    """Return the budget in tokens, None for none. Raises `InvalidRequestError`."""
    stated = _stated_budget(body)
    if stated is not None:
        return None if stated == UNLIMITED else stated
    effort = stated_effort(body)
    if effort is None:
        return ctx.default_thinking_budget
    return None if ctx.template_reads("reasoning_effort") else EFFORT_BUDGETS.get(effort)


async def held_to_budget(
    ctx: ServingContext, sampling: SamplingParams, prompt_tail: str, budget: int | None
) -> SamplingParams:
    """Return parameters that hold the model's thoughts to the budget, if it thinks."""
    marks = None if budget is None else await ctx.thought_marks()
    thinking = None if marks is None or budget is None else marks.within(prompt_tail, budget)
    return sampling if thinking is None else _with_thinking(sampling, thinking)


def _with_thinking(sampling: SamplingParams, thinking: Thinking) -> SamplingParams:
    grammar = sampling.grammar
    if grammar is None:
        return msgspec.structs.replace(sampling, thinking=thinking)
    if grammar.thinking is not None:
        own = msgspec.structs.replace(grammar.thinking, budget=thinking.budget, forced=thinking.forced)
        return msgspec.structs.replace(sampling, grammar=msgspec.structs.replace(grammar, thinking=own))
    if thinking.recurs:  # its thoughts are part of what the grammar is about, and so is what follows them
        return msgspec.structs.replace(sampling, thinking=msgspec.structs.replace(thinking, forced=thinking.end))
    return sampling


def _stated_budget(body: ChatBody) -> int | None:
    is_off = body.thinking is not None and body.thinking.type == "disabled"
    budget: int | None = one_of(
        {
            "thinking_budget": body.thinking_budget,
            "thinking_token_budget": body.thinking_token_budget,
            "reasoning.max_tokens": body.reasoning and body.reasoning.max_tokens,
            "thinking.budget_tokens": None if is_off else body.thinking and body.thinking.budget_tokens,
            _VARIABLE_PLACE: _template_budget(body.chat_template_kwargs.get(_TEMPLATE_VARIABLE)),
        }
    )
    return budget


def _template_budget(value: Any) -> int | None:
    if value is None or (type(value) is int and UNLIMITED <= value <= MAX_TOKENS):
        return value
    raise InvalidRequestError(
        f"{_VARIABLE_PLACE} must be a whole number of {UNLIMITED} to {MAX_TOKENS}, got {shown(value)}", _VARIABLE_PLACE
    )
