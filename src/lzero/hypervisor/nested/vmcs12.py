"""The VMCS that L1 makes: its region in L1's memory and L0's copy of the current one.

The manual leaves the layout of a VMCS region to the processor. Here it is: the revision identifier, the VMX-abort
indicator, the launch state, then every field in the order of its encoding. L0 keeps the current VMCS in
:class:`lzero.cpu.vmcs.Vmcs` words and writes it back when it stops being current (VMCLEAR, VMPTRLD, VMXOFF).
"""

from __future__ import annotations

import struct

from lzero.cpu.vmcs import FIELD_POSITION, Vmcs
from lzero.hypervisor.nested.l1_memory import L1Memory

__all__ = ["NO_VMCS", "SHADOW_INDICATOR", "Vmcs12", "region_header"]

NO_VMCS = (1 << 64) - 1
SHADOW_INDICATOR = 1 << 31
_HEADER = struct.Struct("<III4x")
_POSITIONS = [FIELD_POSITION[encoding] for encoding in sorted(FIELD_POSITION)]
_FIELDS = struct.Struct(f"<{len(_POSITIONS)}Q")
_CLEAR, _LAUNCHED = 0, 1


def region_header(memory: L1Memory, address: int) -> int:
    """Bits 31:0 of a VMCS region: revision identifier and shadow-VMCS indicator."""
    return int.from_bytes(memory.read(address, 4), "little")


class Vmcs12(Vmcs):
    """L0's copy of a VMCS of L1.

    Parameters
    ----------
    memory:
        Where the region is.
    address:
        Guest-physical address of the region in L1.
    """

    __slots__ = ("_memory", "address", "is_shadow")

    def __init__(self, memory: L1Memory, address: int) -> None:
        super().__init__()
        self._memory = memory
        self.address = address
        header, _, state = _HEADER.unpack(memory.read(address, _HEADER.size))
        self.is_shadow = bool(header & SHADOW_INDICATOR)
        self.launched = state == _LAUNCHED
        words = self.words
        values = _FIELDS.unpack(memory.read(address + _HEADER.size, _FIELDS.size))
        for position, value in zip(_POSITIONS, values, strict=True):
            words[position] = value

    def write_back(self) -> None:
        """Put all fields and the launch state into the region."""
        words = self.words
        data = _FIELDS.pack(*(words[position] for position in _POSITIONS))
        self._memory.write(self.address + 8, (_LAUNCHED if self.launched else _CLEAR).to_bytes(4, "little"))
        self._memory.write(self.address + _HEADER.size, data)

    def abort(self, indicator: int) -> None:
        """Write the VMX-abort indicator (28.7)."""
        self._memory.write(self.address + 4, indicator.to_bytes(4, "little"))
