"""The tables of docs/reference/formats.md: how models write calls and thoughts, told by what reads them."""

from collections.abc import Iterator, Mapping, Sequence

from orcinus.config.parser_names import REASONING_PARSER_ALIASES, TOOL_CALL_PARSER_ALIASES
from orcinus.server.reading.thought_tags import HARMONY, SIGNS, TAGS, THINK
from orcinus.server.reading.tools.families import FAMILIES
from orcinus.server.reading.tools.formats import FORMATS
from orcinus.server.reading.tools.traits import Streaming, Strictness

CALLS_HEADER = (
    "`--tool-call-parser`",
    "Models, among others",
    "A call",
    "Recognized by",
    "Parallel calls",
    "Reasoning",
    "Strict",
    "Streamed",
    "vLLM's names for it",
)
THOUGHTS_HEADER = ("`--reasoning-parser`", "Thoughts", "The answer", "Recognized by", "vLLM's names for it")

_STRICT: Mapping[Strictness, str] = {
    "all": "the whole schema",
    "arguments": "each argument",
    "strings as written": "each argument; of strings `enum` and `const`",
}
_STREAMED: Mapping[Streaming, str] = {"all": "as it is written", "strings": "strings as written, other values whole"}


def call_rows() -> Iterator[Sequence[str]]:
    """Yield a row for each format that is read, in the order of their names' declaration."""
    families = {family.name: family for family in FAMILIES}
    for name, form in FORMATS.items():
        family = families[name]
        signs = " or ".join(map(_code, family.signs))
        yield (
            _code(name),
            family.models,
            _code(form.sample()),
            " with ".join([signs, *map(_code, family.beside)]),
            "yes" if form.is_parallel else "no",
            _code(name if name in TAGS or name == HARMONY else THINK.name),
            _STRICT[form.strictness],
            _STREAMED[form.streaming],
            _aliases(name, TOOL_CALL_PARSER_ALIASES),
        )


def unread_rows() -> Iterator[Sequence[str]]:
    """Yield a row for each way of writing calls that is recognized and not read."""
    for family in FAMILIES:
        if family.name not in FORMATS:
            signs = " or ".join(map(_code, family.signs))
            yield _code(family.name), " with ".join([signs, *map(_code, family.beside)])


def thought_rows() -> Iterator[Sequence[str]]:
    """Yield a row for each way of marking thoughts."""
    for name, tags in TAGS.items():
        answer = tags.answer or ("", "")
        seen_in = " with ".join(_code(tag) for tag in (tags.opening, answer[0]) if tag)
        yield (
            _code(name),
            _code(f"{tags.opening}…{tags.closing}"),
            _code("…".join(answer)) if tags.answer else "",
            _signs_of(name) or seen_in,
            _aliases(name, REASONING_PARSER_ALIASES),
        )
    yield (
        _code(HARMONY),
        "the channel `analysis`",
        "the channel `final`",
        _signs_of(HARMONY),
        _aliases(HARMONY, REASONING_PARSER_ALIASES),
    )


def _signs_of(name: str) -> str:
    return " or ".join(_code(sign) for sign, named in SIGNS if named == name)


def _aliases(name: str, aliases: Mapping[str, str]) -> str:
    return ", ".join(_code(alias) for alias, meant in aliases.items() if meant == name)


def _code(text: str) -> str:
    shown = text.replace("\n", "↵")
    return f"`` {shown} ``" if "`" in shown else f"`{shown}`"
