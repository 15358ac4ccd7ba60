"""vmcs02 from vmcs12 and L0's own VMCS: what L2 runs under.

Controls are merged when L1 changed one of its own; the guest-state area is copied at every entry.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lzero.cpu.checks import ALL_DIRTY
from lzero.cpu.vmcs import CONTROL_FIELDS, FIELD_POSITION, Vmcs
from lzero.hypervisor.vmcs01 import PASSED_THROUGH_MSRS
from lzero.sdm.controls import PinBased, ProcBased, ProcBased2, VmEntry, VmExit
from lzero.sdm.vmcs_fields import Field

if TYPE_CHECKING:
    from lzero.hypervisor.nested.l1_memory import L1Memory
    from lzero.hypervisor.nested.state import NestedState
    from lzero.hypervisor.vcpu import Vcpu

__all__ = ["AREA_SLICES", "GUEST_STATE", "merge_controls", "merge_msr_bitmap", "merge_tsc", "secondary_controls"]

_P = FIELD_POSITION
_AREA = 64
AREA_SLICES = {
    kind: [slice((width * 4 + kind) * _AREA, (width * 4 + kind) * _AREA + _AREA) for width in range(4)]
    for kind in range(4)
}
"""The words of one kind of field (see :func:`lzero.cpu.layout.position`): one run for each width."""
GUEST_STATE = AREA_SLICES[2]

_PIN, _PROC = _P[Field.PIN_BASED_VM_EXECUTION_CONTROLS], _P[Field.PRIMARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS]
_PROC2 = _P[Field.SECONDARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS]
_EXIT, _ENTRY = _P[Field.VM_EXIT_CONTROLS], _P[Field.VM_ENTRY_CONTROLS]

# What L1 sets and L0 does itself, not the processor on L1's behalf.
_PIN_BY_L0 = int(PinBased.ACTIVATE_VMX_PREEMPTION_TIMER | PinBased.PROCESS_POSTED_INTERRUPTS)
_PROC_BY_L0 = int(
    ProcBased.USE_IO_BITMAPS
    | ProcBased.USE_MSR_BITMAPS
    | ProcBased.INTERRUPT_WINDOW_EXITING
    | ProcBased.NMI_WINDOW_EXITING
)
_PROC2_BY_L0 = int(ProcBased2.ENABLE_PML | ProcBased2.EPT_VIOLATION_VE)
# Controls of L0 that hold for L2 as well.
_PROC_FROM_L0 = int(
    ProcBased.HLT_EXITING
    | ProcBased.UNCONDITIONAL_IO_EXITING
    | ProcBased.USE_MSR_BITMAPS
    | ProcBased.USE_TSC_OFFSETTING
    | ProcBased.RDPMC_EXITING
    | ProcBased.MWAIT_EXITING
    | ProcBased.MONITOR_EXITING
    | ProcBased.ACTIVATE_SECONDARY_CONTROLS
)
_PROC2_FROM_L0 = int(
    ProcBased2.ENABLE_EPT
    | ProcBased2.ENABLE_VPID
    | ProcBased2.WBINVD_EXITING
    | ProcBased2.RDRAND_EXITING
    | ProcBased2.RDSEED_EXITING
)
_ENTRY_LOADS = int(VmEntry.LOAD_IA32_EFER | VmEntry.LOAD_IA32_PAT)
_EXIT_OWN = int(
    VmExit.SAVE_IA32_EFER | VmExit.SAVE_IA32_PAT | VmExit.SAVE_DEBUG_CONTROLS | VmExit.HOST_ADDRESS_SPACE_SIZE
)
_COPIED = [
    _P[field]
    for field in (
        Field.EXCEPTION_BITMAP,
        Field.PAGE_FAULT_ERROR_CODE_MASK,
        Field.PAGE_FAULT_ERROR_CODE_MATCH,
        Field.CR0_GUEST_HOST_MASK,
        Field.CR4_GUEST_HOST_MASK,
        Field.CR0_READ_SHADOW,
        Field.CR4_READ_SHADOW,
        Field.CR3_TARGET_COUNT,
        Field.CR3_TARGET_VALUE_0,
        Field.CR3_TARGET_VALUE_1,
        Field.CR3_TARGET_VALUE_2,
        Field.CR3_TARGET_VALUE_3,
        Field.TPR_THRESHOLD,
        Field.APIC_ACCESS_ADDRESS,
        Field.PLE_GAP,
        Field.PLE_WINDOW,
        Field.XSS_EXITING_BITMAP,
        Field.EOI_EXIT_BITMAP_0,
        Field.EOI_EXIT_BITMAP_1,
        Field.EOI_EXIT_BITMAP_2,
        Field.EOI_EXIT_BITMAP_3,
    )
]
_PAGES = [
    _P[field] for field in (Field.VIRTUAL_APIC_ADDRESS, Field.VMREAD_BITMAP_ADDRESS, Field.VMWRITE_BITMAP_ADDRESS)
]
"""Addresses of pages that the processor reads and writes: they must be L1's own."""
_CR8_EXITS = int(ProcBased.CR8_LOAD_EXITING | ProcBased.CR8_STORE_EXITING)
_USE_TPR_SHADOW = int(ProcBased.USE_TPR_SHADOW)
_VPID02 = 2
_USE_MSR_BITMAPS = int(ProcBased.USE_MSR_BITMAPS)
_ACTIVATE_SECONDARY = int(ProcBased.ACTIVATE_SECONDARY_CONTROLS)


