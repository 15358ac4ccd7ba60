"""The VMX instructions of L1 (SDM 3C chapter 31): operand checks, RFLAGS results, VM-instruction errors.

Every instruction arrives at :func:`handle_vmx_instruction`. What it checks first, the processor does for all of them:
#UD outside of VMX operation, #GP above CPL 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from lzero.cpu.checks import FIELD_BIT
from lzero.cpu.instruction import Instruction, Mnemonic
from lzero.cpu.vmcs import FIELD_POSITION
from lzero.hypervisor.nested import entry
from lzero.hypervisor.nested.operands import read_memory, write_memory
from lzero.hypervisor.nested.result import vm_fail, vm_fail_invalid, vm_fail_valid, vm_succeed
from lzero.hypervisor.nested.vmcs12 import NO_VMCS, SHADOW_INDICATOR, Vmcs12, region_header
from lzero.sdm.capabilities import EptVpidCap, FeatureControl
from lzero.sdm.exceptions import Vector
from lzero.sdm.formats import InveptType, InvvpidType
from lzero.sdm.registers import Cr4, is_canonical
from lzero.sdm.vm_instruction_errors import VmInstructionError as E
from lzero.sdm.vmcs_fields import VMCS_FIELDS, Field, Width

if TYPE_CHECKING:
    from lzero.hypervisor.nested.state import NestedState
    from lzero.hypervisor.vcpu import Vcpu

__all__ = ["handle_vmx_instruction"]

_M32 = 0xFFFF_FFFF
_M64 = (1 << 64) - 1
_VMXE = int(Cr4.VMXE)


def _undefined(vcpu: Vcpu) -> bool:
    return vcpu.inject_exception(Vector.UD)


def handle_vmx_instruction(vcpu: Vcpu) -> bool:
    """Any VMX instruction of L1, from VMCLEAR to VMFUNC."""
    if not vcpu.offers_vmx:
        return _undefined(vcpu)
    i = vcpu.cpu.instruction()
    handler = _INSTRUCTIONS.get(i.mnemonic)
    state = vcpu.nested.state
    if handler is None or not vcpu.guest_cr4 & _VMXE:
        return _undefined(vcpu)
    if not state.in_vmx_operation and i.mnemonic != Mnemonic.VMXON:
        return _undefined(vcpu)
    if vcpu.cpu.vmread(Field.GUEST_SS_ACCESS_RIGHTS) >> 5 & 3:
        return vcpu.inject_exception(Vector.GP, 0)
    return handler(vcpu, state, i)


def _pointer(vcpu: Vcpu, i: Instruction) -> int | None:
    data = read_memory(vcpu, i, 8)
    return None if data is None else int.from_bytes(data, "little")


def _valid_address(state: NestedState, address: int) -> bool:
    return not address & 0xFFF and address < state.capabilities.physical_address_limit


# --- VMXON, VMXOFF -----------------------------------------------------------------------------


def _vmxon(vcpu: Vcpu, state: NestedState, i: Instruction) -> bool:
    if state.in_vmx_operation:
        return vm_fail(vcpu, E.VMXON_IN_VMX_ROOT)
    caps, cr0, cr4 = state.capabilities, vcpu.guest_cr0, vcpu.guest_cr4
    needed = FeatureControl.LOCK | FeatureControl.VMXON_OUTSIDE_SMX
    fixed_wrong = caps.cr0_fixed0 & ~cr0 or cr0 & ~caps.cr0_fixed1 or caps.cr4_fixed0 & ~cr4 or cr4 & ~caps.cr4_fixed1
    if fixed_wrong or vcpu.msrs.feature_control & needed != needed:
        return vcpu.inject_exception(Vector.GP, 0)
    address = _pointer(vcpu, i)
    if address is None:
        return True
    if not _valid_address(state, address) or region_header(state.memory, address) != caps.vmcs_revision_id:
        return vm_fail_invalid(vcpu)
    state.vmxon_pointer = address
    state.make_current(NO_VMCS)
    vcpu.enter_vmx_operation()
    return vm_succeed(vcpu)


def _vmxoff(vcpu: Vcpu, state: NestedState, i: Instruction) -> bool:
    state.make_current(NO_VMCS)
    state.vmxon_pointer = NO_VMCS
    vcpu.nested.update_shadow_vmcs()
    vcpu.leave_vmx_operation()
    return vm_succeed(vcpu)


# --- VMCLEAR, VMPTRLD, VMPTRST -----------------------------------------------------------------


def _vmclear(vcpu: Vcpu, state: NestedState, i: Instruction) -> bool:
    address = _pointer(vcpu, i)
    if address is None:
        return True
    if not _valid_address(state, address):
        return vm_fail(vcpu, E.VMCLEAR_INVALID_ADDRESS)
    if address == state.vmxon_pointer:
        return vm_fail(vcpu, E.VMCLEAR_VMXON_POINTER)
    if address == state.current_pointer:
        state.make_current(NO_VMCS)
        vcpu.nested.update_shadow_vmcs()
    state.memory.write(address + 8, bytes(4))
    return vm_succeed(vcpu)


def _vmptrld(vcpu: Vcpu, state: NestedState, i: Instruction) -> bool:
    address = _pointer(vcpu, i)
    if address is None:
        return True
    if not _valid_address(state, address):
        return vm_fail(vcpu, E.VMPTRLD_INVALID_ADDRESS)
    if address == state.vmxon_pointer:
        return vm_fail(vcpu, E.VMPTRLD_VMXON_POINTER)
    header = region_header(state.memory, address)
    if header & ~SHADOW_INDICATOR != state.capabilities.vmcs_revision_id or (
        header & SHADOW_INDICATOR and not vcpu.nested.shadow_vmcs_allowed
    ):
        return vm_fail(vcpu, E.VMPTRLD_INCORRECT_REVISION_ID)
    if address != state.current_pointer:
        state.make_current(address)
        vcpu.nested.update_shadow_vmcs()
    return vm_succeed(vcpu)


def _vmptrst(vcpu: Vcpu, state: NestedState, i: Instruction) -> bool:
    if not write_memory(vcpu, i, state.current_pointer.to_bytes(8, "little")):
        return True
    return vm_succeed(vcpu)


# --- VMREAD, VMWRITE ---------------------------------------------------------------------------


def _component(vcpu: Vcpu, state: NestedState, i: Instruction, operand: int) -> int:
    encoding = vcpu.cpu.gpr_value(i.register(operand)[0])
    if not vcpu.cpu.long_mode_code:
        encoding &= _M32
    vcpu.vmcs_field = encoding if encoding >> 31 == 0 else -1
    return encoding


def _exists(state: NestedState, encoding: int) -> bool:
    low = encoding & ~1
    if encoding >> 15 or low not in state.capabilities.existing_fields:
        return False
    return not encoding & 1 or VMCS_FIELDS[low].width is Width.W64


def _vmread(vcpu: Vcpu, state: NestedState, i: Instruction) -> bool:
    vmcs12 = state.vmcs12
    encoding = _component(vcpu, state, i, 1)
    if vmcs12 is None:
        return vm_fail_invalid(vcpu)
    if not _exists(state, encoding):
        return vm_fail_valid(vcpu, E.UNSUPPORTED_VMCS_COMPONENT)
    value = vmcs12.words[FIELD_POSITION[encoding & ~1]]
    if encoding & 1:
        value >>= 32
    size = 8 if vcpu.cpu.long_mode_code else 4
    if i.is_register(0):
        vcpu.cpu.set_gpr(i.register(0)[0], value, size)
    elif not write_memory(vcpu, i, value.to_bytes(8, "little")[:size]):
        return True
    return vm_succeed(vcpu)


def _vmwrite(vcpu: Vcpu, state: NestedState, i: Instruction) -> bool:
    cpu = vcpu.cpu
    vmcs12 = state.vmcs12
    encoding = _component(vcpu, state, i, 0)
    if vmcs12 is None:
        return vm_fail_invalid(vcpu)
    size = 8 if cpu.long_mode_code else 4
    if i.is_register(1):
        value = cpu.gpr_value(i.register(1)[0])
    else:
        data = read_memory(vcpu, i, size)
        if data is None:
            return True
        value = int.from_bytes(data, "little")
    if not _exists(state, encoding):
        return vm_fail_valid(vcpu, E.UNSUPPORTED_VMCS_COMPONENT)
    write_field(vmcs12, encoding, value & (_M64 if size == 8 else _M32))
    return vm_succeed(vcpu)


_WIDTH_MASK = {Width.W16: 0xFFFF, Width.W32: _M32, Width.W64: _M64, Width.NATURAL: _M64}
_WRITE = {encoding: (FIELD_POSITION[encoding], _WIDTH_MASK[row.width]) for encoding, row in VMCS_FIELDS.items()}


def write_field(vmcs12: Vmcs12, encoding: int, value: int) -> None:
    """VMWRITE into L0's copy; a full-access encoding or the high half of a 64-bit field."""
    where, mask = _WRITE[encoding & ~1]
    if encoding & 1:
        value = (vmcs12.words[where] & _M32) | (value & _M32) << 32
    vmcs12.words[where] = value & mask
    vmcs12.changed |= FIELD_BIT[encoding]


