"""Which pages of other origins may read what this server answers (CORS): the layer that says so of the app's answers,
and the headers that say it of those that a connection gives without the app.
"""

from collections.abc import Iterable, Sequence

from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

# Headers of answers that pages of other origins may read.
EXPOSED_HEADERS = (
    "x-request-id",
    "request-id",
    "retry-after",
    "x-should-retry",
    "www-authenticate",
    "allow",
    "x-orcinus-left-out",
)


class OriginPolicy:
    """The origins that were allowed: none, some, or "*" for all."""

    def __init__(self, allowed: Sequence[str] = ()) -> None:
        self._allowed = tuple(allowed)

    def layers(self) -> list[Middleware]:
        """Return the layer that lets their pages call the server. Browsers send no key when they ask."""
        if not self._allowed:
            return []
        layer = Middleware(
            CORSMiddleware,
            allow_origins=self._allowed,
            allow_methods=("GET", "HEAD", "POST", "DELETE"),
            allow_headers=("*",),
            expose_headers=EXPOSED_HEADERS,
            allow_private_network=True,
            max_age=600,
        )
        return [layer]

    def headers(self, request_headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
        """Return the headers of an answer to a request of which no more than these headers are known.

        Where no origin has come, what holds for every page is said; with several that are allowed, nothing does.
        """
        if not self._allowed:
            return {}
        given = [value.decode("latin-1") for name, value in request_headers if name == b"origin"][:1]
        if "*" in self._allowed:
            shown = {"access-control-allow-origin": "*"}
        else:
            origins = self._allowed if len(self._allowed) == 1 and not given else given
            shown = {"access-control-allow-origin": origins[0]} if set(origins) & {*self._allowed} else {}
            shown["vary"] = "Origin"
        return {**shown, "access-control-expose-headers": ", ".join(EXPOSED_HEADERS)}
