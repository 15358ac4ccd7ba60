"""Compile what ``emit`` writes and hold the machine code to the strategy's promises.

Checked: it compiles under the kernel's flags with all warnings as errors; the tests are made in the tree's order; every
reason reaches the tree's handler; and a strategy without a table has no indirect branch.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from lzero.dispatch.describe import condition_text
from lzero.dispatch.emit_c import Style, checkable, checked_symbol, emit_c
from lzero.dispatch.machine_code import (
    TABLE,
    End,
    IndirectBranch,
    Recovered,
    Split,
    UnknownShape,
    indirect_branches,
    recover,
)
from lzero.dispatch.object_code import ObjectCode
from lzero.dispatch.strategies import Strategy
from lzero.dispatch.toolchain import Compiler, compile_object, kernel_flags, retpoline_flags
from lzero.dispatch.tree import (
    ALL_CONDITIONS,
    REASON_COUNT,
    Condition,
    Conditions,
    Eq,
    IndirectTable,
    Leaf,
    Less,
    Node,
    OutOfLine,
    Range,
    Switch,
    Unexpected,
    conditions_used,
    out_of_line_functions,
)
from lzero.errors import ToolError

if TYPE_CHECKING:
    from lzero.dispatch.machine_code import Mask

__all__ = ["Verification", "order_problems", "verify_c"]


@dataclass(frozen=True, slots=True)
class Verification:
    """What the machine code of one emitted text turned out to be."""

    compiler: str
    style: Style
    text_bytes: int
    """Size of the dispatcher and the functions it calls to decide further."""
    problems: tuple[str, ...]
    """Broken promises; empty when all hold."""
    indirect: tuple[IndirectBranch, ...]
    disassembly: str

    @property
    def kept(self) -> bool:
        """Whether every promise holds."""
        return not self.problems

    def summary(self, strategy: Strategy) -> str:
        """One line: compiler, size, and the promises that hold."""
        order = "order of tests kept, " if strategy.order_matters else ""
        thunks = len(self.indirect)
        branches = "no indirect branch" if not thunks else f"{thunks} retpoline{'s' if thunks > 1 else ''}"
        return f"{self.style} C by {self.compiler}: no warnings, {order}{branches}, {self.text_bytes} bytes"


def verify_c(strategy: Strategy, compiler: Compiler, style: Style) -> Verification:
    """Compile a strategy as a retpoline kernel would and check the code.

    Raises
    ------
    ToolError
        The compiler refused the text.
    """
    text = checkable(strategy, style, emit_c(strategy, style))
    flags = (*kernel_flags(compiler), *retpoline_flags(compiler))
    functions = {checked_symbol(style): strategy.root, **out_of_line_functions(strategy.root)}
    with tempfile.TemporaryDirectory(prefix="lzero-verify-") as directory:
        output = Path(directory) / "dispatch.o"
        # First without retpolines: in kernel style that is other text, and it must be free of warnings too.
        compile_object(compiler, text, kernel_flags(compiler), output)
        compile_object(compiler, text, flags, output)
        code = ObjectCode(output)
    problems: list[str] = []
    indirect: list[IndirectBranch] = []
    for name, body in functions.items():
        indirect += indirect_branches(code, name)
        takes_reason = name == checked_symbol(style)
        problems += _check_function(strategy, code, name, body, takes_reason)
    for branch in indirect:
        where = f"{branch.function}+{branch.offset:#x}: {branch.text}"
        if not branch.thunk:
            problems.append(f"an indirect branch without a retpoline at {where}")
        elif strategy.promises_no_indirect_branch:
            problems.append(f"an indirect branch that the strategy promises not to have at {where}")
    size = sum(code.function(name).size for name in functions)
    listing = "\n\n".join(code.disassembly(name) for name in functions)
    # The same fault shows under several conditions; once is enough for a reader.
    return Verification(compiler.version, style, size, tuple(dict.fromkeys(problems)), tuple(indirect), listing)


def _check_function(strategy: Strategy, code: ObjectCode, name: str, body: Node, takes_reason: bool) -> Iterator[str]:
    import numpy as np

    used = conditions_used(strategy.root)
    for conditions in ALL_CONDITIONS:
        if not conditions <= used:
            continue
        try:
            found = recover(code, name, conditions, takes_reason=takes_reason)
        except UnknownShape as shape:
            yield f"{name}: the code could not be followed: {shape}"
            return
        everything = np.ones(REASON_COUNT, dtype=np.bool_)
        checker = _Checker(conditions, ordered=strategy.keeps_order)
        yield from (f"{name}: {problem}" for problem in checker.compare(body, found, everything))


def order_problems(root: Node, found: Recovered, conditions: Conditions) -> list[str]:
    """Where recovered code departs from a tree's order or outcomes; empty when it does not."""
    import numpy as np

    checker = _Checker(conditions, ordered=True)
    return list(checker.compare(root, found, np.ones(REASON_COUNT, dtype=np.bool_)))


