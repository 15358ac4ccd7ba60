"""What the processor offers to L0, and what L0 sets up for its guest: one place for every VMX feature that works."""

from __future__ import annotations

from dataclasses import replace

from lzero.sdm.capabilities import ControlRange, EptVpidCap, VmxCapabilities, VmxMisc
from lzero.sdm.controls import PinBased, ProcBased, ProcBased2, VmEntry, VmExit
from lzero.sdm.registers import Cr4

__all__ = ["NESTED", "PHYSICAL_ADDRESS_BITS", "PROCESSOR"]

PHYSICAL_ADDRESS_BITS = 39
"""MAXPHYADDR: the engine takes page-table entries with higher address bits for reserved."""

CR4_SUPPORTED = (
    Cr4.VME | Cr4.PVI | Cr4.TSD | Cr4.DE | Cr4.PSE | Cr4.PAE | Cr4.MCE | Cr4.PGE | Cr4.PCE | Cr4.OSFXSR | Cr4.OSXMMEXCPT
    | Cr4.VMXE | Cr4.FSGSBASE | Cr4.SMEP | Cr4.SMAP
)  # fmt: skip
"""The CR4 bits whose feature CPUID reports; any other is reserved."""

_OFFERED = VmxCapabilities.offering(
    pin=PinBased.EXTERNAL_INTERRUPT_EXITING
    | PinBased.NMI_EXITING
    | PinBased.VIRTUAL_NMIS
    | PinBased.ACTIVATE_VMX_PREEMPTION_TIMER,
    proc=ProcBased.INTERRUPT_WINDOW_EXITING
    | ProcBased.USE_TSC_OFFSETTING
    | ProcBased.HLT_EXITING
    | ProcBased.INVLPG_EXITING
    | ProcBased.MWAIT_EXITING
    | ProcBased.RDPMC_EXITING
    | ProcBased.RDTSC_EXITING
    | ProcBased.CR3_LOAD_EXITING
    | ProcBased.CR3_STORE_EXITING
    | ProcBased.CR8_LOAD_EXITING
    | ProcBased.CR8_STORE_EXITING
    | ProcBased.USE_TPR_SHADOW
    | ProcBased.NMI_WINDOW_EXITING
    | ProcBased.MOV_DR_EXITING
    | ProcBased.UNCONDITIONAL_IO_EXITING
    | ProcBased.USE_IO_BITMAPS
    | ProcBased.MONITOR_TRAP_FLAG
    | ProcBased.USE_MSR_BITMAPS
    | ProcBased.MONITOR_EXITING
    | ProcBased.PAUSE_EXITING
    | ProcBased.ACTIVATE_SECONDARY_CONTROLS,
    proc2=ProcBased2.VIRTUALIZE_APIC_ACCESSES
    | ProcBased2.ENABLE_EPT
    | ProcBased2.DESCRIPTOR_TABLE_EXITING
    | ProcBased2.ENABLE_RDTSCP
    | ProcBased2.ENABLE_VPID
    | ProcBased2.WBINVD_EXITING
    | ProcBased2.UNRESTRICTED_GUEST
    | ProcBased2.PAUSE_LOOP_EXITING
    | ProcBased2.RDRAND_EXITING
    | ProcBased2.ENABLE_INVPCID
    | ProcBased2.ENABLE_VM_FUNCTIONS
    | ProcBased2.VMCS_SHADOWING
    | ProcBased2.RDSEED_EXITING
    | ProcBased2.ENABLE_PML
    | ProcBased2.MODE_BASED_EXECUTE_CONTROL_FOR_EPT
    | ProcBased2.USE_TSC_SCALING,
    exit=VmExit.SAVE_DEBUG_CONTROLS
    | VmExit.HOST_ADDRESS_SPACE_SIZE
    | VmExit.ACKNOWLEDGE_INTERRUPT_ON_EXIT
    | VmExit.SAVE_IA32_PAT
    | VmExit.LOAD_IA32_PAT
    | VmExit.SAVE_IA32_EFER
    | VmExit.LOAD_IA32_EFER
    | VmExit.SAVE_VMX_PREEMPTION_TIMER_VALUE,
    entry=VmEntry.LOAD_DEBUG_CONTROLS | VmEntry.IA32E_MODE_GUEST | VmEntry.LOAD_IA32_PAT | VmEntry.LOAD_IA32_EFER,
    ept_vpid=int(
        EptVpidCap.EXECUTE_ONLY
        | EptVpidCap.PAGE_WALK_4
        | EptVpidCap.MEMORY_TYPE_UC
        | EptVpidCap.MEMORY_TYPE_WB
        | EptVpidCap.PAGE_2M
        | EptVpidCap.PAGE_1G
        | EptVpidCap.INVEPT
        | EptVpidCap.ACCESSED_DIRTY
        | EptVpidCap.INVEPT_SINGLE_CONTEXT
        | EptVpidCap.INVEPT_ALL_CONTEXT
        | EptVpidCap.INVVPID
        | EptVpidCap.INVVPID_INDIVIDUAL_ADDRESS
        | EptVpidCap.INVVPID_SINGLE_CONTEXT
        | EptVpidCap.INVVPID_ALL_CONTEXT
        | EptVpidCap.INVVPID_SINGLE_CONTEXT_RETAINING_GLOBALS
    ),
    vmfunc=1,
    misc=int(
        VmxMisc.STORES_EFER_LMA | VmxMisc.ACTIVITY_HLT | VmxMisc.VMWRITE_TO_ANY_FIELD | VmxMisc.ZERO_LENGTH_INJECTION
    ),
    timer_rate=5,
    cr4_fixed1=int(CR4_SUPPORTED),
    physical_address_width=PHYSICAL_ADDRESS_BITS,
)

_BY_L0 = ProcBased2.EPT_VIOLATION_VE
"""What L0 emulates for L1 without help of the processor."""

NESTED = replace(
    _OFFERED,
    proc2=ControlRange(_OFFERED.proc2.allowed0, _OFFERED.proc2.allowed1 | int(_BY_L0)),
)
"""The VMX that L0 offers to L1: drives the capability MSRs and the checks of L1's VMCS."""

# The VMREADs and VMWRITEs that the processor serves on a shadow VMCS must know every field that L1 is offered.
PROCESSOR = replace(_OFFERED, further_fields=NESTED.existing_fields - _OFFERED.existing_fields)
"""The processor's VMX, as L0 finds it."""
