"""Build step for the native libraries; everything else is declared in pyproject.toml.

They are plain shared libraries that are loaded with ctypes: they use no Python API, so they need no Python headers and
one wheel serves every Python version. Without a C compiler the package still installs; lzero then says at run time
what is missing.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

LIBRARIES = {
    "lzero.cpu.engine._native": Path("src/lzero/cpu/engine/native"),
    "lzero.trace.readers._native": Path("src/lzero/trace/readers/native"),
}
"""Module-like name of each library, and the folder of its sources."""

FLAGS = ["-O2", "-std=gnu11", "-fno-strict-aliasing", "-foptimize-sibling-calls", "-pthread", "-Wall", "-Wextra"]


class BuildSharedLibrary(build_ext):
    """Compile the shim under a name without the interpreter's ABI tag."""

    def get_ext_filename(self, fullname: str) -> str:
        return fullname.replace(".", "/") + ".so"


class AnyPythonWheel(bdist_wheel):
    """Tag the wheel for the platform only: no file in it depends on the Python version."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


def native_library(name: str, folder: Path) -> list[Extension]:
    sources = sorted(str(path) for path in folder.glob("*.c"))
    if not sources:
        return []
    headers = sorted(str(path) for pattern in ("*.h", "*.def") for path in folder.glob(pattern))
    # What a library was built from, so that one that does not fit the sources beside it is told.
    digest = hashlib.sha256(b"".join(Path(path).read_bytes() for path in sorted([*sources, *headers]))).hexdigest()
    return [
        Extension(
            name,
            sources=sources,
            depends=headers,
            define_macros=[("LZERO_DIGEST", f'"{digest}"')],
            extra_compile_args=FLAGS,
            optional=True,
        )
    ]


setup(
    ext_modules=[library for item in LIBRARIES.items() for library in native_library(*item)],
    cmdclass={"build_ext": BuildSharedLibrary, "bdist_wheel": AnyPythonWheel},
)
