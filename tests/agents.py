"""Conversations in the shape in which coding agents hold them: what is sent, and what they make of the answers.

The shapes are those of Claude Code 2.1, Codex 0.171 and opencode 1.18; their instructions and tools are made up here,
about `num_chars` of them. Transport is the business of whoever sends `body()` to `path`, streamed, and hands the
stream's text to `take`, which returns the usage and goes on with the conversation as the agent would.
"""

import hashlib
import json
import uuid
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tests.message_events import named_events, put_together

NUM_TOOLS = 20
BILLING_HEADER = "x-anthropic-billing-header"
_WORDS = (
    "file",
    "path",
    "search",
    "the",
    "result",
    "of",
    "every",
    "call",
    "when",
    "line",
    "read",
    "and",
    "write",
    "an",
)


@dataclass(frozen=True, slots=True)
class Turn:
    """What the usage says of one answer. `cache_miss` is None where nothing is said."""

    num_prompt_tokens: int
    num_cached_tokens: int
    num_output_tokens: int
    cache_miss: dict[str, Any] | None

    @property
    def num_computed_tokens(self) -> int:
        return self.num_prompt_tokens - self.num_cached_tokens


def prose(num_chars: int, topic: str) -> str:
    """Text that differs with its topic from the first word on."""
    digest = hashlib.sha256(topic.encode()).digest()
    words = [topic]
    while sum(map(len, words)) + len(words) < num_chars:
        words.append(_WORDS[(digest[len(words) % 32] + len(words)) % len(_WORDS)])
    return " ".join(words)[:num_chars]


def tool_schema(index: int) -> dict[str, Any]:
    """Arguments of one tool, of which a grammar allows few."""
    return {
        "type": "object",
        "properties": {"step": {"type": "string", "enum": [f"step {index}", "look around"]}},
        "required": ["step"],
        "additionalProperties": False,
    }


