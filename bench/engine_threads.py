"""Has a benchmark that runs the engine in its own process use OpenMP's threads as the engine's process does."""

import os
import sys

from orcinus.engine.platform.device import limit_spinning


def restart_as_the_engine() -> None:
    """Start this process anew if OpenMP's threads would spin for milliseconds on cores that the kernels need.

    Its runtime reads how long they do when torch is imported. To be called before anything else is done.
    """
    before = dict(os.environ)
    limit_spinning()
    if os.environ != before:
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
