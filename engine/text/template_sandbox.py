"""Charges a chat template for what it does in the server's own process: for time, and for what it makes.

A template is a program that comes with a model, and what it runs over comes from clients. Here it may do what is known
to take time and memory in proportion to its input, within an allowance. Anything else raises `UnboundedCostError`, and
is done in `engine.text.template_process` (decision 23). A thread cannot be stopped from outside, so the template's own
code asks at every turn of a loop and at every call whether it may go on. Knows jinja, and nothing of messages.
"""

import contextlib
import functools
import itertools
import json
import time
import types
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import Any, NoReturn

from jinja2 import Undefined
from jinja2.runtime import Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from orcinus.engine.errors import InvalidRequestError
from orcinus.engine.text.json_object import JsonObject

MAX_RENDER_S = 5.0
_MAX_UNITS = 2**26  # characters made, and
_NODE = 64  # what an entry of a list or a call counts for
_MAX_UNITS_IN_TIME_LIMIT = 2**21
_MAX_BITS = 4096  # of a number
_MAX_LAYOUT = 256  # characters, each of which may make as many
_MAX_DIGITS = 1000  # in a text that is read as a number
_MAX_INDENT = 8
_MAX_SEPARATOR = 4
_NUM_PIECES = 1000  # of JSON, made at a time


class RenderLimitError(InvalidRequestError):
    """Rendering took too long or made too much."""


class UnboundedCostError(RenderLimitError):
    """The template does what may take any time and memory, or has used up its allowance."""


class _Allowance:
    """Counts what is left to one rendering."""

    __slots__ = ("deadline", "limit_s", "units")

    def __init__(self, deadline: float, limit_s: float, units: int) -> None:
        self.deadline = deadline
        self.limit_s = limit_s
        self.units = units


# When it ends, and how long it is.
_time_limit: ContextVar[tuple[float, float] | None] = ContextVar("time_limit", default=None)
_allowance: ContextVar[_Allowance] = ContextVar("allowance")


@contextlib.contextmanager
def time_limit(limit_s: float) -> Iterator[None]:
    """Limit the time of what is rendered within: it raises `RenderLimitError` then, and for what has unbounded costs.

    Of two limits, one within the other, the one that ends first counts.
    """
    limit = time.monotonic() + limit_s, limit_s
    token = _time_limit.set(min(_time_limit.get() or limit, limit))
    try:
        yield
    finally:
        _time_limit.reset(token)


def has_time_limit() -> bool:
    return _time_limit.get() is not None


@contextlib.contextmanager
def allowance() -> Iterator[None]:
    """Give what is done within, one rendering or one compilation, a fresh allowance."""
    longest, limit = (time.monotonic() + MAX_RENDER_S, MAX_RENDER_S), _time_limit.get()
    deadline, limit_s = longest if limit is None else min(limit, longest)
    token = _allowance.set(_Allowance(deadline, limit_s, _MAX_UNITS if limit is None else _MAX_UNITS_IN_TIME_LIMIT))
    try:
        yield
    finally:
        _allowance.reset(token)


class _OpaqueNamespace(Namespace):
    """A namespace whose text is short: jinja's writes what is in it, and what is in that, as often as it is met."""

    def __repr__(self) -> str:
        return "<Namespace>"


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """A sandbox in which templates of `engine.text.bounded_template` keep to their `allowance`."""

    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%", "**"})

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.globals["namespace"] = _OpaqueNamespace
        known = {name: make(self.filters[name]) for name, make in _FILTERS.items()}
        self.filters = dict.fromkeys(self.filters, _refuse) | known | _OPERATIONS
        self._functions = {self.globals["range"], _OpaqueNamespace}

    def allow(self, name: str, function: Callable[..., Any]) -> None:
        """Let templates call a function that is quick and makes little."""
        self.globals[name] = function
        self._functions.add(function)

    @property
    def may_go_on(self) -> bool:
        """True, or it raises. As an attribute it costs a loop little."""
        self.check_time()
        return True

    def check_time(self) -> None:
        left = _allowance.get()
        if time.monotonic() > left.deadline:
            raise RenderLimitError(
                f"the chat template took longer than {left.limit_s:g} s on these messages", "messages"
            )

    @staticmethod
    def concat(pieces: Iterable[str]) -> str:
        """Join what jinja joins, a whole text or that of a macro or a block, and charge for it piece by piece."""
        left, kept = _allowance.get(), []
        for piece in pieces:
            left.units -= len(piece) + 8
            if left.units < 0:
                _refuse()
            kept.append(piece)
        return "".join(kept)

    def call(self, context: Context, target: Any, /, *args: Any, **kwargs: Any) -> Any:
        self.check_time()
        _charge(_NODE)
        if type(target) is types.BuiltinMethodType:
            for variables in _SCOPES:
                kwargs.pop(variables, None)
            return _call_method(target, args, kwargs)
        if not self._is_known(target):
            _refuse()
        return super().call(context, target, *args, **kwargs)

    def _is_known(self, target: Any) -> bool:
        """Return whether what is called is charged for all that it does."""
        if type(target) is Macro:
            return not (target.catch_varargs or target.catch_kwargs)
        if type(target) is types.MethodType:
            return type(target.__self__) is LoopContext
        return isinstance(target, (LoopContext, Undefined)) or (callable(target) and target in self._functions)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if not (isinstance(left, (int, float)) and isinstance(right, (int, float))):
            _charge(_size_of_result(operator, left, right))
        elif operator == "*" and left.__class__ is right.__class__ is int:
            _check_number(left.bit_length() + right.bit_length())
        elif operator == "**" and left.__class__ is right.__class__ is int:
            _check_number(left.bit_length() * right)
        return self.binop_table[operator](left, right)


