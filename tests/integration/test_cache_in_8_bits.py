"""A KV cache in 8 bits, end to end: the same bits whatever runs beside a request, its size, and what is refused."""

import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from orcinus.engine.attention import choice
from orcinus.engine.errors import ModelLoadError
from orcinus.engine.kernels.library import load_library
from orcinus.engine.startup.build import build_executor
from orcinus.engine.startup.cache_dtype import check_int8_device
from tests.effort import slow_but_for
from tests.integration.test_determinism import (
    CROWDS,
    NATIVE_SHAPE,
    NATIVE_SHAPES,
    Executor,
    answers,
    answers_alone,
    core_of,
    executor_for,
    has,
    mixed_cases,
)
from tests.integration.tiny_models import build_model, engine_config
from tests.integration.truth import MAX_MODEL_LEN, serve

BLOCK = 16  # the smallest that a cache in 8 bits takes

pytestmark = pytest.mark.skipif(load_library() is None, reason="there is no native kernel here")


@pytest.fixture(scope="module")
def model_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    return cache(
        lambda family: build_model(family, tmp_path_factory.mktemp(family), **NATIVE_SHAPES.get(family, NATIVE_SHAPE))
    )


def load(model: Path, **settings: Any) -> Executor:
    return executor_for(model, **{"kv_cache_dtype": "int8", "block_size": BLOCK, "dtype": "bfloat16"} | settings)


def check_answers(executor: Executor) -> None:
    """Alone and in one piece; then in crowds, in chunks of other sizes, until some were preempted and some cached."""
    cases = mixed_cases(6)
    alone = answers_alone(executor, cases)
    num_preemptions = num_cached = 0
    for i, crowd in enumerate(CROWDS * 6):
        order = random.Random(i).sample([*range(len(cases))] * 2, 2 * len(cases))
        run = serve(core_of(executor, **crowd), [cases[j] for j in order], random.Random(i), f"crowd{i}-")
        assert answers(run) == [alone[j] for j in order]
        num_preemptions += run.num_preemptions
        num_cached += run.num_cached_tokens
        if i and num_preemptions and (num_cached or not executor[0].enable_prefix_caching):
            return
    pytest.fail("nothing was preempted, or nothing cached")


@pytest.mark.parametrize("family", slow_but_for(["llama", "mistral", "qwen3", "qwen3_5"], "llama", "mistral"))
def test_native_layers_answer_alike_alone_and_in_any_crowd(family: str, model_of: Callable[[str], Path]) -> None:
    """With sliding windows (mistral) and beside layers that keep states (qwen3_5), too."""
    if not has("bfloat16"):
        pytest.skip("our kernels do not multiply bfloat16 on this CPU")
    executor = load(model_of(family), deterministic=None)
    assert executor[0].is_deterministic
    assert executor[0].kv_cache_dtype == "int8"
    check_answers(executor)


def test_other_layers_in_float32_answer_alike_in_deterministic_mode(model_of: Callable[[str], Path]) -> None:
    check_answers(load(model_of("llama"), dtype="float32", deterministic=True))


def test_the_same_memory_holds_twice_the_tokens(model_of: Callable[[str], Path]) -> None:
    sizes = {"kv_cache_memory": 100_000, "deterministic": False, "max_num_seqs": 64}
    exact, _ = load(model_of("llama"), kv_cache_dtype="auto", **sizes)
    in_8_bits, _ = load(model_of("llama"), **sizes)
    head_dim = NATIVE_SHAPE["head_dim"]
    bytes_of = {info.kv_cache_dtype: info.kv_cache_bytes / info.num_kv_blocks for info in (exact, in_8_bits)}
    assert bytes_of["int8"] / bytes_of["bfloat16"] == (head_dim + 2) / (2 * head_dim)
    assert in_8_bits.num_kv_blocks == exact.num_kv_blocks * 2 * head_dim // (head_dim + 2)
    assert in_8_bits.kv_cache_bytes <= sizes["kv_cache_memory"]


def test_what_is_allocated_is_what_was_counted(model_of: Callable[[str], Path]) -> None:
    info, runner = load(model_of("llama"), deterministic=False)
    layers = {id(layer.cache): layer.cache for layer in runner._attention._layers.values()}
    assert sum(cache.keys.nbytes + cache.values.nbytes for cache in layers.values()) == info.kv_cache_bytes


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("deepseek_v2", {"dtype": "float32"}, "it caches latents"),
    ("gpt2", {"dtype": "float32"}, "its keys have 12 dimensions, and would need a multiple of 16, up to 512"),
    ("llama", {"dtype": "float16"}, "it computes in float16, and would need float32 or bfloat16"),
    ("llama", {"block_size": 20}, "blocks have 20 tokens, and would need a multiple of 16"),
]


@pytest.mark.parametrize(("family", "settings", "reason"), REFUSED)
def test_what_cannot_be_cached_so_is_refused_by_name(
    family: str, settings: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    model = build_model(family, tmp_path)
    config = {"kv_cache_dtype": "int8", "block_size": BLOCK, "max_model_len": MAX_MODEL_LEN}
    with pytest.raises(ModelLoadError, match="kv_cache_dtype=int8 cannot be had for") as error:
        build_executor(engine_config(model, **config | settings))
    assert reason in str(error.value)
    assert "--kv-cache-dtype auto" in str(error.value)


def test_without_native_kernels_it_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "load_library", lambda: None)
    with pytest.raises(ModelLoadError, match="it needs the native kernels"):
        build_executor(engine_config(build_model("llama", tmp_path), kv_cache_dtype="int8", dtype="float32"))


def test_on_a_gpu_it_is_refused_before_anything_is_loaded() -> None:
    with pytest.raises(ModelLoadError, match="for CPUs alone so far, and the device is cuda"):
        check_int8_device(torch.device("cuda"))
