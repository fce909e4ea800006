"""API keys: which are valid now, and the ASGI layer that lets nobody past without one.

The layer stands before everything that reads a body. It looks at `scope["path"]` alone: URL and Host header are the
client's to choose.
"""

import asyncio
import hashlib
import hmac
import logging
import time

from starlette.types import ASGIApp, Receive, Scope, Send

from orcinus.config.api_keys import ApiKey
from orcinus.config.limits import ClientLimits
from orcinus.config.settings import Settings, SettingsError
from orcinus.server.caller_key import on_behalf_of_key
from orcinus.server.errors import AuthenticationError
from orcinus.server.http.answers import error_response
from orcinus.server.operations import OperationTable

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0  # at the key file
WAIT_S = 1.0  # for the file, by requests that come while it is looked at

Stamp = tuple[int, int, int]


class KeyRing:
    """The valid keys. Those of `api_key_file` are read again when it changes, in a thread: it may be on a slow volume.

    While the file cannot be read, the keys known before stay valid. Raises `SettingsError` if it cannot be read at
    start, or has a key that no client could send.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._default_limits = settings.limits_per_key
        self._stamp = self._read_stamp()
        try:
            self._keep(settings.read_api_keys())
        except ValueError as error:
            raise SettingsError(f"api_key_file: {error}") from None
        self._next_look = self._wait_until = 0.0
        self._looking: asyncio.Task[None] | None = None
        self._problem = ""

    @property
    def is_needed(self) -> bool:
        return self._settings.is_key_needed

    def limits_of(self, client: str) -> ClientLimits:
        """Return what a client may have: the limits of its key, and those of all where it has none."""
        return self._limits.get(client, self._default_limits)

    def check(self, authorization: bytes | None, api_key: bytes | None = None) -> ApiKey:
        """Return the key that was sent. Raises `AuthenticationError` unless a header holds a valid one.

        `authorization` is "Bearer KEY", `api_key` (x-api-key, which clients of Anthropic's API send) the key alone.
        Some send both, one of them a placeholder: either may be the valid one.
        """
        if authorization is None and api_key is None:
            raise AuthenticationError("an API key is needed: send 'Authorization: Bearer KEY' or 'x-api-key: KEY'")
        given = [key for key in (_bearer_key(authorization), api_key) if key is not None]
        known = [key for sent in given for digest in _digests(sent) if (key := self._find(digest)) is not None]
        if not known:
            raise AuthenticationError("the API key is not valid")
        now = time.time()
        valid = [key for key in known if key.expires_at is None or now < key.expires_at]
        if not valid:
            raise AuthenticationError("the API key has expired")
        return valid[0]

    def _find(self, digest: bytes) -> ApiKey | None:
        """Return the key that has this digest.

        Compares with every key, and digests, which have one length, so that the time taken tells nothing.
        """
        matches = [known for known in self._keys if hmac.compare_digest(digest, known.digest)]
        return matches[0] if matches else None

    async def look(self) -> None:
        """Read the keys again if their file has changed, at most once a second; wait for no slow volume twice."""
        if self._settings.api_key_file is None:
            return
        now = time.monotonic()
        if self._looking is None and now >= self._next_look:
            self._next_look = now + LOOK_EVERY_S
            self._wait_until = now + WAIT_S
            self._looking = asyncio.create_task(self.reload(), name="look at the key file")
            self._looking.add_done_callback(self._on_looked)
        if self._looking is not None:
            await asyncio.wait({self._looking}, timeout=max(self._wait_until - now, 0))

    async def reload(self, *, is_forced: bool = False) -> None:
        """Read the keys again if their file has changed, or in any case."""
        if self._settings.api_key_file is None:
            logger.info("there is no API key file to read again")
            return
        try:
            read = await asyncio.to_thread(self._read_anew, is_forced)
        except (OSError, ValueError) as error:  # ValueError: it is no text, or has a key that cannot be sent
            if (problem := str(error)) != self._problem:  # once, however many requests come
                logger.warning("cannot read the API key file, its last keys stay valid: %s", problem)
            self._problem = problem
            return
        self._problem = ""
        if read is not None:
            self._stamp = read[0]
            self._keep(read[1])
            count = len({known.digest for known in self._keys})
            level = logging.INFO if count else logging.WARNING
            logger.log(
                level, "API keys read again: %d are valid%s", count, "" if count else ", and every request is a 401"
            )

    def _on_looked(self, _: asyncio.Task[None]) -> None:
        self._looking = None

    def _keep(self, keys: tuple[ApiKey, ...]) -> None:
        self._keys = keys
        self._limits = {key.client: key.limits.over(self._default_limits) for key in keys}

    def _read_anew(self, is_forced: bool) -> tuple[Stamp | None, tuple[ApiKey, ...]] | None:
        stamp = self._read_stamp()
        return None if stamp == self._stamp and not is_forced else (stamp, self._settings.read_api_keys())

    def _read_stamp(self) -> Stamp | None:
        if self._settings.api_key_file is None:
            return None
        status = self._settings.api_key_file.stat()
        return status.st_mtime_ns, status.st_size, status.st_ino


class AuthMiddleware:
    """Answers 401 to every HTTP request without a valid key, except for the operations that need none.

    Leaves the client's name, and that of its key, in the state of what it lets pass.
    """

    def __init__(self, app: ASGIApp, keys: KeyRing, operations: OperationTable) -> None:
        self._app = app
        self._keys = keys
        self._operations = operations

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._keys.is_needed and not self._operations.is_public(scope["path"]):
            await self._keys.look()
            try:
                keys = _header(scope, b"authorization"), _header(scope, b"x-api-key")
                key = self._keys.check(*keys)
            except AuthenticationError as error:
                await error_response(error, scope)(scope, receive, send)
                return
            scope["state"] |= {"client": key.client, "key_name": key.name}
            with on_behalf_of_key(key):
                await self._app(scope, receive, send)
            return
        await self._app(scope, receive, send)


def _header(scope: Scope, wanted: bytes) -> bytes | None:
    """Return the header's value, if there is one and not more: which of two would count cannot be known."""
    values: list[bytes] = [value for name, value in scope["headers"] if name == wanted]
    return values[0].strip(b" \t") if len(values) == 1 else None


def _digests(key: bytes) -> list[bytes]:
    """Return the hashes that a key may be known by: of UTF-8, as which it was sent or, by older clients, was not."""
    forms = [key] if key.isascii() else [key, key.decode("latin-1").encode()]
    return [hashlib.sha256(form).digest() for form in forms]


def _bearer_key(authorization: bytes | None) -> bytes | None:
    scheme, _, key = (authorization or b"").partition(b" ")
    return key.strip(b" \t") if scheme.lower() == b"bearer" else None
