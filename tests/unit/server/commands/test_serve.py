import signal
import subprocess
import sys

import pytest

SERVER = """
import signal
import sys
import weakref

from orcinus.server.commands.serve import end_at_once_on_signals

class Thing:
    pass

end_at_once_on_signals()
thing = Thing()
reference = weakref.ref(thing, lambda _: signal.raise_signal(int(sys.argv[1])))
del thing
sys.exit("it went on")
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGUSR1, 1), (signal.SIGUSR2, 1)])
def test_a_signal_that_means_nothing_ends_nothing_before_the_server_runs(number: signal.Signals, code: int) -> None:
    command = [sys.executable, "-c", SERVER, str(int(number))]
    ended = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (code, "it went on\n")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_before_the_server_runs_is_not_lost_in_a_callback(number: signal.Signals, code: int) -> None:
    command = [sys.executable, "-c", SERVER, str(int(number))]
    ended = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (code, "")
