"""What the `model` setting can name."""

from pathlib import Path

import pytest

from orcinus.engine.errors import ModelLoadError
from orcinus.engine.platform.model_source import ModelSource, model_source


def test_directory_is_local(tmp_path: Path) -> None:
    assert model_source(str(tmp_path)) == ModelSource(str(tmp_path), None, is_local=True)
    assert model_source(str(tmp_path)).directory == tmp_path


def test_gguf_file_is_a_file_in_its_directory(tmp_path: Path) -> None:
    (tmp_path / "model.Q4_K_M.gguf").touch()
    source = model_source(str(tmp_path / "model.Q4_K_M.gguf"))
    assert source == ModelSource(str(tmp_path), "model.Q4_K_M.gguf", is_local=True)


@pytest.mark.parametrize("name", ["gpt2", "Qwen/Qwen3-0.6B", "org/model.v1.5"])
def test_hub_id_is_not_local(name: str) -> None:
    assert model_source(name) == ModelSource(name, None, is_local=False)
    assert model_source(name).directory is None


def test_gguf_file_on_the_hub() -> None:
    source = model_source("Qwen/Qwen3-0.6B-GGUF/Qwen3-0.6B-Q8_0.gguf")
    assert source == ModelSource("Qwen/Qwen3-0.6B-GGUF", "Qwen3-0.6B-Q8_0.gguf", is_local=False)


@pytest.mark.parametrize(
    "name", ["/no/such/model", "./model", "~/no-such-model", "a/b/c", "file.gguf", "./a/b.gguf", "", "a\\b"]
)
def test_path_to_nothing_is_refused(name: str) -> None:
    with pytest.raises(ModelLoadError, match="there is no"):
        model_source(name)


def test_home_directory_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    assert model_source("~/model").directory == tmp_path / "model"


def test_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.bin").touch()
    with pytest.raises(ModelLoadError, match="neither"):
        model_source(str(tmp_path / "model.bin"))
