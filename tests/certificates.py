"""Certificates for tests, made by OpenSSL's command."""

import shutil
import ssl
import subprocess
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Pair:
    """A certificate that vouches for itself, and its key."""

    certfile: Path
    keyfile: Path

    @property
    def settings(self) -> dict[str, Path]:
        return {"ssl_certfile": self.certfile, "ssl_keyfile": self.keyfile}

    @cached_property
    def context(self) -> ssl.SSLContext:
        """What a client trusts this certificate with, and no other."""
        return ssl.create_default_context(cafile=self.certfile)

    def replace_by(self, other: "Pair") -> None:
        """Put the files of another pair in the place of these, one after the other."""
        for here, there in ((self.certfile, other.certfile), (self.keyfile, other.keyfile)):
            shutil.copy(there, here.with_suffix(".new"))
            here.with_suffix(".new").replace(here)


def make_certificate(
    directory: Path, name: str = "server", password: str = "", names: str = "DNS:localhost,IP:127.0.0.1"
) -> Pair:
    """Skips the test where there is no `openssl`."""
    if (openssl := shutil.which("openssl")) is None:
        pytest.skip("there is no openssl, which makes the certificates")
    pair = Pair(directory / f"{name}.crt", directory / f"{name}.key")
    command = [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-days", "2"]
    command += ["-subj", f"/CN={name}", "-addext", f"subjectAltName={names}"]
    command += ["-passout", f"pass:{password}"] if password else ["-nodes"]
    command += ["-keyout", str(pair.keyfile), "-out", str(pair.certfile)]
    subprocess.run(command, check=True, capture_output=True)
    return pair
