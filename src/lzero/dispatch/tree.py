"""The tree that says how an exit reason finds its handler.

Every strategy, every plan and everything emitted is such a tree over the 16-bit *basic exit reason* (bits 15:0 of the
exit-reason field, Intel SDM volume 3, section 25.9.1 "Basic VM-Exit Information")::

    Leaf(handler)                             call this handler
    Unexpected()                              no handler: report an unexpected exit
    Eq(reason, then, otherwise)               reason == constant
    Less(bound, then, otherwise)              reason <  constant
    Range(first, last, then, otherwise)       first <= reason <= last
    Switch(cases, default)                    a C ``switch``: the compiler may choose any order
    IndirectTable(slots, patches, const)      one indirect call through an array of function pointers
    Condition(test, then, otherwise)          a fact known at run time beside the reason
    OutOfLine(function, body)                 a call into another function, which decides the rest

What a tree *means* is a function from (reason, conditions) to an *outcome*: a handler's name, or ``None`` for an
unexpected exit. :func:`evaluate` computes it for one reason by walking; :func:`regions` for all 65,536 at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import chain, combinations
from typing import TypeAlias

from lzero.errors import PlanError

__all__ = [
    "ALL_CONDITIONS",
    "REASON_COUNT",
    "Case",
    "Condition",
    "ConditionName",
    "Conditions",
    "Eq",
    "IndirectTable",
    "Leaf",
    "Less",
    "Node",
    "Outcome",
    "OutOfLine",
    "Patch",
    "Range",
    "Region",
    "Slot",
    "Switch",
    "Unexpected",
    "conditions_used",
    "evaluate",
    "handlers_used",
    "has_indirect_table",
    "holds",
    "out_of_line_functions",
    "regions",
    "tests_on_path",
    "validate",
    "walk",
]

REASON_COUNT = 1 << 16
"""Number of basic exit reasons: the field is 16 bits wide."""

MAX_DEPTH = 300
"""Deepest tree accepted; keeps every recursive walk far from Python's recursion limit."""

MAX_NODES = 100_000
"""Largest tree accepted; a plan for 80 reasons has a few hundred nodes."""

_C_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}")
_C_KEYWORDS = frozenset(
    "auto break case char const continue default do double else enum extern float for goto if inline int long register "
    "restrict return short signed sizeof static struct switch typedef union unsigned void volatile while".split()
)


class ConditionName(StrEnum):
    """A fact, beside the reason, on which a strategy may decide."""

    NESTED = "nested"
    """The module offers VMX to its guests (KVM's parameter ``nested``), fixed when it is loaded."""

    FAILED_ENTRY = "failed_entry"
    """Bit 31 of the exit reason: the VM entry failed (SDM volume 3, section 27.8)."""


Conditions: TypeAlias = frozenset[ConditionName]
"""The conditions that hold; all others do not."""

ALL_CONDITIONS: tuple[Conditions, ...] = tuple(
    frozenset(some)
    for some in chain.from_iterable(combinations(ConditionName, count) for count in range(len(ConditionName) + 1))
)
"""Every combination of conditions, starting with none of them."""

Outcome: TypeAlias = str | None
"""A handler's name, or ``None``: an unexpected exit."""


def _check_reason(what: str, value: int, limit: int = REASON_COUNT - 1) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise PlanError(f"{what} is {value!r}: a basic exit reason is an integer")
    if not 0 <= value <= limit:
        raise PlanError(f"{what} is {value}, outside 0..{limit}: a basic exit reason has 16 bits")


def _check_identifier(what: str, name: str) -> None:
    if not isinstance(name, str) or not _C_IDENTIFIER.fullmatch(name) or name in _C_KEYWORDS:
        raise PlanError(f"{what} {name!r} is no C identifier, so no function could have that name")


@dataclass(frozen=True, slots=True)
class Leaf:
    """Call ``handler`` with the VCPU and return what it returns."""

    handler: str

    def __post_init__(self) -> None:
        _check_identifier("handler", self.handler)


