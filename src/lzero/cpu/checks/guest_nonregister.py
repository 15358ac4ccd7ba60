"""Checks on guest non-register state and PDPTEs (SDM vol. 3, 27.3.1.5 and 27.3.1.6)."""

from __future__ import annotations

from functools import partial

from lzero.sdm.capabilities import VmxMisc
from lzero.sdm.controls import PinBased, ProcBased2, VmEntry
from lzero.sdm.formats import ActivityState, EntryFailureQualification, EventType, InterruptibilityState
from lzero.sdm.registers import Cr0, Cr4, DebugCtl, Rflags
from lzero.sdm.vmcs_fields import Field

from .model import Check, CheckContext, CheckGroup, Outside
from .terms import ENTRY, EVENT, EVENT_VALID, PIN, PROC, PROC2, gate, page_address, rule, value_of

__all__ = ["NON_REGISTER_CHECKS", "NO_LINK_POINTER", "PDPTE_CHECKS"]

NO_LINK_POINTER = (1 << 64) - 1
"""The VMCS link pointer that says there is none."""

_SECTION = "27.3.1.5"
_PDPTE_SECTION = "27.3.1.6"
_F = Field
_rule = partial(rule, CheckGroup.GUEST_STATE)
_ACTIVITY, _BLOCKING = int(Field.GUEST_ACTIVITY_STATE), int(Field.GUEST_INTERRUPTIBILITY_STATE)
_PENDING, _LINK = int(Field.GUEST_PENDING_DEBUG_EXCEPTIONS), int(Field.VMCS_LINK_POINTER)
_RFLAGS, _DEBUGCTL = int(Field.GUEST_RFLAGS), int(Field.GUEST_IA32_DEBUGCTL)
_TF, _IF, _BTF = int(Rflags.TF), int(Rflags.IF), int(DebugCtl.BTF)
_STI, _MOV_SS = int(InterruptibilityState.BLOCKING_BY_STI), int(InterruptibilityState.BLOCKING_BY_MOV_SS)
_SMI, _NMI = int(InterruptibilityState.BLOCKING_BY_SMI), int(InterruptibilityState.BLOCKING_BY_NMI)
_ENCLAVE = int(InterruptibilityState.ENCLAVE_INTERRUPTION)
_HLT, _SHUTDOWN, _SIPI = int(ActivityState.HLT), int(ActivityState.SHUTDOWN), int(ActivityState.WAIT_FOR_SIPI)
_SMM_ENTRY, _IA32E = int(VmEntry.ENTRY_TO_SMM), int(VmEntry.IA32E_MODE_GUEST)
_VIRTUAL_NMIS = int(PinBased.VIRTUAL_NMIS)

_SUPPORT = {
    _HLT: int(VmxMisc.ACTIVITY_HLT),
    _SHUTDOWN: int(VmxMisc.ACTIVITY_SHUTDOWN),
    _SIPI: int(VmxMisc.ACTIVITY_WAIT_FOR_SIPI),
}
_EVENT_EXTERNAL = EVENT_VALID | EventType.EXTERNAL_INTERRUPT << 8
_EVENT_NMI = EVENT_VALID | EventType.NMI << 8
_KIND = EVENT_VALID | 0x700
# Type and vector, as in bits 10:0 of the interruption information.
_DEBUG_EXCEPTION = EventType.HARDWARE_EXCEPTION << 8 | 1
_MACHINE_CHECK = EventType.HARDWARE_EXCEPTION << 8 | 18
_PENDING_MTF = EventType.OTHER_EVENT << 8
_WAKES_HLT = frozenset({_DEBUG_EXCEPTION, _MACHINE_CHECK, _PENDING_MTF})


def _activity_supported(c: CheckContext) -> bool:
    activity = c.read(_ACTIVITY)
    return not activity or bool(c.capabilities.misc & _SUPPORT.get(activity, 0))


def _activity_dpl(c: CheckContext) -> bool:
    return c.read(_ACTIVITY) != _HLT or not c.read(int(_F.GUEST_SS_ACCESS_RIGHTS)) & 0x60


def _activity_blocking(c: CheckContext) -> bool:
    return not c.read(_ACTIVITY) or not c.read(_BLOCKING) & (_STI | _MOV_SS)


def _activity_event(c: CheckContext) -> bool:
    activity, event = c.read(_ACTIVITY), c.read(EVENT)
    if not activity or not event & EVENT_VALID:
        return True
    kind, which = event & _KIND, event & 0x7FF
    if activity == _HLT:
        return kind in (_EVENT_EXTERNAL, _EVENT_NMI) or which in _WAKES_HLT
    return activity == _SHUTDOWN and (kind == _EVENT_NMI or which == _MACHINE_CHECK)


