"""The ways in which models write calls, by name, and which of them a chat template speaks of."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from orcinus.server.reading.incoming_text import IncomingText, Reading
from orcinus.server.reading.tools import bare_json, key_values, pythonic, recipients, sections, tagged_json, xml_calls
from orcinus.server.reading.tools.bare_json import TAG
from orcinus.server.reading.tools.begun_calls import BegunCalls, TokenId
from orcinus.server.reading.tools.call_writer import CallWriter
from orcinus.server.reading.tools.families import find_family
from orcinus.server.reading.tools.lark import Terminal
from orcinus.server.reading.tools.mistral import Mistral
from orcinus.server.reading.tools.openai import OpenAI
from orcinus.server.reading.tools.request import ToolUse
from orcinus.server.reading.tools.traits import Streaming, Strictness


class ToolFormat(Protocol):
    """One way of writing calls.

    `markers` are what has to stay in the text for `read` to find them; of these, `openings` begin calls. An answer can
    have several calls if it `is_parallel`.
    """

    @property
    def name(self) -> str: ...

    @property
    def is_parallel(self) -> bool: ...

    @property
    def streaming(self) -> Streaming: ...

    @property
    def strictness(self) -> Strictness: ...

    @property
    def markers(self) -> tuple[str, ...]: ...

    @property
    def openings(self) -> tuple[str, ...]: ...

    def new_call_id(self) -> str: ...

    def suited_to(self, template: str) -> "ToolFormat": ...

    def sample(self) -> str:
        """Return a call of `f` with `x` = 1, for those who want to see the format."""

    def read(self, text: IncomingText, writer: CallWriter, tool_use: ToolUse) -> Reading[None]:
        """Read an answer to its end, and write down what it says."""

    def grammar_rules(self, tool_use: ToolUse, terminal: Terminal) -> str:
        """Return Lark rules of which `calls` is what the model has to write. Raises `InvalidRequestError`."""

    def begun_calls(self, tool_use: ToolUse, token_id: TokenId, prompt_tail: str) -> BegunCalls:
        """Return what calls are to be where none is required: whatever `read` takes for a call has an opening.

        Raises `InvalidRequestError`.
        """


_ENTRIES: Sequence[ToolFormat] = (
    tagged_json.HERMES,
    bare_json.LLAMA3_JSON,
    Mistral(),
    OpenAI(),
    pythonic.PYTHONIC,
    tagged_json.APERTUS,
    tagged_json.COHERE_COMMAND,
    sections.DEEPSEEK_V3,
    sections.DEEPSEEK_V31,
    xml_calls.DEEPSEEK_V32,
    xml_calls.DEEPSEEK_V4,
    xml_calls.DEEPSEEK_V41,
    xml_calls.DOTS,
    sections.FUNCTIONARY,
    recipients.FUNCTIONARY_V32,
    key_values.FUNCTIONGEMMA,
    key_values.GEMMA4,
    xml_calls.GLM45,
    tagged_json.GRANITE,
    tagged_json.GRANITE_20B_FC,
    tagged_json.HUNYUAN,
    sections.HUNYUAN_DENSE,
    xml_calls.HY_V3,
    tagged_json.INTERNLM,
    sections.KIMI_K2,
    pythonic.LFM2,
    tagged_json.LONGCAT,
    xml_calls.LONGCAT_2,
    xml_calls.MIMO,
    xml_calls.MINIMAX_M2,
    tagged_json.NEMOTRON,
    pythonic.OLMO3,
    tagged_json.PHI4_MINI,
    xml_calls.QWEN3_CODER,
    xml_calls.SEED_OSS,
    xml_calls.STEP3,
    bare_json.XLAM,
)
FORMATS: Mapping[str, ToolFormat] = {form.name: form for form in _ENTRIES}
FRAMING = frozenset({recipients.FUNCTIONARY_V32.name})  # those that frame all of an answer, whether it may call or not
FORMAT_NAMES = tuple(FORMATS)
SILENT_MARKERS = frozenset({TAG})  # openings that are no text either, whatever follows them


def find_format(template: str) -> ToolFormat | None:
    """Return the format that a chat template asks for; None where it has no sign of one that is read here."""
    family = find_family(template)
    return named_format(family, template) if family is not None and family in FORMATS else None


def named_format(name: str, template: str) -> ToolFormat:
    """Return a format by its name, in the variant that suits the template."""
    return FORMATS[name].suited_to(template)
