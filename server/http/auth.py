"""API keys: which are valid now, and the ASGI layer that lets nobody past without one.

The layer stands before everything that reads a body. It looks at `scope["path"]` alone: URL and Host header are the
client's to choose.
"""

import hashlib
import hmac
import logging

from starlette.types import ASGIApp, Receive, Scope, Send

from orcinus.config.settings import Settings
from orcinus.config.text_files import TextFileError
from orcinus.server.errors import AuthenticationError
from orcinus.server.http.answers import error_response
from orcinus.server.operations import OperationTable

logger = logging.getLogger(__name__)

_NAME_BYTES = 8  # of a key's digest: enough to tell clients apart


class KeyRing:
    """The valid keys. Those of `api_key_file` are read again when the file changes.

    While the file cannot be read, the keys known before stay valid. Raises `OSError` or `TextFileError` if it cannot be
    read at start.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stamp = self._read_stamp()
        self._digests = self._read_digests()

    @property
    def is_needed(self) -> bool:
        return self._settings.is_key_needed

    def check(self, authorization: str | None, api_key: str | None = None) -> str:
        """Return the client's name, made of its key. Raises `AuthenticationError` unless a header holds a valid key.

        `authorization` is "Bearer KEY", `api_key` (x-api-key, which clients of Anthropic's API send) the key alone.
        Some send both, one of them a placeholder: either may be the valid one.
        """
        if authorization is None and api_key is None:
            raise AuthenticationError("an API key is needed: send 'Authorization: Bearer KEY' or 'x-api-key: KEY'")
        digests = [_digest(key) for key in (_bearer_key(authorization), api_key) if key is not None]
        valid = [digest for digest in digests if self._is_valid(digest)]
        if not valid:
            raise AuthenticationError("the API key is not valid")
        return valid[0][:_NAME_BYTES].hex()

    def _is_valid(self, digest: bytes) -> bool:
        """Compare with every key, and digests, which have one length, so that the time taken tells nothing."""
        self._reload()
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        return any(matches)

    def _reload(self) -> None:
        try:
            stamp = self._read_stamp()
            if stamp == self._stamp:
                return
            self._digests = self._read_digests()
        except (OSError, TextFileError) as error:
            logger.warning("cannot read the API key file, its last keys stay valid: %s", error)
            return
        self._stamp = stamp
        logger.info("API key file read again: %d keys are valid", len(self._digests))

    def _read_stamp(self) -> tuple[int, int, int] | None:
        if self._settings.api_key_file is None:
            return None
        status = self._settings.api_key_file.stat()
        return status.st_mtime_ns, status.st_size, status.st_ino

    def _read_digests(self) -> list[bytes]:
        return [_digest(key) for key in self._settings.read_api_keys()]


class AuthMiddleware:
    """Answers 401 to every HTTP request without a valid key, except for the operations that need none.

    Leaves the client's name in the state of what it lets pass.
    """

    def __init__(self, app: ASGIApp, keys: KeyRing, operations: OperationTable) -> None:
        self._app = app
        self._keys = keys
        self._operations = operations

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._keys.is_needed and not self._operations.is_public(scope["path"]):
            try:
                keys = _header(scope, b"authorization"), _header(scope, b"x-api-key")
                scope["state"]["client"] = self._keys.check(*keys)
            except AuthenticationError as error:
                await error_response(error, scope)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _header(scope: Scope, wanted: bytes) -> str | None:
    """Return the header's value, if there is one and not more: which of two would count cannot be known."""
    values = [value for name, value in scope["headers"] if name == wanted]
    return values[0].decode("latin-1").strip() if len(values) == 1 else None


def _bearer_key(authorization: str | None) -> str | None:
    scheme, _, key = (authorization or "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else None


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
