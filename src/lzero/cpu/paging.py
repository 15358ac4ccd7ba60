"""Address translation as the manual states it (SDM 3A chapter 4, 3C 29.3): plain, slow, apart from the native code.

The processor translates in ``engine/native/paging.c``. This module says the same in the order of the manual's
sections, so that tests can compare the two on tables that nobody would write, and a reader has one page to learn from.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntFlag
from typing import Protocol

from lzero.sdm.formats import EptViolationQualification
from lzero.sdm.registers import Cr0, Cr4, Efer

__all__ = [
    "Access",
    "EptMisconfiguration",
    "EptViolation",
    "Failure",
    "NotCanonical",
    "PageFault",
    "Paging",
    "translate",
]


class Access(IntFlag):
    """Kind of access, as in bits 2:0 of the exit qualification of EPT violations."""

    READ = 1
    WRITE = 2
    FETCH = 4


class Memory(Protocol):
    """Physical memory that holds the tables."""

    def read(self, address: int, size: int) -> bytes:
        """Bytes at a physical address."""

    def write(self, address: int, data: bytes) -> None:
        """Change bytes at a physical address."""


@dataclass(frozen=True)
class Paging:
    """What translation depends on. ``eptp`` is 0 without EPT; ``alignment_check`` is EFLAGS.AC, which lifts SMAP."""

    cr0: int
    cr3: int
    cr4: int
    efer: int
    pdptes: tuple[int, int, int, int] = (0, 0, 0, 0)
    alignment_check: bool = False
    eptp: int = 0
    mode_based_execute: bool = False
    physical_address_width: int = 39

    @property
    def reserved(self) -> int:
        """Address bits of a table entry that must be 0."""
        return 0x000F_FFFF_FFFF_F000 & ~((1 << self.physical_address_width) - 1)

    @property
    def long_mode(self) -> bool:
        """4-level paging."""
        return bool(self.efer & Efer.LMA)

    @property
    def wide(self) -> bool:
        """Table entries have 64 bits."""
        return bool(self.cr4 & Cr4.PAE)


class Failure(Exception):
    """The access does not go through."""


@dataclass(frozen=True)
class PageFault(Failure):
    """#PF with its error code (3A 4.7)."""

    error_code: int


@dataclass(frozen=True)
class NotCanonical(Failure):
    """#GP or #SS: the linear address is not canonical (vol. 1 3.3.7.1)."""


@dataclass(frozen=True)
class EptViolation(Failure):
    """EPT violation (3C 29.3.3.2)."""

    qualification: int
    guest_physical: int


@dataclass(frozen=True)
class EptMisconfiguration(Failure):
    """EPT misconfiguration (3C 29.3.3.1)."""

    guest_physical: int


_PRESENT, _WRITABLE, _USER, _ACCESSED, _DIRTY, _PAGE_SIZE, _NX = 1, 2, 4, 0x20, 0x40, 0x80, 1 << 63
_ADDRESS = 0x000F_FFFF_FFFF_F000
_ERROR_PRESENT, _ERROR_WRITE, _ERROR_USER, _ERROR_RESERVED, _ERROR_FETCH = 1, 2, 4, 8, 16
_EPT_ACCESSED, _EPT_DIRTY, _EPT_USER_EXECUTE = 1 << 8, 1 << 9, 1 << 10


