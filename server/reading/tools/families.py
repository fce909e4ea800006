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
    """One way of writing calls, and the texts in its templates: each of `signs` is enough, with all of `beside`.

    `models` are some that write so. `name` may be that of no format here: such calls are recognized and not read.
    """

    name: str
    signs: tuple[str, ...]
    beside: tuple[str, ...] = ()
    models: str = ""

    def is_in(self, template: str) -> bool:
        return any(sign in template for sign in self.signs) and all(sign in template for sign in self.beside)


# In this order, as the signs of the later ones are less particular.
FAMILIES = (
    Family("mistral", ("[TOOL_CALLS]",), models="Mistral, Ministral, Magistral, Devstral"),
    Family("openai", ("<|channel|>",), models="gpt-oss"),
    Family("deepseek_v41", ("｜DSML｜ calls",), models="DeepSeek V4.1"),
    Family("deepseek_v4", ("｜DSML｜tool_calls",), models="DeepSeek V4"),
    Family("deepseek_v32", ("｜DSML｜",), models="DeepSeek V3.2"),
    Family("deepseek_v3", ("<｜tool▁sep｜>",), beside=("```json",), models="DeepSeek V3, R1"),
    Family("deepseek_v31", ("<｜tool▁sep｜>",), models="DeepSeek V3.1"),
    Family("step3", ("<steptml:",), models="Step-3"),
    Family(
        "kimi_k2",
        ("<|tool_calls_section_begin|>", "tool_declare<|im_middle|>"),
        models="Kimi K2, K2 Thinking, K2.5",
    ),
    Family("kimi_k3", ("<|open|>",), beside=("<|sep|>",)),
    Family("minimax_m3", ("]<]minimax[>[",)),
    Family("minimax_m2", ("<minimax:tool_call>",), models="MiniMax M2, M2.5"),
    Family("seed_oss", ("<seed:tool_call>",), models="Seed-OSS"),
    Family("dots", ("<dots_function_call>",), models="dots"),
    Family("longcat_2", ("<longcat_arg_key>",), models="later LongCat"),
    Family("longcat", ("<longcat_tool_call>",), models="LongCat-Flash"),
    Family("hy_v3", ("<tool_sep>",), models="Hy3"),
    Family("hy_v4", ("<tool_calls",), beside=("<arg_key",)),
    Family("glm45", ("<arg_key>",), models="GLM 4.5 to 5, Ling 3, Laguna"),
    Family("mimo", (">value_1</parameter>",), beside=("<function=",), models="MiMo V2"),
    Family(
        "qwen3_coder",
        ("<function=",),
        beside=("<parameter=",),
        models="Qwen3-Coder, Qwen 3.5, Nemotron 3, Step-3.5, Granite 4.2",
    ),
    Family("functionary", ("<function=",), models="Functionary 3.1"),
    Family("functionary_v32", (">>>all",), models="Functionary 3.2"),
    Family("gemma4", ("<|tool_call>",), models="Gemma 4"),
    Family("functiongemma", ("<start_function_call>",), models="FunctionGemma"),
    Family("lfm2", ("<|tool_call_start|>", "<|tool_list_start|>"), models="LFM2, LFM2.5"),
    Family("cohere_command", ("<|START_ACTION|>",), models="Command R7B, Command A"),
    Family("solar_open", ("<|tool_call:begin|>",)),
    Family("olmo3", ("<function_calls>",), models="OLMo 3"),
    Family("phi4_mini", ("<|/tool|>", "<|/tool_call|>", "functools["), models="Phi-4-mini"),
    Family("granite", ("<|tool_call|>",), models="Granite 3"),
    Family("granite_20b_fc", ("<function_call>",), models="Granite 20B Function Calling"),
    Family("hunyuan_dense", ("<tool_calls>",), beside=("<tool_call>", "```json"), models="Hunyuan's dense models"),
    Family("hunyuan", ("<tool_calls>",), models="Hunyuan-A13B, Jamba, MiniMax M1"),
    Family("nemotron", ("<TOOLCALL>",), models="Nemotron Nano 2"),
    Family("apertus", ("<|tools_prefix|>",), models="Apertus"),
    Family("internlm", ("<|plugin|>",), models="InternLM 2 and 3, Intern-S1"),
    Family(
        "hermes",
        ("<tool_call>",),
        models="Qwen 2.5 and 3, Hermes, Granite 4, EXAONE 4, ERNIE 4.5, Ling 2, Ring, Trinity, SmolLM3",
    ),
    Family("pythonic", ("[func_name1(",), models="Llama 3.2 and 4, ToolACE"),
    Family("xlam", ('"tool_call_name',), models="xLAM 2"),
    Family("llama3_json", ('{"name": ',), beside=('"parameters": ', "ipython"), models="Llama 3.1 to 3.3"),
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
