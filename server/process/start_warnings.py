"""What an operator should know about the settings when the server starts: one warning for each. It changes nothing."""

from collections.abc import Iterator

from orcinus.config.hosts import is_loopback
from orcinus.config.settings import Settings
from orcinus.config.sources import ignored_service_links


def start_up_warnings(settings: Settings) -> Iterator[str]:
    """Yield a sentence for whatever is allowed and is probably not meant. No key is part of it."""
    if not settings.is_key_needed and settings.uds is None and not is_loopback(settings.host):
        yield (
            f"listening on {settings.host} without an API key: every client that reaches this address may use the model"
            " (--api-key, --api-key-file, or --host 127.0.0.1 for this machine alone)"
        )
    if settings.api_key_file is not None and not settings.read_api_keys():
        yield (
            f"the API key file {settings.api_key_file} has no key in it: requests are refused with 401 until it has one"
        )
    keys = settings.read_api_keys()
    if settings.usage_db is not None and not any(key.name for key in keys):
        yield "usage is kept for keys that have names, and none has one: --usage-db does nothing without --api-key-file"
    for key in keys:
        if key.models is not None and not key.models & set(settings.model_names):
            yield f"the key {key.name} may use none of the models that are served: {', '.join(settings.model_names)}"
    for link in ignored_service_links(Settings.model_fields):
        yield (
            f"{link} is Kubernetes' link to a service and no setting: it is passed over"
            " (enableServiceLinks: false in the pod keeps it away)"
        )
