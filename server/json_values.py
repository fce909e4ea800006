"""Values of a parsed JSON body, read as what they must be: what they are not is a 400 that names the place.

Null equals absent at every level. Knows no parameter by name.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from orcinus.engine.errors import InvalidRequestError
from orcinus.server.errors import shown

MAX_NAME_CHARS = 100  # of a name that a client made up, where it is shown


def without_nulls(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is stated."""
    return {name: value for name, value in values.items() if value is not None}


def read_object(value: Any, where: str) -> dict[str, Any]:
    """Return an object, less what is null in it. Raises `InvalidRequestError` for anything else."""
    if not isinstance(value, dict):
        raise InvalidRequestError(f"{where} must be an object, got {shown(value)}", where)
    return without_nulls(value)


def read_string(item: Mapping[str, Any], name: str, where: str) -> str:
    """Return the string that an object has by this name. Raises `InvalidRequestError` if there is none."""
    value = item.get(name)
    if not isinstance(value, str):
        raise InvalidRequestError(f"{where}.{name} must be a string, got {shown(value)}", f"{where}.{name}")
    return value


def path_of(place: str, steps: Iterable[str | int]) -> str:
    """Return the place of a part: `a.b[0]` for the steps `"b", 0` from `a`."""
    for step in steps:
        place += f"[{step}]" if isinstance(step, int) else f".{step[:MAX_NAME_CHARS]}"
    return place.lstrip(".")
