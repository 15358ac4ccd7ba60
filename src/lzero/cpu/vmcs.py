"""A VMCS as the processor keeps it."""

from __future__ import annotations

import ctypes as C

from lzero.cpu.checks import ALL_DIRTY, FIELD_BIT, field_mask
from lzero.cpu.layout import VMCS_WORDS, position
from lzero.sdm.vmcs_fields import VMCS_FIELDS, Field, Kind, Width

__all__ = ["CONTROL_FIELDS", "FIELD_POSITION", "WRITE_PLAN", "Vmcs"]


FIELD_POSITION: dict[int, int] = {encoding: position(encoding) for encoding in VMCS_FIELDS}
"""Word of each field, by encoding."""

_MASK = {Width.W16: 0xFFFF, Width.W32: 0xFFFF_FFFF, Width.W64: 2**64 - 1, Width.NATURAL: 2**64 - 1}

# Written at nearly every entry by any hypervisor; each is looked at anew by the entry itself.
_CHECKED_AT_EVERY_ENTRY = {
    Field.GUEST_RIP,
    Field.GUEST_RSP,
    Field.GUEST_RFLAGS,
    Field.GUEST_INTERRUPTIBILITY_STATE,
    Field.GUEST_ACTIVITY_STATE,
    Field.VM_ENTRY_INTERRUPTION_INFORMATION,
    Field.VM_ENTRY_EXCEPTION_ERROR_CODE,
    Field.VM_ENTRY_INSTRUCTION_LENGTH,
    Field.VMX_PREEMPTION_TIMER_VALUE,
}
CONTROL_FIELDS = field_mask(encoding for encoding, row in VMCS_FIELDS.items() if row.kind is Kind.CONTROL)
"""The bits of all control fields in :attr:`Vmcs.changed`."""


def _dirty_bit(encoding: int) -> int:
    return 0 if encoding in _CHECKED_AT_EVERY_ENTRY else FIELD_BIT[encoding]


WRITE_PLAN: dict[int, tuple[int, int, int]] = {
    encoding: (FIELD_POSITION[encoding], _MASK[row.width], _dirty_bit(encoding))
    for encoding, row in VMCS_FIELDS.items()
}
"""For each field: its word, the mask of its width, and its bit in :attr:`Vmcs.changed` (0 for fields that every entry
looks at anyway).
"""


class Vmcs:
    """One VMCS.

    Attributes
    ----------
    words:
        All fields, as 64-bit words at :data:`FIELD_POSITION`.
    launched:
        The launch state (SDM 3C 25.1).
    changed:
        Fields written since the last entry that passed the checks, as bits of
        :data:`lzero.cpu.checks.FIELD_BIT`.
    """

    __slots__ = ("_buffer", "changed", "configuration", "launched", "words")

    def __init__(self) -> None:
        self._buffer = (C.c_uint64 * VMCS_WORDS)()
        self.words = memoryview(self._buffer).cast("B").cast("Q")
        self.launched = False
        self.changed = ALL_DIRTY
        self.configuration: object = None

    @property
    def buffer(self) -> C.Array[C.c_uint64]:
        """The same words, for native code."""
        return self._buffer

    def read(self, field: int) -> int:
        """Value of a field by encoding."""
        return self.words[FIELD_POSITION[field]]

    def write(self, field: int, value: int) -> None:
        """Set a field; bits beyond its width are dropped, as VMWRITE does."""
        where, mask, changes = WRITE_PLAN[field]
        self.words[where] = value & mask
        self.changed |= changes
