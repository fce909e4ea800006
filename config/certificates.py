"""Certificates and their keys, as files: whether they belong together, and what TLS needs of them.

Knows nothing of sockets, nor of when the files are read again.
"""

import ssl
from pathlib import Path

from orcinus.config.values import SettingsError

_NO_PASSWORD = "the key has a password, and it is not ssl_keyfile_password"  # noqa: S105 - a sentence
_REASONS = {
    "KEY_VALUES_MISMATCH": "they do not belong together",
    "BAD_DECRYPT": _NO_PASSWORD,
    "BAD_PASSWORD_READ": _NO_PASSWORD,
}


def server_context(certfile: Path, keyfile: Path | None, password: str | None) -> ssl.SSLContext:
    """Return what a server speaks TLS 1.2 or later with; without `keyfile` the key is in `certfile`.

    Raises `ValueError`, without the password, for files that cannot be read or do not belong together.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["http/1.1"])
    key = keyfile or certfile
    try:
        context.load_cert_chain(certfile, keyfile, password=lambda: password or "")  # else OpenSSL asks the terminal
    except OSError as error:  # `ssl.SSLError` is one
        raise ValueError(f"the certificate {certfile} cannot be used with the key in {key}: {_reason(error)}") from None
    return context


def client_context(cacert: Path) -> ssl.SSLContext:
    """Return what a client trusts the certificates in a file with, and no others. Raises `SettingsError`."""
    try:
        return ssl.create_default_context(cafile=cacert)
    except OSError as error:
        raise SettingsError(f"--cacert {cacert}: {_reason(error)}") from None


def _reason(error: OSError) -> str:
    if not isinstance(error, ssl.SSLError):
        return error.strerror or str(error)
    known: str | None = error.reason  # which typeshed takes for certain
    if known is None:
        return "it is no PEM, or the key's password is not ssl_keyfile_password"
    return _REASONS.get(known, known.lower().replace("_", " "))
