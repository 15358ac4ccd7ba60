"""Guest-physical RAM: one anonymous host mapping, seen at one or two places of the guest's physical address space.

RAM starts at 0. What does not fit below the hole for devices (``LOW_RAM_END``) continues at 4 GiB, as on every PC.
The legacy window 0xA0000–0xFFFFF is RAM too (a PC has video memory and ROM there); the e820 map does not offer it to
the guest.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum

from lzero.errors import GuestFault, UsageError

__all__ = [
    "E820Entry",
    "E820Type",
    "GuestMemory",
    "GuestMemoryError",
    "HIGH_RAM_BASE",
    "LOW_RAM_END",
    "PAGE_SIZE",
    "RamRegion",
]

PAGE_SIZE = 4096
LOW_RAM_END = 0xC000_0000
"""First address of the hole below 4 GiB, which holds the IOAPIC, the local APIC and PCI windows."""
HIGH_RAM_BASE = 0x1_0000_0000
"""Where RAM continues behind the hole."""
EBDA_BASE = 0x9FC00
"""Extended BIOS data area: the last KiB of conventional memory."""
LEGACY_BASE = 0xA0000
FIRMWARE_BASE = 0xE0000
"""Start of the area that operating systems search for the ACPI and MP tables; lzero's tables are here."""
EXTENDED_BASE = 0x10_0000
MINIMUM_SIZE = 1 << 20


class GuestMemoryError(GuestFault):
    """An access to a guest-physical address that no RAM backs."""


class E820Type(IntEnum):
    """Memory types of the e820 map (ACPI specification 6.5, table 15.3)."""

    RAM = 1
    RESERVED = 2
    ACPI_RECLAIMABLE = 3
    ACPI_NVS = 4


@dataclass(frozen=True, slots=True)
class RamRegion:
    """A stretch of guest RAM: ``size`` bytes at ``gpa``, which live at ``host_offset`` of the host mapping."""

    gpa: int
    size: int
    host_offset: int

    @property
    def end(self) -> int:
        """First guest-physical address behind the region."""
        return self.gpa + self.size


@dataclass(frozen=True, slots=True)
class E820Entry:
    """One line of the e820 map."""

    base: int
    size: int
    type: E820Type


def _regions(size: int) -> tuple[RamRegion, ...]:
    low = min(size, LOW_RAM_END)
    regions = [RamRegion(0, low, 0)]
    if size > low:
        regions.append(RamRegion(HIGH_RAM_BASE, size - low, low))
    return tuple(regions)


class GuestMemory:
    """The guest's RAM.

    Parameters
    ----------
    size:
        Bytes of RAM; a multiple of the page size, at least 1 MiB.

    Attributes
    ----------
    on_write:
        Called with the guest-physical address and the size in bytes of each write, after it: whoever executes code
        from this memory hears here of what devices put there.

    Raises
    ------
    UsageError
        If the size is impossible.
    """

    def __init__(self, size: int) -> None:
        if size < MINIMUM_SIZE or size % PAGE_SIZE:
            raise UsageError(
                f"guest memory of {size} bytes: give a multiple of {PAGE_SIZE} bytes, at least {MINIMUM_SIZE >> 20} MiB"
            )
        try:
            self.mapping = mmap.mmap(-1, size)
        except (OSError, OverflowError, ValueError) as error:
            raise UsageError(
                f"guest memory of {size >> 20} MiB: the host cannot map it ({error}); ask for less"
            ) from error
        self.size = size
        self.view = memoryview(self.mapping)
        self.regions: Sequence[RamRegion] = _regions(size)
        self.on_write: Callable[[int, int], None] | None = None
        self._low_size = self.regions[0].size

    def host_offset(self, gpa: int, size: int) -> int:
        """Where ``size`` bytes at ``gpa`` lie in the host mapping.

        Raises
        ------
        GuestMemoryError
            If any of the bytes is not RAM.
        """
        if 0 <= gpa and gpa + size <= self._low_size:
            return gpa
        for region in self.regions[1:]:
            if region.gpa <= gpa and gpa + size <= region.end:
                return region.host_offset + gpa - region.gpa
        raise GuestMemoryError(
            f"guest-physical address {gpa:#x} (+{size:#x} bytes) is not RAM: RAM is "
            + " and ".join(f"{r.gpa:#x}-{r.end - 1:#x}" for r in self.regions)
        )

    def contains(self, gpa: int, size: int = 1) -> bool:
        """Whether all ``size`` bytes at ``gpa`` are RAM."""
        return any(r.gpa <= gpa and gpa + size <= r.end for r in self.regions)

    def read(self, gpa: int, size: int) -> bytes:
        """Bytes at a guest-physical address; :class:`GuestMemoryError` if they are not RAM."""
        offset = self.host_offset(gpa, size)
        return bytes(self.view[offset : offset + size])

    def write(self, gpa: int, data: bytes | bytearray | memoryview) -> None:
        """Store bytes at a guest-physical address; :class:`GuestMemoryError` if it is not RAM."""
        size = len(data)
        offset = self.host_offset(gpa, size)
        self.view[offset : offset + size] = data
        if self.on_write is not None:
            self.on_write(gpa, size)

    def fill(self, gpa: int, size: int, value: int = 0) -> None:
        """Set ``size`` bytes to one value."""
        self.write(gpa, bytes([value]) * size)

    def read_u8(self, gpa: int) -> int:
        """One byte."""
        return self.view[self.host_offset(gpa, 1)]

    def read_u16(self, gpa: int) -> int:
        """Two bytes, little endian."""
        return int.from_bytes(self.read(gpa, 2), "little")

    def read_u32(self, gpa: int) -> int:
        """Four bytes, little endian."""
        return int.from_bytes(self.read(gpa, 4), "little")

    def read_u64(self, gpa: int) -> int:
        """Eight bytes, little endian."""
        return int.from_bytes(self.read(gpa, 8), "little")

    def write_u8(self, gpa: int, value: int) -> None:
        """Store one byte; OverflowError if the value does not fit."""
        self.write(gpa, value.to_bytes(1, "little"))

    def write_u16(self, gpa: int, value: int) -> None:
        """Store two bytes, little endian; OverflowError if the value does not fit."""
        self.write(gpa, value.to_bytes(2, "little"))

    def write_u32(self, gpa: int, value: int) -> None:
        """Store four bytes, little endian; OverflowError if the value does not fit."""
        self.write(gpa, value.to_bytes(4, "little"))

    def write_u64(self, gpa: int, value: int) -> None:
        """Store eight bytes, little endian; OverflowError if the value does not fit."""
        self.write(gpa, value.to_bytes(8, "little"))

    def e820(self) -> tuple[E820Entry, ...]:
        """The memory map the firmware would report (INT 15h, AX=E820h)."""
        low_end = self.regions[0].end
        entries = [
            E820Entry(0, EBDA_BASE, E820Type.RAM),
            E820Entry(EBDA_BASE, LEGACY_BASE - EBDA_BASE, E820Type.RESERVED),
            E820Entry(FIRMWARE_BASE, EXTENDED_BASE - FIRMWARE_BASE, E820Type.RESERVED),
            E820Entry(EXTENDED_BASE, low_end - EXTENDED_BASE, E820Type.RAM),
        ]
        entries += [E820Entry(r.gpa, r.size, E820Type.RAM) for r in self.regions[1:]]
        return tuple(entry for entry in entries if entry.size)
