"""Whose exit is it? First what L0 keeps for itself, then what L1 asked for (SDM 3C 26.1, 28.1)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from lzero.cpu.vmcs import FIELD_POSITION
from lzero.hypervisor.nested.merge import secondary_controls
from lzero.sdm.controls import PinBased, ProcBased, ProcBased2
from lzero.sdm.exceptions import Vector
from lzero.sdm.exit_reasons import ExitReason as R
from lzero.sdm.registers import Cr0
from lzero.sdm.vmcs_fields import Field

if TYPE_CHECKING:
    from lzero.hypervisor.nested.state import NestedState
    from lzero.hypervisor.vcpu import Vcpu

__all__ = ["l0_wants", "l1_wants", "l1_wants_exception"]

_P = FIELD_POSITION
_PIN, _PROC = _P[Field.PIN_BASED_VM_EXECUTION_CONTROLS], _P[Field.PRIMARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS]
_QUALIFICATION = Field.EXIT_QUALIFICATION

_L0_OWN = {R.EXTERNAL_INTERRUPT, R.PREEMPTION_TIMER, R.EPT_VIOLATION, R.EPT_MISCONFIG, R.VMFUNC, R.MCE_DURING_VMENTRY}
"""L0 deals with these first; what concerns L1 it passes on itself."""

_ALWAYS = {
    R.TRIPLE_FAULT, R.INIT_SIGNAL, R.SIPI_SIGNAL, R.TASK_SWITCH, R.CPUID, R.INVD, R.XSETBV, R.APIC_WRITE, R.EOI_INDUCED,
    R.VMCALL, R.VMCLEAR, R.VMLAUNCH, R.VMPTRLD, R.VMPTRST, R.VMREAD, R.VMRESUME, R.VMWRITE, R.VMOFF, R.VMON, R.INVEPT,
    R.INVVPID, R.APIC_ACCESS, R.PML_FULL, R.TPR_BELOW_THRESHOLD, R.INVALID_STATE, R.MSR_LOAD_FAIL,
}  # fmt: skip

_PRIMARY = {
    R.INTERRUPT_WINDOW: ProcBased.INTERRUPT_WINDOW_EXITING,
    R.NMI_WINDOW: ProcBased.NMI_WINDOW_EXITING,
    R.HLT: ProcBased.HLT_EXITING,
    R.INVLPG: ProcBased.INVLPG_EXITING,
    R.RDPMC: ProcBased.RDPMC_EXITING,
    R.RDTSC: ProcBased.RDTSC_EXITING,
    R.RDTSCP: ProcBased.RDTSC_EXITING,
    R.INVPCID: ProcBased.INVLPG_EXITING,
    R.DR_ACCESS: ProcBased.MOV_DR_EXITING,
    R.MWAIT_INSTRUCTION: ProcBased.MWAIT_EXITING,
    R.MONITOR_INSTRUCTION: ProcBased.MONITOR_EXITING,
    R.MONITOR_TRAP_FLAG: ProcBased.MONITOR_TRAP_FLAG,
}
_SECONDARY = {
    R.GDTR_IDTR: ProcBased2.DESCRIPTOR_TABLE_EXITING,
    R.LDTR_TR: ProcBased2.DESCRIPTOR_TABLE_EXITING,
    R.WBINVD: ProcBased2.WBINVD_EXITING,
    R.RDRAND: ProcBased2.RDRAND_EXITING,
    R.RDSEED: ProcBased2.RDSEED_EXITING,
}


def l0_wants(reason: int) -> bool:
    """Exits that L0 looks at before L1 gets to know of them."""
    return reason in _L0_OWN


def l1_wants_exception(state: NestedState, vector: int, error: int) -> bool:
    """Whether L1's exception bitmap selects an exception of L2 (26.2)."""
    vmcs12 = state.vmcs12
    assert vmcs12 is not None
    words = vmcs12.words
    selected = bool(words[_P[Field.EXCEPTION_BITMAP]] >> vector & 1)
    if vector == Vector.PF:
        matches = error & words[_P[Field.PAGE_FAULT_ERROR_CODE_MASK]] == words[_P[Field.PAGE_FAULT_ERROR_CODE_MATCH]]
        return selected if matches else not selected
    return selected


def l1_wants(vcpu: Vcpu, state: NestedState, reason: int) -> bool:
    """Whether the controls that L1 set for L2 ask for this exit."""
    vmcs12 = state.vmcs12
    assert vmcs12 is not None
    if reason in _ALWAYS:
        return True
    words = vmcs12.words
    primary = _PRIMARY.get(reason)  # type: ignore[call-overload]  # any 16-bit number
    if primary is not None:
        return bool(words[_PROC] & primary)
    secondary = _SECONDARY.get(reason)  # type: ignore[call-overload]  # any 16-bit number
    if secondary is not None:
        return bool(secondary_controls(words) & secondary)
    special = _SPECIAL.get(reason)  # type: ignore[call-overload]  # any 16-bit number
    return special(vcpu, words, state) if special is not None else True


