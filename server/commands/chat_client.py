"""The client of `orcinus chat`: a server's model, and its answers as they come. Whatever fails is one line.

It knows no terminal. Proxies of the environment hold for other machines; this one is reached directly.
"""

import contextlib
import json
import re
import ssl
import urllib.request
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from orcinus.config.addresses import parse_socket_url
from orcinus.config.certificates import client_context, handshake_failure
from orcinus.config.hosts import is_any_address, is_loopback
from orcinus.config.values import SettingsError
from orcinus.engine.errors import OrcinusError

_CONNECT_TIMEOUT_S = 5.0
_LAST_PORT = 65_535
# In an event after which an answer is complete; some servers send one of the two alone.
_END = re.compile(r'^data:\s*\[DONE\]|"finish_reason":\s*"')


class ChatError(OrcinusError):
    """The server cannot be reached, or refuses; the message is for the user."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Holds some text of an answer, or of what the model thinks before it answers."""

    text: str
    is_reasoning: bool = False


class ChatClient:
    """Streams answers of the chat endpoint of the server at `base_url`, all with the same `parameters`.

    Its methods raise `ChatError`; it raises `SettingsError` itself for a URL or a key that cannot be one.
    """

    def __init__(
        self, base_url: str, api_key: str | None, parameters: dict[str, Any], cacert: Path | None = None
    ) -> None:
        """`base_url` may be `unix:/path`; `cacert` has the certificates to trust in place of the system's."""
        socket = _socket_path(base_url)
        url = httpx.URL("http://localhost") if socket else _checked_url(base_url)
        self.base_url = base_url.strip().rstrip("/").removesuffix("/v1")
        self._parameters = parameters
        headers = {b"Authorization": _authorization(api_key)} if api_key else {}
        # An answer may take as long as it likes to begin; only connecting is bounded.
        timeout = httpx.Timeout(None, connect=_CONNECT_TIMEOUT_S)
        # With a transport of its own, httpx asks the environment for no proxy.
        verify = _trusted(cacert)
        transport = httpx.HTTPTransport(uds=socket, verify=verify) if socket else _transport(url, verify)
        target = str(url) if socket else self.base_url
        self._http = httpx.Client(base_url=target, headers=headers, timeout=timeout, transport=transport)

    def __enter__(self) -> "ChatClient":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._http.close()

    def model(self) -> str:
        """Return the name of the model that will answer."""
        if "model" in self._parameters:
            return str(self._parameters["model"])
        with self._explained():
            return str(self._list_models()[0]["id"])

    def models(self) -> list[dict[str, Any]]:
        """Return the entries of the server's models, of which each has an `id`."""
        with self._explained():
            models = self._list_models()
            return [entry for entry in models if entry["id"]]

    def _list_models(self) -> list[dict[str, Any]]:
        response = self._http.get("/v1/models")
        _check(response)
        models: list[dict[str, Any]] = response.json()["data"]
        return models

    def stream(self, messages: Sequence[dict[str, str]]) -> Generator[Piece, None, None]:
        """Return the answer to `messages`, piece by piece. Closing the iterator early stops the server's work."""
        body = {"messages": list(messages), "stream": True, **self._parameters}
        with self._explained(), self._http.stream("POST", "/v1/chat/completions", json=body) as response:
            if response.is_error:
                response.read()
            _check(response)
            is_complete = False
            for line in response.iter_lines():
                is_complete = is_complete or _END.search(line) is not None
                yield from _pieces(line)
            if not is_complete:
                raise ChatError(f"{self.base_url} ended the answer before it was complete")

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except httpx.ConnectError as error:
            if (failure := handshake_failure(error, self.base_url)) is not None:
                raise ChatError(failure) from None
            hint = "start one with: orcinus serve"
            raise ChatError(f"no server answers at {self.base_url}; {hint}") from None
        except httpx.HTTPError as error:
            reason = str(error) or type(error).__name__
            raise ChatError(f"the connection to {self.base_url} failed: {reason}") from None
        except (httpx.InvalidURL, ValueError, LookupError, TypeError) as error:
            raise ChatError(f"{self.base_url} does not answer like an OpenAI server ({error})") from None


