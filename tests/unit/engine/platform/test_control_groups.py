"""Limits of control groups, in trees of files as both versions of the kernel's interface have them."""

from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from orcinus.engine.platform import control_groups, device
from orcinus.engine.platform.control_groups import MemoryLimit, core_limits, memory_limits
from orcinus.engine.platform.device import available_cores, available_memory, memory_limit

GIB = 2**30
# As a kernel writes it that does not limit a group of the first version.
UNLIMITED_V1 = 0x7FFFFFFFFFFFF000


class Tree:
    """The files of control groups, as one process sees them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.membership = root / "membership"

    def join(self, *lines: str) -> None:
        self.membership.write_text("".join(f"{line}\n" for line in lines))

    def write(self, group: str, **files: object) -> None:
        """Write `memory_max=1` to memory.max in the group, and so on."""
        directory = self.root / group
        directory.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            controller, _, rest = name.partition("_")
            (directory / f"{controller}.{rest}").write_text(f"{text}\n")


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tree:
    """No groups at all, on a machine of 64 GiB of which 60 are free."""
    tree = Tree(tmp_path / "cgroup")
    tree.root.mkdir()
    monkeypatch.setattr(control_groups, "_ROOT", tree.root)
    monkeypatch.setattr(control_groups, "_MEMBERSHIP", tree.membership)
    monkeypatch.setattr(device, "_STATUS", tmp_path / "status")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=64 * GIB, available=60 * GIB))
    return tree


def stat_v2(*, inactive_file: int = 0, active_file: int = 0, file_mapped: int = 0, anon: int = 0) -> str:
    counts = {
        "anon": anon,
        "file": inactive_file + active_file,
        "file_mapped": file_mapped,
        "inactive_anon": anon,
        "inactive_file": inactive_file,
        "active_file": active_file,
    }
    return "\n".join(f"{name} {count}" for name, count in counts.items())


def stat_v1(*, inactive_file: int = 0, active_file: int = 0, mapped_file: int = 0) -> str:
    """The group's own counts are 0: all its processes are in groups inside."""
    own = {"cache": 0, "mapped_file": 0, "inactive_file": 0, "active_file": 0}
    total = {"mapped_file": mapped_file, "inactive_file": inactive_file, "active_file": active_file}
    lines = [f"{name} {count}" for name, count in own.items()]
    return "\n".join(lines + [f"total_{name} {count}" for name, count in total.items()])


def test_without_groups_there_are_no_limits(tree: Tree) -> None:
    assert (memory_limits(), core_limits()) == ([], [])


def test_the_page_cache_of_a_model_that_was_read_is_not_in_use(tree: Tree) -> None:
    """A container of 16 GiB: 8 GiB of weights were read, and packed to 4; the reader's files are on either list."""
    tree.join("0::/")
    stat = stat_v2(anon=4 * GIB, inactive_file=5 * GIB, active_file=3 * GIB)
    tree.write("", memory_max=16 * GIB, memory_current=12 * GIB, memory_stat=stat)
    assert memory_limits() == [MemoryLimit(16 * GIB, 4 * GIB)]
    assert (memory_limit(), available_memory()) == (16 * GIB, 12 * GIB)


def test_weights_that_are_used_where_they_are_mapped_are_in_use(tree: Tree) -> None:
    tree.join("0::/")
    stat = stat_v2(anon=GIB, inactive_file=9 * GIB, active_file=GIB, file_mapped=8 * GIB)
    tree.write("", memory_max=16 * GIB, memory_current=11 * GIB, memory_stat=stat)
    assert memory_limits() == [MemoryLimit(16 * GIB, 9 * GIB)]


def test_shared_memory_is_in_use_and_is_no_page_cache_although_it_is_mapped(tree: Tree) -> None:
    tree.join("0::/")
    stat = stat_v2(anon=GIB, file_mapped=2 * GIB)
    tree.write("", memory_max=16 * GIB, memory_current=3 * GIB, memory_stat=stat)
    assert memory_limits() == [MemoryLimit(16 * GIB, 3 * GIB)]


def test_the_first_version_counts_the_groups_inside(tree: Tree) -> None:
    tree.join("4:memory:/docker/abc", "1:cpu,cpuacct:/docker/abc", "0::/")
    stat = stat_v1(inactive_file=6 * GIB, active_file=2 * GIB, mapped_file=GIB)
    tree.write(
        "memory", memory_limit_in_bytes=16 * GIB, memory_usage_in_bytes=12 * GIB, memory_stat=stat
    )  # in the container the mount is the group itself
    assert memory_limits() == [MemoryLimit(16 * GIB, 5 * GIB)]
    assert available_memory() == 11 * GIB


@pytest.mark.parametrize("own_limit", ["max", 30 * GIB])
def test_the_tightest_of_the_groups_around_counts(tree: Tree, own_limit: object) -> None:
    tree.join("0::/system.slice/orcinus.service")
    tree.write("system.slice", memory_max=20 * GIB, memory_high="max", memory_current=15 * GIB, memory_stat=stat_v2())
    tree.write(
        "system.slice/orcinus.service", memory_max=own_limit, memory_current=2 * GIB, memory_stat=stat_v2(anon=2 * GIB)
    )
    tree.write("another.slice", memory_max=GIB, memory_current=GIB)
    assert (memory_limit(), available_memory()) == (20 * GIB, 5 * GIB)


def test_a_full_group_inside_a_larger_one_is_full(tree: Tree) -> None:
    tree.join("4:memory:/pod/container", "0::/")
    tree.write("memory", memory_limit_in_bytes=UNLIMITED_V1, memory_usage_in_bytes=40 * GIB)
    tree.write("memory/pod", memory_limit_in_bytes=32 * GIB, memory_usage_in_bytes=9 * GIB)
    tree.write("memory/pod/container", memory_limit_in_bytes=8 * GIB, memory_usage_in_bytes=8 * GIB)
    assert (memory_limit(), available_memory()) == (8 * GIB, 0)


def test_a_group_that_is_held_up_beyond_less_than_its_limit_has_that_much(tree: Tree) -> None:
    tree.join("0::/orcinus.service")
    tree.write("orcinus.service", memory_max=16 * GIB, memory_high=10 * GIB, memory_current=4 * GIB)
    assert (memory_limit(), available_memory()) == (10 * GIB, 6 * GIB)


def test_cores_are_limited_by_the_tightest_group_of_either_version(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    tree.join("0::/pod/container", "1:cpu,cpuacct:/pod/container")
    tree.write("pod", cpu_max="150000 100000")
    tree.write("pod/container", cpu_max="max 100000")
    assert (core_limits(), available_cores()) == ([1.5], 2)
    tree.write("cpu/pod", cpu_cfs_quota_us=50_000, cpu_cfs_period_us=100_000)
    tree.write("cpu/pod/container", cpu_cfs_quota_us=-1, cpu_cfs_period_us=100_000)
    assert (sorted(core_limits()), available_cores()) == ([0.5, 1.5], 1)


def test_a_path_out_of_what_is_mounted_is_not_followed(tree: Tree) -> None:
    tree.join("0::/../outside")
    tree.write("", memory_max=16 * GIB, memory_current=GIB)
    tree.write("../outside", memory_max=GIB, memory_current=GIB)
    assert [limit.limit_bytes for limit in memory_limits()] == [16 * GIB]
