"""What the control groups of this process leave it: memory and processor time, in both versions of the kernel's files.

A group lies in others, and each of them may have a limit: what is left is what the tightest one leaves. The groups
around a container are not seen in it, as those of a service are on its machine. Knows nothing of devices and models.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_MEMBERSHIP = Path("/proc/self/cgroup")
_ROOT = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class _MemoryFiles:
    """Says how a version of control groups names what is read of it. The counts are with those of the groups inside."""

    limits: tuple[str, ...]
    used: str
    cached: tuple[str, ...]  # in memory.stat: pages of files
    mapped: str  # those of them that a process has mapped


_MEMORY_V1 = _MemoryFiles(
    ("memory.limit_in_bytes",),
    "memory.usage_in_bytes",
    ("total_inactive_file", "total_active_file"),
    "total_mapped_file",
)
# Beyond `memory.high` nothing is killed, but everything is held up.
_MEMORY_V2 = _MemoryFiles(
    ("memory.max", "memory.high"), "memory.current", ("inactive_file", "active_file"), "file_mapped"
)


@dataclass(frozen=True, slots=True)
class MemoryLimit:
    """Tells what one group may use, and what it uses that could not be had back: see `memory_limits`."""

    limit_bytes: int
    used_bytes: int

    @property
    def left_bytes(self) -> int:
        return max(0, self.limit_bytes - self.used_bytes)


def memory_limits() -> list[MemoryLimit]:
    """Return the limits of memory that hold for this process; none is the usual case outside containers.

    A group's count has the page cache of all files that its processes read: the whole of a model that was just loaded.
    The kernel drops those pages before it refuses or kills anything, so that they are as good as free, on its list of
    active ones as on that of inactive ones. Files that are mapped are not: weights may be used where they lie in one,
    and would be read from the disk in every step.
    """
    groups = [(group, _MEMORY_V2) for group in _groups_v2()]
    groups += [(group, _MEMORY_V1) for group in _groups_v1("memory")]
    return [
        MemoryLimit(int(text), _used_bytes(group, files))
        for group, files in groups
        for name in files.limits
        if (text := read_system_file(group / name)).isdigit()
    ]


def core_limits() -> list[float]:
    """Return how many cores' time this process may use at most, by each of its groups that says so."""
    quotas = [read_system_file(group / "cpu.max").split() for group in _groups_v2()]
    quotas += [
        [read_system_file(group / "cpu.cfs_quota_us"), read_system_file(group / "cpu.cfs_period_us")]
        for group in _groups_v1("cpu")
    ]
    return [int(quota[0]) / int(quota[1]) for quota in quotas if len(quota) == 2 and all(map(str.isdigit, quota))]


def _used_bytes(group: Path, files: _MemoryFiles) -> int:
    used = read_system_file(group / files.used)
    if not used.isdigit():
        return 0
    stat = dict(line.split(maxsplit=1) for line in read_system_file(group / "memory.stat").splitlines())
    cached = sum(int(stat.get(name, 0)) for name in files.cached)
    return int(used) - max(0, cached - int(stat.get(files.mapped, 0)))


def _groups_v2() -> Iterator[Path]:
    return _groups(_ROOT, "")


def _groups_v1(controller: str) -> Iterator[Path]:
    return _groups(_ROOT / controller, controller)


def _groups(mount: Path, controller: str) -> Iterator[Path]:
    """Yield the group that this process is in, and those around it, up to where the controller is mounted.

    In a container the mount may be the group itself, whose path is then told as the machine sees it: what is not found
    there is skipped as it is read.
    """
    for line in read_system_file(_MEMBERSHIP).splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(",") and ".." not in Path(path).parts:
            group = mount / path.lstrip("/")
            while group != mount:
                yield group
                group = group.parent
    yield mount


def read_system_file(path: Path) -> str:
    """Return the file's text, an empty one if the system has no such file."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""
