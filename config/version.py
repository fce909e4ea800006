"""Which version this is: that of the installed package."""

from importlib.metadata import PackageNotFoundError, version


def _installed_version() -> str:
    """Return the version of Orcinus, or `0+source` if it runs from a checkout without being installed."""
    try:
        return version("orcinus")
    except PackageNotFoundError:
        return "0+source"


VERSION = _installed_version()
