"""RAPL's meters: packages alone, added up, and over the point where they begin again."""

from pathlib import Path

import pytest

from orcinus.server.exposition.cpu_energy import CpuEnergy


def zone(root: Path, name: str, label: str, energy_uj: int, range_uj: int = 1_000_000) -> Path:
    path = root / name
    path.mkdir()
    (path / "name").write_text(f"{label}\n")
    (path / "energy_uj").write_text(f"{energy_uj}\n")
    (path / "max_energy_range_uj").write_text(f"{range_uj}\n")
    return path


def test_packages_count_and_their_parts_and_the_platform_do_not(tmp_path: Path) -> None:
    meters = [
        zone(tmp_path, "intel-rapl:0", "package-0", 100_000),
        zone(tmp_path, "intel-rapl:1", "package-1", 200_000),
        zone(tmp_path, "intel-rapl:0:0", "core", 50_000),
        zone(tmp_path, "intel-rapl:2", "psys", 900_000),
    ]
    energy = CpuEnergy(tmp_path)
    assert energy.read_j() == 0.0
    for meter in meters:
        (meter / "energy_uj").write_text(str(int((meter / "energy_uj").read_text()) + 50_000))
    assert energy.read_j() == pytest.approx(0.1)


def test_a_meter_that_begins_again_goes_on(tmp_path: Path) -> None:
    meter = zone(tmp_path, "intel-rapl:0", "package-0", 900_000) / "energy_uj"
    energy = CpuEnergy(tmp_path)
    read = []
    for value in (950_000, 100_000, 100_000, 300_000):
        meter.write_text(str(value))
        read.append(energy.read_j())
    assert read == pytest.approx([0.05, 0.2, 0.2, 0.4])


def test_without_a_meter_nothing_is_said(tmp_path: Path) -> None:
    assert CpuEnergy(tmp_path / "nowhere").read_j() is None
    (tmp_path / "intel-rapl:0").mkdir()  # and nothing in it that could be read
    assert CpuEnergy(tmp_path).read_j() is None


def test_a_meter_that_cannot_be_read_any_more_stands_still(tmp_path: Path) -> None:
    meter = zone(tmp_path, "intel-rapl:0", "package-0", 0) / "energy_uj"
    energy = CpuEnergy(tmp_path)
    meter.write_text("500000")
    assert energy.read_j() == 0.5
    meter.unlink()
    assert energy.read_j() == 0.5
