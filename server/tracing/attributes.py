"""What spans say of a request: the attributes of OpenTelemetry's GenAI conventions (v0.1.0) and of those for HTTP.

The GenAI conventions have spans for clients alone; a server's has the same attributes, and those of an HTTP server's.
Values come from a body that nobody has checked yet: what has another type than the conventions say is left out.
"""

from collections.abc import Mapping
from typing import Any

from starlette.types import Scope

from orcinus.config.addresses import parse_host
from orcinus.server.tracing.parents import header_values

Value = str | bool | int | float | list[str]

PROVIDER = "orcinus"  # a value of our own, as the conventions allow

_MAX_INT = 2**63 - 1  # the wire has 64 bits
_MAX_CHARS = 256
_MAX_STOPS = 16
_DEFAULT_PORTS = {"http": 80, "https": 443}

_FLOATS = {
    "temperature": "gen_ai.request.temperature",
    "top_p": "gen_ai.request.top_p",
    "frequency_penalty": "gen_ai.request.frequency_penalty",
    "presence_penalty": "gen_ai.request.presence_penalty",
}
# Names of one thing in several APIs, in the order in which they count.
_INTS = {
    "gen_ai.request.max_tokens": ("max_completion_tokens", "max_output_tokens", "max_tokens"),
    "gen_ai.request.top_k": ("top_k",),
    "gen_ai.request.seed": ("seed",),
    "gen_ai.embeddings.dimension.count": ("dimensions",),
}


def operation_attributes(operation: str) -> dict[str, Value]:
    """Return what every span of a request has."""
    return {"gen_ai.operation.name": operation, "gen_ai.provider.name": PROVIDER}


def request_attributes(body: Mapping[str, Any]) -> dict[str, Value]:
    """Return what the client asks for, where it says so."""
    found: dict[str, Value] = {}
    for name, attribute in _FLOATS.items():
        if (number := _number(body.get(name))) is not None:
            found[attribute] = float(number)
    for attribute, names in _INTS.items():
        numbers = [number for name in names if (number := _integer(body.get(name))) is not None]
        if numbers:
            found[attribute] = numbers[0]
    found |= _choice_count(body) | _texts(body)
    if body.get("stream") is True:
        found["gen_ai.request.stream"] = True
    return found


def http_attributes(scope: Scope, route: str, client: str | None) -> dict[str, Value]:
    """Return what the head of an HTTP request says."""
    found: dict[str, Value] = {
        "http.request.method": scope["method"],
        "http.route": route,
        "url.path": plain(scope["path"]),
        "url.scheme": scope["scheme"],
        "network.protocol.version": scope["http_version"],
        **_server(scope),
    }
    if client is not None:
        found["client.address"] = client
    if agents := header_values(scope, b"user-agent"):
        found["user_agent.original"] = agents[0].decode("latin-1")[:_MAX_CHARS]
    return found


def plain(text: str) -> str:
    """Return a text that can be sent, whatever is in it, cut where it is long."""
    return text[:_MAX_CHARS].encode("utf-8", "replace").decode()


def _server(scope: Scope) -> dict[str, Value]:
    """Return the host that the client asked, or the socket on which it did."""
    hosts = header_values(scope, b"host")
    try:
        host = parse_host(hosts[0].decode("latin-1")) if hosts else None
    except ValueError:
        host = None
    if host is not None:
        port = host.port or _DEFAULT_PORTS.get(scope["scheme"], 0)
        return {"server.address": host.name, "server.port": port}
    address, number = scope.get("server") or (None, None)
    if address is None:
        return {}
    return {"server.address": address} if number is None else {"server.address": address, "server.port": number}


def _choice_count(body: Mapping[str, Any]) -> dict[str, Value]:
    count = _integer(body.get("n"))
    return {} if count is None or count == 1 else {"gen_ai.request.choice.count": count}


def _texts(body: Mapping[str, Any]) -> dict[str, Value]:
    found: dict[str, Value] = {}
    stops = body.get("stop", body.get("stop_sequences"))
    stops = [stops] if isinstance(stops, str) else stops
    if isinstance(stops, list) and stops and all(isinstance(stop, str) for stop in stops):
        found["gen_ai.request.stop_sequences"] = [plain(stop) for stop in stops[:_MAX_STOPS]]
    effort = body.get("reasoning_effort", _part(body, "reasoning", "effort"))
    if isinstance(effort, str):
        found["gen_ai.request.reasoning.level"] = plain(effort)
    kind = _part(body, "response_format", "type") or _part(_part(body, "text", "format"), "type")
    if kind in ("text", "json_object", "json_schema"):
        found["gen_ai.output.type"] = "text" if kind == "text" else "json"
    if isinstance(encoding := body.get("encoding_format"), str):
        found["gen_ai.request.encoding_formats"] = [plain(encoding)]
    return found


def _part(value: Any, *names: str) -> Any:
    for name in names:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _number(value: Any) -> float | int | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return value if abs(value) <= _MAX_INT else None


def _integer(value: Any) -> int | None:
    number = _number(value)
    return number if isinstance(number, int) else None
