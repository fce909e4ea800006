import signal
import subprocess
import sys

from orcinus.engine.platform.child_process import group_signals_held

CHILD = """
import sys
from orcinus.engine.platform.child_process import ignore_group_signals
print("up", flush=True)
sys.stdin.readline()
ignore_group_signals()
print("still here", flush=True)
sys.stdin.readline()
"""


def test_a_child_is_left_alone_by_signals_to_its_group_from_its_first_moment_on() -> None:
    with group_signals_held():
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
    with child:
        assert child.stdin is not None
        assert child.stdout is not None
        for said in ("up", "still here"):
            assert child.stdout.readline() == f"{said}\n"
            child.send_signal(signal.SIGINT)
            child.send_signal(signal.SIGTERM)
            child.stdin.write("go on\n")
            child.stdin.flush()
    assert child.returncode == 0


def test_the_parent_hears_signals_again_once_the_child_is_started() -> None:
    with group_signals_held():
        assert {signal.SIGINT, signal.SIGTERM} <= signal.pthread_sigmask(signal.SIG_BLOCK, ())
    assert not {signal.SIGINT, signal.SIGTERM} & signal.pthread_sigmask(signal.SIG_BLOCK, ())
