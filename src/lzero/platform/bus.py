"""The board's two address spaces: I/O ports and memory-mapped I/O.

The hot path is a serial console that polls: one dictionary lookup from the port to the register's bound method. A
register that nobody claims reads as all ones and drops what is written; the bus counts such accesses by address.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Protocol

__all__ = ["Bus", "MmioDevice", "PortDevice"]

PORTS = 0x1_0000
PAGE_SHIFT = 12
COUNTED_ADDRESSES = 4096
"""Distinct unclaimed MMIO pages that are counted apart; a guest that scans its address space must not fill the host's
memory.
"""

ByteReader = Callable[[], int]
ByteWriter = Callable[[int], None]


class PortDevice(Protocol):
    """A device that cares about the width of an access, or has many ports."""

    def port_read(self, port: int, size: int) -> int:
        """Read 1, 2 or 4 bytes."""
        ...

    def port_write(self, port: int, size: int, value: int) -> None:
        """Write 1, 2 or 4 bytes."""
        ...


class MmioDevice(Protocol):
    """A device behind guest-physical addresses; offsets count from its base."""

    def mmio_read(self, offset: int, size: int) -> int:
        """Read 1, 2, 4 or 8 bytes."""
        ...

    def mmio_write(self, offset: int, size: int, value: int) -> None:
        """Write 1, 2, 4 or 8 bytes."""
        ...


def _all_ones(size: int) -> int:
    return (1 << 8 * size) - 1


class Bus:
    """Finds the device for a port or a guest-physical address."""

    def __init__(self) -> None:
        self._readers: dict[int, ByteReader] = {}
        self._writers: dict[int, ByteWriter] = {}
        self._wide: dict[int, PortDevice] = {}
        self._mmio: dict[int, tuple[int, MmioDevice]] = {}
        self.unclaimed_port_reads: Counter[int] = Counter()
        self.unclaimed_port_writes: Counter[int] = Counter()
        self.unclaimed_mmio_pages: Counter[int] = Counter()

    def register_byte_port(self, port: int, read: ByteReader | None, write: ByteWriter | None) -> None:
        """Claim one byte-wide register. Wider accesses are split into bytes, as on the ISA bus."""
        if port in self._wide or port in self._readers or port in self._writers:
            raise ValueError(f"port {port:#x} is claimed twice")
        if read is not None:
            self._readers[port] = read
        if write is not None:
            self._writers[port] = write

    def register_ports(self, first: int, last: int, device: PortDevice) -> None:
        """Claim ports ``first`` to ``last`` (inclusive) for a device that sees the access's width."""
        for port in range(first, last + 1):
            if port in self._wide or port in self._readers or port in self._writers:
                raise ValueError(f"port {port:#x} is claimed twice")
            self._wide[port] = device

    def port_read(self, port: int, size: int) -> int:
        """What IN returns: ``size`` is 1, 2 or 4 bytes."""
        if size == 1:
            reader = self._readers.get(port)
            if reader is not None:
                return reader()
        device = self._wide.get(port)
        if device is not None:
            return device.port_read(port, size) & _all_ones(size)
        if size == 1:
            self.unclaimed_port_reads[port] += 1
            return 0xFF
        value = 0
        for i in range(size):
            value |= self.port_read((port + i) % PORTS, 1) << 8 * i
        return value

    def port_write(self, port: int, size: int, value: int) -> None:
        """What OUT does: ``size`` is 1, 2 or 4 bytes."""
        if size == 1:
            writer = self._writers.get(port)
            if writer is not None:
                writer(value & 0xFF)
                return
        device = self._wide.get(port)
        if device is not None:
            device.port_write(port, size, value & _all_ones(size))
            return
        if size == 1:
            self.unclaimed_port_writes[port] += 1
            return
        for i in range(size):
            self.port_write((port + i) % PORTS, 1, value >> 8 * i & 0xFF)

    def register_mmio(self, base: int, size: int, device: MmioDevice) -> None:
        """Claim whole pages of guest-physical addresses."""
        if (base | size) & (1 << PAGE_SHIFT) - 1:
            raise ValueError(f"MMIO at {base:#x} (+{size:#x}) is not page-aligned")
        pages = range(base >> PAGE_SHIFT, base + size >> PAGE_SHIFT)
        if any(page in self._mmio for page in pages):
            raise ValueError(f"MMIO at {base:#x} (+{size:#x}) is claimed twice")
        for page in pages:
            self._mmio[page] = (base, device)

    def unregister_mmio(self, base: int, size: int) -> None:
        """Give pages back (the local APIC can be moved or switched off)."""
        for page in range(base >> PAGE_SHIFT, base + size >> PAGE_SHIFT):
            self._mmio.pop(page, None)

    def is_mmio(self, gpa: int) -> bool:
        """Whether a device answers at a guest-physical address."""
        return gpa >> PAGE_SHIFT in self._mmio

    def mmio_pages(self) -> list[int]:
        """Guest-physical addresses of all pages that belong to a device."""
        return [page << PAGE_SHIFT for page in sorted(self._mmio)]

    def mmio_read(self, gpa: int, size: int) -> int:
        """Read 1, 2, 4 or 8 bytes at a guest-physical address that is not RAM."""
        found = self._mmio.get(gpa >> PAGE_SHIFT)
        if found is None:
            self._count_unclaimed_mmio(gpa)
            return _all_ones(size)
        base, device = found
        return device.mmio_read(gpa - base, size) & _all_ones(size)

    def mmio_write(self, gpa: int, size: int, value: int) -> None:
        """Write 1, 2, 4 or 8 bytes at a guest-physical address that is not RAM."""
        found = self._mmio.get(gpa >> PAGE_SHIFT)
        if found is None:
            self._count_unclaimed_mmio(gpa)
            return
        base, device = found
        device.mmio_write(gpa - base, size, value & _all_ones(size))

    def _count_unclaimed_mmio(self, gpa: int) -> None:
        page = gpa >> PAGE_SHIFT
        if page in self.unclaimed_mmio_pages or len(self.unclaimed_mmio_pages) < COUNTED_ADDRESSES:
            self.unclaimed_mmio_pages[page] += 1
