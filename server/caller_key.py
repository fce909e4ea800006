"""The key of whoever asks, said once for all that its request does: what it may ask for, and how much of it.

Requests in process, and those to a server without keys, have none, and may all that there is.
"""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

from orcinus.config.api_keys import NO_KEY, ApiKey
from orcinus.config.limits import Limit
from orcinus.server.errors import AdminKeyNeededError, ModelForbiddenError

_key = ContextVar("key", default=NO_KEY)


@contextlib.contextmanager
def on_behalf_of_key(key: ApiKey) -> Iterator[None]:
    """Say whose request is worked on in the block, and in tasks that begin there."""
    token = _key.set(key)
    try:
        yield
    finally:
        _key.reset(token)


def is_allowed(model: str) -> bool:
    """Return whether the key that was sent may ask for a model by this name."""
    return _key.get().may_use(model)


def check_allowed(model: str) -> None:
    """Raise `ModelForbiddenError` for a model that is served, and not to this key."""
    key = _key.get()
    if not key.may_use(model):
        usable = ", ".join(map(repr, sorted(key.models or ())))
        raise ModelForbiddenError(f"the key {key.name} may not use the model {model!r}; it may use {usable}", "model")


def check_admin() -> None:
    """Raise `AdminKeyNeededError` unless the key has `admin: true`."""
    if not _key.get().is_admin:
        raise AdminKeyNeededError("this needs a key that has 'admin: true' in the key file")


def max_tokens_limit() -> Limit | None:
    """Return how many tokens the key may have generated per choice; None: as many as fit."""
    return _key.get().limits.max_tokens