def _passed_through() -> list[tuple[int, int]]:
    """The bytes of the MSR bitmaps (25.6.9) in which some MSR is passed through, and its bits there."""
    found: dict[int, int] = {}
    for index in PASSED_THROUGH_MSRS:
        offset = (0x400 if index >= 0xC000_0000 else 0) + (index & 0x1FFF) // 8
        for start in (0, 0x800):
            found[start + offset] = found.get(start + offset, 0) | 1 << (index & 7)
    return sorted(found.items())


_PASSED_THROUGH = _passed_through()


def secondary_controls(words: memoryview) -> int:
    """The secondary controls in force."""
    return words[_PROC2] if words[_PROC] & _ACTIVATE_SECONDARY else 0


def merge_controls(vcpu: Vcpu, state: NestedState) -> None:
    """Set the controls of vmcs02; it is then checked and configured anew at the next entry."""
    vmcs12, vmcs02, vmcs01 = state.vmcs12, state.vmcs02, vcpu.vmcs01
    assert vmcs12 is not None
    w12, w02, w01 = vmcs12.words, vmcs02.words, vmcs01.words
    for area in (AREA_SLICES[0], AREA_SLICES[3]):
        for part in area:
            w02[part] = w01[part]
    for position in _COPIED:
        w02[position] = w12[position]
    for position in _PAGES:
        w02[position] = state.memory.page_or_nowhere(w12[position])
    proc2 = secondary_controls(w12)
    w02[_PIN] = (w12[_PIN] & ~_PIN_BY_L0) | (w01[_PIN] & ~int(PinBased.ACTIVATE_VMX_PREEMPTION_TIMER))
    w02[_PROC] = (w12[_PROC] & ~_PROC_BY_L0) | (w01[_PROC] & _PROC_FROM_L0) | _windows(w12)
    if not w12[_PROC] & _USE_TPR_SHADOW:
        w02[_PROC] |= _CR8_EXITS  # without a TPR shadow, CR8 is the task priority of L1's APIC
    w02[_PROC2] = (proc2 & ~_PROC2_BY_L0) | (w01[_PROC2] & _PROC2_FROM_L0)
    if not proc2 & ProcBased2.UNRESTRICTED_GUEST:
        w02[_PROC2] &= ~int(ProcBased2.UNRESTRICTED_GUEST)
    w02[_EXIT] = w01[_EXIT] | _EXIT_OWN
    w02[_ENTRY] = (w12[_ENTRY] & ~_ENTRY_LOADS) | (w01[_ENTRY] & (_ENTRY_LOADS | int(VmEntry.LOAD_DEBUG_CONTROLS)))
    w02[_P[Field.VM_FUNCTION_CONTROLS]] = 0  # every VMFUNC exits: L0 switches its own tables
    w02[_P[Field.VPID]] = _VPID02
    w02[_P[Field.MSR_BITMAPS_ADDRESS]] = state.bitmap02
    merge_tsc(vcpu, state)
    _merge_ept(vcpu, state, proc2)
    vmcs02.changed = ALL_DIRTY
    vmcs12.changed &= ~CONTROL_FIELDS
    state.merged_for = vmcs12