def _refuse(*args: Any, **kwargs: Any) -> NoReturn:
    raise UnboundedCostError("the chat template makes too much of these messages", "messages")


def _charge(units: int) -> None:
    left = _allowance.get()
    left.units -= units
    if left.units < 0:
        _refuse()


def _check_number(num_bits: float) -> None:
    if num_bits > _MAX_BITS:
        _refuse()


def _charged(value: Any) -> Any:
    """Charge for what was made in time proportional to what it was made of."""
    if isinstance(value, str):
        _charge(len(value))
    elif isinstance(value, (list, tuple, dict)):
        _charge(_NODE * len(value))
    return value


def _charged_container(value: Any) -> Any:
    """Charge for a list, tuple or dict with all that is in it, to which later operations may come."""
    _charge_for_all_of(value)
    return value


def _joined(*values: Any) -> str:
    return BoundedEnvironment.concat(map(str, values))


_OPERATIONS: dict[str, Callable[..., Any]] = {"~": _joined, "[:]": _charged, "[]": _charged_container}


def _charge_for_all_of(value: Any) -> None:
    """Charge for each entry as often as it is met: the text of entries that are the same grows without end."""
    pending: list[Any] = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, str):
            _charge(len(item))
        elif isinstance(item, _SEQUENCES):
            _charge(_NODE * len(item))
            pending += item
        elif isinstance(item, dict):
            _charge(_NODE * len(item))
            pending += [*item.keys(), *item.values()]
        elif item is not None and not isinstance(item, _SIMPLE):
            _refuse()


_SEQUENCES: tuple[type[Any], ...] = (list, tuple, type({}.keys()), type({}.values()), type({}.items()))
_SIMPLE = (int, float, range, Undefined, Namespace, Macro)
_LISTS = (list, tuple)
_TEXTS = (str, JsonObject)
_SCOPES = ("_loop_vars", "_block_vars")  # given to every call, for functions that ask for the context


def _size_of_result(operator: str, left: Any, right: Any) -> int:
    """Return the size of what an operation makes whose operands are not both numbers."""
    if operator == "+":
        return _size_of_sum(left, right)
    if operator == "*" and isinstance(left, str) and isinstance(right, int):
        return len(left) * max(right, 0)
    if isinstance(left, Undefined) or isinstance(right, Undefined):
        return 0  # it says so itself
    return _refuse()


def _size_of_sum(left: Any, right: Any) -> int:
    if isinstance(left, JsonObject) or isinstance(right, JsonObject):
        return len(str(left)) + len(str(right)) if isinstance(left, _TEXTS) and isinstance(right, _TEXTS) else 0
    if isinstance(left, str) and isinstance(right, str):
        return len(left) + len(right)
    if isinstance(left, _LISTS) and isinstance(right, _LISTS):
        _charge_for_all_of([left, right])
    return 0  # of others there is none


def _call_method(method: Any, args: Any, kwargs: Any) -> Any:
    owner = method.__self__
    cost = _METHODS.get((dict if type(owner) is JsonObject else type(owner), method.__name__))
    if cost is None:
        _refuse()
    if method.__name__ == "join" and len(args) == 1:
        return _join(owner, _charged_items(args[0]))
    _charge(cost(owner, *args, **kwargs))
    return method(*args, **kwargs)


def _nothing(owner: Any, *args: Any, **kwargs: Any) -> int:
    return 0


def _copy(text: str, *args: Any, **kwargs: Any) -> int:
    return len(text)


