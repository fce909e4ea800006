"""Files of tensors that can be made again: whole or not there, found by their keys, and few."""

import fcntl
import multiprocessing
import os
import signal
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from orcinus.engine.platform import tensor_cache
from orcinus.engine.platform.tensor_cache import MOST_FILES, TensorCache


@pytest.fixture(autouse=True)
def any_disk_has_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_cache, "_SPARE_BYTES", 0)
    monkeypatch.setattr(tensor_cache, "_IN_MEMORY", ())


def tensors(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "bytes": torch.randint(0, 256, (6 * 2**20,), dtype=torch.uint8, generator=generator),
        "floats": torch.randn(64, generator=generator),
        "integers": torch.arange(16, dtype=torch.int32),
    }


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    cache, given = TensorCache(tmp_path / "a" / "b"), tensors()
    assert cache.read("key") is None
    assert cache.write("key", given, {"of": ["what"]})
    found = cache.read("key")
    assert found is not None
    assert found.description == {"of": ["what"]}
    assert found.tensors.keys() == given.keys()
    for name, tensor in given.items():
        assert torch.equal(found.tensors[name], tensor)
        assert found.tensors[name].data_ptr() % 64 == 0
    assert cache.read("other") is None


def test_safetensors_reads_the_file(tmp_path: Path) -> None:
    TensorCache(tmp_path).write("key", tensors(), None)
    loaded = load_file(tmp_path / "key.safetensors")
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors().items())


def test_who_writes_to_what_was_read_changes_no_file(tmp_path: Path) -> None:
    cache = TensorCache(tmp_path)
    cache.write("key", tensors(), None)
    for _ in range(2):
        found = cache.read("key")
        assert found is not None
        assert torch.equal(found.tensors["floats"], tensors()["floats"])
        found.tensors["floats"].zero_()


@pytest.mark.parametrize("at", [0, 9, 5000, 5_000_000, -1])
def test_every_byte_counts(at: int, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = TensorCache(tmp_path)
    cache.write("key", tensors(), {"of": "what"})
    file = tmp_path / "key.safetensors"
    data = bytearray(file.read_bytes())
    data[at] ^= 0x10
    file.write_bytes(data)
    assert cache.read("key") is None
    assert "packed weights that were kept are not used" in caplog.text


def test_a_file_under_another_key_is_not_used(tmp_path: Path) -> None:
    cache = TensorCache(tmp_path)
    cache.write("key", tensors(), None)
    (tmp_path / "key.safetensors").rename(tmp_path / "other.safetensors")
    assert cache.read("other") is None


def die_while_writing(directory: Path) -> None:
    write = os.write

    def half(file: int, data: Any) -> int:
        if len(data) > 2**20:
            write(file, data[: len(data) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        return write(file, data)

    os.write = half
    TensorCache(directory).write("key", tensors(), None)


def test_who_is_killed_while_writing_leaves_nothing_that_is_read(tmp_path: Path) -> None:
    child = multiprocessing.get_context("spawn").Process(target=die_while_writing, args=(tmp_path,))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert [file.name for file in tmp_path.iterdir()] == ["key.partial"]
    cache = TensorCache(tmp_path)
    assert cache.read("key") is None
    assert cache.write("another", tensors(1), None)
    assert [file.name for file in tmp_path.iterdir()] == ["another.safetensors"]
    assert cache.write("key", tensors(), None)
    assert cache.read("key") is not None


def test_of_two_that_write_the_same_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And neither sees what the other has not finished."""
    cache, write = TensorCache(tmp_path), os.write
    during: list[Any] = []

    def and_try(file: int, data: Any) -> int:
        if not during:
            during.append(None)
            during.extend([cache.read("key"), TensorCache(tmp_path).write("key", tensors(), None)])
        return write(file, data)

    monkeypatch.setattr(os, "write", and_try)
    assert cache.write("key", tensors(), None)
    assert during == [None, None, False]
    assert [file.name for file in tmp_path.iterdir()] == ["key.safetensors"]


def test_who_opened_what_has_been_finished_meanwhile_leaves_it_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    partial, whole, lock = tmp_path / "key.partial", tmp_path / "key.safetensors", fcntl.flock
    partial.write_bytes(b"all of it")

    def after_it_was_finished(file: int, operation: int) -> None:
        partial.replace(whole)
        lock(file, operation)

    monkeypatch.setattr(fcntl, "flock", after_it_was_finished)
    assert not TensorCache(tmp_path)._write("key", tensors(), None)
    assert whole.read_bytes() == b"all of it"


def test_full_disk_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cache = TensorCache(tmp_path)
    monkeypatch.setattr(tensor_cache, "_SPARE_BYTES", 2**60)
    assert not cache.write("key", tensors(), None)
    assert "they have 6 MiB, of" in caplog.text
    monkeypatch.setattr(tensor_cache, "_SPARE_BYTES", 0)
    write, written = os.write, [0]

    def until_full(file: int, data: Any) -> int:
        if written[0] > 2**20:
            raise OSError(28, "No space left on device")
        written[0] += len(data)
        return write(file, data)

    monkeypatch.setattr(os, "write", until_full)
    assert not cache.write("key", tensors(), None)
    assert "No space left on device" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_those_that_were_used_last_stay(tmp_path: Path) -> None:
    cache = TensorCache(tmp_path)
    for i in range(MOST_FILES):
        cache.write(f"{i}", tensors(i), None)
        os.utime(tmp_path / f"{i}.safetensors", ns=(i, i))
    assert cache.read("0") is not None
    cache.write("new", tensors(), None)
    names = {file.stem for file in tmp_path.iterdir()}
    assert names == {"0", "2", "3", "new"}


def test_what_is_mapped_stays_when_its_file_is_removed(tmp_path: Path) -> None:
    cache = TensorCache(tmp_path)
    cache.write("key", tensors(), None)
    found = cache.read("key")
    assert found is not None
    (tmp_path / "key.safetensors").unlink()
    assert torch.equal(found.tensors["bytes"], tensors()["bytes"])


def test_what_may_only_be_read_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = TensorCache(tmp_path)
    cache.write("key", tensors(), None)

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(30, "Read-only file system")

    monkeypatch.setattr(os, "utime", refuse)
    assert cache.read("key") is not None


@pytest.mark.skipif(not os.path.ismount("/dev/shm"), reason="there is no file system in memory")
def test_nothing_is_kept_in_memory(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(tensor_cache, "_IN_MEMORY", ("tmpfs", "ramfs"))
    caplog.set_level("INFO", logger="orcinus")
    with TemporaryDirectory(dir="/dev/shm") as directory:
        cache = TensorCache(Path(directory) / "packed")
        assert not cache.write("key", tensors(), None)
        assert cache.read("key") is None
        assert [path for path in Path(directory).rglob("*") if path.is_file()] == []
    assert "which lies in memory" in caplog.text
