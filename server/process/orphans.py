"""As the first process of a container: takes note of the end of processes that lost their parent.

They become children of process 1, and stay as zombies until it asks how they ended. Knows nothing of the processes that
the server starts itself, but that somebody else asks about those, and soon.
"""

import asyncio
import contextlib
import os

_SWEEP_S = 1.0


async def reap_orphans() -> None:
    """Reap the processes whose parents are gone, until cancelled."""
    dead: int | None = None
    while True:
        await asyncio.sleep(_SWEEP_S)
        dead = reap_unasked(dead)


def reap_unasked(dead_before: int | None) -> int | None:
    """Reap a child that had already ended a while ago. Returns one that has ended now, if there is one."""
    dead = _ended_child()
    if dead is None or dead != dead_before:
        return dead
    with contextlib.suppress(ChildProcessError):
        os.waitpid(dead, os.WNOHANG)
    return _ended_child()


def _ended_child() -> int | None:
    """Return a child that has ended, which stays as it is."""
    try:
        ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return None
    return None if ended is None else ended.si_pid
