"""Children of ours see our modules, and are left alone by signals to the group."""

import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from orcinus.engine.platform.child_process import group_signals_held, inherited_descriptor, module_command

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
            child.send_signal(signal.SIGUSR1)
            child.send_signal(signal.SIGUSR2)
            child.stdin.write("go on\n")
            child.stdin.flush()
    assert child.returncode == 0


def test_the_parent_hears_signals_again_once_the_child_is_started() -> None:
    with group_signals_held():
        assert {signal.SIGINT, signal.SIGTERM} <= signal.pthread_sigmask(signal.SIG_BLOCK, ())
    assert not {signal.SIGINT, signal.SIGTERM} & signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_a_child_runs_its_module_with_the_modules_of_its_parent_and_none_of_its_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modules, directory = tmp_path / "modules", tmp_path / "directory"
    modules.mkdir()
    directory.mkdir()
    (modules / "module_of_ours.py").write_text("import json, sys\nprint(json.__name__, *sys.argv[1:])")
    (directory / "json.py").write_text("raise SystemExit('the wrong json')")
    monkeypatch.setattr(sys, "path", [str(modules), *sys.path])
    monkeypatch.chdir(directory)
    child = module_command("module_of_ours", "7")
    done = subprocess.run(child.arguments, env=child.environment, capture_output=True, text=True, check=True)
    assert done.stdout == "json 7\n"
    assert set(os.environ) <= set(child.environment)


def test_a_descriptor_is_taken_over_with_the_lowest_number_and_is_not_handed_on() -> None:
    ours, theirs = os.pipe()
    lowest = os.dup(theirs)
    os.close(lowest)
    high = fcntl.fcntl(theirs, fcntl.F_DUPFD, 200)
    os.set_inheritable(high, True)
    os.close(theirs)
    taken = inherited_descriptor(str(high))
    try:
        assert taken == min(theirs, lowest)
        assert not os.get_inheritable(taken)
        os.write(taken, b"x")
    finally:
        os.close(taken)
    assert os.read(ours, 2) == b"x"
    assert os.read(ours, 2) == b"", "the number that was given is open still"
    os.close(ours)
