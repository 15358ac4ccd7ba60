"""Address space for the engine's translated code, near the library that it calls.

The engine maps one gibibyte for translated code when a CPU is made. Code that lies more than 2 GiB from the native
library reaches it by indirect calls, and a small loop takes up to twice as long (docs/performance.md). So a place is
reserved when the library is loaded, given up for the moment in which the engine maps its buffer, and taken again when
the engine is gone. A second machine at the same time gets whatever place the kernel finds.
"""

from __future__ import annotations

import ctypes as C
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["CodeSpace"]

_SIZE = 1200 << 20
_PROT_NONE = 0
_PRIVATE_ANONYMOUS_NORESERVE, _FIXED_NOREPLACE = 0x4022, 0x100000
_FAILED = C.c_void_p(-1).value


class CodeSpace:
    """The reservation of one process."""

    def __init__(self) -> None:
        libc = C.CDLL(None, use_errno=True)
        self._mmap, self._munmap = libc.mmap, libc.munmap
        self._mmap.restype = C.c_void_p
        self._mmap.argtypes = [C.c_void_p, C.c_size_t, C.c_int, C.c_int, C.c_int, C.c_size_t]
        self._munmap.argtypes = [C.c_void_p, C.c_size_t]
        self._base = self._reserve(0, _SIZE)
        self._fillers: list[tuple[int, int]] = []
        self._free = self._base is not None

    def _reserve(self, address: int, size: int) -> int | None:
        flags = _PRIVATE_ANONYMOUS_NORESERVE | (_FIXED_NOREPLACE if address else 0)
        found = self._mmap(address, size, _PROT_NONE, flags, -1, 0)
        if found == _FAILED or (address and found != address):
            return None
        return int(found)

    @contextmanager
    def given_up(self) -> Iterator[bool]:
        """Free the place while the engine maps its buffer; says whether this engine got it."""
        mine = self._free and self._base is not None
        if mine:
            assert self._base is not None
            self._free = False
            self._munmap(self._base, _SIZE)
        try:
            yield mine
        finally:
            if mine:
                self._fill_gaps()

    def _fill_gaps(self) -> None:
        """Keep what the buffer left over, so that the place is whole again later."""
        assert self._base is not None
        at, end = self._base, self._base + _SIZE
        for low, high in sorted(_mappings(at, end)):
            self._fill(at, low)
            at = max(at, high)
        self._fill(at, end)

    def _fill(self, low: int, high: int) -> None:
        if low < high and self._reserve(low, high - low) is not None:
            self._fillers.append((low, high - low))

    def take_back(self) -> None:
        """The engine that had the place is gone."""
        assert self._base is not None
        for address, size in self._fillers:
            self._munmap(address, size)
        self._fillers.clear()
        # If something else settled there meanwhile, the next engine goes where the kernel puts it.
        self._base = self._reserve(self._base, _SIZE)
        self._free = self._base is not None


def _mappings(low: int, high: int) -> list[tuple[int, int]]:
    """Mappings of this process that lie in a range."""
    found = []
    with open("/proc/self/maps", encoding="ascii", errors="replace") as maps:
        for line in maps:
            start, end = (int(part, 16) for part in line.split(" ", 1)[0].split("-"))
            if start < high and end > low:
                found.append((start, end))
    return found