# --- VMLAUNCH, VMRESUME, VMCALL, VMFUNC --------------------------------------------------------


def _vmlaunch(vcpu: Vcpu, state: NestedState, i: Instruction) -> bool:
    return entry.launch_or_resume(vcpu, state, launch=True)


def _vmresume(vcpu: Vcpu, state: NestedState, i: Instruction) -> bool:
    return entry.launch_or_resume(vcpu, state, launch=False)


def _vmcall(vcpu: Vcpu, state: NestedState, i: Instruction) -> bool:
    return vm_fail(vcpu, E.VMCALL_IN_VMX_ROOT)


# --- INVEPT, INVVPID ---------------------------------------------------------------------------


def _invalidation(vcpu: Vcpu, i: Instruction) -> tuple[int, int, int] | None:
    """Type and descriptor of INVEPT and INVVPID."""
    kind = vcpu.cpu.gpr_value(i.register(0)[0])
    if not vcpu.cpu.long_mode_code:
        kind &= _M32
    data = read_memory(vcpu, i, 16)
    if data is None:
        return None
    return kind, int.from_bytes(data[:8], "little"), int.from_bytes(data[8:], "little")


_INVEPT_CAPABILITY = {
    InveptType.SINGLE_CONTEXT: EptVpidCap.INVEPT_SINGLE_CONTEXT,
    InveptType.ALL_CONTEXT: EptVpidCap.INVEPT_ALL_CONTEXT,
}
_INVVPID_CAPABILITY = {
    InvvpidType.INDIVIDUAL_ADDRESS: EptVpidCap.INVVPID_INDIVIDUAL_ADDRESS,
    InvvpidType.SINGLE_CONTEXT: EptVpidCap.INVVPID_SINGLE_CONTEXT,
    InvvpidType.ALL_CONTEXT: EptVpidCap.INVVPID_ALL_CONTEXT,
    InvvpidType.SINGLE_CONTEXT_RETAINING_GLOBALS: EptVpidCap.INVVPID_SINGLE_CONTEXT_RETAINING_GLOBALS,
}


