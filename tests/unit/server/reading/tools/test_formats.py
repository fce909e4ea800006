"""Which way of writing calls and thoughts a chat template speaks of."""

import pytest

from orcinus.config.settings import demo_model_path
from orcinus.engine.errors import InvalidRequestError
from orcinus.server.reading.tools.mistral import Mistral
from tests.unit.server.reading.tools import templates
from tests.unit.server.reading.tools.calling import detect, tool_use


@pytest.mark.parametrize(
    ("template", "name"),
    [
        (templates.HERMES_2_PRO, "hermes"),
        (templates.QWEN_2_5, "hermes"),
        (templates.QWEN_3, "hermes"),
        (templates.QWQ, "hermes"),
        (templates.LLAMA_3_1, "llama3_json"),
        (templates.LLAMA_3_2, "llama3_json"),
        (templates.LLAMA_4_PYTHONIC, "pythonic"),
        (templates.TOOLACE, "pythonic"),
        (templates.MISTRAL_V3, "mistral"),
        (templates.MISTRAL_V11, "mistral"),
        (templates.MISTRAL_V13, "mistral"),
        (templates.PLAIN_WITH_TOOLS, "hermes"),
        (templates.QWEN_3_CODER, None),
        (templates.DEEPSEEK_R1, None),
        (templates.PHI_3, None),
        (templates.GEMMA, None),
        (templates.HARMONY, None),
        ("", None),
    ],
)
def test_the_format_of_calls_is_found_in_the_template(template: str, name: str | None) -> None:
    found = detect(template).tool_format
    assert (found.name if found else None) == name


def test_the_demo_model_writes_calls_as_hermes_does() -> None:
    template = demo_model_path() / "chat_template.jinja"
    found = detect(template.read_text("utf-8"))
    assert found.tool_format is not None
    assert found.tool_format.name == "hermes"
    assert not found.has_reasoning


def test_the_variant_of_mistrals_format_is_found_in_the_template() -> None:
    assert detect(templates.MISTRAL_V3).tool_format == Mistral()
    assert detect(templates.MISTRAL_V11).tool_format == Mistral(names_first=True, has_call_ids=True)
    assert detect(templates.MISTRAL_V13).tool_format == Mistral(names_first=True)


@pytest.mark.parametrize(
    ("template", "has_reasoning"),
    [
        (templates.QWEN_3, True),
        (templates.QWQ, True),
        (templates.DEEPSEEK_R1, True),
        (templates.QWEN_2_5, False),
        (templates.LLAMA_3_1, False),
        (templates.HARMONY, False),
        (templates.GEMMA, False),
    ],
)
def test_reasoning_is_found_in_the_template(template: str, has_reasoning: bool) -> None:
    assert detect(template).has_reasoning == has_reasoning


def test_the_operator_may_name_the_parsers() -> None:
    named = detect(templates.GEMMA, tool_call_parser="llama3_json", reasoning_parser="think")
    assert named.tool_format is not None
    assert named.tool_format.name == "llama3_json"
    assert named.has_reasoning


def test_a_named_parser_still_follows_the_template() -> None:
    named = detect(templates.MISTRAL_V13, tool_call_parser="mistral")
    assert named.tool_format == Mistral(names_first=True)


def test_parsers_can_be_turned_off() -> None:
    off = detect(templates.QWEN_3, tool_call_parser="none", reasoning_parser="none")
    assert off.tool_format is None
    assert not off.has_reasoning


def test_an_unknown_parser_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"tool_call_parser must be one of auto, none, mistral, hermes, .* got 'xml'"):
        detect("", tool_call_parser="xml")
    with pytest.raises(ValueError, match="reasoning_parser must be one of auto, none, think, got 'r1'"):
        detect("", reasoning_parser="r1")


def test_a_model_without_tools_refuses_a_request_with_tools() -> None:
    with pytest.raises(InvalidRequestError, match=r"no tools.*--tool-call-parser") as caught:
        detect(templates.GEMMA).check(tool_use())
    assert caught.value.param == "tools"


def test_a_model_without_tools_takes_a_request_that_forbids_their_use() -> None:
    detect(templates.GEMMA).check(tool_use(choice="none"))
    detect(templates.GEMMA).check(None)


@pytest.mark.parametrize(
    ("template", "special", "needs"),
    [
        (templates.MISTRAL_V3, "[TOOL_CALLS]", True),
        (templates.QWEN_2_5, "<tool_call>", True),
        (templates.QWEN_3, "</think>", True),
        (templates.QWEN_2_5, "</think>", False),
        (templates.LLAMA_3_1, "<|python_tag|>", False),
        (templates.MISTRAL_V3, "</s>", False),
    ],
)
def test_special_tokens_are_needed_where_markers_are_among_them(template: str, special: str, needs: bool) -> None:
    assert detect(template, special_tokens=["<s>", special]).needs_special_tokens == needs
