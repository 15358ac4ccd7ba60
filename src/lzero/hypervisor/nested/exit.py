"""VM exit from L2 to L1 (SDM 3C chapter 28): the guest-state and exit-information areas, then L1's host state."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lzero.cpu.checks import MsrListKind, check_msr_entry
from lzero.cpu.vmcs import FIELD_POSITION
from lzero.hypervisor.msr_policy import MsrFault
from lzero.hypervisor.nested.entry import load_msr_list
from lzero.hypervisor.nested.merge import AREA_SLICES, GUEST_STATE
from lzero.sdm.controls import PinBased, VmEntry, VmExit
from lzero.sdm.formats import VmxAbort
from lzero.sdm.registers import Cr0, Cr4, Efer
from lzero.sdm.vmcs_fields import Field

if TYPE_CHECKING:
    from lzero.hypervisor.nested.state import NestedState
    from lzero.hypervisor.nested.vmcs12 import Vmcs12
    from lzero.hypervisor.vcpu import Vcpu

__all__ = ["load_host_state", "save_exit"]

_P = FIELD_POSITION
_EXIT, _ENTRY = _P[Field.VM_EXIT_CONTROLS], _P[Field.VM_ENTRY_CONTROLS]
_PIN, _TIMER = _P[Field.PIN_BASED_VM_EXECUTION_CONTROLS], _P[Field.VMX_PREEMPTION_TIMER_VALUE]
_EVENT, _LINK = _P[Field.VM_ENTRY_INTERRUPTION_INFORMATION], _P[Field.VMCS_LINK_POINTER]
_ERROR = _P[Field.VM_INSTRUCTION_ERROR]
_IA32E = int(VmEntry.IA32E_MODE_GUEST)
_VALID = 1 << 31
_BLOCKING, _BY_NMI = _P[Field.GUEST_INTERRUPTIBILITY_STATE], 8
_VECTORING, _NMI_TYPE = _P[Field.IDT_VECTORING_INFORMATION], 2
_LONG_MODE, _LOAD_EFER = int(VmExit.HOST_ADDRESS_SPACE_SIZE), int(VmExit.LOAD_IA32_EFER)
_LOAD_PAT, _SAVE_TIMER = int(VmExit.LOAD_IA32_PAT), int(VmExit.SAVE_VMX_PREEMPTION_TIMER_VALUE)
_TIMER_CONTROL, _LMA, _PAE = int(PinBased.ACTIVATE_VMX_PREEMPTION_TIMER), int(Efer.LMA), int(Cr4.PAE)
_MODE = int(Efer.LMA | Efer.LME)

# Guest-state fields that an exit saves only if a control says so; else vmcs12 keeps what it had.
_KEPT = (
    (int(VmExit.SAVE_IA32_EFER), (_P[Field.GUEST_IA32_EFER],)),
    (int(VmExit.SAVE_IA32_PAT), (_P[Field.GUEST_IA32_PAT],)),
    (int(VmExit.SAVE_DEBUG_CONTROLS), (_P[Field.GUEST_DR7], _P[Field.GUEST_IA32_DEBUGCTL])),
)
# Guest-state fields that belong to L1's VMCS alone.
_L1_OWN = (_LINK, _TIMER)


def save_exit(vcpu: Vcpu, state: NestedState, exit_reason: int) -> None:
    """Copy L2's state and what is known about the exit from vmcs02 into vmcs12."""
    vmcs12 = state.vmcs12
    assert vmcs12 is not None
    w12, w02 = vmcs12.words, state.vmcs02.words
    controls = w12[_EXIT]
    kept = [(position, w12[position]) for position in _L1_OWN]
    for control, positions in _KEPT:
        if not controls & control:
            kept += [(position, w12[position]) for position in positions]
    for part in GUEST_STATE:
        w12[part] = w02[part]
    for position, value in kept:
        w12[position] = value
    error = w12[_ERROR]
    for part in AREA_SLICES[1]:
        w12[part] = w02[part]
    w12[_ERROR] = error
    w12[_P[Field.EXIT_REASON]] = exit_reason
    w12[_ENTRY] = (w12[_ENTRY] & ~_IA32E) | (w02[_ENTRY] & _IA32E)
    w12[_EVENT] &= ~_VALID
    vectoring = w02[_VECTORING]
    if vectoring & _VALID and vectoring >> 8 & 7 == _NMI_TYPE:
        w12[_BLOCKING] |= _BY_NMI  # whatever L0 made of it to deliver the NMI again
    _save_timer(vcpu, state, vmcs12)
    state.put_shadow12_back()
    _store_msrs(vcpu, vmcs12)


