"""VMCS fields, one row each (SDM vol. 3, 25.4 to 25.9 and appendix B).

``Field`` (the encodings) comes from :mod:`lzero.sdm.field_encodings`. The rows add the section that describes a field,
the controls that make it exist, and whether KVM shadows it for its guests.

A field with conditions exists on a processor that allows the 1-setting of any of the named controls (the footnotes of
appendix B); VMREAD and VMWRITE of a field that does not exist fail with error 12.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from .controls import ControlFlag, PinBased, ProcBased, ProcBased2, ProcBased3, VmEntry, VmExit, VmExit2, VmFunctions
from .field_encodings import (
    HIGH,
    MAX_FIELD_INDEX,
    Field,
    Kind,
    Width,
    access_is_high,
    field_index,
    kind_of,
    width_of,
)

__all__ = [
    "HIGH",
    "KVM_SHADOW_READ_ONLY",
    "KVM_SHADOW_READ_WRITE",
    "MAX_FIELD_INDEX",
    "VMCS_FIELDS",
    "Field",
    "Kind",
    "VmcsFieldRow",
    "Width",
    "access_is_high",
    "field_from_name",
    "field_index",
    "field_name",
    "kind_of",
    "width_of",
]


@dataclass(frozen=True, slots=True)
class VmcsFieldRow:
    """One VMCS field.

    ``kvm_name`` is KVM's macro, None where KVM knows no such field. ``exists_with`` is empty for a field that every
    processor has, else the controls of which one must be allowed to be 1. The two shadow flags tell whether KVM puts
    the field into the shadow VMCS it gives its guests (``vmcs_shadow_fields.h``), read-only or read and write.
    """

    encoding: int
    name: str
    kvm_name: str | None
    width: Width
    kind: Kind
    index: int
    section: str
    exists_with: tuple[ControlFlag, ...]
    in_kvm_shadow_ro: bool
    in_kvm_shadow_rw: bool


_F, _P2, _P3 = Field, ProcBased2, ProcBased3
_EFER = (VmEntry.LOAD_IA32_EFER, VmExit.SAVE_IA32_EFER)
_PAT = (VmEntry.LOAD_IA32_PAT, VmExit.SAVE_IA32_PAT)
_GUEST_SEGMENTS = tuple(f for f in Field if f.name.startswith("GUEST_") and f.name.endswith(("_SELECTOR", "_LIMIT")))
_GUEST_BASES = tuple(f for f in Field if f.name.startswith("GUEST_") and f.name.endswith("_BASE"))
_GUEST_RIGHTS = tuple(f for f in Field if f.name.startswith("GUEST_") and f.name.endswith("_ACCESS_RIGHTS"))
_HOST_SEGMENTS = tuple(f for f in Field if f.name.startswith("HOST_") and f.name.endswith(("_SELECTOR", "_BASE")))
_GUEST_FRED = tuple(f for f in Field if f.name.startswith("GUEST_IA32_FRED"))
_HOST_FRED = tuple(f for f in Field if f.name.startswith("HOST_IA32_FRED"))

# section, controls of which one makes the fields exist, fields
_TABLE: tuple[tuple[str, tuple[ControlFlag, ...], tuple[Field, ...]], ...] = (
    ("25.4.1", (), _GUEST_SEGMENTS + _GUEST_BASES + _GUEST_RIGHTS),
    ("25.4.1", (), (_F.GUEST_CR0, _F.GUEST_CR3, _F.GUEST_CR4, _F.GUEST_DR7)),
    ("25.4.1", (), (_F.GUEST_RSP, _F.GUEST_RIP, _F.GUEST_RFLAGS)),
    ("25.4.1", (), (_F.GUEST_IA32_DEBUGCTL, _F.GUEST_SMBASE)),
    ("25.4.1", (), (_F.GUEST_IA32_SYSENTER_CS, _F.GUEST_IA32_SYSENTER_ESP, _F.GUEST_IA32_SYSENTER_EIP)),
    ("25.4.1", (VmEntry.LOAD_IA32_PERF_GLOBAL_CTRL,), (_F.GUEST_IA32_PERF_GLOBAL_CTRL,)),
    ("25.4.1", _PAT, (_F.GUEST_IA32_PAT,)),
    ("25.4.1", _EFER, (_F.GUEST_IA32_EFER,)),
    ("25.4.1", (VmEntry.LOAD_IA32_BNDCFGS, VmExit.CLEAR_IA32_BNDCFGS), (_F.GUEST_IA32_BNDCFGS,)),
    ("25.4.1", (VmEntry.LOAD_IA32_RTIT_CTL, VmExit.CLEAR_IA32_RTIT_CTL), (_F.GUEST_IA32_RTIT_CTL,)),
    ("25.4.1", (VmEntry.LOAD_GUEST_IA32_LBR_CTL, VmExit.CLEAR_IA32_LBR_CTL), (_F.GUEST_IA32_LBR_CTL,)),
    (
        "25.4.1",
        (VmEntry.LOAD_CET_STATE,),
        (_F.GUEST_IA32_S_CET, _F.GUEST_SSP, _F.GUEST_IA32_INTERRUPT_SSP_TABLE_ADDR),
    ),
    ("25.4.1", (VmEntry.LOAD_PKRS,), (_F.GUEST_IA32_PKRS,)),
    ("25.4.1", (VmEntry.LOAD_FRED, VmExit2.SAVE_FRED), _GUEST_FRED),
    ("25.4.1", (VmEntry.LOAD_IA32_SPEC_CTRL,), (_F.GUEST_IA32_SPEC_CTRL,)),
    ("25.4.1", (VmEntry.LOAD_UINV, VmExit.CLEAR_UINV), (_F.GUEST_UINV,)),
    ("25.4.2", (), (_F.GUEST_ACTIVITY_STATE, _F.GUEST_INTERRUPTIBILITY_STATE)),
    ("25.4.2", (), (_F.GUEST_PENDING_DEBUG_EXCEPTIONS, _F.VMCS_LINK_POINTER)),
    ("25.4.2", (PinBased.ACTIVATE_VMX_PREEMPTION_TIMER,), (_F.VMX_PREEMPTION_TIMER_VALUE,)),
    ("25.4.2", (_P2.ENABLE_EPT,), (_F.GUEST_PDPTE0, _F.GUEST_PDPTE1, _F.GUEST_PDPTE2, _F.GUEST_PDPTE3)),
    ("25.4.2", (_P2.VIRTUAL_INTERRUPT_DELIVERY,), (_F.GUEST_INTERRUPT_STATUS,)),
    ("25.4.2", (_P2.ENABLE_PML,), (_F.PML_INDEX,)),
    ("25.4.2", (_P3.APIC_TIMER_VIRTUALIZATION,), (_F.GUEST_DEADLINE,)),
    ("25.5", (), _HOST_SEGMENTS),
    ("25.5", (), (_F.HOST_CR0, _F.HOST_CR3, _F.HOST_CR4, _F.HOST_RSP, _F.HOST_RIP)),
    ("25.5", (), (_F.HOST_IA32_SYSENTER_CS, _F.HOST_IA32_SYSENTER_ESP, _F.HOST_IA32_SYSENTER_EIP)),
    ("25.5", (VmExit.LOAD_IA32_PERF_GLOBAL_CTRL,), (_F.HOST_IA32_PERF_GLOBAL_CTRL,)),
    ("25.5", (VmExit.LOAD_IA32_PAT,), (_F.HOST_IA32_PAT,)),
    ("25.5", (VmExit.LOAD_IA32_EFER,), (_F.HOST_IA32_EFER,)),
    ("25.5", (VmExit.LOAD_CET_STATE,), (_F.HOST_IA32_S_CET, _F.HOST_SSP, _F.HOST_IA32_INTERRUPT_SSP_TABLE_ADDR)),
    ("25.5", (VmExit.LOAD_PKRS,), (_F.HOST_IA32_PKRS,)),
    ("25.5", (VmExit2.LOAD_FRED,), _HOST_FRED),
    ("25.5", (VmExit2.LOAD_IA32_SPEC_CTRL,), (_F.HOST_IA32_SPEC_CTRL,)),
    ("25.6.1", (), (_F.PIN_BASED_VM_EXECUTION_CONTROLS,)),
    ("25.6.2", (), (_F.PRIMARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS,)),
    ("25.6.2", (ProcBased.ACTIVATE_SECONDARY_CONTROLS,), (_F.SECONDARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS,)),
    ("25.6.2", (ProcBased.ACTIVATE_TERTIARY_CONTROLS,), (_F.TERTIARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS,)),
    ("25.6.3", (), (_F.EXCEPTION_BITMAP, _F.PAGE_FAULT_ERROR_CODE_MASK, _F.PAGE_FAULT_ERROR_CODE_MATCH)),
    ("25.6.4", (), (_F.IO_BITMAP_A_ADDRESS, _F.IO_BITMAP_B_ADDRESS)),
    ("25.6.5", (), (_F.TSC_OFFSET,)),
    ("25.6.5", (_P2.USE_TSC_SCALING,), (_F.TSC_MULTIPLIER,)),
    ("25.6.6", (), (_F.CR0_GUEST_HOST_MASK, _F.CR4_GUEST_HOST_MASK, _F.CR0_READ_SHADOW, _F.CR4_READ_SHADOW)),
    ("25.6.7", (), (_F.CR3_TARGET_COUNT, _F.CR3_TARGET_VALUE_0, _F.CR3_TARGET_VALUE_1)),
    ("25.6.7", (), (_F.CR3_TARGET_VALUE_2, _F.CR3_TARGET_VALUE_3)),
    ("25.6.8", (_P2.VIRTUALIZE_APIC_ACCESSES,), (_F.APIC_ACCESS_ADDRESS,)),
    ("25.6.8", (ProcBased.USE_TPR_SHADOW,), (_F.VIRTUAL_APIC_ADDRESS, _F.TPR_THRESHOLD)),
    (
        "25.6.8",
        (_P2.VIRTUAL_INTERRUPT_DELIVERY,),
        (_F.EOI_EXIT_BITMAP_0, _F.EOI_EXIT_BITMAP_1, _F.EOI_EXIT_BITMAP_2, _F.EOI_EXIT_BITMAP_3),
    ),
    (
        "25.6.8",
        (PinBased.PROCESS_POSTED_INTERRUPTS,),
        (_F.POSTED_INTERRUPT_NOTIFICATION_VECTOR, _F.POSTED_INTERRUPT_DESCRIPTOR_ADDRESS),
    ),
    ("25.6.8", (_P3.IPI_VIRTUALIZATION,), (_F.PID_POINTER_TABLE_ADDRESS, _F.LAST_PID_POINTER_INDEX)),
    ("25.6.9", (ProcBased.USE_MSR_BITMAPS,), (_F.MSR_BITMAPS_ADDRESS,)),
    ("25.6.10", (), (_F.EXECUTIVE_VMCS_POINTER,)),
    ("25.6.11", (_P2.ENABLE_EPT,), (_F.EPT_POINTER,)),
    ("25.6.12", (_P2.ENABLE_VPID,), (_F.VPID,)),
    ("25.6.13", (_P2.PAUSE_LOOP_EXITING,), (_F.PLE_GAP, _F.PLE_WINDOW)),
    ("25.6.14", (_P2.ENABLE_VM_FUNCTIONS,), (_F.VM_FUNCTION_CONTROLS,)),
    ("25.6.14", (VmFunctions.EPTP_SWITCHING,), (_F.EPTP_LIST_ADDRESS,)),
    ("25.6.15", (_P2.VMCS_SHADOWING,), (_F.VMREAD_BITMAP_ADDRESS, _F.VMWRITE_BITMAP_ADDRESS)),
    ("25.6.16", (_P2.ENABLE_ENCLS_EXITING,), (_F.ENCLS_EXITING_BITMAP,)),
    ("25.6.17", (_P2.ENABLE_ENCLV_EXITING,), (_F.ENCLV_EXITING_BITMAP,)),
    ("25.6.18", (_P2.ENABLE_PCONFIG,), (_F.PCONFIG_EXITING_BITMAP,)),
    ("25.6.19", (_P2.ENABLE_PML,), (_F.PML_ADDRESS,)),
    ("25.6.20", (_P2.EPT_VIOLATION_VE,), (_F.VIRTUALIZATION_EXCEPTION_INFORMATION_ADDRESS, _F.EPTP_INDEX)),
    ("25.6.21", (_P2.ENABLE_XSAVES_XRSTORS,), (_F.XSS_EXITING_BITMAP,)),
    ("25.6.22", (_P2.SUB_PAGE_WRITE_PERMISSIONS_FOR_EPT,), (_F.SUB_PAGE_PERMISSION_TABLE_POINTER,)),
    ("25.6.23", (_P3.ENABLE_HLAT,), (_F.HLAT_POINTER, _F.HLAT_PREFIX_SIZE)),
    ("25.6.24", (_P2.PASID_TRANSLATION,), (_F.LOW_PASID_DIRECTORY_ADDRESS, _F.HIGH_PASID_DIRECTORY_ADDRESS)),
    ("25.6.25", (_P2.INSTRUCTION_TIMEOUT,), (_F.INSTRUCTION_TIMEOUT_CONTROL,)),
    ("25.6.26", (_P3.VIRTUALIZE_IA32_SPEC_CTRL,), (_F.IA32_SPEC_CTRL_MASK, _F.IA32_SPEC_CTRL_SHADOW)),
    # The next two are not in the editions that number this chapter 25.
    ("27.6.26", (_P3.SEAM_GUEST_PHYSICAL_ADDRESS_WIDTH,), (_F.SHARED_EPT_POINTER, _F.SEAM_GUEST_KEYID)),
    ("27.6.27", (_P3.APIC_TIMER_VIRTUALIZATION,), (_F.GUEST_DEADLINE_SHADOW, _F.VIRTUAL_TIMER_VECTOR)),
    ("25.7.1", (), (_F.VM_EXIT_CONTROLS,)),
    ("25.7.1", (VmExit.ACTIVATE_SECONDARY_CONTROLS,), (_F.SECONDARY_VM_EXIT_CONTROLS,)),
    ("25.7.2", (), (_F.VM_EXIT_MSR_STORE_COUNT, _F.VM_EXIT_MSR_STORE_ADDRESS)),
    ("25.7.2", (), (_F.VM_EXIT_MSR_LOAD_COUNT, _F.VM_EXIT_MSR_LOAD_ADDRESS)),
    ("25.8.1", (), (_F.VM_ENTRY_CONTROLS,)),
    ("25.8.2", (), (_F.VM_ENTRY_MSR_LOAD_COUNT, _F.VM_ENTRY_MSR_LOAD_ADDRESS)),
    ("25.8.3", (), (_F.VM_ENTRY_INTERRUPTION_INFORMATION, _F.VM_ENTRY_EXCEPTION_ERROR_CODE)),
    ("25.8.3", (), (_F.VM_ENTRY_INSTRUCTION_LENGTH,)),
    ("25.8.3", (VmEntry.LOAD_FRED,), (_F.INJECTED_EVENT_DATA,)),
    ("25.9.1", (), (_F.EXIT_REASON, _F.EXIT_QUALIFICATION, _F.GUEST_LINEAR_ADDRESS)),
    ("25.9.1", (_P2.ENABLE_EPT,), (_F.GUEST_PHYSICAL_ADDRESS,)),
    ("25.9.2", (), (_F.VM_EXIT_INTERRUPTION_INFORMATION, _F.VM_EXIT_INTERRUPTION_ERROR_CODE)),
    ("25.9.3", (), (_F.IDT_VECTORING_INFORMATION, _F.IDT_VECTORING_ERROR_CODE)),
    ("25.9.3", (VmEntry.LOAD_FRED,), (_F.ORIGINAL_EVENT_DATA,)),
    ("25.9.4", (), (_F.VM_EXIT_INSTRUCTION_LENGTH, _F.VM_EXIT_INSTRUCTION_INFORMATION)),
    ("25.9.4", (), (_F.IO_RCX, _F.IO_RSI, _F.IO_RDI, _F.IO_RIP)),
    ("25.9.4", (_P3.ENABLE_MSR_LIST_INSTRUCTIONS,), (_F.MSR_DATA,)),
    ("25.9.5", (), (_F.VM_INSTRUCTION_ERROR,)),
)

KVM_SHADOW_READ_ONLY: frozenset[Field] = frozenset(
    {
        _F.EXIT_REASON,
        _F.VM_EXIT_INTERRUPTION_INFORMATION,
        _F.VM_EXIT_INTERRUPTION_ERROR_CODE,
        _F.VM_EXIT_INSTRUCTION_LENGTH,
        _F.IDT_VECTORING_INFORMATION,
        _F.IDT_VECTORING_ERROR_CODE,
        _F.GUEST_CS_ACCESS_RIGHTS,
        _F.GUEST_SS_ACCESS_RIGHTS,
        _F.EXIT_QUALIFICATION,
        _F.GUEST_LINEAR_ADDRESS,
        _F.GUEST_PHYSICAL_ADDRESS,
    }
)
"""Fields that KVM lets its guest VMREAD without an exit but not VMWRITE."""

KVM_SHADOW_READ_WRITE: frozenset[Field] = frozenset(
    {
        _F.GUEST_INTERRUPT_STATUS,
        _F.PML_INDEX,
        _F.HOST_FS_SELECTOR,
        _F.HOST_GS_SELECTOR,
        _F.PRIMARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS,
        _F.EXCEPTION_BITMAP,
        _F.VM_ENTRY_EXCEPTION_ERROR_CODE,
        _F.VM_ENTRY_INTERRUPTION_INFORMATION,
        _F.VM_ENTRY_INSTRUCTION_LENGTH,
        _F.TPR_THRESHOLD,
        _F.GUEST_INTERRUPTIBILITY_STATE,
        _F.VMX_PREEMPTION_TIMER_VALUE,
        _F.GUEST_RIP,
        _F.GUEST_RSP,
        _F.GUEST_CR0,
        _F.GUEST_CR3,
        _F.GUEST_CR4,
        _F.GUEST_RFLAGS,
        _F.CR0_GUEST_HOST_MASK,
        _F.CR0_READ_SHADOW,
        _F.CR4_READ_SHADOW,
        _F.HOST_FS_BASE,
        _F.HOST_GS_BASE,
    }
)
"""Fields that KVM lets its guest VMREAD and VMWRITE without an exit."""

_UNKNOWN_TO_KVM = frozenset(
    (
        *_GUEST_FRED,
        *_HOST_FRED,
        *(_F.EPTP_INDEX, _F.HLAT_PREFIX_SIZE, _F.GUEST_UINV, _F.EXECUTIVE_VMCS_POINTER),
        *(_F.SUB_PAGE_PERMISSION_TABLE_POINTER, _F.ENCLV_EXITING_BITMAP, _F.LOW_PASID_DIRECTORY_ADDRESS),
        *(
            _F.HIGH_PASID_DIRECTORY_ADDRESS,
            _F.SHARED_EPT_POINTER,
            _F.SEAM_GUEST_KEYID,
            _F.PCONFIG_EXITING_BITMAP,
            _F.HLAT_POINTER,
        ),
        *(_F.SECONDARY_VM_EXIT_CONTROLS, _F.IA32_SPEC_CTRL_MASK, _F.IA32_SPEC_CTRL_SHADOW, _F.INJECTED_EVENT_DATA),
        *(_F.MSR_DATA, _F.ORIGINAL_EVENT_DATA, _F.GUEST_IA32_LBR_CTL, _F.GUEST_IA32_PKRS, _F.HOST_IA32_PKRS),
        *(_F.GUEST_IA32_SPEC_CTRL, _F.HOST_IA32_SPEC_CTRL, _F.GUEST_DEADLINE, _F.GUEST_DEADLINE_SHADOW),
        *(_F.VIRTUAL_TIMER_VECTOR, _F.GUEST_SMBASE, _F.IO_RCX, _F.IO_RSI, _F.IO_RDI, _F.IO_RIP),
    )
)
_KVM_ALIASES = {int(member): name for name, member in Field.__members__.items() if name != member.name}


def _kvm_name(field: Field) -> str | None:
    return None if field in _UNKNOWN_TO_KVM else _KVM_ALIASES.get(int(field), field.name)


def _row(field: Field, section: str, exists_with: tuple[ControlFlag, ...]) -> VmcsFieldRow:
    return VmcsFieldRow(
        encoding=int(field),
        name=field.name,
        kvm_name=_kvm_name(field),
        width=width_of(field),
        kind=kind_of(field),
        index=field_index(field),
        section=section,
        exists_with=exists_with,
        in_kvm_shadow_ro=field in KVM_SHADOW_READ_ONLY,
        in_kvm_shadow_rw=field in KVM_SHADOW_READ_WRITE,
    )


VMCS_FIELDS: Mapping[int, VmcsFieldRow] = MappingProxyType(
    dict(
        sorted((int(field), _row(field, section, controls)) for section, controls, fields in _TABLE for field in fields)
    )
)
"""Every known VMCS field by its full-access encoding, in order of encodings."""

_BY_NAME = {name.upper(): int(member) for name, member in Field.__members__.items()}


def field_name(encoding: int) -> str:
    """Name of a field; ``_HIGH`` is appended for an access to the upper half, and an unknown encoding prints as hex."""
    row = VMCS_FIELDS.get(encoding & ~HIGH)
    if row is None:
        return f"0x{encoding:x}"
    return f"{row.name}_HIGH" if encoding & HIGH else row.name


def field_from_name(name: str) -> int:
    """Encoding of the field of that name, the manual's or KVM's, with ``_HIGH`` for its upper half.

    Raises
    ------
    KeyError
        No such field.
    """
    text = name.strip().upper()
    encoding = _BY_NAME.get(text)
    if encoding is not None:
        return encoding
    low = _BY_NAME.get(text.removesuffix("_HIGH")) if text.endswith("_HIGH") else None
    if low is None or width_of(low) is not Width.W64:
        raise KeyError(f"no VMCS field is called {name!r}")
    return low | HIGH
