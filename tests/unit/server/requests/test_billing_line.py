"""The line that Claude Code puts before its instructions is no part of them, whichever API brings it."""

from typing import Any

import pytest

from orcinus.server.requests.billing_line import without_billing_lines
from orcinus.server.requests.left_out import collecting_left_out
from tests.unit.server.serving import Serving, answer_of, user

LINE = "x-anthropic-billing-header: cc_version=2.1.197.9fe; cc_entrypoint=cli; cch=1a2b3;"
OTHER_LINE = "x-anthropic-billing-header: cc_version=2.1.200.000; cc_entrypoint=sdk-cli; cch=fffff; cc_workload=cron;"
RULES = "You are Claude Code.\nx-anthropic-billing-header: cc_version=1; is no instruction."


def system(content: Any, role: str = "system") -> list[dict[str, Any]]:
    return [{"role": role, "content": content}, user("hi")]


def text(value: str) -> dict[str, str]:
    return {"type": "text", "text": value}


@pytest.mark.parametrize("line", [LINE, OTHER_LINE, LINE.removesuffix(";"), LINE + "\r", LINE + " "])
@pytest.mark.parametrize("role", ["system", "developer"])
def test_the_line_is_left_out_and_the_rest_stays(line: str, role: str) -> None:
    with collecting_left_out(is_lenient=False) as left_out:
        assert without_billing_lines(system(f"{line}\n{RULES}", role)) == system(RULES, role)
    assert left_out.header() == "x-anthropic-billing-header"
    assert without_billing_lines(system([text(f"{line}\n{RULES}")], role)) == system([text(RULES)], role)
    assert without_billing_lines(system([text(line), text(RULES)], role)) == system([text(RULES)], role)


@pytest.mark.parametrize("content", [LINE, LINE + "\n", [text(LINE)]])
def test_a_message_of_nothing_else_is_left_out_unless_it_is_alone(content: Any) -> None:
    assert without_billing_lines(system(content)) == [user("hi")]
    alone = [{"role": "system", "content": content}]
    assert without_billing_lines(alone) == [{"role": "system", "content": "" if isinstance(content, str) else []}]


@pytest.mark.parametrize(
    "content",
    [
        RULES,
        " " + LINE,
        "x-anthropic-billing-header: is what this text is about",
        "x-anthropic-billing-header: a=b is what this text is about",
        "x-anthropic-billing-header:",
        [text(RULES), text(LINE)],
        [],
        [{"type": "refusal", "refusal": LINE}],
        "",
    ],
)
def test_whatever_is_not_the_line_itself_stays(content: Any) -> None:
    with collecting_left_out(is_lenient=False) as left_out:
        assert without_billing_lines(system(content)) == system(content)
    assert left_out.header() is None


def test_others_may_say_it() -> None:
    messages = [user(LINE), {"role": "assistant", "content": LINE}, {"role": "assistant", "tool_calls": []}]
    assert without_billing_lines(messages) == messages


def test_a_line_of_many_signs_takes_no_time() -> None:
    assert without_billing_lines(system("x-anthropic-billing-header: " + "a=" * 100_000 + " b")) != []


@pytest.mark.parametrize("line", [LINE, OTHER_LINE])
async def test_prompts_are_the_same_with_any_line_and_without(line: str, served: Serving) -> None:
    """In blocks and in a text, with each API and where tokens are counted."""
    rules = "Be brief."

    async def num_tokens(path: str, name: str, **body: Any) -> int:
        answer = answer_of(await served.post(path, **body))
        count = answer.get(name, answer.get("usage", {}).get(name))
        assert isinstance(count, int)
        return count

    for instructions in (rules, f"{line}\n{rules}", [text(line), text(rules)]):
        asked = {"messages": [user("hi")], "system": instructions}
        expected = len("system\nBe brief.\nuser\nhi\nassistant\n") + 5
        assert await num_tokens("/v1/messages/count_tokens", "input_tokens", **asked) == expected
        in_chat = {"messages": [{"role": "system", "content": instructions}, user("hi")], "max_tokens": 1}
        assert await num_tokens("/v1/chat/completions", "prompt_tokens", **in_chat) == expected
        assert await num_tokens("/tokenize", "count", messages=in_chat["messages"]) == expected
    for instructions in (rules, f"{line}\n{rules}"):
        asked = {"input": "hi", "instructions": instructions}
        assert await num_tokens("/v1/responses/input_tokens", "input_tokens", **asked) == expected
