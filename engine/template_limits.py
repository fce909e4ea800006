"""What rendering a chat template may cost: its time, and the size of what it makes.

A template is a program that comes with a model, and what it runs over comes from clients. A thread cannot be stopped
from outside, so the template's own code asks at every turn of a loop and at every call whether it may go on. Knows
jinja, and nothing of messages.
"""

import contextlib
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import Any

from jinja2 import nodes
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from engine.errors import InvalidRequestError

MAX_RENDER_S = 5.0
MAX_CHARS = 2**25  # of a text, entries of a list, bytes of a number

_WIDTH = re.compile(r"\d{6,}|\*|\{[^{}]*\{")  # six digits, or one that is computed
_PADDING = frozenset({"center", "ljust", "rjust", "zfill", "expandtabs"})
_MAX_PADDING = 10_000


class RenderLimitError(InvalidRequestError):
    """Rendering took too long or made too much."""


_deadline: ContextVar[tuple[float, float]] = ContextVar("deadline", default=(float("inf"), 0.0))  # when, and the limit


@contextlib.contextmanager
def time_limit(limit_s: float) -> Iterator[None]:
    """What is rendered within raises `RenderLimitError` after so long. Of several limits the first to end counts."""
    token = _deadline.set(min(_deadline.get(), (time.monotonic() + limit_s, limit_s)))
    try:
        yield
    finally:
        _deadline.reset(token)


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """A sandbox in which templates made by `bounded_template` keep to the limits."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        del self.globals["lipsum"]  # makes as much text as it is asked for
        self.filters["center"] = _padded(self.filters["center"])
        self.filters["indent"] = _padded(self.filters["indent"])
        self.filters["batch"] = _padded(self.filters["batch"])
        self.filters["format"] = _formatted

    @property
    def may_go_on(self) -> bool:
        """True, or it raises. The one form of a question that costs a loop little."""
        self.check_time()
        return True

    def check_time(self) -> None:
        deadline, limit_s = _deadline.get()
        if time.monotonic() > deadline:
            raise RenderLimitError(f"the chat template took longer than {limit_s:g} s on these messages", "messages")

    @staticmethod
    def concat(pieces: Iterable[str]) -> str:
        """Whatever jinja joins: a whole text, or that of a macro or a block."""
        size = 0
        kept = []
        for piece in pieces:
            size += len(piece)
            _check_size(size)
            kept.append(piece)
        return "".join(kept)

    def join(self, *values: Any) -> str:
        """The operator ~."""
        return self.concat(map(str, values))

    def call(self, context: Context, target: Any, /, *args: Any, **kwargs: Any) -> Any:
        self.check_time()
        if getattr(target, "__name__", "") in _PADDING:
            _check_padding(args, kwargs)
        return super().call(context, target, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        _check_operation(operator, left, right)
        return super().call_binop(context, operator, left, right)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped is not None:
            _check_layout(value.__self__)
        return wrapped


def bounded_template(environment: BoundedEnvironment, source: str) -> nodes.Template:
    """The source with the questions built in, for `environment.from_string`. Raises `jinja2.TemplateSyntaxError`."""
    template = environment.parse(source)
    _Bounding().visit(template)
    template.set_environment(environment)
    return template


class _Bounding(NodeTransformer):
    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802  (jinja's names)
        self.generic_visit(node)
        may_go_on = nodes.EnvironmentAttribute("may_go_on", lineno=node.lineno)
        node.body.insert(0, nodes.ExprStmt(may_go_on, lineno=node.lineno))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        join = nodes.EnvironmentAttribute("join", lineno=node.lineno)
        return nodes.Call(join, node.nodes, [], None, None, lineno=node.lineno)


def _check_operation(operator: str, left: Any, right: Any) -> None:
    """How large the result is going to be, where that could be much."""
    if operator == "%" and isinstance(left, str):
        _check_layout(left)
    elif operator == "+":
        _check_size(_size(left) + _size(right))
    elif operator == "**" and isinstance(left, int) and isinstance(right, int):
        _check_size(_size(left) * right)
    elif operator == "*":
        _check_size(_product_size(left, right))


def _product_size(left: Any, right: Any) -> int:
    if isinstance(left, int) and isinstance(right, int):
        return _size(left) + _size(right)
    times = next((factor for factor in (left, right) if isinstance(factor, int)), 0)
    return times * max(_size(factor) for factor in (left, right) if not isinstance(factor, int))


def _size(value: Any) -> int:
    if isinstance(value, int):
        return value.bit_length() // 8 + 1
    return len(value) if isinstance(value, (str, bytes, list, tuple)) else 0


def _check_size(size: int) -> None:
    if size > MAX_CHARS:
        raise RenderLimitError(
            f"the chat template makes more than {MAX_CHARS} characters of these messages", "messages"
        )


def _check_layout(layout: str) -> None:
    if (match := _WIDTH.search(layout)) is not None:
        raise RenderLimitError(f"the chat template formats with the width {match[0][:20]!r}", "messages")


def _check_padding(args: Iterable[Any], kwargs: dict[str, Any]) -> None:
    for value in (*args, *kwargs.values()):
        if isinstance(value, int) and value > _MAX_PADDING:
            raise RenderLimitError(f"the chat template pads to more than {_MAX_PADDING} characters", "messages")


def _padded(pad: Callable[..., Any]) -> Callable[..., Any]:
    def padded(value: Any, *args: Any, **kwargs: Any) -> Any:
        _check_padding(args, kwargs)
        return pad(value, *args, **kwargs)

    return padded


def _formatted(layout: Any, *args: Any, **kwargs: Any) -> str:
    _check_layout(str(layout))
    return str(layout) % (kwargs or args)
