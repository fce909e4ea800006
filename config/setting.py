"""How one setting is declared: its default, its group in the reference, its help and what its value may be."""

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import BeforeValidator, Field
from pydantic.config import JsonDict
from pydantic_settings import NoDecode

from orcinus.config.values import parse_bytes, parse_names, parse_strings

Strings = Annotated[tuple[str, ...], NoDecode, BeforeValidator(parse_strings)]
Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(parse_names)]
Bytes = Annotated[int, BeforeValidator(parse_bytes)]

GROUPS = {
    "Model": "what is served",
    "Engine": "how it runs; what is not set is chosen for the model and the device",
    "Server": "how it is reached",
    "General": "where settings come from and what is logged",
}


def setting(default: Any, group: str, help_text: str, metavar: str = "", **constraints: Any) -> Any:
    """Declare a field of `Settings`, in one of `GROUPS`."""
    extra: JsonDict = {"group": group, "metavar": metavar}
    return Field(default, description=help_text, json_schema_extra=extra, **constraints)


def parsed(parse: Callable[[str], str], entry: str) -> str:
    """Return an entry in its one form. Raises `ValueError` that shows it."""
    try:
        return parse(entry)
    except ValueError as error:
        raise ValueError(f"{error}, got {entry[:100]!r}") from None


def without_empty(entries: tuple[str, ...]) -> tuple[str, ...]:
    """Return the entries as they are. Raises `ValueError` if one is empty."""
    if not all(entries):
        raise ValueError("an entry is empty")
    return entries