def _save_timer(vcpu: Vcpu, state: NestedState, vmcs12: Vmcs12) -> None:
    words = vmcs12.words
    if not words[_PIN] & _TIMER_CONTROL or state.preemption_deadline is None:
        return
    if words[_EXIT] & _SAVE_TIMER:
        clock = vcpu.cpu.clock
        left = max(0, state.preemption_deadline - clock.now_ns()) * clock.tsc_hz // 1_000_000_000
        words[_TIMER] = min(0xFFFF_FFFF, left >> state.capabilities.timer_rate)


def _store_msrs(vcpu: Vcpu, vmcs12: Vmcs12) -> None:
    memory, words = vcpu.nested.state.memory, vmcs12.words
    address, count = words[_P[Field.VM_EXIT_MSR_STORE_ADDRESS]], words[_P[Field.VM_EXIT_MSR_STORE_COUNT]]
    limit = vcpu.nested.state.capabilities.max_msr_list
    for number in range(count):
        entry = memory.read(address + 16 * number, 8)
        index, reserved = int.from_bytes(entry[:4], "little"), int.from_bytes(entry[4:], "little")
        bad = number >= limit or check_msr_entry(MsrListKind.EXIT_STORE, index, reserved) is not None
        try:
            value = 0 if bad else vcpu.msrs.read(index)
        except MsrFault:
            bad = True
        if bad:
            vcpu.nested.abort(VmxAbort.SAVING_GUEST_MSRS)
            return
        memory.write_u64(address + 16 * number + 8, value)


# --- L1's host state ------------------------------------------------------------------------------------------------

_CR0, _CR4 = _P[Field.GUEST_CR0], _P[Field.GUEST_CR4]
_CR0_SHADOW, _CR4_SHADOW = Field.CR0_READ_SHADOW, Field.CR4_READ_SHADOW
_SEGMENTS = "ES CS SS DS FS GS".split()
_DATA_RIGHTS, _UNUSABLE = 0xC093, 1 << 16
_CODE64, _CODE32 = 0xA09B, 0xC09B
_TASK = 0x8B


def load_host_state(vcpu: Vcpu, state: NestedState, *, nmi_blocked: bool) -> None:
    """Load L1 from the host-state area of vmcs12 into vmcs01's guest-state area (28.5); an NMI leaves NMIs blocked."""
    vmcs12 = state.vmcs12
    assert vmcs12 is not None
    w12, w01 = vmcs12.words, vcpu.vmcs01.words
    controls = w12[_EXIT]
    long_mode = bool(controls & _LONG_MODE)
    if state.host_image is None:
        _load_segments(w12, w01, long_mode=long_mode)
        _load_registers(w12, w01, long_mode=long_mode)
        state.host_image = [memoryview(bytes(w01[part])).cast("Q") for part in GUEST_STATE]
        state.host_image_for = vmcs12
    else:
        for part, words in zip(GUEST_STATE, state.host_image, strict=True):
            w01[part] = words
        w01[_EVENT] = 0
    w01[_BLOCKING] = _BY_NMI if nmi_blocked else 0
    _set_shadows(vcpu)
    _load_efer_and_pat(w12, w01, state, controls, long_mode=long_mode)
    vcpu.cpu.vmptrld(vcpu.vmcs01)
    vcpu.level = 1
    bad = load_msr_list(
        vcpu,
        MsrListKind.EXIT_LOAD,
        w12[_P[Field.VM_EXIT_MSR_LOAD_ADDRESS]],
        w12[_P[Field.VM_EXIT_MSR_LOAD_COUNT]],
    )
    if bad:
        vcpu.nested.abort(VmxAbort.LOADING_HOST_MSRS)
    elif not long_mode and w12[_P[Field.HOST_CR4]] & _PAE:
        _load_host_pdptes(state, w01)


