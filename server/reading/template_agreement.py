"""Whether a response template reads what a format of ours makes the model write, found out by reading an example.

Grammars are written by our formats: one that the template does not read would make the model write what nobody
understands.
"""

from collections.abc import Sequence

from orcinus.server.reading.message_reader import join_pieces
from orcinus.server.reading.pieces import Content, Piece, Reasoning, ToolCallArguments, ToolCallStart
from orcinus.server.reading.response_template import ResponseTemplate
from orcinus.server.reading.thought_tags import HARMONY, TAGS
from orcinus.server.reading.tools.formats import ToolFormat
from orcinus.server.reading.tools.hermes import Hermes
from orcinus.server.reading.tools.llama3_json import Llama3Json
from orcinus.server.reading.tools.mistral import ARGUMENTS, CALL_ID, CALLS, Mistral
from orcinus.server.reading.tools.openai import OpenAI
from orcinus.server.reading.tools.pythonic import Pythonic
from orcinus.server.reading.tools.request import Tool, ToolUse
from orcinus.server.reading.tools.sections import Sections
from orcinus.server.reading.tools.tagged_json import TaggedJson
from orcinus.server.reading.tools.xml_calls import XmlCalls

_ARGUMENTS = '{"x": "y"}'
_TOOL = Tool("f", None, {"type": "object", "properties": {"x": {"type": "string"}}, "required": ["x"]}, strict=False)
_USE = ToolUse((_TOOL,), "auto", None, parallel=True, raw=[])


def reads_calls_of(template: ResponseTemplate, form: ToolFormat) -> bool:
    """Return whether the template reads a call as the format's grammar has it."""
    text = _call(form)
    match _read(template, text, _USE) if template.has_calls and text else ():
        case [ToolCallStart(name="f"), ToolCallArguments(text=arguments)]:
            return arguments.replace(" ", "") == _ARGUMENTS.replace(" ", "")
    return False


def reads_thoughts_of(template: ResponseTemplate, reasoning: str) -> bool:
    """Return whether the template reads a thought and an answer, as `reasoning` names the way of marking them."""
    return _read(template, _thought_and_answer(reasoning), None) == [Reasoning("x"), Content("y")]


def _read(template: ResponseTemplate, text: str, use: ToolUse | None) -> Sequence[Piece]:
    reader = template.reader("", use)
    return join_pieces([*reader.feed(text), *reader.finish()])


def _call(form: ToolFormat) -> str:
    """Return a call of `f` with the arguments `_ARGUMENTS`, as the grammar of the format writes it."""
    text = ""
    match form:
        case Hermes():
            text = f"<tool_call>\n{_object()}\n</tool_call>"
        case TaggedJson():
            text = f"{form.opening}[{_object(form.name_key, form.arguments_key)}]{form.closing}"
        case XmlCalls():
            text = _tags(form)
        case Sections():
            text = _section(form)
        case OpenAI():
            text = f"<|channel|>commentary to=functions.f <|constrain|>json<|message|>{_ARGUMENTS}"
        case Mistral():
            call_id = f"{CALL_ID}abcdefghi" if form.has_call_ids else ""
            text = f"{CALLS}f{call_id}{ARGUMENTS}{_ARGUMENTS}" if form.names_first else f"{CALLS}[{_object()}]"
        case Llama3Json():
            text = _object(arguments_key="parameters")
        case Pythonic():
            text = '[f(x="y")]'
    return text


def _section(form: Sections) -> str:
    name = "functions.f:0" if form.has_ids else "f"
    head = f"function{form.separator}f\n```json\n" if form.is_fenced else f"{name}{form.separator}"
    tail = "\n```" if form.is_fenced else ""
    return f"{form.section[0]}{form.call[0]}{head}{_ARGUMENTS}{tail}{form.call[1]}{form.section[1]}"


def _object(name_key: str = "name", arguments_key: str = "arguments") -> str:
    return f'{{"{name_key}": "f", "{arguments_key}": {_ARGUMENTS}}}'


def _tags(form: XmlCalls) -> str:
    key = f"{form.key[0]}x{form.key[1]}{form.gap if form.value[0] else ''}"
    value = f"{form.value[0]}{form.newline}y{form.newline}{form.value[1]}{form.gap}"
    head = f"{form.section[0]}{form.gap if form.function[0] else ''}{form.function[0]}f{form.function[1]}{form.gap}"
    return f"{head}{key}{value}{form.function_end}{form.gap if form.function_end else ''}{form.section[1]}"


def _thought_and_answer(reasoning: str) -> str:
    if reasoning == HARMONY:
        start = "<|channel|>analysis<|message|>x<|end|><|start|>assistant"
        return f"{start}<|channel|>final<|message|>y"
    tags = TAGS[reasoning]
    opening, closing = tags.answer or ("", "")
    return f"{tags.opening}\nx\n{tags.closing}\n\n{opening}y{closing}"