@dataclass
class _Checker:
    """Walks a tree and recovered code side by side; ``mask`` holds the reasons that reach the place."""

    conditions: Conditions
    ordered: bool

    def compare(self, node: Node, found: Recovered, mask: Mask) -> Iterator[str]:
        match node:
            case Condition():
                yield from self.compare(self.arm(node), found, mask)
            case Leaf() | Unexpected() | OutOfLine():
                yield from self.leaf(_name(node), found, mask)
            case Switch():
                yield from self.outcomes(node, found, mask)
            case Eq() | Less() | Range() if not self.ordered:
                yield from self.outcomes(node, found, mask)
            case Eq() | Less() | Range():
                yield from self.test(node, found, mask)
            case IndirectTable():
                # Its test is the bounds check; what passes it goes through the slot.
                yield from self.outcomes(node, found, mask)

    def arm(self, node: Condition) -> Node:
        return node.then if node.test in self.conditions else node.otherwise

    def test(self, node: Eq | Less | Range, found: Recovered, mask: Mask) -> Iterator[str]:
        yes = mask & _holds(node)
        no = mask & ~yes
        if not no.any() or not yes.any():
            # Decided by earlier tests; the compiler, from whom that is hidden, may test again or not.
            node_next = node.then if yes.any() else node.otherwise
            yield from self.compare(node_next, found, mask)
            return
        if isinstance(found, Split) and (found.taken == yes).all():
            yield from self.compare(node.then, found.if_taken, yes)
            yield from self.compare(node.otherwise, found.if_fallen, no)
        elif isinstance(found, Split) and (found.fallen == yes).all():
            yield from self.compare(node.then, found.if_fallen, yes)
            yield from self.compare(node.otherwise, found.if_taken, no)
        elif _without_needless(node.then) == _without_needless(node.otherwise):
            # Compilers merge equal code, whatever is hidden from them; such a test decides nothing.
            yield from self.compare(node.then, found, mask)
        elif isinstance(found, End):
            decided = found.target or "unexpected"
            yield f"the tree tests {condition_text(node)} where the code has already decided for {decided}"
        else:
            yield f"the tree tests {condition_text(node)} where the code tests something else: {found.line}"

    def leaf(self, name: str | None, found: Recovered, mask: Mask) -> Iterator[str]:
        if isinstance(found, End):
            if found.target != name:
                yield f"exit reason {_first(mask)} reaches {found.target or 'unexpected'}, not {name or 'unexpected'}"
        else:
            yield f"exit reason {_first(mask)} is tested further than the tree does: {found.line}"

    def outcomes(self, node: Node, found: Recovered, mask: Mask) -> Iterator[str]:
        """The order is the compiler's business here; where each reason ends is not."""
        import numpy as np

        labels: dict[str | None, int] = {}

        def number(target: str | None) -> int:
            return labels.setdefault(target, len(labels))

        expected, known, actual = (np.zeros(REASON_COUNT, dtype=np.int32) for _ in range(3))
        for target, slot, reasons in self.ends_of_tree(node, mask):
            expected[reasons] = number(target)
            known[reasons] = number(slot)
        for target, reasons in _ends_of_code(found, mask):
            actual[reasons] = number(target)
        wrong = np.flatnonzero(mask & (expected != actual) & (known != actual))
        if wrong.size:
            names = {value: target or "unexpected" for target, value in labels.items()}
            reason = int(wrong[0])
            yield f"exit reason {reason} reaches {names[int(actual[reason])]}, not {names[int(expected[reason])]}"

    def ends_of_tree(self, node: Node, mask: Mask) -> Iterator[tuple[str | None, str | None, Mask]]:
        """Where the reasons of ``mask`` end, as far as this function decides it, twice.

        The two differ in a table: a compiler that knows what a slot holds may go there without the slot.
        """
        match node:
            case Leaf() | Unexpected() | OutOfLine():
                yield _name(node), _name(node), mask
            case Condition():
                yield from self.ends_of_tree(self.arm(node), mask)
            case IndirectTable():
                inside = _between(0, node.size - 1)
                yield None, None, mask & ~inside
                yield TABLE, None, mask & inside
                for reason, target in node.contents(self.conditions).items():
                    yield TABLE, _name(target), mask & _between(reason, reason)
            case Switch():
                rest = mask
                for case in node.cases:
                    reasons = _between(case.first, case.last)
                    yield from self.ends_of_tree(case.then, mask & reasons)
                    rest = rest & ~reasons
                yield from self.ends_of_tree(node.default, rest)
            case Eq() | Less() | Range():
                holds = _holds(node)
                yield from self.ends_of_tree(node.then, mask & holds)
                yield from self.ends_of_tree(node.otherwise, mask & ~holds)


