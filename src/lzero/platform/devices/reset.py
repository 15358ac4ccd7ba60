"""The two reset ports of the chipset: system control port A (0x92) and the reset control register (0xCF9)."""

from __future__ import annotations

from lzero.platform.bus import Bus
from lzero.platform.exits import ExitKind, ExitRequest, RequestExit
from lzero.platform.registers import Access, RegisterRow

__all__ = ["REGISTERS", "RESET_CONTROL_PORT", "RESET_VALUE", "ResetPorts"]

# Offsets are ports.
REGISTERS = (
    RegisterRow(
        "PORT_A", 0x92, Access.READ_WRITE, "Intel ICH9 13.7.4 PORT92", "bit 0 reset; bit 1 A20, without effect"
    ),
    RegisterRow("RST_CNT", 0xCF9, Access.READ_WRITE, "Intel ICH9 13.7.5 RST_CNT", "bit 2 resets"),
)
CONTROL_PORT_A, RESET_CONTROL_PORT = 0x92, 0xCF9
PORT_A_RESET, PORT_A_A20 = 1, 2
RESET_CPU = 4
RESET_VALUE = 0x0E
"""What the FADT tells the guest to write for a reset: full, hard, go."""


class ResetPorts:
    """Ports 0x92 and 0xCF9. The A20 bit can be read back but nothing is masked: A20 is always on."""

    def __init__(self, request_exit: RequestExit) -> None:
        self._request_exit = request_exit
        self._port_a = PORT_A_A20
        self._reset_control = 0

    def attach(self, bus: Bus) -> None:
        """Claim the ports."""
        bus.register_byte_port(CONTROL_PORT_A, lambda: self._port_a, self._write_port_a)
        bus.register_byte_port(RESET_CONTROL_PORT, lambda: self._reset_control, self._write_reset_control)

    def _write_port_a(self, value: int) -> None:
        self._port_a = value & PORT_A_A20
        if value & PORT_A_RESET:
            self._request_exit(ExitRequest(ExitKind.RESET, 0, f"system control port A, port {CONTROL_PORT_A:#x}"))

    def _write_reset_control(self, value: int) -> None:
        self._reset_control = value & ~RESET_CPU
        if value & RESET_CPU:
            self._request_exit(ExitRequest(ExitKind.RESET, 0, f"reset control, port {RESET_CONTROL_PORT:#x}"))
