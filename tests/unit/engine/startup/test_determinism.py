"""What deterministic mode refuses at start-up."""

import pytest
import torch

from orcinus.engine.errors import ModelLoadError
from orcinus.engine.startup.determinism import check_device

CPU = torch.device("cpu")


def test_on_a_gpu_the_mode_is_refused() -> None:
    check_device(CPU)
    with pytest.raises(ModelLoadError, match="for CPUs alone so far, and the device is cuda"):
        check_device(torch.device("cuda"))
