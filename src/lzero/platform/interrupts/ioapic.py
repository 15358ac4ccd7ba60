"""The I/O APIC: 24 inputs, each with a redirection entry, at 0xFEC00000."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

from lzero.platform.bus import Bus
from lzero.platform.registers import Access, RegisterRow

__all__ = ["DeliveryMode", "IOAPIC_BASE", "InterruptMessage", "IoApic", "PINS", "REGISTERS"]

IOAPIC_BASE = 0xFEC0_0000
IOAPIC_SIZE = 0x1000
PINS = 24
VERSION = 0x11
SHEET = "Intel 82093AA"

# Offsets are byte offsets for the first two rows and indexes, chosen through IOREGSEL, for the rest.
REGISTERS = (
    RegisterRow("IOREGSEL", 0x00, Access.READ_WRITE, f"{SHEET} 3.1.1", "byte offset"),
    RegisterRow("IOWIN", 0x10, Access.READ_WRITE, f"{SHEET} 3.1.2", "byte offset"),
    RegisterRow("IOAPICID", 0x00, Access.READ_WRITE, f"{SHEET} 3.2.1", "bits 27:24"),
    RegisterRow("IOAPICVER", 0x01, Access.READ, f"{SHEET} 3.2.2"),
    RegisterRow("IOAPICARB", 0x02, Access.READ, f"{SHEET} 3.2.3", "follows IOAPICID"),
    RegisterRow("IOREDTBL", 0x10, Access.READ_WRITE, f"{SHEET} 3.2.4", "24 entries of two registers"),
)
SELECT_OFFSET, WINDOW_OFFSET = 0x00, 0x10
ID_INDEX, VERSION_INDEX, ARBITRATION_INDEX, TABLE_INDEX = 0, 1, 2, 0x10
ID_MASK = 0x0F00_0000

VECTOR_MASK = 0xFF
MODE_SHIFT = 8
LOGICAL = 1 << 11
DELIVERY_STATUS = 1 << 12
POLARITY_LOW = 1 << 13
REMOTE_IRR = 1 << 14
LEVEL = 1 << 15
MASKED = 1 << 16
WRITABLE = 0xFF00_0000_0001_AFFF
DESTINATION_SHIFT = 56


class DeliveryMode(IntEnum):
    """What an interrupt message does at its destination (SDM Vol. 3, 11.6.1; 82093AA 3.2.4)."""

    FIXED = 0
    LOWEST_PRIORITY = 1
    SMI = 2
    NMI = 4
    INIT = 5
    STARTUP = 6
    EXTINT = 7


@dataclass(frozen=True, slots=True)
class InterruptMessage:
    """What the I/O APIC sends to the local APICs."""

    vector: int
    mode: int
    destination: int
    logical: bool
    level: bool


class IoApic:
    """The controller.

    Parameters
    ----------
    send:
        Delivers a message to the local APIC.
    after_write:
        Called after software wrote a redirection entry: masks may have changed.
    """

    def __init__(self, send: Callable[[InterruptMessage], None], after_write: Callable[[], None]) -> None:
        self._send = send
        self._after_write = after_write
        self._select = 0
        self._id = 0
        self._levels = 0
        self.entries = [MASKED] * PINS

    def attach(self, bus: Bus) -> None:
        """Claim the page at 0xFEC00000."""
        bus.register_mmio(IOAPIC_BASE, IOAPIC_SIZE, self)

    # Inputs

    def set_input(self, pin: int, level: bool) -> None:
        """Drive an input pin; the entry's polarity says which level asserts it. An edge at a masked entry is lost
        (82093AA 3.2.4).
        """
        bit = 1 << pin
        entry = self.entries[pin]
        before = bool(self._levels & bit)
        self._levels = self._levels | bit if level else self._levels & ~bit
        if entry & LEVEL:
            self._service_level(pin)
        elif level != before and level != bool(entry & POLARITY_LOW) and not entry & MASKED:
            self._deliver(entry)

    def _asserted(self, pin: int) -> bool:
        return bool(self._levels >> pin & 1) != bool(self.entries[pin] & POLARITY_LOW)

    def _service_level(self, pin: int) -> None:
        """Send a level-triggered interrupt unless it is masked, already accepted, or not asserted."""
        entry = self.entries[pin]
        if entry & LEVEL and not entry & (MASKED | REMOTE_IRR) and self._asserted(pin):
            # Remote IRR is set before sending: the message may be answered by an EOI at once.
            self.entries[pin] = entry | REMOTE_IRR
            self._deliver(entry)

    def _deliver(self, entry: int) -> None:
        self._send(
            InterruptMessage(
                vector=entry & VECTOR_MASK,
                mode=entry >> MODE_SHIFT & 7,
                destination=entry >> DESTINATION_SHIFT,
                logical=bool(entry & LOGICAL),
                level=bool(entry & LEVEL),
            )
        )

    def is_masked(self, pin: int) -> bool:
        """Whether a pin's interrupts go nowhere."""
        return bool(self.entries[pin] & MASKED)

    def end_of_interrupt(self, vector: int) -> None:
        """EOI broadcast of a local APIC: level entries with this vector may interrupt again."""
        for pin, entry in enumerate(self.entries):
            if entry & LEVEL and entry & REMOTE_IRR and entry & VECTOR_MASK == vector:
                self.entries[pin] = entry & ~REMOTE_IRR
                self._service_level(pin)

    # Registers

    def mmio_read(self, offset: int, size: int) -> int:
        """IOREGSEL and IOWIN; everything else reads as 0."""
        if offset == SELECT_OFFSET:
            return self._select
        if offset == WINDOW_OFFSET:
            return self._read_register()
        return 0

    def mmio_write(self, offset: int, size: int, value: int) -> None:
        """IOREGSEL and IOWIN; everything else is ignored."""
        if offset == SELECT_OFFSET:
            self._select = value & 0xFF
        elif offset == WINDOW_OFFSET:
            self._write_register(value & 0xFFFF_FFFF)

    def _read_register(self) -> int:
        index = self._select
        if index in (ID_INDEX, ARBITRATION_INDEX):
            return self._id
        if index == VERSION_INDEX:
            return (PINS - 1) << 16 | VERSION
        pin = (index - TABLE_INDEX) >> 1
        if 0 <= pin < PINS:
            return self.entries[pin] >> 32 * (index & 1) & 0xFFFF_FFFF
        return 0

    def _write_register(self, value: int) -> None:
        index = self._select
        if index == ID_INDEX:
            self._id = value & ID_MASK
            return
        pin = (index - TABLE_INDEX) >> 1
        if 0 <= pin < PINS:
            self._write_entry(pin, value << 32 * (index & 1), 0xFFFF_FFFF << 32 * (index & 1))

    def _write_entry(self, pin: int, value: int, half: int) -> None:
        mask = WRITABLE & half
        entry = self.entries[pin] & ~mask | value & mask
        if not entry & LEVEL:
            # Remote IRR has no meaning for an edge; software switches the trigger mode to clear it.
            entry &= ~REMOTE_IRR
        self.entries[pin] = entry
        self._service_level(pin)
        self._after_write()
