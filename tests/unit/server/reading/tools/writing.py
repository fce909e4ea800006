"""Calls as each publisher's models write them, for the tests that read them and that enforce them."""

import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from tests.unit.server.reading.tools import family_templates, templates

Calls = Sequence[tuple[str, str]]  # names, and arguments as JSON
Write = Callable[[Calls], str]


def as_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else as_json(value)


def _around(
    calls: Calls, before: str, call: str, after: str, *, between: str = "", write: Callable[[str], str] = str
) -> str:
    """Write each call as `call` says, and all of them between two texts."""
    written = (call.replace("NAME", name).replace("#", str(i)) for i, (name, _) in enumerate(calls))
    parts = (head.replace("BODY", write(arguments)) for head, (_, arguments) in zip(written, calls, strict=True))
    return before + between.join(parts) + after


def _tags(argument: str, typed: tuple[str, str] = ("", "")) -> Callable[[str], str]:
    """Return what writes an object's members as tags: KEY and VALUE, and TYPE as for a string, or anything else."""

    def write(arguments: str) -> str:
        return "".join(
            argument.replace("KEY", key)
            .replace("TYPE", typed[not isinstance(value, str)])
            .replace("VALUE", _text(value))
            for key, value in json.loads(arguments).items()
        )

    return write


def _python(arguments: str) -> str:
    return ", ".join(f"{key}={as_json(value)}" for key, value in json.loads(arguments).items())


def _marked(value: Any, mark: str) -> str:
    if isinstance(value, str):
        return mark + value + mark
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_marked(item, mark)}" for key, item in value.items()) + "}"
    return f"[{','.join(_marked(item, mark) for item in value)}]" if isinstance(value, list) else as_json(value)


def _key_values(mark: str) -> Callable[[str], str]:
    return lambda arguments: _marked(json.loads(arguments), mark)


_PARAMETER = _tags("<parameter=KEY>VALUE</parameter>\n")
_ATTRIBUTE = _tags('<parameter name="KEY">VALUE</parameter>\n')
_ARGUMENT = _tags("<arg_key>KEY</arg_key>\n<arg_value>VALUE</arg_value>\n")
_STEP = _tags('<steptml:parameter name="KEY">VALUE</steptml:parameter>')
_LONGCAT = _tags("<longcat_arg_key>KEY</longcat_arg_key>\n<longcat_arg_value>VALUE</longcat_arg_value>\n")
_OBJECT = '{"name": "NAME", "arguments": BODY}'


def _dsml(section: str, space: str = "") -> Write:
    tag = f"｜DSML｜{space}"
    argument = f'<{tag}parameter name="KEY" string="TYPE">VALUE</{tag}parameter>\n'
    call = f'<{tag}invoke name="NAME">\nBODY</{tag}invoke>'
    write = _tags(argument, ("true", "false"))
    return partial(
        _around, before=f"<{tag}{section}>\n", call=call, after=f"\n</{tag}{section}>", between="\n", write=write
    )


def _each(call: str, write: Callable[[str], str] = str, between: str = "\n") -> Write:
    return partial(_around, before="", call=call, after="", between=between, write=write)


def _listed(opening: str, closing: str, call: str = _OBJECT) -> Write:
    return partial(_around, before=f"{opening}[", call=call, after=f"]{closing}", between=", ")