def _exception(vcpu: Vcpu, words: memoryview, state: NestedState) -> bool:
    info = vcpu.cpu.vmread(Field.VM_EXIT_INTERRUPTION_INFORMATION)
    if info >> 8 & 7 == 2:
        return bool(words[_PIN] & PinBased.NMI_EXITING)
    return l1_wants_exception(state, info & 0xFF, vcpu.cpu.vmread(Field.VM_EXIT_INTERRUPTION_ERROR_CODE))


def _io(vcpu: Vcpu, words: memoryview, state: NestedState) -> bool:
    proc = words[_PROC]
    if not proc & ProcBased.USE_IO_BITMAPS:
        return bool(proc & ProcBased.UNCONDITIONAL_IO_EXITING)
    qualification = vcpu.cpu.vmread(_QUALIFICATION)
    port, size = qualification >> 16 & 0xFFFF, (qualification & 7) + 1
    if port + size > 0x10000:
        return True
    for number in range(port, port + size):
        field = Field.IO_BITMAP_A_ADDRESS if number < 0x8000 else Field.IO_BITMAP_B_ADDRESS
        byte = state.memory.read(words[_P[field]] + (number & 0x7FFF) // 8, 1)[0]
        if byte >> (number & 7) & 1:
            return True
    return False


def _msr(vcpu: Vcpu, words: memoryview, state: NestedState, *, write: bool) -> bool:
    if not words[_PROC] & ProcBased.USE_MSR_BITMAPS:
        return True
    index = vcpu.cpu.gpr[1] & 0xFFFF_FFFF
    if not (index < 0x2000 or 0xC000_0000 <= index < 0xC000_2000):
        return True
    offset = (0x800 if write else 0) + (0x400 if index >= 0xC000_0000 else 0) + (index & 0x1FFF) // 8
    byte = state.memory.read(words[_P[Field.MSR_BITMAPS_ADDRESS]] + offset, 1)[0]
    return bool(byte >> (index & 7) & 1)


def _rdmsr(vcpu: Vcpu, words: memoryview, state: NestedState) -> bool:
    return _msr(vcpu, words, state, write=False)


def _wrmsr(vcpu: Vcpu, words: memoryview, state: NestedState) -> bool:
    return _msr(vcpu, words, state, write=True)


def _cr_access(vcpu: Vcpu, words: memoryview, state: NestedState) -> bool:
    qualification = vcpu.cpu.vmread(_QUALIFICATION)
    register, access, general = qualification & 15, qualification >> 4 & 3, qualification >> 8 & 15
    proc = words[_PROC]
    if access == 1:
        control = ProcBased.CR3_STORE_EXITING if register == 3 else ProcBased.CR8_STORE_EXITING
        return bool(proc & control)
    if access == 2:
        return bool(words[_P[Field.CR0_GUEST_HOST_MASK]] & words[_P[Field.CR0_READ_SHADOW]] & Cr0.TS)
    if register == 8:
        return bool(proc & ProcBased.CR8_LOAD_EXITING)
    value = vcpu.cpu.gpr_value(general)
    if access == 3:
        value = (qualification >> 16 & 0xF) | (words[_P[Field.CR0_READ_SHADOW]] & ~0xF)
    if register == 3:
        count = words[_P[Field.CR3_TARGET_COUNT]]
        targets = [words[_P[Field.CR3_TARGET_VALUE_0] + number] for number in range(min(count, 4))]
        return bool(proc & ProcBased.CR3_LOAD_EXITING) and value not in targets
    mask, shadow = (
        (Field.CR0_GUEST_HOST_MASK, Field.CR0_READ_SHADOW)
        if register == 0
        else (Field.CR4_GUEST_HOST_MASK, Field.CR4_READ_SHADOW)
    )
    return bool((value ^ words[_P[shadow]]) & words[_P[mask]])


def _pause(vcpu: Vcpu, words: memoryview, state: NestedState) -> bool:
    return bool(words[_PROC] & ProcBased.PAUSE_EXITING or secondary_controls(words) & ProcBased2.PAUSE_LOOP_EXITING)


_SPECIAL: dict[R, Callable[[Vcpu, memoryview, NestedState], bool]] = {
    R.EXCEPTION_NMI: _exception,
    R.IO_INSTRUCTION: _io,
    R.MSR_READ: _rdmsr,
    R.MSR_WRITE: _wrmsr,
    R.CR_ACCESS: _cr_access,
    R.PAUSE_INSTRUCTION: _pause,
}
