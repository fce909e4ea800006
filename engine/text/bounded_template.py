"""Compiles the source of a chat template: with bounds built in, or without any for a process that may be lost.

Both give a template what transformers gives it. Built in are questions to the sandbox: at every turn of a loop whether
the template may go on, and of what is made without a call what it costs. What the answers are is a matter of
`engine.text.template_sandbox`. Knows nothing of messages.
"""

import json
from collections.abc import Iterable
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from orcinus.engine.text.template_sandbox import BoundedEnvironment, allowance, metered_json, metered_strftime

_OPTIONS: dict[str, Any] = {
    "trim_blocks": True,
    "lstrip_blocks": True,
    "extensions": ["jinja2.ext.loopcontrols"],
}


def bounded_template(source: str) -> Template:
    """Compile a template that keeps to its `allowance`. Raises `jinja2.TemplateSyntaxError`."""
    environment = _bounded_environment()
    with allowance():  # jinja computes what is constant
        template = environment.parse(source)
        _Bounding().visit(template)
        template.set_environment(environment)
        return environment.from_string(template)


def unbounded_template(source: str) -> Template:
    """Compile a template that is bounded by nothing but its process. Raises `jinja2.TemplateSyntaxError`."""
    return _unbounded_environment().from_string(source)


class _Bounding(NodeTransformer):
    """Passes what makes something without a call through one of the sandbox's operations, a filter of that name."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802  (jinja's names)
        self.generic_visit(node)
        may_go_on = nodes.EnvironmentAttribute("may_go_on", lineno=node.lineno)
        if node.test is not None:
            node.test = nodes.And(may_go_on, node.test, lineno=node.lineno)
        node.body.insert(0, nodes.ExprStmt(may_go_on, lineno=node.lineno))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _through_filter("~", node.nodes[0], node.nodes[1:])

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _through_filter("[:]", node) if isinstance(node.arg, nodes.Slice) else node

    def visit_List(self, node: nodes.List) -> nodes.Node:  # noqa: N802
        return self._visit_entries(node, node.items)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:  # noqa: N802
        return self._visit_entries(node, node.items) if node.ctx == "load" else node

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:  # noqa: N802
        return self._visit_entries(node, [pair.value for pair in node.items])

    def _visit_entries(self, node: nodes.Expr, entries: list[nodes.Expr]) -> nodes.Node:
        self.generic_visit(node)
        return node if all(isinstance(entry, nodes.Const) for entry in entries) else _through_filter("[]", node)


def _through_filter(name: str, node: nodes.Expr, others: Iterable[nodes.Expr] = ()) -> nodes.Filter:
    return nodes.Filter(node, name, [*others], [], None, None, lineno=node.lineno)


def _unbounded_environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(**_OPTIONS)
    environment.add_extension(_GenerationTag)
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _bounded_environment() -> BoundedEnvironment:
    environment = BoundedEnvironment(**_OPTIONS)
    environment.add_extension(_GenerationTag)
    environment.filters["tojson"] = metered_json
    environment.allow("raise_exception", _raise_exception)
    environment.allow("strftime_now", metered_strftime(_strftime_now))
    return environment


class _GenerationTag(Extension):
    """`{% generation %}…{% endgeneration %}` marks what a model said, for training. Here it is only a scope."""

    tags = {"generation"}  # noqa: RUF012  (jinja2 declares it so)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(layout: str) -> str:
    return datetime.now().astimezone().strftime(layout)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Write JSON as transformers does: jinja2's own filter escapes HTML, which a prompt is not."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
