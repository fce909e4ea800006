"""Calls as JSON objects between two tags: a list of them, as Granite, Phi, Hunyuan, Nemotron, Command, Apertus write.

<tool_calls>[{"name": "get_weather", "arguments": {"city": "Paris"}}]</tool_calls>
<|START_ACTION|>[{"tool_call_id": "0", "tool_name": "get_weather", "parameters": {"city": "Paris"}}]<|END_ACTION|>
<|tools_prefix|>[{"get_weather": {"city": "Paris"}}]<|tools_suffix|>

Or each object between tags of its own, as Hermes 2 Pro, Qwen 2.5 and 3, LongCat and InternLM write:

<tool_call>
{"name": "get_weather", "arguments": {"city": "Paris"}}
</tool_call>

Text may stand before, between and after them. Whichever a model was trained on, a list and several objects in one pair
of tags are both read, and so is what is fenced as code there.
"""

from dataclasses import dataclass
from typing import ClassVar

from orcinus.engine.sampling_params import Opening
from orcinus.server.reading.incoming_text import IncomingText, Reading
from orcinus.server.reading.tools.begun_calls import BegunCalls, TokenId, after, begin_with, one_call, terminal_by
from orcinus.server.reading.tools.call_writer import CallWriter, openai_call_id
from orcinus.server.reading.tools.json_calls import CallRules, read_calls, read_tagged_calls, take_fence
from orcinus.server.reading.tools.lark import Terminal, json_call_rules, quote, repeated
from orcinus.server.reading.tools.request import ToolUse
from orcinus.server.reading.tools.traits import Streaming, Strictness


@dataclass(frozen=True, slots=True)
class TaggedJson:
    """`closing` is empty where the end of the text closes; `other_opening` is one that the model writes too.

    `head` is a token that follows the opening. Without a list, each call has tags of its own, with what `padding` says
    after the opening (and its head) and before the closing one. Without a `name_key` the name is the arguments' key.
    """

    name: str
    opening: str
    closing: str = ""
    name_key: str | None = "name"
    arguments_key: str = "arguments"
    is_list: bool = True
    padding: tuple[str, str] = ("", "")
    head: str = ""
    other_opening: str = ""

    is_parallel: ClassVar[bool] = True
    streaming: ClassVar[Streaming] = "all"
    strictness: ClassVar[Strictness] = "all"

    @property
    def markers(self) -> tuple[str, ...]:
        return tuple(tag for tag in (self.opening, self.closing, self.head, self.other_opening) if tag)

    @property
    def openings(self) -> tuple[str, ...]:
        return (self.opening, self.other_opening) if self.other_opening else (self.opening,)

    def suited_to(self, template: str) -> "TaggedJson":
        return self

    def new_call_id(self) -> str:
        return openai_call_id()

    def sample(self) -> str:
        """Return a call of `f` with `x` = 1."""
        name = "" if self.name_key is None else f'"{self.name_key}": "f", '
        written = f'{{{name}"{"f" if self.name_key is None else self.arguments_key}": {{"x": 1}}}}'
        inside = f"[{written}]" if self.is_list else self.padding[0] + written + self.padding[1]
        return f"{self.opening}{self.head}{inside}{self.closing}"

    def read(self, text: IncomingText, writer: CallWriter, tool_use: ToolUse) -> Reading[None]:
        ends = tuple(tag for tag in (*self.openings, self.closing) if tag)
        rules = CallRules(ends=ends, name_key=self.name_key)

        def read_inside() -> Reading[bool]:
            writer.hold((yield from text.take_if(self.head)))
            writer.hold((yield from text.take_space()))
            if self.closing:
                writer.hold((yield from take_fence(text)))
            return (yield from read_calls(text, writer, rules))

        yield from read_tagged_calls(text, writer, self.openings, self.closing, read_inside)

    def grammar_rules(self, tool_use: ToolUse, terminal: Terminal) -> str:
        rules = json_call_rules(tool_use, self.arguments_key, self.name_key)
        opening = " ".join(terminal(tag) for tag in (self.opening, self.head) if tag)
        closing = f" {terminal(self.closing)}" if self.closing else ""
        if self.is_list:
            objects = repeated("object", quote(", "), tool_use)
            return f'calls: {opening} "[" {objects} "]"{closing}\n{rules}'
        before, after = (f" {quote(padding)}" if padding else "" for padding in self.padding)
        calls = repeated("call", quote("\n"), tool_use)
        return f"calls: {calls}\ncall: {opening}{before} object{after}{closing}\n{rules}"

    def begun_calls(self, tool_use: ToolUse, token_id: TokenId, prompt_tail: str) -> BegunCalls:
        """Return what calls are to be. Without a tag that closes nothing follows: an object further on would be one."""
        has_own_tags = not self.is_list and bool(self.closing)
        rules = self.grammar_rules(one_call(tool_use) if has_own_tags else tool_use, terminal_by(token_id))
        begin = begin_with(token_id, self.opening)
        openings = [Opening((self.opening,), begin)]
        if self.other_opening:  # which stands for the first, with the bracket that it may have
            openings.append(Opening((self.other_opening,), (*begin, *self.other_opening.partition("[")[1])))
        return BegunCalls(rules, after(tool_use, *openings, text_follows=bool(self.closing)))


HERMES = TaggedJson("hermes", "<tool_call>", "</tool_call>", is_list=False, padding=("\n", "\n"))
LONGCAT = TaggedJson("longcat", "<longcat_tool_call>", "</longcat_tool_call>", is_list=False, padding=("\n", "\n"))
INTERNLM = TaggedJson(
    "internlm",
    "<|action_start|>",
    "<|action_end|>",
    arguments_key="parameters",
    is_list=False,
    padding=("\n", ""),
    head="<|plugin|>",
)
GRANITE = TaggedJson("granite", "<|tool_call|>", other_opening="<tool_call>")
GRANITE_20B_FC = TaggedJson("granite_20b_fc", "<function_call>", is_list=False, padding=(" ", ""))
PHI4_MINI = TaggedJson("phi4_mini", "<|tool_call|>", "<|/tool_call|>", other_opening="functools[")
HUNYUAN = TaggedJson("hunyuan", "<tool_calls>", "</tool_calls>")
NEMOTRON = TaggedJson("nemotron", "<TOOLCALL>", "</TOOLCALL>")
COHERE_COMMAND = TaggedJson(
    "cohere_command", "<|START_ACTION|>", "<|END_ACTION|>", name_key="tool_name", arguments_key="parameters"
)
APERTUS = TaggedJson("apertus", "<|tools_prefix|>", "<|tools_suffix|>", name_key=None)
