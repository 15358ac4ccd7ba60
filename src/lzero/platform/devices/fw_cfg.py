"""The firmware configuration device: a selector, a data port, and a DMA interface.

A guest writes a key to port 0x510 and reads the item byte after byte from 0x511, or hands a descriptor to the DMA
ports. Items with a name are found through the directory.
"""

from __future__ import annotations

import struct
from enum import IntEnum

from lzero.platform.bus import Bus
from lzero.platform.memory import GuestMemory, GuestMemoryError
from lzero.platform.registers import Access, RegisterRow

__all__ = ["FwCfg", "Key", "REGISTERS"]

SHEET = "QEMU fw_cfg specification"

# Offsets are ports.
REGISTERS = (
    RegisterRow("SELECTOR", 0x510, Access.WRITE, f"{SHEET}, Selector Register", "16 bits"),
    RegisterRow("DATA", 0x511, Access.READ, f"{SHEET}, Data Register", "8 bits; writes are ignored"),
    RegisterRow("DMA_ADDRESS_HIGH", 0x514, Access.READ_WRITE, f"{SHEET}, DMA Interface", "big endian"),
    RegisterRow(
        "DMA_ADDRESS_LOW",
        0x518,
        Access.READ_WRITE,
        f"{SHEET}, DMA Interface",
        "big endian; a write starts the transfer",
    ),
)
SELECTOR_PORT, DATA_PORT, DMA_HIGH_PORT, DMA_LOW_PORT, LAST_PORT = 0x510, 0x511, 0x514, 0x518, 0x51B
DMA_SIGNATURE = 0x51454D5520434647
"""What reading the DMA address gives: the characters ``QEMU CFG``, big endian."""


class Key(IntEnum):
    """Keys with a fixed meaning (fw_cfg specification and the registers that PC kernels read)."""

    SIGNATURE = 0x00
    ID = 0x01
    UUID = 0x02
    RAM_SIZE = 0x03
    NO_GRAPHIC = 0x04
    CPU_COUNT = 0x05
    MACHINE_ID = 0x06
    KERNEL_ADDRESS = 0x07
    KERNEL_SIZE = 0x08
    INITRD_ADDRESS = 0x0A
    INITRD_SIZE = 0x0B
    BOOT_DEVICE = 0x0C
    NUMA = 0x0D
    BOOT_MENU = 0x0E
    MAX_CPUS = 0x0F
    KERNEL_ENTRY = 0x10
    KERNEL_DATA = 0x11
    INITRD_DATA = 0x12
    COMMAND_LINE_ADDRESS = 0x13
    COMMAND_LINE_SIZE = 0x14
    COMMAND_LINE_DATA = 0x15
    SETUP_ADDRESS = 0x16
    SETUP_SIZE = 0x17
    SETUP_DATA = 0x18
    FILE_DIRECTORY = 0x19
    FIRST_FILE = 0x20
    ACPI_TABLES = 0x8000
    SMBIOS_ENTRIES = 0x8001
    IRQ0_OVERRIDE = 0x8002
    E820_TABLE = 0x8003


class DmaControl(IntEnum):
    """Control word of a DMA descriptor; bits 16-31 hold the key to select."""

    ERROR = 1
    READ = 2
    SKIP = 4
    SELECT = 8
    WRITE = 16


ID_TRADITIONAL, ID_DMA = 1, 2
FILE_NAME_SIZE = 56
LARGEST_TRANSFER = 1 << 30


