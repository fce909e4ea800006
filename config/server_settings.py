"""Settings of the server: where it listens, whom it believes, and who may use it."""

import os
import re
from pathlib import Path
from typing import Self

from pydantic import BaseModel, field_validator, model_validator

from orcinus.config.addresses import (
    MAX_SOCKET_PATH_BYTES,
    parse_listed_host,
    parse_origin,
    parse_proxy,
    parse_root_path,
)
from orcinus.config.api_keys import ApiKey, check_distinct, digest_of, read_keys
from orcinus.config.setting import Names, Strings, parsed, setting, without_empty
from orcinus.config.text_files import TextFileError

_HOST_AND_PORT = re.compile(r"(?:\[.*\]|[^:]*):(\w*)")

METRICS_NAMES = ("orcinus", "vllm")


class ServerSettings(BaseModel):
    """Says how the server is reached, and by whom."""

    host: str = setting(
        "127.0.0.1",
        "Server",
        "Address to listen on. The default is reachable from this machine alone, because no key is needed"
        " until you set one; 0.0.0.0 listens everywhere (the container image does).",
        "ADDRESS",
        min_length=1,
    )
    port: int = setting(8000, "Server", "Port to listen on; 0 takes any free one.", "PORT", ge=0, le=65_535)
    uds: Path | None = setting(
        None,
        "Server",
        "Unix socket to listen on, in place of host and port. Who may connect is decided by the directory that it is"
        " in.",
        "FILE",
    )
    metrics_port: int | None = setting(
        None,
        "Server",
        "Port of its own for /metrics, without TLS; 0 takes any free one. /live, /ready and /health are there, too, and"
        " stay on the main port, which /metrics leaves. Default: none, and /metrics is on the main port.",
        "PORT",
        ge=0,
        le=65_535,
    )
    ssl_certfile: Path | None = setting(
        None,
        "Server",
        "File with the certificate (PEM), and those between it and the root: the server speaks TLS. Read again when it"
        " changes, as the key is.",
        "FILE",
    )
    ssl_keyfile: Path | None = setting(
        None, "Server", "File with the certificate's private key (PEM). Default: it is in ssl_certfile.", "FILE"
    )
    ssl_keyfile_password: str | None = setting(
        None, "Server", "Password of the private key, where it has one.", "PASSWORD", repr=False
    )
    forwarded_allow_ips: Strings = setting(
        (),
        "Server",
        "Proxy whose X-Forwarded-For and X-Forwarded-Proto are believed: an address, a network such as 10.0.0.0/8, or *"
        " for any, and on a Unix socket; repeatable. Default: none.",
        "ADDRESS",
    )
    allowed_host: Strings = setting(
        (),
        "Server",
        "Host that requests may name (the header Host); repeatable: a name, NAME:PORT, *.NAME, or * for any. Loopback"
        " names always may. Default: those alone where the server listens on a loopback address, so that no web page"
        " reaches it by a name of its own; any host elsewhere.",
        "HOST",
    )
    cors_allow_origin: Strings = setting(
        (),
        "Server",
        "Web origin whose pages may call the server (CORS), such as https://chat.example.com; repeatable, or * for any."
        " Default: none.",
        "ORIGIN",
    )
    root_path: str = setting(
        "",
        "Server",
        "Path under which a proxy publishes the server, such as /llm. Requests are answered with it and without it,"
        " whether the proxy takes it off or not.",
        "PATH",
    )
    page: bool = setting(
        True,
        "Server",
        "Serve the page at / and the events behind it, at /events. Whoever has a key sees there how much each request"
        " and each key holds, by number, and nothing of what they say.",
    )
    metrics_names: Names = setting(
        ("orcinus",),
        "Server",
        "Names that /metrics has its numbers by: orcinus, vllm, or both (orcinus,vllm). vllm are the names that"
        " endpoint pickers, autoscalers and dashboards made for vLLM ask for.",
        "NAMES",
    )
    api_key: Strings = setting(
        (),
        "Server",
        "Key that clients must send, or sha256: and its hash; repeatable. Without any, everybody may.",
        "KEY",
        repr=False,
    )
    api_key_file: Path | None = setting(
        None,
        "Server",
        "File with more keys, or their hashes: one a line (empty lines and lines with # are skipped), or YAML, which"
        " gives keys names, limits, models and an expiry.",
        "FILE",
    )
    usage_db: Path | None = setting(
        None,
        "Server",
        "SQLite file in which is kept, over restarts, what each named key uses by day and model; made where there is"
        " none. `orcinus usage` and GET /v1/usage show it.",
        "FILE",
    )

    @field_validator("host")
    @classmethod
    def _host_has_no_port(cls, value: str) -> str:
        if (match := _HOST_AND_PORT.fullmatch(value)) is not None:
            raise ValueError(f"must be an address alone: its port {match[1]} is given by --port")
        return value

    @field_validator("allowed_host")
    @classmethod
    def _hosts_are_hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(parsed(parse_listed_host, entry) for entry in value)

    @field_validator("forwarded_allow_ips")
    @classmethod
    def _proxies_are_addresses(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(parsed(parse_proxy, entry) for entry in value)

    @field_validator("uds")
    @classmethod
    def _socket_has_a_place(cls, value: Path | None) -> Path | None:
        if value is None:
            return None
        if (length := len(os.fsencode(value))) > MAX_SOCKET_PATH_BYTES:
            raise ValueError(f"the path of a socket has at most {MAX_SOCKET_PATH_BYTES} bytes, got {length}")
        if not value.parent.is_dir():
            raise ValueError(f"there is no directory {value.parent}")
        if value.is_dir():
            raise ValueError(f"{value} is a directory; give the path of the socket in it, such as {value}/orcinus.sock")
        return value

    @field_validator("ssl_certfile", "ssl_keyfile")
    @classmethod
    def _pem_exists(cls, value: Path | None) -> Path | None:
        if value is not None and not value.is_file():
            raise ValueError(f"there is no file {value}")
        return value

    @field_validator("cors_allow_origin")
    @classmethod
    def _origins_are_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(parsed(parse_origin, entry) for entry in value)

    @field_validator("metrics_names")
    @classmethod
    def _names_are_known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value or not set(value) <= set(METRICS_NAMES):
            raise ValueError(f"must name one or more of {', '.join(METRICS_NAMES)}, got {','.join(value) or 'none'}")
        return tuple(dict.fromkeys(value))

    @field_validator("root_path")
    @classmethod
    def _path_is_a_path(cls, value: str) -> str:
        return parsed(parse_root_path, value)

    @field_validator("api_key")
    @classmethod
    def _keys_can_be_sent(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for number, key in enumerate(without_empty(value), 1):
            digest_of(key, f"key {number}")
        return value

    @field_validator("api_key_file")
    @classmethod
    def _file_exists(cls, value: Path | None) -> Path | None:
        if value is not None and not value.is_file():
            raise ValueError(f"there is no file {value}")
        if value is not None:
            read_keys(value)
        return value

    @field_validator("usage_db")
    @classmethod
    def _usage_has_a_folder(cls, value: Path | None) -> Path | None:
        if value is not None and not value.parent.is_dir():
            raise ValueError(f"there is no folder {value.parent} for {value.name}")
        if value is not None and value.is_dir():
            raise ValueError(f"{value} is a folder: name a file in it")
        return value

    @model_validator(mode="after")
    def _certificate_has_its_key(self) -> Self:
        if self.ssl_certfile is None:
            if self.ssl_keyfile is not None or self.ssl_keyfile_password is not None:
                raise ValueError("ssl_keyfile and ssl_keyfile_password need ssl_certfile")
            return self
        from orcinus.config.certificates import server_context

        server_context(self.ssl_certfile, self.ssl_keyfile, self.ssl_keyfile_password)
        return self

    @model_validator(mode="after")
    def _keys_have_one_owner(self) -> Self:
        self.read_api_keys()
        return self

    @property
    def is_key_needed(self) -> bool:
        return bool(self.api_key) or self.api_key_file is not None

    def read_api_keys(self) -> tuple[ApiKey, ...]:
        """Return the keys of `api_key` and those that `api_key_file` holds now. Raises `TextFileError`."""
        given = tuple(ApiKey(digest_of(key, "api_key")) for key in self.api_key)
        if self.api_key_file is None:
            return given
        read = read_keys(self.api_key_file)
        try:
            check_distinct(read, given)
        except ValueError as error:
            raise TextFileError(self.api_key_file, str(error)) from None
        return given + read
