"""Checks on VM-execution control fields (SDM vol. 3, 27.2.1.1)."""

from __future__ import annotations

from collections.abc import Callable

from lzero.sdm.capabilities import ControlRange, EptVpidCap, VmxCapabilities
from lzero.sdm.controls import ControlFlag, PinBased, ProcBased, ProcBased2, ProcBased3, VmEntry, VmExit, VmFunctions
from lzero.sdm.vmcs_fields import Field

from .model import Check, CheckContext, CheckGroup, Outside, Predicate
from .terms import PIN, PROC, PROC2, PROC3, SECONDARY, TERTIARY, gate, page_address, rule, value_of

__all__ = ["EXECUTION_CONTROL_CHECKS", "control_rule", "implies", "reserved"]

_SECTION = "27.2.1.1"
_F = Field
_EPTP = int(Field.EPT_POINTER)
_VTPR = 0x80
_TPR = int(ProcBased.USE_TPR_SHADOW)
_APIC_ACCESSES = int(ProcBased2.VIRTUALIZE_APIC_ACCESSES)
_VID = int(ProcBased2.VIRTUAL_INTERRUPT_DELIVERY)
_EXIT_SECONDARY = int(VmExit.ACTIVATE_SECONDARY_CONTROLS)


def control_rule(
    id_: str,
    text: str,
    when: ControlFlag,
    fields: tuple[Field, ...],
    predicate: Predicate,
    *,
    section: str = _SECTION,
    outside: Outside = Outside.NOTHING,
) -> Check:
    """A rule of the controls group that says something only while the control ``when`` is 1."""
    return rule(CheckGroup.CONTROLS, id_, section, text, fields, predicate, when=when, outside=outside)


def implies(id_: str, when: ControlFlag, needed: ControlFlag, *, section: str = _SECTION) -> Check:
    """If one control is 1, another must be 1."""
    other = gate(needed)
    text = f"{_words(when)} = 1 needs {_words(needed)} = 1"
    return control_rule(id_, text, when, other.fields, other.is_set, section=section)


def _excludes(id_: str, when: ControlFlag, forbidden: ControlFlag) -> Check:
    other = gate(forbidden)
    is_set = other.is_set
    text = f"{_words(when)} = 1 needs {_words(forbidden)} = 0"
    return control_rule(id_, text, when, other.fields, lambda c: not is_set(c))


def _words(flag: ControlFlag) -> str:
    return f"{type(flag).__name__}.{flag.name}"


def reserved(
    id_: str,
    field: Field,
    offered: Callable[[VmxCapabilities], ControlRange],
    *,
    activator: tuple[int, int] | None = None,
    requires: tuple[ControlFlag, ...] = (),
    section: str = _SECTION,
) -> Check:
    """Reserved bits of a control word have the values that the capability MSRs allow.

    ``activator`` is (field, bit) that must be 1 for the word to be looked at.
    """
    encoding = int(field)

    def plain(c: CheckContext) -> bool:
        return offered(c.capabilities).permits(c.read(encoding))

    def activated(c: CheckContext) -> bool:
        return not c.read(where) & bit or offered(c.capabilities).permits(c.read(encoding))

    text = f"bits of {field.name} have values that the capability MSRs allow"
    if activator is None:
        return Check(id_, section, CheckGroup.CONTROLS, text, (field,), plain, requires)
    where, bit = activator
    fields = (Field(where), field)
    return Check(id_, section, CheckGroup.CONTROLS, text, fields, activated, requires)


def _tpr_threshold_reserved(c: CheckContext) -> bool:
    return _delivers_virtual_interrupts(c) or not c.read(int(_F.TPR_THRESHOLD)) >> 4


def _tpr_threshold_vtpr(c: CheckContext) -> bool:
    if c.read(PROC) & SECONDARY and c.read(PROC2) & (_APIC_ACCESSES | _VID):
        return True
    vtpr = c.memory_word(c.read(int(_F.VIRTUAL_APIC_ADDRESS)) + _VTPR, 1)
    return c.read(int(_F.TPR_THRESHOLD)) & 0xF <= vtpr >> 4


