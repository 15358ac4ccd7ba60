"""What a VM-entry check is, what it reads, and what its failure says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum

from lzero.errors import ConsistencyError
from lzero.sdm.capabilities import VmxCapabilities
from lzero.sdm.controls import ControlFlag
from lzero.sdm.exit_reasons import FAILED_VM_ENTRY, ExitReason
from lzero.sdm.vm_instruction_errors import VmInstructionError
from lzero.sdm.vmcs_fields import Field

__all__ = ["Check", "CheckContext", "CheckGroup", "Failure", "Outside", "Predicate"]

_VMCS_ABSENT = (1 << 64) - 1


class Outside(Enum):
    """What a rule depends on besides VMCS fields and capabilities."""

    NOTHING = "nothing"
    PROCESSOR = "the processor's state"
    MEMORY = "memory"


class CheckGroup(Enum):
    """Groups in the manual's order; the group decides how an entry fails (27.2, 27.3, 27.8)."""

    CONTROLS = "VM-execution, VM-exit and VM-entry controls"
    HOST_STATE = "host-state area"
    GUEST_STATE = "guest-state area"


@dataclass(slots=True)
class CheckContext:
    """What a check may look at. One per virtual processor, kept from entry to entry.

    Attributes
    ----------
    read:
        Value of a VMCS field by its full-access encoding, as an unsigned int of the field's width. Must answer for
        every field of :class:`~lzero.sdm.vmcs_fields.Field` (0 for one that does not exist) and must not raise.
    capabilities:
        What the processor that runs the checks offers.
    memory:
        ``memory(address, length)`` reads physical memory; what is not backed reads as ``0xff`` (or comes back short).
    ia32e_mode:
        IA32_EFER.LMA of the logical processor at the time of VM entry.
    current_vmcs:
        Physical address of the VMCS being entered, for the link pointer; all ones if it has none.
    in_smm:
        The logical processor is in system-management mode.
    intel_pt_enabled:
        IA32_RTIT_CTL.TraceEn is 1 at the time of VM entry.
    """

    read: Callable[[int], int]
    capabilities: VmxCapabilities
    memory: Callable[[int, int], bytes]
    ia32e_mode: bool = True
    current_vmcs: int = _VMCS_ABSENT
    in_smm: bool = False
    intel_pt_enabled: bool = False

    def memory_word(self, address: int, length: int) -> int:
        """Little-endian number at a physical address; bytes that are not backed are ``0xff``."""
        return int.from_bytes(self.memory(address, length).ljust(length, b"\xff"), "little")


Predicate = Callable[[CheckContext], bool]
"""True when the rule holds."""


@dataclass(frozen=True, slots=True)
class Check:
    """One rule of the manual.

    ``fields`` are all VMCS fields that the predicate may read: a rule need not be evaluated again while they, and what
    ``outside`` names, are unchanged.
    ``requires`` are controls without which the rule says nothing: a processor that does not allow one of them never
    needs the rule. ``qualification`` is the exit qualification of a failed guest-state rule (27.8).
    """

    id: str
    section: str
    group: CheckGroup
    rule: str
    fields: tuple[Field, ...]
    predicate: Predicate
    requires: tuple[ControlFlag, ...] = ()
    outside: Outside = Outside.NOTHING
    qualification: int = 0

    def describe(self, context: CheckContext) -> str:
        """The rule and the values of its fields, for people."""
        values = " ".join(f"{field.name}={context.read(int(field)):#x}" for field in self.fields)
        return f"{self.rule} (SDM {self.section}): {values}"


@dataclass(frozen=True, slots=True)
class Failure:
    """The first rule that a VM entry broke, with the values that broke it."""

    check: Check
    values: Mapping[Field, int]

    @property
    def vm_instruction_error(self) -> int | None:
        """Error number for VMfailValid; None when the failure is a VM exit instead."""
        match self.check.group:
            case CheckGroup.CONTROLS:
                return int(VmInstructionError.ENTRY_INVALID_CONTROL_FIELDS)
            case CheckGroup.HOST_STATE:
                return int(VmInstructionError.ENTRY_INVALID_HOST_STATE_FIELDS)
            case CheckGroup.GUEST_STATE:
                return None

    @property
    def exit_reason(self) -> int | None:
        """Whole exit-reason field (bit 31 set) when the failure is a VM exit; None for VMfail."""
        return ExitReason.INVALID_STATE | FAILED_VM_ENTRY if self.check.group is CheckGroup.GUEST_STATE else None

    @property
    def exit_qualification(self) -> int:
        """Exit qualification that goes with :attr:`exit_reason`."""
        return self.check.qualification

    def error(self) -> ConsistencyError:
        """The failure as lzero's error, for an entry that must not fail (L0's own)."""
        return ConsistencyError(self.check.id, self.text())

    def text(self) -> str:
        """The rule in words, its section and the values."""
        values = " ".join(f"{field.name}={value:#x}" for field, value in self.values.items())
        return f"{self.check.rule} (SDM {self.check.section}): {values}"

    def __str__(self) -> str:
        return f"{self.check.id}: {self.text()}"