@dataclass(frozen=True, slots=True)
class Unexpected:
    """No handler: the exit is reported as unexpected."""


@dataclass(frozen=True, slots=True)
class Eq:
    """``if (reason == this.reason) then else otherwise``."""

    reason: int
    then: Node
    otherwise: Node

    def __post_init__(self) -> None:
        _check_reason("equality test", self.reason)


@dataclass(frozen=True, slots=True)
class Less:
    """``if (reason < bound) then else otherwise``; 1 <= bound <= 65535, for outside it nothing would be decided."""

    bound: int
    then: Node
    otherwise: Node

    def __post_init__(self) -> None:
        _check_reason("less-than test", self.bound)
        if self.bound == 0:
            raise PlanError("less-than test against 0: no reason is below it")


@dataclass(frozen=True, slots=True)
class Range:
    """``if (first <= reason && reason <= last) then else otherwise``."""

    first: int
    last: int
    then: Node
    otherwise: Node

    def __post_init__(self) -> None:
        _check_reason("start of range", self.first)
        _check_reason("end of range", self.last)
        if self.first > self.last:
            raise PlanError(f"range {self.first}..{self.last} is empty")


@dataclass(frozen=True, slots=True)
class Case:
    """The cases ``first ... last`` of a :class:`Switch` (one reason when both are equal)."""

    first: int
    last: int
    then: Node

    def __post_init__(self) -> None:
        _check_reason("case", self.first)
        _check_reason("case", self.last)
        if self.first > self.last:
            raise PlanError(f"case {self.first} ... {self.last} is empty")


@dataclass(frozen=True, slots=True)
class Switch:
    """A C ``switch`` on the reason. Cases are disjoint; their order says nothing about the order of tests."""

    cases: tuple[Case, ...]
    default: Node

    def __post_init__(self) -> None:
        ordered = sorted(self.cases, key=lambda case: case.first)
        for before, after in zip(ordered, ordered[1:], strict=False):
            if after.first <= before.last:
                raise PlanError(f"switch has two cases for exit reason {after.first}")


@dataclass(frozen=True, slots=True)
class Slot:
    """One filled slot of an :class:`IndirectTable`."""

    reason: int
    target: Leaf | OutOfLine

    def __post_init__(self) -> None:
        _check_reason("table slot", self.reason, 4095)
        if not isinstance(self.target, Leaf | OutOfLine):
            raise PlanError(f"table slot {self.reason} holds {type(self.target).__name__}: a slot points at a function")


@dataclass(frozen=True, slots=True)
class Patch:
    """Slots that initialisation overwrites when ``condition`` holds, as KVM's nested set-up does with VMX slots."""

    condition: ConditionName
    slots: tuple[Slot, ...]

    def __post_init__(self) -> None:
        if self.condition is not ConditionName.NESTED:
            raise PlanError(f"table patched for {self.condition}: only what is known at initialisation can patch it")


@dataclass(frozen=True, slots=True)
class IndirectTable:
    """An indirect call through an array of function pointers; empty slots and reasons past its end are unexpected.

    A table with patches cannot be ``const``: something has to write it.
    """

    slots: tuple[Slot, ...]
    patches: tuple[Patch, ...] = ()
    const: bool = False

    def __post_init__(self) -> None:
        if not self.slots:
            raise PlanError("table without slots")
        if self.const and self.patches:
            raise PlanError("a const table cannot be patched at initialisation")
        for slots in (self.slots, *(patch.slots for patch in self.patches)):
            seen: set[int] = set()
            for slot in slots:
                if slot.reason in seen:
                    raise PlanError(f"table has two entries for exit reason {slot.reason}")
                seen.add(slot.reason)
        if len({patch.condition for patch in self.patches}) != len(self.patches):
            raise PlanError("table is patched twice for one condition")

    @property
    def size(self) -> int:
        """Number of slots, filled or empty: one more than the highest reason."""
        return 1 + max(slot.reason for slots in (self.slots, *(p.slots for p in self.patches)) for slot in slots)

    def contents(self, conditions: Conditions) -> dict[int, Leaf | OutOfLine]:
        """The filled slots, by reason, once initialisation has patched them under ``conditions``."""
        filled = {slot.reason: slot.target for slot in self.slots}
        for patch in self.patches:
            if patch.condition in conditions:
                filled.update({slot.reason: slot.target for slot in patch.slots})
        return filled


