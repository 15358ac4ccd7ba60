"""Physical memory as the processor and L0 address it."""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lzero.cpu.engine import AS_USER, REPORT, UNDER_SMAP, Engine
from lzero.cpu.vmcs import FIELD_POSITION
from lzero.errors import EngineError
from lzero.sdm.exceptions import Vector
from lzero.sdm.registers import Cr4
from lzero.sdm.vmcs_fields import Field

if TYPE_CHECKING:
    from lzero.cpu.processor import Processor

__all__ = ["PhysicalMemory"]

_CR4, _RFLAGS = FIELD_POSITION[Field.GUEST_CR4], FIELD_POSITION[Field.GUEST_RFLAGS]
_AC = 1 << 18
PAGE = 4096
HOST_BASE = 1 << 38
"""Where L0's own memory (EPT tables, bitmaps, virtual-APIC pages) starts; far above any guest RAM."""
HOST_SIZE = 256 << 20


@dataclass(frozen=True, slots=True)
class _Region:
    base: int
    size: int
    view: memoryview
    offset: int


class PhysicalMemory:
    """Guest RAM and L0's own memory in one physical address space.

    Parameters
    ----------
    engine:
        Sees the same memory.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._regions: list[_Region] = []
        self._host = mmap.mmap(-1, HOST_SIZE)
        self._host_words = memoryview(self._host).cast("Q")
        self._next = HOST_BASE
        self._free: list[int] = []
        self.map(HOST_BASE, self._host, 0, HOST_SIZE)

    def map(self, base: int, buffer: mmap.mmap, offset: int, size: int) -> None:
        """Make `size` bytes of `buffer` from `offset` on appear at physical address `base`."""
        self._engine.map_memory(base, buffer, offset, size)
        self._regions.insert(0, _Region(base, size, memoryview(buffer), offset))

    def _locate(self, address: int, size: int) -> tuple[memoryview, int] | None:
        for region in self._regions:
            distance = address - region.base
            if 0 <= distance and distance + size <= region.size:
                return region.view, region.offset + distance
        return None

    def backed(self, address: int, size: int = 1) -> bool:
        """Whether memory is there."""
        return self._locate(address, size) is not None

    def read(self, address: int, size: int) -> bytes:
        """Bytes at a physical address; all ones where no memory is, as an absent device reads."""
        found = self._locate(address, size)
        if found is None:
            return b"\xff" * size
        view, at = found
        return bytes(view[at : at + size])

    def write(self, address: int, data: bytes) -> None:
        """Write bytes; dropped where no memory is. Code translated from there is forgotten."""
        found = self._locate(address, len(data))
        if found is not None:
            view, at = found
            view[at : at + len(data)] = data
            self.changed(address, len(data))

    def changed(self, address: int, size: int) -> None:
        """Somebody else wrote `size` bytes of one region: code translated from there is forgotten."""
        self._engine.code_changed(address, size)

    def read_u64(self, address: int) -> int:
        """A little-endian 64-bit word."""
        return int.from_bytes(self.read(address, 8), "little")

    def write_u64(self, address: int, value: int) -> None:
        """Write a little-endian 64-bit word into memory that holds no code."""
        found = self._locate(address, 8)
        if found is not None:
            view, at = found
            view[at : at + 8] = value.to_bytes(8, "little")

    # --- L0's own pages ------------------------------------------------------------------------------------------

    def allocate_page(self) -> int:
        """Physical address of a zeroed page of L0's own."""
        if self._free:
            page = self._free.pop()
            self._host[page - HOST_BASE : page - HOST_BASE + PAGE] = bytes(PAGE)
            return page
        page = self._next
        if page + PAGE > HOST_BASE + HOST_SIZE:
            raise EngineError(f"L0's own memory ({HOST_SIZE >> 20} MiB) is exhausted")
        self._next += PAGE
        return page

    def free_page(self, page: int) -> None:
        """Give a page back."""
        self._free.append(page)

    def host_word(self, address: int) -> int:
        """A 64-bit word of L0's own memory."""
        return self._host_words[(address - HOST_BASE) >> 3]

    def set_host_word(self, address: int, value: int) -> None:
        """Write a 64-bit word of L0's own memory."""
        self._host_words[(address - HOST_BASE) >> 3] = value

    # --- through the guest's translations --------------------------------------------------------------------------

    def read_linear(self, p: Processor, linear: int, size: int, *, fault: bool = True) -> bytes | None:
        """See :meth:`lzero.cpu.processor.Processor.read_linear`."""
        parts = []
        for start, count in _pages(linear, size):
            physical = self._engine.translate(start, write=False, how=_guest_access(p) if fault else 0)
            if physical is None:
                if fault:
                    _translation_fault(p, start)
                return None
            parts.append(self.read(physical, count))
        return b"".join(parts)

    def write_linear(self, p: Processor, linear: int, data: bytes, *, fault: bool = True) -> bool:
        """See :meth:`lzero.cpu.processor.Processor.write_linear`."""
        places = []
        for start, count in _pages(linear, len(data)):
            physical = self._engine.translate(start, write=True, how=_guest_access(p) if fault else 0)
            if physical is None:
                if fault:
                    _translation_fault(p, start)
                return False
            places.append((physical, count))
        done = 0
        for physical, count in places:
            self.write(physical, data[done : done + count])
            done += count
        return True

    def read_guest_physical(self, p: Processor, address: int, size: int) -> bytes | None:
        """Read guest-physical memory through EPT; None where EPT does not allow it."""
        parts = []
        for start, count in _pages(address, size):
            physical = self._engine.translate_physical(start)
            if physical is None:
                return None
            parts.append(self.read(physical, count))
        return b"".join(parts)


def _pages(address: int, size: int) -> list[tuple[int, int]]:
    """Split a range at page borders."""
    pieces = []
    while size > 0:
        count = min(size, PAGE - address % PAGE)
        pieces.append((address, count))
        address, size = address + count, size - count
    return pieces


def _guest_access(p: Processor) -> int:
    """How the guest's own instruction accesses memory."""
    if p.cpl == 3:
        return REPORT | AS_USER
    restricted = p.words[_CR4] & Cr4.SMAP and not p.words[_RFLAGS] & _AC
    return REPORT | UNDER_SMAP if restricted else REPORT


def _translation_fault(p: Processor, linear: int) -> None:
    trap = p.walk_trap()
    if trap:
        p.after_fault = p.take_trap(trap)
        return
    vector, error_code = p.walk_failure()
    if vector == Vector.PF:
        p.after_fault = p.raise_page_fault(linear, error_code)
    else:
        p.after_fault = p.raise_exception(vector, error_code)
