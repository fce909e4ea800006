"""Which package index `make` adds for torch: prints that of its CPU build on Linux without an NVIDIA GPU, else nothing.

On PyPI, torch for Linux is the build for CUDA, with gigabytes of libraries. Uses the standard library alone.
"""

import shutil
import sys
import urllib.error
import urllib.request
from pathlib import Path

CPU_INDEX = "https://download.pytorch.org/whl/cpu"
GPU_SIGNS = ("/proc/driver/nvidia/version", "/dev/nvidia0", "/usr/lib/wsl/lib/nvidia-smi")
TIMEOUT_S = 5


def main() -> None:
    if sys.platform != "linux" or has_nvidia_gpu():
        return
    if not is_reachable(f"{CPU_INDEX}/torch/"):
        tell(f"No NVIDIA GPU is seen here, but {CPU_INDEX} cannot be reached: pip takes torch from its own indexes.")
        return
    tell(f"No NVIDIA GPU is seen here: torch's CPU build is taken from {CPU_INDEX}.")
    tell("For the build for CUDA, add TORCH_INDEX_URL= to the command.")
    print(CPU_INDEX)


def has_nvidia_gpu() -> bool:
    return shutil.which("nvidia-smi") is not None or any(Path(sign).exists() for sign in GPU_SIGNS)


def is_reachable(url: str) -> bool:
    """Return whether the index answers: pip would ask one that does not for every package, again and again."""
    request = urllib.request.Request(url, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
            return bool(answer.status == 200)
    except (OSError, ValueError, urllib.error.URLError):
        return False


def tell(line: str) -> None:
    print(line, file=sys.stderr)


if __name__ == "__main__":
    main()
