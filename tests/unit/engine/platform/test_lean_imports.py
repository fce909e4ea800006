"""What is imported where, and by which of several threads."""

import subprocess
import sys

import pytest

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


NAMES = """
from pathlib import Path
from orcinus.engine.platform import lean_imports

lean_imports.hide_torch(trust_remote_code=False)
lean_imports.wait_for_transformers()
from transformers.utils import import_utils

lean = import_utils.define_import_structure
(usual,) = (cell.cell_contents for cell in lean.__closure__ if hasattr(cell.cell_contents, "cache_info"))
package = str(Path(import_utils.__file__).parents[1] / "models" / "__init__.py")
num_read = usual.cache_info().misses
found = lean(package)
assert usual.cache_info().misses == num_read, "they were read again"
assert found == usual(package)
"""


def test_names_in_the_files_of_models_are_read_once_and_are_all_there() -> None:
    subprocess.run([sys.executable, "-c", NAMES], check=True, timeout=120)


LATER = """
import sys
from importlib import import_module
from orcinus.engine.platform.lean_imports import import_transformers
import_transformers()
assert "torch._prims" not in sys.modules
import_module(sys.argv[1])
import torch, torch._meta_registrations
assert torch._meta_registrations.__file__
assert torch.compile(lambda x: x + 1, backend="eager")(torch.ones(1)).item() == 2
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["torch._decomp", "torch._refs", "torch._dynamo", "torch.utils._content_store", "torch.distributed.tensor"]
)
def test_what_was_left_out_can_be_imported_from_any_side(name: str) -> None:
    subprocess.run([sys.executable, "-W", "error::ImportWarning", "-c", LATER, name], check=True, timeout=120)
