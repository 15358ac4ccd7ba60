"""The MP table (Intel MultiProcessor Specification 1.4) and the BIOS data area, for kernels that read them instead of
ACPI.
"""

from __future__ import annotations

import struct

from lzero.platform.devices.serial import COM1_BASE
from lzero.platform.interrupts.ioapic import IOAPIC_BASE
from lzero.platform.memory import EBDA_BASE, GuestMemory

__all__ = ["MP_POINTER_ADDRESS", "build_mp_table", "install"]

MP_POINTER_ADDRESS = 0xF_1000
"""In the BIOS area that kernels search, at a 16-byte boundary."""
MP_TABLE_ADDRESS = 0xF_1010
LOCAL_APIC_BASE = 0xFEE0_0000
APIC_VERSION, IOAPIC_VERSION = 0x14, 0x11
PROCESSOR, BUS, IO_APIC, IO_INTERRUPT, LOCAL_INTERRUPT = range(5)
ENABLED, BOOT_PROCESSOR = 1, 2
PROCESSOR_SIGNATURE = 0x600
FEATURE_FPU, FEATURE_APIC = 1 << 0, 1 << 9
INT, NMI, EXTINT = 0, 1, 3
ALL_APICS = 0xFF
ISA_BUS = 0
ISA_IRQS = 16
TIMER_PIN, CASCADE_IRQ = 2, 2

# BIOS data area
COM1_WORD, EBDA_SEGMENT_WORD, BASE_MEMORY_WORD = 0x400, 0x40E, 0x413


def _io_interrupt(irq: int) -> bytes:
    pin = TIMER_PIN if irq == 0 else irq
    return struct.pack("<BBHBBBB", IO_INTERRUPT, INT, 0, ISA_BUS, irq, 0, pin)


def build_mp_table() -> bytes:
    """The configuration table: one processor, the ISA bus, one I/O APIC and its interrupts."""
    entries = [
        struct.pack(
            "<BBBBII8x",
            PROCESSOR,
            0,
            APIC_VERSION,
            ENABLED | BOOT_PROCESSOR,
            PROCESSOR_SIGNATURE,
            FEATURE_FPU | FEATURE_APIC,
        ),
        struct.pack("<BB6s", BUS, ISA_BUS, b"ISA   "),
        struct.pack("<BBBBI", IO_APIC, 0, IOAPIC_VERSION, ENABLED, IOAPIC_BASE),
    ]
    entries += [_io_interrupt(irq) for irq in range(ISA_IRQS) if irq != CASCADE_IRQ]
    entries.append(struct.pack("<BBHBBBB", LOCAL_INTERRUPT, EXTINT, 0, ISA_BUS, 0, ALL_APICS, 0))
    entries.append(struct.pack("<BBHBBBB", LOCAL_INTERRUPT, NMI, 0, ISA_BUS, 0, ALL_APICS, 1))
    body = b"".join(entries)
    header = struct.pack(
        "<4sHBB8s12sIHHIHBB",
        b"PCMP",
        44 + len(body),
        4,
        0,
        b"LZERO   ",
        b"PC          ",
        0,
        0,
        len(entries),
        LOCAL_APIC_BASE,
        0,
        0,
        0,
    )
    table = bytearray(header + body)
    table[7] = -sum(table) & 0xFF
    return bytes(table)


def install(memory: GuestMemory) -> None:
    """Write the MP floating pointer, the table, and the words of the BIOS data area that kernels read."""
    pointer = bytearray(struct.pack("<4sIBBB5s", b"_MP_", MP_TABLE_ADDRESS, 1, 4, 0, bytes(5)))
    pointer[10] = -sum(pointer) & 0xFF
    memory.write(MP_POINTER_ADDRESS, pointer)
    memory.write(MP_TABLE_ADDRESS, build_mp_table())
    memory.write_u16(COM1_WORD, COM1_BASE)
    memory.write_u16(EBDA_SEGMENT_WORD, EBDA_BASE >> 4)
    memory.write_u16(BASE_MEMORY_WORD, EBDA_BASE >> 10)
