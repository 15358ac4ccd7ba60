"""A VMCS as the processor keeps it."""

from __future__ import annotations

import ctypes as C
from enum import IntFlag

from lzero.cpu.layout import VMCS_WORDS, position
from lzero.sdm.vmcs_fields import VMCS_FIELDS, Field, Kind, Width

__all__ = ["FIELD_POSITION", "Changed", "Vmcs"]


class Changed(IntFlag):
    """Groups of fields that were written since the last VM entry, and so what must be checked again."""

    CONTROLS = 1
    HOST = 2
    GUEST = 4


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
_KIND_CHANGES = {Kind.CONTROL: Changed.CONTROLS, Kind.HOST_STATE: Changed.HOST, Kind.GUEST_STATE: Changed.GUEST}


def _changes(field: Field) -> int:
    if field in _CHECKED_AT_EVERY_ENTRY:
        return 0
    return int(_KIND_CHANGES.get(VMCS_FIELDS[field].kind, 0))


WRITE_PLAN: dict[int, tuple[int, int, int]] = {
    encoding: (FIELD_POSITION[encoding], _MASK[row.width], _changes(Field(encoding)))
    for encoding, row in VMCS_FIELDS.items()
}
"""For each field: its word, the mask of its width, and the :class:`Changed` bits a write sets."""


class Vmcs:
    """One VMCS.

    Attributes
    ----------
    words:
        All fields, as 64-bit words at :data:`FIELD_POSITION`.
    launched:
        The launch state (SDM 3C 25.1).
    changed:
        :class:`Changed` bits since the last entry.
    """

    __slots__ = ("_buffer", "changed", "configuration", "launched", "words")

    def __init__(self) -> None:
        self._buffer = (C.c_uint64 * VMCS_WORDS)()
        self.words = memoryview(self._buffer).cast("B").cast("Q")
        self.launched = False
        self.changed = int(Changed.CONTROLS | Changed.HOST | Changed.GUEST)
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
