"""Request targets of a form that uvicorn takes for none: the server as a whole, and a URL without a path.

Knows RFC 9112 (3.2), and nothing of which paths there are.
"""

SERVER_TARGET = "*"  # what `scope["path"]` is for a request about the server as a whole


def asks_of_server(method: bytes, target: bytes) -> bool:
    """Return whether a request is about the server as a whole, and not about a path: `OPTIONS *`, as a URL too."""
    return method == b"OPTIONS" and (target == SERVER_TARGET.encode() or _is_bare(target))


def with_path(target: bytes) -> bytes:
    """Return a target with the path that is meant where a URL has none."""
    scheme, separator, rest = target.partition(b"://")
    if target.startswith(b"/") or not separator:
        return target
    authority, question, query = rest.partition(b"?")
    return target if b"/" in authority else b"".join([scheme, separator, authority, b"/", question, query])


def _is_bare(target: bytes) -> bool:
    return with_path(target) == target + b"/"
