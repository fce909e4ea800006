"""Response templates with faults, and what an answer may cost: nothing of it ends a server or another's request."""

import random
import re
import subprocess
import sys
from typing import Any

import pytest

from orcinus.engine.errors import InvalidRequestError
from orcinus.server.reading import region_parser
from orcinus.server.reading.message_format import MessageFormat
from orcinus.server.reading.response_template import load_response_template
from tests.unit.server.reading import response_templates as templates
from tests.unit.server.reading.response_templates import CHATML, TOOLS, form_of, no_token, read
from tests.unit.server.reading.test_response_template import ANSWERS
from tests.unit.server.reading.tools.calling import call, content, cut, function, reasoning, tool_use


@pytest.mark.parametrize(
    ("spec", "fault"),
    [
        ("text", "must be a dict|dictionary update sequence"),
        ({"fields": {"content": {}}}, "start_anchor"),
        (templates.template("A:"), "non-empty dict"),
        ({**templates.QWEN_3, "version": 2}, "version: 2"),
        ({**templates.QWEN_3, "colour": 1}, "colour"),
        (templates.template("A:", content={"close_pattern": "("}), "Field 'content': invalid close_pattern"),
        (templates.template("A:", content={}, thinking={}), "At most one field"),
        (templates.template("A:", content={"content": "yaml"}), "yaml"),
        (
            {"start_anchor_pattern": r"(?:\s*\n)*x(?:\s*\n)*y|(?:\s|\n)*z", "fields": {"content": {}}},
            "start_anchor_pattern takes too long",
        ),
        (templates.template("A:", answer={}), "no field is named content, and what is left over is 'answer'"),
        (
            templates.template("A:", content={}, thinking={"open_pattern": r"(?=.*</t>)"}),
            "open_pattern of 'thinking'.* may begin anywhere",
        ),
        (templates.template("A:", content={"close_pattern": r"(?:\s*\n)*x(?:\s*\n)*y|(?:\s|\n)*z"}), "took over"),
        (
            templates.template(
                "A:",
                content={},
                tool_calls={"open": "<", "content": "xml-inline", "content_args": {"tag_pattern": "("}},
            ),
            "content_args of 'tool_calls'",
        ),
        (templates.template("A:", content={}, tool_calls={"open": "<", "content": "xml-inline"}), "tag_pattern"),
        (
            templates.template(
                "A:",
                content={},
                tool_calls={"open": "<", "content": "xml-inline", "content_args": {"tag_pattern": "a"}},
            ),
            "no group named key",
        ),
        (
            templates.template(
                "A:", content={}, tool_calls={"open": "<", "content": "json", "content_args": {"string_delims": 3}}
            ),
            "content_args of 'tool_calls'",
        ),
        (templates.template("A:", content={}, tool_calls={"open": "<", "content_args": []}), "."),
    ],
)
def test_template_that_cannot_be_used_is_told_and_left_alone(
    spec: Any, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    form = MessageFormat.detect("<tool_call>{{ tools }}<think>", no_token, response_template=spec)
    assert form.template is None
    assert form.summary == "tools: hermes; reasoning: think"
    [record] = caplog.records
    assert record.levelname == "WARNING"
    assert "the tokenizer's response_template is not used: " in record.getMessage()
    assert re.search(fault, record.getMessage())


def test_template_without_calls_is_not_used_where_the_model_has_calls_of_a_known_kind(
    caplog: pytest.LogCaptureFixture,
) -> None:
    spec = templates.template(CHATML, content={})
    assert MessageFormat.detect("<tool_call>", no_token, response_template=spec).template is None
    assert "no field tool_calls" in caplog.text
    form = MessageFormat.detect("", no_token, response_template=spec)
    assert form.summary == "tools: none (response template); reasoning: none"
    with pytest.raises(InvalidRequestError, match="tools cannot be used"):
        form.check(tool_use(TOOLS))


def test_template_is_not_used_where_a_parser_is_named() -> None:
    for options in ({"tool_call_parser": "hermes"}, {"tool_call_parser": "none"}, {"reasoning_parser": "think"}):
        form = MessageFormat.detect("<tool_call>", no_token, response_template=templates.QWEN_3, **options)
        assert form.template is None


def test_regions_that_open_and_close_by_nothing_end_in_content(caplog: pytest.LogCaptureFixture) -> None:
    spec = templates.template("A:", content={}, thinking={"open_pattern": "(?=7)", "close_pattern": "(?=7)"})
    assert read(form_of(spec), "a 789") == content("a 789")
    assert "opened and closed without end" in caplog.text


def test_pattern_that_takes_too_long_ends_in_content(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(region_parser, "SEARCH_TIMEOUT_S", 0.01)
    spec = templates.template("A:", content={}, thinking={"open_pattern": r"7(?:\w|\d|.)*(?:\w|\d|.)*!", "close": "<"})
    form = form_of(spec)
    text = "a 7" + "7" * 500
    assert read(form, [text[:100], text[100:], " b"]) == content(text + " b")
    assert "took over 0.01 s" in caplog.text


def test_hooks_of_the_library_are_there() -> None:
    """Fail first where a later version has changed what `region_parser` hooks into."""
    assert load_response_template(templates.QWEN_3).has_calls


# --- cost -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("piece", ["語 語", "    ", "\n\n", "<", '"{'])
def test_buffer_of_an_endless_answer_stays_small(piece: str) -> None:
    form = form_of(templates.QWEN_3)
    reader = form.reader("", tool_use(TOOLS))
    assert reader is not None
    for _ in range(20_000):
        reader.feed(piece)
    parser = reader._readers[-1]._parser  # type: ignore[attr-defined]
    assert len(parser._buffer) + len(parser._unread) < 8 * region_parser.MAX_HELD_CHARS
    assert parser._body == ""


def test_delimiter_that_never_ends_is_given_out() -> None:
    text = "<|channel|>commentary to=functions.f " + "word " * 1000
    for special_tokens, given in (((), text + "so"), (("<|channel|>", "<|message|>"), "so")):
        form = form_of(templates.GPT_OSS, special_tokens=special_tokens)
        pieces = read(form, [text, "<|channel|>final<|message|>so"], use=tool_use(TOOLS))
        assert pieces == content(given)


def test_white_space_after_a_thought_may_go_on() -> None:
    text = "<think>x</think>" + "\n" * 5000 + "y"
    assert read(form_of(templates.QWEN_3_CODER), text) == [*reasoning("x"), *content("y")]


@pytest.mark.parametrize(
    ("what", "name", "value", "fault"),
    [
        ("attribute", "_HOOKS", ("_gone",), "parses answers in another way: it has no _gone"),
        ("module", "orcinus.server.reading.region_parser", None, "takes a later version of transformers"),
    ],
)
def test_library_that_is_built_otherwise_is_told_and_not_used(
    what: str, name: str, value: Any, fault: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if what == "attribute":
        monkeypatch.setattr(region_parser, name, value)
    else:
        monkeypatch.setitem(sys.modules, name, value)
    form = MessageFormat.detect("<tool_call>", no_token, response_template=templates.QWEN_3)
    assert form.summary == "tools: hermes; reasoning: none"
    assert fault in caplog.text


def test_reading_by_a_template_needs_no_torch() -> None:
    script = f"""
import sys
from orcinus.engine.platform.lean_imports import hide_torch
from orcinus.server.reading.message_format import MessageFormat
hide_torch(trust_remote_code=False)
form = MessageFormat.detect("", lambda text: None, response_template={templates.QWEN_3!r})
print(form.reader("", None).feed("<think>a</think>b"), sys.modules["torch"])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout == "[Reasoning(text='a'), Content(text='b')] None\n", done.stderr


def test_schema_that_is_none_casts_nothing() -> None:
    """Whatever a client writes for a schema, its own answer has the argument as the model wrote it."""
    tools = [function("f", {"type": "object", "properties": {"a": {"anyOf": 5}, "b": {"type": "array"}}})]
    deep = "[" * 100_000
    text = f'<tool_call>{{"name": "f", "arguments": {{"a": "1", "b": "{deep}"}}}}</tool_call>'
    pieces = read(form_of(templates.QWEN_3), [text], use=tool_use(tools))
    assert pieces == call(0, "f", f'{{"a": "1", "b": "{deep}"}}')


_TEMPLATES = {name: spec for name, spec in vars(templates).items() if isinstance(spec, dict) and "fields" in spec}
_PIECES = re.compile(r"<[^<>]*>|\{[^{}]*\}|[^<>{}]+")


@pytest.mark.parametrize("name", _TEMPLATES)
def test_pieces_of_answers_in_any_order_are_read_the_same_however_they_are_cut(name: str) -> None:
    form, use, chance = form_of(_TEMPLATES[name]), tool_use(TOOLS), random.Random(name)
    answers = [text for spec, text in ANSWERS.values() if spec is _TEMPLATES[name]]
    pieces = [piece for text in answers for piece in _PIECES.findall(text)]
    pieces += ["a", " ", "\n", '"', "{", "}", "<", "語", '{"name": "f", "arguments": {}}']
    for _ in range(15):
        text = "".join(chance.choices(pieces, k=chance.randrange(1, 14)))
        is_cut = chance.random() < 0.3
        whole = read(form, [text], use=use, is_cut=is_cut)
        assert read(form, text, use=use, is_cut=is_cut) == whole
        assert read(form, cut(text, [chance.randrange(len(text)) for _ in range(5)]), use=use, is_cut=is_cut) == whole
