"""Every setting of Orcinus, declared once: flag, `ORCINUS_*` variable, YAML key, default, help and table row.

The declarations are in four modules by subject, and those of logs and the YAML file here. Precedence: command line >
environment > YAML file > defaults. A wrong value and an unknown key are refused as `SettingsError`, whose message says
what is allowed. This module knows nothing of how the environment and the file are read (`config.sources`), of argparse
(`config.arguments` makes flags from the declarations), of models or of HTTP.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import ValidationError, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from orcinus.config.engine_config import EngineConfig
from orcinus.config.engine_settings import EngineSettings
from orcinus.config.limit_settings import LimitSettings
from orcinus.config.model_settings import DEMO_MODEL_NAME, ModelSettings, demo_model_path
from orcinus.config.server_settings import ServerSettings
from orcinus.config.setting import GROUPS, setting
from orcinus.config.sources import ENV_PREFIX, Environment, YamlFile, given_by
from orcinus.config.values import SettingsError, check_keys, describe_allowed

__all__ = [
    "DEMO_MODEL_NAME",
    "GROUPS",
    "Settings",
    "SettingsError",
    "demo_model_path",
    "load_settings",
]


class Settings(LimitSettings, ServerSettings, EngineSettings, ModelSettings, BaseSettings):
    """The settings in force: frozen, complete and checked. `load_settings` gives messages fit for users."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_ignore_empty=True,
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
        protected_namespaces=(),
    )

    config: Path | None = setting(
        None, "General", "YAML file of settings; its keys are the names of flags with underscores.", "FILE"
    )
    log_level: Literal["debug", "info", "warning", "error"] = setting("info", "General", "What is logged.")
    log_format: Literal["text", "json"] = setting(
        "text",
        "General",
        "How lines of the log look: text, or one JSON object a line, with the ids of request and trace.",
    )
    otlp_traces_endpoint: str | None = setting(
        None,
        "General",
        "URL that traces are sent to (OTLP over HTTP), such as http://localhost:4318/v1/traces; needs orcinus[otel]."
        " Variables of OpenTelemetry, such as OTEL_SERVICE_NAME and OTEL_TRACES_SAMPLER, say the rest. Default: none.",
        "URL",
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, Environment(settings_cls), YamlFile(settings_cls)

    @field_validator("otlp_traces_endpoint")
    @classmethod
    def _endpoint_is_a_url(cls, value: str | None) -> str | None:
        if value is not None:
            parts = urlsplit(value)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise ValueError("must be a URL such as http://localhost:4318/v1/traces")
        return value

    def engine_config(self) -> EngineConfig:
        """Return the settings that the engine process needs."""
        return EngineConfig(
            model=self.model_path,
            dtype=self.dtype,
            device=self.device,
            quantization=self.quantization,
            kernels=self.kernels,
            trust_remote_code=self.trust_remote_code,
            use_generation_config=self.use_generation_config,
            pooling=self.pooling,
            max_model_len=self.max_model_len,
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens,
            target_itl_ms=self.target_itl_ms,
            target_ttft_ms=self.target_ttft_ms,
            kv_cache_memory=self.kv_cache_memory,
            state_cache_memory=self.state_cache_memory,
            block_size=self.block_size,
            kv_cache_dtype=self.kv_cache_dtype,
            enable_prefix_caching=self.enable_prefix_caching,
            batching=self.batching,
            batch_wait_ms=self.batch_wait_ms,
            deterministic=self.deterministic,
            speculation=self.speculation,
            warm_grammars=self.warm_grammars,
            packed_weights_dir=self.packed_weights_path,
            seed=self.seed,
            log_level=self.log_level,
            log_format=self.log_format,
        )


def load_settings(**flags: Any) -> Settings:
    """Return the settings from `flags` (those that were given), the environment and the YAML file.

    Raises `SettingsError` that names all that is wrong, each with its source and what is allowed.
    """
    try:
        return Settings(**flags)
    except ValidationError as error:
        problems = [_explain(problem, flags) for problem in error.errors(include_url=False)]
        raise SettingsError("\n".join(dict.fromkeys(problems))) from None


def _explain(problem: Any, flags: Mapping[str, Any]) -> str:
    """Return one line about one of pydantic's errors."""
    reason = str(problem["msg"]).removeprefix("Value error, ")
    if not problem["loc"]:
        return reason
    name = str(problem["loc"][0])
    field = Settings.model_fields.get(name)
    if field is None:
        return _unknown_name(name)
    source, value = given_by(name, flags)
    shown = "" if not field.repr or value is None else f", got {value!r}"
    stated = reason if problem["type"] == "value_error" else f"must be {describe_allowed(field)}{shown}"
    return f"{source}: {stated}"


def _unknown_name(name: str) -> str:
    try:
        check_keys([name], list(Settings.model_fields), "setting")
    except SettingsError as error:
        return str(error)
    raise AssertionError(f"{name} is a setting")