def _activity_smm(c: CheckContext) -> bool:
    return c.read(_ACTIVITY) != _SIPI or not c.read(ENTRY) & _SMM_ENTRY


def _sti_needs_if(c: CheckContext) -> bool:
    return not c.read(_BLOCKING) & _STI or bool(c.read(_RFLAGS) & _IF)


def _external_unblocked(c: CheckContext) -> bool:
    return c.read(EVENT) & _KIND != _EVENT_EXTERNAL or not c.read(_BLOCKING) & (_STI | _MOV_SS)


def _nmi_sti(c: CheckContext) -> bool:
    return c.read(EVENT) & _KIND != _EVENT_NMI or not c.read(_BLOCKING) & _STI


def _nmi_unblocked(c: CheckContext) -> bool:
    return c.read(EVENT) & _KIND != _EVENT_NMI or not c.read(_BLOCKING) & _MOV_SS


def _smi_outside_smm(c: CheckContext) -> bool:
    return c.in_smm or not c.read(_BLOCKING) & _SMI


def _smi_in_smm_entry(c: CheckContext) -> bool:
    return not c.read(ENTRY) & _SMM_ENTRY or bool(c.read(_BLOCKING) & _SMI)


def _virtual_nmi(c: CheckContext) -> bool:
    if not c.read(PIN) & _VIRTUAL_NMIS or c.read(EVENT) & _KIND != _EVENT_NMI:
        return True
    return not c.read(_BLOCKING) & _NMI


def _enclave(c: CheckContext) -> bool:
    blocking = c.read(_BLOCKING)
    return not blocking & _ENCLAVE or c.capabilities.sgx_supported and not blocking & _MOV_SS


_ACTIVITY_CHECKS = (
    _rule(
        "guest.activity.supported",
        _SECTION,
        "the activity state is one that IA32_VMX_MISC offers",
        (_F.GUEST_ACTIVITY_STATE,),
        _activity_supported,
    ),
    _rule(
        "guest.activity.hlt_dpl",
        _SECTION,
        "the HLT state needs DPL of SS 0",
        (_F.GUEST_ACTIVITY_STATE, _F.GUEST_SS_ACCESS_RIGHTS),
        _activity_dpl,
    ),
    _rule(
        "guest.activity.blocking",
        _SECTION,
        "blocking by STI or by MOV SS needs the active state",
        (_F.GUEST_ACTIVITY_STATE, _F.GUEST_INTERRUPTIBILITY_STATE),
        _activity_blocking,
    ),
    _rule(
        "guest.activity.event",
        _SECTION,
        "the injected event is one that the activity state does not block",
        (_F.GUEST_ACTIVITY_STATE, Field(EVENT)),
        _activity_event,
    ),
    _rule(
        "guest.activity.smm",
        _SECTION,
        "entry to SMM excludes the wait-for-SIPI state",
        (_F.GUEST_ACTIVITY_STATE, Field(ENTRY)),
        _activity_smm,
    ),
)

_INTERRUPTIBILITY_CHECKS = (
    _rule(
        "guest.interruptibility.reserved",
        _SECTION,
        "bits 31:5 of the interruptibility state are 0",
        (_F.GUEST_INTERRUPTIBILITY_STATE,),
        value_of(_F.GUEST_INTERRUPTIBILITY_STATE, lambda state: not state >> 5),
    ),
    _rule(
        "guest.interruptibility.sti_and_mov_ss",
        _SECTION,
        "events are not blocked by both STI and MOV SS",
        (_F.GUEST_INTERRUPTIBILITY_STATE,),
        value_of(_F.GUEST_INTERRUPTIBILITY_STATE, lambda state: state & 3 != 3),
    ),
    _rule(
        "guest.interruptibility.sti_if",
        _SECTION,
        "blocking by STI needs RFLAGS.IF",
        (_F.GUEST_INTERRUPTIBILITY_STATE, _F.GUEST_RFLAGS),
        _sti_needs_if,
    ),
    _rule(
        "guest.interruptibility.external_interrupt",
        _SECTION,
        "injecting an external interrupt excludes blocking by STI and by MOV SS",
        (_F.GUEST_INTERRUPTIBILITY_STATE, Field(EVENT)),
        _external_unblocked,
    ),
    # Editions before 2025 leave this one to the processor.
    _rule(
        "guest.interruptibility.nmi_sti",
        _SECTION,
        "injecting an NMI excludes blocking by STI",
        (_F.GUEST_INTERRUPTIBILITY_STATE, Field(EVENT)),
        _nmi_sti,
        qualification=int(EntryFailureQualification.NMI_INJECTION),
    ),
    _rule(
        "guest.interruptibility.nmi_mov_ss",
        _SECTION,
        "injecting an NMI excludes blocking by MOV SS",
        (_F.GUEST_INTERRUPTIBILITY_STATE, Field(EVENT)),
        _nmi_unblocked,
    ),
    _rule(
        "guest.interruptibility.smi",
        _SECTION,
        "blocking by SMI needs SMM",
        (_F.GUEST_INTERRUPTIBILITY_STATE,),
        _smi_outside_smm,
        outside=Outside.PROCESSOR,
    ),
    _rule(
        "guest.interruptibility.smm_entry",
        _SECTION,
        "entry to SMM needs blocking by SMI",
        (_F.GUEST_INTERRUPTIBILITY_STATE, Field(ENTRY)),
        _smi_in_smm_entry,
    ),
    _rule(
        "guest.interruptibility.virtual_nmi",
        _SECTION,
        "injecting an NMI with virtual NMIs excludes blocking by NMI",
        (_F.GUEST_INTERRUPTIBILITY_STATE, Field(EVENT), Field(PIN)),
        _virtual_nmi,
    ),
    _rule(
        "guest.interruptibility.enclave",
        _SECTION,
        "an enclave interruption needs SGX and no blocking by MOV SS",
        (_F.GUEST_INTERRUPTIBILITY_STATE,),
        _enclave,
    ),
)

