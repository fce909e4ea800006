"""The ways in which models write calls, by name, and which of them a chat template speaks of."""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from orcinus.server.reading.incoming_text import IncomingText, Reading
from orcinus.server.reading.tools import sections, tagged_json, xml_calls
from orcinus.server.reading.tools.begun_calls import BegunCalls, TokenId
from orcinus.server.reading.tools.call_writer import CallWriter
from orcinus.server.reading.tools.families import find_family
from orcinus.server.reading.tools.hermes import Hermes
from orcinus.server.reading.tools.lark import Terminal
from orcinus.server.reading.tools.llama3_json import TAG, Llama3Json
from orcinus.server.reading.tools.mistral import Mistral
from orcinus.server.reading.tools.openai import OpenAI
from orcinus.server.reading.tools.pythonic import Pythonic
from orcinus.server.reading.tools.request import ToolUse


class ToolFormat(Protocol):
    """One way of writing calls.

    `markers` are what has to stay in the text for `read` to find them; of these, `openings` begin calls.
    """

    @property
    def name(self) -> str: ...

    @property
    def markers(self) -> tuple[str, ...]: ...

    @property
    def openings(self) -> tuple[str, ...]: ...

    def new_call_id(self) -> str: ...

    def suited_to(self, template: str) -> "ToolFormat": ...

    def read(self, text: IncomingText, writer: CallWriter, tool_use: ToolUse) -> Reading[None]:
        """Read an answer to its end, and write down what it says."""

    def grammar_rules(self, tool_use: ToolUse, terminal: Terminal) -> str:
        """Return Lark rules of which `calls` is what the model has to write. Raises `InvalidRequestError`."""

    def begun_calls(self, tool_use: ToolUse, token_id: TokenId, prompt_tail: str) -> BegunCalls:
        """Return what calls are to be where none is required: whatever `read` takes for a call has an opening.

        Raises `InvalidRequestError`.
        """


_OTHERS: Sequence[ToolFormat] = (
    tagged_json.COHERE_COMMAND,
    sections.DEEPSEEK_V3,
    sections.DEEPSEEK_V31,
    xml_calls.GLM45,
    tagged_json.GRANITE,
    tagged_json.HUNYUAN,
    sections.KIMI_K2,
    xml_calls.MINIMAX_M2,
    tagged_json.NEMOTRON,
    tagged_json.PHI4_MINI,
    xml_calls.QWEN3_CODER,
    xml_calls.SEED_OSS,
)
_FORMATS: Mapping[str, Callable[[str], ToolFormat]] = {
    "hermes": Hermes.suited_to,
    "llama3_json": Llama3Json.suited_to,
    "mistral": Mistral.suited_to,
    "openai": OpenAI.suited_to,
    "pythonic": Pythonic.suited_to,
    **{form.name: form.suited_to for form in _OTHERS},
}
FORMAT_NAMES = tuple(_FORMATS)
SILENT_MARKERS = frozenset({TAG})  # openings that are no text either, whatever follows them


def find_format(template: str) -> ToolFormat | None:
    """Return the format that a chat template asks for; None where it has no sign of one that is read here."""
    family = find_family(template)
    return named_format(family, template) if family is not None and family in _FORMATS else None


def named_format(name: str, template: str) -> ToolFormat:
    """Return a format by its name, in the variant that suits the template."""
    return _FORMATS[name](template)
