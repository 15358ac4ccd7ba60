"""Debug exit: a write ends the machine, and the value tells how.

Test kernels for virtual machines write their result to port 0xF4; the process then ends with status ``(value << 1) |
1``.
"""

from __future__ import annotations

from lzero.platform.bus import Bus
from lzero.platform.exits import ExitKind, ExitRequest, RequestExit
from lzero.platform.registers import Access, RegisterRow

__all__ = ["DebugExit", "REGISTERS"]

# Offsets are ports.
REGISTERS = (RegisterRow("EXIT", 0xF4, Access.WRITE, "convention of virtual machines", "4 bytes wide"),)
PORT, LAST_PORT = 0xF4, 0xF7


class DebugExit:
    """The debug-exit ports 0xF4–0xF7."""

    def __init__(self, request_exit: RequestExit) -> None:
        self._request_exit = request_exit

    def attach(self, bus: Bus) -> None:
        """Claim the ports."""
        bus.register_ports(PORT, LAST_PORT, self)

    def port_read(self, port: int, size: int) -> int:
        """Reads give 0: kernels probe whether the device is there."""
        return 0

    def port_write(self, port: int, size: int, value: int) -> None:
        """End the machine with ``value``."""
        self._request_exit(ExitRequest(ExitKind.DEBUG_EXIT, value, f"debug exit, port {port:#x}"))
