"""The strategies of September 2019 (and of today's kernels) as trees.

Each is written beside the shape of the C it stands for. ``load_strategy`` also accepts a ``PLAN.json`` made by
``lzero dispatch plan``. All of them but ``range_as_written`` mean the same: ``lzero dispatch prove A B`` shows it.

The question was how ``vmx_handle_exit()`` should reach a handler when an indirect call costs a retpoline, and what is
to become of the VMX instructions, whose table slots are overwritten when the module loads with ``nested=1``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TypeAlias

from lzero.dispatch.handlers import HANDLERS, NESTED_INSTRUCTIONS, HandlerRow
from lzero.dispatch.tree import (
    Case,
    Condition,
    ConditionName,
    Eq,
    IndirectTable,
    Leaf,
    Less,
    Node,
    OutOfLine,
    Patch,
    Range,
    Slot,
    Switch,
    Unexpected,
    has_indirect_table,
    validate,
    walk,
)
from lzero.sdm.exit_reasons import ExitReason

__all__ = [
    "FAST_REASONS",
    "FAST_REASONS_TODAY",
    "NESTED_FUNCTION",
    "STRATEGIES",
    "Provenance",
    "Strategy",
    "handler_table",
    "tests_then_table",
]

JsonValue: TypeAlias = "str | int | float | bool | None | list[JsonValue] | dict[str, JsonValue]"

_R = ExitReason

FAST_REASONS: tuple[ExitReason, ...] = (
    _R.MSR_WRITE,
    _R.PREEMPTION_TIMER,
    _R.INTERRUPT_WINDOW,
    _R.EXTERNAL_INTERRUPT,
    _R.HLT,
    _R.EPT_MISCONFIG,
)
"""What Linux 5.6 tests before it takes the table, in its order."""

FAST_REASONS_TODAY: tuple[ExitReason, ...] = (_R.MSR_WRITE, _R.MSR_WRITE_IMM, *FAST_REASONS[1:])
"""The same list in Linux 6.18, which added the immediate form of WRMSR."""

NESTED_FUNCTION = "nested_vmx_handle_vmx_instruction"
"""The one entry point of the nested module in S5 and S7; it reads the exit reason a second time."""


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a planned tree comes from, for the head of what is emitted. Unknown parts are empty, never guessed."""

    source: str = ""
    date: str = ""
    samples: int | None = None
    cpu: str = ""
    mitigation: str = ""
    expected_gain: str = ""
    model: str = ""
    details: Mapping[str, JsonValue] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Strategy:
    """A named dispatcher.

    Attributes
    ----------
    name:
        What the command line calls it.
    label:
        ``S1``..``S7`` for the strategies of the thread, else empty.
    summary:
        One line: what it does and who proposed it.
    root:
        The tree.
    keeps_order:
        The order of its tests is part of the strategy: emitted C holds barriers against the compiler's own order.
    provenance:
        Set for planned trees.
    """

    name: str
    label: str
    summary: str
    root: Node
    keeps_order: bool = True
    provenance: Provenance | None = None

    def __post_init__(self) -> None:
        validate(self.root)

    @property
    def order_matters(self) -> bool:
        """Whether it has tests whose order is part of it."""
        return self.keeps_order and any(isinstance(node, Eq | Less | Range) for node in walk(self.root))

    @property
    def promises_no_indirect_branch(self) -> bool:
        """Whether code emitted from it must hold no indirect branch at all."""
        return not has_indirect_table(self.root)


def _inner_switch() -> Node:
    """What the nested module does with a VMX instruction: the real handler if VMX is offered, else #UD."""
    cases = tuple(
        Case(int(row.reason), int(row.reason), Leaf(row.nested_handler))
        for row in NESTED_INSTRUCTIONS
        if row.nested_handler is not None
    )
    refuse = Leaf("handle_vmx_instruction")
    return Condition(ConditionName.NESTED, Switch(cases, refuse), refuse)


def _nested_call() -> OutOfLine:
    return OutOfLine(NESTED_FUNCTION, _inner_switch())


def handler_table(
    *, patched: bool = True, const: bool = False, nested_target: OutOfLine | None = None
) -> IndirectTable:
    """KVM's handler table.

    Parameters
    ----------
    patched:
        Initialisation overwrites the VMX slots when nested virtualisation is enabled.
    const:
        The array is read-only.
    nested_target:
        What the VMX slots hold instead of their own handler.
    """
    slots = tuple(
        Slot(int(row.reason), nested_target if nested_target is not None and row.nested_handler else Leaf(row.handler))
        for row in HANDLERS.values()
    )
    overwritten = tuple(
        Slot(int(row.reason), Leaf(row.nested_handler)) for row in NESTED_INSTRUCTIONS if row.nested_handler
    )
    patches = (Patch(ConditionName.NESTED, overwritten),) if patched else ()
    return IndirectTable(slots, patches, const)


def tests_then_table(reasons: Iterable[int], table: Node | None = None) -> Node:
    """Equality tests of ``reasons`` in the given order, then the indirect table.

    A VMX instruction among the reasons is tested with its condition, for the table's slot depends on it.
    """
    node: Node = handler_table() if table is None else table
    for reason in reversed(list(reasons)):
        node = Eq(int(reason), _target(HANDLERS[int(reason)]), node)
    return node


def _target(row: HandlerRow) -> Node:
    plain = Leaf(row.handler)
    if row.nested_handler is None:
        return plain
    return Condition(ConditionName.NESTED, Leaf(row.nested_handler), plain)


