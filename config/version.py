"""Which version this is: that of the installed package."""

from importlib.metadata import PackageNotFoundError, version


def _installed_version() -> str:
    """The version of Orcinus, or `0+source` where it runs from a checkout without being installed."""
    try:
        return version("orcinus")
    except PackageNotFoundError:
        return "0+source"


VERSION = _installed_version()