_B0_TO_B3, _BLD, _BP, _BS, _RTM = 0xF, 1 << 11, 1 << 12, 1 << 14, 1 << 16
_BUS_LOCK_DETECT = int(DebugCtl.BUS_LOCK_DETECT)


def _pending_reserved(c: CheckContext) -> bool:
    defined = _B0_TO_B3 | _BP | _BS | _RTM
    if c.capabilities.debugctl_valid & _BUS_LOCK_DETECT:
        defined |= _BLD
    return not c.read(_PENDING) & ~defined


def _pending_single_step(c: CheckContext) -> bool:
    if not c.read(_BLOCKING) & (_STI | _MOV_SS) and c.read(_ACTIVITY) != _HLT:
        return True
    stepping = bool(c.read(_RFLAGS) & _TF) and not c.read(_DEBUGCTL) & _BTF
    return bool(c.read(_PENDING) & _BS) == stepping


def _pending_rtm(c: CheckContext) -> bool:
    pending = c.read(_PENDING)
    if not pending & _RTM:
        return True
    return c.capabilities.rtm_supported and pending == _RTM | _BP and not c.read(_BLOCKING) & _MOV_SS


_PENDING_CHECKS = (
    _rule(
        "guest.pending_debug.reserved",
        _SECTION,
        "reserved bits of the pending debug exceptions are 0",
        (_F.GUEST_PENDING_DEBUG_EXCEPTIONS,),
        _pending_reserved,
    ),
    _rule(
        "guest.pending_debug.single_step",
        _SECTION,
        "with STI or MOV SS blocking or HLT, BS is 1 exactly if RFLAGS.TF is 1 and IA32_DEBUGCTL.BTF is 0",
        (
            _F.GUEST_PENDING_DEBUG_EXCEPTIONS,
            _F.GUEST_INTERRUPTIBILITY_STATE,
            _F.GUEST_ACTIVITY_STATE,
            _F.GUEST_RFLAGS,
            _F.GUEST_IA32_DEBUGCTL,
        ),
        _pending_single_step,
    ),
    _rule(
        "guest.pending_debug.rtm",
        _SECTION,
        "bit 16 (RTM) comes with bit 12 alone, on a processor with RTM, without blocking by MOV SS",
        (_F.GUEST_PENDING_DEBUG_EXCEPTIONS, _F.GUEST_INTERRUPTIBILITY_STATE),
        _pending_rtm,
    ),
)

_link_rule = partial(_rule, qualification=int(EntryFailureQualification.VMCS_LINK_POINTER))
_LINK_ADDRESS = page_address(Field.VMCS_LINK_POINTER)
_SHADOWING = gate(ProcBased2.VMCS_SHADOWING)
_SHADOWING_SET = _SHADOWING.is_set
_REVISION = 0x7FFF_FFFF
_SHADOW_INDICATOR = 1 << 31


def _link_address(c: CheckContext) -> bool:
    return c.read(_LINK) == NO_LINK_POINTER or _LINK_ADDRESS(c)


def _link_revision(c: CheckContext) -> bool:
    link = c.read(_LINK)
    return link == NO_LINK_POINTER or c.memory_word(link, 4) & _REVISION == c.capabilities.vmcs_revision_id


def _link_shadow(c: CheckContext) -> bool:
    link = c.read(_LINK)
    if link == NO_LINK_POINTER:
        return True
    return bool(c.memory_word(link, 4) & _SHADOW_INDICATOR) == _SHADOWING_SET(c)


def _link_not_current(c: CheckContext) -> bool:
    link = c.read(_LINK)
    return link == NO_LINK_POINTER or link != c.current_vmcs or _returns_from_smm(c)


