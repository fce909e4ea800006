"""The ways in which models write calls, by name, and which of them a chat template speaks of."""

import re
from collections.abc import Mapping
from typing import ClassVar, Protocol

from orcinus.server.reading.incoming_text import IncomingText, Reading
from orcinus.server.reading.tools.call_writer import CallWriter
from orcinus.server.reading.tools.hermes import Hermes
from orcinus.server.reading.tools.lark import Terminal
from orcinus.server.reading.tools.llama3_json import Llama3Json
from orcinus.server.reading.tools.mistral import Mistral
from orcinus.server.reading.tools.pythonic import Pythonic
from orcinus.server.reading.tools.request import ToolUse


class ToolFormat(Protocol):
    """One way of writing calls. `markers` are what has to stay in the text for `read` to find them."""

    name: ClassVar[str]
    markers: ClassVar[tuple[str, ...]]

    def new_call_id(self) -> str: ...

    def read(self, text: IncomingText, writer: CallWriter, tool_use: ToolUse) -> Reading[None]:
        """Read an answer to its end, and write down what it says."""

    def grammar_rules(self, tool_use: ToolUse, terminal: Terminal) -> str:
        """Return Lark rules of which `calls` is what the model has to write. Raises `InvalidRequestError`."""


# In this order: some templates have the signs of two of them.
_FORMATS: Mapping[str, type[Hermes] | type[Mistral] | type[Pythonic] | type[Llama3Json]] = {
    "mistral": Mistral,
    "hermes": Hermes,
    "pythonic": Pythonic,
    "llama3_json": Llama3Json,
}
FORMAT_NAMES = tuple(_FORMATS)

_OTHER_FORMATS = ("<function=", "<|channel|>")  # Qwen 3 Coder's XML, in tags like Hermes', and Harmony
_TOOLS = re.compile(r"\btools\b")


def find_format(template: str) -> ToolFormat | None:
    """Return the format that a chat template asks for; Hermes' if it has tools and says nothing that is known here."""
    if any(sign in template for sign in _OTHER_FORMATS):
        return None
    for kind in _FORMATS.values():
        if found := kind.find(template):
            return found
    return Hermes() if _TOOLS.search(template) else None


def named_format(name: str, template: str) -> ToolFormat:
    """Return the format that the operator named, in the variant that suits the template."""
    kind = _FORMATS[name]
    return kind.find(template) or kind()
