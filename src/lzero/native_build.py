"""The parts of lzero that are C: told by the digest of their sources, compiled into the user's cache where need be."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from lzero.errors import LzeroError

__all__ = ["NativeBuildError", "build_library", "cache_directory", "source_digest"]

_FLAGS = ("-O2", "-std=gnu11", "-fPIC", "-shared")
_SECONDS = 120


class NativeBuildError(LzeroError):
    """A library is not in the cache and cannot be compiled; the message says why."""


def cache_directory() -> Path:
    """Where lzero keeps what it can make again: ``$XDG_CACHE_HOME/lzero``, or ``~/.cache/lzero``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lzero"


def source_digest(folder: Path) -> str:
    """SHA-256 of the C sources in a folder, as `setup.py` compiles it into the library that it makes of them."""
    sources = sorted(path for pattern in ("*.c", "*.h", "*.def") for path in folder.glob(pattern))
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()


def build_library(name: str, sources: Sequence[Path], digest: str, flags: Sequence[str] = ()) -> Path:
    """The shared library made of `sources`, compiled once and kept in the cache.

    Parameters
    ----------
    name, digest:
        Tell the library from others, and from those of other sources.
    flags:
        For the compiler, besides those that every library gets.

    Raises
    ------
    NativeBuildError
        There is no compiler, it fails, or the cache cannot be written.
    """
    target = cache_directory() / f"{name}-{digest[:16]}.so"
    if target.exists():
        return target
    compiler = shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise NativeBuildError("no C compiler was found")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            output = Path(scratch) / target.name
            command = [compiler, *_FLAGS, "-o", str(output), *map(str, sources), *flags]
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=_SECONDS)
            output.replace(target)
    except subprocess.CalledProcessError as error:
        raise NativeBuildError(f"{compiler} failed:\n{error.stderr.strip()}") from error
    except (OSError, subprocess.SubprocessError) as error:
        raise NativeBuildError(str(error)) from error
    return target
