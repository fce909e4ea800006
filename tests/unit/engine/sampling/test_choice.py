"""Which devices sample by Triton; a GPU's trial is one that ends as the test says."""

import logging

import pytest
import torch

from orcinus.engine.errors import ModelLoadError
from orcinus.engine.sampling import choice
from orcinus.engine.sampling.choice import triton_sampler

CUDA = torch.device("cuda")


def end_trial(monkeypatch: pytest.MonkeyPatch, error: Exception | None, *, is_broken: bool = False) -> None:
    def try_out(sampler: object, device: torch.device, dtype: torch.dtype) -> None:
        assert (device, dtype) == (CUDA, torch.bfloat16)
        if error is not None:
            raise error

    monkeypatch.setattr(choice, "try_out", try_out)
    monkeypatch.setattr(choice, "is_broken", lambda device: is_broken)


def test_a_cpu_has_none() -> None:
    assert triton_sampler(torch.device("cpu"), torch.float32) is None


def test_a_gpu_samples_by_triton_if_that_works_there(monkeypatch: pytest.MonkeyPatch) -> None:
    module = pytest.importorskip("orcinus.engine.sampling.triton_sampler")
    end_trial(monkeypatch, None)
    assert isinstance(triton_sampler(CUDA, torch.bfloat16), module.TritonSampler)


@pytest.mark.parametrize("error", [RuntimeError("it chooses other tokens"), OSError("no compiler")], ids=str)
def test_what_does_not_work_is_passed_over_with_a_warning(
    error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("triton")
    end_trial(monkeypatch, error)
    with caplog.at_level(logging.WARNING, logger="orcinus"):
        assert triton_sampler(CUDA, torch.bfloat16) is None
    assert str(error) in caplog.text


def test_a_trial_that_breaks_the_device_ends_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    end_trial(monkeypatch, RuntimeError("an illegal address"), is_broken=True)
    with pytest.raises(ModelLoadError, match="leaves the device unusable: an illegal address"):
        triton_sampler(CUDA, torch.bfloat16)
