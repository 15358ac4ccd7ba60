"""The device that test kernels use to drive interrupt lines and to have ports and MMIO that remember.

Virtual-machine test suites expect it beside the debug exit: a read/write register at port 0xE0, and one port per GSI
from 0x2000.
"""

from __future__ import annotations

from collections.abc import Callable

from lzero.platform.bus import Bus
from lzero.platform.registers import Access, RegisterRow

__all__ = ["REGISTERS", "TestDevice"]

SHEET = "QEMU pc-testdev"

# Offsets are ports, the last one a guest-physical address.
REGISTERS = (
    RegisterRow("IOPORT", 0xE0, Access.READ_WRITE, SHEET, "4 bytes; reads back what was written"),
    RegisterRow("FLUSH", 0xE4, Access.WRITE, SHEET, "4 bytes; unmaps and maps a page on other machines, nothing here"),
    RegisterRow("IRQ_LINES", 0x2000, Access.WRITE, SHEET, "24 ports: drives the GSI's line with bit 0"),
    RegisterRow("MMIO", 0xFF00_0000, Access.READ_WRITE, SHEET, "64 KiB that remember"),
)
IOPORT, LAST_IOPORT, IRQ_FIRST, MMIO_BASE, MMIO_SIZE = 0xE0, 0xE7, 0x2000, 0xFF00_0000, 0x1_0000
LINES = 24


class TestDevice:
    """The test device.

    Parameters
    ----------
    set_irq:
        Drives a GSI.
    """

    __test__ = False  # not a test case, whatever its name

    def __init__(self, set_irq: Callable[[int, bool], None]) -> None:
        self._set_irq = set_irq
        self._value = 0
        self._store = bytearray(MMIO_SIZE)

    def attach(self, bus: Bus) -> None:
        """Claim the ports and the MMIO window."""
        bus.register_ports(IOPORT, LAST_IOPORT, self)
        bus.register_ports(IRQ_FIRST, IRQ_FIRST + LINES - 1, self)
        bus.register_mmio(MMIO_BASE, MMIO_SIZE, self)

    def port_read(self, port: int, size: int) -> int:
        """The remembered value, at any of its four bytes; 0 elsewhere."""
        return self._value >> 8 * (port - IOPORT) if port < IOPORT + 4 else 0

    def port_write(self, port: int, size: int, value: int) -> None:
        """Remember a value, or drive a line."""
        if port >= IRQ_FIRST:
            self._set_irq(port - IRQ_FIRST, bool(value & 1))
        elif port < IOPORT + 4:
            shift = 8 * (port - IOPORT)
            mask = ((1 << 8 * size) - 1) << shift
            self._value = (self._value & ~mask | value << shift) & 0xFFFF_FFFF

    def mmio_read(self, offset: int, size: int) -> int:
        """Bytes written before, 0 at first."""
        return int.from_bytes(self._store[offset : offset + size], "little")

    def mmio_write(self, offset: int, size: int, value: int) -> None:
        """Remember bytes; what would lie behind the window is dropped."""
        data = value.to_bytes(size, "little")[: MMIO_SIZE - offset]
        self._store[offset : offset + len(data)] = data
