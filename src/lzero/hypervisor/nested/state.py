"""What L0 remembers about L1's use of VMX."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lzero.cpu.entry import EntryChecker
from lzero.cpu.vmcs import FIELD_POSITION, Vmcs
from lzero.hypervisor.features import NESTED
from lzero.hypervisor.nested.l1_memory import L1Memory
from lzero.hypervisor.nested.shadow_ept import ShadowEpt
from lzero.hypervisor.nested.vmcs12 import NO_VMCS, Vmcs12
from lzero.sdm.vmcs_fields import Field

if TYPE_CHECKING:
    from lzero.hypervisor.vcpu import Vcpu

__all__ = ["NestedState"]

_LINK = FIELD_POSITION[Field.VMCS_LINK_POINTER]


class NestedState:
    """L1's VMX operation.

    Attributes
    ----------
    vmxon_pointer:
        Address of the VMXON region, :data:`NO_VMCS` outside VMX operation.
    vmcs12:
        The current VMCS, None if there is none.
    vmcs02:
        What L2 runs under.
    merged_for, merged_offset01:
        Whose controls vmcs02 holds, and the TSC offset of L1 they were made with.
    host_image, host_image_for:
        vmcs01's guest-state area as a VM exit to L1 leaves it, and whose host state that is.
    shadow12:
        The shadow VMCS that L2 accesses, if L1 uses VMCS shadowing.
    preemption_deadline:
        Guest time in ns at which L1's preemption timer for L2 runs out, None if it is not active.
    """

    def __init__(self, vcpu: Vcpu) -> None:
        self._own = vcpu.cpu.memory
        self.memory = L1Memory(vcpu.cpu.memory, vcpu.pc.memory)
        self.capabilities = NESTED
        self.checker = EntryChecker(NESTED, self.memory.read)
        self.vmxon_pointer = NO_VMCS
        self.vmcs12: Vmcs12 | None = None
        self.vmcs02 = Vmcs()
        self.merged_for: Vmcs12 | None = None
        self.merged_offset01 = 0
        self.host_image: list[memoryview] | None = None
        self.host_image_for: Vmcs12 | None = None
        self.shadow12: Vmcs12 | None = None
        self.preemption_deadline: int | None = None
        self.inherited = (0, 0, 0, 0)
        self.ept = ShadowEpt(vcpu, self.memory)
        self.bitmap02 = self._own.allocate_page()
        self._own.write(self.bitmap02, b"\xff" * 4096)
        self._bitmap02: dict[int, int] = {}

    @property
    def in_vmx_operation(self) -> bool:
        """L1 executed VMXON."""
        return self.vmxon_pointer != NO_VMCS

    @property
    def current_pointer(self) -> int:
        """The current-VMCS pointer as VMPTRST stores it."""
        return self.vmcs12.address if self.vmcs12 is not None else NO_VMCS

    def make_current(self, address: int) -> None:
        """Write the current VMCS back and read another; :data:`NO_VMCS` leaves none."""
        if self.vmcs12 is not None:
            self.vmcs12.write_back()
        self.vmcs12 = Vmcs12(self.memory, address) if address != NO_VMCS else None

    def set_bitmap02(self, wanted: dict[int, int]) -> None:
        """Give these bytes of vmcs02's MSR bitmaps these values; all others are 0xff."""
        if wanted != self._bitmap02:
            self._bitmap02 = wanted
            for offset, value in wanted.items():
                self._own.write(self.bitmap02 + offset, bytes([value]))

    def use_shadow12(self, vcpu: Vcpu) -> None:
        """L2 accesses the VMCS that vmcs12's link pointer refers to."""
        assert self.vmcs12 is not None
        link = self.vmcs12.words[_LINK]
        self.shadow12 = Vmcs12(self.memory, link) if link != NO_VMCS else None
        vcpu.cpu.shadow_vmcs = self.shadow12

    def put_shadow12_back(self) -> None:
        """L2 stopped: L1 may look at its shadow VMCS."""
        if self.shadow12 is not None:
            self.shadow12.write_back()
            self.shadow12 = None
