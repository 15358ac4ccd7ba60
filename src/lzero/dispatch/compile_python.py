"""A tree as one Python function, for the machine's own run loop.

The function has the shape of the tree (equality tests stay tests, a table stays an indexed call), so that ``lzero run
--dispatch=NAME`` runs what the strategy says. Handlers, tables and constants are bound as closure variables: no look-up
by name per exit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from lzero.dispatch.strategies import Strategy
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
    Range,
    Switch,
    Unexpected,
    handlers_used,
)
from lzero.errors import PlanError, UsageError

__all__ = ["compile_python", "python_source"]

V = TypeVar("V")
R = TypeVar("R")

_INDENT = "    "

_MAX_INDENT = 60
"""Python refuses more than 100 levels of indentation; deeper subtrees become functions of their own."""


class _Writer:
    """Collects the source of ``make(...)``: inner functions and tables first, the dispatcher last."""

    def __init__(self, fixed: Mapping[ConditionName, bool]) -> None:
        self.fixed = fixed
        self.preamble: list[str] = []
        self.functions: dict[str, Node] = {}
        self.count = 0

    def fresh(self, prefix: str) -> str:
        self.count += 1
        return f"{prefix}_{self.count}"

    def define(self, name: str, node: Node) -> None:
        """Add a function ``name(vcpu, reason)`` that decides as ``node`` does."""
        body = self.body(node, 1)
        self.preamble += [f"def {name}(vcpu, reason):", *body]

    def function(self, node: OutOfLine) -> str:
        if node.function not in self.functions:
            self.functions[node.function] = node.body
            self.define(node.function, node.body)
        return node.function

    def body(self, node: Node, depth: int) -> list[str]:
        """Statements that always return; ``otherwise`` arms follow at the same depth, as an early return permits."""
        lines: list[str] = []
        while True:
            indent = _INDENT * depth
            match node:
                case Leaf():
                    return [*lines, f"{indent}return {node.handler}(vcpu)"]
                case Unexpected():
                    return [*lines, f"{indent}return unexpected(vcpu, reason)"]
                case OutOfLine():
                    return [*lines, f"{indent}return {self.function(node)}(vcpu, reason)"]
                case IndirectTable():
                    return [*lines, *self.table(node, indent)]
                case Switch():
                    return [*lines, *self.switch(node, depth)]
                case Condition() if node.test in self.fixed:
                    node = node.then if self.fixed[node.test] else node.otherwise
                case Eq() | Less() | Range() | Condition():
                    lines.append(f"{indent}if {_test(node)}:")
                    lines += self.arm(node.then, depth + 1)
                    node = node.otherwise

    def arm(self, node: Node, depth: int) -> list[str]:
        if depth < _MAX_INDENT:
            return self.body(node, depth)
        name = self.fresh("deeper")
        self.define(name, node)
        return [f"{_INDENT * depth}return {name}(vcpu, reason)"]

    def table(self, node: IndirectTable, indent: str) -> list[str]:
        """An indexed call. Which patches apply is known now when the condition is fixed, else asked at each call."""
        held = frozenset(name for name, value in self.fixed.items() if value)
        undecided = [patch.condition for patch in node.patches if patch.condition not in self.fixed]
        if not undecided:
            return self.call_slot(self.table_constant(node, held), node.size, indent)
        name = self.fresh("table")
        return [f"{indent}{name} = {self.choice(node, held, undecided)}", *self.call_slot(name, node.size, indent)]

    def choice(self, node: IndirectTable, held: frozenset[ConditionName], undecided: list[ConditionName]) -> str:
        """An expression whose value is the table as patched under the conditions of the moment."""
        if not undecided:
            return self.table_constant(node, held)
        first, *rest = undecided
        patched, plain = self.choice(node, held | {first}, rest), self.choice(node, held, rest)
        return f"({patched} if {first.value}(vcpu) else {plain})"

    def call_slot(self, name: str, size: int, indent: str) -> list[str]:
        inner = indent + _INDENT
        return [
            f"{indent}if 0 <= reason < {size}:",
            f"{inner}handler = {name}[reason]",
            f"{inner}if handler is not None:",
            f"{inner}{_INDENT}return handler(vcpu)",
            f"{indent}return unexpected(vcpu, reason)",
        ]

    def table_constant(self, node: IndirectTable, held: frozenset[ConditionName]) -> str:
        filled = node.contents(held)
        entries = []
        for reason in range(node.size):
            target = filled.get(reason)
            if target is None:
                entries.append("None")
            elif isinstance(target, Leaf):
                entries.append(target.handler)
            else:
                # A slot is called with the VCPU alone; the second parse needs the reason, which C reads from the VCPU.
                entries.append(f"bind({self.function(target)}, {reason})")
        name = self.fresh("slots")
        self.preamble.append(f"{name} = ({', '.join(entries)},)")
        return name

    def switch(self, node: Switch, depth: int) -> list[str]:
        """Single reasons that lead to handlers become a dict look-up, Python's nearest thing; the rest become tests."""
        indent = _INDENT * depth
        direct: dict[int, str] = {}
        rest: list[Case] = []
        for case in node.cases:
            if case.first == case.last and isinstance(case.then, Leaf):
                direct[case.first] = case.then.handler
            else:
                rest.append(case)
        lines: list[str] = []
        if direct:
            name = self.fresh("cases")
            entries = ", ".join(f"{reason}: {handler}" for reason, handler in sorted(direct.items()))
            self.preamble.append(f"{name} = {{{entries}}}.get")
            lines += [
                f"{indent}handler = {name}(reason)",
                f"{indent}if handler is not None:",
                f"{indent}{_INDENT}return handler(vcpu)",
            ]
        for case in rest:
            test = f"reason == {case.first}" if case.first == case.last else f"{case.first} <= reason <= {case.last}"
            lines += [f"{indent}if {test}:", *self.arm(case.then, depth + 1)]
        return [*lines, *self.arm(node.default, depth)]


