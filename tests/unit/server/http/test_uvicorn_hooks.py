"""Which methods of uvicorn's protocol are overridden: uvicorn promises none of them, so a release that changes one
fails here."""

import inspect

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from orcinus.server.http.connection import BoundedProtocol

# Each method that is overridden, with its parameters.
HOOKS: dict[str, list[str]] = {
    "connection_made": ["transport"],
    "connection_lost": ["exc"],
    "data_received": ["data"],
    "eof_received": [],
    "pause_writing": [],
    "resume_writing": [],
    "on_message_begin": [],
    "on_url": ["url"],
    "on_header": ["name", "value"],
    "on_headers_complete": [],
    "on_body": ["body"],
    "on_message_complete": [],
    "on_response_complete": [],
    "send_400_response": ["msg"],
    "timeout_keep_alive_handler": [],
}


def parameters(kind: type, name: str) -> list[str]:
    _, *rest = inspect.signature(getattr(kind, name)).parameters.values()
    return [parameter.name for parameter in rest if parameter.default is parameter.empty]


def test_what_is_overridden_is_uvicorns_own_and_has_the_signature_that_is_expected() -> None:
    own = [name for name, value in vars(BoundedProtocol).items() if inspect.isfunction(value)]
    assert {name for name in own if hasattr(HttpToolsProtocol, name)} - {"__init__"} == HOOKS.keys()
    for name, expected in HOOKS.items():
        assert parameters(HttpToolsProtocol, name) == expected, name
        assert parameters(BoundedProtocol, name) == expected, name
