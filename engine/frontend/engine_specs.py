"""What each engine of a server is told: the settings, and its share of the machine where there are several."""

from dataclasses import replace
from typing import TYPE_CHECKING

from orcinus.engine.frontend.replica import EngineSpec
from orcinus.engine.platform.shares import divide_machine

if TYPE_CHECKING:
    from orcinus.config.engine_config import EngineConfig, EngineShare
    from orcinus.config.settings import Settings


def engine_specs(settings: "Settings") -> list[EngineSpec]:
    """Return a spec for each replica, all in processes of their own.

    Raises `SettingsError` where there are more replicas than cores, or than GPUs.
    """
    config = settings.engine_config()
    if settings.replicas == 1:
        return [EngineSpec(config)]
    shares = divide_machine(settings.replicas, config.device)
    return [EngineSpec(_with_share(config, share)) for share in shares]


def _with_share(config: "EngineConfig", share: "EngineShare") -> "EngineConfig":
    """Return the config of one engine of several, on the device that was divided and with its part of the memory."""
    config = replace(config, share=share, device="cpu" if share.cuda_device is None else "cuda")
    if config.kv_cache_memory is not None:
        config = replace(config, kv_cache_memory=max(1, config.kv_cache_memory // config.num_sharing_memory))
    if config.state_cache_memory is not None:
        config = replace(config, state_cache_memory=config.state_cache_memory // config.num_sharing_memory)
    return config
