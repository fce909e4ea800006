"""A library whose structures are not ours is refused, as one that is not there."""

import ctypes
from ctypes import c_float, c_int64, c_void_p

import pytest

from orcinus.engine.kernels import structures
from orcinus.engine.kernels.build import library_path
from orcinus.engine.kernels.library import Library, load_library
from orcinus.engine.kernels.structures import STRUCTURES

needs_kernel = pytest.mark.skipif(load_library() is None, reason="no native kernels here")


def changed(name: str, fields: list[tuple[str, type]]) -> tuple[type[ctypes.Structure], ...]:
    other = type(name, (ctypes.Structure,), {"_fields_": fields})
    return tuple(other if structure.__name__ == name else structure for structure in STRUCTURES)


@needs_kernel
@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ([("num_threads", c_int64), ("parallel", c_void_p)], "num_threads has .* \\(8, 8\\) there and \\(0, 8\\) here"),
        ([("parallel", c_void_p), ("num_threads", c_float)], "num_threads has .* \\(8, 8\\) there and \\(8, 4\\) here"),
        ([("parallel", c_void_p), ("threads", c_int64)], "threads has .* None there and \\(8, 8\\) here"),
        ([("parallel", c_void_p)], "the whole has .* \\(0, 16\\) there and \\(0, 8\\) here"),
        ([], "the whole has .* \\(0, 16\\) there and \\(0, 0\\) here"),
    ],
    ids=["in another order", "of another size", "of another name", "one less", "none"],
)
def test_a_structure_with_other_fields_is_refused_by_name(
    fields: list[tuple[str, type]], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(structures, "STRUCTURES", changed("Team", fields))
    with pytest.raises(RuntimeError, match=f"struct Team .*{words}"):
        Library(library_path())


@needs_kernel
def test_a_structure_that_the_library_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    other = type("Adapter", (ctypes.Structure,), {"_fields_": [("rows", c_void_p)]})
    monkeypatch.setattr(structures, "STRUCTURES", (*STRUCTURES, other))
    with pytest.raises(RuntimeError, match=r"struct Adapter .*rows has .* None there"):
        Library(library_path())


@needs_kernel
@pytest.mark.parametrize("structure", STRUCTURES, ids=lambda structure: structure.__name__)
def test_every_structure_is_compared(structure: type[ctypes.Structure], monkeypatch: pytest.MonkeyPatch) -> None:
    name, fields = structure.__name__, [(field[0], field[1]) for field in structure._fields_]
    monkeypatch.setattr(structures, "STRUCTURES", changed(name, [*fields, ("one_more", c_int64)]))
    with pytest.raises(RuntimeError, match=f"struct {name} .*one_more"):
        Library(library_path())


@needs_kernel
def test_a_machine_with_another_library_goes_on_without_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(structures, "STRUCTURES", changed("Team", []))
    assert load_library.__wrapped__() is None
    assert "there are no native kernels: struct Team is another one in the library" in caplog.text
