"""The virtual-APIC page: TPR shadow and what builds on it (SDM 3C chapter 30)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from iced_x86 import MemorySize

from lzero.cpu.instruction import Mnemonic
from lzero.sdm.controls import ProcBased
from lzero.sdm.exit_reasons import ExitReason
from lzero.sdm.vmcs_fields import Field

if TYPE_CHECKING:
    from lzero.cpu.processor import Processor

__all__ = ["VirtualApic"]

_TPR = 0x80
_SIZES = (MemorySize.UINT8, MemorySize.UINT16, MemorySize.UINT32)


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

    def access(self, offset: int, kind: int) -> int | None:
        """An access to the APIC-access page that is virtualized (30.4.2, 30.4.3); None if it exits.

        Only the TPR is virtualized, and of the instructions only MOV: any other exits, for L0 to carry out.

        Parameters
        ----------
        offset:
            Of the access in the page.
        kind:
            1 for a read, 2 for a write, 4 for a fetch.
        """
        p = self._p
        i = p.try_instruction()
        if offset != _TPR or not p.configuration.proc & ProcBased.USE_TPR_SHADOW:
            return None
        if i is None or i.mnemonic != Mnemonic.MOV:
            return None
        if kind == 1 and i.is_register(0):
            number, size, shift = i.register(0)
            if size > 4 or shift:
                return None
            p.set_gpr(number, self.read(_TPR, size), size)
            return p.complete(i)
        if kind != 2 or i.raw.memory_size not in _SIZES:
            return None
        if i.is_register(1):
            number, _, shift = i.register(1)
            value = p.gpr_value(number) >> shift
        else:
            value = i.raw.immediate(1)
        p.advance(i)
        return self.write_tpr(value & 0xFF)

    def below_threshold(self) -> bool:
        """Whether the virtual task priority is below the threshold (30.1.2)."""
        p = self._p
        if not p.configuration.proc & ProcBased.USE_TPR_SHADOW:
            return False
        return self.read_tpr() >> 4 < p.vmread(Field.TPR_THRESHOLD) & 0xF

    def write_tpr(self, value: int) -> int:
        """Set the virtual task priority; exits if it falls below the threshold (30.1.2)."""
        self.write(_TPR, value, 4)
        if self.below_threshold():
            return self._p.vm_exit(ExitReason.TPR_BELOW_THRESHOLD)
        return self._p.resume()
