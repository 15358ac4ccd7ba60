"""How a VMX instruction ends (SDM 3C 31.2): VMsucceed, VMfailInvalid, VMfailValid."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lzero.cpu.vmcs import FIELD_POSITION
from lzero.sdm.vmcs_fields import Field

if TYPE_CHECKING:
    from lzero.hypervisor.vcpu import Vcpu

__all__ = ["vm_fail", "vm_fail_invalid", "vm_fail_valid", "vm_succeed"]

_RFLAGS = FIELD_POSITION[Field.GUEST_RFLAGS]
_ERROR = FIELD_POSITION[Field.VM_INSTRUCTION_ERROR]
_STATUS, _CF, _ZF = 0x8D5, 0x01, 0x40


def _finish(vcpu: Vcpu, flags: int) -> bool:
    words = vcpu.cpu.words
    words[_RFLAGS] = (words[_RFLAGS] & ~_STATUS) | flags
    return vcpu.skip_instruction()


def vm_succeed(vcpu: Vcpu) -> bool:
    """All status flags 0."""
    return _finish(vcpu, 0)


def vm_fail_invalid(vcpu: Vcpu) -> bool:
    """CF: there is no current VMCS."""
    return _finish(vcpu, _CF)


def vm_fail_valid(vcpu: Vcpu, error: int) -> bool:
    """ZF, and the error number in the current VMCS."""
    vmcs12 = vcpu.nested.state.vmcs12
    assert vmcs12 is not None
    vmcs12.words[_ERROR] = int(error)
    return _finish(vcpu, _ZF)


def vm_fail(vcpu: Vcpu, error: int) -> bool:
    """VMfailValid with a current VMCS, else VMfailInvalid."""
    if vcpu.nested.state.vmcs12 is None:
        return vm_fail_invalid(vcpu)
    return vm_fail_valid(vcpu, error)
