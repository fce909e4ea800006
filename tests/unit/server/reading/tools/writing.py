"""Calls as each publisher's models write them, for the tests that read them and that enforce them."""

import json
from collections.abc import Callable, Sequence
from typing import Any

from tests.unit.server.reading.tools import family_templates

Calls = Sequence[tuple[str, str]]  # names, and arguments as JSON


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _tags(calls: Calls, section: str, function: str, end: str, argument: str) -> str:
    written = []
    for name, arguments in calls:
        parts = [argument.format(key=key, value=_text(value)) for key, value in json.loads(arguments).items()]
        written.append(f"<{section}>{function.format(name)}{''.join(parts)}{end}</{section}>")
    return "\n".join(written)


def qwen3_coder(calls: Calls) -> str:
    argument = "<parameter={key}>\n{value}\n</parameter>\n"
    return _tags(calls, "tool_call", "\n<function={}>\n", "</function>\n", argument)


def seed_oss(calls: Calls) -> str:
    argument = "<parameter={key}>{value}</parameter>\n"
    return _tags(calls, "seed:tool_call", "\n<function={}>\n", "</function>\n", argument)


def minimax_m2(calls: Calls) -> str:
    argument = '<parameter name="{key}">{value}</parameter>\n'
    return _tags(calls, "minimax:tool_call", '\n<invoke name="{}">\n', "</invoke>\n", argument)


def glm45(calls: Calls) -> str:
    argument = "<arg_key>{key}</arg_key>\n<arg_value>{value}</arg_value>\n"
    return _tags(calls, "tool_call", "{}\n", "", argument)


def deepseek_v3(calls: Calls) -> str:
    written = "\n".join(
        f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>{name}\n```json\n{arguments}\n```<｜tool▁call▁end｜>"
        for name, arguments in calls
    )
    return f"<｜tool▁calls▁begin｜>{written}<｜tool▁calls▁end｜>"


def deepseek_v31(calls: Calls) -> str:
    written = "".join(
        f"<｜tool▁call▁begin｜>{name}<｜tool▁sep｜>{arguments}<｜tool▁call▁end｜>" for name, arguments in calls
    )
    return f"<｜tool▁calls▁begin｜>{written}<｜tool▁calls▁end｜>"


def kimi_k2(calls: Calls) -> str:
    written = "".join(
        f"<|tool_call_begin|>functions.{name}:{i}<|tool_call_argument_begin|>{arguments}<|tool_call_end|>"
        for i, (name, arguments) in enumerate(calls)
    )
    return f"<|tool_calls_section_begin|>{written}<|tool_calls_section_end|>"


def _objects(calls: Calls, name_key: str = "name", arguments_key: str = "arguments") -> str:
    objects = (f'{{"{name_key}": "{name}", "{arguments_key}": {arguments}}}' for name, arguments in calls)
    return f"[{', '.join(objects)}]"


def cohere_command(calls: Calls) -> str:
    return f"<|START_ACTION|>{_objects(calls, 'tool_name', 'parameters')}<|END_ACTION|>"


def granite(calls: Calls) -> str:
    return f"<|tool_call|>{_objects(calls)}"


def phi4_mini(calls: Calls) -> str:
    return f"<|tool_call|>{_objects(calls)}<|/tool_call|>"


def hunyuan(calls: Calls) -> str:
    return f"<tool_calls>{_objects(calls)}</tool_calls>"


def nemotron(calls: Calls) -> str:
    return f"<TOOLCALL>{_objects(calls)}</TOOLCALL>"


_WRITERS = (
    qwen3_coder,
    seed_oss,
    minimax_m2,
    glm45,
    deepseek_v3,
    deepseek_v31,
    kimi_k2,
    cohere_command,
    granite,
    phi4_mini,
    hunyuan,
    nemotron,
)
# A template and how its model writes calls, by the name of the format.
PUBLISHERS: dict[str, tuple[str, Callable[[Calls], str]]] = {
    write.__name__: (family_templates.FAMILIES[write.__name__][0], write) for write in _WRITERS
}
TAGGED = ("qwen3_coder", "seed_oss", "minimax_m2", "glm45")  # values without a type
