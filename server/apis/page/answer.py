"""GET / and the files of that page: plain HTML, CSS and JavaScript modules, which need nothing outside this server.

Nothing here needs a key: the page asks for one, and sends it with what it asks the API.
"""

from collections.abc import Callable
from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, Response

_FOLDER = Path(__file__).parent
_PAGE = (_FOLDER / "page.html").read_bytes()
_METRICS_LINK = b'    <a href="metrics">Metrics</a>\n'
_MEDIA_TYPES = {".css": "text/css", ".js": "text/javascript"}
FILES = {
    f"/page/{file.name}": _MEDIA_TYPES[file.suffix]
    for file in sorted([_FOLDER / "style.css", *(_FOLDER / "scripts").glob("*.js")])
}
_FILE_HEADERS = {"cache-control": "no-cache", "x-content-type-options": "nosniff"}  # asked for again, by its ETag
_PAGE_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    **_FILE_HEADERS,
    "referrer-policy": "no-referrer",
}


def page(request: Request) -> Response:
    """Return the page; where the metrics have a port of their own, without the link to them."""
    content = _PAGE.replace(_METRICS_LINK, b"") if request.app.state.has_metrics_port else _PAGE
    return Response(content, headers=_PAGE_HEADERS, media_type="text/html")


def page_file(path: str) -> Callable[[Request], Response]:
    """Return what answers with one of `FILES`."""
    name = path.rpartition("/")[2]
    file = _FOLDER / name if path.endswith(".css") else _FOLDER / "scripts" / name

    def respond(request: Request) -> Response:
        return FileResponse(file, headers=_FILE_HEADERS, media_type=FILES[path])

    return respond
