"""For each VM-entry check: a state that breaks it alone, and the nearest one that does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from checkstate import (
    BEYOND,
    EVERYTHING,
    FLAT_CODE_64,
    FLAT_DATA,
    NON_CANONICAL,
    REVISION,
    UNUSABLE,
    Edit,
    State,
    flip,
    long_mode,
    off,
    offer,
    on,
    pae_paging,
    processor,
    protected_host,
    protected_mode,
    put,
    real_mode,
    store,
    virtual_8086,
)

from lzero.sdm.controls import (
    ControlFlag,
    PinBased,
    ProcBased,
    ProcBased2,
    ProcBased3,
    VmEntry,
    VmExit,
    VmExit2,
)
from lzero.sdm.registers import Cr0, Cr4, Efer

BIT63 = 1 << 63
UPPER = 0xFFFF_8000_0000_0000


@dataclass(frozen=True)
class Case:
    """``start`` with ``given`` and ``broken`` fails ``id`` first; with ``given`` and ``sound`` it passes."""

    id: str
    broken: Edit
    sound: Edit
    given: tuple[Edit, ...] = ()
    start: Callable[[], State] = long_mode

    def state(self, last: Edit) -> State:
        """The state with one of the two edits."""
        state = self.start()
        for edit in (*self.given, last):
            edit(state)
        return state


def nothing(_: State) -> None:
    """No edit."""


def _address(id_: str, flag: ControlFlag, field: str, step: int = 0x1000, *given: Edit) -> list[Case]:
    conditions = (on(flag), *given)
    return [
        Case(id_, put(**{field: step >> 1}), put(**{field: step}), conditions),
        Case(id_, put(**{field: BEYOND}), put(**{field: BEYOND - step}), conditions),
    ]


def _needs(id_: str, flag: ControlFlag, needed: ControlFlag, *given: Edit) -> Case:
    return Case(id_, off(needed), on(needed), (on(flag), on(needed), *given))


def _area(id_: str, name: str) -> list[Case]:
    address, count = f"{name}_ADDRESS", f"{name}_COUNT"
    return [
        Case(f"{id_}.address", put(**{address: 8}), put(**{address: 16}), (put(**{count: 1}),)),
        Case(f"{id_}.address", put(**{address: BEYOND}), put(**{address: BEYOND - 16}), (put(**{count: 1}),)),
        Case(f"{id_}.address", put(**{count: 1}), put(**{count: 0}), (put(**{address: 1}),)),
        Case(f"{id_}.end", put(**{count: 3}), put(**{count: 2}), (put(**{address: BEYOND - 32}),)),
    ]


EPT = (on(ProcBased2.ENABLE_EPT), put(EPT_POINTER=0x101E))
SHADOW_TPR = (on(ProcBased.USE_TPR_SHADOW), put(VIRTUAL_APIC_ADDRESS=0x5000), store(0x5080, 0x40, 1))
VIRTUAL_INTERRUPTS = (
    *SHADOW_TPR,
    on(ProcBased2.VIRTUAL_INTERRUPT_DELIVERY, PinBased.EXTERNAL_INTERRUPT_EXITING),
)
POSTED = (
    *VIRTUAL_INTERRUPTS,
    on(PinBased.PROCESS_POSTED_INTERRUPTS, VmExit.ACKNOWLEDGE_INTERRUPT_ON_EXIT),
    put(POSTED_INTERRUPT_DESCRIPTOR_ADDRESS=0x40),
)

EXECUTION = [
    Case("control.pin.reserved", flip(PIN_BASED_VM_EXECUTION_CONTROLS=1 << 1), nothing),
    Case("control.pin.reserved", flip(PIN_BASED_VM_EXECUTION_CONTROLS=1 << 8), nothing),
    Case("control.proc.reserved", flip(PRIMARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS=1 << 26), nothing),
    Case("control.proc.reserved", flip(PRIMARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS=1), nothing),
    Case(
        "control.proc2.reserved",
        on(ProcBased.ACTIVATE_SECONDARY_CONTROLS),
        nothing,
        (put(SECONDARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS=1 << 29),),
    ),
    Case(
        "control.proc3.reserved",
        on(ProcBased.ACTIVATE_TERTIARY_CONTROLS),
        nothing,
        (put(TERTIARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS=1 << 63),),
    ),
    Case("control.cr3_target_count", put(CR3_TARGET_COUNT=5), put(CR3_TARGET_COUNT=4)),
    *_address("control.io_bitmap_a.address", ProcBased.USE_IO_BITMAPS, "IO_BITMAP_A_ADDRESS"),
    *_address("control.io_bitmap_b.address", ProcBased.USE_IO_BITMAPS, "IO_BITMAP_B_ADDRESS"),
    *_address("control.msr_bitmap.address", ProcBased.USE_MSR_BITMAPS, "MSR_BITMAPS_ADDRESS"),
    *_address("control.virtual_apic.address", ProcBased.USE_TPR_SHADOW, "VIRTUAL_APIC_ADDRESS"),
    Case("control.tpr_threshold.reserved", put(TPR_THRESHOLD=0x10), put(TPR_THRESHOLD=0x4), SHADOW_TPR),
    Case("control.tpr_threshold.reserved", put(TPR_THRESHOLD=0x10), on(), SHADOW_TPR),
    Case("control.tpr_threshold.vtpr", put(TPR_THRESHOLD=5), put(TPR_THRESHOLD=4), SHADOW_TPR),
    Case(
        "control.tpr_threshold.vtpr",
        nothing,
        on(ProcBased2.VIRTUALIZE_APIC_ACCESSES),
        (*SHADOW_TPR, put(TPR_THRESHOLD=5, APIC_ACCESS_ADDRESS=0x6000)),
    ),
    _needs("control.x2apic.tpr_shadow", ProcBased2.VIRTUALIZE_X2APIC_MODE, ProcBased.USE_TPR_SHADOW, *SHADOW_TPR),
    _needs(
        "control.apic_register.tpr_shadow",
        ProcBased2.APIC_REGISTER_VIRTUALIZATION,
        ProcBased.USE_TPR_SHADOW,
        *SHADOW_TPR,
    ),
    _needs(
        "control.virtual_interrupts.tpr_shadow",
        ProcBased2.VIRTUAL_INTERRUPT_DELIVERY,
        ProcBased.USE_TPR_SHADOW,
        *VIRTUAL_INTERRUPTS,
    ),
    _needs("control.virtual_nmis.nmi_exiting", PinBased.VIRTUAL_NMIS, PinBased.NMI_EXITING),
    _needs(
        "control.nmi_window.virtual_nmis",
        ProcBased.NMI_WINDOW_EXITING,
        PinBased.VIRTUAL_NMIS,
        on(PinBased.NMI_EXITING),
    ),
    *_address("control.apic_access.address", ProcBased2.VIRTUALIZE_APIC_ACCESSES, "APIC_ACCESS_ADDRESS"),
    Case(
        "control.x2apic.apic_accesses",
        on(ProcBased2.VIRTUALIZE_APIC_ACCESSES),
        nothing,
        (*SHADOW_TPR, on(ProcBased2.VIRTUALIZE_X2APIC_MODE)),
    ),
    _needs(
        "control.virtual_interrupts.external_interrupt_exiting",
        ProcBased2.VIRTUAL_INTERRUPT_DELIVERY,
        PinBased.EXTERNAL_INTERRUPT_EXITING,
        *VIRTUAL_INTERRUPTS,
    ),
    Case("control.posted_interrupts.virtual_interrupts", off(ProcBased2.VIRTUAL_INTERRUPT_DELIVERY), nothing, POSTED),
    Case("control.posted_interrupts.acknowledge", off(VmExit.ACKNOWLEDGE_INTERRUPT_ON_EXIT), nothing, POSTED),
    Case(
        "control.posted_interrupts.vector",
        put(POSTED_INTERRUPT_NOTIFICATION_VECTOR=0x100),
        put(POSTED_INTERRUPT_NOTIFICATION_VECTOR=0xFF),
        POSTED,
    ),
    *_address(
        "control.posted_interrupts.address",
        PinBased.PROCESS_POSTED_INTERRUPTS,
        "POSTED_INTERRUPT_DESCRIPTOR_ADDRESS",
        0x40,
        *POSTED,
    ),
    Case("control.vpid.nonzero", put(VPID=0), put(VPID=1), (on(ProcBased2.ENABLE_VPID),)),
    Case("control.eptp.memory_type", flip(EPT_POINTER=1), nothing, EPT),
    Case("control.eptp.memory_type", flip(EPT_POINTER=6), nothing, (*EPT, offer(ept_vpid=0x4040))),
    Case("control.eptp.walk_length", flip(EPT_POINTER=1 << 3), nothing, EPT),
    Case("control.eptp.walk_length", put(EPT_POINTER=0x1026), nothing, (*EPT, offer(ept_vpid=0x4040))),
    Case("control.eptp.accessed_dirty", flip(EPT_POINTER=1 << 6), nothing, (*EPT, offer(ept_vpid=0x4040))),
    Case("control.eptp.shadow_stack", flip(EPT_POINTER=1 << 7), nothing, (*EPT, offer(ept_vpid=0x4040))),
    Case("control.eptp.reserved", flip(EPT_POINTER=1 << 8), flip(EPT_POINTER=1 << 12), EPT),
    Case("control.eptp.reserved", flip(EPT_POINTER=BEYOND), flip(EPT_POINTER=BEYOND >> 1), EPT),
    Case("control.pml.ept", off(ProcBased2.ENABLE_EPT), nothing, (*EPT, on(ProcBased2.ENABLE_PML))),
    *_address("control.pml.address", ProcBased2.ENABLE_PML, "PML_ADDRESS", 0x1000, *EPT),
    Case(
        "control.unrestricted_guest.ept",
        off(ProcBased2.ENABLE_EPT),
        nothing,
        (*EPT, on(ProcBased2.UNRESTRICTED_GUEST)),
    ),
    Case(
        "control.mode_based_execute.ept",
        off(ProcBased2.ENABLE_EPT),
        nothing,
        (*EPT, on(ProcBased2.MODE_BASED_EXECUTE_CONTROL_FOR_EPT)),
    ),
    Case(
        "control.sub_page_write.ept",
        off(ProcBased2.ENABLE_EPT),
        nothing,
        (*EPT, on(ProcBased2.SUB_PAGE_WRITE_PERMISSIONS_FOR_EPT)),
    ),
    *_address(
        "control.sub_page_write.address",
        ProcBased2.SUB_PAGE_WRITE_PERMISSIONS_FOR_EPT,
        "SUB_PAGE_PERMISSION_TABLE_POINTER",
        0x1000,
        *EPT,
    ),
    Case(
        "control.vm_functions.reserved",
        put(VM_FUNCTION_CONTROLS=2),
        put(VM_FUNCTION_CONTROLS=1),
        (*EPT, on(ProcBased2.ENABLE_VM_FUNCTIONS)),
    ),
    Case(
        "control.eptp_switching.ept",
        off(ProcBased2.ENABLE_EPT),
        nothing,
        (*EPT, on(ProcBased2.ENABLE_VM_FUNCTIONS), put(VM_FUNCTION_CONTROLS=1)),
    ),
    *_address(
        "control.eptp_switching.address",
        ProcBased2.ENABLE_VM_FUNCTIONS,
        "EPTP_LIST_ADDRESS",
        0x1000,
        *EPT,
        put(VM_FUNCTION_CONTROLS=1),
    ),
    *_address("control.vmread_bitmap.address", ProcBased2.VMCS_SHADOWING, "VMREAD_BITMAP_ADDRESS"),
    *_address("control.vmwrite_bitmap.address", ProcBased2.VMCS_SHADOWING, "VMWRITE_BITMAP_ADDRESS"),
    *_address(
        "control.ve_information.address",
        ProcBased2.EPT_VIOLATION_VE,
        "VIRTUALIZATION_EXCEPTION_INFORMATION_ADDRESS",
    ),
    *_address("control.low_pasid.address", ProcBased2.PASID_TRANSLATION, "LOW_PASID_DIRECTORY_ADDRESS"),
    *_address("control.high_pasid.address", ProcBased2.PASID_TRANSLATION, "HIGH_PASID_DIRECTORY_ADDRESS"),
    Case(
        "control.tsc_multiplier.nonzero",
        put(TSC_MULTIPLIER=0),
        put(TSC_MULTIPLIER=1),
        (on(ProcBased2.USE_TSC_SCALING),),
    ),
    Case("control.hlat.ept", off(ProcBased2.ENABLE_EPT), nothing, (*EPT, on(ProcBased3.ENABLE_HLAT))),
    Case("control.hlat.pointer", put(HLAT_POINTER=4), put(HLAT_POINTER=8), (*EPT, on(ProcBased3.ENABLE_HLAT))),
    Case("control.hlat.pointer", put(HLAT_POINTER=BEYOND), nothing, (*EPT, on(ProcBased3.ENABLE_HLAT))),
    Case(
        "control.paging_write.ept", off(ProcBased2.ENABLE_EPT), nothing, (*EPT, on(ProcBased3.EPT_PAGING_WRITE_CONTROL))
    ),
    Case(
        "control.guest_paging_verification.ept",
        off(ProcBased2.ENABLE_EPT),
        nothing,
        (*EPT, on(ProcBased3.GUEST_PAGING_VERIFICATION)),
    ),
    Case(
        "control.ipi_virtualization.tpr_shadow",
        off(ProcBased.USE_TPR_SHADOW),
        nothing,
        (*SHADOW_TPR, on(ProcBased3.IPI_VIRTUALIZATION)),
    ),
    *_address(
        "control.ipi_virtualization.address", ProcBased3.IPI_VIRTUALIZATION, "PID_POINTER_TABLE_ADDRESS", 8, *SHADOW_TPR
    ),
    Case(
        "control.ipi_virtualization.last",
        put(LAST_PID_POINTER_INDEX=2),
        put(LAST_PID_POINTER_INDEX=1),
        (*SHADOW_TPR, on(ProcBased3.IPI_VIRTUALIZATION), put(PID_POINTER_TABLE_ADDRESS=BEYOND - 16)),
    ),
]
APIC_TIMER = (*VIRTUAL_INTERRUPTS, on(ProcBased3.APIC_TIMER_VIRTUALIZATION))
EXECUTION += [
    Case(
        "control.pebs_guest_physical.ept",
        off(ProcBased2.ENABLE_EPT),
        nothing,
        (*EPT, on(ProcBased3.PEBS_USES_GUEST_PHYSICAL_ADDRESSES)),
    ),
    Case("control.apic_timer.virtual_interrupts", off(ProcBased2.VIRTUAL_INTERRUPT_DELIVERY), nothing, APIC_TIMER),
    Case("control.apic_timer.rdtsc_exiting", on(ProcBased.RDTSC_EXITING), nothing, APIC_TIMER),
    Case("control.apic_timer.vector", put(VIRTUAL_TIMER_VECTOR=0x100), put(VIRTUAL_TIMER_VECTOR=0xFF), APIC_TIMER),
]
PT = (
    *EPT,
    on(
        ProcBased2.INTEL_PT_USES_GUEST_PHYSICAL_ADDRESSES,
        VmEntry.LOAD_IA32_RTIT_CTL,
        VmExit.CLEAR_IA32_RTIT_CTL,
    ),
)
EXECUTION += [
    Case("control.pt_guest_physical.ept", off(ProcBased2.ENABLE_EPT), nothing, PT),
    Case("control.pt_guest_physical.load_rtit_ctl", off(VmEntry.LOAD_IA32_RTIT_CTL), nothing, PT),
    Case("control.pt_guest_physical.clear_rtit_ctl", off(VmExit.CLEAR_IA32_RTIT_CTL), nothing, PT),
]

VALID = 1 << 31
HARDWARE, NMI, EXTERNAL, SOFTWARE_INTERRUPT, SOFTWARE_EXCEPTION, OTHER = (kind << 8 for kind in (3, 2, 0, 4, 6, 7))
ERROR_CODE = 1 << 11
NESTED = 1 << 13


def event(info: int) -> Edit:
    """Inject this event."""
    return put(VM_ENTRY_INTERRUPTION_INFORMATION=VALID | info)


NO_MTF = offer(proc=type(EVERYTHING.proc)(EVERYTHING.proc.allowed0, EVERYTHING.proc.allowed1 & ~(1 << 27)))
NO_FRED = offer(cr4_fixed1=EVERYTHING.cr4_fixed1 & ~int(Cr4.FRED))

EXIT_ENTRY = [
    Case("control.exit.reserved", flip(VM_EXIT_CONTROLS=1 << 4), nothing),
    Case("control.exit.reserved", flip(VM_EXIT_CONTROLS=1), nothing),
    Case("control.exit2.reserved", flip(SECONDARY_VM_EXIT_CONTROLS=1 << 40), nothing, (on(VmExit2.LOAD_FRED),)),
    _needs(
        "control.exit.preemption_timer",
        VmExit.SAVE_VMX_PREEMPTION_TIMER_VALUE,
        PinBased.ACTIVATE_VMX_PREEMPTION_TIMER,
    ),
    *_area("control.exit.msr_store", "VM_EXIT_MSR_STORE"),
    *_area("control.exit.msr_load", "VM_EXIT_MSR_LOAD"),
    Case("control.entry.reserved", flip(VM_ENTRY_CONTROLS=1), nothing),
    Case("control.entry.reserved", flip(VM_ENTRY_CONTROLS=1 << 31), nothing),
    Case("control.entry.event.type", event(1 << 8), put(VM_ENTRY_INTERRUPTION_INFORMATION=1 << 8)),
    Case("control.entry.event.type", event(OTHER), nothing, (NO_MTF, NO_FRED)),
    Case("control.entry.event.vector", event(OTHER), nothing, (NO_MTF,)),
    Case(
        "control.entry.event.vector", event(OTHER | 1), flip(GUEST_CR4=Cr4.FRED), (put(VM_ENTRY_INSTRUCTION_LENGTH=2),)
    ),
    Case(
        "control.entry.event.vector",
        event(OTHER | 3),
        event(OTHER | 2),
        (put(VM_ENTRY_INSTRUCTION_LENGTH=2), flip(GUEST_CR4=Cr4.FRED)),
    ),
    Case(
        "control.entry.event.instruction_length",
        put(VM_ENTRY_INSTRUCTION_LENGTH=16),
        put(VM_ENTRY_INSTRUCTION_LENGTH=2),
        (event(OTHER | 1), flip(GUEST_CR4=Cr4.FRED)),
    ),
    Case("control.entry.event.nested_exception", event(HARDWARE | 6 | NESTED), event(HARDWARE | 6)),
    Case(
        "control.entry.event.nested_exception",
        event(NMI | 2 | NESTED),
        event(HARDWARE | 6 | NESTED),
        (offer(nested_exception=True),),
    ),
    Case("control.entry.event.vector", event(NMI | 3), event(NMI | 2)),
    Case("control.entry.event.vector", event(HARDWARE | 32), event(HARDWARE | 31)),
    Case("control.entry.event.vector", event(OTHER | 1), event(OTHER)),
    Case("control.entry.event.error_code_valid", event(HARDWARE | 13), event(HARDWARE | 13 | ERROR_CODE)),
    Case("control.entry.event.error_code_valid", event(HARDWARE | 6 | ERROR_CODE), event(HARDWARE | 6)),
    Case("control.entry.event.error_code_valid", event(NMI | 2 | ERROR_CODE), event(NMI | 2)),
    Case(
        "control.entry.event.error_code_valid",
        event(HARDWARE | 13 | ERROR_CODE),
        event(HARDWARE | 13),
        start=real_mode,
    ),
    Case(
        "control.entry.event.error_code_valid",
        event(NMI | 2 | ERROR_CODE),
        event(HARDWARE | 6 | ERROR_CODE),
        (offer(error_code_optional=True),),
    ),
    Case("control.entry.event.reserved", event(NMI | 2 | 1 << 12), event(NMI | 2)),
    Case("control.entry.event.reserved", event(NMI | 2 | 1 << 30), event(NMI | 2)),
    Case("control.entry.event.reserved", event(NMI | 2 | 1 << 14), event(NMI | 2)),
    Case(
        "control.entry.event.error_code",
        put(VM_ENTRY_EXCEPTION_ERROR_CODE=1 << 16),
        put(VM_ENTRY_EXCEPTION_ERROR_CODE=0xFFFF),
        (event(HARDWARE | 14 | ERROR_CODE),),
    ),
    Case(
        "control.entry.event.instruction_length",
        put(VM_ENTRY_INSTRUCTION_LENGTH=16),
        put(VM_ENTRY_INSTRUCTION_LENGTH=15),
        (event(SOFTWARE_INTERRUPT | 0x80),),
    ),
    Case(
        "control.entry.event.instruction_length",
        put(VM_ENTRY_INSTRUCTION_LENGTH=0),
        put(VM_ENTRY_INSTRUCTION_LENGTH=1),
        (event(SOFTWARE_EXCEPTION | 3), offer(misc=0)),
    ),
    *_area("control.entry.msr_load", "VM_ENTRY_MSR_LOAD"),
    Case("control.entry.smm", on(VmEntry.ENTRY_TO_SMM), off(VmEntry.ENTRY_TO_SMM)),
    Case("control.entry.smm", on(VmEntry.DEACTIVATE_DUAL_MONITOR_TREATMENT), nothing),
    Case(
        "control.entry.smm_and_dual_monitor",
        on(VmEntry.DEACTIVATE_DUAL_MONITOR_TREATMENT),
        nothing,
        (processor(in_smm=True), on(VmEntry.ENTRY_TO_SMM), put(GUEST_INTERRUPTIBILITY_STATE=4)),
    ),
    Case("control.entry.rtit_ctl", on(VmEntry.LOAD_IA32_RTIT_CTL), nothing, (processor(intel_pt_enabled=True),)),
]

CET_EXIT, CET_ENTRY = on(VmExit.LOAD_CET_STATE), on(VmEntry.LOAD_CET_STATE)


def _canonical(id_: str, field: str, *given: Edit) -> list[Case]:
    return [
        Case(id_, put(**{field: NON_CANONICAL}), put(**{field: NON_CANONICAL - 1}), given),
        Case(id_, put(**{field: UPPER - 1}), put(**{field: UPPER}), given),
    ]


def _canonical_page(id_: str, field: str, *given: Edit) -> list[Case]:
    return [
        Case(id_, put(**{field: NON_CANONICAL}), put(**{field: NON_CANONICAL - 0x1000}), given),
        Case(id_, put(**{field: UPPER - 0x1000}), put(**{field: UPPER}), given),
    ]


def _fred(side: str, load: Edit) -> list[Case]:
    """Rules on the FRED MSRs of one state area."""
    low = side.lower()
    cases = []
    for name, reserved in (("CONFIG", (2, 4, 5, 11)), *((f"RSP{n}", (0, 5)) for n in (1, 2, 3))):
        field = f"{side}_IA32_FRED_{name}"
        cases += [
            Case(f"{low}.fred.{name.lower()}", put(**{field: 1 << bit}), put(**{field: 1 << 6}), (load,))
            for bit in reserved
        ]
        cases += _canonical_page(f"{low}.fred.{name.lower()}", field, load)
    for n in (1, 2, 3):
        field = f"{side}_IA32_FRED_SSP{n}"
        cases.append(Case(f"{low}.fred.ssp{n}", put(**{field: 4}), put(**{field: 8}), (load,)))
        cases += _canonical_page(f"{low}.fred.ssp{n}", field, load)
    return cases


def _registers(side: str, load: type[VmExit] | type[VmEntry], cet: Edit) -> list[Case]:
    """Rules that the host-state and the guest-state area share."""
    low = side.lower()
    return [
        Case(f"{low}.cr0.fixed", flip(**{f"{side}_CR0": Cr0.NE}), nothing),
        Case(f"{low}.cr0.fixed", flip(**{f"{side}_CR0": 1 << 32}), flip(**{f"{side}_CR0": Cr0.TS})),
        Case(f"{low}.cr4.fixed", flip(**{f"{side}_CR4": Cr4.VMXE}), flip(**{f"{side}_CR4": Cr4.PGE})),
        Case(f"{low}.cr4.fixed", flip(**{f"{side}_CR4": 1 << 15}), nothing),
        Case(f"{low}.cr4.cet", flip(**{f"{side}_CR0": Cr0.WP}), nothing, (flip(**{f"{side}_CR4": Cr4.CET}),)),
        Case(f"{low}.cr3.width", put(**{f"{side}_CR3": BEYOND}), put(**{f"{side}_CR3": BEYOND - 1})),
        Case(f"{low}.cr3.width", put(**{f"{side}_CR3": BIT63}), nothing),
        *_canonical(f"{low}.sysenter_esp", f"{side}_IA32_SYSENTER_ESP"),
        *_canonical(f"{low}.sysenter_eip", f"{side}_IA32_SYSENTER_EIP"),
        Case(f"{low}.s_cet.reserved", put(**{f"{side}_IA32_S_CET": 1 << 6}), put(**{f"{side}_IA32_S_CET": 1}), (cet,)),
        Case(
            f"{low}.s_cet.reserved",
            put(**{f"{side}_IA32_S_CET": 3 << 10}),
            put(**{f"{side}_IA32_S_CET": 1 << 11}),
            (cet,),
        ),
        *_canonical(f"{low}.interrupt_ssp_table", f"{side}_IA32_INTERRUPT_SSP_TABLE_ADDR", cet),
        Case(f"{low}.ssp.alignment", put(**{f"{side}_SSP": 2}), put(**{f"{side}_SSP": 4}), (cet,)),
        Case(
            f"{low}.perf_global_ctrl",
            put(**{f"{side}_IA32_PERF_GLOBAL_CTRL": 0x10}),
            put(**{f"{side}_IA32_PERF_GLOBAL_CTRL": 0x8}),
            (on(load.LOAD_IA32_PERF_GLOBAL_CTRL),),
        ),
        *(
            Case(
                f"{low}.pat",
                put(**{f"{side}_IA32_PAT": bad << 56}),
                put(**{f"{side}_IA32_PAT": 0x0706_0504_0100_0604}),
                (on(load.LOAD_IA32_PAT),),
            )
            for bad in (2, 3, 8)
        ),
        Case(
            f"{low}.efer.reserved",
            flip(**{f"{side}_IA32_EFER": 2}),
            flip(**{f"{side}_IA32_EFER": Efer.NXE}),
            (on(load.LOAD_IA32_EFER), put(**{f"{side}_IA32_EFER": Efer.LMA | Efer.LME})),
        ),
        Case(
            f"{low}.pkrs",
            put(**{f"{side}_IA32_PKRS": 1 << 32}),
            put(**{f"{side}_IA32_PKRS": 0xFFFF_FFFF}),
            (on(load.LOAD_PKRS),),
        ),
    ]


LONG_EFER = put(HOST_IA32_EFER=Efer.LMA | Efer.LME)
HOST = [
    *_registers("HOST", VmExit, CET_EXIT),
    *_fred("HOST", on(VmExit2.LOAD_FRED)),
    Case("host.spec_ctrl", put(HOST_IA32_SPEC_CTRL=8), put(HOST_IA32_SPEC_CTRL=4), (on(VmExit2.LOAD_IA32_SPEC_CTRL),)),
    Case("host.size32.fred", flip(HOST_CR4=Cr4.FRED), nothing, start=protected_host),
    Case("host.size32.s_cet", put(HOST_IA32_S_CET=1 << 32), put(HOST_IA32_S_CET=1 << 31), (CET_EXIT,), protected_host),
    *_canonical_page("host.size64.s_cet", "HOST_IA32_S_CET", CET_EXIT),
    *_canonical_page("host.size64.ssp", "HOST_SSP", CET_EXIT),
    Case("host.efer.mode", flip(HOST_IA32_EFER=Efer.LMA), LONG_EFER, (on(VmExit.LOAD_IA32_EFER), LONG_EFER)),
    Case("host.efer.mode", flip(HOST_IA32_EFER=Efer.LME), LONG_EFER, (on(VmExit.LOAD_IA32_EFER), LONG_EFER)),
    Case(
        "host.efer.mode",
        LONG_EFER,
        put(HOST_IA32_EFER=0),
        (on(VmExit.LOAD_IA32_EFER),),
        protected_host,
    ),
    *(
        Case(
            f"host.{name.lower()}.selector",
            put(**{f"HOST_{name}_SELECTOR": 8 | low}),
            put(**{f"HOST_{name}_SELECTOR": 8}),
        )
        for name in ("CS", "SS", "DS", "ES", "FS", "GS", "TR")
        for low in (1, 2, 4)
    ),
    Case("host.cs.null", put(HOST_CS_SELECTOR=0), put(HOST_CS_SELECTOR=8)),
    Case("host.tr.null", put(HOST_TR_SELECTOR=0), put(HOST_TR_SELECTOR=8)),
    Case("host.ss.null", put(HOST_SS_SELECTOR=0), put(HOST_SS_SELECTOR=8), start=protected_host),
    *(
        case
        for name in ("FS", "GS", "GDTR", "IDTR", "TR")
        for case in _canonical(f"host.{name.lower()}.base", f"HOST_{name}_BASE")
    ),
    Case("host.mode.ia32e_guest", on(VmEntry.IA32E_MODE_GUEST), nothing, start=protected_host),
    Case("host.mode.address_space_size", on(VmExit.HOST_ADDRESS_SPACE_SIZE), nothing, start=protected_host),
    Case(
        "host.mode.address_space_size",
        off(VmExit.HOST_ADDRESS_SPACE_SIZE),
        nothing,
        (put(HOST_SS_SELECTOR=8),),
        protected_mode,
    ),
    Case("host.size32.pcide", flip(HOST_CR4=Cr4.PCIDE), nothing, start=protected_host),
    Case("host.size32.rip", put(HOST_RIP=1 << 32), put(HOST_RIP=0xFFFF_FFFF), start=protected_host),
    Case("host.size32.ssp", put(HOST_SSP=1 << 32), put(HOST_SSP=0xFFFF_FFFC), (CET_EXIT,), protected_host),
    Case("host.size64.pae", flip(HOST_CR4=Cr4.PAE), nothing),
    *_canonical("host.size64.rip", "HOST_RIP"),
]

LONG_GUEST_EFER = put(GUEST_IA32_EFER=Efer.LMA | Efer.LME)
LOAD_DEBUG, LOAD_EFER = on(VmEntry.LOAD_DEBUG_CONTROLS), on(VmEntry.LOAD_IA32_EFER)
NO_CANONICAL_RIP = 1 << 48
REGISTERS = [
    *_registers("GUEST", VmEntry, CET_ENTRY),
    *_canonical_page("guest.s_cet.canonical", "GUEST_IA32_S_CET", CET_ENTRY),
    *_fred("GUEST", on(VmEntry.LOAD_FRED)),
    Case(
        "guest.spec_ctrl", put(GUEST_IA32_SPEC_CTRL=8), put(GUEST_IA32_SPEC_CTRL=4), (on(VmEntry.LOAD_IA32_SPEC_CTRL),)
    ),
    Case("guest.cr4.fred", flip(GUEST_CR4=Cr4.FRED), flip(GUEST_CR4=Cr4.PGE), start=protected_mode),
    Case("guest.cr0.fixed", flip(GUEST_CR0=Cr0.PG), flip(GUEST_CR0=Cr0.NW | Cr0.CD), start=protected_mode),
    Case("guest.cr0.pg", flip(GUEST_CR0=Cr0.PG), flip(GUEST_CR0=Cr0.PE), start=real_mode),
    Case("guest.debugctl", put(GUEST_IA32_DEBUGCTL=8), put(GUEST_IA32_DEBUGCTL=2), (LOAD_DEBUG,)),
    Case("guest.debugctl", LOAD_DEBUG, nothing, (put(GUEST_IA32_DEBUGCTL=1 << 63),)),
    Case(
        "guest.ia32e.paging",
        flip(GUEST_CR0=Cr0.PG),
        nothing,
        (*EPT, on(ProcBased2.UNRESTRICTED_GUEST)),
    ),
    Case("guest.ia32e.pae", flip(GUEST_CR4=Cr4.PAE), nothing),
    Case("guest.cr4.pcide", flip(GUEST_CR4=Cr4.PCIDE), flip(GUEST_CR4=Cr4.PGE), start=protected_mode),
    Case("guest.dr7", put(GUEST_DR7=1 << 32), put(GUEST_DR7=0xFFFF_FFFF), (LOAD_DEBUG,)),
    Case("guest.efer.lma", flip(GUEST_IA32_EFER=Efer.LMA | Efer.LME), nothing, (LOAD_EFER, LONG_GUEST_EFER)),
    Case("guest.efer.lma", put(GUEST_IA32_EFER=Efer.LMA), nothing, (LOAD_EFER,), protected_mode),
    Case("guest.efer.lme", flip(GUEST_IA32_EFER=Efer.LME), nothing, (LOAD_EFER, LONG_GUEST_EFER)),
    Case(
        "guest.bndcfgs.reserved",
        put(GUEST_IA32_BNDCFGS=4),
        put(GUEST_IA32_BNDCFGS=0x1003),
        (on(VmEntry.LOAD_IA32_BNDCFGS),),
    ),
    *_canonical_page("guest.bndcfgs.base", "GUEST_IA32_BNDCFGS", on(VmEntry.LOAD_IA32_BNDCFGS)),
    Case(
        "guest.rtit_ctl", put(GUEST_IA32_RTIT_CTL=0x10), put(GUEST_IA32_RTIT_CTL=0x8), (on(VmEntry.LOAD_IA32_RTIT_CTL),)
    ),
    Case(
        "guest.lbr_ctl",
        put(GUEST_IA32_LBR_CTL=0x10),
        put(GUEST_IA32_LBR_CTL=0x8),
        (on(VmEntry.LOAD_GUEST_IA32_LBR_CTL),),
    ),
    Case("guest.uinv", put(GUEST_UINV=0x100), put(GUEST_UINV=0xFF), (on(VmEntry.LOAD_UINV),)),
    *(
        case
        for name in ("GDTR", "IDTR")
        for case in (
            *_canonical(f"guest.{name.lower()}.base", f"GUEST_{name}_BASE"),
            Case(
                f"guest.{name.lower()}.limit",
                put(**{f"GUEST_{name}_LIMIT": 0x1_0000}),
                put(**{f"GUEST_{name}_LIMIT": 0xFFFF}),
            ),
        )
    ),
    Case("guest.rip", put(GUEST_RIP=NO_CANONICAL_RIP), put(GUEST_RIP=NO_CANONICAL_RIP - 1)),
    Case("guest.rip", put(GUEST_RIP=0xFFFE_FFFF_FFFF_FFFF), put(GUEST_RIP=0xFFFF_0000_0000_0000)),
    Case("guest.rip", put(GUEST_RIP=1 << 32), put(GUEST_RIP=0xFFFF_FFFF), start=protected_mode),
    *(Case("guest.rflags.reserved", flip(GUEST_RFLAGS=1 << n), nothing) for n in (1, 3, 5, 15, 22, 63)),
    Case(
        "guest.rflags.vm",
        on(VmEntry.IA32E_MODE_GUEST),
        nothing,
        (*EPT, flip(GUEST_CR4=Cr4.PAE)),
        virtual_8086,
    ),
    Case(
        "guest.rflags.vm",
        flip(GUEST_CR0=Cr0.PE),
        flip(GUEST_RFLAGS=1 << 9),
        (*EPT, flip(GUEST_CR0=Cr0.PG), on(ProcBased2.UNRESTRICTED_GUEST)),
        virtual_8086,
    ),
    Case("guest.rflags.if", event(EXTERNAL | 0x20), put(GUEST_RFLAGS=0x202), ()),
    Case("guest.rflags.if", put(GUEST_RFLAGS=0x2), put(GUEST_RFLAGS=0x202), (event(EXTERNAL | 0x20),)),
    Case("guest.ssp.width", put(GUEST_SSP=NO_CANONICAL_RIP), put(GUEST_SSP=NO_CANONICAL_RIP - 4), (CET_ENTRY,)),
    Case("guest.ssp.width", put(GUEST_SSP=1 << 32), put(GUEST_SSP=0xFFFF_FFFC), (CET_ENTRY,), protected_mode),
]

SIX = ("CS", "SS", "DS", "ES", "FS", "GS")
DATA = ("DS", "ES", "FS", "GS")
UNRESTRICTED = (*EPT, on(ProcBased2.UNRESTRICTED_GUEST))


def rights(name: str, value: int) -> Edit:
    """Set the access rights of a segment register."""
    return put(**{f"GUEST_{name}_ACCESS_RIGHTS": value})


def _v86(name: str) -> list[Case]:
    low = name.lower()
    other = put(**{f"GUEST_{name}_SELECTOR": 0x1234, f"GUEST_{name}_BASE": 0x12340})
    return [
        Case(f"guest.{low}.v86.base", put(**{f"GUEST_{name}_BASE": 0x10010}), other, (), virtual_8086),
        Case(f"guest.{low}.v86.limit", put(**{f"GUEST_{name}_LIMIT": 0xFFFE}), nothing, (), virtual_8086),
        Case(f"guest.{low}.v86.rights", rights(name, 0xF3 | UNUSABLE), nothing, (), virtual_8086),
        Case(f"guest.{low}.v86.rights", rights(name, 0x93), nothing, (), virtual_8086),
    ]


def _six(name: str) -> list[Case]:
    low = name.lower()
    good = FLAT_CODE_64 if name == "CS" else FLAT_DATA
    # CS has no sound unusable form to compare with: the rules on it hold whether or not it is usable.
    sound = rights(name, good) if name == "CS" else rights(name, UNUSABLE)
    return [
        Case(f"guest.{low}.s", rights(name, good & ~0x10), sound),
        Case(f"guest.{low}.p", rights(name, good & ~0x80), sound),
        Case(f"guest.{low}.reserved", rights(name, good | 1 << 8), sound),
        Case(f"guest.{low}.reserved", rights(name, good | 1 << 11), sound),
        Case(f"guest.{low}.reserved", rights(name, good | 1 << 17), sound),
        Case(f"guest.{low}.reserved", rights(name, good | 1 << 31), sound),
        Case(f"guest.{low}.g", rights(name, good & ~0x8000), sound),
        Case(f"guest.{low}.g", put(**{f"GUEST_{name}_LIMIT": 0xFFFF_FFFE}), nothing),
        Case(
            f"guest.{low}.g",
            put(**{f"GUEST_{name}_LIMIT": 0x0010_0000}),
            put(**{f"GUEST_{name}_LIMIT": 0x000F_FFFE}),
            (rights(name, good & ~0x8000),),
        ),
    ]


def _system(name: str) -> list[Case]:
    low = name.lower()
    good = 0x8B if name == "TR" else 0x82
    sound = rights(name, good) if name == "TR" else rights(name, UNUSABLE | 0xFFFE_0FFF)
    return [
        Case(f"guest.{low}.type", rights(name, good ^ 1 << 2), sound),
        Case(f"guest.{low}.s", rights(name, good | 0x10), sound),
        Case(f"guest.{low}.p", rights(name, good & ~0x80), sound),
        Case(f"guest.{low}.reserved", rights(name, good | 1 << 9), sound),
        Case(f"guest.{low}.reserved", rights(name, good | 1 << 20), sound),
        Case(f"guest.{low}.g", rights(name, good | 0x8000), sound, (put(**{f"GUEST_{name}_LIMIT": 0x1000}),)),
    ]


FRED_USER = (
    flip(GUEST_CR4=Cr4.FRED),
    put(GUEST_CS_SELECTOR=3, GUEST_SS_SELECTOR=3),
    rights("CS", FLAT_CODE_64 | 0x60),
    rights("SS", FLAT_DATA | 0x60),
)
SEGMENTS = [
    Case("guest.tr.selector", put(GUEST_TR_SELECTOR=4), put(GUEST_TR_SELECTOR=8)),
    Case("guest.ldtr.selector", put(GUEST_LDTR_SELECTOR=4), put(GUEST_LDTR_SELECTOR=8)),
    Case("guest.ldtr.selector", nothing, rights("LDTR", UNUSABLE), (put(GUEST_LDTR_SELECTOR=4),)),
    Case("guest.ss.rpl", put(GUEST_CS_SELECTOR=8 | 3), put(GUEST_CS_SELECTOR=8)),
    *(case for name in SIX for case in _v86(name)),
    *(case for name in ("TR", "FS", "GS") for case in _canonical(f"guest.{name.lower()}.base", f"GUEST_{name}_BASE")),
    *_canonical("guest.ldtr.base", "GUEST_LDTR_BASE"),
    Case("guest.ldtr.base", nothing, rights("LDTR", UNUSABLE), (put(GUEST_LDTR_BASE=NON_CANONICAL),)),
    Case("guest.cs.base", put(GUEST_CS_BASE=1 << 32), put(GUEST_CS_BASE=0xFFFF_FFFF)),
    *(
        Case(f"guest.{name.lower()}.base", nothing, rights(name, UNUSABLE), (put(**{f"GUEST_{name}_BASE": 1 << 32}),))
        for name in ("SS", "DS", "ES")
    ),
    *(Case("guest.cs.type", rights("CS", FLAT_CODE_64 & ~0xF | kind), nothing) for kind in (3, 8, 10, 12, 14)),
    Case("guest.cs.type", rights("CS", 0xC093), nothing, (), protected_mode),
    Case("guest.cs.type", rights("CS", 0xC091), rights("CS", 0xC093), UNRESTRICTED, protected_mode),
    *(Case("guest.ss.type", rights("SS", FLAT_DATA & ~0xF | kind), rights("SS", 0xC097)) for kind in (1, 2, 5, 9, 11)),
    *(
        Case(f"guest.{name.lower()}.type", rights(name, FLAT_DATA & ~0xF | kind), rights(name, 0xC09B))
        for name in DATA
        for kind in (2, 8, 9, 10)
    ),
    Case("guest.cs.dpl", rights("CS", FLAT_CODE_64 | 0x20), nothing),
    Case("guest.cs.dpl", rights("CS", FLAT_CODE_64 | 0x24), rights("CS", FLAT_CODE_64 | 4)),
    Case("guest.cs.dpl", rights("CS", 0xC0B3), rights("CS", 0xC093), UNRESTRICTED, protected_mode),
    Case(
        "guest.ss.dpl",
        put(GUEST_SS_SELECTOR=3, GUEST_CS_SELECTOR=3),
        put(GUEST_SS_SELECTOR=0, GUEST_CS_SELECTOR=0),
        (),
    ),
    Case(
        "guest.ss.dpl_zero",
        rights("SS", FLAT_DATA | 0x60),
        nothing,
        UNRESTRICTED + (rights("CS", 0xC093),),
        protected_mode,
    ),
    Case("guest.ss.dpl_zero", rights("SS", 0x93 | 0x20), nothing, (rights("CS", 0x9F),), real_mode),
    Case("guest.ss.fred", rights("CS", 0xC09B), nothing, (flip(GUEST_CR4=Cr4.FRED),)),
    Case("guest.ss.fred", put(GUEST_RFLAGS=0x1002), put(GUEST_RFLAGS=2), FRED_USER),
    Case(
        "guest.ss.fred",
        put(GUEST_INTERRUPTIBILITY_STATE=1),
        put(GUEST_INTERRUPTIBILITY_STATE=0),
        (*FRED_USER, put(GUEST_RFLAGS=0x202)),
    ),
    Case(
        "guest.ss.fred",
        flip(GUEST_CR4=Cr4.FRED),
        nothing,
        (
            put(GUEST_CS_SELECTOR=1, GUEST_SS_SELECTOR=1),
            rights("CS", FLAT_CODE_64 | 0x20),
            rights("SS", FLAT_DATA | 0x20),
        ),
    ),
    *(
        case
        for name in DATA
        for case in (
            Case(
                f"guest.{name.lower()}.dpl",
                put(**{f"GUEST_{name}_SELECTOR": 1}),
                put(**{f"GUEST_{name}_SELECTOR": 4}),
            ),
            Case(f"guest.{name.lower()}.dpl", nothing, rights(name, 0xC09F), (put(**{f"GUEST_{name}_SELECTOR": 3}),)),
            Case(
                f"guest.{name.lower()}.dpl",
                nothing,
                on(ProcBased2.UNRESTRICTED_GUEST),
                (*EPT, put(**{f"GUEST_{name}_SELECTOR": 3})),
            ),
        )
    ),
    *(case for name in SIX for case in _six(name)),
    Case("guest.cs.db", rights("CS", FLAT_CODE_64 | 0x4000), nothing),
    *_system("TR"),
    *_system("LDTR"),
    Case("guest.tr.type", rights("TR", 0x83), rights("TR", 0x8B)),
    Case("guest.tr.usable", rights("TR", 0x8B | UNUSABLE), nothing),
]

STI, MOV_SS, BLOCK_NMI = 1, 2, 8
TRAP, INTERRUPTS = 0x102, 0x202


def state_(activity: int = 0, blocking: int = 0, pending: int = 0, rflags: int = 2) -> Edit:
    """Guest non-register state."""
    return put(
        GUEST_ACTIVITY_STATE=activity,
        GUEST_INTERRUPTIBILITY_STATE=blocking,
        GUEST_PENDING_DEBUG_EXCEPTIONS=pending,
        GUEST_RFLAGS=rflags,
    )


LINKED = (put(VMCS_LINK_POINTER=0x9000), store(0x9000, REVISION, 4))
NON_REGISTER = [
    Case("guest.activity.supported", state_(4), state_(3)),
    *(
        Case("guest.activity.supported", state_(n), state_(0), (offer(misc=0x1C0 & ~(1 << (5 + n))),))
        for n in (1, 2, 3)
    ),
    Case(
        "guest.activity.hlt_dpl",
        state_(1),
        state_(0),
        (
            put(GUEST_CS_SELECTOR=3, GUEST_SS_SELECTOR=3),
            rights("CS", FLAT_CODE_64 | 0x60),
            rights("SS", FLAT_DATA | 0x60),
        ),
    ),
    Case("guest.activity.blocking", state_(1, STI, 0, INTERRUPTS), state_(0, STI, 0, INTERRUPTS)),
    Case("guest.activity.blocking", state_(2, MOV_SS), state_(2, 0)),
    Case("guest.activity.event", event(HARDWARE | 6), event(HARDWARE | 1), (state_(1),)),
    Case(
        "guest.activity.event",
        event(SOFTWARE_INTERRUPT | 1),
        event(HARDWARE | 18),
        (state_(1), put(VM_ENTRY_INSTRUCTION_LENGTH=2)),
    ),
    Case(
        "guest.activity.event",
        event(HARDWARE | 14 | ERROR_CODE),
        event(EXTERNAL | 0x31),
        (state_(1, rflags=INTERRUPTS),),
    ),
    Case("guest.activity.event", event(HARDWARE | 1), event(NMI | 2), (state_(2),)),
    Case("guest.activity.event", event(EXTERNAL | 18), event(HARDWARE | 18), (state_(2, rflags=INTERRUPTS),)),
    Case("guest.activity.event", event(NMI | 2), nothing, (state_(3),)),
    Case(
        "guest.activity.smm",
        state_(3, 4),
        state_(1, 4),
        (processor(in_smm=True), on(VmEntry.ENTRY_TO_SMM)),
    ),
    Case("guest.interruptibility.reserved", state_(0, 1 << 5), state_(0, 1 << 4)),
    Case("guest.interruptibility.reserved", state_(0, 1 << 31), state_(0, 1 << 3)),
    Case("guest.interruptibility.sti_and_mov_ss", state_(0, 3, 0, INTERRUPTS), state_(0, 1, 0, INTERRUPTS)),
    Case("guest.interruptibility.sti_if", state_(0, STI), state_(0, STI, 0, INTERRUPTS)),
    *(
        Case(
            "guest.interruptibility.external_interrupt",
            state_(0, blocking, 0, INTERRUPTS),
            state_(0, BLOCK_NMI, 0, INTERRUPTS),
            (event(EXTERNAL | 0x20),),
        )
        for blocking in (STI, MOV_SS)
    ),
    Case(
        "guest.interruptibility.nmi_mov_ss",
        state_(0, MOV_SS),
        state_(0, BLOCK_NMI),
        (event(NMI | 2),),
    ),
    Case(
        "guest.interruptibility.nmi_sti",
        state_(0, STI, 0, INTERRUPTS),
        state_(0, 0, 0, INTERRUPTS),
        (event(NMI | 2),),
    ),
    Case("guest.interruptibility.smi", state_(0, 4), processor(in_smm=True)),
    Case(
        "guest.interruptibility.smm_entry",
        state_(0, 0),
        state_(0, 4),
        (processor(in_smm=True), on(VmEntry.ENTRY_TO_SMM)),
    ),
    Case(
        "guest.interruptibility.virtual_nmi",
        on(PinBased.NMI_EXITING, PinBased.VIRTUAL_NMIS),
        nothing,
        (event(NMI | 2), state_(0, BLOCK_NMI)),
    ),
    Case("guest.interruptibility.enclave", state_(0, 16 | MOV_SS), state_(0, 16)),
    Case("guest.interruptibility.enclave", state_(0, 16), state_(0, 0), (offer(sgx_supported=False),)),
    *(
        Case("guest.pending_debug.reserved", state_(0, 0, 1 << n), state_(0, 0, 1 << 12))
        for n in (4, 10, 13, 15, 17, 63)
    ),
    Case("guest.pending_debug.reserved", state_(0, 0, 1 << 11), nothing, (offer(debugctl_valid=3),)),
    Case("guest.pending_debug.single_step", state_(0, MOV_SS, 0, TRAP), state_(0, MOV_SS, 1 << 14, TRAP)),
    Case("guest.pending_debug.single_step", state_(1, 0, 1 << 14), state_(1, 0, 0)),
    Case(
        "guest.pending_debug.single_step",
        state_(0, MOV_SS, 1 << 14, TRAP),
        state_(0, MOV_SS, 0, TRAP),
        (put(GUEST_IA32_DEBUGCTL=2),),
    ),
    Case("guest.pending_debug.rtm", state_(0, 0, 1 << 16), state_(0, 0, 1 << 16 | 1 << 12)),
    Case("guest.pending_debug.rtm", state_(0, 0, 1 << 16 | 1 << 12 | 1), state_(0, 0, 1 << 12 | 1)),
    Case("guest.pending_debug.rtm", state_(0, MOV_SS, 1 << 16 | 1 << 12), state_(0, MOV_SS, 1 << 12)),
    Case("guest.pending_debug.rtm", state_(0, 0, 1 << 16 | 1 << 12), nothing, (offer(rtm_supported=False),)),
    Case("guest.link_pointer.address", put(VMCS_LINK_POINTER=0x800), nothing, LINKED),
    Case("guest.link_pointer.address", put(VMCS_LINK_POINTER=BEYOND), nothing, LINKED),
    Case("guest.link_pointer.revision", store(0x9000, REVISION ^ 1, 4), nothing, LINKED),
    Case("guest.link_pointer.revision", put(VMCS_LINK_POINTER=0xA000), nothing, LINKED),
    Case("guest.link_pointer.shadow", store(0x9000, REVISION | 1 << 31, 4), nothing, LINKED),
    Case(
        "guest.link_pointer.shadow",
        nothing,
        store(0x9000, REVISION | 1 << 31, 4),
        (*LINKED, on(ProcBased2.VMCS_SHADOWING)),
    ),
    Case(
        "guest.link_pointer.current",
        on(VmEntry.ENTRY_TO_SMM),
        off(VmEntry.ENTRY_TO_SMM),
        (*LINKED, processor(current_vmcs=0x9000, in_smm=True), state_(0, 4)),
    ),
    Case(
        "guest.link_pointer.executive",
        put(EXECUTIVE_VMCS_POINTER=0x9000),
        put(EXECUTIVE_VMCS_POINTER=0x8000),
        (*LINKED, processor(in_smm=True)),
    ),
    Case("guest.link_pointer.current", processor(current_vmcs=0x9000), processor(current_vmcs=0x8000), LINKED),
    *(
        Case(
            "guest.pdpte.fields",
            put(**{f"GUEST_PDPTE{n}": entry | 1}),
            put(**{f"GUEST_PDPTE{n}": entry}),
            EPT,
            pae_paging,
        )
        for n, entry in enumerate((1 << 1, 1 << 5, BEYOND, BIT63))
    ),
    Case("guest.pdpte.fields", put(GUEST_PDPTE0=0x1E7), put(GUEST_PDPTE0=0x1E01 | 0x18), EPT, pae_paging),
    *(
        Case(
            "guest.pdpte.memory", store(0x2000 + 8 * n, 1 | 1 << 8, 8), store(0x2000 + 8 * n, 0x5019, 8), (), pae_paging
        )
        for n in range(4)
    ),
    Case("guest.pdpte.memory", put(GUEST_CR3=0x3000), put(GUEST_CR3=0x201F), (), pae_paging),
]

CASES: tuple[Case, ...] = (*EXECUTION, *EXIT_ENTRY, *HOST, *REGISTERS, *SEGMENTS, *NON_REGISTER)
"""All cases, in the table's order."""
