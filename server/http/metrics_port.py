"""Which port a request has come in by, where the metrics have one of their own, and what is served there.

The connection marks what comes in by that port, which no client can.
"""

from starlette.types import Scope

from orcinus.server.operations import Operation

_MARK = "orcinus.metrics_port"


def mark_metrics_port(scope: Scope) -> None:
    """Note that a request has come in by the metrics' port."""
    scope[_MARK] = True


def is_served_here(operation: Operation, scope: Scope, *, has_metrics_port: bool) -> bool:
    """Return whether the port that the request has come in by has this operation."""
    if not has_metrics_port:
        return True
    return operation.is_on_metrics_port if _MARK in scope else operation.is_on_main_port
