"""Whether a response template reads what a format of ours makes the model write, found out by reading an example.

Grammars are written by our formats: one that the template does not read would make the model write what nobody
understands.
"""

from collections.abc import Sequence

from orcinus.server.reading.message_reader import join_pieces
from orcinus.server.reading.pieces import Content, Piece, Reasoning, ToolCallArguments, ToolCallStart
from orcinus.server.reading.response_template import ResponseTemplate
from orcinus.server.reading.thought_tags import HARMONY, TAGS
from orcinus.server.reading.tools.bare_json import BareJson
from orcinus.server.reading.tools.formats import ToolFormat
from orcinus.server.reading.tools.key_values import KeyValues
from orcinus.server.reading.tools.mistral import ARGUMENTS, CALL_ID, CALLS, Mistral
from orcinus.server.reading.tools.openai import OpenAI
from orcinus.server.reading.tools.pythonic import Pythonic
from orcinus.server.reading.tools.recipients import Recipients
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
        case TaggedJson():
            text = _tagged(form)
        case XmlCalls():
            text = _tags(form)
        case Sections():
            text = _section(form)
        case OpenAI():
            text = f"<|channel|>commentary to=functions.f <|constrain|>json<|message|>{_ARGUMENTS}"
        case Mistral():
            call_id = f"{CALL_ID}abcdefghi" if form.has_call_ids else ""
            text = f"{CALLS}f{call_id}{ARGUMENTS}{_ARGUMENTS}" if form.names_first else f"{CALLS}[{_object()}]"
        case BareJson():
            written = _object(arguments_key=form.arguments_key)
            text = f"[{written}]" if form.is_list else written
        case Pythonic():
            opening, closing = form.tags if form.is_tagged else ("", "")
            text = f'{opening}{form.brackets[0]}f(x="y"){form.brackets[1]}{closing}'
        case KeyValues():
            text = f"{form.tags[0]}call:f{{x:{form.mark}y{form.mark}}}{form.tags[1]}"
        case Recipients():
            text = f"f\n{_ARGUMENTS}"
    return text


def _section(form: Sections) -> str:
    head = f"functions.f:0{form.separator}" if form.has_ids else f"f{form.separator}"
    if form.kind:
        head = f"{form.kind}{form.separator}f"
    call = f"{form.call[0]}{head}{form.fence[0]}{_ARGUMENTS}{form.fence[1]}{form.call[1]}"
    return f"{form.section[0]}{call}{form.section[1]}"


def _tagged(form: TaggedJson) -> str:
    call = _object(form.name_key, form.arguments_key)
    inside = f"[{call}]" if form.is_list else f"{form.padding[0]}{call}{form.padding[1]}"
    return f"{form.opening}{form.head}{inside}{form.closing}"


def _object(name_key: str | None = "name", arguments_key: str = "arguments") -> str:
    return f'{{"f": {_ARGUMENTS}}}' if name_key is None else f'{{"{name_key}": "f", "{arguments_key}": {_ARGUMENTS}}}'


def _tags(form: XmlCalls) -> str:
    key = f"{form.key[0]}x{form.typed[0] or form.key[1]}{form.gap if form.value[0] else ''}"
    value = f"{form.value[0]}{form.newline}y{form.newline}{form.value[1]}{form.gap}"
    before, after = form.frame
    call = f"{''.join(before)}{form.function[0]}f{form.function[1]}{form.gap}{key}{value}{form.function_end}{after}"
    gap = form.gap if form.is_nested else ""
    head, tail = (tag and form.gap for tag in (form.function[0], form.function_end))
    return f"{form.section[0]}{gap or head}{call}{gap or tail}{form.section[1]}"


def _thought_and_answer(reasoning: str) -> str:
    if reasoning == HARMONY:
        start = "<|channel|>analysis<|message|>x<|end|><|start|>assistant"
        return f"{start}<|channel|>final<|message|>y"
    tags = TAGS[reasoning]
    opening, closing = tags.answer or ("", "")
    return f"{tags.opening}\nx\n{tags.closing}\n\n{opening}y{closing}"
