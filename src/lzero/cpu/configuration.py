"""From VM-execution controls to what the engine must trap (SDM 3C 26.1, 28.1).

One row for each instruction that a control makes exit; the engine's other traps come from masks and bitmaps.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass

from lzero.cpu.engine import Trap
from lzero.cpu.vmcs import FIELD_POSITION
from lzero.sdm.controls import ProcBased, ProcBased2
from lzero.sdm.vmcs_fields import Field

__all__ = ["SLOT_NAMES", "Configuration", "configure"]

# Instructions that native code would not execute rightly, so that the processor does, whatever the controls say.
_ALWAYS = (Trap.CPUID, Trap.INVD, Trap.WBINVD, Trap.RSM, Trap.HLT, Trap.RDPMC, Trap.MONITOR, Trap.MWAIT)
_PROC_EXITS = {
    ProcBased.INVLPG_EXITING: (Trap.INVLPG,),
    ProcBased.RDTSC_EXITING: (Trap.RDTSC,),
    ProcBased.PAUSE_EXITING: (Trap.PAUSE,),
}
_PROC2_EXITS = {
    ProcBased2.PAUSE_LOOP_EXITING: (Trap.PAUSE,),
    ProcBased2.DESCRIPTOR_TABLE_EXITING: (
        Trap.IDTR_READ,
        Trap.GDTR_READ,
        Trap.LDTR_READ,
        Trap.TR_READ,
        Trap.IDTR_WRITE,
        Trap.GDTR_WRITE,
        Trap.LDTR_WRITE,
        Trap.TR_WRITE,
    ),
}
_INTERCEPT_BASE = 0x60
NO_BITMAP = (1 << 64) - 1

SLOT_NAMES = (
    "intercept exception_bitmap pf_mask pf_match cr_read cr_write dr_read dr_write msr_bitmap cr0_mask cr0_shadow "
    "cr4_mask cr4_shadow eptp mbec apic_access pml tsc_offset tsc_multiplier mtf want_interrupt_window "
    "want_nmi_window"
).split()
"""The engine's variables that follow from the controls, in the order of ``native/slots.def``, where they are one run.
"""


def _bits(traps: tuple[Trap, ...]) -> int:
    return sum(1 << (trap - _INTERCEPT_BASE) for trap in traps)


_ALWAYS_BITS = _bits(_ALWAYS)
_PROC_BITS = [(int(control), _bits(traps)) for control, traps in _PROC_EXITS.items()]
_PROC2_BITS = [(int(control), _bits(traps)) for control, traps in _PROC2_EXITS.items()]
_P = FIELD_POSITION


@dataclass(slots=True)
class Configuration:
    """The controls of one VMCS as plain integers, and the engine's variables that follow (see :data:`SLOT_NAMES`)."""

    pin: int
    proc: int
    proc2: int
    exit: int
    entry: int
    slots: memoryview


def _features(words: memoryview, proc: int, proc2: int) -> dict[str, int]:
    use_ept = bool(proc2 & ProcBased2.ENABLE_EPT)
    scaling = proc & ProcBased.USE_TSC_OFFSETTING and proc2 & ProcBased2.USE_TSC_SCALING
    return {
        "eptp": words[_P[Field.EPT_POINTER]] if use_ept else 0,
        "mbec": int(use_ept and bool(proc2 & ProcBased2.MODE_BASED_EXECUTE_CONTROL_FOR_EPT)),
        "pml": words[_P[Field.PML_ADDRESS]] if proc2 & ProcBased2.ENABLE_PML else 0,
        "apic_access": words[_P[Field.APIC_ACCESS_ADDRESS]] if proc2 & ProcBased2.VIRTUALIZE_APIC_ACCESSES else 0,
        "msr_bitmap": words[_P[Field.MSR_BITMAPS_ADDRESS]] if proc & ProcBased.USE_MSR_BITMAPS else NO_BITMAP,
        "tsc_offset": words[_P[Field.TSC_OFFSET]] if proc & ProcBased.USE_TSC_OFFSETTING else 0,
        "tsc_multiplier": words[_P[Field.TSC_MULTIPLIER]] if scaling else 1 << 48,
    }


def _control_registers(words: memoryview, proc: int) -> dict[str, int]:
    """Which moves to and from control and debug registers trap.

    Writes of CR0, CR4 and CR8 always do: the engine checks no reserved bit. Reads of CR0 do when the guest sees
    another value than the register holds, for SMSW, which native code does not mask.
    """
    mask, shadow = words[_P[Field.CR0_GUEST_HOST_MASK]], words[_P[Field.CR0_READ_SHADOW]]
    cr8_read = bool(proc & (ProcBased.CR8_STORE_EXITING | ProcBased.USE_TPR_SHADOW))
    cr3_write = bool(proc & ProcBased.CR3_LOAD_EXITING)
    debug = 0xFF if proc & ProcBased.MOV_DR_EXITING else 0
    return {
        "cr0_mask": mask,
        "cr0_shadow": shadow,
        "cr4_mask": words[_P[Field.CR4_GUEST_HOST_MASK]],
        "cr4_shadow": words[_P[Field.CR4_READ_SHADOW]],
        "cr_read": (1 if mask else 0) | (8 if proc & ProcBased.CR3_STORE_EXITING else 0) | (0x100 if cr8_read else 0),
        "cr_write": 1 | 1 << 4 | 1 << 8 | (8 if cr3_write else 0),
        "dr_read": debug,
        "dr_write": debug,
    }


def configure(words: memoryview) -> Configuration:
    """Derive the engine's variables from the controls in a VMCS."""
    proc = words[_P[Field.PRIMARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS]]
    secondary = bool(proc & ProcBased.ACTIVATE_SECONDARY_CONTROLS)
    proc2 = words[_P[Field.SECONDARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS]] if secondary else 0
    pin = words[_P[Field.PIN_BASED_VM_EXECUTION_CONTROLS]]
    intercept = _ALWAYS_BITS
    for control, bits in _PROC_BITS:
        if proc & control:
            intercept |= bits
    for control, bits in _PROC2_BITS:
        if proc2 & control:
            intercept |= bits
    if not proc2 & ProcBased2.ENABLE_RDTSCP:
        intercept |= _bits((Trap.RDTSC,))  # RDTSCP must be #UD; the handler tells it from RDTSC
    slots = {
        "intercept": intercept,
        "exception_bitmap": words[_P[Field.EXCEPTION_BITMAP]],
        "pf_mask": words[_P[Field.PAGE_FAULT_ERROR_CODE_MASK]],
        "pf_match": words[_P[Field.PAGE_FAULT_ERROR_CODE_MATCH]],
        "mtf": int(bool(proc & ProcBased.MONITOR_TRAP_FLAG)),
        "want_interrupt_window": int(bool(proc & ProcBased.INTERRUPT_WINDOW_EXITING)),
        "want_nmi_window": int(bool(proc & ProcBased.NMI_WINDOW_EXITING)),
        **_control_registers(words, proc),
        **_features(words, proc, proc2),
    }
    return Configuration(
        pin=pin,
        proc=proc,
        proc2=proc2,
        exit=words[_P[Field.VM_EXIT_CONTROLS]],
        entry=words[_P[Field.VM_ENTRY_CONTROLS]],
        slots=memoryview(array("Q", [slots[name] for name in SLOT_NAMES])),
    )
