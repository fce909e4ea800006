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

_OTHER_NAME = (62, 64)  # X509_V_ERR_HOSTNAME_MISMATCH and X509_V_ERR_IP_ADDRESS_MISMATCH


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
        if (missing := _missing_key(key)) is not None:
            hint = "; --ssl-keyfile names the file that does" if keyfile is None else ""
            raise ValueError(f"{missing}{hint}") from None
        raise ValueError(f"the certificate {certfile} cannot be used with the key in {key}: {_reason(error)}") from None
    return context


def client_context(cacert: Path) -> ssl.SSLContext:
    """Return what a client trusts the certificates in a file with, and no others. Raises `SettingsError`."""
    try:
        return ssl.create_default_context(cafile=cacert)
    except OSError as error:
        raise SettingsError(f"--cacert {cacert}: {_reason(error)}") from None


def handshake_failure(error: BaseException, base_url: str) -> str | None:
    """Return what a client is told of a connection that TLS is why it failed; None where TLS is not."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ssl.SSLError):
        cause = cause.__cause__ or cause.__context__
    if isinstance(cause, ssl.SSLCertVerificationError):
        is_of_another = cause.verify_code in _OTHER_NAME
        hint = "" if is_of_another else "; --cacert FILE names the certificates to trust"
        return f"the certificate of {base_url} is not trusted: {cause.verify_message.rstrip('.')}{hint}"
    return None if cause is None else f"TLS with {base_url} failed: {_reason(cause)}"


def _missing_key(path: Path) -> str | None:
    """Return what is wrong with a file that is PEM and has no private key; None for any other."""
    try:
        text = path.read_bytes()
    except OSError:
        return None
    is_without = b"-----BEGIN " in text and b"PRIVATE KEY-----" not in text
    return f"{path} holds no private key" if is_without else None


def _reason(error: OSError) -> str:
    if not isinstance(error, ssl.SSLError):
        return error.strerror or str(error)
    known: str | None = error.reason  # which typeshed takes for certain
    if known is None:
        return "it is no PEM, or the key's password is not ssl_keyfile_password"
    return _REASONS.get(known, known.lower().replace("_", " "))
