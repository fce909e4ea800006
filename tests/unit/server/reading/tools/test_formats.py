"""Which way of writing calls and thoughts a chat template speaks of."""

from typing import get_args

import pytest

from orcinus.config.parser_names import ReasoningParser, ToolCallParser
from orcinus.config.settings import demo_model_path
from orcinus.engine.errors import InvalidRequestError
from orcinus.server.reading.message_format import REASONING_PARSERS, TOOL_CALL_PARSERS
from orcinus.server.reading.tools.families import find_family
from orcinus.server.reading.tools.mistral import Mistral
from tests.unit.server.reading.tools import family_templates, templates
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
        (templates.PLAIN_WITH_TOOLS, None),
        (templates.QWEN_3_CODER, "qwen3_coder"),
        (templates.DEEPSEEK_R1, None),
        (templates.PHI_3, None),
        (templates.GEMMA, None),
        (templates.HARMONY, "openai"),
        ("", None),
    ],
)
def test_the_format_of_calls_is_found_in_the_template(template: str, name: str | None) -> None:
    found = detect(template).tool_format
    assert (found.name if found else None) == name


OWN_FORMATS = {
    "hermes": (templates.HERMES_2_PRO, templates.QWEN_2_5, templates.QWEN_3, templates.QWQ),
    "llama3_json": (templates.LLAMA_3_1, templates.LLAMA_3_2),
    "mistral": (templates.MISTRAL_V3, templates.MISTRAL_V11, templates.MISTRAL_V13, family_templates.MAGISTRAL),
    "pythonic": (templates.LLAMA_4_PYTHONIC, templates.TOOLACE),
}


@pytest.mark.parametrize(
    ("name", "template"),
    [
        (name, template)
        for known in (family_templates.FAMILIES, OWN_FORMATS)
        for name, those in known.items()
        for template in those
    ],
)
def test_each_publishers_way_of_writing_calls_is_taken_for_its_own(name: str, template: str) -> None:
    assert find_family(template) == name


@pytest.mark.parametrize(
    "template", [templates.PLAIN_WITH_TOOLS, family_templates.UNKNOWN_TAGS, templates.GEMMA, templates.PHI_3, ""]
)
def test_a_way_of_writing_calls_that_is_not_known_is_not_taken_for_another(template: str) -> None:
    assert find_family(template) is None
    assert detect(template).tool_format is None


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
        (templates.HARMONY, True),
        (templates.GEMMA, False),
    ],
)
def test_reasoning_is_found_in_the_template(template: str, has_reasoning: bool) -> None:
    assert detect(template).has_reasoning == has_reasoning


@pytest.mark.parametrize(
    ("template", "name"),
    [
        (templates.QWEN_3, "think"),
        (templates.DEEPSEEK_R1, "think"),
        (family_templates.GLM_4_5, "think"),
        (family_templates.DEEPSEEK_V3_1, "think"),
        (family_templates.MINIMAX_M2, "think"),
        (family_templates.LFM2_5, "think"),
        (family_templates.MAGISTRAL, "mistral"),
        (family_templates.SEED_OSS, "seed_oss"),
        (family_templates.GEMMA_4, "gemma4"),
        (family_templates.COMMAND_R7B, "cohere_command"),
        (family_templates.GRANITE_3, "granite"),
        (family_templates.GRANITE_4, None),
        (family_templates.ERNIE_4_5_THINKING, "granite"),
        (family_templates.EXAONE_4, "think"),
        (family_templates.NEMOTRON_3, "think"),
        (family_templates.STEP_3, "think"),
        (family_templates.APERTUS, "apertus"),
        (family_templates.LONGCAT_FLASH, "longcat"),
        (family_templates.COMMAND_A_PLUS, "cohere_command4"),
        (family_templates.HUNYUAN_A13B, "hunyuan"),
        (family_templates.GPT_OSS, "openai"),
        (templates.MISTRAL_V13, None),
        (family_templates.KIMI_K2, None),
        (family_templates.OLMO_3, None),
    ],
)
def test_each_publishers_way_of_marking_thoughts_is_taken_for_its_own(template: str, name: str | None) -> None:
    assert detect(template).reasoning == name


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


def test_the_settings_have_the_names_of_the_parsers() -> None:
    assert get_args(ToolCallParser) == TOOL_CALL_PARSERS
    assert get_args(ReasoningParser) == REASONING_PARSERS


def test_an_unknown_parser_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"tool_call_parser must be one of auto, none, hermes, .* got 'xml'"):
        detect("", tool_call_parser="xml")
    with pytest.raises(ValueError, match=r"reasoning_parser must be one of auto, none, think, mistral, .* got 'r1'"):
        detect("", reasoning_parser="r1")


def test_a_model_without_tools_refuses_a_request_with_tools() -> None:
    with pytest.raises(InvalidRequestError, match=r"no tools.*--tool-call-parser") as caught:
        detect(templates.GEMMA).check(tool_use())
    assert caught.value.param == "tools"


def test_a_model_without_tools_takes_a_request_that_forbids_their_use() -> None:
    detect(templates.GEMMA).check(tool_use(choice="none"))
    detect(templates.GEMMA).check(None)


@pytest.mark.parametrize(
    ("template", "options", "reason", "is_unread"),
    [
        (templates.GEMMA, {}, "the model's chat template has no tools", False),
        (templates.PLAIN_WITH_TOOLS, {}, "no sign of a format of calls that is known", True),
        (family_templates.UNKNOWN_TAGS, {}, "no sign of a format of calls that is known", True),
        (family_templates.MINIMAX_M3, {}, "a format that is not read here, minimax_m3", True),
        (family_templates.KIMI_K3, {}, "a format that is not read here, kimi_k3", True),
        (templates.QWEN_3, {"tool_call_parser": "none"}, "--tool-call-parser is none", False),
    ],
)
def test_tools_are_refused_with_the_reason_and_the_setting(
    template: str, options: dict[str, str], reason: str, is_unread: bool
) -> None:
    found = detect(template, **options)
    assert found.has_unread_tools == is_unread
    assert reason in found.summary
    with pytest.raises(
        InvalidRequestError, match=rf"{reason}.*--tool-call-parser names .*orcinus serve --help"
    ) as caught:
        found.check(tool_use())
    assert caught.value.param == "tools"


def test_what_was_recognized_is_told_in_a_few_words() -> None:
    assert detect(templates.QWEN_3).summary == "tools: hermes; reasoning: think"
    assert not detect(templates.QWEN_3).has_unread_tools
    named = detect(templates.PLAIN_WITH_TOOLS, tool_call_parser="pythonic")
    assert named.summary == "tools: pythonic; reasoning: none"
    assert not named.has_unread_tools


@pytest.mark.parametrize(
    ("template", "special", "needs"),
    [
        (templates.MISTRAL_V3, "[TOOL_CALLS]", True),
        (templates.QWEN_2_5, "<tool_call>", True),
        (templates.QWEN_3, "</think>", True),
        (templates.QWEN_2_5, "</think>", False),
        (templates.LLAMA_3_1, "<|python_tag|>", True),
        (templates.MISTRAL_V3, "</s>", False),
    ],
)
def test_special_tokens_are_needed_where_markers_are_among_them(template: str, special: str, needs: bool) -> None:
    assert detect(template, special_tokens=["<s>", special]).needs_special_tokens == needs
