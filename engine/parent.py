"""A child process ends with the process that started it, however that one ends. Knows nothing of what either does."""

import os
import signal
import sys
import threading


def parent_arguments() -> list[str]:
    """For the child's command line: the process to die with.

    Nothing outside the main thread: the kernel counts the thread that starts a child as its parent, and only the main
    one stays.
    """
    return [str(os.getpid())] if threading.current_thread() is threading.main_thread() else []


def die_with_parent(arguments: list[str]) -> None:
    """In the child, with what the parent gave it. On Linux the kernel is asked to end us; elsewhere nothing happens."""
    if sys.platform != "linux" or not arguments:
        return
    import ctypes

    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != int(arguments[0]):
        sys.exit("the parent is gone")  # before the kernel was asked
