"""Plain ints and small helpers that the predicates are written in.

Arithmetic on ``IntFlag`` members runs in Python and costs microseconds; the predicates are on the way of every VM
entry, so everything they mask with is a plain int here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lzero.sdm.controls import ControlFlag, PinBased, ProcBased, ProcBased2, ProcBased3, VmEntry, VmExit, VmExit2
from lzero.sdm.vmcs_fields import Field

from .model import Check, CheckContext, CheckGroup, Outside, Predicate

__all__ = ["Gate", "canonical", "fixed_bits", "gate", "page_address", "physical", "rule", "value_of"]

PIN = int(Field.PIN_BASED_VM_EXECUTION_CONTROLS)
PROC = int(Field.PRIMARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS)
PROC2 = int(Field.SECONDARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS)
PROC3 = int(Field.TERTIARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS)
EXIT = int(Field.VM_EXIT_CONTROLS)
EXIT2 = int(Field.SECONDARY_VM_EXIT_CONTROLS)
ENTRY = int(Field.VM_ENTRY_CONTROLS)
EVENT = int(Field.VM_ENTRY_INTERRUPTION_INFORMATION)

SECONDARY = int(ProcBased.ACTIVATE_SECONDARY_CONTROLS)
TERTIARY = int(ProcBased.ACTIVATE_TERTIARY_CONTROLS)
EXIT_SECONDARY = int(VmExit.ACTIVATE_SECONDARY_CONTROLS)
EVENT_VALID = 1 << 31


@dataclass(frozen=True, slots=True)
class Gate:
    """Whether a control is 1, seen through the controls that activate its word."""

    flag: ControlFlag
    is_set: Predicate
    fields: tuple[Field, ...]


def _direct(field: Field, bit: int) -> Predicate:
    encoding = int(field)

    def is_set(c: CheckContext) -> bool:
        return bool(c.read(encoding) & bit)

    return is_set


def _behind(field: Field, bit: int, primary: int, activator: int) -> Predicate:
    encoding = int(field)

    def is_set(c: CheckContext) -> bool:
        # The word is read as 0 while the primary one does not activate it (25.6.2, 25.7.1).
        return bool(c.read(primary) & activator and c.read(encoding) & bit)

    return is_set


def gate(flag: ControlFlag) -> Gate:
    """The gate of one control."""
    bit = int(flag)
    match flag:
        case PinBased():
            field = Field.PIN_BASED_VM_EXECUTION_CONTROLS
        case ProcBased():
            field = Field.PRIMARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS
        case VmExit():
            field = Field.VM_EXIT_CONTROLS
        case VmEntry():
            field = Field.VM_ENTRY_CONTROLS
        case ProcBased2():
            field = Field.SECONDARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS
            return Gate(flag, _behind(field, bit, PROC, SECONDARY), (Field(PROC), field))
        case ProcBased3():
            field = Field.TERTIARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS
            return Gate(flag, _behind(field, bit, PROC, TERTIARY), (Field(PROC), field))
        case VmExit2():
            field = Field.SECONDARY_VM_EXIT_CONTROLS
            return Gate(flag, _behind(field, bit, EXIT, EXIT_SECONDARY), (Field(EXIT), field))
        case _:
            raise ValueError(f"{flag!r} has no gate")
    return Gate(flag, _direct(field, bit), (field,))


def rule(
    group: CheckGroup,
    id_: str,
    section: str,
    text: str,
    fields: tuple[Field, ...],
    predicate: Predicate,
    *,
    when: ControlFlag | None = None,
    outside: Outside = Outside.NOTHING,
    qualification: int = 0,
) -> Check:
    """A check of a group; it says something only while the control ``when`` is 1 if one is given."""
    if when is None:
        return Check(id_, section, group, text, fields, predicate, (), outside, qualification)
    opening = gate(when)
    is_set = opening.is_set

    def gated(c: CheckContext) -> bool:
        return not is_set(c) or predicate(c)

    inputs = tuple(dict.fromkeys((*opening.fields, *fields)))
    return Check(id_, section, group, text, inputs, gated, (when,), outside, qualification)


def value_of(field: Field, test: Callable[[int], bool]) -> Predicate:
    """A rule on the value of one field alone."""
    encoding = int(field)

    def predicate(c: CheckContext) -> bool:
        return test(c.read(encoding))

    return predicate


def fixed_bits(value: int, fixed0: int, fixed1: int) -> bool:
    """A control register's value obeys its pair of fixed-bit MSRs (A.7, A.8)."""
    return value & fixed0 == fixed0 and not value & ~fixed1


def page_address(field: Field, low_bits: int = 0xFFF) -> Predicate:
    """The address in ``field`` has ``low_bits`` clear and is within the physical-address width."""
    encoding = int(field)

    def predicate(c: CheckContext) -> bool:
        address = c.read(encoding)
        return not address & low_bits and address < c.capabilities.physical_address_limit

    return predicate


def physical(field: Field) -> Predicate:
    """Bits of ``field`` beyond the processor's physical-address width are 0."""
    encoding = int(field)

    def predicate(c: CheckContext) -> bool:
        return not c.read(encoding) >> c.capabilities.physical_address_width

    return predicate


def canonical(field: Field) -> Predicate:
    """The linear address in ``field`` is canonical."""
    encoding = int(field)

    def predicate(c: CheckContext) -> bool:
        width = c.capabilities.linear_address_width
        top = c.read(encoding) >> (width - 1)
        return not top or top == (1 << (65 - width)) - 1

    return predicate
