"""The priority of threads that work beside the engine's steps. Knows nothing of what they do."""

import os
import sys

LOW_PRIORITY = 19  # the lowest: a seventieth of the processor time of a thread that competes with it


def lower_priority() -> None:
    """Lower the calling thread's priority, and that of threads which it starts. Does nothing where it is not Linux.

    Elsewhere a priority is the whole process's.
    """
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, 0, LOW_PRIORITY)
