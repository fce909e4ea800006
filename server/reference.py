"""The pages of `docs/reference/`: tables written from the declarations that the program itself runs on.

    python -m orcinus.server.reference            rewrite the marked part of each page
    python -m orcinus.server.reference --check    exit with 1 if one is out of date

The marked part of the page NAME.md stands between `<!-- NAME:begin -->` and `<!-- NAME:end -->`; what stands around it
is written by hand.
"""

import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, get_origin

from pydantic.fields import FieldInfo

from orcinus.config.arguments import Parser
from orcinus.config.settings import GROUPS, Settings, SettingsError
from orcinus.config.sources import env_name, flag_name
from orcinus.config.values import describe_allowed, format_default, group_of, metavar_of, value_kind
from orcinus.server.exposition.declarations import METRICS
from orcinus.server.exposition.vllm_names import ALIASES, CACHE_CONFIG, CACHE_CONFIG_LABELS, LORA_LABELS, LORA_REQUESTS
from orcinus.server.operations import OPERATIONS
from orcinus.server.reading.format_table import CALLS_HEADER, THOUGHTS_HEADER, call_rows, thought_rows, unread_rows
from orcinus.server.requests.parameters import Endpoint, ParameterRow, parameter_table
from orcinus.server.watching.fields import EVENT_FIELDS

FOLDER = Path("docs/reference")
SUPPORT = (
    ("supported", "Supported", "Meaning"),
    ("ignored", "Accepted without effect", "Why it changes nothing here"),
    ("refused", "Refused with a 400", "Why"),
)


def settings_tables() -> str:
    """Return a table of settings for each group of `orcinus serve --help`."""
    return "\n\n".join(f"## {group}\n\n{_settings_table(group)}" for group in GROUPS)


def metrics_table() -> str:
    """Return a table of the metrics that Orcinus declares itself."""
    rows = [(f"`{spec.name}{_labels(spec.labels)}`", spec.kind, spec.help) for spec in METRICS]
    return table(("Metric", "Kind", "Meaning"), rows)


def vllm_names_table() -> str:
    """Return a table of vLLM's names, and of what each stands for."""
    rows = [
        (f"`{alias.name}{_labels(('model_name', 'engine', *alias.labels))}`", f"`{alias.source}`") for alias in ALIASES
    ]
    rows += [
        (f"`{CACHE_CONFIG}{_labels(CACHE_CONFIG_LABELS)}`", "1; what the KV cache is"),
        (f"`{LORA_REQUESTS}{_labels(LORA_LABELS)}`", "the time; which adapters are ready, where there are some"),
    ]
    return table(("vLLM's name", "What it stands for"), rows)


def metrics_tables() -> str:
    """Return a table of the metrics by their own names, and one by vLLM's."""
    return f"{metrics_table()}\n\n## By vLLM's names\n\n{vllm_names_table()}"


def parameters_tables() -> str:
    """Return a table of request parameters for each kind of support."""
    endpoints = {body.endpoint: body for body in OPERATIONS.bodies if body.endpoint is not None}
    rows = parameter_table(endpoints)
    sections = [
        f"## {title}\n\n{_parameters_table([row for row in rows if row.support == support], list(endpoints), note)}"
        for support, title, note in SUPPORT
    ]
    return "\n\n".join(sections)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def events_table() -> str:
    """Return a table of the fields of an event of GET /events."""
    rows = [
        (f"`{field.name}`", "always" if field.is_always else "where it has changed", field.help)
        for field in EVENT_FIELDS
    ]
    return table(("Field", "There", "Meaning"), rows)


def formats_tables() -> str:
    """Return a table of the ways in which models write calls, and one of those in which they mark thoughts."""
    return "\n\n".join(
        (
            "## Calls",
            table(CALLS_HEADER, call_rows()),
            "Recognized and not read:",
            table(("Format", "Recognized by"), unread_rows()),
            "## Thoughts",
            table(THOUGHTS_HEADER, thought_rows()),
        )
    )


PAGES: Mapping[str, Callable[[], str]] = {
    "parameters": parameters_tables,
    "settings": settings_tables,
    "metrics": metrics_tables,
    "events": events_table,
    "formats": formats_tables,
}


def rewrite(text: str, name: str, content: str) -> str:
    """Return `text` with `content` between its markers. Raises `SettingsError` unless they are there once."""
    pattern = re.compile(rf"(<!-- {name}:begin -->\n).*?(<!-- {name}:end -->)", re.DOTALL)
    new, count = pattern.subn(lambda found: f"{found[1]}{content}\n{found[2]}", text)
    if count != 1:
        raise SettingsError(f"expected one part <!-- {name}:begin --> ... <!-- {name}:end -->, got {count}")
    return new


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(
        "python -m orcinus.server.reference", "[FOLDER] [--check]", "Rewrite the tables of the reference pages."
    )
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER)
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if a page is out of date")
    args = parser.parse(sys.argv[1:] if argv is None else argv)
    is_current = [_update(args.folder / f"{name}.md", make(), is_check=args.check) for name, make in PAGES.items()]
    return 0 if all(is_current) else 1


def _update(page: Path, content: str, *, is_check: bool) -> bool:
    """Rewrite a page, or only report that it is out of date; return whether it is current afterwards."""
    old = page.read_text(encoding="utf-8")
    new = rewrite(old, page.stem, content)
    if new == old:
        return True
    if is_check:
        print(f"{page} is out of date; run: python -m orcinus.server.reference", file=sys.stderr)
        return False
    page.write_text(new, encoding="utf-8")
    return True


def _settings_table(group: str) -> str:
    rows = [
        (
            f"`{_flag(name, field)}`<br>`{env_name(name)}`",
            f"`{format_default(field)}`" if format_default(field) else "",
            f"{field.description}{_allowed(field)}",
        )
        for name, field in Settings.model_fields.items()
        if group_of(field) == group
    ]
    return table(("Flag, variable", "Default", "Meaning"), rows)


def _flag(name: str, field: FieldInfo) -> str:
    """Return the flag and its value's name, where it is not a choice; of a boolean that is on, its negative."""
    kind = value_kind(field)
    if kind is bool:
        return flag_name(f"no_{name}" if field.default else name)
    return flag_name(name) if get_origin(kind) is Literal else f"{flag_name(name)} {metavar_of(field) or name.upper()}"


def _allowed(field: FieldInfo) -> str:
    """Return what the type alone does not tell: a choice, or a range."""
    kind = value_kind(field)
    if get_origin(kind) is not Literal and kind not in (int, float):
        return ""
    return f" Allowed: {describe_allowed(field)}."


def _labels(labels: Sequence[str]) -> str:
    return "{" + ",".join(labels) + "}" if labels else ""


def _parameters_table(rows: Sequence[ParameterRow], endpoints: Sequence[Endpoint], note: str) -> str:
    cells = [(f"`{row.name}`", _places(row.endpoints, endpoints), row.note) for row in rows]
    return table(("Parameter", "Endpoints", note), cells)


def _places(some: Sequence[Endpoint], endpoints: Sequence[Endpoint]) -> str:
    missing = [endpoint for endpoint in endpoints if endpoint not in some]
    if len(missing) > 1:
        return ", ".join(some)
    return f"all but {missing[0]}" if missing else "all"


if __name__ == "__main__":
    sys.exit(main())
