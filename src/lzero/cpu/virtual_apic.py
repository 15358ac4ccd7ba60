"""The virtual-APIC page: TPR shadow and what builds on it (SDM 3C chapter 30)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lzero.cpu.engine import Action
from lzero.sdm.controls import ProcBased2
from lzero.sdm.exit_reasons import ExitReason
from lzero.sdm.vmcs_fields import Field

if TYPE_CHECKING:
    from lzero.cpu.processor import Processor

__all__ = ["VirtualApic"]

_TPR = 0x80


class VirtualApic:
    """The virtual APIC of the VMCS that is current.

    Parameters
    ----------
    processor:
        Whose VMCS holds the address of the page.
    """

    def __init__(self, processor: Processor) -> None:
        self._p = processor

    def read(self, offset: int, size: int = 4) -> int:
        """A register of the virtual-APIC page."""
        page = self._p.vmread(Field.VIRTUAL_APIC_ADDRESS)
        return int.from_bytes(self._p.memory.read(page + offset, size), "little")

    def write(self, offset: int, value: int, size: int = 4) -> None:
        """Set a register of the virtual-APIC page."""
        page = self._p.vmread(Field.VIRTUAL_APIC_ADDRESS)
        self._p.memory.write(page + offset, (value & ((1 << 8 * size) - 1)).to_bytes(size, "little"))

    def read_tpr(self) -> int:
        """The 8-bit virtual task priority."""
        return self.read(_TPR, 1)

    def write_tpr(self, value: int) -> int:
        """Set the virtual task priority; exits if it falls below the threshold (30.1.2)."""
        self.write(_TPR, value, 1)
        p = self._p
        if p.configuration.proc2 & ProcBased2.VIRTUAL_INTERRUPT_DELIVERY:
            return int(Action.ENTER)
        if (value >> 4 & 0xF) < (p.vmread(Field.TPR_THRESHOLD) & 0xF):
            return p.vm_exit(ExitReason.TPR_BELOW_THRESHOLD)
        return int(Action.ENTER)
