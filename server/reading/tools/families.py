"""What tells the ways of writing calls apart in a chat template. Knows no reader.

A way is known by a text that no other way's template has, or by several together. Nothing is guessed: a template with
tools and no such text is in an unknown format.
"""

import re
from dataclasses import dataclass

_TOOLS = re.compile(r"\btools\b")
# After Hermes' opening tag comes JSON. In other formats it is a name or another tag.
_HERMES_TAG_BEFORE_ANOTHER = re.compile(r"""<tool_call>(?:\\n|[\s'"~+{}-])*<(?!/?tool_call>)""")


@dataclass(frozen=True, slots=True)
class Family:
    """One way of writing calls, and the texts in its templates: each of `signs` is enough, with all of `beside`."""

    name: str
    signs: tuple[str, ...]
    beside: tuple[str, ...] = ()

    def is_in(self, template: str) -> bool:
        return any(sign in template for sign in self.signs) and all(sign in template for sign in self.beside)


# In this order, as the signs of the later ones are less particular.
FAMILIES = (
    Family("mistral", ("[TOOL_CALLS]",)),
    Family("openai", ("<|channel|>",)),
    Family("deepseek_v32", ("｜DSML｜",)),
    Family("deepseek_v3", ("<｜tool▁sep｜>",), beside=("```json",)),
    Family("deepseek_v31", ("<｜tool▁sep｜>",)),
    Family("kimi_k2", ("<|tool_calls_section_begin|>", "tool_declare<|im_middle|>")),
    Family("minimax_m2", ("<minimax:tool_call>",)),
    Family("seed_oss", ("<seed:tool_call>",)),
    Family("glm45", ("<arg_key>",)),
    Family("qwen3_coder", ("<function=",), beside=("<parameter=",)),
    Family("functionary", ("<function=",)),
    Family("gemma4", ("<|tool_call>",)),
    Family("functiongemma", ("<start_function_call>",)),
    Family("lfm2", ("<|tool_call_start|>", "<|tool_list_start|>")),
    Family("cohere_command", ("<|START_ACTION|>",)),
    Family("olmo3", ("<function_calls>",)),
    Family("phi4_mini", ("<|/tool|>", "<|/tool_call|>")),
    Family("granite", ("<|tool_call|>", "<function_call>")),
    Family("hunyuan", ("<tool_calls>",)),
    Family("nemotron", ("<TOOLCALL>",)),
    Family("apertus", ("<|tools_prefix|>",)),
    Family("internlm", ("<|plugin|>",)),
    Family("hermes", ("<tool_call>",)),
    Family("pythonic", ("[func_name1(",)),
    Family("llama3_json", ('{"name": ',), beside=('"parameters": ', "ipython")),
)


def find_family(template: str) -> str | None:
    """Return the name of the way in which a model with this template writes calls, None if no sign of any is there."""
    for family in FAMILIES:
        if family.is_in(template):
            return None if family.name == "hermes" and _HERMES_TAG_BEFORE_ANOTHER.search(template) else family.name
    return None


def has_tools(template: str) -> bool:
    """Return whether the template does anything with tools."""
    return _TOOLS.search(template) is not None