def _link_not_executive(c: CheckContext) -> bool:
    link = c.read(_LINK)
    return link == NO_LINK_POINTER or link != c.read(int(_F.EXECUTIVE_VMCS_POINTER)) or not _returns_from_smm(c)


def _returns_from_smm(c: CheckContext) -> bool:
    return c.in_smm and not c.read(ENTRY) & _SMM_ENTRY


_LINK_CHECKS = (
    _link_rule(
        "guest.link_pointer.address",
        _SECTION,
        "the VMCS link pointer is all ones, or a multiple of 4096 within the physical-address width",
        (_F.VMCS_LINK_POINTER,),
        _link_address,
    ),
    _link_rule(
        "guest.link_pointer.revision",
        _SECTION,
        "the VMCS that the link pointer names has this processor's revision identifier",
        (_F.VMCS_LINK_POINTER,),
        _link_revision,
        outside=Outside.MEMORY,
    ),
    _link_rule(
        "guest.link_pointer.shadow",
        _SECTION,
        "the VMCS that the link pointer names is a shadow VMCS exactly with VMCS shadowing",
        (_F.VMCS_LINK_POINTER, *_SHADOWING.fields),
        _link_shadow,
        outside=Outside.MEMORY,
    ),
    _link_rule(
        "guest.link_pointer.current",
        _SECTION,
        "the VMCS link pointer does not name the current VMCS, unless the entry returns from SMM",
        (_F.VMCS_LINK_POINTER, Field(ENTRY)),
        _link_not_current,
        outside=Outside.PROCESSOR,
    ),
    _link_rule(
        "guest.link_pointer.executive",
        _SECTION,
        "when the entry returns from SMM, the VMCS link pointer is not the executive-VMCS pointer",
        (_F.VMCS_LINK_POINTER, _F.EXECUTIVE_VMCS_POINTER, Field(ENTRY)),
        _link_not_executive,
        outside=Outside.PROCESSOR,
    ),
)

NON_REGISTER_CHECKS: tuple[Check, ...] = (
    *_ACTIVITY_CHECKS,
    *_INTERRUPTIBILITY_CHECKS,
    *_PENDING_CHECKS,
    *_LINK_CHECKS,
)
"""Rules of 27.3.1.5 in the manual's order."""

_pdpte_rule = partial(_rule, qualification=int(EntryFailureQualification.PDPTE))
_PDPTES = (_F.GUEST_PDPTE0, _F.GUEST_PDPTE1, _F.GUEST_PDPTE2, _F.GUEST_PDPTE3)
_PG, _PAE = int(Cr0.PG), int(Cr4.PAE)
_EPT_SET = gate(ProcBased2.ENABLE_EPT).is_set
_PDPTE_RESERVED = 0x1E6
_CR3_PDPT = 0xFFFF_FFE0


def _uses_pae_paging(c: CheckContext) -> bool:
    if c.read(ENTRY) & _IA32E or not c.read(int(_F.GUEST_CR4)) & _PAE:
        return False
    return bool(c.read(int(_F.GUEST_CR0)) & _PG)


def _pdpte_valid(c: CheckContext, entry: int) -> bool:
    return not entry & 1 or not (entry & _PDPTE_RESERVED or entry >> c.capabilities.physical_address_width)


def _pdptes_in_fields(c: CheckContext) -> bool:
    if not _uses_pae_paging(c) or not _EPT_SET(c):
        return True
    return all(_pdpte_valid(c, c.read(int(field))) for field in _PDPTES)


def _pdptes_in_memory(c: CheckContext) -> bool:
    if not _uses_pae_paging(c) or _EPT_SET(c):
        return True
    table = c.memory_word(c.read(int(_F.GUEST_CR3)) & _CR3_PDPT, 32)
    return all(_pdpte_valid(c, table >> 64 * n & (1 << 64) - 1) for n in range(4))


_PAE_INPUTS = (_F.GUEST_CR0, _F.GUEST_CR4, Field(ENTRY), Field(PROC), Field(PROC2))

PDPTE_CHECKS: tuple[Check, ...] = (
    _pdpte_rule(
        "guest.pdpte.fields",
        _PDPTE_SECTION,
        "with PAE paging and EPT, the PDPTE fields that are present have no reserved bit set",
        (*_PDPTES, *_PAE_INPUTS),
        _pdptes_in_fields,
    ),
    _pdpte_rule(
        "guest.pdpte.memory",
        _PDPTE_SECTION,
        "with PAE paging and without EPT, the PDPTEs that CR3 names have no reserved bit set where present",
        (_F.GUEST_CR3, *_PAE_INPUTS),
        _pdptes_in_memory,
        outside=Outside.MEMORY,
    ),
)
"""Rules of 27.3.1.6."""