def _load_segments(w12: memoryview, w01: memoryview, *, long_mode: bool) -> None:
    for number, name in enumerate(_SEGMENTS):
        selector = w12[_P[Field[f"HOST_{name}_SELECTOR"]]]
        usable = selector or name == "CS" or (name in ("FS", "GS", "SS") and long_mode)
        w01[_P[Field.GUEST_ES_SELECTOR] + number] = selector
        w01[_P[Field.GUEST_ES_BASE] + number] = 0
        w01[_P[Field.GUEST_ES_LIMIT] + number] = 0xFFFF_FFFF
        w01[_P[Field.GUEST_ES_ACCESS_RIGHTS] + number] = _DATA_RIGHTS if usable else _UNUSABLE
    w01[_P[Field.GUEST_CS_ACCESS_RIGHTS]] = _CODE64 if long_mode else _CODE32
    w01[_P[Field.GUEST_FS_BASE]] = w12[_P[Field.HOST_FS_BASE]]
    w01[_P[Field.GUEST_GS_BASE]] = w12[_P[Field.HOST_GS_BASE]]
    w01[_P[Field.GUEST_TR_SELECTOR]] = w12[_P[Field.HOST_TR_SELECTOR]]
    w01[_P[Field.GUEST_TR_BASE]] = w12[_P[Field.HOST_TR_BASE]]
    w01[_P[Field.GUEST_TR_LIMIT]] = 0x67
    w01[_P[Field.GUEST_TR_ACCESS_RIGHTS]] = _TASK
    w01[_P[Field.GUEST_LDTR_SELECTOR]] = w01[_P[Field.GUEST_LDTR_BASE]] = w01[_P[Field.GUEST_LDTR_LIMIT]] = 0
    w01[_P[Field.GUEST_LDTR_ACCESS_RIGHTS]] = _UNUSABLE
    for table in ("GDTR", "IDTR"):
        w01[_P[Field[f"GUEST_{table}_BASE"]]] = w12[_P[Field[f"HOST_{table}_BASE"]]]
        w01[_P[Field[f"GUEST_{table}_LIMIT"]]] = 0xFFFF


def _load_registers(w12: memoryview, w01: memoryview, *, long_mode: bool) -> None:
    cr0, cr4 = w12[_P[Field.HOST_CR0]], w12[_P[Field.HOST_CR4]]
    cr4 = cr4 | int(Cr4.PAE) if long_mode else cr4 & ~int(Cr4.PCIDE)
    for field, value in (
        (Field.GUEST_CR0, cr0 | int(Cr0.ET)),
        (Field.GUEST_CR3, w12[_P[Field.HOST_CR3]]),
        (Field.GUEST_CR4, cr4),
        (Field.GUEST_RSP, w12[_P[Field.HOST_RSP]]),
        (Field.GUEST_RIP, w12[_P[Field.HOST_RIP]]),
        (Field.GUEST_RFLAGS, 2),
        (Field.GUEST_DR7, 0x400),
        (Field.GUEST_IA32_DEBUGCTL, 0),
        (Field.GUEST_IA32_SYSENTER_CS, w12[_P[Field.HOST_IA32_SYSENTER_CS]]),
        (Field.GUEST_IA32_SYSENTER_ESP, w12[_P[Field.HOST_IA32_SYSENTER_ESP]]),
        (Field.GUEST_IA32_SYSENTER_EIP, w12[_P[Field.HOST_IA32_SYSENTER_EIP]]),
        (Field.GUEST_INTERRUPTIBILITY_STATE, 0),
        (Field.GUEST_ACTIVITY_STATE, 0),
        (Field.GUEST_PENDING_DEBUG_EXCEPTIONS, 0),
        (Field.VM_ENTRY_INTERRUPTION_INFORMATION, 0),
    ):
        w01[_P[field]] = value


def _set_shadows(vcpu: Vcpu) -> None:
    """L1 reads back the CR0 and CR4 that its host-state area asked for."""
    vmcs01, w01 = vcpu.vmcs01, vcpu.vmcs01.words
    for shadow, register in ((_CR0_SHADOW, _CR0), (_CR4_SHADOW, _CR4)):
        if w01[_P[shadow]] != w01[register]:
            vmcs01.write(shadow, w01[register])


def _load_efer_and_pat(w12: memoryview, w01: memoryview, state: NestedState, controls: int, *, long_mode: bool) -> None:
    efer = state.vmcs02.words[_P[Field.GUEST_IA32_EFER]]
    if controls & _LOAD_EFER:
        efer = w12[_P[Field.HOST_IA32_EFER]]
    else:
        efer = (efer & ~_MODE) | (_MODE if long_mode else 0)
    w01[_P[Field.GUEST_IA32_EFER]] = efer
    w01[_ENTRY] = (w01[_ENTRY] & ~_IA32E) | (_IA32E if efer & _LMA else 0)
    if controls & _LOAD_PAT:
        w01[_P[Field.GUEST_IA32_PAT]] = w12[_P[Field.HOST_IA32_PAT]]
    else:
        w01[_P[Field.GUEST_IA32_PAT]] = state.vmcs02.words[_P[Field.GUEST_IA32_PAT]]


def _load_host_pdptes(state: NestedState, w01: memoryview) -> None:
    data = state.memory.read(w01[_P[Field.GUEST_CR3]] & 0xFFFF_FFE0, 32)
    for number in range(4):
        w01[_P[Field.GUEST_PDPTE0] + number] = int.from_bytes(data[8 * number : 8 * number + 8], "little")
