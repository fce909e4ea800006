"""The reference tables of the README, written from the declarations that the program itself runs on.

    python -m orcinus.server.reference            rewrite the marked sections of README.md
    python -m orcinus.server.reference --check    exit with 1 if they are out of date

A section is what stands between `<!-- NAME:begin -->` and `<!-- NAME:end -->`.
"""

import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from orcinus.config.arguments import Parser
from orcinus.config.settings import GROUPS, Settings, SettingsError
from orcinus.config.sources import env_name, flag_name
from orcinus.config.values import describe_allowed, format_default, group_of, value_kind
from orcinus.server.metrics import METRICS
from orcinus.server.requests.bodies import ChatBody, CompletionBody, EmbeddingBody, MessagesBody, ResponseBody
from orcinus.server.requests.parameters import Endpoint, parameter_table


def settings_table() -> str:
    """All settings, in the groups of `orcinus serve --help`."""
    rows = [
        (
            f"`{name}`",
            f"`{_flag(name)}`",
            f"`{env_name(name)}`",
            f"`{format_default(field)}`" if format_default(field) else "",
            f"{field.description}{_allowed(field)}",
        )
        for group in GROUPS
        for name, field in Settings.model_fields.items()
        if group_of(field) == group
    ]
    return table(("YAML key", "Flag", "Environment", "Default", "Meaning"), rows)


def metrics_table() -> str:
    """All metrics of /metrics that are ours."""
    rows = [
        (f"`{spec.name}`", spec.kind, ", ".join(f"`{label}`" for label in spec.labels), spec.help) for spec in METRICS
    ]
    return table(("Metric", "Kind", "Labels", "Meaning"), rows)


def parameters_table() -> str:
    """All request parameters that have a decision, the unsupported ones included."""
    endpoints: Mapping[Endpoint, type[BaseModel]] = {
        "completions": CompletionBody,
        "chat": ChatBody,
        "responses": ResponseBody,
        "messages": MessagesBody,
        "embeddings": EmbeddingBody,
    }
    rows = [(f"`{row.name}`", row.support, ", ".join(row.endpoints), row.note) for row in parameter_table(endpoints)]
    return table(("Parameter", "Support", "Endpoints", "Note"), rows)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


SECTIONS: Mapping[str, Callable[[], str]] = {
    "settings": settings_table,
    "metrics": metrics_table,
    "parameters": parameters_table,
}


def rewrite(text: str, sections: Mapping[str, Callable[[], str]] = SECTIONS) -> str:
    """`text` with the content of every section made anew. Raises `SettingsError` for a section without markers."""
    for name, make in sections.items():
        pattern = re.compile(rf"(<!-- {name}:begin -->\n).*?(<!-- {name}:end -->)", re.DOTALL)
        content = make().replace("\\", r"\\")
        text, count = pattern.subn(rf"\g<1>{content}\n\g<2>", text)
        if count != 1:
            raise SettingsError(f"expected one section <!-- {name}:begin --> ... <!-- {name}:end -->, got {count}")
    return text


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(
        "python -m orcinus.server.reference", "[FILE] [--check]", "Rewrite the reference tables of the README."
    )
    parser.add_argument("file", nargs="?", type=Path, default=Path("README.md"))
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if out of date")
    args = parser.parse(sys.argv[1:] if argv is None else argv)
    old = args.file.read_text(encoding="utf-8")
    new = rewrite(old)
    if new == old:
        return 0
    if args.check:
        print(f"{args.file} is out of date; run: python -m orcinus.server.reference", file=sys.stderr)
        return 1
    args.file.write_text(new, encoding="utf-8")
    return 0


def _allowed(field: FieldInfo) -> str:
    """What the type alone does not tell: a choice, or a range."""
    kind = value_kind(field)
    if get_origin(kind) is not Literal and kind not in (int, float):
        return ""
    return f" Allowed: {describe_allowed(field)}."


def _flag(name: str) -> str:
    """A boolean that is on is of interest for its negative."""
    is_on = value_kind(Settings.model_fields[name]) is bool and Settings.model_fields[name].default
    return flag_name(f"no_{name}" if is_on else name)


if __name__ == "__main__":
    sys.exit(main())
