"""What the processors used, by their own meters: RAPL, as Linux shows it in /sys/class/powercap.

Most systems let root alone read it. The meters count all that a package did, for whatever process.
"""

import re
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")
_PACKAGE_ZONE = re.compile(r"intel-rapl:\d+")  # of AMD's processors, too; their parts are intel-rapl:0:1 and so on


class CpuEnergy:
    """Adds up the meters of all packages from now on; they wrap around, some within a quarter of an hour."""

    def __init__(self, root: Path = POWERCAP) -> None:
        self._zones = [zone for path in sorted(root.glob("*")) if (zone := _Zone.at(path)) is not None]

    def read_j(self) -> float | None:
        """Return the joules used since this was made; None where there is no meter, or none that may be read."""
        if not self._zones:
            return None
        return sum(zone.read_uj() for zone in self._zones) / 1_000_000


class _Zone:
    """The meter of one package."""

    def __init__(self, path: Path) -> None:
        """Raise `OSError` or `ValueError` where the meter cannot be read."""
        self._meter = path / "energy_uj"
        self._range_uj = int((path / "max_energy_range_uj").read_text())
        self._last_uj = int(self._meter.read_text())
        self._used_uj = 0

    @classmethod
    def at(cls, path: Path) -> "_Zone | None":
        """Return the zone in this folder, None where it is no package or may not be read."""
        try:
            is_package = _PACKAGE_ZONE.fullmatch(path.name) and (path / "name").read_text().startswith("package")
            return cls(path) if is_package else None
        except (OSError, ValueError):
            return None

    def read_uj(self) -> int:
        try:
            now_uj = int(self._meter.read_text())
        except (OSError, ValueError):
            return self._used_uj
        passed_uj = now_uj - self._last_uj
        self._used_uj += passed_uj if passed_uj >= 0 else passed_uj + self._range_uj
        self._last_uj = now_uj
        return self._used_uj