def _without_needless(node: Node) -> Node:
    """The tree without the tests whose two arms are the same."""
    match node:
        case Eq() | Less() | Range() | Condition():
            then, otherwise = _without_needless(node.then), _without_needless(node.otherwise)
            return then if then == otherwise else replace(node, then=then, otherwise=otherwise)
        case Switch():
            cases = tuple(replace(case, then=_without_needless(case.then)) for case in node.cases)
            default = _without_needless(node.default)
            kept = tuple(case for case in cases if case.then != default)
            return replace(node, cases=kept, default=default) if kept else default
        case OutOfLine():
            return replace(node, body=_without_needless(node.body))
        case _:
            return node


def _name(node: Leaf | Unexpected | OutOfLine) -> str | None:
    match node:
        case Leaf():
            return node.handler
        case OutOfLine():
            return node.function
        case Unexpected():
            return None


def _ends_of_code(found: Recovered, mask: Mask) -> Iterator[tuple[str | None, Mask]]:
    if isinstance(found, End):
        yield found.target, mask
    else:
        yield from _ends_of_code(found.if_taken, mask & found.taken)
        yield from _ends_of_code(found.if_fallen, mask & found.fallen)


def _between(first: int, last: int) -> Mask:
    import numpy as np

    mask = np.zeros(REASON_COUNT, dtype=np.bool_)
    mask[first : last + 1] = True
    return mask


def _holds(node: Eq | Less | Range) -> Mask:
    match node:
        case Eq():
            return _between(node.reason, node.reason)
        case Less():
            return _between(0, node.bound - 1)
        case Range():
            return _between(node.first, node.last)


def _first(mask: Mask) -> int:
    import numpy as np

    return int(np.flatnonzero(mask)[0])


def require_kept(strategy: Strategy, results: list[Verification]) -> None:
    """Raise :class:`ToolError` with the first broken promise, if any."""
    for result in results:
        if not result.kept:
            raise ToolError(f"{strategy.name} compiled by {result.compiler}: {result.problems[0]}")
