"""VMCS shadowing that L0 uses for L1 (SDM 3C 26.1.3): which fields L1 reads and writes without an exit.

The shadow VMCS is L0's own copy of vmcs12, so there is nothing to synchronise: what L1 writes is there at once.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from lzero.cpu.vmcs import Vmcs
from lzero.sdm.controls import ProcBased2
from lzero.sdm.vmcs_fields import Field
from lzero.trace.shadow import ShadowSet, kvm_set

if TYPE_CHECKING:
    from lzero.hypervisor.vcpu import Vcpu

__all__ = ["ShadowFields", "load_shadow_fields"]


_SHADOWING = int(ProcBased2.VMCS_SHADOWING)


class ShadowFields:
    """The fields in the VMREAD and VMWRITE bitmaps.

    Parameters
    ----------
    read, write:
        Encodings (of full accesses) that L1 may read and write without an exit; none means no shadowing.
    """

    def __init__(self, read: Iterable[int] = (), write: Iterable[int] = ()) -> None:
        self.read, self.write = frozenset(read), frozenset(write)

    @property
    def active(self) -> bool:
        """Whether anything is shadowed."""
        return bool(self.read or self.write)

    def _bitmap(self, fields: frozenset[int]) -> bytes:
        bitmap = bytearray(b"\xff" * 4096)
        for encoding in fields:
            for number in (encoding, encoding | 1):
                bitmap[number // 8] &= ~(1 << (number & 7)) & 0xFF
        return bytes(bitmap)

    def install(self, vcpu: Vcpu) -> None:
        """Write the bitmaps and tell the processor where they are."""
        if not self.active:
            return
        memory = vcpu.cpu.memory
        for field, fields in (
            (Field.VMREAD_BITMAP_ADDRESS, self.read),
            (Field.VMWRITE_BITMAP_ADDRESS, self.write),
        ):
            page = memory.allocate_page()
            memory.write(page, self._bitmap(fields))
            vcpu.vmcs01.write(field, page)
        vcpu.cpu.on_shadow_access = vcpu.note_shadow_access

    def use(self, vcpu: Vcpu, vmcs: Vmcs | None) -> None:
        """Let L1 access this VMCS directly; None switches shadowing off while there is no current VMCS."""
        if not self.active:
            return
        field = Field.SECONDARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS
        controls = vcpu.vmcs01.read(field)
        wanted = controls | _SHADOWING if vmcs is not None else controls & ~_SHADOWING
        if wanted != controls:  # a write makes the next entry check and configure the controls anew
            vcpu.vmcs01.write(field, wanted)
        vcpu.cpu.shadow_vmcs = vmcs


def load_shadow_fields(choice: str) -> ShadowFields:
    """The fields meant by ``--shadow-vmcs``: ``off``, ``default`` (KVM's own set) or a TOML file.

    The file has a table ``shadow`` with two lists of field names, ``read_only`` and ``read_write``, as
    ``lzero shadow plan --emit toml`` writes it.

    Raises
    ------
    UsageError
        The file cannot be read, is no TOML, or names a field that does not exist, or one twice.
    """
    if choice == "off":
        return ShadowFields()
    fields = kvm_set() if choice == "default" else ShadowSet.load(Path(choice))
    return ShadowFields(fields.read_only | fields.read_write, fields.read_write)