def _test(node: Eq | Less | Range | Condition) -> str:
    match node:
        case Eq():
            return f"reason == {node.reason}"
        case Less():
            return f"reason < {node.bound}"
        case Range():
            return f"{node.first} <= reason <= {node.last}"
        case Condition():
            return f"{node.test.value}(vcpu)"


def _bind(function: Callable[[V, int], R], reason: int) -> Callable[[V], R]:
    def slot(vcpu: V) -> R:
        return function(vcpu, reason)

    return slot


def _check_names(root: Node) -> None:
    """Handler names become Python variables beside the generator's own."""
    own = {"vcpu", "reason", "handler", "unexpected", "bind", "make", "dispatch", *ConditionName}
    for name in handlers_used(root):
        if name in own or name.startswith(("table_", "slots_", "cases_", "deeper_")) or not name.isidentifier():
            raise PlanError(f"handler name {name!r} collides with a name of the generated function: rename the handler")


def python_source(strategy: Strategy | Node, *, nested: bool | None = None, failed_entry: bool | None = None) -> str:
    """The source of ``make(...)``, whose result is the dispatcher; for reading, and for :func:`compile_python`.

    A condition given as ``None`` is asked at each exit instead of being fixed.
    """
    root = strategy.root if isinstance(strategy, Strategy) else strategy
    _check_names(root)
    given = {ConditionName.NESTED: nested, ConditionName.FAILED_ENTRY: failed_entry}
    writer = _Writer({name: value for name, value in given.items() if value is not None})
    writer.define("dispatch", root)
    parameters = ", ".join([*handlers_used(root), "unexpected", "bind", *ConditionName])
    body = "\n".join(_INDENT + line for line in writer.preamble)
    return f"def make({parameters}):\n{body}\n{_INDENT}return dispatch\n"


def compile_python(
    strategy: Strategy | Node,
    handlers: Mapping[str, Callable[[V], R]],
    *,
    unexpected: Callable[[V, int], R],
    nested: bool | Callable[[V], bool] = False,
    failed_entry: bool | Callable[[V], bool] = False,
) -> Callable[[V, int], R]:
    """Compile a strategy into ``dispatch(vcpu, basic_exit_reason)``, which calls the handler and returns its result.

    Parameters
    ----------
    strategy:
        The strategy, or its tree.
    handlers:
        Handlers by the names of :mod:`lzero.dispatch.handlers`. Names the strategy does not use are ignored.
    unexpected:
        Called with the VCPU and the reason where the strategy has no handler.
    nested, failed_entry:
        The conditions: a truth value is compiled in, a callable is asked with the VCPU at each exit that depends on it.

    Raises
    ------
    UsageError
        The strategy calls a handler that is not in ``handlers``.
    """
    root = strategy.root if isinstance(strategy, Strategy) else strategy
    missing = [name for name in handlers_used(root) if name not in handlers]
    if missing:
        name = strategy.name if isinstance(strategy, Strategy) else "the tree"
        raise UsageError(f"dispatch strategy {name}: no handler given for {', '.join(missing)}")
    source = python_source(
        root,
        nested=nested if isinstance(nested, bool) else None,
        failed_entry=failed_entry if isinstance(failed_entry, bool) else None,
    )
    namespace: dict[str, object] = {}
    # The source holds nothing but checked identifiers and integers.
    exec(compile(source, "<lzero dispatch>", "exec"), namespace)
    make = namespace["make"]
    assert callable(make)
    arguments = {name: handlers[name] for name in handlers_used(root)}
    dispatch: Callable[[V, int], R] = make(
        **arguments, unexpected=unexpected, bind=_bind, nested=nested, failed_entry=failed_entry
    )
    return dispatch
