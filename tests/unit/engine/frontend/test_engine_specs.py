"""What each engine of a server is told."""

import os
from pathlib import Path

import pytest

from orcinus.config.settings import SettingsError
from orcinus.engine.frontend.engine_specs import engine_specs
from orcinus.engine.platform import shares
from tests.unit.engine.fakes import fake_settings


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {*range(4)}, raising=False)
    monkeypatch.setattr(shares, "available_cores", lambda: 4)


def test_one_engine_has_the_whole_machine(tmp_path: Path) -> None:
    (spec,) = engine_specs(fake_settings(tmp_path, kv_cache_memory=1000))
    assert (spec.config.share, spec.config.kv_cache_memory, spec.config.device) == (None, 1000, "auto")
    assert spec.config.num_sharing_memory == 1


def test_several_divide_cores_and_memory(tmp_path: Path) -> None:
    configs = [spec.config for spec in engine_specs(fake_settings(tmp_path, replicas=2, kv_cache_memory=1001))]
    assert [config.share.cores for config in configs if config.share] == [(0, 1), (2, 3)]
    assert [(config.kv_cache_memory, config.device, config.num_sharing_memory) for config in configs] == [
        (500, "cpu", 2),
        (500, "cpu", 2),
    ]
    assert [spec.config.kv_cache_memory for spec in engine_specs(fake_settings(tmp_path, replicas=3))] == [None] * 3


def test_several_divide_what_snapshots_have(tmp_path: Path) -> None:
    for wanted, share in ((None, None), (0, 0), (1001, 500)):
        configs = [spec.config for spec in engine_specs(fake_settings(tmp_path, replicas=2, state_cache_memory=wanted))]
        assert [config.state_cache_memory for config in configs] == [share, share]


def test_on_gpus_each_has_all_of_its_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    configs = [spec.config for spec in engine_specs(fake_settings(tmp_path, replicas=2, kv_cache_memory=1000))]
    assert [(config.kv_cache_memory, config.device, config.num_sharing_memory) for config in configs] == [
        (1000, "cuda", 1),
        (1000, "cuda", 1),
    ]


def test_more_than_there_are_cores_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="replicas is 5, but cores that this process may use are 4"):
        engine_specs(fake_settings(tmp_path, replicas=5))
