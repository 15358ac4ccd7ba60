"""Trees and proofs as text for a person, and as JSON for a program."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from lzero.dispatch.c_declarations import reason_spelling
from lzero.dispatch.prove import Difference
from lzero.dispatch.tree import (
    Condition,
    ConditionName,
    Conditions,
    Eq,
    IndirectTable,
    Leaf,
    Less,
    Node,
    Outcome,
    OutOfLine,
    Range,
    Switch,
    Unexpected,
    evaluate,
    holds,
    tests_on_path,
)
from lzero.sdm.exit_reasons import exit_reason_name

__all__ = ["condition_text", "difference_lines", "differences_to_json", "path_lines", "tree_lines"]

UNEXPECTED = "unexpected exit"


def tree_lines(root: Node) -> Iterator[str]:
    """The tree, one test per line, what follows from it indented below; each further function is spelled out once."""
    yield from _lines(root, 0, set())


def _lines(node: Node, depth: int, shown: set[str]) -> Iterator[str]:
    indent = "  " * depth
    while True:
        match node:
            case Leaf():
                yield f"{indent}{node.handler}"
                return
            case Unexpected():
                yield f"{indent}{UNEXPECTED}"
                return
            case OutOfLine():
                yield from _call_lines(node, depth, shown)
                return
            case IndirectTable():
                yield from _table_lines(node, depth, shown)
                return
            case Switch():
                yield f"{indent}switch, in the compiler's order:"
                for case in node.cases:
                    yield from _arm(f"{indent}  {_span(case.first, case.last)}", case.then, depth + 2, shown)
                node = node.default
                yield f"{indent}  otherwise:"
                depth += 2
                indent = "  " * depth
            case Eq() | Less() | Range() | Condition():
                yield from _arm(f"{indent}if {condition_text(node)}", node.then, depth + 1, shown)
                node = node.otherwise


def _call_lines(node: OutOfLine, depth: int, shown: set[str]) -> Iterator[str]:
    known = node.function in shown
    shown.add(node.function)
    yield f"{'  ' * depth}call {node.function}, which reads the reason again" + (" (above)" if known else ":")
    if not known:
        yield from _lines(node.body, depth + 1, shown)


def _arm(head: str, node: Node, depth: int, shown: set[str]) -> Iterator[str]:
    match node:
        case Leaf():
            yield f"{head}: {node.handler}"
        case Unexpected():
            yield f"{head}: {UNEXPECTED}"
        case _:
            yield f"{head}:"
            yield from _lines(node, depth, shown)


def _table_lines(table: IndirectTable, depth: int, shown: set[str]) -> Iterator[str]:
    indent = "  " * depth
    kind = "const table" if table.const else "table"
    yield f"{indent}indirect call through a {kind}, {len(table.slots)} of {table.size} slots filled:"
    for slot in table.slots:
        target = slot.target
        name = target.handler if isinstance(target, Leaf) else target.function
        yield f"{indent}  [{reason_spelling(slot.reason)}] = {name}"
        if isinstance(target, OutOfLine) and name not in shown:
            yield from _call_lines(target, depth + 2, shown)
    for patch in table.patches:
        yield f"{indent}  overwritten at initialisation if {patch.condition.value}:"
        for slot in patch.slots:
            name = slot.target.handler if isinstance(slot.target, Leaf) else slot.target.function
            yield f"{indent}    [{reason_spelling(slot.reason)}] = {name}"


def path_lines(root: Node, reason: int) -> Iterator[str]:
    """The decisions about one reason in order and where it ends; twice if that depends on VMX being offered."""
    plain, nested = (list(_path(root, reason, held)) for held in (frozenset[ConditionName](), _NESTED))
    title = f"{reason} ({exit_reason_name(reason)})"
    if plain == nested:
        yield from [f"{title}:", *plain]
    else:
        yield from [f"{title}, not nested:", *plain, f"{title}, nested:", *nested]


_NESTED = frozenset({ConditionName.NESTED})


def _path(root: Node, reason: int, conditions: Conditions) -> Iterator[str]:
    for node in tests_on_path(root, reason, conditions):
        match node:
            case Eq() | Less() | Range() | Condition():
                yield f"  {condition_text(node)}? {'yes' if holds(node, reason, conditions) else 'no'}"
            case Switch():
                yield "  switch"
            case IndirectTable():
                yield "  indirect call through the table" if reason < node.size else "  past the end of the table"
            case OutOfLine():
                yield f"  call {node.function}, which reads the reason again"
    yield f"  {evaluate(root, reason, conditions) or UNEXPECTED}"


def condition_text(node: Eq | Less | Range | Condition) -> str:
    """A test as a person reads it."""
    match node:
        case Eq():
            return f"reason == {reason_spelling(node.reason)}"
        case Less():
            return f"reason < {reason_spelling(node.bound)}"
        case Range():
            return f"reason in {_span(node.first, node.last)}"
        case Condition():
            return node.test.value


def _span(first: int, last: int) -> str:
    return reason_spelling(first) if first == last else f"{reason_spelling(first)} ... {reason_spelling(last)}"


def _reasons(first: int, last: int) -> str:
    if first == last:
        return f"{first} ({exit_reason_name(first)})"
    return f"{first}..{last} ({exit_reason_name(first)}..{exit_reason_name(last)})"


def difference_lines(found: Sequence[Difference], left: str, right: str) -> Iterator[str]:
    """Where two strategies differ: each run of reasons once, with the conditions under which it differs so."""
    grouped: dict[tuple[int, int, Outcome, Outcome], list[frozenset[ConditionName]]] = {}
    for difference in found:
        key = (difference.first, difference.last, difference.left, difference.right)
        grouped.setdefault(key, []).append(difference.conditions)
    rows = [
        (_reasons(first, last), _when(conditions), a or UNEXPECTED, b or UNEXPECTED)
        for (first, last, a, b), conditions in sorted(grouped.items(), key=lambda item: item[0][:2])
    ]
    heads = ("exit reason", "when", left, right)
    widths = [max(len(row[column]) for row in (heads, *rows)) for column in range(4)]
    for row in (heads, *rows):
        yield "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _when(conditions: Sequence[frozenset[ConditionName]]) -> str:
    """The shortest description of some combinations of conditions: only what they have in common and others lack."""
    held = [name for name in ConditionName if all(name in combination for combination in conditions)]
    unheld = [name for name in ConditionName if not any(name in combination for combination in conditions)]
    if len(conditions) != 1 << (len(ConditionName) - len(held) - len(unheld)):
        return " or ".join("+".join(sorted(combination)) or "neither" for combination in conditions)
    return ", ".join([*(name.value for name in held), *(f"not {name.value}" for name in unheld)]) or "always"


def differences_to_json(found: Sequence[Difference]) -> list[dict[str, Any]]:
    """Differences as JSON rows; an unexpected exit is ``null``."""
    return [
        {
            "conditions": sorted(difference.conditions),
            "first": difference.first,
            "last": difference.last,
            "left": difference.left,
            "right": difference.right,
        }
        for difference in found
    ]