def _invept(vcpu: Vcpu, state: NestedState, i: Instruction) -> bool:
    if not state.capabilities.ept_vpid & EptVpidCap.INVEPT:
        return _undefined(vcpu)
    operands = _invalidation(vcpu, i)
    if operands is None:
        return True
    kind, eptp, reserved = operands
    capability = _INVEPT_CAPABILITY.get(kind)  # type: ignore[call-overload]  # any number from a register
    if capability is None or not state.capabilities.ept_vpid & capability:
        return vm_fail(vcpu, E.INVALID_OPERAND_TO_INVEPT_INVVPID)
    if kind == InveptType.SINGLE_CONTEXT and (reserved or not entry.eptp_valid(eptp, state.capabilities)):
        return vm_fail(vcpu, E.INVALID_OPERAND_TO_INVEPT_INVVPID)
    state.ept.invalidate(eptp if kind == InveptType.SINGLE_CONTEXT else None)
    vcpu.cpu.invept()
    return vm_succeed(vcpu)


def _invvpid(vcpu: Vcpu, state: NestedState, i: Instruction) -> bool:
    if not state.capabilities.ept_vpid & EptVpidCap.INVVPID:
        return _undefined(vcpu)
    operands = _invalidation(vcpu, i)
    if operands is None:
        return True
    kind, first, linear = operands
    vpid, reserved = first & 0xFFFF, first >> 16
    capability = _INVVPID_CAPABILITY.get(kind)  # type: ignore[call-overload]  # any number from a register
    wrong = capability is None or not state.capabilities.ept_vpid & capability or reserved
    if kind != InvvpidType.ALL_CONTEXT and not vpid:
        wrong = True
    if kind == InvvpidType.INDIVIDUAL_ADDRESS and not is_canonical(linear):
        wrong = True
    if wrong:
        return vm_fail(vcpu, E.INVALID_OPERAND_TO_INVEPT_INVVPID)
    vcpu.cpu.invept()
    return vm_succeed(vcpu)


_INSTRUCTIONS: dict[int, Callable[[Vcpu, NestedState, Instruction], bool]] = {
    Mnemonic.VMXON: _vmxon,
    Mnemonic.VMXOFF: _vmxoff,
    Mnemonic.VMCLEAR: _vmclear,
    Mnemonic.VMPTRLD: _vmptrld,
    Mnemonic.VMPTRST: _vmptrst,
    Mnemonic.VMREAD: _vmread,
    Mnemonic.VMWRITE: _vmwrite,
    Mnemonic.VMLAUNCH: _vmlaunch,
    Mnemonic.VMRESUME: _vmresume,
    Mnemonic.VMCALL: _vmcall,
    Mnemonic.INVEPT: _invept,
    Mnemonic.INVVPID: _invvpid,
}