class FwCfg:
    """The device and its items.

    Parameters
    ----------
    memory:
        Where DMA reads descriptors and writes data.
    cpu_count:
        Logical processors of the machine.
    """

    def __init__(self, memory: GuestMemory, cpu_count: int = 1) -> None:
        self._memory = memory
        self._items: dict[int, bytes] = {}
        self._files: dict[str, int] = {}
        self._key = 0
        self._position = 0
        self._dma_high = 0
        self.add(Key.SIGNATURE, b"QEMU")
        self.add_number(Key.ID, ID_TRADITIONAL | ID_DMA, 4)
        self.add(Key.UUID, bytes(16))
        self.add_number(Key.RAM_SIZE, memory.size, 8)
        self.add_number(Key.NO_GRAPHIC, 1, 2)
        self.add_number(Key.CPU_COUNT, cpu_count, 2)
        self.add_number(Key.MAX_CPUS, cpu_count, 2)
        self.add_number(Key.BOOT_MENU, 0, 2)
        self.add_number(Key.NUMA, 0, 8)
        self.add_number(Key.IRQ0_OVERRIDE, 1, 4)
        self._publish_directory()
        entries = memory.e820()
        self.add(Key.E820_TABLE, struct.pack("<I", len(entries)) + self._pack_e820())
        self.add_file("etc/e820", self._pack_e820())

    def _pack_e820(self) -> bytes:
        return b"".join(struct.pack("<QQI", e.base, e.size, e.type) for e in self._memory.e820())

    def attach(self, bus: Bus) -> None:
        """Claim the ports."""
        bus.register_ports(SELECTOR_PORT, LAST_PORT, self)

    def add(self, key: int, data: bytes) -> None:
        """Give an item its content, replacing the former."""
        self._items[key] = data

    def add_number(self, key: int, value: int, size: int) -> None:
        """An item that is a little-endian number of ``size`` bytes."""
        self.add(key, value.to_bytes(size, "little"))

    def add_file(self, name: str, data: bytes) -> None:
        """An item that guests find by name in the directory.

        Raises
        ------
        ValueError
            If the name does not fit the directory's field.
        """
        if len(name.encode()) >= FILE_NAME_SIZE:
            raise ValueError(f"fw_cfg file name {name!r} is longer than {FILE_NAME_SIZE - 1} bytes")
        key = self._files.setdefault(name, Key.FIRST_FILE + len(self._files))
        self.add(key, data)
        self._publish_directory()

    def _publish_directory(self) -> None:
        rows = [
            struct.pack(">IHH56s", len(self._items[key]), key, 0, name.encode())
            for name, key in sorted(self._files.items())
        ]
        self.add(Key.FILE_DIRECTORY, struct.pack(">I", len(rows)) + b"".join(rows))

    def _select(self, key: int) -> None:
        self._key, self._position = key, 0

    def _take(self, size: int) -> bytes:
        """The next bytes of the selected item; zeros behind its end."""
        data = self._items.get(self._key, b"")[self._position : self._position + size]
        self._position += size
        return data + bytes(size - len(data))

    def port_read(self, port: int, size: int) -> int:
        """Data port: next byte. DMA ports: the signature."""
        if port == DATA_PORT and size == 1:
            data = self._items.get(self._key)
            position = self._position
            self._position = position + 1
            return data[position] if data is not None and position < len(data) else 0
        if port >= DMA_HIGH_PORT:
            first = port - DMA_HIGH_PORT
            return int.from_bytes(DMA_SIGNATURE.to_bytes(8, "big")[first : first + size], "little")
        return 0

    def port_write(self, port: int, size: int, value: int) -> None:
        """Selector (16 bits) and DMA address (two 32-bit halves, big endian); other widths are ignored."""
        if port == SELECTOR_PORT and size == 2:
            self._select(value)
        elif size == 4 and port in (DMA_HIGH_PORT, DMA_LOW_PORT):
            half = int.from_bytes(value.to_bytes(4, "little"), "big")
            if port == DMA_HIGH_PORT:
                self._dma_high = half
            else:
                address, self._dma_high = self._dma_high << 32 | half, 0
                self._run_dma(address)

    def _run_dma(self, descriptor: int) -> None:
        """Carry out the descriptor ``{control, length, address}`` (32, 32, 64 bits, big endian) at ``descriptor``."""
        try:
            control, length, address = struct.unpack(">IIQ", self._memory.read(descriptor, 16))
        except GuestMemoryError:
            return  # nowhere to report to
        status = 0
        try:
            self._transfer(control, length, address)
        except GuestMemoryError:
            status = DmaControl.ERROR
        self._memory.write(descriptor, struct.pack(">I", status))

    def _transfer(self, control: int, length: int, address: int) -> None:
        if control & DmaControl.SELECT:
            self._select(control >> 16)
        if control & DmaControl.READ:
            self._memory.host_offset(address, length)
            self._memory.write(address, self._take(min(length, LARGEST_TRANSFER)))
        elif control & DmaControl.WRITE:
            raise GuestMemoryError("fw_cfg items are read-only")
        elif control & DmaControl.SKIP:
            self._position += length
