"""Child processes that run a module of ours: how they are started, and that they end with their parent.

A child ends when the process that started it says so or ends, however that one ends, and not before. Knows nothing of
what either does.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass

_GROUP_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)  # Windows has no SIGHUP
_USER_SIGNALS = tuple(getattr(signal, name) for name in ("SIGUSR1", "SIGUSR2") if hasattr(signal, name))
_HELD_SIGNALS = (*_GROUP_SIGNALS, *_USER_SIGNALS)


@dataclass(frozen=True, slots=True)
class ChildCommand:
    """Holds what `Popen` and asyncio take to start a child."""

    arguments: list[str]
    environment: dict[str, str]


def module_command(module: str, *arguments: str) -> ChildCommand:
    """Return the command of a child that runs `module` with `arguments` and sees the modules that this process sees.

    Its own directory is not among them: a file there would stand in for a module of the same name.
    """
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)  # noqa: PTH109
    return ChildCommand([sys.executable, "-P", "-m", module, *arguments], {**os.environ, "PYTHONPATH": path})


@contextlib.contextmanager
def group_signals_held() -> Iterator[None]:
    """Block these signals while the parent starts a child, which holds them until `ignore_group_signals`."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _HELD_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore_user_signals() -> None:
    """Ignore SIGUSR1 and SIGUSR2 from now on, here and in every child: they mean nothing, and would end a process."""
    for number in _USER_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def ignore_group_signals() -> None:
    """Ignore SIGINT, SIGTERM and SIGHUP, and what `ignore_user_signals` does, from now on; to be called by the child.

    A terminal's Ctrl-C and end and a service manager's SIGTERM reach all processes at once, but it is the parent that
    decides when the child ends: it may have work for it until then.
    """
    for number in _GROUP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    ignore_user_signals()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _HELD_SIGNALS)


def inherited_descriptor(argument: str) -> int:
    """Return a descriptor of the file whose number the parent gave, with a low number; to be called by the child.

    A child gets the number that was free in its parent, which may have thousands of files open. What cannot work with
    such numbers, as `select` cannot from 1024 on, need not know where the child comes from.
    """
    given = int(argument)
    lowest = os.dup(given)
    os.close(given)
    return lowest


def parent_arguments() -> list[str]:
    """Return what the child's command line has to end with for `die_with_parent`: the parent's process id.

    Empty outside the main thread: the kernel counts the thread that starts a child as its parent, and only the main one
    stays.
    """
    return [str(os.getpid())] if threading.current_thread() is threading.main_thread() else []


def die_with_parent(arguments: list[str]) -> None:
    """Have the kernel kill this process when its parent ends; to be called by the child, with `parent_arguments`.

    Does nothing without arguments and where the system is not Linux.
    """
    if sys.platform != "linux" or not arguments:
        return
    import ctypes

    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != int(arguments[0]):
        sys.exit("the parent is gone")  # before the kernel was asked
