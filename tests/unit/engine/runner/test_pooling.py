"""Which pooling a model is served with, and chunks of hidden states that add up to one vector."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from orcinus.engine.errors import InvalidRequestError, ModelLoadError
from orcinus.engine.runner.pooling import POOLING_FILE, PooledPrompt, resolve_pooling, unit_vectors
from orcinus.engine.sampling_params import Pooling, SamplingParams


def write_config(directory: Path, content: Any) -> str:
    path = directory / POOLING_FILE
    path.parent.mkdir(parents=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(directory)


def switches(*names: str) -> dict[str, Any]:
    """As sentence-transformers wrote them for years: one switch for each mode."""
    every = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
    modes = {f"pooling_mode_{name}": name in names for name in every}
    return {"word_embedding_dimension": 64, **modes, "include_prompt": True}


@pytest.mark.parametrize(
    ("config", "pooling"),
    [
        (switches("mean_tokens"), "mean"),
        (switches("lasttoken"), "last"),
        ({"embedding_dimension": 64, "pooling_mode": "lasttoken"}, "last"),
        ({"embedding_dimension": 64, "pooling_mode": "mean"}, "mean"),
    ],
)
def test_auto_does_what_the_models_author_says(
    tmp_path: Path, config: Any, pooling: Pooling, caplog: pytest.LogCaptureFixture
) -> None:
    assert resolve_pooling("auto", write_config(tmp_path, config)) == pooling
    assert not caplog.records


@pytest.mark.parametrize(
    "config",
    [
        switches("cls_token"),
        switches("mean_tokens", "lasttoken"),
        switches(),
        {"pooling_mode": "cls"},
        {"pooling_mode": ["mean", "lasttoken"]},
        [],
        "no JSON",
    ],
)
def test_another_pooling_is_warned_of_and_replaced_by_the_mean(
    tmp_path: Path, config: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    assert resolve_pooling("auto", write_config(tmp_path, config)) == "mean"
    [record] = caplog.records
    assert POOLING_FILE in record.getMessage()


def test_auto_is_the_mean_where_the_model_says_nothing(tmp_path: Path) -> None:
    assert resolve_pooling("auto", str(tmp_path)) == "mean"


def test_a_setting_wins_over_the_model(tmp_path: Path) -> None:
    assert resolve_pooling("mean", write_config(tmp_path, switches("lasttoken"))) == "mean"


def test_a_hub_models_file_comes_from_the_hubs_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    snapshot = tmp_path / "models--acme--embedder" / "snapshots" / "0123abcd"
    write_config(snapshot, switches("lasttoken"))
    (refs := tmp_path / "models--acme--embedder" / "refs").mkdir()
    (refs / "main").write_text("0123abcd")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert resolve_pooling("auto", "acme/embedder") == "last"
    (snapshot / POOLING_FILE).unlink()
    assert resolve_pooling("auto", "acme/embedder") == "mean"


def test_a_hub_that_fails_is_said_to_have_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers.utils.hub

    def failing(*args: Any, **options: Any) -> str:
        raise OSError("503 from the hub")

    monkeypatch.setattr(transformers.utils.hub, "cached_file", failing)
    with pytest.raises(ModelLoadError, match="503 from the hub"):
        resolve_pooling("auto", "acme/embedder")


@settings(deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.sampled_from(["mean", "last"]))
def test_chunks_add_up_to_the_vector_of_the_whole(lengths: list[int], pooling: Pooling) -> None:
    hidden = torch.randn(sum(lengths), 16, generator=torch.Generator().manual_seed(sum(lengths)))
    pooled = PooledPrompt(pooling)
    for chunk in torch.split(hidden, lengths):
        pooled.add(chunk)
    vector = pooled.vector()
    wanted = hidden.mean(dim=0) if pooling == "mean" else hidden[-1]
    np.testing.assert_allclose(unit_vectors([vector])[0], wanted / wanted.norm(), atol=1e-6)


@settings(deadline=None)
@given(st.lists(st.integers(1, 150), min_size=1, max_size=6), st.sampled_from([torch.float32, torch.bfloat16]))
def test_a_vector_has_the_same_bits_however_its_prompt_was_cut(lengths: list[int], dtype: torch.dtype) -> None:
    hidden = torch.randn(sum(lengths), 16, generator=torch.Generator().manual_seed(sum(lengths))).to(dtype)
    whole, cut = PooledPrompt("mean"), PooledPrompt("mean")
    whole.add(hidden)
    for chunk in torch.split(hidden, lengths):
        cut.add(chunk)
    assert torch.equal(whole.vector(), cut.vector())


@pytest.mark.parametrize("size", [1, 5, 48, 333, 1024])
def test_a_vector_is_made_of_length_1_alike_alone_and_among_others(size: int) -> None:
    vectors = [*torch.randn(9, size, generator=torch.Generator().manual_seed(size))]
    alone = [unit_vectors([vector])[0].tobytes() for vector in vectors]
    assert [row.tobytes() for row in unit_vectors(vectors)] == alone


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_low_precision_is_added_up_in_float32(pooling: Pooling) -> None:
    hidden = torch.full((4096, 4), 1.0, dtype=torch.bfloat16)
    hidden[:, 0] = 1.0078125  # of which a sum of bfloat16 would lose all trace
    pooled = PooledPrompt(pooling)
    for chunk in torch.split(hidden, 100):
        pooled.add(chunk)
    [row] = unit_vectors([pooled.vector()])
    assert row.dtype == np.float32
    assert row[0] / row[1] == pytest.approx(1.0078125, rel=1e-6)


def test_vectors_of_no_length_stay_zero_and_what_is_not_a_number_stays_so() -> None:
    rows = unit_vectors([torch.zeros(3), torch.tensor([1.0, torch.nan, 0.0]), torch.tensor([3.0, 0.0, 4.0])])
    assert rows[0].tolist() == [0, 0, 0]
    assert not np.isfinite(rows[1]).any()
    assert rows[2].tolist() == pytest.approx([0.6, 0, 0.8])
    assert len(unit_vectors([])) == 0


@pytest.mark.parametrize("max_tokens", [None, 1, 16])
def test_a_request_to_be_embedded_generates_nothing(max_tokens: int | None) -> None:
    with pytest.raises(InvalidRequestError, match="max_tokens must be 0") as refused:
        SamplingParams(pooling="mean", max_tokens=max_tokens)
    assert refused.value.param == "max_tokens"
