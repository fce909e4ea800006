"""Which ended children are reaped: those that nobody asks about. In a process of its own, for every child counts."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[4]
CHILDREN = """
import os, subprocess
from orcinus.server.process.orphans import reap_unasked

def ended_child():
    child = subprocess.Popen(["true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    return child

def is_zombie(child):
    try:
        return os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return False
"""
CASES = {
    "no children": "assert reap_unasked(None) is None",
    "one that runs": """
running = subprocess.Popen(["sleep", "1000"])
assert reap_unasked(None) is None
assert reap_unasked(running.pid) is None
running.kill()
assert running.wait() < 0
""",
    "one that has just ended": """
child = ended_child()
assert reap_unasked(None) == child.pid
assert is_zombie(child)
assert child.wait() == 0
assert reap_unasked(child.pid) is None
""",
    "one that ended a while ago": """
child = ended_child()
assert reap_unasked(child.pid) is None
assert not is_zombie(child)
""",
    "many": """
children = [ended_child() for _ in range(3)]
dead = None
for _ in range(4):
    dead = reap_unasked(dead)
assert dead is None
assert not any(map(is_zombie, children))
""",
}


@pytest.mark.parametrize("case", CASES)
def test_only_children_that_ended_a_while_ago_are_reaped(case: str) -> None:
    script = CHILDREN + CASES[case]
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
