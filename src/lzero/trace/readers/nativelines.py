"""The native form of :mod:`lzero.trace.readers.fastlines`, used where the library is; same results, several times
the speed.
"""

from __future__ import annotations

import ctypes as C
from collections.abc import Callable
from functools import cache
from typing import Final

import numpy as np

from lzero.trace.readers.binary.native import library
from lzero.trace.readers.events import event_dtype
from lzero.trace.readers.fastlines import ChunkResult, Leftover
from lzero.trace.readers.reasons import trace_names

__all__ = ["native_parser"]

_NEWLINE: Final = 10


class _Result(C.Structure):
    _fields_ = (
        *((name, C.c_void_p) for name in ("rows", "event_lines", "leftovers")),
        *((name, C.c_uint64) for name in ("events", "others", "left", "lines")),
    )


@cache
def native_parser() -> Callable[[bytes], ChunkResult] | None:
    """A function like :func:`~lzero.trace.readers.fastlines.parse_chunk`, ``None`` without the native library."""
    native = library()
    if native is None:
        return None
    native.lz_text_reasons.restype = C.c_void_p
    native.lz_text_reasons.argtypes = [C.c_char_p, C.c_void_p, C.c_void_p, C.c_uint64]
    native.lz_text.restype = None
    native.lz_text.argtypes = [C.c_char_p, C.c_uint64, C.c_void_p, C.POINTER(_Result)]
    names = {name: value for name, value in trace_names().items() if len(name) < 32 and " " not in name}
    codes = np.array([code for _, code in names.values()], dtype=np.uint32)
    isas = np.array([isa for isa, _ in names.values()], dtype=np.uint32)
    packed = b"".join(name.encode().ljust(32, b"\0") for name in names)
    # The table lives as long as the process, as the library does.
    reasons = native.lz_text_reasons(packed, codes.ctypes.data, isas.ctypes.data, len(names))
    if not reasons:
        return None

    def parse(chunk: bytes) -> ChunkResult:
        # Three times quicker than bytes.count, which starts anew at each of them.
        lines = int(np.count_nonzero(np.frombuffer(chunk, np.uint8) == _NEWLINE)) + 1
        rows = np.empty(lines, dtype=event_dtype())
        event_lines = np.empty(lines, dtype=np.uint64)
        leftovers = np.empty((lines, 3), dtype=np.uint64)
        result = _Result(rows.ctypes.data, event_lines.ctypes.data, leftovers.ctypes.data)
        native.lz_text(chunk, len(chunk), reasons, C.byref(result))
        left = [Leftover(line, chunk[start:end]) for line, start, end in leftovers[: result.left].tolist()]
        found = event_lines[: result.events].astype(np.int64)
        return ChunkResult(rows[: result.events], found, result.others, left, result.lines)

    return parse