def _windows(w12: memoryview) -> int:
    return int(w12[_PROC] & int(ProcBased.INTERRUPT_WINDOW_EXITING | ProcBased.NMI_WINDOW_EXITING))


def merge_tsc(vcpu: Vcpu, state: NestedState) -> None:
    """L2's TSC is L1's, scaled and offset once more (26.3): TSC2 = TSC1 * m / 2^48 + o."""
    assert state.vmcs12 is not None
    w12, w02 = state.vmcs12.words, state.vmcs02.words
    proc2 = secondary_controls(w12)
    offset01 = state.merged_offset01 = vcpu.vmcs01.words[_P[Field.TSC_OFFSET]]
    if not w12[_PROC] & ProcBased.USE_TSC_OFFSETTING:
        w02[_P[Field.TSC_OFFSET]] = offset01
        w02[_PROC2] &= ~int(ProcBased2.USE_TSC_SCALING)
        return
    multiplier = w12[_P[Field.TSC_MULTIPLIER]] if proc2 & ProcBased2.USE_TSC_SCALING else 1 << 48
    signed = offset01 - (1 << 64) if offset01 >> 63 else offset01
    w02[_P[Field.TSC_OFFSET]] = ((signed * multiplier >> 48) + w12[_P[Field.TSC_OFFSET]]) & (1 << 64) - 1
    w02[_P[Field.TSC_MULTIPLIER]] = multiplier


def _apic_page_outside_of_ram(vcpu: Vcpu, w12: memoryview, proc2: int) -> int:
    page = w12[_P[Field.APIC_ACCESS_ADDRESS]]
    virtualized = proc2 & ProcBased2.VIRTUALIZE_APIC_ACCESSES
    return page if virtualized and not vcpu.cpu.memory.backed(page, 4096) else 0


def _merge_ept(vcpu: Vcpu, state: NestedState, proc2: int) -> None:
    vmcs12 = state.vmcs12
    assert vmcs12 is not None
    pointer = vcpu.ept.pointer
    state.ept.apic_page = _apic_page_outside_of_ram(vcpu, vmcs12.words, proc2)
    if state.ept.apic_page:
        pointer = state.ept.identity().pointer
    if proc2 & ProcBased2.ENABLE_EPT:
        pointer = state.ept.tables(vmcs12.words[_P[Field.EPT_POINTER]]).pointer
    state.vmcs02.words[_P[Field.EPT_POINTER]] = pointer


def merge_msr_bitmap(state: NestedState, memory: L1Memory) -> None:
    """L2 touches an MSR without exit only if neither L0 nor L1 wants to know; L1 may change its bitmap at any time."""
    vmcs12: Vmcs | None = state.vmcs12
    assert vmcs12 is not None
    words = vmcs12.words
    uses = words[_PROC] & _USE_MSR_BITMAPS
    source = memory.read(words[_P[Field.MSR_BITMAPS_ADDRESS]], 4096) if uses else None
    wanted = {
        offset: 0xFF & ~bits | (source[offset] & bits if source is not None else bits)
        for offset, bits in _PASSED_THROUGH
    }
    state.set_bitmap02(wanted)
