"""Python's literals as JSON, for models that write calls as Python: read, never run."""

import ast
import json
import warnings
from typing import Any, NoReturn

_JSON_NAMES = {"true": True, "false": False, "null": None}


def to_json(source: str) -> str | None:
    """Return the JSON text of a literal (string, number, list, tuple, dictionary, `true`, ...); None if it is none.

    What is JSON already stays as it is.
    """
    try:
        return source.strip() if _is_json(source) else _dump(_read(source))
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None


def _is_json(source: str) -> bool:
    try:
        json.loads(source, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return False
    return True


def _read(source: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python's about escapes like \d, which are taken as they stand
        return _value(ast.parse(source.strip(), mode="eval").body)


def _value(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value=str() | int() | float() | None as value):
            return value
        case ast.Name(id=name) if name in _JSON_NAMES:
            return _JSON_NAMES[name]
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
            return -number
        case ast.List(elts=elements) | ast.Tuple(elts=elements):
            return [_value(element) for element in elements]
        case ast.Dict(keys=keys, values=values):
            return {_key(key): _value(value) for key, value in zip(keys, values, strict=True)}
    raise ValueError("not a literal")


def _key(node: ast.expr | None) -> str:
    match node:
        case ast.Constant(value=str() as key):
            return key
    raise ValueError("not the name of a member")


def _dump(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    # Half a surrogate pair cannot be sent but as an escape; two halves become one character again.
    return text if _can_encode(text) else json.dumps(value, allow_nan=False)


def _can_encode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