@dataclass(frozen=True, slots=True)
class Condition:
    """``if (test) then else otherwise`` on a fact other than the reason."""

    test: ConditionName
    then: Node
    otherwise: Node


@dataclass(frozen=True, slots=True)
class OutOfLine:
    """A call of ``function``, elsewhere, which reads the reason a second time and decides as ``body`` does."""

    function: str
    body: Node

    def __post_init__(self) -> None:
        _check_identifier("function", self.function)


Node: TypeAlias = Leaf | Unexpected | Eq | Less | Range | Switch | IndirectTable | Condition | OutOfLine


def children(node: Node) -> tuple[Node, ...]:
    """The nodes directly below ``node``."""
    match node:
        case Leaf() | Unexpected():
            return ()
        case Eq() | Less() | Range() | Condition():
            return (node.then, node.otherwise)
        case Switch():
            return (*(case.then for case in node.cases), node.default)
        case IndirectTable():
            return tuple(slot.target for slots in (node.slots, *(p.slots for p in node.patches)) for slot in slots)
        case OutOfLine():
            return (node.body,)


def walk(root: Node) -> Iterator[Node]:
    """Every node, parents before children, each subtree once per place it stands in."""
    pending = [root]
    while pending:
        node = pending.pop()
        yield node
        pending.extend(reversed(children(node)))


def validate(root: Node) -> None:
    """Check what no single node can see; raises :class:`PlanError` that names the fault."""
    functions: dict[str, Node] = {}
    handlers: set[str] = set()
    pending: list[tuple[Node, int]] = [(root, 1)]
    count = 0
    while pending:
        node, depth = pending.pop()
        count += 1
        if depth > MAX_DEPTH:
            raise PlanError(f"tree is more than {MAX_DEPTH} nodes deep")
        if count > MAX_NODES:
            raise PlanError(f"tree has more than {MAX_NODES} nodes")
        if isinstance(node, Leaf):
            handlers.add(node.handler)
        elif isinstance(node, OutOfLine) and functions.setdefault(node.function, node.body) != node.body:
            raise PlanError(f"function {node.function} is given two different bodies")
        pending.extend((child, depth + 1) for child in children(node))
    for name in sorted(handlers & functions.keys()):
        raise PlanError(f"{name} is both a handler and a function that decides further")


def handlers_used(root: Node) -> tuple[str, ...]:
    """Names of all handlers in the tree, sorted."""
    return tuple(sorted({node.handler for node in walk(root) if isinstance(node, Leaf)}))


def conditions_used(root: Node) -> Conditions:
    """The conditions on which an outcome could depend."""
    found: set[ConditionName] = set()
    for node in walk(root):
        if isinstance(node, Condition):
            found.add(node.test)
        elif isinstance(node, IndirectTable):
            found.update(patch.condition for patch in node.patches)
    return frozenset(found)


def has_indirect_table(root: Node) -> bool:
    """Whether some path ends in an indirect call."""
    return any(isinstance(node, IndirectTable) for node in walk(root))


def out_of_line_functions(root: Node) -> dict[str, Node]:
    """The bodies of the functions the tree calls, by name, in the order of first use."""
    return {node.function: node.body for node in walk(root) if isinstance(node, OutOfLine)}


def holds(node: Eq | Less | Range | Condition, reason: int, conditions: Conditions) -> bool:
    """Whether a test holds for a reason under ``conditions``."""
    match node:
        case Eq():
            return reason == node.reason
        case Less():
            return reason < node.bound
        case Range():
            return node.first <= reason <= node.last
        case Condition():
            return node.test in conditions