@dataclass
class _Walk:
    """One access on its way."""

    memory: Memory
    paging: Paging
    linear: int
    access: Access
    user: bool
    user_page: bool = False

    # --- the guest's tables --------------------------------------------------------------------------------------

    def fault(self, cause: int) -> PageFault:
        """3A 4.7: I/D is only reported where fetches can fault on their own."""
        p = self.paging
        reports_fetch = (p.wide and p.efer & Efer.NXE) or p.cr4 & Cr4.SMEP
        code = cause | (_ERROR_WRITE if self.access & Access.WRITE else 0) | (_ERROR_USER if self.user else 0)
        return PageFault(code | (_ERROR_FETCH if self.access & Access.FETCH and reports_fetch else 0))

    def entry(self, address: int) -> int:
        """A table entry, read through EPT."""
        size = 8 if self.paging.wide else 4
        physical = self.guest_physical(address, Access.READ, final=False)
        return int.from_bytes(self.memory.read(physical, size), "little")

    def mark(self, address: int, flags: int) -> None:
        """Set accessed and dirty flags (3A 4.8); through EPT this writes."""
        size = 8 if self.paging.wide else 4
        physical = self.guest_physical(address, Access.READ | Access.WRITE, final=False)
        value = int.from_bytes(self.memory.read(physical, size), "little") | flags
        self.memory.write(physical, value.to_bytes(size, "little"))

    def reserved_bits(self, shift: int, *, leaf: bool) -> int:
        """3A tables 4-4 to 4-19."""
        p = self.paging
        if not p.wide:
            return 1 << 21 if leaf and shift == 22 else 0
        bits = p.reserved | (0 if p.efer & Efer.NXE else _NX)
        if not p.long_mode:
            bits |= 0x7FF0_0000_0000_0000
        if shift >= 39:
            bits |= _PAGE_SIZE
        if leaf and shift > 12:
            bits |= ((1 << shift) - 1) & ~0x1FFF
        return bits

    def is_leaf(self, entry: int, shift: int) -> bool:
        """Whether an entry maps a page."""
        if shift == 12:
            return True
        large = self.paging.wide or self.paging.cr4 & Cr4.PSE
        return bool(entry & _PAGE_SIZE and shift <= 30 and large)

    def start(self) -> tuple[int, int]:
        """First table, and the lowest address bit that indexes it."""
        p = self.paging
        if p.long_mode:
            if self.linear >> 47 not in (0, 0x1FFFF):
                raise NotCanonical
            return p.cr3 & _ADDRESS, 39
        if p.wide:
            pointer = p.pdptes[self.linear >> 30 & 3]
            if not pointer & _PRESENT:
                raise self.fault(0)
            return pointer & _ADDRESS, 21
        return p.cr3 & 0xFFFF_F000, 22

    def guest_linear(self) -> int:
        """3A 4.3 to 4.6: linear to guest-physical."""
        p = self.paging
        if not p.cr0 & Cr0.PG:
            return self.linear & 0xFFFF_FFFF
        table, shift = self.start()
        index_bits, size = (9, 8) if p.wide else (10, 4)
        writable = user_page = True
        executable = True
        while True:
            address = table + (self.linear >> shift & (1 << index_bits) - 1) * size
            entry = self.entry(address)
            if not entry & _PRESENT:
                raise self.fault(0)
            leaf = self.is_leaf(entry, shift)
            if entry & self.reserved_bits(shift, leaf=leaf):
                raise self.fault(_ERROR_PRESENT | _ERROR_RESERVED)
            writable &= bool(entry & _WRITABLE)
            user_page &= bool(entry & _USER)
            executable &= not (p.wide and entry & _NX)
            if leaf:
                break
            if not entry & _ACCESSED:
                self.mark(address, _ACCESSED)
            table, shift = entry & (_ADDRESS if p.wide else 0xFFFF_F000), shift - index_bits
        if not self.permitted(writable=writable, user_page=user_page, executable=executable):
            raise self.fault(_ERROR_PRESENT)
        wanted = _ACCESSED | (_DIRTY if self.access & Access.WRITE else 0)
        if entry & wanted != wanted:
            self.mark(address, wanted)
        self.user_page = user_page
        return self.frame(entry, shift) | self.linear & (1 << shift) - 1

    def frame(self, entry: int, shift: int) -> int:
        """Address of the page that an entry maps; 4 MiB pages have bits 39:32 in bits 20:13 (PSE-36)."""
        offset = (1 << shift) - 1
        if self.paging.wide:
            return entry & _ADDRESS & ~offset
        high = (entry >> 13 & 0xFF) << 32 if shift == 22 else 0
        return entry & 0xFFFF_F000 & ~offset | high

    def permitted(self, *, writable: bool, user_page: bool, executable: bool) -> bool:
        """3A 4.6.1."""
        p = self.paging
        if self.user:
            return (
                user_page
                and (not self.access & Access.WRITE or writable)
                and (not self.access & Access.FETCH or executable)
            )
        if self.access & Access.FETCH:
            return executable and not (user_page and p.cr4 & Cr4.SMEP)
        if user_page and p.cr4 & Cr4.SMAP and not p.alignment_check:
            return False
        return not self.access & Access.WRITE or writable or not p.cr0 & Cr0.WP

    # --- extended page tables ------------------------------------------------------------------------------------

    def guest_physical(self, address: int, access: Access, *, final: bool) -> int:
        """3C 29.3: guest-physical to physical."""
        p = self.paging
        if not p.eptp:
            return address
        flags_on = bool(p.eptp & 0x40)
        if flags_on and not final:
            access |= Access.WRITE
        table, shift, rights = p.eptp & _ADDRESS, 39, 0xFFF
        entries: list[tuple[int, int]] = []
        while True:
            slot = table + (address >> shift & 511) * 8
            entry = int.from_bytes(self.memory.read(slot, 8), "little")
            if not entry & (7 | (_EPT_USER_EXECUTE if p.mode_based_execute else 0)):
                raise self.violation(address, access, 0, final=final)
            leaf = shift == 12 or bool(entry & _PAGE_SIZE and shift <= 30)
            if self.misconfigured(entry, shift, leaf=leaf):
                raise EptMisconfiguration(address)
            rights &= entry
            entries.append((slot, entry))
            if leaf:
                break
            table, shift = entry & _ADDRESS, shift - 9
        if not self.ept_permits(rights, access):
            raise self.violation(address, access, rights, final=final)
        if flags_on:
            for slot, entry in entries:
                last = slot == entries[-1][0]
                entry |= _EPT_ACCESSED | (_EPT_DIRTY if last and access & Access.WRITE else 0)
                self.memory.write(slot, entry.to_bytes(8, "little"))
        offset = (1 << shift) - 1
        return entries[-1][1] & _ADDRESS & ~offset | address & offset

    def misconfigured(self, entry: int, shift: int, *, leaf: bool) -> bool:
        """29.3.3.1."""
        if entry & 3 == 2 or entry & self.paging.reserved:
            return True
        if not leaf:
            return bool(entry & 0x78 or (shift >= 39 and entry & _PAGE_SIZE))
        large = shift > 12 and entry & ((1 << shift) - 1) & ~0xFFF
        return entry >> 3 & 7 in (2, 3, 7) or bool(large)

    def ept_permits(self, rights: int, access: Access) -> bool:
        """29.3.3.2; with mode-based execute control, bit 10 is for fetches from user-mode linear addresses."""
        if access & Access.READ and not rights & 1:
            return False
        if access & Access.WRITE and not rights & 2:
            return False
        if access & Access.FETCH:
            by_user = self.paging.mode_based_execute and self.user_page
            return bool(rights & (_EPT_USER_EXECUTE if by_user else 4))
        return True

    def violation(self, address: int, access: Access, rights: int, *, final: bool) -> EptViolation:
        """28.2.1 table 28-7."""
        qualification = EptViolationQualification(
            data_read=bool(access & Access.READ),
            data_write=bool(access & Access.WRITE),
            instruction_fetch=bool(access & Access.FETCH),
            readable=bool(rights & 1),
            writable=bool(rights & 2),
            executable=bool(rights & 4),
            user_executable=bool(self.paging.mode_based_execute and rights & _EPT_USER_EXECUTE),
            linear_address_valid=True,
            final_translation=final,
        )
        return EptViolation(qualification.pack(), address)


def translate(memory: Memory, paging: Paging, linear: int, access: Access, *, user: bool) -> int:
    """Physical address of a linear one, with accessed and dirty flags set as the access sets them.

    Parameters
    ----------
    user:
        The access is made at CPL 3.

    Raises
    ------
    Failure
        What the processor raises instead: :class:`PageFault`, :class:`NotCanonical`, :class:`EptViolation` or
        :class:`EptMisconfiguration`.
    """
    walk = _Walk(memory, paging, linear, access, user)
    return walk.guest_physical(walk.guest_linear(), access, final=True)