# How its models write calls, by the name of the format, where a mark tells them from text.
_WRITERS: dict[str, Write] = {
    "qwen3_coder": _each(
        "<tool_call>\n<function=NAME>\nBODY</function>\n</tool_call>", _tags("<parameter=KEY>\nVALUE\n</parameter>\n")
    ),
    "mimo": _each("<tool_call>\n<function=NAME>\nBODY</function>\n</tool_call>", _PARAMETER),
    "seed_oss": _each("<seed:tool_call>\n<function=NAME>\nBODY</function>\n</seed:tool_call>", _PARAMETER),
    "minimax_m2": _each('<minimax:tool_call>\n<invoke name="NAME">\nBODY</invoke>\n</minimax:tool_call>', _ATTRIBUTE),
    "dots": _each('<dots_function_call>\n<invoke name="NAME">\nBODY</invoke>\n</dots_function_call>', _ATTRIBUTE),
    "step3": partial(
        _around,
        before="<｜tool_calls_begin｜>",
        call="<｜tool_call_begin｜>function<｜tool_sep｜>"
        '<steptml:invoke name="NAME">BODY</steptml:invoke><｜tool_call_end｜>',
        after="<｜tool_calls_end｜>",
        write=_STEP,
    ),
    "glm45": _each("<tool_call>NAME\nBODY</tool_call>", _ARGUMENT),
    "longcat_2": _each("<longcat_tool_call>NAME\nBODY</longcat_tool_call>", _LONGCAT),
    "hy_v3": partial(
        _around,
        before="<tool_calls>\n",
        call="<tool_call>NAME<tool_sep>\nBODY</tool_call>",
        after="\n</tool_calls>",
        between="\n",
        write=_ARGUMENT,
    ),
    "deepseek_v3": partial(
        _around,
        before="<｜tool▁calls▁begin｜>",
        call="<｜tool▁call▁begin｜>function<｜tool▁sep｜>NAME\n```json\nBODY\n```<｜tool▁call▁end｜>",
        after="<｜tool▁calls▁end｜>",
        between="\n",
    ),
    "deepseek_v31": partial(
        _around,
        before="<｜tool▁calls▁begin｜>",
        call="<｜tool▁call▁begin｜>NAME<｜tool▁sep｜>BODY<｜tool▁call▁end｜>",
        after="<｜tool▁calls▁end｜>",
    ),
    "deepseek_v32": _dsml("function_calls"),
    "deepseek_v4": _dsml("tool_calls"),
    "deepseek_v41": _dsml("calls", " "),
    "kimi_k2": partial(
        _around,
        before="<|tool_calls_section_begin|>",
        call="<|tool_call_begin|>functions.NAME:#<|tool_call_argument_begin|>BODY<|tool_call_end|>",
        after="<|tool_calls_section_end|>",
    ),
    "hunyuan_dense": partial(
        _around,
        before="<tool_calls>",
        call="<tool_call>NAME\n```json\nBODY\n```</tool_call>",
        after="</tool_calls>",
        between="\n",
    ),
    "functionary": _each("<function=NAME>BODY</function>", between=""),
    "cohere_command": _listed("<|START_ACTION|>", "<|END_ACTION|>", '{"tool_name": "NAME", "parameters": BODY}'),
    "apertus": _listed("<|tools_prefix|>", "<|tools_suffix|>", '{"NAME": BODY}'),
    "granite": _listed("<|tool_call|>", ""),
    "granite_20b_fc": _each(f"<function_call> {_OBJECT}"),
    "phi4_mini": _listed("<|tool_call|>", "<|/tool_call|>"),
    "hunyuan": _listed("<tool_calls>", "</tool_calls>"),
    "nemotron": _listed("<TOOLCALL>", "</TOOLCALL>"),
    "internlm": _each('<|action_start|><|plugin|>\n{"name": "NAME", "parameters": BODY}<|action_end|>'),
    "longcat": _each(f"<longcat_tool_call>\n{_OBJECT}\n</longcat_tool_call>"),
    "lfm2": partial(
        _around,
        before="<|tool_call_start|>[",
        call="NAME(BODY)",
        after="]<|tool_call_end|>",
        between=", ",
        write=_python,
    ),
    "olmo3": partial(
        _around,
        before="<function_calls>\n",
        call="NAME(BODY)",
        after="\n</function_calls>",
        between="\n",
        write=_python,
    ),
    "gemma4": _each("<|tool_call>call:NAMEBODY<tool_call|>", _key_values('<|"|>'), between=""),
    "functiongemma": _each(
        "<start_function_call>call:NAMEBODY<end_function_call>", _key_values("<escape>"), between=""
    ),
}
# A template and how its model writes calls, by the name of the format.
PUBLISHERS: dict[str, tuple[str, Write]] = {
    name: (family_templates.FAMILIES[name][0], write) for name, write in _WRITERS.items()
}
# The formats that have tests of their own, too.
_OTHERS: dict[str, tuple[str, Write]] = {
    "hermes": (templates.QWEN_3, _each(f"<tool_call>\n{_OBJECT}\n</tool_call>")),
    "llama3_json": (templates.LLAMA_3_1, _each('{"name": "NAME", "parameters": BODY}', between="; ")),
    "mistral": (templates.MISTRAL_V3, _listed("[TOOL_CALLS] ", "")),
    "mistral, names first": (templates.MISTRAL_V13, _each("[TOOL_CALLS]NAME[ARGS]BODY", between="")),
    "openai": (
        family_templates.GPT_OSS,
        _each(
            "<|channel|>commentary to=functions.NAME <|constrain|>json<|message|>BODY<|call|>",
            between="<|start|>assistant",
        ),
    ),
    "pythonic": (
        templates.LLAMA_4_PYTHONIC,
        partial(_around, before="[", call="NAME(BODY)", after="]", between=", ", write=_python),
    ),
    "xlam": (family_templates.XLAM_2, _listed("", "")),
    "functionary_v32": (family_templates.FUNCTIONARY_3_2, _each("NAME\nBODY", between=">>>")),
    "granite, as text": (family_templates.GRANITE_3, _listed("<tool_call>", "")),
    "phi4_mini, functools": (family_templates.PHI_4_MINI_FUNCTOOLS, _listed("functools", "")),
}
EVERY = PUBLISHERS | _OTHERS
TAGGED = (  # values without a type
    *("qwen3_coder", "mimo", "seed_oss", "minimax_m2", "dots", "step3", "glm45", "longcat_2", "hy_v3"),
)
WHOLE_ANSWERS = ("llama3_json", "pythonic", "xlam")  # nothing is said before the calls
