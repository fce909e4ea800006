"""What is imported where, and by which of several threads."""

import subprocess
import sys

WAITING = """
import sys, threading, time
from orcinus.engine.platform.lean_imports import wait_for_transformers

threading.Thread(target=lambda: __import__("transformers")).start()
while "transformers" not in sys.modules:
    time.sleep(0.001)
wait_for_transformers()
from transformers import AttentionInterface
"""


def test_a_thread_can_name_what_another_has_begun_to_import() -> None:
    subprocess.run([sys.executable, "-c", WAITING], check=True, timeout=120)
