"""What a chat template is given: what transformers gives it, or a form of it that the template reads."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from orcinus.engine.errors import InvalidRequestError
from orcinus.engine.text.chat_template import ChatTemplate
from orcinus.engine.text.template_sandbox import UnboundedCostError, time_limit
from orcinus.engine.text.tokenizer import Tokenizer
from tests.unit.engine.fakes import write_byte_tokenizer

USER = {"role": "user", "content": "hi"}
ARGUMENTS = '{"city":"Oslo", "days":[1,2.50],"é":null}'
TOOLS: list[dict[str, Any]] = [
    {
        "x-first": True,
        "function": {"parameters": {"type": "object", "default": None}, "name": "f", "description": "<é>"},
        "type": "function",
    }
]
EACH = "{% for m in messages %}%s{% endfor %}"
CALLS = "{% for c in m.tool_calls or [] %}%s{% endfor %}"
# In the manner of DeepSeek's.
ASKS_FOR_NONE = EACH.replace(
    "%s",
    "{% if m.role == 'assistant' and m.content is none %}"
    "{% for c in m.tool_calls %}<call>{{ c.function.name + ' ' + c.function.arguments }}</call>{% endfor %}"
    "{% elif m.role == 'assistant' and m.content is not none %}<said>{{ m.content }}"
    "{% else %}<{{ m.role }}>{{ m.content }}{% endif %}",
)
ADDS = EACH.replace("%s", "{{ '<' + m.role + '>' + m.content }}" + CALLS.replace("%s", "[{{ c.function.name }}]"))
PRINTS = EACH.replace("%s", "<{{ m.role }}>{{ m.content }}" + CALLS.replace("%s", "[{{ c.function.name }}]"))
READS_PARTS = EACH.replace(
    "%s",
    "<{{ m.role }}>{% for part in m.content %}{% if part.type == 'text' %}[{{ part.text }}]{% endif %}{% endfor %}",
)
READS_BOTH = EACH.replace(
    "%s",
    "<{{ m.role }}>{% if m.content is string %}{{ m.content }}{% elif m.role == 'user' %}"
    "{% for part in m.content %}[{{ part.text }}]{% endfor %}{% else %}{{ m.content }}{% endif %}",
)
ONE_SYSTEM_FIRST = (
    "{% for m in messages %}{% if m.role == 'system' and not loop.first %}"
    "{{ raise_exception('System message must be at the beginning') }}{% endif %}"
    "<{{ m.role }}>{{ m.content }}{% endfor %}"
)
LATER_SYSTEM_IS_PASSED_OVER = (
    "{% if messages[0].role == 'system' %}<system>{{ messages[0].content }}{% endif %}"
    "{% for m in messages %}{% if m.role != 'system' %}<{{ m.role }}>{{ m.content }}{% endif %}{% endfor %}"
)
NO_SYSTEM = EACH.replace(
    "%s", "{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}<{{ m.role }}>{{ m.content }}"
)


def render(template: str, messages: Any, **options: Any) -> str:
    return ChatTemplate(template, {}).render(messages, **{"add_generation_prompt": False, **options})


def calling(arguments: Any = ARGUMENTS, **message: Any) -> dict[str, Any]:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    return {"role": "assistant", "content": None, "tool_calls": [call], **message}


def by_transformers(tmp_path: Path, template: str, messages: Any, **options: Any) -> str:
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(str(write_byte_tokenizer(tmp_path / "model", template)))
    return str(tokenizer.apply_chat_template(messages, tokenize=False, **options))


# --- the arguments of calls -----------------------------------------------------------------------------


@pytest.mark.parametrize("write", ["{{ a }}", "{{ '' + a }}", "{{ a + '' }}", "{{ '' ~ a }}", "{{ a | string }}"])
@pytest.mark.parametrize("extra", ["", "{{ '%s' | format('') }}"])
def test_printed_or_added_arguments_are_the_clients_text(write: str, extra: str) -> None:
    """The extra one is rendered in a process of its own."""
    template = "{% set a = messages[1].tool_calls[0].function.arguments %}<" + write + ">" + extra
    assert render(template, [USER, calling()]) == f"<{ARGUMENTS}>"


@pytest.mark.parametrize(
    "write",
    [
        "{{ a | tojson }}",
        "{{ a | tojson(indent=2) }}",
        "{{ messages[1].tool_calls[0].function | tojson }}",
        "{{ messages[1].tool_calls | tojson }}",
        "{% for name in a %}{{ name }}={{ a[name] | tojson }};{% endfor %}",
        "{% for name, value in a.items() %}{{ name }}={{ value }};{% endfor %}",
        "{% for name, value in a | items %}{{ name }}={{ value }};{% endfor %}",
        "{% for name, value in a | dictsort %}{{ name }}={{ value }};{% endfor %}",
        "{{ a.city }}{{ a['city'] }}{{ a.get('days') }}{{ a.keys() | list }}{{ a | length }}",
        "{{ a is mapping }}{{ a is string }}{{ 'city' in a }}{{ a.title }}",
    ],
)
def test_arguments_are_otherwise_the_object_that_transformers_documents(tmp_path: Path, write: str) -> None:
    template = "{% set a = messages[1].tool_calls[0].function.arguments %}" + write
    arguments = '{"city": "Oslo", "title": 1}' if "title" in write else ARGUMENTS
    expected = by_transformers(tmp_path, template, [USER, calling(json.loads(arguments))])
    assert render(template, [USER, calling(arguments)]) == expected
    assert render(template, [USER, calling(json.loads(arguments))]) == expected


@pytest.mark.parametrize("arguments", ["not json", "[1]", "5", '"x"', "[" * 100_000])
def test_arguments_that_are_no_object_stay_as_they_are(arguments: str) -> None:
    template = "{{ messages[1].tool_calls[0].function.arguments }}"
    assert render(template, [USER, calling(arguments)]) == arguments


@pytest.mark.parametrize(("arguments", "text"), [("", "{}"), (" ", "{}"), ({"b": 1, "a": "é"}, '{"b": 1, "a": "é"}')])
def test_arguments_without_a_text_of_their_own_are_json(arguments: Any, text: str) -> None:
    assert render("{{ '>' + messages[1].tool_calls[0].function.arguments }}", [USER, calling(arguments)]) == f">{text}"


@pytest.mark.parametrize(
    ("write", "expected"),
    [("a.strip()", "{}"), ("a.replace('}', '') ", " {"), ("(a | replace(' ', ''))", "{}"), ("(a | trim)", "{}")],
)
def test_arguments_have_the_methods_of_texts(write: str, expected: str) -> None:
    template = "{% set a = messages[1].tool_calls[0].function.arguments %}{{ " + write + " }}"
    assert render(template, [USER, calling(" {}")]) == expected


def test_long_arguments_that_are_added_to_texts_are_charged_for() -> None:
    messages = [USER, calling(json.dumps({"x": "y" * 2**18}))]
    template = "{% set a = messages[1].tool_calls[0].function.arguments %}{% for i in range(999) %}%s{% endfor %}"
    for sum_ in ("'x' + a", "a + 'x'"):
        with time_limit(60), pytest.raises(UnboundedCostError):
            render(template.replace("%s", "{% set b = " + sum_ + " %}"), messages)


# --- messages without content ---------------------------------------------------------------------------


@pytest.mark.parametrize("content", [None, ""])
def test_a_call_without_content_is_kept_where_the_template_asks_for_none(content: Any) -> None:
    messages = [USER, calling('{"x":1}', content=content), {"role": "tool", "content": "4", "tool_call_id": "c1"}]
    assert render(ASKS_FOR_NONE, messages) == '<user>hi<call>f {"x":1}</call><tool>4'


def test_a_message_with_content_stays_with_it() -> None:
    assert render(ASKS_FOR_NONE, [USER, {"role": "assistant", "content": "well"}]) == "<user>hi<said>well"
    assert render(ASKS_FOR_NONE, [USER, {"role": "assistant", "content": None}]) == "<user>hi<said>"


def test_a_template_that_adds_the_content_to_a_text_gets_an_empty_one() -> None:
    assert render(ADDS, [USER, calling()]) == "<user>hi<assistant>[f]"
    assert render(ADDS, [USER, {"role": "assistant", "content": None}]) == "<user>hi<assistant>"


def test_other_templates_get_messages_without_the_key_as_of_transformers(tmp_path: Path) -> None:
    template = PRINTS + "{{ 'content' in messages[1] }}"
    messages = [USER, calling({"x": 1})]
    assert render(template, messages) == by_transformers(tmp_path, template, messages)
    assert render(template, messages) == "<user>hi<assistant>[f]False"


def test_a_template_that_shows_nothing_of_a_call_but_asks_for_none_is_told_so() -> None:
    template = EACH.replace("%s", "{% if m.content is none %}(none){% else %}{{ m.content }}{% endif %}")
    assert render(template, [USER, calling()]) == "hi(none)"


def test_no_calls_are_as_absent_ones() -> None:
    template = EACH.replace("%s", "{{ m.tool_calls is defined }}{{ 'tool_calls' in m }}")
    assert render(template, [{"role": "assistant", "content": "a", "tool_calls": []}]) == "FalseFalse"


# --- texts and parts ------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["system", "assistant", "tool"])
@pytest.mark.parametrize("template", [ADDS, PRINTS, READS_BOTH])
def test_parts_are_their_text_where_the_role_has_texts(template: str, role: str) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = (
        [{"role": role, "content": parts}, USER] if role == "system" else [USER, {"role": role, "content": parts}]
    )
    assert f"<{role}>a\nb" in render(template, messages)


def test_parts_reach_the_roles_whose_parts_are_read(tmp_path: Path) -> None:
    messages = [{"role": role, "content": [{"type": "text", "text": "a"}]} for role in ("system", "user", "assistant")]
    assert render(READS_PARTS, messages) == by_transformers(tmp_path, READS_PARTS, messages)
    assert render(READS_BOTH, messages) == "<system>a<user>[a]<assistant>a"


@pytest.mark.parametrize("role", ["system", "user", "assistant", "tool"])
def test_a_text_becomes_a_part_where_parts_alone_are_read(role: str) -> None:
    message = {"role": role, "content": "abc"}
    messages = [USER, calling(), message] if role == "tool" else [message, USER]
    assert f"<{role}>[abc]" in render(READS_PARTS, messages)


def test_a_text_is_continued_where_parts_alone_are_read() -> None:
    messages = [USER, {"role": "assistant", "content": "abc "}]
    assert render(READS_PARTS, messages, continue_final_message=True) == "<user>[hi]<assistant>[abc "


# --- system messages ------------------------------------------------------------------------------------

SYSTEM, LATER = {"role": "system", "content": "one"}, {"role": "system", "content": [{"type": "text", "text": "two"}]}


@pytest.mark.parametrize("template", [ONE_SYSTEM_FIRST, LATER_SYSTEM_IS_PASSED_OVER])
@pytest.mark.parametrize("messages", [[SYSTEM, LATER, USER], [SYSTEM, USER, LATER], [USER, SYSTEM, LATER]])
def test_a_template_of_one_leading_system_message_gets_one(template: str, messages: Any) -> None:
    assert render(template, messages) == "<system>one\n\ntwo<user>hi"


@pytest.mark.parametrize("template", [ONE_SYSTEM_FIRST, LATER_SYSTEM_IS_PASSED_OVER])
def test_a_lone_later_system_message_comes_first(template: str) -> None:
    assert render(template, [USER, SYSTEM]) == "<system>one<user>hi"


@pytest.mark.parametrize("template", [ONE_SYSTEM_FIRST, LATER_SYSTEM_IS_PASSED_OVER])
def test_a_system_message_between_the_turns_changes_nothing_before_it(template: str) -> None:
    """Coding agents send reminders in the middle of a conversation, whose beginning is cached."""
    before = [SYSTEM, USER, {"role": "assistant", "content": "a"}]
    reminded = render(template, [*before, USER, LATER])
    assert reminded == render(template, [*before, USER]) + "<user><system-reminder>\ntwo\n</system-reminder>"
    later = {"role": "developer", "content": "two\n"}
    assert render(template, [*before, later, USER]).startswith(render(template, before))


def test_a_reminder_joins_the_turn_where_the_template_wants_turns() -> None:
    told = render(MISTRAL, [SYSTEM, USER, {"role": "assistant", "content": "a"}, LATER, USER])
    assert told == "<system>one<user>hi<assistant>a<user><system-reminder>\ntwo\n</system-reminder>\n\nhi"


def test_a_developer_is_one_who_instructs() -> None:
    developer = {"role": "developer", "content": "two"}
    assert render(ONE_SYSTEM_FIRST, [SYSTEM, developer, USER]) == "<system>one\n\ntwo<user>hi"


def test_a_template_of_several_system_messages_gets_them_in_their_places(tmp_path: Path) -> None:
    messages = [SYSTEM, SYSTEM, USER, {"role": "assistant", "content": "a"}, SYSTEM, USER]
    assert render(PRINTS, messages) == by_transformers(tmp_path, PRINTS, messages)


def test_a_template_of_no_system_messages_says_so_itself() -> None:
    with pytest.raises(InvalidRequestError, match="no system"):
        render(NO_SYSTEM, [SYSTEM, SYSTEM, USER])


def test_where_no_system_message_is_shown_all_stay() -> None:
    assert render("{{ messages | length }}", [SYSTEM, SYSTEM, USER]) == "3"


def test_a_system_message_that_had_to_go_first_is_not_continued() -> None:
    with pytest.raises(InvalidRequestError, match="takes a system message only at the beginning"):
        render(ONE_SYSTEM_FIRST, [USER, SYSTEM], continue_final_message=True)


# --- turns ----------------------------------------------------------------------------------------------

# In the manner of Gemma's.
TAKES_TURNS = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}<{{ m.role }}>{{ m.content }}{% endfor %}"
)
# In the manner of Mistral's: calls and results are no turns, and ids have nine characters.
MISTRAL = (
    "{% if messages[0].role == 'system' %}<system>{{ messages[0].content }}{% set rest = messages[1:] %}"
    "{% else %}{% set rest = messages %}{% endif %}{% set ns = namespace(index=0) %}"
    "{% for m in rest %}{% if m.role == 'user' or (m.role == 'assistant' and not m.tool_calls) %}"
    "{% if (m.role == 'user') != (ns.index % 2 == 0) %}{{ raise_exception('must alternate') }}{% endif %}"
    "{% set ns.index = ns.index + 1 %}<{{ m.role }}>{{ m.content }}"
    "{% elif m.tool_calls %}{% for c in m.tool_calls %}{% if c.id | length != 9 %}"
    "{{ raise_exception('Tool call IDs should have length 9') }}{% endif %}[{{ c.function.name }} {{ c.id }}]"
    "{% endfor %}{% elif m.role == 'tool' %}{% if m.tool_call_id | length != 9 %}"
    "{{ raise_exception('Tool call IDs should have length 9') }}{% endif %}<tool {{ m.tool_call_id }}>{{ m.content }}"
    "{% else %}{{ raise_exception('only user, assistant and tool') }}{% endif %}{% endfor %}"
)
ANSWER, MORE = {"role": "assistant", "content": "a"}, {"role": "user", "content": [{"type": "text", "text": "more"}]}


def used(call_id: str, content: Any = "4") -> list[dict[str, Any]]:
    call = {"id": call_id, "type": "function", "function": {"name": "f", "arguments": "{}"}}
    result = {"role": "tool", "tool_call_id": call_id, "content": content}
    return [{"role": "assistant", "content": None, "tool_calls": [call]}, result]


@pytest.mark.parametrize("template", [TAKES_TURNS, MISTRAL])
def test_messages_in_a_row_are_one_where_the_template_wants_turns(template: str) -> None:
    assert render(template, [USER, MORE, MORE]) == "<user>hi\n\nmore\n\nmore"
    assert render(template, [USER, ANSWER, ANSWER, MORE]) == "<user>hi<assistant>a\n\na<user>more"
    empty = {"role": "assistant", "content": None}
    assert render(template, [USER, empty, ANSWER, MORE]) == "<user>hi<assistant>a<user>more"


def test_instructions_and_two_messages_are_a_system_message_and_a_turn() -> None:
    assert render(MISTRAL, [SYSTEM, LATER, USER, MORE]) == "<system>one\n\ntwo<user>hi\n\nmore"
    assert render(MISTRAL, [SYSTEM, USER, LATER, MORE]) == "<system>one\n\ntwo<user>hi\n\nmore"


def test_thoughts_are_joined_as_texts_are() -> None:
    template = TAKES_TURNS.replace("{{ m.content }}", "{{ m.reasoning_content }}|{{ m.thinking }}|{{ m.content }}")
    thinking = {**ANSWER, "reasoning": "t"}
    assert "<assistant>t\n\nt|t\n\nt|a\n\na" in render(template, [USER, thinking, thinking])


def test_turns_that_were_joined_are_continued() -> None:
    assert render(TAKES_TURNS, [USER, ANSWER, ANSWER], continue_final_message=True) == "<user>hi<assistant>a\n\na"


def test_a_template_that_takes_messages_in_a_row_gets_them_as_of_transformers(tmp_path: Path) -> None:
    messages = [USER, USER, ANSWER, ANSWER, *used("call_abc"), USER]
    template = PRINTS + "{% for m in messages %}{{ m.tool_call_id }}{% endfor %}"
    assert render(template, messages) == by_transformers(tmp_path, template, messages)


@pytest.mark.parametrize("content", ["4", [{"type": "text", "text": "4"}]])
def test_what_the_user_says_after_a_result_is_read_with_it_where_it_is_no_turn(content: Any) -> None:
    messages = [USER, *used("abcdefgh1", content), MORE, MORE, ANSWER, USER]
    expected = "<user>hi[f abcdefgh1]<tool abcdefgh1>4\n\nmore\n\nmore<assistant>a<user>hi"
    assert render(MISTRAL, messages) == expected


def test_what_was_said_after_a_result_is_not_continued() -> None:
    with pytest.raises(InvalidRequestError, match="takes no user message after a tool's result"):
        render(MISTRAL, [USER, *used("abcdefgh1"), MORE], continue_final_message=True)


def test_ids_of_calls_are_short_where_the_template_takes_no_others() -> None:
    first, second = used("call_1"), used("chatcmpl-tool-2\ud800")
    calls = {**first[0], "tool_calls": [*first[0]["tool_calls"], *second[0]["tool_calls"]]}
    text = render(MISTRAL, [USER, calls, second[1], first[1]])
    ids = re.findall(r"\[f ([a-z0-9]{9})\]", text)
    assert len({*ids}) == 2
    assert re.findall(r"<tool (\w+)>", text) == ids[::-1]
    assert text == render(MISTRAL, [USER, calls, second[1], first[1]])
    assert "[f aB3456789]" in render(MISTRAL, [USER, *used("aB3456789"), *first])


# --- tools ----------------------------------------------------------------------------------------------


def test_tools_reach_the_template_as_they_are(tmp_path: Path) -> None:
    template = "{{ tools | tojson }}{% for t in tools %}{{ t }}{% endfor %}"
    assert render(template, [USER], tools=TOOLS) == by_transformers(tmp_path, template, [USER], tools=TOOLS)


def test_a_template_that_shows_no_tools_refuses_them() -> None:
    with pytest.raises(InvalidRequestError, match="does not show the model any tools") as caught:
        render(PRINTS, [USER], tools=TOOLS)
    assert caught.value.param == "tools"
    assert render(PRINTS, [USER], tools=[]) == "<user>hi"


def test_tools_may_be_shown_with_a_system_message_alone() -> None:
    template = EACH.replace("%s", "{{ m.content }}{% if m.role == 'system' %}{{ tools | length }}{% endif %}")
    assert render(template, [SYSTEM, USER], tools=TOOLS) == "one1hi"


def test_what_fails_over_tools_says_so_itself() -> None:
    with pytest.raises(InvalidRequestError, match="not today"):
        render("{{ raise_exception('not today') }}", [USER], tools=TOOLS)


@pytest.mark.parametrize("form", ["list", "directory"])
def test_chats_with_tools_have_the_template_of_that_name(tmp_path: Path, form: str) -> None:
    from transformers import AutoTokenizer

    named = {"default": "d{{ messages[0].content }}", "tool_use": "t{{ tools | length }}", "rag": "r"}
    if form == "list":
        listed: Any = [{"name": name, "template": source} for name, source in named.items()]
        path = write_byte_tokenizer(tmp_path / "model", listed)
    else:
        path = write_byte_tokenizer(tmp_path / "model", "from the settings")
        (path / "chat_template.jinja").write_text(named["default"])
        (path / "additional_chat_templates").mkdir()
        for name in ("tool_use", "rag"):
            (path / "additional_chat_templates" / f"{name}.jinja").write_text(named[name])
    ours, theirs = Tokenizer.load(str(path)), AutoTokenizer.from_pretrained(str(path))
    offers: Any = (None, TOOLS)
    for tools in offers:
        expected = theirs.apply_chat_template([USER], tools=tools, tokenize=False)
        assert ours.render_chat([USER], tools=tools, add_generation_prompt=False) == expected
    assert ours.render_chat([USER], tools=[]) == "dhi"
    assert "tools | length" in ours.chat_template_source


def test_a_given_template_stands_for_all(tmp_path: Path) -> None:
    named: Any = [{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t{{ tools }}"}]
    path = write_byte_tokenizer(tmp_path / "model", named)
    tokenizer = Tokenizer.load(str(path), chat_template="given {{ tools | length }}")
    assert tokenizer.render_chat([USER], tools=TOOLS) == "given 1"
