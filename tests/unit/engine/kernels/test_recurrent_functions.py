"""The native kernels of recurrent layers stand in for functions of transformers: given the same tensors they agree.

What transformers computes in chunks of tokens, in float32 and in another order, is as near as that order allows.
"""

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from transformers.models.bamba import modeling_bamba
from transformers.models.kimi_linear import modeling_kimi_linear
from transformers.models.mamba import modeling_mamba
from transformers.models.qwen3_5 import modeling_qwen3_5

from orcinus.engine.kernels.library import load_library
from orcinus.engine.recurrent.native_scans import NativeScans
from tests.unit.engine.kernels.recurrent_layers import Segments

LIBRARY = load_library()
TOKENS = 150  # more than two of the chunks of 64
ONE_SEQUENCE = Segments.of([TOKENS], [1], [True])

pytestmark = pytest.mark.skipif(LIBRARY is None, reason="there is no native kernel here")


@pytest.fixture
def scans() -> NativeScans:
    assert LIBRARY is not None
    return NativeScans(LIBRARY)


def in_torch(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return transformers' own code, without the search for packages that replace it."""
    own: Callable[..., Any] = inspect.unwrap(function)
    return own


def normal(*size: int) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(sum(size)))


def states(*shape: int) -> Tensor:
    return torch.full((2, *shape), torch.nan)


def assert_agree(found: Tensor, expected: Tensor) -> None:
    assert found.dtype is expected.dtype
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("activation", [None, "silu"])
def test_causal_conv1d_fn(scans: NativeScans, activation: str | None) -> None:
    x, weight, bias = normal(1, 24, TOKENS), normal(24, 4), normal(24)
    theirs = in_torch(modeling_qwen3_5.causal_conv1d_fn)(x, weight, bias, activation=activation)
    assert_agree(scans.convolve(x, weight, bias, activation, states=states(3, 24), segments=ONE_SEQUENCE), theirs)


def test_chunk_gated_delta_rule(scans: NativeScans) -> None:
    query, key, value = normal(1, TOKENS, 2, 32), normal(1, TOKENS, 2, 32) + 0.5, normal(1, TOKENS, 4, 48)
    decay, beta = -F.softplus(normal(1, TOKENS, 4) - 2), normal(1, TOKENS, 4).sigmoid()
    theirs, state = in_torch(modeling_qwen3_5.torch_chunk_gated_delta_rule)(
        query, key, value, g=decay, beta=beta, output_final_state=True, use_qk_l2norm_in_kernel=True
    )
    own = states(4, 32, 48)
    found = scans.delta_rule(
        query, key, value, decay=decay, beta=beta, normalized=True, states=own, segments=ONE_SEQUENCE
    )
    assert_agree(found, theirs)
    assert_agree(own[1:], state)


def test_chunk_kimi_delta_attention(scans: NativeScans) -> None:
    query, key, value = normal(1, TOKENS, 2, 32), normal(1, TOKENS, 2, 32) + 0.5, normal(1, TOKENS, 2, 48)
    decay, beta = -F.softplus(normal(1, TOKENS, 2, 32) - 2), normal(1, TOKENS, 2).sigmoid()
    theirs, state = in_torch(modeling_kimi_linear.chunk_kimi_delta_attention)(
        query, key, value, g=decay, beta=beta, output_final_state=True, use_qk_l2norm_in_kernel=True
    )
    own = states(2, 32, 48)
    found = scans.delta_rule(
        query, key, value, decay=decay, beta=beta, normalized=True, states=own, segments=ONE_SEQUENCE
    )
    assert_agree(found, theirs)
    assert_agree(own[1:], state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_mamba2_chunk_scan(scans: NativeScans, dtype: torch.dtype) -> None:
    x, dt = normal(1, TOKENS, 4, 16).to(dtype), normal(1, TOKENS, 4).to(dtype)
    b, c = normal(1, TOKENS, 2, 32).to(dtype), normal(1, TOKENS, 2, 32).to(dtype)
    a, d, dt_bias = -normal(4).exp(), normal(4).to(dtype), normal(4).to(dtype)
    limit = (0.01, 2.0)
    theirs, state = in_torch(modeling_bamba.mamba2_chunk_scan)(
        x, dt, a, b, c, 64, D=d, dt_bias=dt_bias, dt_softplus=True, dt_limit=limit, return_final_states=True
    )
    own = states(4, 16, 32)
    found = scans.mamba2(
        x,
        dt,
        a=a,
        b=b,
        c=c,
        d=d,
        dt_bias=dt_bias,
        has_softplus=True,
        dt_limit=limit,
        states=own,
        segments=ONE_SEQUENCE,
    )
    assert_agree(found, theirs)
    assert_agree(own[1:], state)


def test_mamba_selective_scan(scans: NativeScans) -> None:
    x, dt, z = normal(1, 20, TOKENS), normal(1, 20, TOKENS) - 1, normal(1, 20, TOKENS) + 1
    b, c = normal(1, 16, TOKENS), normal(1, 16, TOKENS) + 1
    a, d, dt_bias = -normal(20, 16).exp(), normal(20), normal(20)
    theirs, state = in_torch(modeling_mamba.mamba_selective_scan)(
        x, dt, a, b, c, D=d, z=z, delta_bias=dt_bias, delta_softplus=True, return_last_state=True
    )
    own = states(20, 16)
    found = scans.selective_scan(
        x,
        dt,
        a=a,
        b=b,
        c=c,
        d=d,
        z=z,
        dt_bias=dt_bias,
        has_softplus=True,
        states=own,
        segments=ONE_SEQUENCE,
    )
    assert_agree(found, theirs)
    assert_agree(own[1:], state)
