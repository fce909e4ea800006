"""How a body is validated with pydantic, and what becomes of the errors that pydantic finds.

Null equals absent, numbers are never made from strings, and the first thing that is wrong becomes an
`InvalidRequestError` that names the field, the limit and the value. Knows no body in particular.
"""

import re
from collections.abc import Mapping
from typing import Any, TypeVar, get_args

from annotated_types import MaxLen
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from orcinus.engine.errors import InvalidRequestError
from orcinus.server.errors import shown
from orcinus.server.json_values import path_of
from orcinus.server.requests.left_out import known_fields

Model = TypeVar("Model", bound=BaseModel)

_PYTHON_OBJECT = re.compile("a valid dictionary( or instance of .*)?")


def validate(model: type[Model], values: dict[str, Any]) -> Model:
    values = _known(model, values)
    _check_sizes(model, values)
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise _first_problem(error) from None


def _known(model: type[BaseModel], values: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """Return the values of fields, at every level. Raise for the first name that is none, unless it may be left out.

    pydantic would collect an error for each of a million.
    """
    fields = {field.alias or name: field for name, field in model.model_fields.items()}
    known = known_fields(values, fields, where)
    for name, value in known.items():
        part = _part_model(fields[name])
        if part is not None and isinstance(value, dict):
            known[name] = _known(part, value, path_of(where, [name]))
    return known


def _part_model(field: FieldInfo) -> type[BaseModel] | None:
    """Return the model of a field that is an object with fields of its own."""
    kinds = get_args(field.annotation) or (field.annotation,)
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


def _check_sizes(model: type[BaseModel], values: Mapping[str, Any]) -> None:
    """Check the sizes of lists and objects before pydantic looks at their entries."""
    fields = {field.alias or name: field for name, field in model.model_fields.items()}
    for name, value in values.items():
        limits = [rule.max_length for rule in fields[name].metadata if isinstance(rule, MaxLen)]
        if limits and isinstance(value, (list, dict)) and len(value) > limits[0]:
            raise InvalidRequestError(f"{name} takes at most {limits[0]} entries, got {len(value)}", name)


def _first_problem(error: ValidationError) -> InvalidRequestError:
    problem = error.errors(include_url=False, include_context=False)[0]
    param = path_of("", problem["loc"])
    if problem["type"] == "missing":
        return InvalidRequestError(f"{param} is required", param)
    message = problem["msg"].replace("Input should", "should").replace("should", "must", 1)
    message = _PYTHON_OBJECT.sub("an object", message[:1].lower() + message[1:])
    if problem["type"] == "literal_error":
        message = message.replace("'", '"')
    return InvalidRequestError(f"{param}: {message}, got {shown(problem['input'])}", param)
