"""System control port B (0x61): speaker gate, timer 2 output, memory refresh toggle."""

from __future__ import annotations

from lzero.platform.bus import Bus
from lzero.platform.clock import Clock
from lzero.platform.devices.pit import PitChannel
from lzero.platform.registers import Access, RegisterRow

__all__ = ["Port61", "REGISTERS"]

# Offsets are ports.
REGISTERS = (
    RegisterRow("NMI_STATUS_CONTROL", 0x61, Access.READ_WRITE, "Intel ICH9 13.7.1 NMI_SC", "bits 3:0 writable"),
)
PORT = 0x61
WRITABLE = 0x0F
TIMER2_GATE = 1
REFRESH_TOGGLE = 0x10
TIMER2_OUTPUT = 0x20
REFRESH_NS = 15_085
"""The refresh request toggles the bit every 18 ticks of the timer's input clock."""


class Port61:
    """Port 0x61.

    Parameters
    ----------
    clock:
        Guest time, for the refresh toggle.
    timer2:
        The PIT's counter 2.
    """

    def __init__(self, clock: Clock, timer2: PitChannel) -> None:
        self._clock = clock
        self._timer2 = timer2
        self._value = 0

    def attach(self, bus: Bus) -> None:
        """Claim the port."""
        bus.register_byte_port(PORT, self._read, self._write)

    def _read(self) -> int:
        value = self._value
        if self._clock.now_ns() // REFRESH_NS & 1:
            value |= REFRESH_TOGGLE
        if self._timer2.output():
            value |= TIMER2_OUTPUT
        return value

    def _write(self, value: int) -> None:
        self._value = value & WRITABLE
        self._timer2.set_gate(bool(value & TIMER2_GATE))