def _switch(
    target: Callable[[HandlerRow], Node], rows: Iterable[HandlerRow] | None = None, default: Node | None = None
) -> Switch:
    chosen = HANDLERS.values() if rows is None else rows
    cases = tuple(Case(int(row.reason), int(row.reason), target(row)) for row in chosen)
    return Switch(cases, Unexpected() if default is None else default)


def _table() -> Strategy:
    """``return kvm_vmx_exit_handlers[reason](vcpu);``"""
    return Strategy(
        "table", "S1", "an indirect call through the writable handler table: KVM before 5.6", handler_table()
    )


def _chain() -> Strategy:
    """``if (reason == MSR_WRITE) return ...; else if (reason == PREEMPTION_TIMER) return ...;``, then the table."""
    summary = "a prioritised chain of tests for six frequent reasons, then the table: A. Arcangeli; landed in 5.6"
    return Strategy("chain", "S2", summary, tests_then_table(FAST_REASONS))


def _chain_today() -> Strategy:
    summary = "S2 as Linux 6.18 has it, with the immediate form of WRMSR tested second"
    return Strategy("chain_today", "S2", summary, tests_then_table(FAST_REASONS_TODAY))


def _small_switch() -> Strategy:
    """``switch (reason) { case MSR_WRITE: return ...; default: return kvm_vmx_exit_handlers[reason](vcpu); }``"""
    summary = "the reasons of S2 in a small switch, giving up their priority: A. Arcangeli"
    fast = [HANDLERS[int(reason)] for reason in FAST_REASONS]
    return Strategy("small_switch", "S3", summary, _switch(_target, fast, handler_table()), keeps_order=False)


def _full_switch() -> Strategy:
    """``switch (reason)`` over every reason.

    A switch cannot be overwritten when ``nested=1``, so there are two of them and one well-predicted test chooses.
    """
    with_nested = _switch(lambda row: Leaf(row.nested_handler or row.handler))
    without = _switch(lambda row: Leaf(row.handler))
    root = Condition(ConditionName.NESTED, with_nested, without)
    summary = "the whole table as one switch, one instance per value of `nested`: V. Kuznetsov"
    return Strategy("switch", "S4", summary, root, keeps_order=False)


def _const_table_two_parse() -> Strategy:
    """``static int (*const handlers[])(...) = { [VMCLEAR] = nested_vmx_handle_vmx_instruction, ... };``"""
    summary = "a const table whose VMX slots share one function that parses the reason again: S. Christopherson"
    table = handler_table(patched=False, const=True, nested_target=_nested_call())
    return Strategy("const_table_two_parse", "S5", summary, table)


def _switch_if_nested() -> Strategy:
    """``case VMCLEAR: if (nested) return handle_vmclear(vcpu); else return handle_vmx_instruction(vcpu);``"""
    summary = "the full switch with `if (nested)` in the case of each VMX instruction: A. Arcangeli"
    return Strategy("switch_if_nested", "S6", summary, _switch(_target), keeps_order=False)


def _plain_rows() -> list[HandlerRow]:
    return [row for row in HANDLERS.values() if row.nested_handler is None]


_OUTSIDE_RANGE = (_R.INVEPT, _R.INVVPID, _R.VMFUNC)


def _range() -> Strategy:
    """``case VMCLEAR ... VMON: case INVEPT: case INVVPID: case VMFUNC: return nested_vmx_handle_...(vcpu);``"""
    call = _nested_call()
    plain = _switch(lambda row: Leaf(row.handler), _plain_rows())
    ranges = (
        Case(int(_R.VMCLEAR), int(_R.VMON), call),
        *(Case(int(reason), int(reason), call) for reason in _OUTSIDE_RANGE),
    )
    summary = "every VMX instruction by range into one function of the nested module: S. Christopherson, corrected"
    return Strategy("range", "S7", summary, Switch((*ranges, *plain.cases), plain.default), keeps_order=False)


def _range_tests() -> Strategy:
    """``if (reason >= VMCLEAR && reason <= VMON) return nested_vmx_handle_...(vcpu); ... switch (reason)``"""
    node: Node = _switch(lambda row: Leaf(row.handler), _plain_rows())
    for reason in reversed(_OUTSIDE_RANGE):
        node = Eq(int(reason), _nested_call(), node)
    root = Range(int(_R.VMCLEAR), int(_R.VMON), _nested_call(), node)
    return Strategy("range_tests", "S7", "S7 with the range as a comparison in front of the switch", root)


def _range_as_written() -> Strategy:
    """``case VMCALL ... VMON: return handle_vmx_instruction(vcpu);``

    VMCALL lies inside and has a handler of its own; INVEPT, INVVPID and VMFUNC lie outside and have no case any more.
    """
    plain = _switch(lambda row: Leaf(row.handler), [row for row in _plain_rows() if row.reason != _R.VMCALL])
    cases = (Case(int(_R.VMCALL), int(_R.VMON), _nested_call()), *plain.cases)
    summary = "S7 with the range as it was written in the thread: WRONG, kept to show what the proof finds"
    return Strategy("range_as_written", "S7", summary, Switch(cases, plain.default), keeps_order=False)


STRATEGIES: Mapping[str, Strategy] = MappingProxyType(
    {
        strategy.name: strategy
        for strategy in (
            _table(),
            _chain(),
            _chain_today(),
            _small_switch(),
            _full_switch(),
            _const_table_two_parse(),
            _switch_if_nested(),
            _range(),
            _range_tests(),
            _range_as_written(),
        )
    }
)
"""Every strategy by name."""
