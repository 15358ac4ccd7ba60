"""Build step for the native shim; everything else is declared in pyproject.toml.

The shim is a plain shared library that is loaded with ctypes: it uses no Python API, so it needs no Python headers and
one wheel serves every Python version. Without a C compiler the package still installs; lzero then says at run time
what is missing.
"""

from __future__ import annotations

from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

NATIVE = Path("src/lzero/cpu/engine/native")


class BuildSharedLibrary(build_ext):
    """Compile the shim under a name without the interpreter's ABI tag."""

    def get_ext_filename(self, fullname: str) -> str:
        return fullname.replace(".", "/") + ".so"


class AnyPythonWheel(bdist_wheel):
    """Tag the wheel for the platform only: no file in it depends on the Python version."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


def native_library() -> list[Extension]:
    sources = sorted(str(path) for path in NATIVE.glob("*.c"))
    if not sources:
        return []
    headers = sorted(str(path) for pattern in ("*.h", "*.def") for path in NATIVE.glob(pattern))
    return [
        Extension(
            "lzero.cpu.engine._native",
            sources=sources,
            depends=headers,
            extra_compile_args=["-O2", "-std=gnu11", "-fno-strict-aliasing", "-foptimize-sibling-calls", "-Wall", "-Wextra"],
            optional=True,
        )
    ]


setup(
    ext_modules=native_library(),
    cmdclass={"build_ext": BuildSharedLibrary, "bdist_wheel": AnyPythonWheel},
)
