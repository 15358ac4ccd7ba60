"""The ACPI tables: RSDP, RSDT, XSDT, FADT, FACS, DSDT, MADT (ACPI 6.5, chapter 5)."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from lzero.platform.devices.power import PM1_CONTROL_PORT, PM1_EVENT_PORT, PM_TIMER_PORT, SLEEP_TYPE_S5
from lzero.platform.devices.reset import RESET_CONTROL_PORT, RESET_VALUE
from lzero.platform.devices.rtc import Index
from lzero.platform.devices.serial import COM1_BASE, COM1_IRQ
from lzero.platform.firmware.aml import Device, EisaId, Integer, IoPorts, Irq, Name, Package, Resources, Scope, Term
from lzero.platform.interrupts.ioapic import IOAPIC_BASE
from lzero.platform.memory import FIRMWARE_BASE, GuestMemory

__all__ = ["AcpiTables", "SCI_IRQ", "build", "install"]

RSDP_ADDRESS = 0xF_0000
"""In the area that kernels search for it, at a 16-byte boundary."""
TABLES_ADDRESS = FIRMWARE_BASE
ALIGNMENT = 64
SCI_IRQ = 9
LOCAL_APIC_BASE = 0xFEE0_0000
OEM_ID, OEM_TABLE_ID, CREATOR = b"LZERO ", b"LZEROPC ", b"LZRO"

FADT_LEGACY_DEVICES, FADT_NO_VGA, FADT_NO_MSI = 1 << 0, 1 << 2, 1 << 3
FADT_WBINVD, FADT_PROC_C1, FADT_NO_POWER_BUTTON, FADT_NO_SLEEP_BUTTON = 1 << 0, 1 << 2, 1 << 4, 1 << 5
FADT_TIMER_32_BITS, FADT_RESET_REGISTER = 1 << 8, 1 << 10
FADT_REVISION, FADT_SIZE = 3, 244
LATENCY_UNSUPPORTED_C2, LATENCY_UNSUPPORTED_C3 = 101, 1001
ADDRESS_SPACE_IO = 1
MADT_PC_AT, MADT_LOCAL_APIC, MADT_IO_APIC, MADT_OVERRIDE, MADT_LOCAL_NMI = 1, 0, 1, 2, 4
MADT_ENABLED = 1
OVERRIDE_CONFORMS, OVERRIDE_LEVEL_HIGH = 0, 0xD
ALL_PROCESSORS = 0xFF
LINT1 = 1


@dataclass(frozen=True, slots=True)
class AcpiTables:
    """Where the tables go: the root pointer, and everything else as one block."""

    rsdp_address: int
    rsdp: bytes
    tables_address: int
    tables: bytes


def _checksum(data: bytes | bytearray) -> int:
    return -sum(data) & 0xFF


def _table(signature: bytes, revision: int, body: bytes) -> bytes:
    """A system description table: header (5.2.6) with a right checksum, and body."""
    header = struct.pack("<4sIBB6s8sI4sI", signature, 36 + len(body), revision, 0, OEM_ID, OEM_TABLE_ID, 1, CREATOR, 1)
    table = bytearray(header + body)
    table[9] = _checksum(table)
    return bytes(table)


def _dsdt() -> bytes:
    """Power-off, and the two devices that legacy probing finds anyway, so that drivers bind to them by name."""
    sleep = [Integer(SLEEP_TYPE_S5), Integer(SLEEP_TYPE_S5), Integer(0), Integer(0)]
    serial = [
        Name("_HID", EisaId("PNP0501")),
        Name("_UID", Integer(1)),
        Name("_CRS", Resources([IoPorts(COM1_BASE, 8), Irq(COM1_IRQ)])),
    ]
    rtc = [Name("_HID", EisaId("PNP0B00")), Name("_CRS", Resources([IoPorts(0x70, 2), Irq(8)]))]
    terms: list[Term] = [Name("\\_S5", Package(sleep)), Scope("\\_SB", [Device("COM1", serial), Device("RTC", rtc)])]
    return _table(b"DSDT", 2, b"".join(term.encode() for term in terms))


def _facs() -> bytes:
    return struct.pack("<4sIIIIIQB", b"FACS", 64, 0, 0, 0, 0, 0, 2).ljust(64, b"\0")


def _io_register(port: int, bits: int) -> bytes:
    """A generic address structure (5.2.3.2) for an I/O port; all zero if there is none."""
    access = {8: 1, 16: 2, 32: 3}[bits] if port else 0
    return struct.pack("<BBBBQ", ADDRESS_SPACE_IO if port else 0, bits if port else 0, 0, access, port)


def _fadt(facs: int, dsdt: int) -> bytes:
    boot_flags = FADT_LEGACY_DEVICES | FADT_NO_VGA | FADT_NO_MSI
    flags = FADT_WBINVD | FADT_PROC_C1 | FADT_NO_POWER_BUTTON | FADT_NO_SLEEP_BUTTON
    flags |= FADT_TIMER_32_BITS | FADT_RESET_REGISTER
    body = struct.pack("<IIBBHI", facs, dsdt, 0, 0, SCI_IRQ, 0)  # SMI_CMD 0: always in ACPI mode
    body += bytes(4)
    body += struct.pack("<8I", PM1_EVENT_PORT, 0, PM1_CONTROL_PORT, 0, 0, PM_TIMER_PORT, 0, 0)
    body += bytes([4, 2, 0, 4, 0, 0, 0, 0])  # lengths of PM1 event, PM1 control, PM2, timer, GPE0, GPE1
    body += struct.pack("<HHHHBBBBB", LATENCY_UNSUPPORTED_C2, LATENCY_UNSUPPORTED_C3, 0, 0, 0, 0, 0, 0, Index.CENTURY)
    body += struct.pack("<HBI", boot_flags, 0, flags)
    body += _io_register(RESET_CONTROL_PORT, 8) + bytes([RESET_VALUE, 0, 0, 0])
    body += struct.pack("<QQ", 0, dsdt)
    extended = (
        (PM1_EVENT_PORT, 32),
        (0, 8),
        (PM1_CONTROL_PORT, 16),
        (0, 8),
        (0, 8),
        (PM_TIMER_PORT, 32),
        (0, 8),
        (0, 8),
    )
    body += b"".join(_io_register(port, bits) for port, bits in extended)
    return _table(b"FACP", FADT_REVISION, body)


def _madt() -> bytes:
    body = struct.pack("<II", LOCAL_APIC_BASE, MADT_PC_AT)
    body += struct.pack("<BBBBI", MADT_LOCAL_APIC, 8, 0, 0, MADT_ENABLED)
    body += struct.pack("<BBBBII", MADT_IO_APIC, 12, 0, 0, IOAPIC_BASE, 0)
    body += struct.pack("<BBBBIH", MADT_OVERRIDE, 10, 0, 0, 2, OVERRIDE_CONFORMS)
    body += struct.pack("<BBBBIH", MADT_OVERRIDE, 10, 0, SCI_IRQ, SCI_IRQ, OVERRIDE_LEVEL_HIGH)
    body += struct.pack("<BBBHB", MADT_LOCAL_NMI, 6, ALL_PROCESSORS, 0, LINT1)
    return _table(b"APIC", 3, body)


def _rsdp(rsdt: int, xsdt: int) -> bytes:
    rsdp = bytearray(struct.pack("<8sB6sBIIQB3x", b"RSD PTR ", 0, OEM_ID, 2, rsdt, 36, xsdt, 0))
    rsdp[8] = _checksum(rsdp[:20])
    rsdp[32] = _checksum(rsdp)
    return bytes(rsdp)


class _Block:
    """Tables one after the other, each at an aligned address."""

    def __init__(self, address: int) -> None:
        self.address = address
        self.data = bytearray()

    def add(self, table: bytes) -> int:
        """Append a table; its address."""
        self.data.extend(bytes(-len(self.data) % ALIGNMENT))
        address = self.address + len(self.data)
        self.data.extend(table)
        return address


def build() -> AcpiTables:
    """All tables, linked to each other."""
    block = _Block(TABLES_ADDRESS)
    facs = block.add(_facs())
    dsdt = block.add(_dsdt())
    tables = (block.add(_fadt(facs, dsdt)), block.add(_madt()))
    rsdt = block.add(_table(b"RSDT", 1, struct.pack(f"<{len(tables)}I", *tables)))
    xsdt = block.add(_table(b"XSDT", 1, struct.pack(f"<{len(tables)}Q", *tables)))
    return AcpiTables(RSDP_ADDRESS, _rsdp(rsdt, xsdt), TABLES_ADDRESS, bytes(block.data))


def install(memory: GuestMemory) -> AcpiTables:
    """Write the tables into guest memory."""
    tables = build()
    memory.write(tables.tables_address, tables.tables)
    memory.write(tables.rsdp_address, tables.rsdp)
    return tables