def _checked_url(base_url: str) -> httpx.URL:
    try:
        url = httpx.URL(base_url.strip())
    except httpx.InvalidURL as error:
        raise SettingsError(f"--base-url {base_url!r} is no URL: {error}") from None
    if url.scheme not in ("http", "https") or not url.host or (url.port or 0) > _LAST_PORT:
        raise SettingsError(f"--base-url {base_url!r} is no URL of a server; give one like http://127.0.0.1:8000")
    return url


def _socket_path(base_url: str) -> str | None:
    try:
        return parse_socket_url(base_url.strip())
    except ValueError as error:
        raise SettingsError(f"--base-url {base_url!r}: {error}") from None


def _trusted(cacert: Path | None) -> ssl.SSLContext | bool:
    return True if cacert is None else client_context(cacert)


def _authorization(api_key: str) -> bytes:
    """Return the header's value, in UTF-8 as servers read it. The message of an error does not show the key."""
    key = api_key.strip()
    if not key:
        raise SettingsError("--api-key: the key is empty")
    if any(ord(character) < 0x20 or ord(character) == 0x7F for character in key):
        raise SettingsError("--api-key: a key cannot have control characters or more than one line")
    return b"Bearer " + key.encode("utf-8", "surrogateescape")


# --- proxies --------------------------------------------------------------------------------------------


def _transport(url: httpx.URL, verify: ssl.SSLContext | bool) -> httpx.HTTPTransport:
    """Return connections to the server, through the proxy that the environment names for it, if any."""
    proxy = _proxy_of(url)
    try:
        return httpx.HTTPTransport(proxy=proxy, verify=verify)
    except ImportError:
        raise ChatError(
            f"the environment's proxy {_shown(proxy)} speaks SOCKS, for which the socksio package is missing:"
            f" pip install socksio, or NO_PROXY={url.host}"
        ) from None
    except (ValueError, httpx.InvalidURL) as error:
        raise ChatError(f"the environment's proxy {_shown(proxy)} cannot be used: {error}") from None


def _proxy_of(url: httpx.URL) -> str | None:
    if is_loopback(url.host) or is_any_address(url.host) or urllib.request.proxy_bypass(url.host):
        return None
    proxies = urllib.request.getproxies()
    proxy = proxies.get(url.scheme) or proxies.get("all")
    return proxy if not proxy or "://" in proxy else f"http://{proxy}"


def _shown(proxy: str | None) -> str:
    """Return a proxy's address without the password that may be in it."""
    scheme, separator, rest = (proxy or "").partition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}"


# --- what a server answers ------------------------------------------------------------------------------


def _pieces(line: str) -> Iterator[Piece]:
    """Yield the text in one line of a stream of server-sent events. Events without any are passed over."""
    if not line.startswith("data:"):
        return
    data = line.removeprefix("data:").strip()
    if not data or data == "[DONE]":
        return
    event = json.loads(data)
    if not isinstance(event, dict):
        return
    if error := event.get("error"):
        raise ChatError(_message_of(error))
    for choice in event.get("choices") or ():
        delta = choice.get("delta") if isinstance(choice, dict) else None
        if not isinstance(delta, dict):
            continue
        for name, is_reasoning in (("reasoning_content", True), ("reasoning", True), ("content", False)):
            text = delta.get(name)
            if not isinstance(text, str) or not text or (name == "reasoning" and delta.get("reasoning_content")):
                continue  # servers that write both names write one text twice
            yield Piece(text, is_reasoning)


def _check(response: httpx.Response) -> None:
    if not response.is_error:
        return
    try:
        message = _message_of(response.json()["error"])
    except (ValueError, KeyError, TypeError):
        message = response.reason_phrase
    raise ChatError(f"{message} (HTTP {response.status_code})")


def _message_of(error: Any) -> str:
    """Return what an error says, whether it is an object as OpenAI has it or a text."""
    return str(error.get("message") or error) if isinstance(error, dict) else str(error)
