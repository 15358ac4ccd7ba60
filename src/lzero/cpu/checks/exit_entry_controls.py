"""Checks on VM-exit and VM-entry control fields (SDM vol. 3, 27.2.1.2 and 27.2.1.3)."""

from __future__ import annotations

from lzero.sdm.capabilities import VmxMisc
from lzero.sdm.controls import PinBased, ProcBased, ProcBased2, VmEntry, VmExit
from lzero.sdm.formats import EventType
from lzero.sdm.registers import Cr0, Cr4
from lzero.sdm.vmcs_fields import Field

from .execution_controls import control_rule, implies, reserved
from .model import Check, CheckContext, CheckGroup, Outside, Predicate
from .terms import ENTRY, EVENT, EVENT_VALID, EXIT, EXIT2, PROC, PROC2, gate

__all__ = ["ENTRY_CONTROL_CHECKS", "EXIT_CONTROL_CHECKS"]

_EXIT_SECTION = "27.2.1.2"
_ENTRY_SECTION = "27.2.1.3"
_F = Field
_MSR_ENTRY_BYTES = 16


def _msr_area(id_: str, section: str, count: Field, address: Field) -> tuple[Check, ...]:
    """An MSR area that is used is aligned, and ends within the physical-address width."""
    count_of, address_of = int(count), int(address)

    def aligned(c: CheckContext) -> bool:
        where = c.read(address_of)
        return not c.read(count_of) or not where & 0xF and where < c.capabilities.physical_address_limit

    def ends(c: CheckContext) -> bool:
        entries = c.read(count_of)
        last = c.read(address_of) + entries * _MSR_ENTRY_BYTES - 1
        return not entries or last < c.capabilities.physical_address_limit

    start_rule = f"with a count, {address.name} is a multiple of 16 within the physical-address width"
    end_rule = f"with a count, the area at {address.name} ends within the physical-address width"
    fields = (count, address)
    return (
        Check(f"{id_}.address", section, CheckGroup.CONTROLS, start_rule, fields, aligned),
        Check(f"{id_}.end", section, CheckGroup.CONTROLS, end_rule, fields, ends),
    )


EXIT_CONTROL_CHECKS: tuple[Check, ...] = (
    reserved("control.exit.reserved", Field(EXIT), lambda caps: caps.exit, section=_EXIT_SECTION),
    reserved(
        "control.exit2.reserved",
        Field(EXIT2),
        lambda caps: caps.exit2,
        activator=(EXIT, int(VmExit.ACTIVATE_SECONDARY_CONTROLS)),
        requires=(VmExit.ACTIVATE_SECONDARY_CONTROLS,),
        section=_EXIT_SECTION,
    ),
    implies(
        "control.exit.preemption_timer",
        VmExit.SAVE_VMX_PREEMPTION_TIMER_VALUE,
        PinBased.ACTIVATE_VMX_PREEMPTION_TIMER,
        section=_EXIT_SECTION,
    ),
    *_msr_area("control.exit.msr_store", _EXIT_SECTION, _F.VM_EXIT_MSR_STORE_COUNT, _F.VM_EXIT_MSR_STORE_ADDRESS),
    *_msr_area("control.exit.msr_load", _EXIT_SECTION, _F.VM_EXIT_MSR_LOAD_COUNT, _F.VM_EXIT_MSR_LOAD_ADDRESS),
)
"""Rules on VM-exit controls in the manual's order."""


_HARDWARE = int(EventType.HARDWARE_EXCEPTION)
_NMI = int(EventType.NMI)
_OTHER = int(EventType.OTHER_EVENT)
_SOFTWARE = frozenset(
    int(kind)
    for kind in (EventType.SOFTWARE_INTERRUPT, EventType.PRIVILEGED_SOFTWARE_EXCEPTION, EventType.SOFTWARE_EXCEPTION)
)
_SYSTEM_CALLS = (1, 2)
_ERROR_CODE = 1 << 11
_NESTED_EXCEPTION = 1 << 13
_EVENT_RESERVED = 0x7FFF_D000
_ERROR_CODE_VECTORS = frozenset({8, 10, 11, 12, 13, 14, 17})
"""The vectors that the rule names; #CP is not among them."""
_MTF = int(ProcBased.MONITOR_TRAP_FLAG)
_PE = int(Cr0.PE)
_FRED = int(Cr4.FRED)
_ZERO_LENGTH = int(VmxMisc.ZERO_LENGTH_INJECTION)
_UNRESTRICTED_SET = gate(ProcBased2.UNRESTRICTED_GUEST).is_set


def _offers_fred(c: CheckContext) -> bool:
    return bool(c.capabilities.cr4_fixed1 & _FRED)


def _guest_fred(c: CheckContext) -> bool:
    return bool(c.read(int(_F.GUEST_CR4)) & _FRED)


def _type(c: CheckContext) -> bool:
    kind = c.read(EVENT) >> 8 & 7
    return kind != 1 and (kind != _OTHER or bool(c.capabilities.proc.allowed1 & _MTF) or _offers_fred(c))


def _vector(c: CheckContext) -> bool:
    event = c.read(EVENT)
    kind, vector = event >> 8 & 7, event & 0xFF
    if kind == _NMI:
        return vector == 2
    if kind == _HARDWARE:
        return vector < 32
    if kind != _OTHER:
        return True
    # 0 is a pending MTF VM exit; with FRED, 1 is SYSCALL and 2 is SYSENTER.
    return bool(c.capabilities.proc.allowed1 & _MTF) if vector == 0 else vector <= 2 and _guest_fred(c)


