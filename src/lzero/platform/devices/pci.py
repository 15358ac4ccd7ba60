"""PCI configuration mechanism #1 with a host bridge and nothing else on bus 0."""

from __future__ import annotations

import struct

from lzero.platform.bus import Bus
from lzero.platform.registers import Access, RegisterRow

__all__ = ["PciHost", "REGISTERS"]

# Offsets are ports.
REGISTERS = (
    RegisterRow("CONFIG_ADDRESS", 0xCF8, Access.READ_WRITE, "PCI 3.0 3.2.2.3.2", "32-bit accesses only"),
    RegisterRow("CONFIG_DATA", 0xCFC, Access.READ_WRITE, "PCI 3.0 3.2.2.3.2"),
)
ADDRESS_PORT, DATA_PORT, LAST_PORT = 0xCF8, 0xCFC, 0xCFF
ENABLE = 1 << 31
ADDRESS_MASK = 0x80FF_FFFC
CONFIGURATION_SIZE = 256
VENDOR, DEVICE = 0x8086, 0x1237
CLASS_HOST_BRIDGE = 0x0600
REVISION = 2


def _host_bridge() -> bytes:
    """Configuration space of an Intel 440FX host bridge, as kernels know it; read-only."""
    return struct.pack("<HHHHBBH", VENDOR, DEVICE, 0, 0, REVISION, 0, CLASS_HOST_BRIDGE).ljust(
        CONFIGURATION_SIZE, b"\0"
    )


class PciHost:
    """Ports 0xCF8 and 0xCFC–0xCFF."""

    def __init__(self) -> None:
        self._address = 0
        self._functions = {0: _host_bridge()}

    def attach(self, bus: Bus) -> None:
        """Claim the ports; 0xCF9 is the reset control register's."""
        bus.register_ports(ADDRESS_PORT, ADDRESS_PORT, self)
        bus.register_ports(DATA_PORT, LAST_PORT, self)

    def port_read(self, port: int, size: int) -> int:
        """The address register, or the chosen function's configuration space; functions that are absent read as all
        ones.
        """
        if port == ADDRESS_PORT:
            return self._address if size == 4 else 0xFFFF_FFFF
        function = self._functions.get(self._address >> 8 & 0xFFFF)
        if not self._address & ENABLE or function is None:
            return 0xFFFF_FFFF
        offset = (self._address & 0xFC) + port - DATA_PORT
        return int.from_bytes(function[offset : offset + size], "little")

    def port_write(self, port: int, size: int, value: int) -> None:
        """The address register; the host bridge has nothing to configure."""
        if port == ADDRESS_PORT and size == 4:
            self._address = value & ADDRESS_MASK
