"""How the values of settings are written and explained: sizes, lists, allowed values, unknown keys.

Knows nothing of which settings there are.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le
from pydantic import BeforeValidator
from pydantic.fields import FieldInfo

from orcinus.config.near_names import near_names

_UNITS = {"": 1} | {
    prefix + suffix: base**power
    for power, prefix in enumerate("kmgt", start=1)
    for base, suffix in ((1000, ""), (1000, "b"), (1024, "i"), (1024, "ib"))
}


_KINDS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text that is not empty",
    tuple: "a list of strings, with commas or as JSON",
    Path: "the path of a file",
}


class SettingsError(ValueError):
    """A setting that is unknown or has a wrong value. The message tells the user what is allowed."""


def parse_bytes(value: Any) -> Any:
    """Return `4GiB`, `512Mi`, `2G`, `1.5GB` or a number as bytes; anything else is left for pydantic to refuse."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", str(value).lower())
    if isinstance(value, bool) or match is None:
        return value
    number, unit = match.groups()
    unit = unit.removesuffix("b") if unit in ("b", "") else unit
    return int(float(number) * _UNITS[unit]) if unit in _UNITS else value


def format_bytes(count: float) -> str:
    """Write a number of bytes as `512 B`, `4 GiB`, `1.5 MiB`."""
    if count < 1024:
        return f"{count:.0f} B"
    power = min(4, (int(count).bit_length() - 1) // 10)
    return f"{round(count / 1024**power, 1):g} {'KMGT'[power - 1]}iB"


def parse_strings(value: Any) -> Any:
    """Read a list written as JSON or with commas, as the environment needs it; a list is left alone."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except ValueError:
            raise ValueError("it begins with [ but is not a JSON list") from None
    return [entry.strip() for entry in value.split(",")]


def parse_names(value: Any) -> Any:
    """Read a list as `parse_strings` does, or one whose entries are such lists themselves; names have no commas."""
    entries = parse_strings(value)
    if not isinstance(entries, (list, tuple)):
        return entries
    return [name.strip() for entry in entries for name in (entry.split(",") if isinstance(entry, str) else [entry])]


def check_keys(keys: Sequence[str], known: Sequence[str], kind: str) -> None:
    """Raise `SettingsError` naming each of `keys` that is not `known`, with what was probably meant."""
    problems = [f"unknown {kind}: {key}; {_suggest(key, known)}" for key in keys if key not in known]
    if problems:
        raise SettingsError("\n".join(problems))


def _suggest(key: str, known: Sequence[str]) -> str:
    close = near_names(key, known)
    return f"did you mean {' or '.join(close)}?" if close else f"known are {', '.join(known)}"


def describe_allowed(field: FieldInfo) -> str:
    """Return which values a setting may have: `one of auto, cpu, cuda`, `a whole number from 1 to 9`."""
    kind = value_kind(field)
    if get_origin(kind) is Literal:
        values = get_args(kind)
        return f"one of {', '.join(values)}" if len(values) > 1 else str(values[0])
    if is_size(field):
        return f"a size such as 4GiB, 512MiB or a number of bytes,{_describe_range(field)}"
    return _KINDS[get_origin(kind) or kind] + _describe_range(field)


def value_kind(field: FieldInfo) -> Any:
    """Return the type of a setting without `None`, `Annotated` and unions."""
    return _strip(field.annotation)


def is_size(field: FieldInfo) -> bool:
    """Whether the setting is a number of bytes that may be written with a unit."""
    return any(isinstance(m, BeforeValidator) and m.func is parse_bytes for m in _metadata(field))


def group_of(field: FieldInfo) -> str:
    return _extra(field, "group")


def metavar_of(field: FieldInfo) -> str:
    """Return what stands for the value in help texts; empty if the name of the setting does."""
    return _extra(field, "metavar")


def format_default(field: FieldInfo) -> str:
    """Return the default as one would write it; empty if there is none, and the help text says what happens."""
    if field.default is None or field.default == ():
        return ""
    if isinstance(field.default, bool):
        return str(field.default).lower()
    if is_size(field):
        return format_bytes(field.default).replace(" ", "")
    if isinstance(field.default, tuple):
        return ",".join(field.default)
    return f"{field.default:g}" if isinstance(field.default, float) else f"{field.default}"


def _extra(field: FieldInfo, key: str) -> str:
    extra = field.json_schema_extra
    return str(extra[key]) if isinstance(extra, dict) else ""


def _strip(kind: Any) -> Any:
    if get_origin(kind) in (Union, UnionType):
        return _strip(next(arg for arg in get_args(kind) if arg is not type(None)))
    return _strip(get_args(kind)[0]) if get_origin(kind) is Annotated else kind


def _metadata(field: FieldInfo) -> list[Any]:
    """Return the annotations of the setting, and of the part of its union that is not `None`."""
    inner = [part for arg in get_args(field.annotation) for part in getattr(arg, "__metadata__", ())]
    return [*field.metadata, *inner]


def _describe_range(field: FieldInfo) -> str:
    low, above, high = (_bound(field, kind, name) for kind, name in ((Ge, "ge"), (Gt, "gt"), (Le, "le")))
    if above is not None:
        return f" above {above}" + ("" if high is None else f" and at most {high}")
    if low is None:
        return ""
    return f" at least {low}" if high is None else f" from {low} to {high}"


def _bound(field: FieldInfo, kind: type, name: str) -> Any:
    return next((getattr(part, name) for part in field.metadata if isinstance(part, kind)), None)
