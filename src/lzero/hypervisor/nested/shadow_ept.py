"""EPT for L2: what L1's EPT maps, through L0's own (SDM 3C 29.3).

L2 runs on tables of L0 that are filled as L2 touches pages: guest-physical address of L2 → L1's EPT → guest-physical
address of L1, which is the host's. A page is mapped with the rights that L1 gives; what L1 does not map exits to it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lzero.hypervisor.ept import ExtendedPageTables
from lzero.sdm.formats import EptEntry

if TYPE_CHECKING:
    from lzero.hypervisor.nested.l1_memory import L1Memory
    from lzero.hypervisor.vcpu import Vcpu

__all__ = ["EptWalk", "ShadowEpt"]

_ADDRESS = 0x000F_FFFF_FFFF_F000
_RWX = 7
_LARGE, _ACCESSED, _DIRTY = int(EptEntry.PAGE_SIZE), int(EptEntry.ACCESSED), int(EptEntry.DIRTY)
_USER_EXECUTE = int(EptEntry.USER_EXECUTE)
_WRITE, _EXECUTE = 2, 4
_CACHED = 16


@dataclass(frozen=True, slots=True)
class EptWalk:
    """What L1's tables say about an access.

    ``outcome`` is "mapped", "violation", "misconfiguration" or, with page-modification logging, "log full"; ``rights``
    the AND of the entries' low bits. ``dirtied``: this access set the dirty flag of the page.
    """

    outcome: str
    address: int
    rights: int
    suppress_ve: bool = False
    dirtied: bool = False


class ShadowEpt:
    """The shadow tables of one VCPU, one set per EPT pointer of L1, the least recently used given up first.

    Parameters
    ----------
    vcpu:
        Whose memory the tables map.
    memory:
        Where L1's tables are.

    Attributes
    ----------
    apic_page:
        The APIC-access page of L2 if it is no RAM, else 0: nothing is there, but accesses must reach the processor.
    """

    def __init__(self, vcpu: Vcpu, memory: L1Memory) -> None:
        self._own = vcpu.cpu.memory
        self._memory = memory
        self._reserved = _ADDRESS & ~((1 << vcpu.physical_address_bits) - 1)
        self._tables: dict[tuple[int, int], ExtendedPageTables] = {}
        self._pc = vcpu.pc
        self._identity: tuple[int, ExtendedPageTables] | None = None
        self.apic_page = 0

    def tables(self, eptp12: int) -> ExtendedPageTables:
        """The shadow tables for an EPT pointer of L1."""
        key = (eptp12, self.apic_page)
        tables = self._tables.pop(key, None)
        if tables is None:
            if len(self._tables) >= _CACHED:
                self._tables.pop(next(iter(self._tables))).clear()
            tables = ExtendedPageTables(self._own)
        self._tables[key] = tables
        return tables

    def identity(self) -> ExtendedPageTables:
        """L1's physical memory as L2 without EPT has it, with :attr:`apic_page` in place of a device."""
        if self._identity is None or self._identity[0] != self.apic_page:
            if self._identity is not None:
                self._identity[1].clear()
            tables = ExtendedPageTables(self._own)
            for region in self._pc.memory.regions:
                tables.map_ram(region.gpa, region.size)
            tables.mark_devices(self._pc.bus.mmio_pages())
            tables.map_page(self.apic_page, self.apic_page, _RWX)
            self._identity = self.apic_page, tables
        return self._identity[1]

    def invalidate(self, eptp12: int | None = None) -> None:
        """INVEPT: forget what was mapped for this EPT pointer, or for all."""
        for (pointer, _), tables in self._tables.items():
            if eptp12 is None or (pointer ^ eptp12) & _ADDRESS == 0:
                tables.clear()

    def walk(self, eptp12: int, address: int, access: int, *, mbec: bool = False, log_full: bool = False) -> EptWalk:
        """Look an L2 address up in L1's tables as the processor would, setting accessed and dirty flags.

        Parameters
        ----------
        address:
            Guest-physical address in L2.
        access:
            1 read, 2 write, 4 fetch, or a sum of them.
        mbec:
            Mode-based execute control is on: a fetch needs one of the two rights, the processor knows which.
        log_full:
            Page-modification logging is on and the log has no room: no dirty flag may be set.
        """
        flags = bool(eptp12 & 0x40)
        either = mbec and access == _EXECUTE
        present = _RWX | _USER_EXECUTE if mbec else _RWX
        table, rights, visited = eptp12 & _ADDRESS, -1, []
        for shift in (39, 30, 21, 12):
            slot = table + (address >> shift & 511) * 8
            entry = self._memory.read_u64(slot) if self._memory.backed(slot, 8) else 0
            if not entry & present:
                return EptWalk("violation", 0, 0, bool(entry >> 63))
            leaf = shift == 12 or (shift <= 30 and bool(entry & _LARGE))
            if self._misconfigured(entry, shift, leaf):
                return EptWalk("misconfiguration", 0, 0)
            rights &= entry
            visited.append((slot, entry))
            if leaf:
                if not rights & (_EXECUTE | _USER_EXECUTE) if either else rights & access != access:
                    return EptWalk("violation", 0, rights, bool(entry >> 63))
                dirtied = flags and bool(access & _WRITE) and not entry & _DIRTY
                if dirtied and log_full:
                    return EptWalk("log full", 0, rights)
                if flags:
                    self._mark(visited, write=bool(access & _WRITE))
                offset = (1 << shift) - 1
                dirty = not flags or access & _WRITE or entry & _DIRTY
                allowed = rights if dirty else rights & ~_WRITE
                physical = entry & _ADDRESS & ~offset | address & offset
                return EptWalk("mapped", physical, allowed, dirtied=dirtied)
            table = entry & _ADDRESS
        raise AssertionError("the last level is a leaf")

    def _misconfigured(self, entry: int, shift: int, leaf: bool) -> bool:
        if entry & 3 == _WRITE or entry & self._reserved:
            return True
        if not leaf:
            return bool(entry & 0x78) or (shift == 39 and bool(entry & _LARGE))
        return entry >> 3 & 7 in (2, 3, 7) or bool(shift > 12 and entry & ((1 << shift) - 1) & ~0xFFF)

    def _mark(self, visited: list[tuple[int, int]], *, write: bool) -> None:
        last = len(visited) - 1
        for number, (slot, entry) in enumerate(visited):
            wanted = entry | _ACCESSED | (_DIRTY if write and number == last else 0)
            if wanted != entry:
                self._memory.write_u64(slot, wanted)

    def fill(self, eptp12: int, address: int, found: EptWalk, *, mbec: bool) -> None:
        """Map one page as L1's tables have it."""
        rights = found.rights & (_RWX | (_USER_EXECUTE if mbec else 0))
        self.tables(eptp12).map_page(address & _ADDRESS, found.address & _ADDRESS, rights)
