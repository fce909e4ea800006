"""How log lines look and which are shown. They go to standard error; standard output is for results."""

import logging

from orcinus.config.log_lines import configure_log_lines
from orcinus.config.settings import Settings

_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def configure_logging(settings: Settings) -> None:
    """Set up the root logger of this process. uvicorn's own news of starting and stopping are for debugging."""
    configure_log_lines(settings.log_level, settings.log_format, _FORMAT)
    for name in ("uvicorn", "httpx"):
        if settings.log_level == "info":
            logging.getLogger(name).setLevel(logging.WARNING)