def _error_code_valid(c: CheckContext) -> bool:
    event = c.read(EVENT)
    possible = event >> 8 & 7 == _HARDWARE and (not _UNRESTRICTED_SET(c) or bool(c.read(int(_F.GUEST_CR0)) & _PE))
    delivers = bool(event & _ERROR_CODE)
    if possible and c.capabilities.error_code_optional:
        return True
    return delivers == (possible and event & 0xFF in _ERROR_CODE_VECTORS)


def _nested_exception(c: CheckContext) -> bool:
    event = c.read(EVENT)
    return not event & _NESTED_EXCEPTION or event >> 8 & 7 == _HARDWARE and c.capabilities.nested_exception


def _event_reserved(c: CheckContext) -> bool:
    return not c.read(EVENT) & _EVENT_RESERVED


def _error_code_value(c: CheckContext) -> bool:
    return not c.read(EVENT) & _ERROR_CODE or not c.read(int(_F.VM_ENTRY_EXCEPTION_ERROR_CODE)) >> 16


def _instruction_length(c: CheckContext) -> bool:
    event = c.read(EVENT)
    kind = event >> 8 & 7
    if kind not in _SOFTWARE and (kind != _OTHER or event & 0xFF not in _SYSTEM_CALLS):
        return True
    length = c.read(int(_F.VM_ENTRY_INSTRUCTION_LENGTH))
    return length <= 15 and (length > 0 or bool(c.capabilities.misc & _ZERO_LENGTH))


def _event(id_: str, rule: str, fields: tuple[Field, ...], predicate: Predicate) -> Check:
    """A rule on event injection: it says nothing while the valid bit is 0."""

    def gated(c: CheckContext) -> bool:
        return not c.read(EVENT) & EVENT_VALID or predicate(c)

    return Check(id_, _ENTRY_SECTION, CheckGroup.CONTROLS, rule, (Field(EVENT), *fields), gated)


_SMM_ENTRY, _DUAL = int(VmEntry.ENTRY_TO_SMM), int(VmEntry.DEACTIVATE_DUAL_MONITOR_TREATMENT)


def _outside_smm(c: CheckContext) -> bool:
    return c.in_smm or not c.read(ENTRY) & (_SMM_ENTRY | _DUAL)


def _not_both_smm(c: CheckContext) -> bool:
    return c.read(ENTRY) & (_SMM_ENTRY | _DUAL) != _SMM_ENTRY | _DUAL


ENTRY_CONTROL_CHECKS: tuple[Check, ...] = (
    reserved("control.entry.reserved", Field(ENTRY), lambda caps: caps.entry, section=_ENTRY_SECTION),
    _event("control.entry.event.type", "the injected event's type is not a reserved value", (), _type),
    _event("control.entry.event.vector", "the injected event's vector fits its type", (_F.GUEST_CR4,), _vector),
    _event(
        "control.entry.event.error_code_valid",
        "an error code is delivered exactly with the exceptions that have one, in protected mode",
        (_F.GUEST_CR0, Field(PROC), Field(PROC2)),
        _error_code_valid,
    ),
    _event(
        "control.entry.event.nested_exception",
        "the nested-exception bit comes with hardware exceptions, where IA32_VMX_BASIC offers it",
        (),
        _nested_exception,
    ),
    _event(
        "control.entry.event.reserved", "bits 30:14 and 12 of the interruption information are 0", (), _event_reserved
    ),
    _event(
        "control.entry.event.error_code",
        "bits 31:16 of a delivered error code are 0",
        (_F.VM_ENTRY_EXCEPTION_ERROR_CODE,),
        _error_code_value,
    ),
    _event(
        "control.entry.event.instruction_length",
        "the instruction length of a software event is in 1 to 15, or 0 where IA32_VMX_MISC allows it",
        (_F.VM_ENTRY_INSTRUCTION_LENGTH,),
        _instruction_length,
    ),
    *_msr_area("control.entry.msr_load", _ENTRY_SECTION, _F.VM_ENTRY_MSR_LOAD_COUNT, _F.VM_ENTRY_MSR_LOAD_ADDRESS),
    Check(
        "control.entry.smm",
        _ENTRY_SECTION,
        CheckGroup.CONTROLS,
        "outside SMM, entry to SMM and deactivating the dual-monitor treatment are 0",
        (Field(ENTRY),),
        _outside_smm,
        outside=Outside.PROCESSOR,
    ),
    Check(
        "control.entry.smm_and_dual_monitor",
        _ENTRY_SECTION,
        CheckGroup.CONTROLS,
        "entry to SMM and deactivating the dual-monitor treatment are not both 1",
        (Field(ENTRY),),
        _not_both_smm,
    ),
    control_rule(
        "control.entry.rtit_ctl",
        "IA32_RTIT_CTL is not loaded while Intel PT is enabled",
        VmEntry.LOAD_IA32_RTIT_CTL,
        (),
        lambda c: not c.intel_pt_enabled,
        section=_ENTRY_SECTION,
        outside=Outside.PROCESSOR,
    ),
)
"""Rules on VM-entry controls in the manual's order."""