def evaluate(root: Node, reason: int, conditions: Conditions = frozenset()) -> Outcome:
    """The outcome for one reason, by walking down the tree."""
    node = root
    while True:
        match node:
            case Leaf():
                return node.handler
            case Unexpected():
                return None
            case Eq() | Less() | Range() | Condition():
                node = node.then if holds(node, reason, conditions) else node.otherwise
            case Switch():
                taken = (case.then for case in node.cases if case.first <= reason <= case.last)
                node = next(taken, node.default)
            case IndirectTable():
                node = node.contents(conditions).get(reason, Unexpected())
            case OutOfLine():
                node = node.body


def tests_on_path(root: Node, reason: int, conditions: Conditions = frozenset()) -> tuple[Node, ...]:
    """The nodes that decide, in order, until the handler of ``reason`` is known (leaves left out)."""
    path: list[Node] = []
    node = root
    while not isinstance(node, Leaf | Unexpected):
        path.append(node)
        match node:
            case Eq() | Less() | Range() | Condition():
                node = node.then if holds(node, reason, conditions) else node.otherwise
            case Switch():
                node = next((case.then for case in node.cases if case.first <= reason <= case.last), node.default)
            case IndirectTable():
                node = node.contents(conditions).get(reason, Unexpected())
            case OutOfLine():
                node = node.body
    return tuple(path)


@dataclass(frozen=True, slots=True)
class Region:
    """Adjacent reasons ``first`` to ``last``, both included, that share an outcome."""

    first: int
    last: int
    outcome: Outcome


def regions(root: Node, conditions: Conditions = frozenset()) -> tuple[Region, ...]:
    """The outcome of all 65,536 reasons, as maximal regions in ascending order."""
    merged: list[Region] = []
    for first, last, outcome in _partition(root, 0, REASON_COUNT - 1, conditions):
        if merged and merged[-1].outcome == outcome:
            merged[-1] = Region(merged[-1].first, last, outcome)
        else:
            merged.append(Region(first, last, outcome))
    return tuple(merged)


def _partition(node: Node, low: int, high: int, conditions: Conditions) -> Iterator[tuple[int, int, Outcome]]:
    """Outcomes of the reasons ``low``..``high`` that reach ``node``, ascending and without gaps."""
    if low > high:
        return
    match node:
        case Leaf():
            yield low, high, node.handler
        case Unexpected():
            yield low, high, None
        case OutOfLine():
            yield from _partition(node.body, low, high, conditions)
        case Condition():
            yield from _partition(node.then if node.test in conditions else node.otherwise, low, high, conditions)
        case Less():
            yield from _partition(node.then, low, min(high, node.bound - 1), conditions)
            yield from _partition(node.otherwise, max(low, node.bound), high, conditions)
        case Eq():
            yield from _carve([(node.reason, node.reason, node.then)], node.otherwise, low, high, conditions)
        case Range():
            yield from _carve([(node.first, node.last, node.then)], node.otherwise, low, high, conditions)
        case Switch():
            cases = sorted((case.first, case.last, index) for index, case in enumerate(node.cases))
            pieces = [(first, last, node.cases[index].then) for first, last, index in cases]
            yield from _carve(pieces, node.default, low, high, conditions)
        case IndirectTable():
            filled = sorted(node.contents(conditions).items(), key=lambda item: item[0])
            yield from _carve([(r, r, target) for r, target in filled], Unexpected(), low, high, conditions)


def _carve(
    pieces: list[tuple[int, int, Node]] | list[tuple[int, int, Leaf | OutOfLine]],
    rest: Node,
    low: int,
    high: int,
    conditions: Conditions,
) -> Iterator[tuple[int, int, Outcome]]:
    """Partition of ``low``..``high``: ``pieces`` (ascending, disjoint) go their way, the gaps go to ``rest``."""
    position = low
    for first, last, node in pieces:
        if last < position or first > high:
            continue
        yield from _partition(rest, position, first - 1, conditions)
        yield from _partition(node, max(position, first), min(last, high), conditions)
        position = last + 1
    yield from _partition(rest, position, high, conditions)
