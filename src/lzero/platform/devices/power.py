"""ACPI fixed hardware: PM1 event and control registers and the power-management timer (ACPI 6.5, section 4.8).

The machine has no legacy mode, so SCI_EN is always set. Nothing raises the SCI: there are no buttons, and the timer's
carry is not reported.
"""

from __future__ import annotations

from lzero.platform.bus import Bus
from lzero.platform.clock import NS_PER_SECOND, Clock
from lzero.platform.exits import ExitKind, ExitRequest, RequestExit
from lzero.platform.registers import Access, RegisterRow

__all__ = [
    "PM1_CONTROL_PORT",
    "PM1_EVENT_PORT",
    "PM_TIMER_HZ",
    "PM_TIMER_PORT",
    "PowerManagement",
    "REGISTERS",
    "SLEEP_TYPE_S5",
]

PM1_EVENT_PORT, PM1_CONTROL_PORT, PM_TIMER_PORT, LAST_PORT = 0x600, 0x604, 0x608, 0x60B
PM_TIMER_HZ = 3_579_545
SLEEP_TYPE_S5 = 0
"""Value of SLP_TYP for soft-off; the DSDT's ``\\_S5`` says so."""

# Offsets are ports.
REGISTERS = (
    RegisterRow(
        "PM1_STS", 0x600, Access.READ_WRITE, "ACPI 6.5 4.8.3.1.1", "write 1 to clear; no event ever sets a bit"
    ),
    RegisterRow("PM1_EN", 0x602, Access.READ_WRITE, "ACPI 6.5 4.8.3.1.2"),
    RegisterRow("PM1_CNT", 0x604, Access.READ_WRITE, "ACPI 6.5 4.8.3.2.1", "SLP_EN with SLP_TYP 0 powers off"),
    RegisterRow("PM_TMR", 0x608, Access.READ, "ACPI 6.5 4.8.3.3", "32 bits at 3.579545 MHz"),
)
PM1_ENABLE_PORT = 0x602
SCI_ENABLE, BUS_MASTER_RELOAD, SLEEP_ENABLE = 1 << 0, 1 << 1, 1 << 13
SLEEP_TYPE_SHIFT, SLEEP_TYPE_MASK = 10, 7


class PowerManagement:
    """Ports 0x600–0x60B.

    Parameters
    ----------
    clock:
        Guest time, for the timer.
    request_exit:
        Called when the guest powers off.
    """

    def __init__(self, clock: Clock, request_exit: RequestExit) -> None:
        self._clock = clock
        self._request_exit = request_exit
        self._enable = 0
        self._control = SCI_ENABLE

    def attach(self, bus: Bus) -> None:
        """Claim the ports."""
        bus.register_ports(PM1_EVENT_PORT, LAST_PORT, self)

    def _image(self) -> int:
        """All registers as one little-endian number."""
        timer = self._clock.now_ns() * PM_TIMER_HZ // NS_PER_SECOND & 0xFFFF_FFFF
        return self._enable << 16 | self._control << 32 | timer << 64

    def port_read(self, port: int, size: int) -> int:
        """Any bytes of the registers."""
        return self._image() >> 8 * (port - PM1_EVENT_PORT)

    def port_write(self, port: int, size: int, value: int) -> None:
        """Enable and control registers, byte-wise or whole; the others ignore writes."""
        for i in range(size):
            self._write_byte(port + i, value >> 8 * i & 0xFF)

    def _write_byte(self, port: int, value: int) -> None:
        if port in (PM1_ENABLE_PORT, PM1_ENABLE_PORT + 1):
            shift = 8 * (port - PM1_ENABLE_PORT)
            self._enable = self._enable & ~(0xFF << shift) | value << shift
        elif port in (PM1_CONTROL_PORT, PM1_CONTROL_PORT + 1):
            shift = 8 * (port - PM1_CONTROL_PORT)
            control = self._control & ~(0xFF << shift) | value << shift | SCI_ENABLE
            # SLP_EN is write-only.
            self._control = control & ~SLEEP_ENABLE
            if control & SLEEP_ENABLE and control >> SLEEP_TYPE_SHIFT & SLEEP_TYPE_MASK == SLEEP_TYPE_S5:
                self._request_exit(ExitRequest(ExitKind.POWER_OFF, 0, f"ACPI S5, port {PM1_CONTROL_PORT:#x}"))
