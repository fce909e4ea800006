"""Where settings come from besides the command line (the environment, a YAML file), and how each source names them.

Knows nothing of which settings there are.
"""

import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_settings import EnvSettingsSource, PydanticBaseSettingsSource

from orcinus.config.text_files import TextFileError, read_text
from orcinus.config.values import SettingsError, check_keys

ENV_PREFIX = "ORCINUS_"

# Kubernetes gives every pod variables named after the services beside it: a service called "orcinus" sets
# ORCINUS_PORT=tcp://10.0.0.1:8000, ORCINUS_SERVICE_HOST and so on. They are not settings.
_SERVICE_LINK_NAME = re.compile(r"ORCINUS_(\w+_)?(SERVICE_(HOST|PORT\w*)|PORT_\d+_(TCP|UDP|SCTP)\w*)")
_SERVICE_LINK_VALUE = re.compile(r"(tcp|udp|sctp)://")


def flag_name(name: str) -> str:
    return "--" + name.replace("_", "-")


def env_name(name: str) -> str:
    return ENV_PREFIX + name.upper()


def ignored_service_links(names: Collection[str]) -> list[str]:
    """Return the variables that would be settings of these names, were they not Kubernetes' links to services."""
    links = [(name, os.environ.get(env_name(name), "")) for name in names]
    return [f"{env_name(name)}={value}" for name, value in links if _is_service_link(env_name(name), value)]


class Environment(EnvSettingsSource):
    """Variables named `ORCINUS_*`. Refuses those that are no settings, and passes over Kubernetes' service links."""

    def __call__(self) -> dict[str, Any]:
        """Return what the variables say; each field is looked at only where there are any."""
        return super().__call__() if self.env_vars else {}

    def _load_env_vars(self) -> Mapping[str, str | None]:
        names = {key: value for key, value in os.environ.items() if key.upper().startswith(ENV_PREFIX)}
        own = {key: value for key, value in names.items() if not _is_service_link(key.upper(), value)}
        known = [env_name(name) for name in self.settings_cls.model_fields]
        check_keys([key.upper() for key in own], known, "environment variable")
        return {key.lower(): value for key, value in own.items() if value}


class YamlFile(PydanticBaseSettingsSource):
    """The file that an earlier source named as `config`, if any."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        raise NotImplementedError("the file is read as a whole")

    def __call__(self) -> dict[str, Any]:
        path = self.current_state.get("config")
        if path is None:
            return {}
        known = [name for name in self.settings_cls.model_fields if name != "config"]
        values = read_yaml(Path(path))
        check_keys([str(key) for key in values], known, f"key in {path}")
        return {key: value for key, value in values.items() if value is not None}


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file, an empty one for an empty file. Raises `SettingsError`."""
    import yaml

    try:
        values = yaml.safe_load(read_text(path))
    except TextFileError as error:
        raise SettingsError(f"cannot read the settings file {path}: {error.reason}") from None
    except yaml.YAMLError as error:
        raise SettingsError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict | None):
        raise SettingsError(f"{path} must hold lines of 'key: value', such as 'port: 8000'")
    return values or {}


def given_by(name: str, flags: Mapping[str, Any]) -> tuple[str, Any]:
    """Return where a value came from, in the user's words, and the value as it was written."""
    if name in flags:
        return flag_name(name), flags[name]
    if value := os.environ.get(env_name(name)):
        return env_name(name), value
    path = flags.get("config") or os.environ.get(env_name("config"))
    if path is not None:
        return f"{name} in {path}", read_yaml(Path(path)).get(name)
    return name, None


def _is_service_link(name: str, value: str) -> bool:
    if _SERVICE_LINK_NAME.fullmatch(name):
        return True
    return name.endswith("PORT") and _SERVICE_LINK_VALUE.match(value) is not None
