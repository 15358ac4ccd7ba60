"""Load lzero's native library, then libunicorn, in that order.

The order matters: libunicorn binds its calls to its own exported functions when it is loaded, and takes those of a
library that was loaded before it for all to see (``RTLD_GLOBAL``). See ``native/native.h``.
"""

from __future__ import annotations

import ctypes as C
import os
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from lzero.cpu.engine.code_space import CodeSpace
from lzero.errors import EngineError
from lzero.native_build import NativeBuildError, build_library, source_digest

if TYPE_CHECKING:
    from lzero.cpu.engine.discovery import Layout

__all__ = ["SUPPORTED_UNICORN", "TRAP_CALLBACK", "NativeLibrary", "load"]

SUPPORTED_UNICORN = "2.1.4"
TRAP_CALLBACK = C.CFUNCTYPE(C.c_uint32, C.c_uint32)

_SOURCES = Path(__file__).parent / "native"
_FLAGS = ("-fno-strict-aliasing", "-foptimize-sibling-calls", "-pthread", "-ldl")


@dataclass(frozen=True)
class NativeLibrary:
    """The loaded native library: its functions, the slots by name, where the engine keeps its state, and the place for
    translated code.
    """

    functions: C.CDLL
    slots: dict[str, int]
    layout: Layout
    engine_version: str
    code_space: CodeSpace


def _text_at(library: C.CDLL, symbol: str, offset: int = 0) -> str:
    """The NUL-terminated text at a symbol; nothing behind its end is read, which need not be mapped."""
    return C.string_at(C.addressof(C.c_char.in_dll(library, symbol)) + offset).decode("ascii")


def _names(library: C.CDLL, symbol: str) -> list[str]:
    """Names one after the other; an empty one ends them."""
    names: list[str] = []
    offset = 0
    while name := _text_at(library, symbol, offset):
        names.append(name)
        offset += len(name) + 1
    return names


def _build(digest: str) -> Path:
    """The library out of the user's cache: for checkouts, and for wheels built without a compiler."""
    try:
        return build_library("_native", sorted(_SOURCES.glob("*.c")), digest, _FLAGS)
    except NativeBuildError as error:
        raise EngineError(
            "lzero's native library is not built; install gcc (Debian: apt-get install gcc) and run again, or install "
            f"a wheel of lzero that was built with one. It could not be built now: {error}"
        ) from error


def _prebuilt(digest: str) -> Path | None:
    """The library that the package was built with, if it was built from these sources."""
    candidate = Path(__file__).parent / "_native.so"
    try:
        # Not for all to see yet: one that does not fit must not take the engine's calls.
        built_from = _text_at(C.CDLL(str(candidate)), "lz_engine_digest")
    except (OSError, ValueError):
        return None
    return candidate if built_from == digest else None


def _declare(native: C.CDLL) -> None:
    p, u64 = C.c_void_p, C.c_uint64
    signatures: dict[str, tuple[type | None, list[type]]] = {
        "lz_bind": (C.c_char_p, [C.c_char_p]),
        "lz_set_layout": (None, [p]),
        "lz_create": (p, [p, p, p, TRAP_CALLBACK]),
        "lz_destroy": (None, [p]),
        "lz_add_region": (C.c_int, [p, u64, u64, p]),
        "lz_set_vmcs": (None, [p, p]),
        "lz_run": (C.c_int, [p]),
        "lz_translate": (u64, [p, u64, C.c_uint32]),
        "lz_walk_guest": (u64, [p, u64, C.c_uint32]),
        "lz_translate_physical": (u64, [p, u64]),
        "lz_code_changed": (None, [p, u64, u64]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(native, name)
        function.restype, function.argtypes = result, arguments


@cache
def load() -> NativeLibrary:
    """Load the native library and the engine, once per process.

    Raises
    ------
    EngineError
        The host is not Linux, unicorn was imported before lzero, is missing or of another version, or one of its
        internals was not found; the message says which.
    """
    if not sys.platform.startswith("linux"):
        raise EngineError(f"lzero's machine runs on Linux; this is {sys.platform}. Traces and dispatch work everywhere")
    if "unicorn.unicorn_py3.unicorn" in sys.modules and "lzero.cpu.engine.discovery" not in sys.modules:
        raise EngineError("unicorn was imported before lzero's machine; import lzero.Machine first in this process")
    digest = source_digest(_SOURCES)
    path = _prebuilt(digest) or _build(digest)
    native = C.CDLL(str(path), mode=os.RTLD_NOW | os.RTLD_GLOBAL)
    _declare(native)
    try:
        import unicorn
        import unicorn.unicorn_py3.unicorn as binding
    except ImportError as error:
        raise EngineError(f"the engine is missing: {error}; pip install unicorn=={SUPPORTED_UNICORN}") from error
    if unicorn.__version__ != SUPPORTED_UNICORN:
        raise EngineError(
            f"unicorn {unicorn.__version__} is installed; lzero's engine needs {SUPPORTED_UNICORN}, since it uses the "
            f"engine's internals: pip install unicorn=={SUPPORTED_UNICORN}"
        )
    from lzero.cpu.engine.discovery import discover

    engine: C.CDLL = binding.uclib
    missing = native.lz_bind(os.fsencode(engine._name))
    if missing:
        raise EngineError(f"unicorn {unicorn.__version__}: libunicorn does not export {missing.decode()}_x86_64")
    layout = discover(engine)
    order = _names(native, "lz_layout_names")
    unknown = [name for name in order if name not in layout.offsets]
    if unknown:
        raise EngineError(f"unicorn {unicorn.__version__}: CPU state fields not found: {', '.join(unknown)}")
    native.lz_set_layout((C.c_int32 * len(order))(*(layout.offsets[name] for name in order)))
    slots = {name: index for index, name in enumerate(_names(native, "lz_slot_names"))}
    return NativeLibrary(native, slots, layout, unicorn.__version__, CodeSpace())