def _delivers_virtual_interrupts(c: CheckContext) -> bool:
    return bool(c.read(PROC) & SECONDARY and c.read(PROC2) & _VID)


def _needs_tpr_shadow(id_: str, when: ProcBased2) -> Check:
    return implies(id_, when, ProcBased.USE_TPR_SHADOW)


def _cr3_target_count(c: CheckContext) -> bool:
    return c.read(int(_F.CR3_TARGET_COUNT)) <= c.capabilities.cr3_targets


_UC_SUPPORT, _WB_SUPPORT = int(EptVpidCap.MEMORY_TYPE_UC), int(EptVpidCap.MEMORY_TYPE_WB)
_WALK_4, _WALK_5 = int(EptVpidCap.PAGE_WALK_4), int(EptVpidCap.PAGE_WALK_5)
_AD, _SSS = int(EptVpidCap.ACCESSED_DIRTY), int(EptVpidCap.SUPERVISOR_SHADOW_STACK)


def _eptp_memory_type(c: CheckContext) -> bool:
    kind = c.read(_EPTP) & 7
    offered = c.capabilities.ept_vpid
    return kind == 0 and bool(offered & _UC_SUPPORT) or kind == 6 and bool(offered & _WB_SUPPORT)


def _eptp_walk_length(c: CheckContext) -> bool:
    code = c.read(_EPTP) >> 3 & 7
    offered = c.capabilities.ept_vpid
    return code == 3 and bool(offered & _WALK_4) or code == 4 and bool(offered & _WALK_5)


def _eptp_accessed_dirty(c: CheckContext) -> bool:
    return not c.read(_EPTP) & 1 << 6 or bool(c.capabilities.ept_vpid & _AD)


def _eptp_shadow_stack(c: CheckContext) -> bool:
    return not c.read(_EPTP) & 1 << 7 or bool(c.capabilities.ept_vpid & _SSS)


def _eptp_reserved(c: CheckContext) -> bool:
    eptp = c.read(_EPTP)
    return not eptp & 0xF00 and not eptp >> c.capabilities.physical_address_width


def _vmfunc_reserved(c: CheckContext) -> bool:
    return not c.read(int(_F.VM_FUNCTION_CONTROLS)) & ~c.capabilities.vmfunc


_EPTP_SWITCHING = int(VmFunctions.EPTP_SWITCHING)
_EPT_SET = gate(ProcBased2.ENABLE_EPT).is_set
_EPTP_LIST = page_address(Field.EPTP_LIST_ADDRESS)


def _eptp_switching_ept(c: CheckContext) -> bool:
    return not c.read(int(_F.VM_FUNCTION_CONTROLS)) & _EPTP_SWITCHING or _EPT_SET(c)


def _eptp_switching_list(c: CheckContext) -> bool:
    return not c.read(int(_F.VM_FUNCTION_CONTROLS)) & _EPTP_SWITCHING or _EPTP_LIST(c)


def _hlat_pointer(c: CheckContext) -> bool:
    pointer = c.read(int(_F.HLAT_POINTER))
    # PWT (3) and PCD (4) are the only bits below the page frame.
    return not pointer & 0xFE7 and pointer < c.capabilities.physical_address_limit


def _pid_table_end(c: CheckContext) -> bool:
    last = c.read(int(_F.PID_POINTER_TABLE_ADDRESS)) + 8 * c.read(int(_F.LAST_PID_POINTER_INDEX)) + 7
    return last < c.capabilities.physical_address_limit


def _address(id_: str, when: ControlFlag, field: Field, low_bits: int = 0xFFF) -> Check:
    alignment = low_bits + 1
    text = f"{field.name} is a multiple of {alignment} within the physical-address width"
    return control_rule(id_, text, when, (field,), page_address(field, low_bits))


_P, _P1, _P2, _P3 = PinBased, ProcBased, ProcBased2, ProcBased3

