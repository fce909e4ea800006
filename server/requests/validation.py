"""How a body is validated with pydantic, and what becomes of the errors that pydantic finds.

Null equals absent, numbers are never made from strings, and the first thing that is wrong becomes an
`InvalidRequestError` that names the field, the limit and the value. Knows no body in particular.
"""

import re
from collections.abc import Mapping
from typing import Any, TypeVar, get_args

from annotated_types import MaxLen
from pydantic import BaseModel, ValidationError

from orcinus.engine.errors import InvalidRequestError
from orcinus.server.errors import shown
from orcinus.server.json_values import without_nulls
from orcinus.server.requests.left_out import may_leave_out

Model = TypeVar("Model", bound=BaseModel)

_PYTHON_OBJECT = re.compile("a valid dictionary( or instance of .*)?")


def validate(model: type[Model], values: dict[str, Any]) -> Model:
    values = _check_names(model, values)
    _check_sizes(model, values)
    for name, value in values.items():
        part = _part_model(model, name)
        if part is not None and isinstance(value, dict):
            values[name] = _check_names(part, without_nulls(value), f"{name}.")
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise _first_problem(error) from None


def _part_model(model: type[BaseModel], name: str) -> type[BaseModel] | None:
    """Return the model of a field that is an object with fields of its own."""
    kinds = get_args(model.model_fields[name].annotation)
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


def _check_names(model: type[BaseModel], values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of fields. Raise for the first name that is none, unless it may be left out.

    pydantic would collect an error for each of a million.
    """
    for name in values:
        if name not in model.model_fields and not may_leave_out(prefix + name):
            raise InvalidRequestError(f"unknown parameter {prefix + name[:100]!r}", prefix + name[:100])
    return {name: value for name, value in values.items() if name in model.model_fields}


def _check_sizes(model: type[BaseModel], values: Mapping[str, Any]) -> None:
    """Check the sizes of lists and objects before pydantic looks at their entries."""
    for name, value in values.items():
        limits = [rule.max_length for rule in model.model_fields[name].metadata if isinstance(rule, MaxLen)]
        if limits and isinstance(value, (list, dict)) and len(value) > limits[0]:
            raise InvalidRequestError(f"{name} takes at most {limits[0]} entries, got {len(value)}", name)


def _first_problem(error: ValidationError) -> InvalidRequestError:
    problem = error.errors(include_url=False, include_context=False)[0]
    param = _path(problem["loc"])
    if problem["type"] == "missing":
        return InvalidRequestError(f"{param} is required", param)
    message = problem["msg"].replace("Input should", "should").replace("should", "must", 1)
    message = _PYTHON_OBJECT.sub("an object", message[:1].lower() + message[1:])
    if problem["type"] == "literal_error":
        message = message.replace("'", '"')
    return InvalidRequestError(f"{param}: {message}, got {shown(problem['input'])}", param)


def _path(location: tuple[int | str, ...]) -> str:
    """Return `messages[0].role` for `("messages", 0, "role")`."""
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part[:100]}"
    return path.lstrip(".")
