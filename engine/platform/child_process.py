"""A child process ends when the process that started it says so or ends, however that one ends, and not before.

Knows nothing of what either does.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator

_GROUP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def group_signals_held() -> Iterator[None]:
    """In the parent, around the start of a child, which holds them too until `ignore_group_signals`."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _GROUP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore_group_signals() -> None:
    """In the child. A terminal's Ctrl-C and a service manager's SIGTERM reach all processes at once, but it is the
    parent that decides when the child ends: it may have work for it until then.
    """
    for number in _GROUP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _GROUP_SIGNALS)


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
