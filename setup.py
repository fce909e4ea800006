"""Builds the native kernels into the wheel where there is a compiler; everything else is in pyproject.toml."""

import runpy
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

# By its path: the package itself is not importable while it is built.
BUILD: dict[str, Any] = runpy.run_path(str(Path(__file__).parent / "orcinus" / "engine" / "kernels" / "build.py"))
EXTENSION = "orcinus.engine.kernels._kernels"


class BuildKernels(build_ext):
    """One library that ctypes loads, whatever the interpreter: no suffix of a Python version, no init function."""

    def get_ext_filename(self, fullname: str) -> str:
        return f"{fullname.replace('.', '/')}.so"

    def build_extension(self, ext: Extension) -> None:
        try:
            BUILD["compile_library"](Path(self.get_ext_fullpath(ext.name)))
        except (RuntimeError, OSError) as error:
            raise CompileError(str(error)) from error


class PlatformWheel(bdist_wheel):
    """For one platform, and any Python 3."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(
    ext_modules=[Extension(EXTENSION, sources=[], optional=True)],
    cmdclass={"build_ext": BuildKernels, "bdist_wheel": PlatformWheel},
)