class Agent(ABC):
    """One conversation about a `task`. `forces_calls` makes a model call tools that would not by itself."""

    path: str

    def __init__(self, task: str, num_chars: int = 20_000, *, forces_calls: bool = False) -> None:
        self.task = task
        self.forces_calls = forces_calls
        self.num_turns = 0
        self.system = prose(num_chars // 2, "You are an agent.")
        self.descriptions = [prose(num_chars // 2 // NUM_TOOLS, f"Tool {index}.") for index in range(NUM_TOOLS)]

    @abstractmethod
    def body(self) -> dict[str, Any]:
        """The next request, streamed."""

    @abstractmethod
    def take(self, stream: str) -> Turn:
        """Read the answer, run its tools, and go on."""

    def result_of(self, call_id: str) -> str:
        return f"result {self.num_turns} of {self.task}"

    def go_on(self) -> str:
        return f"Go on with step {self.num_turns} of {self.task}."


class ClaudeCode(Agent):
    """POST /v1/messages. Its first line of instructions is another one in each request."""

    path = "/v1/messages?beta=true"

    def __init__(self, task: str, num_chars: int = 20_000, *, forces_calls: bool = False) -> None:
        super().__init__(task, num_chars, forces_calls=forces_calls)
        reminder = "<system-reminder>\n# currentDate\nToday's date is 2026-11-30.\n</system-reminder>\n\n"
        opening = [{"type": "text", "text": reminder}, {"type": "text", "text": task}]
        self.messages: list[dict[str, Any]] = [
            {"role": "user", "content": opening},
            {"role": "system", "content": "Available agent types for the Agent tool:\n- claude: for any task"},
        ]
        self.session_id = str(uuid.uuid4())

    def body(self) -> dict[str, Any]:
        nonce = uuid.uuid4().hex
        cached = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
        return {
            "model": "claude-opus-4-8",
            "messages": self._with_breakpoint(),
            "system": [
                {
                    "type": "text",
                    "text": f"{BILLING_HEADER}: cc_version=2.1.197.{nonce[:3]}; cc_entrypoint=cli; cch={nonce[3:8]};",
                },
                {"type": "text", "text": "You are Claude Code, Anthropic's official CLI for Claude.", **cached},
                {"type": "text", "text": "\n" + self.system, **cached},
            ],
            "tools": [
                {
                    "name": f"Tool{index}",
                    "description": text,
                    "input_schema": tool_schema(index),
                    "eager_input_streaming": True,
                }
                for index, text in enumerate(self.descriptions)
            ]
            + [{"type": "web_search_20250305", "name": "web_search", "max_uses": 8}],
            "metadata": {"user_id": json.dumps({"device_id": "d", "account_uuid": "", "session_id": self.session_id})},
            "max_tokens": 512,
            "thinking": {"type": "adaptive"},
            "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
            "output_config": {"effort": "high"},
            "stream": True,
            **({"tool_choice": {"type": "any", "disable_parallel_tool_use": True}} if self.forces_calls else {}),
        }

    def _with_breakpoint(self) -> list[dict[str, Any]]:
        """The messages, of which the last block that is the user's has a mark that moves on with the conversation."""
        *earlier, last = self.messages
        if last["role"] != "user":
            return self.messages
        *blocks, block = last["content"]
        return [*earlier, {**last, "content": [*blocks, {**block, "cache_control": {"type": "ephemeral"}}]}]

    def take(self, stream: str) -> Turn:
        answer = put_together(named_events(stream))
        self.num_turns += 1
        self.messages.append({"role": "assistant", "content": answer["content"]})
        results = [
            {
                "tool_use_id": block["id"],
                "type": "tool_result",
                "content": self.result_of(block["id"]),
                "is_error": False,
            }
            for block in answer["content"]
            if block["type"] == "tool_use"
        ]
        self.messages.append({"role": "user", "content": results or [{"type": "text", "text": self.go_on()}]})
        if self.num_turns == 4:
            self.messages.append({"role": "system", "content": "The task tools haven't been used recently.\n"})
        usage = answer["usage"]
        cached = usage["cache_read_input_tokens"]
        return Turn(usage["input_tokens"] + cached, cached, usage["output_tokens"], usage.get("cache_miss"))


class Codex(Agent):
    """POST /v1/responses."""

    path = "/v1/responses"

    def __init__(self, task: str, num_chars: int = 20_000, *, forces_calls: bool = False) -> None:
        super().__init__(task, num_chars, forces_calls=forces_calls)
        self.thread_id = str(uuid.uuid4())
        place = "<environment_context>\n  <cwd>/work</cwd>\n  <shell>bash</shell>\n</environment_context>"
        self.input: list[dict[str, Any]] = [
            self._message("developer", "<skills_instructions>\n## Skills\n</skills_instructions>"),
            self._message("user", place),
            self._message("user", task),
        ]

    def _message(self, role: str, text: str) -> dict[str, Any]:
        content = [{"type": "input_text", "text": text}]
        return {"type": "message", "id": f"msg_{uuid.uuid4()}", "role": role, "content": content}

    def body(self) -> dict[str, Any]:
        functions = [
            {
                "type": "function",
                "name": f"tool_{index}",
                "description": text,
                "strict": False,
                "parameters": tool_schema(index),
            }
            for index, text in enumerate(self.descriptions)
        ]
        member = {**functions[0], "name": "close_agent"}
        others = [
            {"type": "namespace", "name": "multi_agent_v1", "description": "Sub-agents.", "tools": [member]},
            {"type": "local_shell"},
            {"type": "web_search", "external_web_access": True},
            {
                "type": "custom",
                "name": "apply_patch",
                "description": "Edit files.",
                "format": {"type": "grammar", "syntax": "lark", "definition": 'start: "*** Begin Patch"'},
            },
        ]
        return {
            "model": "",
            "stream": True,
            "instructions": self.system,
            "input": self.input,
            "tools": [*functions, *([] if self.forces_calls else others)],
            "tool_choice": "required" if self.forces_calls else "auto",
            "parallel_tool_calls": not self.forces_calls,
            "reasoning": {"effort": "medium", "summary": "auto"},
            "store": False,
            "include": ["reasoning.encrypted_content"],
            "prompt_cache_key": self.thread_id,
            "service_tier": "priority",
            "text": {"verbosity": "medium"},
            "client_metadata": {"x-codex-installation-id": self.thread_id, "turn": str(self.num_turns)},
            "max_output_tokens": 512,
        }

    def take(self, stream: str) -> Turn:
        response = list(named_events(stream))[-1]["response"]
        assert response["status"] in ("completed", "incomplete")
        self.num_turns += 1
        self.input += response["output"]
        results = [
            {
                "type": "function_call_output",
                "id": f"fco_{uuid.uuid4()}",
                "call_id": item["call_id"],
                "output": self.result_of(item["call_id"]),
            }
            for item in response["output"]
            if item["type"] == "function_call"
        ]
        self.input += results or [self._message("user", self.go_on())]
        usage, details = response["usage"], response["usage"]["input_tokens_details"]
        return Turn(usage["input_tokens"], details["cached_tokens"], usage["output_tokens"], details.get("cache_miss"))


class OpenCode(Agent):
    """POST /v1/chat/completions."""

    path = "/v1/chat/completions"

    def __init__(self, task: str, num_chars: int = 20_000, *, forces_calls: bool = False) -> None:
        super().__init__(task, num_chars, forces_calls=forces_calls)
        self.messages: list[dict[str, Any]] = [
            {"role": "system", "content": self.system},
            {"role": "user", "content": task},
        ]

    def body(self) -> dict[str, Any]:
        functions = [
            {"name": f"tool_{index}", "description": text, "parameters": tool_schema(index)}
            for index, text in enumerate(self.descriptions)
        ]
        return {
            "model": "",
            "max_tokens": 512,
            "messages": self.messages,
            "tools": [{"type": "function", "function": function} for function in functions],
            "tool_choice": "required" if self.forces_calls else "auto",
            **({"parallel_tool_calls": False} if self.forces_calls else {}),
            "stream": True,
            "stream_options": {"include_usage": True},
        }

    def take(self, stream: str) -> Turn:
        *events, done, rest = stream.split("\n\n")
        assert (done, rest) == ("data: [DONE]", "")
        chunks = [json.loads(event.removeprefix("data: ")) for event in events]
        deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
        message: dict[str, Any] = {
            "role": "assistant",
            "content": "".join(delta.get("content") or "" for delta in deltas),
        }
        if calls := _put_calls_together(deltas):
            message["tool_calls"] = calls
        self.num_turns += 1
        results = [
            {"role": "tool", "tool_call_id": call["id"], "content": self.result_of(call["id"])} for call in calls
        ]
        self.messages += [message, *(results or [{"role": "user", "content": self.go_on()}])]
        usage = chunks[-1]["usage"]
        details = usage["prompt_tokens_details"]
        return Turn(
            usage["prompt_tokens"], details["cached_tokens"], usage["completion_tokens"], details.get("cache_miss")
        )


def _put_calls_together(deltas: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    calls: list[dict[str, Any]] = []
    for part in (part for delta in deltas for part in delta.get("tool_calls", [])):
        if "id" in part:
            calls.append({"id": part["id"], "type": "function", "function": {**part["function"], "arguments": ""}})
        calls[part["index"]]["function"]["arguments"] += part["function"].get("arguments", "")
    return calls


AGENTS: tuple[type[Agent], ...] = (ClaudeCode, Codex, OpenCode)
