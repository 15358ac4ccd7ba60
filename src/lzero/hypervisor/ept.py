"""L0's extended page tables for its guest (SDM 3C 29.3): RAM mapped one to one, device pages misconfigured.

A page that is known to belong to a device holds an entry that is misconfigured on purpose, so that an access to it
exits with EPT_MISCONFIG and its guest-physical address, and cannot be confused with memory that is merely not mapped.
"""

from __future__ import annotations

from collections.abc import Iterable

from lzero.cpu.memory import PhysicalMemory
from lzero.sdm.formats import EptEntry, MemoryType

__all__ = ["ExtendedPageTables"]

_RWX = int(EptEntry.READ | EptEntry.WRITE | EptEntry.EXECUTE)
_TABLE = int(EptEntry.READ | EptEntry.WRITE | EptEntry.EXECUTE | EptEntry.USER_EXECUTE)
"""Rights of an entry that refers to a table: the last level decides, under mode-based execute control too."""
_LARGE = 0x80
_WRITE_BACK = int(MemoryType.WB) << 3
_MISCONFIGURED = 0b110
"""Writable and executable but not readable: no processor may map that (29.3.3.1)."""
_ADDRESS = 0x000F_FFFF_FFFF_F000
_SIZES = ((1 << 30, 30), (1 << 21, 21), (1 << 12, 12))


class ExtendedPageTables:
    """One EPT hierarchy with four levels in L0's memory.

    Parameters
    ----------
    memory:
        Where the tables live.
    """

    def __init__(self, memory: PhysicalMemory) -> None:
        self._memory = memory
        self._pages: list[int] = []
        self.root = self._new_table()

    def _new_table(self) -> int:
        page = self._memory.allocate_page()
        self._pages.append(page)
        return page

    @property
    def pointer(self) -> int:
        """The EPT pointer: write-back, four levels, no accessed and dirty flags."""
        return self.root | 3 << 3 | int(MemoryType.WB)

    def _slot(self, guest_physical: int, shift: int) -> int:
        """Address of the entry that maps a page of 2^shift bytes; tables on the way are made."""
        table = self.root
        for level in range(39, shift, -9):
            slot = table + (guest_physical >> level & 511) * 8
            entry = self._memory.host_word(slot)
            if not entry & _RWX:
                entry = self._new_table() | _TABLE
                self._memory.set_host_word(slot, entry)
            elif entry & _LARGE:
                entry = self._split(slot, entry, level)
            table = entry & _ADDRESS
        return table + (guest_physical >> shift & 511) * 8

    def _split(self, slot: int, entry: int, level: int) -> int:
        """Replace a large page by a table of pages one size smaller with the same rights."""
        table = self._new_table()
        step = 1 << (level - 9)
        keep_large = _LARGE if level - 9 > 12 else 0
        flags = (entry & 0xFFF & ~_LARGE) | keep_large
        base = entry & _ADDRESS
        for number in range(512):
            self._memory.set_host_word(table + 8 * number, (base + number * step) | flags)
        pointer = table | _TABLE
        self._memory.set_host_word(slot, pointer)
        return pointer

    def map_ram(self, base: int, size: int) -> None:
        """Map RAM one to one with the largest pages that fit."""
        address, end = base, base + size
        while address < end:
            length, shift = next(s for s in _SIZES if address % s[0] == 0 and address + s[0] <= end)
            large = _LARGE if shift > 12 else 0
            self._memory.set_host_word(self._slot(address, shift), address | _RWX | _WRITE_BACK | large)
            address += length

    def map_page(self, guest_physical: int, host_physical: int, rights: int) -> None:
        """Map one 4 KiB page; `rights` are the low three bits (and bit 10 under mode-based execute control)."""
        self._memory.set_host_word(self._slot(guest_physical, 12), host_physical | rights | _WRITE_BACK)

    def mark_devices(self, pages: Iterable[int]) -> None:
        """Make accesses to these pages exit with EPT_MISCONFIG."""
        for page in pages:
            self._memory.set_host_word(self._slot(page, 12), _MISCONFIGURED)

    def clear(self) -> None:
        """Unmap everything."""
        for page in self._pages[1:]:
            self._memory.free_page(page)
        del self._pages[1:]
        for number in range(512):
            self._memory.set_host_word(self.root + 8 * number, 0)
