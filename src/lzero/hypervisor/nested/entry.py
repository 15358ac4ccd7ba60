"""VM entry from L1 to L2 (SDM 3C chapter 27)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lzero.cpu.checks import MsrListKind, check_msr_entry, field_mask
from lzero.cpu.entry import eptp_valid
from lzero.cpu.vmcs import CONTROL_FIELDS, FIELD_POSITION
from lzero.hypervisor.msr_policy import MsrFault
from lzero.hypervisor.nested.merge import GUEST_STATE, merge_controls, merge_msr_bitmap, secondary_controls
from lzero.hypervisor.nested.result import vm_fail, vm_fail_invalid, vm_fail_valid
from lzero.sdm.controls import PinBased, ProcBased2, VmEntry
from lzero.sdm.exit_reasons import FAILED_VM_ENTRY, ExitReason
from lzero.sdm.registers import Cr0, Efer
from lzero.sdm.vm_instruction_errors import VmInstructionError as E
from lzero.sdm.vmcs_fields import VMCS_FIELDS, Field, Kind

if TYPE_CHECKING:
    from lzero.hypervisor.nested.state import NestedState
    from lzero.hypervisor.nested.vmcs12 import Vmcs12
    from lzero.hypervisor.vcpu import Vcpu

__all__ = ["eptp_valid", "launch_or_resume"]

_P = FIELD_POSITION
_PIN, _ENTRY = _P[Field.PIN_BASED_VM_EXECUTION_CONTROLS], _P[Field.VM_ENTRY_CONTROLS]
_EVENT = _P[Field.VM_ENTRY_INTERRUPTION_INFORMATION]
_EVENT_ERROR, _EVENT_LENGTH = _P[Field.VM_ENTRY_EXCEPTION_ERROR_CODE], _P[Field.VM_ENTRY_INSTRUCTION_LENGTH]
_EFER, _PAT = _P[Field.GUEST_IA32_EFER], _P[Field.GUEST_IA32_PAT]
_CR0, _CR3 = _P[Field.GUEST_CR0], _P[Field.GUEST_CR3]
_DR7, _DEBUGCTL = _P[Field.GUEST_DR7], _P[Field.GUEST_IA32_DEBUGCTL]
_TSC_OFFSET = _P[Field.TSC_OFFSET]
_BLOCKING = _P[Field.GUEST_INTERRUPTIBILITY_STATE]
_BY_MOV_SS, _BY_NMI = 2, 8
_IA32E, _LOAD_EFER = int(VmEntry.IA32E_MODE_GUEST), int(VmEntry.LOAD_IA32_EFER)
_LOAD_PAT, _LOAD_DEBUG = int(VmEntry.LOAD_IA32_PAT), int(VmEntry.LOAD_DEBUG_CONTROLS)
_VMCS_SHADOWING = int(ProcBased2.VMCS_SHADOWING)
_ENABLE_EPT, _TIMER_CONTROL = int(ProcBased2.ENABLE_EPT), int(PinBased.ACTIVATE_VMX_PREEMPTION_TIMER)
_HOST_STATE = field_mask(e for e, row in VMCS_FIELDS.items() if row.kind is Kind.HOST_STATE) | field_mask(
    (Field.VM_EXIT_CONTROLS,)
)


def launch_or_resume(vcpu: Vcpu, state: NestedState, *, launch: bool) -> bool:
    """VMLAUNCH or VMRESUME by L1: VMfail, a failed entry (exit reasons 33, 34), or L2."""
    vmcs12 = state.vmcs12
    if vmcs12 is None or vmcs12.is_shadow:
        return vm_fail_invalid(vcpu)
    if vcpu.cpu.words[_BLOCKING] & _BY_MOV_SS:
        return vm_fail(vcpu, E.ENTRY_EVENTS_BLOCKED_BY_MOV_SS)
    if launch and vmcs12.launched:
        return vm_fail(vcpu, E.VMLAUNCH_NONCLEAR_VMCS)
    if not launch and not vmcs12.launched:
        return vm_fail(vcpu, E.VMRESUME_NONLAUNCHED_VMCS)
    if state.host_image_for is not vmcs12 or vmcs12.changed & _HOST_STATE:
        state.host_image = None
    failure = state.checker.check(vmcs12)
    if failure is not None:
        vcpu.nested.last_failure = failure
        if failure.exit_reason is None:
            assert failure.vm_instruction_error is not None
            return vm_fail_valid(vcpu, failure.vm_instruction_error)
        state.vmcs02.words[_EFER], state.vmcs02.words[_PAT] = vcpu.cpu.words[_EFER], vcpu.cpu.words[_PAT]
        return _fail(vcpu, state, vmcs12, failure.exit_reason, failure.exit_qualification)
    changed, vmcs12.changed = vmcs12.changed, 0
    offset01 = vcpu.vmcs01.words[_TSC_OFFSET]
    if state.merged_for is not vmcs12 or changed & CONTROL_FIELDS or state.merged_offset01 != offset01:
        merge_controls(vcpu, state)
    merge_msr_bitmap(state, state.memory)
    _save_l1(vcpu, state)
    _load_guest_state(vcpu, state, vmcs12)
    _enter(vcpu, state)
    bad = _load_msrs(vcpu, vmcs12)
    if bad:
        vcpu.nested.leave_l2_unsaved()
        return _fail(vcpu, state, vmcs12, ExitReason.MSR_LOAD_FAIL | FAILED_VM_ENTRY, bad)
    vmcs12.launched = True
    return True


def _fail(vcpu: Vcpu, state: NestedState, vmcs12: Vmcs12, reason: int, qualification: int) -> bool:
    """An entry that fails after the checks on controls: host state is loaded, nothing else is written (27.8)."""
    words = vmcs12.words
    words[_P[Field.EXIT_REASON]] = reason
    words[_P[Field.EXIT_QUALIFICATION]] = qualification
    return vcpu.nested.load_host_state(nmi_blocked=bool(vcpu.vmcs01.words[_BLOCKING] & _BY_NMI))


def _save_l1(vcpu: Vcpu, state: NestedState) -> None:
    """What L2 inherits from L1 where vmcs12 does not say otherwise."""
    words = vcpu.cpu.words
    state.inherited = (words[_EFER], words[_PAT], words[_DR7], words[_DEBUGCTL])


def _load_guest_state(vcpu: Vcpu, state: NestedState, vmcs12: Vmcs12) -> None:
    w12, w02 = vmcs12.words, state.vmcs02.words
    for part in GUEST_STATE:
        w02[part] = w12[part]
    w02[_P[Field.VMCS_LINK_POINTER]] = (1 << 64) - 1
    controls = w12[_ENTRY]
    efer, pat, dr7, debugctl = state.inherited
    if not controls & _LOAD_EFER:
        long_mode = Efer.LMA | Efer.LME
        w02[_EFER] = (efer & ~int(long_mode)) | (int(long_mode) if controls & _IA32E else 0)
        if not controls & _IA32E and not w12[_CR0] & Cr0.PG:
            w02[_EFER] |= efer & Efer.LME
    if not controls & _LOAD_PAT:
        w02[_PAT] = pat
    if not controls & _LOAD_DEBUG:
        w02[_DR7], w02[_DEBUGCTL] = dr7, debugctl
    w02[_ENTRY] = (w02[_ENTRY] & ~_IA32E) | (controls & _IA32E)
    w02[_EVENT], w02[_EVENT_ERROR], w02[_EVENT_LENGTH] = w12[_EVENT], w12[_EVENT_ERROR], w12[_EVENT_LENGTH]
    if not secondary_controls(w12) & _ENABLE_EPT:
        _load_pdptes(state, w02)


def _load_pdptes(state: NestedState, w02: memoryview) -> None:
    """Without EPT the PDPTEs come from memory (27.3.2.4)."""
    cr0, cr4, efer = w02[_CR0], w02[_P[Field.GUEST_CR4]], w02[_EFER]
    if cr0 >> 31 & 1 and cr4 >> 5 & 1 and not efer >> 10 & 1:
        data = state.memory.read(w02[_CR3] & 0xFFFF_FFE0, 32)
        for number in range(4):
            w02[_P[Field.GUEST_PDPTE0] + number] = int.from_bytes(data[8 * number : 8 * number + 8], "little")


def _enter(vcpu: Vcpu, state: NestedState) -> None:
    vmcs12 = state.vmcs12
    assert vmcs12 is not None
    vcpu.skip_instruction()
    vcpu.cpu.vmptrld(state.vmcs02)
    vcpu.level = 2
    vcpu.parent = -1
    if secondary_controls(vmcs12.words) & _VMCS_SHADOWING:
        state.use_shadow12(vcpu)
    state.preemption_deadline = None
    if vmcs12.words[_PIN] & _TIMER_CONTROL:
        ticks = vmcs12.words[_P[Field.VMX_PREEMPTION_TIMER_VALUE]] << state.capabilities.timer_rate
        now = vcpu.cpu.clock.now_ns()
        state.preemption_deadline = now + ticks * 1_000_000_000 // vcpu.cpu.clock.tsc_hz


def _load_msrs(vcpu: Vcpu, vmcs12: Vmcs12) -> int:
    """The VM-entry MSR-load area; number (from 1) of the entry that could not be loaded, 0 if all were."""
    return load_msr_list(
        vcpu,
        MsrListKind.ENTRY_LOAD,
        vmcs12.words[_P[Field.VM_ENTRY_MSR_LOAD_ADDRESS]],
        vmcs12.words[_P[Field.VM_ENTRY_MSR_LOAD_COUNT]],
    )


def load_msr_list(vcpu: Vcpu, kind: MsrListKind, address: int, count: int) -> int:
    """Load MSRs from an area of 16-byte entries; number (from 1) of the first bad one, 0 if all were loaded."""
    limit = vcpu.nested.state.capabilities.max_msr_list
    for number in range(count):
        if number >= limit:
            return number + 1
        data = vcpu.nested.state.memory.read(address + 16 * number, 16)
        index, reserved = int.from_bytes(data[:4], "little"), int.from_bytes(data[4:8], "little")
        if check_msr_entry(kind, index, reserved) is not None:
            return number + 1
        try:
            vcpu.msrs.write(index, int.from_bytes(data[8:], "little"))
        except MsrFault:
            return number + 1
    return 0
