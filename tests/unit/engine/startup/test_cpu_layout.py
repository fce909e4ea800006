"""Which parts of a loaded model our kernels take over, on machines that can do more or less."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AttentionInterface

from orcinus.engine.attention import choice
from orcinus.engine.attention.serving import ATTENTION_NAME, attention_function
from orcinus.engine.cpu.decoder_layers import NativeDecoder
from orcinus.engine.cpu.int8_linear import Int8Linear
from orcinus.engine.cpu.native_linear import NativeLinear, can_multiply
from orcinus.engine.cpu.packed_linear import PackedEmbedding, PackedLinear
from orcinus.engine.kernels.build import library_path
from orcinus.engine.kernels.library import Library, load_library
from orcinus.engine.platform.device import cpu_has_bfloat16
from orcinus.engine.startup import cpu_layout
from orcinus.engine.startup.cpu_layout import lay_out_for_cpu, weight_bytes
from orcinus.engine.startup.probe import ServedModel, probe_model
from tests.integration.tiny_models import random_model

CPU = torch.device("cpu")
BEST = load_library()
SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
}
LAID_OUT = {NativeDecoder, NativeLinear, PackedEmbedding, PackedLinear, Int8Linear, nn.Linear}

needs_kernels = pytest.mark.skipif(
    BEST is None or not can_multiply(BEST, "bfloat16") or not can_multiply(BEST, "int8"),
    reason="this CPU does not multiply what our kernels multiply",
)
needs_onednn = pytest.mark.skipif(not cpu_has_bfloat16(), reason="this CPU does not multiply bfloat16")

Machine = Callable[..., Library | None]


@pytest.fixture(autouse=True)
def paged() -> Iterator[None]:
    AttentionInterface.register(ATTENTION_NAME, attention_function)
    with torch.inference_mode():
        yield


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Makes this machine one that has a library or not, and that multiplies only so much."""

    def make(*, has_library: bool = True, **abilities: bool) -> Library | None:
        library = Library(library_path()) if has_library else None
        for name, value in abilities.items():
            setattr(library, name, value)
        for module in (choice, cpu_layout):
            monkeypatch.setattr(module, "load_library", lambda: library)
        return library

    return make


def laid_out(
    quantization: str | None, dtype: str = "bfloat16", *, class_name: str = "LlamaConfig", **settings: Any
) -> ServedModel:
    model = random_model(class_name, dtype, ATTENTION_NAME, **SHAPE | settings)
    served = probe_model(model, CPU)
    lay_out_for_cpu(served, quantization)
    return served


def kinds_of(served: ServedModel) -> set[type]:
    return {type(module) for module in served.model.causal_lm.modules()} & LAID_OUT


@needs_kernels
@pytest.mark.parametrize("quantization", [None, "int8"])
def test_whole_layers_and_the_head_are_taken_over(machine: Machine, quantization: str | None) -> None:
    library = machine()
    served = laid_out(quantization)
    assert kinds_of(served) == {NativeDecoder, NativeLinear}
    assert not served.recorded_calls, "nothing that the first run left behind"
    assert library is not None
    own_threads = Library(library_path())
    own_threads.use_threads(1, own=True)
    assert library.team.parallel == own_threads.team.parallel, "who does most of a step has threads of its own"


@needs_kernels
@pytest.mark.parametrize("quantization", [None, "int8"])
def test_layers_of_other_families_are_packed_one_by_one(machine: Machine, quantization: str | None) -> None:
    library = machine()
    served = laid_out(quantization, class_name="Gemma2Config", query_pre_attn_scalar=16)
    assert NativeLinear in kinds_of(served)
    assert not kinds_of(served) & {NativeDecoder, nn.Linear}
    assert library is not None
    torch_threads = Library(library_path())
    torch_threads.use_threads(1, own=False)
    assert library.team.parallel == torch_threads.team.parallel


@needs_kernels
def test_machine_that_multiplies_no_plain_weights(machine: Machine) -> None:
    machine(has_plain_linear=False, has_decoder=False)
    assert kinds_of(laid_out("int8")) == {Int8Linear}
    assert NativeDecoder not in kinds_of(laid_out(None))


@needs_onednn
def test_bfloat16_is_left_to_onednn_where_there_is_no_library(machine: Machine) -> None:
    machine(has_library=False)
    assert kinds_of(laid_out(None)) == {PackedLinear}


def test_without_a_library_8_bits_are_torchs(machine: Machine) -> None:
    machine(has_library=False)
    for dtype in ("bfloat16", "float32"):
        assert kinds_of(laid_out("int8", dtype)) == {Int8Linear}


def test_float32_stays_as_it_is(machine: Machine) -> None:
    machine(has_library=BEST is not None)
    served = laid_out(None, "float32")
    assert kinds_of(served) == {nn.Linear}
    assert weight_bytes(served.model.causal_lm) == served.weight_bytes


@needs_kernels
def test_tied_weights_are_there_once_in_bfloat16(machine: Machine) -> None:
    machine()
    served = laid_out(None, tie_word_embeddings=True, hidden_size=256)
    assert kinds_of(served) == {NativeDecoder, NativeLinear, PackedEmbedding}
    laid_out_bytes = weight_bytes(served.model.causal_lm)
    assert 0.98 * served.weight_bytes < laid_out_bytes < 1.02 * served.weight_bytes


@needs_kernels
def test_tied_weights_are_there_as_an_embedding_and_as_a_quantized_head(machine: Machine) -> None:
    machine()
    served = laid_out("int8", tie_word_embeddings=True, hidden_size=256)
    embedding = served.model.causal_lm.get_input_embeddings()
    assert type(embedding) is nn.Embedding
    quantized = weight_bytes(served.model.causal_lm) - embedding.weight.nbytes
    assert 0.49 * served.weight_bytes < quantized < 0.52 * served.weight_bytes


@needs_kernels
def test_weights_of_a_mapped_file_are_let_go(machine: Machine, tmp_path: Path) -> None:
    """Packed weights are not read again: only the embedding and the norms still are."""
    from orcinus.engine.models.loader import load_causal_lm
    from tests.integration.tiny_models import engine_config

    machine()
    directory = tmp_path / "model"
    random_model("LlamaConfig", "bfloat16", **SHAPE | {"hidden_size": 512, "intermediate_size": 2048}).save_pretrained(
        directory
    )
    causal_lm = load_causal_lm(engine_config(directory, dtype="bfloat16"), CPU)
    file = str(directory / "model.safetensors")
    served = probe_model(causal_lm, CPU)
    before = resident_bytes(file)
    lay_out_for_cpu(served, None)
    assert resident_bytes(file) < 0.2 * before


def resident_bytes(file: str) -> int:
    """Of what this process has mapped from a file, as Linux tells it."""
    lines = iter(Path("/proc/self/smaps").read_text().splitlines())
    total = 0
    for line in lines:
        if line.endswith(file):
            total += next(int(entry.split()[1]) * 1024 for entry in lines if entry.startswith("Rss:"))
    return total
