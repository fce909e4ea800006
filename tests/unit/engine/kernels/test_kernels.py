"""The native attention kernel: its numbers, whatever the shapes; what happens where it cannot be built or loaded."""

import logging
import stat
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from orcinus.engine.attention.dense import causal_mask
from orcinus.engine.attention.interface import AttentionSpec, LayerCache, LayerShape, batch_metadata
from orcinus.engine.attention.native_backend import NativeBackend
from orcinus.engine.kernels import build, library
from orcinus.engine.kernels.build import library_path
from orcinus.engine.kernels.library import INSTRUCTION_SETS, Library, gomp_parallel, load_library
from tests.effort import scaled

CPU = torch.device("cpu")
BEST = load_library()
LEVELS = range(0 if BEST is None else INSTRUCTION_SETS.index(BEST.instruction_set) + 1)
# Of the largest value: rounding of float32 sums, and of weights and results to bfloat16.
TOLERANCE = {torch.float32: 4e-6, torch.bfloat16: 8e-3}

needs_kernel = pytest.mark.skipif(BEST is None, reason="there is no native kernel here")


class Case:
    """A step of several sequences with what came before it, in random tensors."""

    def __init__(
        self, shape: LayerShape, num_heads: int, spans: list[tuple[int, int]], dtype: torch.dtype, seed: int = 0
    ) -> None:
        generator = torch.Generator().manual_seed(seed)

        def normal(*size: int) -> Tensor:
            return torch.randn(*size, generator=generator).to(dtype)

        self.shape, self.spans, self.dtype = shape, spans, dtype
        self.query = [2 * normal(end, num_heads, shape.key_dim) for _, end in spans]
        self.keys = [normal(end, shape.num_kv_heads, shape.key_dim) for _, end in spans]
        self.values = [normal(end, shape.num_kv_heads, shape.value_dim) for _, end in spans]

    def only(self, index: int) -> "Case":
        case = Case.__new__(Case)
        case.shape, case.dtype = self.shape, self.dtype
        for name in ("spans", "query", "keys", "values"):
            setattr(case, name, [getattr(self, name)[index]])
        return case

    def expected(self, spec: AttentionSpec) -> Tensor:
        parts = [
            exact_attention(q[first:end], k, v, spec)
            for (first, end), q, k, v in zip(self.spans, self.query, self.keys, self.values, strict=True)
        ]
        return torch.cat(parts)

    def run(self, backend: NativeBackend, spec: AttentionSpec, block_size: int) -> Tensor:
        """Write what came before first, over a cache full of NaN; the tensors of the step are strided views."""
        width = max(-(-end // block_size) for _, end in self.spans)
        blocks = np.random.default_rng(0).permutation(len(self.spans) * width + 2)[2:].astype(np.int32)
        tables = blocks.reshape(len(self.spans), width)
        layer = backend.allocate(self.shape, blocks.size + 2, block_size, self.dtype, CPU)
        layer.keys.fill_(torch.nan)
        layer.values.fill_(torch.nan)
        for i, (first, _) in enumerate(self.spans):
            if first:
                self._run_spans(backend, layer, spec, [(i, 0, first)], tables, block_size)
        spans = [(i, first, end) for i, (first, end) in enumerate(self.spans)]
        return self._run_spans(backend, layer, spec, spans, tables, block_size)

    def _run_spans(
        self,
        backend: NativeBackend,
        layer: LayerCache,
        spec: AttentionSpec,
        spans: list[tuple[int, int, int]],
        tables: np.ndarray,
        block_size: int,
    ) -> Tensor:
        rows = [i for i, _, _ in spans]
        meta = batch_metadata([(first, end) for _, first, end in spans], tables[rows], block_size, CPU)
        query, keys, values = (
            torch.cat([tensors[i][first:end] for i, first, end in spans])
            for tensors in (self.query, self.keys, self.values)
        )
        merged = torch.cat([tensor.flatten(1) for tensor in (query, keys, values)], dim=1)
        views = torch.split(merged, [tensor[0].numel() for tensor in (query, keys, values)], dim=1)
        query, keys, values = (
            view.view(-1, *tensor.shape[1:]) for view, tensor in zip(views, (query, keys, values), strict=True)
        )
        return backend.run(layer, query, keys, values, spec=spec, meta=meta)


def exact_attention(query: Tensor, keys: Tensor, values: Tensor, spec: AttentionSpec) -> Tensor:
    """In float64; (queries, heads, dim) over (keys, kv_heads, dim)."""
    groups = query.shape[1] // keys.shape[1]
    keys, values = (tensor.double().repeat_interleave(groups, dim=1) for tensor in (keys, values))
    scores = torch.einsum("qhd,khd->hqk", query.double(), keys) * spec.scale
    if spec.softcap is not None:
        scores = spec.softcap * torch.tanh(scores / spec.softcap)
    scores = scores.masked_fill(~causal_mask(query.shape[0], keys.shape[0], spec.window, CPU), -torch.inf)
    if spec.sinks is not None:
        scores = torch.cat([scores, spec.sinks.double().view(-1, 1, 1).expand(*scores.shape[:2], 1)], dim=-1)
    weights = torch.softmax(scores, dim=-1)[..., : keys.shape[0]]
    return torch.einsum("hqk,khd->qhd", weights, values)


def native(level: int | None = None) -> NativeBackend:
    return NativeBackend(Library(library_path(), level))


def check(case: Case, spec: AttentionSpec, block_size: int, level: int) -> None:
    expected = case.expected(spec)
    error = (case.run(native(level), spec, block_size).double() - expected).abs().max()
    assert float(error / expected.abs().max()) < TOLERANCE[case.dtype]


@st.composite
def spans(draw: st.DrawFn) -> list[tuple[int, int]]:
    """Single tokens first, then chunks; lengths around the kernel's tile of 64."""
    lengths = st.one_of(st.integers(1, 20), st.integers(60, 70), st.integers(120, 300))
    decodes = [(length - 1, length) for length in draw(st.lists(lengths, max_size=3))]
    chunks = [(first, first + size) for first, size in draw(st.lists(st.tuples(lengths, lengths), max_size=2))]
    whole = [(0, draw(lengths) + 1)]
    return decodes + chunks + whole


@needs_kernel
@pytest.mark.parametrize("level", LEVELS)
@settings(max_examples=scaled(40))
@given(
    spans=spans(),
    num_kv_heads=st.integers(1, 3),
    group=st.integers(1, 8),
    dims=st.tuples(*[st.sampled_from([64, 80, 96, 128, 256, 1, 6, 33, 47])] * 2),
    block_size=st.sampled_from([1, 8, 16, 20, 32, 64, 128]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    window=st.none() | st.integers(1, 200),
    softcap=st.none() | st.floats(0.5, 50),
    has_sinks=st.booleans(),
)
def test_ragged_batches_of_any_shape_attend_as_the_definition_says(
    level: int,
    spans: list[tuple[int, int]],
    num_kv_heads: int,
    group: int,
    dims: tuple[int, int],
    block_size: int,
    dtype: torch.dtype,
    window: int | None,
    softcap: float | None,
    has_sinks: bool,
) -> None:
    num_heads = num_kv_heads * group
    sinks = torch.linspace(-1, 2, num_heads) if has_sinks else None
    spans = sorted(spans, key=lambda span: span[1] - span[0] > 1)
    case = Case(LayerShape(num_kv_heads, *dims), num_heads, spans, dtype)
    check(case, AttentionSpec(dims[0] ** -0.5, window, softcap, sinks), block_size, level)


@needs_kernel
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("window", [None, 700])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_long_sequences_are_shared_out_and_joined(level: int, window: int | None, dtype: torch.dtype) -> None:
    case = Case(LayerShape(2, 64, 64), 4, [(1499, 1500), (511, 512), (512, 513), (900, 1300)], dtype)
    check(case, AttentionSpec(0.125, window, sinks=torch.tensor([0.5, -1.0, 2.0, 0.0])), 32, level)


@needs_kernel
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_result_depends_on_nothing_but_its_own_sequence(dtype: torch.dtype) -> None:
    case = Case(LayerShape(4, 64, 64), 8, [(1199, 1200), (80, 81), (0, 300)], dtype)
    spec = AttentionSpec(0.125)
    together = torch.split(case.run(native(), spec, 16), [1, 1, 300])
    for i, part in enumerate(together):
        assert torch.equal(part, case.only(i).run(native(), spec, 48))


@needs_kernel
def test_scores_too_large_for_exp_and_sinks_that_take_everything_stay_finite() -> None:
    case = Case(LayerShape(1, 64, 64), 2, [(99, 100), (0, 80)], torch.float32)
    spec = AttentionSpec(30.0)
    torch.testing.assert_close(case.run(native(), spec, 16).double(), case.expected(spec), rtol=1e-3, atol=1e-3)
    out = case.run(native(), AttentionSpec(0.1, sinks=torch.tensor([500.0, 500.0])), 16)
    assert torch.equal(out, torch.zeros_like(out))


@needs_kernel
def test_query_in_another_dtype_than_the_cache_comes_back_in_its_own() -> None:
    case = Case(LayerShape(1, 16, 16), 1, [(0, 5)], torch.float32)
    expected = case.expected(AttentionSpec(0.25))
    backend = native()
    layer = backend.allocate(case.shape, 1, 8, torch.float32, CPU)
    meta = batch_metadata([(0, 5)], np.zeros((1, 1), dtype=np.int32), 8, CPU)
    backwards = case.query[0].half().flip(2).contiguous().flip(2)
    out = backend.run(layer, backwards, case.keys[0], case.values[0], spec=AttentionSpec(0.25), meta=meta)
    assert out.dtype == torch.float16
    torch.testing.assert_close(out.double(), expected, rtol=1e-2, atol=1e-2)


@needs_kernel
@pytest.mark.parametrize("own", [True, False])
def test_threads_change_nothing_but_the_time(own: bool) -> None:
    case = Case(LayerShape(2, 64, 64), 8, [(1299, 1300), (699, 700), (0, 400)], torch.float32)
    spec = AttentionSpec(0.125, sinks=torch.arange(8.0))
    backend = native()
    assert backend.library.team.num_threads == 1
    alone = case.run(backend, spec, 32)
    backend.library.use_threads(3, own=own)
    assert backend.library.team.parallel
    assert all(torch.equal(case.run(backend, spec, 32), alone) for _ in range(5))


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc for the runtime")
def test_threads_are_those_of_torch() -> None:
    assert gomp_parallel()
    assert "/torch/lib/" in library._openmp_libraries()[0]


# --- building and loading -------------------------------------------------------------------------------


@pytest.fixture
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, a package without a library, and no compiler."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(build, "LIBRARY_NAME", "absent.so")
    return build.cache_folder()


def compiler(folder: Path, script: str) -> None:
    """A compiler that does what the script says; its arguments end with the output."""
    folder.mkdir()
    path = folder / "g++"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.mark.usefixtures("cache_folder")
def test_machine_without_a_compiler_goes_on_without_the_kernel(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert load_library.__wrapped__() is None
    assert "there is no C++ compiler" in caplog.text


def test_compiler_that_fails_leaves_nothing_behind(cache_folder: Path, tmp_path: Path) -> None:
    compiler(tmp_path / "bin", "echo 'no such header' >&2; exit 1")
    with pytest.raises(RuntimeError, match="no such header"):
        library_path()
    assert list(cache_folder.iterdir()) == []


def test_file_that_is_no_library_is_a_fallback_too(
    cache_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    compiler(tmp_path / "bin", 'for last; do :; done; echo nonsense > "$last"')
    assert load_library.__wrapped__() is None
    assert "there are no native kernels" in caplog.text
    assert len(list(cache_folder.iterdir())) == 1


def test_library_is_built_once_and_again_when_its_sources_change(
    cache_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler(tmp_path / "bin", f'echo x >> {tmp_path}/runs; for last; do :; done; echo nonsense > "$last"')
    assert library_path() == library_path()
    monkeypatch.setattr(build, "FLAGS", (*build.FLAGS, "-DOTHER"))
    library_path()
    assert (tmp_path / "runs").read_text().count("x") == 2
    assert len(list(cache_folder.iterdir())) == 2


@needs_kernel
def test_shipped_library_is_taken_only_if_it_was_built_from_these_sources(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = tmp_path / "shipped.so"
    shipped.write_bytes(library_path().read_bytes())
    monkeypatch.setattr(build, "LIBRARY_NAME", str(shipped))
    assert library_path() == shipped
    monkeypatch.setattr(build, "source_hash", lambda: "another")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", "")
    with pytest.raises(RuntimeError, match="no C\\+\\+ compiler"):
        library_path()
