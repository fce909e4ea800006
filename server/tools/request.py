"""PLACEHOLDER, to be overwritten by its owner."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Tool:
    name: str
    description: str | None
    parameters: Mapping[str, Any]
    strict: bool


@dataclass(frozen=True, slots=True)
class ToolUse:
    tools: tuple[Tool, ...]
    choice: Literal["none", "auto", "required"]
    forced_name: str | None
    parallel: bool
    raw: list[dict[str, Any]]


def read_tool_use(tools: Any, tool_choice: Any, parallel_tool_calls: bool | None) -> ToolUse | None:
    return None