EXECUTION_CONTROL_CHECKS: tuple[Check, ...] = (
    reserved("control.pin.reserved", Field(PIN), lambda caps: caps.pin),
    reserved("control.proc.reserved", Field(PROC), lambda caps: caps.proc),
    reserved(
        "control.proc2.reserved",
        Field(PROC2),
        lambda caps: caps.proc2,
        activator=(PROC, SECONDARY),
        requires=(_P1.ACTIVATE_SECONDARY_CONTROLS,),
    ),
    reserved(
        "control.proc3.reserved",
        Field(PROC3),
        lambda caps: caps.proc3,
        activator=(PROC, TERTIARY),
        requires=(_P1.ACTIVATE_TERTIARY_CONTROLS,),
    ),
    Check(
        "control.cr3_target_count",
        _SECTION,
        CheckGroup.CONTROLS,
        "the CR3-target count is not above what IA32_VMX_MISC states",
        (_F.CR3_TARGET_COUNT,),
        _cr3_target_count,
    ),
    _address("control.io_bitmap_a.address", _P1.USE_IO_BITMAPS, _F.IO_BITMAP_A_ADDRESS),
    _address("control.io_bitmap_b.address", _P1.USE_IO_BITMAPS, _F.IO_BITMAP_B_ADDRESS),
    _address("control.msr_bitmap.address", _P1.USE_MSR_BITMAPS, _F.MSR_BITMAPS_ADDRESS),
    _address("control.virtual_apic.address", _P1.USE_TPR_SHADOW, _F.VIRTUAL_APIC_ADDRESS),
    control_rule(
        "control.tpr_threshold.reserved",
        "bits 31:4 of the TPR threshold are 0 unless virtual interrupts are delivered",
        _P1.USE_TPR_SHADOW,
        (_F.TPR_THRESHOLD, Field(PROC2)),
        _tpr_threshold_reserved,
    ),
    control_rule(
        "control.tpr_threshold.vtpr",
        "the TPR threshold is not above bits 7:4 of VTPR, unless APIC accesses or interrupts are virtualised",
        _P1.USE_TPR_SHADOW,
        (_F.TPR_THRESHOLD, _F.VIRTUAL_APIC_ADDRESS, Field(PROC2)),
        _tpr_threshold_vtpr,
        outside=Outside.MEMORY,
    ),
    _needs_tpr_shadow("control.x2apic.tpr_shadow", _P2.VIRTUALIZE_X2APIC_MODE),
    _needs_tpr_shadow("control.apic_register.tpr_shadow", _P2.APIC_REGISTER_VIRTUALIZATION),
    _needs_tpr_shadow("control.virtual_interrupts.tpr_shadow", _P2.VIRTUAL_INTERRUPT_DELIVERY),
    implies("control.virtual_nmis.nmi_exiting", _P.VIRTUAL_NMIS, _P.NMI_EXITING),
    implies("control.nmi_window.virtual_nmis", _P1.NMI_WINDOW_EXITING, _P.VIRTUAL_NMIS),
    _address("control.apic_access.address", _P2.VIRTUALIZE_APIC_ACCESSES, _F.APIC_ACCESS_ADDRESS),
    _excludes("control.x2apic.apic_accesses", _P2.VIRTUALIZE_X2APIC_MODE, _P2.VIRTUALIZE_APIC_ACCESSES),
    implies(
        "control.virtual_interrupts.external_interrupt_exiting",
        _P2.VIRTUAL_INTERRUPT_DELIVERY,
        _P.EXTERNAL_INTERRUPT_EXITING,
    ),
    implies(
        "control.posted_interrupts.virtual_interrupts", _P.PROCESS_POSTED_INTERRUPTS, _P2.VIRTUAL_INTERRUPT_DELIVERY
    ),
    implies(
        "control.posted_interrupts.acknowledge", _P.PROCESS_POSTED_INTERRUPTS, VmExit.ACKNOWLEDGE_INTERRUPT_ON_EXIT
    ),
    control_rule(
        "control.posted_interrupts.vector",
        "the posted-interrupt notification vector is in 0 to 255",
        _P.PROCESS_POSTED_INTERRUPTS,
        (_F.POSTED_INTERRUPT_NOTIFICATION_VECTOR,),
        value_of(_F.POSTED_INTERRUPT_NOTIFICATION_VECTOR, lambda vector: vector < 256),
    ),
    _address(
        "control.posted_interrupts.address",
        _P.PROCESS_POSTED_INTERRUPTS,
        _F.POSTED_INTERRUPT_DESCRIPTOR_ADDRESS,
        0x3F,
    ),
    control_rule(
        "control.vpid.nonzero",
        "the VPID is not 0",
        _P2.ENABLE_VPID,
        (_F.VPID,),
        value_of(_F.VPID, lambda vpid: vpid != 0),
    ),
    control_rule(
        "control.eptp.memory_type",
        "bits 2:0 of EPTP are a memory type that IA32_VMX_EPT_VPID_CAP offers",
        _P2.ENABLE_EPT,
        (_F.EPT_POINTER,),
        _eptp_memory_type,
    ),
    control_rule(
        "control.eptp.walk_length",
        "bits 5:3 of EPTP are a page-walk length that IA32_VMX_EPT_VPID_CAP offers, less one",
        _P2.ENABLE_EPT,
        (_F.EPT_POINTER,),
        _eptp_walk_length,
    ),
    control_rule(
        "control.eptp.accessed_dirty",
        "bit 6 of EPTP is 0 unless accessed and dirty flags are offered",
        _P2.ENABLE_EPT,
        (_F.EPT_POINTER,),
        _eptp_accessed_dirty,
    ),
    control_rule(
        "control.eptp.shadow_stack",
        "bit 7 of EPTP is 0 unless supervisor shadow-stack control is offered",
        _P2.ENABLE_EPT,
        (_F.EPT_POINTER,),
        _eptp_shadow_stack,
    ),
    control_rule(
        "control.eptp.reserved",
        "bits 11:8 of EPTP and those beyond the physical-address width are 0",
        _P2.ENABLE_EPT,
        (_F.EPT_POINTER,),
        _eptp_reserved,
    ),
    implies("control.pml.ept", _P2.ENABLE_PML, _P2.ENABLE_EPT),
    _address("control.pml.address", _P2.ENABLE_PML, _F.PML_ADDRESS),
    implies("control.unrestricted_guest.ept", _P2.UNRESTRICTED_GUEST, _P2.ENABLE_EPT),
    implies("control.mode_based_execute.ept", _P2.MODE_BASED_EXECUTE_CONTROL_FOR_EPT, _P2.ENABLE_EPT),
    implies("control.sub_page_write.ept", _P2.SUB_PAGE_WRITE_PERMISSIONS_FOR_EPT, _P2.ENABLE_EPT),
    _address(
        "control.sub_page_write.address",
        _P2.SUB_PAGE_WRITE_PERMISSIONS_FOR_EPT,
        _F.SUB_PAGE_PERMISSION_TABLE_POINTER,
    ),
    control_rule(
        "control.vm_functions.reserved",
        "bits of the VM-function controls are offered by IA32_VMX_VMFUNC",
        _P2.ENABLE_VM_FUNCTIONS,
        (_F.VM_FUNCTION_CONTROLS,),
        _vmfunc_reserved,
    ),
    control_rule(
        "control.eptp_switching.ept",
        "EPTP switching needs EPT",
        _P2.ENABLE_VM_FUNCTIONS,
        (_F.VM_FUNCTION_CONTROLS,),
        _eptp_switching_ept,
    ),
    control_rule(
        "control.eptp_switching.address",
        "with EPTP switching, the EPTP-list address is a multiple of 4096 within the physical-address width",
        _P2.ENABLE_VM_FUNCTIONS,
        (_F.VM_FUNCTION_CONTROLS, _F.EPTP_LIST_ADDRESS),
        _eptp_switching_list,
    ),
    _address("control.vmread_bitmap.address", _P2.VMCS_SHADOWING, _F.VMREAD_BITMAP_ADDRESS),
    _address("control.vmwrite_bitmap.address", _P2.VMCS_SHADOWING, _F.VMWRITE_BITMAP_ADDRESS),
    _address("control.ve_information.address", _P2.EPT_VIOLATION_VE, _F.VIRTUALIZATION_EXCEPTION_INFORMATION_ADDRESS),
    _address("control.low_pasid.address", _P2.PASID_TRANSLATION, _F.LOW_PASID_DIRECTORY_ADDRESS),
    _address("control.high_pasid.address", _P2.PASID_TRANSLATION, _F.HIGH_PASID_DIRECTORY_ADDRESS),
    implies("control.pt_guest_physical.ept", _P2.INTEL_PT_USES_GUEST_PHYSICAL_ADDRESSES, _P2.ENABLE_EPT),
    implies(
        "control.pt_guest_physical.load_rtit_ctl",
        _P2.INTEL_PT_USES_GUEST_PHYSICAL_ADDRESSES,
        VmEntry.LOAD_IA32_RTIT_CTL,
    ),
    implies(
        "control.pt_guest_physical.clear_rtit_ctl",
        _P2.INTEL_PT_USES_GUEST_PHYSICAL_ADDRESSES,
        VmExit.CLEAR_IA32_RTIT_CTL,
    ),
    control_rule(
        "control.tsc_multiplier.nonzero",
        "the TSC multiplier is not 0",
        _P2.USE_TSC_SCALING,
        (_F.TSC_MULTIPLIER,),
        value_of(_F.TSC_MULTIPLIER, lambda multiplier: multiplier != 0),
    ),
    implies("control.hlat.ept", _P3.ENABLE_HLAT, _P2.ENABLE_EPT),
    control_rule(
        "control.hlat.pointer",
        "reserved bits of HLATP, and those beyond the physical-address width, are 0",
        _P3.ENABLE_HLAT,
        (_F.HLAT_POINTER,),
        _hlat_pointer,
    ),
    implies("control.pebs_guest_physical.ept", _P3.PEBS_USES_GUEST_PHYSICAL_ADDRESSES, _P2.ENABLE_EPT),
    implies("control.paging_write.ept", _P3.EPT_PAGING_WRITE_CONTROL, _P2.ENABLE_EPT),
    implies("control.guest_paging_verification.ept", _P3.GUEST_PAGING_VERIFICATION, _P2.ENABLE_EPT),
    implies("control.ipi_virtualization.tpr_shadow", _P3.IPI_VIRTUALIZATION, _P1.USE_TPR_SHADOW),
    _address("control.ipi_virtualization.address", _P3.IPI_VIRTUALIZATION, _F.PID_POINTER_TABLE_ADDRESS, 0x7),
    control_rule(
        "control.ipi_virtualization.last",
        "the last PID pointer is within the physical-address width",
        _P3.IPI_VIRTUALIZATION,
        (_F.PID_POINTER_TABLE_ADDRESS, _F.LAST_PID_POINTER_INDEX),
        _pid_table_end,
    ),
    implies("control.apic_timer.virtual_interrupts", _P3.APIC_TIMER_VIRTUALIZATION, _P2.VIRTUAL_INTERRUPT_DELIVERY),
    _excludes("control.apic_timer.rdtsc_exiting", _P3.APIC_TIMER_VIRTUALIZATION, _P1.RDTSC_EXITING),
    control_rule(
        "control.apic_timer.vector",
        "the virtual-timer vector is in 0 to 255",
        _P3.APIC_TIMER_VIRTUALIZATION,
        (_F.VIRTUAL_TIMER_VECTOR,),
        value_of(_F.VIRTUAL_TIMER_VECTOR, lambda vector: vector < 256),
    ),
)
"""Rules on VM-execution controls in the manual's order."""
