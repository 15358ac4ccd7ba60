"""L1's physical memory as the nested module sees it: RAM of the guest, and nothing of L0's own.

Whatever address L1 puts into an operand or a VMCS field, L0 reads and writes here. L0's tables and bitmaps share the
processor's physical address space (see :data:`lzero.cpu.memory.HOST_BASE`); to L1 there is nothing at their place.
"""

from __future__ import annotations

from lzero.cpu.memory import HOST_BASE, PhysicalMemory
from lzero.platform.memory import GuestMemory

__all__ = ["NOWHERE", "L1Memory"]

NOWHERE = HOST_BASE - 4096
"""A page that no memory backs: where vmcs02 points when vmcs12 points outside of RAM."""


class L1Memory:
    """Guest RAM; elsewhere reads are all ones and writes are dropped, as where no device answers.

    Parameters
    ----------
    memory:
        The processor's physical memory, which knows about translated code.
    ram:
        What of it belongs to the guest.
    """

    def __init__(self, memory: PhysicalMemory, ram: GuestMemory) -> None:
        self._memory, self._ram = memory, ram

    def backed(self, address: int, size: int = 1) -> bool:
        """Whether RAM is there."""
        return self._ram.contains(address, size)

    def page_or_nowhere(self, address: int) -> int:
        """The address of a page of RAM, else :data:`NOWHERE`."""
        return address if self._ram.contains(address, 4096) else NOWHERE

    def read(self, address: int, size: int) -> bytes:
        """Bytes at a physical address."""
        return self._memory.read(address, size) if self._ram.contains(address, size) else b"\xff" * size

    def write(self, address: int, data: bytes) -> None:
        """Write bytes."""
        if self._ram.contains(address, len(data)):
            self._memory.write(address, data)

    def read_u64(self, address: int) -> int:
        """A little-endian 64-bit word."""
        return int.from_bytes(self.read(address, 8), "little")

    def write_u64(self, address: int, value: int) -> None:
        """Write a little-endian 64-bit word into memory that holds no code."""
        if self._ram.contains(address, 8):
            self._memory.write_u64(address, value)