def _parts(text: str, sep: Any = None, *args: Any, **kwargs: Any) -> int:
    return len(text) + _NODE * (text.count(sep) if isinstance(sep, str) else len(text) // 2)


def _replaced(text: str, old: Any, new: Any, *args: Any) -> int:
    return len(text) + (text.count(old) * len(new) if isinstance(old, str) and isinstance(new, str) else 0)


_TEXT_METHODS: dict[str, Callable[..., int]] = {
    **dict.fromkeys(("startswith", "endswith", "find", "rfind", "index", "rindex", "count"), _nothing),
    **dict.fromkeys(("isalpha", "isdigit", "isnumeric", "isalnum", "isspace", "islower", "isupper"), _nothing),
    **dict.fromkeys(("strip", "lstrip", "rstrip", "removeprefix", "removesuffix"), _copy),
    **dict.fromkeys(("lower", "upper", "capitalize", "title", "swapcase", "casefold"), _copy),
    **dict.fromkeys(("split", "rsplit", "splitlines", "partition", "rpartition"), _parts),
    "replace": _replaced,
    "join": _copy,
}
_METHODS: dict[tuple[type, str], Callable[..., int]] = {
    **{(str, name): cost for name, cost in _TEXT_METHODS.items()},
    **{(dict, name): _nothing for name in ("get", "items", "keys", "values")},
    **{(list, name): _nothing for name in ("index", "count")},
}


def _charged_items(items: Iterable[Any]) -> Iterator[Any]:
    for item in items:
        _charge(_NODE)
        yield item


def _join(separator: str, items: Iterable[Any]) -> str:
    texts = list(items)
    _charge(sum(len(text) for text in texts if isinstance(text, str)) + len(separator) * len(texts))
    return separator.join(texts)


def _metered(own: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a filter whose result is in proportion to its input."""

    @functools.wraps(own)
    def metered(*args: Any, **kwargs: Any) -> Any:
        return _charged(own(*args, **kwargs))

    return metered


def _lazy(own: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a filter that takes its input piece by piece, as its output is taken."""

    @functools.wraps(own)
    def lazy(passed: Any, value: Any, *args: Any, **kwargs: Any) -> Any:
        return own(passed, _charged_items(value), *args, **kwargs)

    return lazy


def _mapped(own: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `map`, which may take an attribute of each or a filter without arguments: others make much of each."""

    @functools.wraps(own)
    def mapped(passed: Any, value: Any, *args: Any, **kwargs: Any) -> Any:
        if len(args) + len(kwargs) != 1:
            _refuse()
        return own(passed, _charged_items(value), *args, **kwargs)

    return mapped


def _plain(own: Callable[..., Any]) -> Callable[..., Any]:
    return own


def _joining(own: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(own)
    def joining(passed: Any, value: Any, d: Any = "", **kwargs: Any) -> str:
        if kwargs or not isinstance(d, str):
            _refuse()
        return _join(d, map(str, _charged_items(value)))

    return joining


def _replacing(own: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(own)
    def replacing(passed: Any, value: Any, old: Any, new: Any, *args: Any, **kwargs: Any) -> Any:
        text = str(value) if isinstance(value, JsonObject) else value
        if not (isinstance(text, str) and isinstance(old, str) and isinstance(new, str)):
            _refuse()
        _charge(_replaced(text, old, new))
        return own(passed, text, old, new, *args, **kwargs)

    return replacing


def _reading(own: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(own)
    def reading(value: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(value, str) and len(value) > _MAX_DIGITS:
            _refuse()
        return own(value, *args, **kwargs)

    return reading


def metered_strftime(own: Callable[[str], str]) -> Callable[[str], str]:
    def strftime_now(layout: str) -> str:
        if len(layout) > _MAX_LAYOUT:
            _refuse()
        return own(layout)

    return strftime_now


def metered_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Do as `json.dumps`, which may be asked to make much of little."""
    if not (indent is None or (isinstance(indent, int) and indent <= _MAX_INDENT)):
        _refuse()
    if separators is not None and max(map(len, separators)) > _MAX_SEPARATOR:
        _refuse()
    encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    if indent is None:
        return str(_charged(encoder.encode(value)))
    text, pieces = "", encoder.iterencode(value)
    while some := "".join(itertools.islice(pieces, _NUM_PIECES)):
        _charge(len(some))
        text += some
    return text


_FILTERS: dict[str, Callable[[Callable[..., Any]], Callable[..., Any]]] = {
    **dict.fromkeys(("length", "count", "first", "last", "default", "d", "abs", "items", "min", "max"), _plain),
    **dict.fromkeys(("trim", "upper", "lower", "capitalize", "title", "string", "safe", "escape", "e"), _metered),
    **dict.fromkeys(("list", "sort", "dictsort", "reverse"), _metered),
    **dict.fromkeys(("select", "reject", "selectattr", "rejectattr", "unique"), _lazy),
    "map": _mapped,
    "join": _joining,
    "replace": _replacing,
    "int": _reading,
    "float": _reading,
}
