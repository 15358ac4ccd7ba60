"""A tree as C.

Two styles from one walk:

``kernel``
    a function to put into ``arch/x86/kvm/vmx/vmx.c``: the kernel's names and layout, the tree under
    ``#ifdef CONFIG_MITIGATION_RETPOLINE`` and the kernel's own handler table where that is off.
``standalone``
    a file that compiles alone, with everything it needs declared in it; what ``bench`` and ``prove`` build on.

Where the order of tests belongs to the strategy, each test is preceded by a barrier that hides the reason's value from
the optimiser: without it compilers turn a chain into a balanced tree, or into the same code as a switch. Whether the
order survived is checked in the machine code, by :mod:`lzero.dispatch.machine_code`.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal, TypeAlias

from lzero.dispatch.c_declarations import (
    BARRIER,
    ENTRY_FAILED,
    KERNEL_TYPES,
    NESTED,
    PARSE,
    TABLE_HELPERS,
    TYPES,
    UNLIKELY,
    reason_constants,
    reason_spelling,
)
from lzero.dispatch.strategies import STRATEGIES, Strategy, handler_table
from lzero.dispatch.tree import (
    Condition,
    ConditionName,
    Eq,
    IndirectTable,
    Leaf,
    Less,
    Node,
    OutOfLine,
    Range,
    Slot,
    Switch,
    Unexpected,
    conditions_used,
    handlers_used,
    has_indirect_table,
    out_of_line_functions,
    walk,
)
from lzero.errors import UsageError

__all__ = [
    "ENTRY_POINT",
    "STYLES",
    "Style",
    "checkable",
    "checked_symbol",
    "emit_c",
    "emit_functions",
    "standalone_prelude",
]

Style: TypeAlias = Literal["kernel", "standalone"]
STYLES: tuple[Style, ...] = ("kernel", "standalone")

ENTRY_POINT = "vmx_dispatch_exit"
"""Default name of the emitted function."""

_WIDTH = 96
_UNEXPECTED_LABEL = "unexpected_vmexit"


@dataclass(frozen=True, slots=True)
class _Spelling:
    """What differs between the styles inside a function."""

    parse: str
    """Expression that reads the basic exit reason from the VCPU, as an out-of-line function has to."""
    barrier: str
    nospec: str
    conditions: dict[ConditionName, str]
    unexpected: str
    """Function that reports an exit nobody handles."""
    linkage: str
    """What stands before the dispatcher's return type."""
    own_table: bool
    """Emit every table; otherwise the kernel's ``kvm_vmx_exit_handlers`` is used where it has the same contents."""


_KERNEL = _Spelling(
    parse="vmx_get_exit_reason(vcpu).basic",
    barrier="OPTIMIZER_HIDE_VAR",
    nospec="array_index_nospec",
    conditions={
        ConditionName.NESTED: "nested",
        ConditionName.FAILED_ENTRY: "vmx_get_exit_reason(vcpu).failed_vmentry",
    },
    unexpected="vmx_handle_unexpected_exit",
    linkage="static ",
    own_table=False,
)

_STANDALONE = _Spelling(
    parse="basic_exit_reason(vcpu)",
    barrier="LZERO_HIDE_VALUE",
    nospec="lzero_index_nospec",
    conditions={ConditionName.NESTED: "nested", ConditionName.FAILED_ENTRY: "entry_failed(vcpu)"},
    unexpected="handle_unexpected_exit",
    linkage="",
    own_table=True,
)


# Out of line, so that the hot path needs no stack frame.
_KERNEL_UNEXPECTED = [
    "static noinline int vmx_handle_unexpected_exit(struct kvm_vcpu *vcpu)",
    "{",
    "\tdump_vmcs(vcpu);",
    "\tkvm_prepare_unexpected_reason_exit(vcpu, vmx_get_exit_reason(vcpu).full);",
    "\treturn 0;",
    "}",
]


class _Emitter:
    """Emits the functions of one strategy; tables are numbered in the order they are met."""

    def __init__(self, strategy: Strategy, spelling: _Spelling, function: str, *, barriers: bool) -> None:
        self.strategy = strategy
        self.spelling = spelling
        self.function = function
        self.barriers = barriers
        self.tables: list[IndirectTable] = []
        self.uses_unexpected = False
        self.unexpected_without_retpolines = False
        self.unexpected_elsewhere = False

    # -- tables -------------------------------------------------------------------------------------------------

    def table_name(self, table: IndirectTable) -> str:
        """Name of the array; the kernel's own where its contents are these."""
        if not self.spelling.own_table and table == handler_table():
            return "kvm_vmx_exit_handlers"
        if table not in self.tables:
            self.tables.append(table)
        suffix = "" if self.tables.index(table) == 0 else f"_{self.tables.index(table)}"
        return f"{self.function}_handlers{suffix}"

    def table_definition(self, table: IndirectTable) -> list[str]:
        const = "const " if table.const else ""
        width = max(len(f"[{reason_spelling(slot.reason)}]") for slot in table.slots)
        entries = [f"\t{f'[{reason_spelling(s.reason)}]':<{width}} = {_callee(s)}," for s in table.slots]
        size = f"[{table.size}]"
        return [f"static int (*{const}{self.table_name(table)}{size})(struct kvm_vcpu *vcpu) = {{", *entries, "};"]

    def init_function(self) -> list[str]:
        """The function that patches the tables, as the nested module's set-up does; empty when nothing is patched."""
        body: list[str] = []
        for table in self.tables:
            name = self.table_name(table)
            for patch in table.patches:
                body.append(f"\tif ({self.spelling.conditions[patch.condition]}) {{")
                body += [f"\t\t{name}[{reason_spelling(s.reason)}] = {_callee(s)};" for s in patch.slots]
                body.append("\t}")
        if not body:
            return []
        return [f"void {self.function}_init(void);", f"void {self.function}_init(void)", "{", *body, "}"]

    # -- functions ----------------------------------------------------------------------------------------------

    def out_of_line(self, name: str, body: Node) -> list[str]:
        self.uses_unexpected = False
        statements = self.body(body, 1)
        self.unexpected_elsewhere |= self.uses_unexpected
        # A body that asks nothing of the reason would leave it unused, which is a warning.
        parse = [f"\tunsigned int reason = {self.spelling.parse};", ""] if _mentions_reason(statements) else []
        return [
            f"noinline int {name}(struct kvm_vcpu *vcpu)",
            "{",
            *parse,
            *statements,
            *self.unexpected_tail(),
            "}",
        ]

    def entry(self, guarded: bool) -> list[str]:
        self.uses_unexpected = False
        statements = self.entry_body(guarded)
        tail = self.unexpected_tail()
        unused = [] if _mentions_reason(self.body(self.strategy.root, 1)) else ["\t(void)reason;"]
        return [
            f"{self.spelling.linkage}int {self.function}(struct kvm_vcpu *vcpu, unsigned int reason)",
            "{",
            *unused,
            *statements,
            *tail,
            "}",
        ]

    def entry_body(self, guarded: bool) -> list[str]:
        """The tree; under the kernel's guard, with its table where retpolines are not built.

        A tree that ends in the kernel's table keeps that one outside the guard, as upstream has it.
        """
        root = self.strategy.root
        if not guarded or isinstance(root, IndirectTable):
            return self.body(root, 1)
        begin, otherwise, end = "#ifdef CONFIG_MITIGATION_RETPOLINE", "#else", "#endif"
        tests = self.leading_tests(root)
        if tests is not None:
            return [begin, *tests, end, "", *self.body(handler_table(), 1)]
        arm = self.body(root, 1)
        if self.uses_unexpected:
            return [begin, *arm, otherwise, *self.body(handler_table(), 1), end]
        # Only the table has unexpected exits: a label outside of the guard would be unused, which is a warning.
        table = [*self.body(handler_table(), 1), *self.unexpected_tail()]
        self.uses_unexpected, self.unexpected_without_retpolines = False, True
        return [begin, *arm, otherwise, *table, end]

    def leading_tests(self, root: Node) -> list[str] | None:
        """The tests in front of the kernel's table, or ``None`` if the tree does not end in it."""
        lines: list[str] = []
        node = root
        while isinstance(node, Eq | Less | Range | Condition):
            lines += self.test(node, 1)
            node = node.otherwise
        return lines if lines and node == handler_table() else None

    def unexpected_tail(self) -> list[str]:
        if not self.uses_unexpected:
            return []
        return ["", f"{_UNEXPECTED_LABEL}:", f"\treturn {self.spelling.unexpected}(vcpu);"]

    def kernel_unexpected(self) -> list[str]:
        """The function behind the label, where the text defines it; not built where nothing goes to it."""
        if self.unexpected_without_retpolines and not self.unexpected_elsewhere:
            return ["#ifndef CONFIG_MITIGATION_RETPOLINE", *_KERNEL_UNEXPECTED, "#endif"]
        return _KERNEL_UNEXPECTED

    # -- statements ---------------------------------------------------------------------------------------------

    def body(self, node: Node, depth: int) -> list[str]:
        """Statements that end in a return or a goto on every path."""
        lines: list[str] = []
        tabs = "\t" * depth
        while True:
            match node:
                case Leaf():
                    return [*lines, f"{tabs}return {node.handler}(vcpu);"]
                case OutOfLine():
                    return [*lines, f"{tabs}return {node.function}(vcpu);"]
                case Unexpected():
                    self.uses_unexpected = True
                    return [*lines, f"{tabs}goto {_UNEXPECTED_LABEL};"]
                case IndirectTable():
                    return [*lines, *self.separate(lines, depth), *self.indirect(node, tabs)]
                case Switch():
                    lines += self.separate(lines, depth) + self.switch(node, depth)
                    node = node.default
                case Eq() | Less() | Range() | Condition():
                    lines += self.test(node, depth)
                    node = node.otherwise

    def test(self, node: Eq | Less | Range | Condition, depth: int) -> list[str]:
        tabs = "\t" * depth
        then = self.body(node.then, depth + 1)
        barrier = (
            [f"{tabs}{self.spelling.barrier}(reason);"] if self.barriers and not isinstance(node, Condition) else []
        )
        condition = self.condition(node)
        if len(then) == 1:
            return [*barrier, f"{tabs}if ({condition})", *then]
        return [*barrier, f"{tabs}if ({condition}) {{", *then, f"{tabs}}}"]

    def condition(self, node: Eq | Less | Range | Condition) -> str:
        match node:
            case Eq():
                return self.hinted(f"reason == {reason_spelling(node.reason)}")
            case Less():
                return f"reason < {reason_spelling(node.bound)}"
            case Range() if node.first == 0:
                # An unsigned number is never below 0, and compilers warn when it is asked.
                return self.hinted(f"reason <= {reason_spelling(node.last)}")
            case Range():
                return self.hinted(f"reason >= {reason_spelling(node.first)} && reason <= {reason_spelling(node.last)}")
            case Condition():
                return self.spelling.conditions[node.test]

    def hinted(self, condition: str) -> str:
        """In a plan the way past failing tests is to be straight; clang jumps at each of them otherwise."""
        return f"unlikely({condition})" if self.strategy.provenance is not None else condition

    def separate(self, before: list[str], depth: int) -> list[str]:
        """Keeps a compiler from merging what follows with the tests before it; clang does so with a switch."""
        tested = before or depth > 1
        return ["\t" * depth + f"{self.spelling.barrier}(reason);"] if tested and self.barriers else []

    def indirect(self, table: IndirectTable, tabs: str) -> list[str]:
        name = self.table_name(table)
        size = "kvm_vmx_max_exit_handlers" if name == "kvm_vmx_exit_handlers" else f"ARRAY_SIZE({name})"
        self.uses_unexpected = True
        return [
            f"{tabs}if (reason >= {size})",
            f"{tabs}\tgoto {_UNEXPECTED_LABEL};",
            f"{tabs}reason = {self.spelling.nospec}(reason, {size});",
            f"{tabs}if (!{name}[reason])",
            f"{tabs}\tgoto {_UNEXPECTED_LABEL};",
            f"{tabs}return {name}[reason](vcpu);",
        ]

    def switch(self, node: Switch, depth: int) -> list[str]:
        """Cases that lead to the same place share it; the default follows the switch."""
        if not node.cases:
            return []
        tabs = "\t" * depth
        groups: dict[Node, list[tuple[int, int]]] = {}
        for case in node.cases:
            groups.setdefault(case.then, []).append((case.first, case.last))
        lines = [f"{tabs}switch (reason) {{"]
        for then, ranges in groups.items():
            lines += [f"{tabs}case {_case_label(first, last)}:" for first, last in ranges]
            lines += self.body(then, depth + 1)
        # Every case returns, so what follows the switch is its default.
        return [*lines, f"{tabs}default:", f"{tabs}\tbreak;", f"{tabs}}}"]


def _mentions_reason(lines: list[str]) -> bool:
    return any(re.search(r"\breason\b", line) for line in lines)


def _callee(slot: Slot) -> str:
    return slot.target.handler if isinstance(slot.target, Leaf) else slot.target.function


def _case_label(first: int, last: int) -> str:
    return reason_spelling(first) if first == last else f"{reason_spelling(first)} ... {reason_spelling(last)}"


def emit_functions(
    strategy: Strategy,
    style: Style,
    *,
    function: str = ENTRY_POINT,
    barriers: bool | None = None,
    guarded: bool | None = None,
) -> str:
    """The strategy's tables and functions, without the declarations they need.

    Parameters
    ----------
    function:
        Name of the dispatcher: ``int function(struct kvm_vcpu *vcpu, unsigned int reason)``. If a table is patched
        there is also ``void function_init(void)``, to be called once after ``nested`` has its value.
    barriers:
        Keep the order of tests against the compiler; by default as the strategy asks.
    guarded:
        Put the tree under ``CONFIG_MITIGATION_RETPOLINE``; by default in kernel style only.
    """
    spelling = _KERNEL if style == "kernel" else _STANDALONE
    emitter = _Emitter(strategy, spelling, function, barriers=strategy.keeps_order if barriers is None else barriers)
    guard = style == "kernel" if guarded is None else guarded
    entry = emitter.entry(guard)
    callees = [emitter.out_of_line(name, body) for name, body in out_of_line_functions(strategy.root).items()]
    tables = [emitter.table_definition(table) for table in emitter.tables]
    unexpected = emitter.kernel_unexpected() if style == "kernel" else []
    parts = [*tables, *callees, emitter.init_function()]
    if guard and tables and not isinstance(strategy.root, IndirectTable):
        # Tables of the tree's own, which nothing uses where the kernel's table takes its place.
        parts = [["#ifdef CONFIG_MITIGATION_RETPOLINE"], *parts, ["#endif"]]
    parts = [unexpected, *parts, entry]
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


def emit_c(
    strategy: Strategy, style: Style = "kernel", *, function: str = ENTRY_POINT, barriers: bool | None = None
) -> str:
    """The whole C text in the given style, with a head that says where it comes from."""
    if style not in STYLES:
        raise UsageError(f"unknown style {style!r}: known are {', '.join(STYLES)}")
    functions = emit_functions(strategy, style, function=function, barriers=barriers)
    head = _head(strategy, style)
    if style == "kernel":
        return f"{head}\n{functions}"
    return f"{head}\n{standalone_prelude(strategy, function)}\n{functions}"


def _head(strategy: Strategy, style: Style) -> str:
    label = f" ({strategy.label})" if strategy.label else ""
    lines = [f"Dispatch of VM exits by strategy {strategy.name}{label}, made by lzero."]
    lines += [f"{strategy.summary[0].upper()}{strategy.summary[1:]}."] if strategy.summary else []
    lines.append("")
    lines += _provenance_lines(strategy)
    if strategy.promises_no_indirect_branch:
        guard = " where retpolines are built" if style == "kernel" else ""
        lines.append(f"Holds no indirect branch{guard}.")
    else:
        lines.append("Ends in an indirect call for every reason that no test names.")
    if strategy.order_matters:
        lines.append("The order of the tests is part of the plan: the barriers keep the compiler from changing it.")
    licence = "/* SPDX-License-Identifier: GPL-2.0-or-later */\n" if style == "standalone" else ""
    lines = [_in_comment(line) for line in lines]
    comment = [
        f" * {wrapped}" if wrapped else " *" for line in lines for wrapped in textwrap.wrap(line, _WIDTH) or [""]
    ]
    return licence + "\n".join(["/*", *comment, " */"]) + "\n"


def _in_comment(text: str) -> str:
    """Text that may come from a file, as a C comment can hold it: in ASCII, and neither ending nor opening one."""
    ascii_text = text.replace("\N{MIDDLE DOT}", "*").encode("ascii", "replace").decode()
    return ascii_text.replace("*/", "* /").replace("/*", "/ *")


def _provenance_lines(strategy: Strategy) -> list[str]:
    origin = strategy.provenance
    if origin is None:
        return ["Profile: none, the strategy is as its authors proposed it."]
    rows = (
        ("Profile", origin.source),
        ("Date", origin.date),
        ("Samples", "" if origin.samples is None else f"{origin.samples:,}"),
        ("CPU", origin.cpu),
        ("Mitigation", origin.mitigation),
        ("Expected gain", origin.expected_gain),
        ("Model", origin.model),
    )
    return [f"{name}: {value or 'not given'}" for name, value in rows]


def standalone_prelude(
    strategy: Strategy, function: str = ENTRY_POINT, *, types: str | None = None, defined: Collection[str] = ()
) -> str:
    """Declarations for the standalone style: types, reasons, handlers, conditions and the barrier.

    Parameters
    ----------
    types:
        C text that declares ``struct kvm_vcpu`` with ``unsigned int exit_reason`` first, and ``bool``; by default
        the smallest such.
    defined:
        Handlers that the file itself will define, and which are therefore not declared.
    """
    names = [*handlers_used(strategy.root), *out_of_line_functions(strategy.root)]
    prototypes = "".join(f"int {name}(struct kvm_vcpu *vcpu);\n" for name in names if name not in defined)
    used = conditions_used(strategy.root)
    parts = [
        TYPES if types is None else types,
        reason_constants(),
        NESTED if ConditionName.NESTED in used else "",
        BARRIER,
        UNLIKELY if strategy.provenance is not None else "",
        TABLE_HELPERS if has_indirect_table(strategy.root) else "",
        PARSE if out_of_line_functions(strategy.root) else "",
        ENTRY_FAILED if ConditionName.FAILED_ENTRY in used else "",
        prototypes,
        "int handle_unexpected_exit(struct kvm_vcpu *vcpu);\n"
        f"int {function}(struct kvm_vcpu *vcpu, unsigned int reason);\n",
    ]
    return "\n".join(part for part in parts if part)


def checkable(strategy: Strategy, style: Style, text: str) -> str:
    """What a compiler is given to check emitted text: the text itself, with what it expects around it.

    The dispatcher is then reachable under the external name :func:`checked_symbol`.
    """
    if style == "standalone":
        return text
    symbol = checked_symbol(style)
    parameters = "struct kvm_vcpu *vcpu, unsigned int reason"
    caller = f"int {symbol}({parameters});\nint {symbol}({parameters})\n{{\n\treturn {ENTRY_POINT}(vcpu, reason);\n}}\n"
    return f"{_kernel_stub(strategy)}\n{text}\n{caller}"


def checked_symbol(style: Style) -> str:
    """External name of the dispatcher in :func:`checkable`'s text."""
    # In kernel style the dispatcher is static; the compiler puts it into its only caller.
    return ENTRY_POINT if style == "standalone" else f"{ENTRY_POINT}_check"


KERNEL_TABLE_INIT = "kvm_vmx_exit_init"
"""Name of the function that patches the stand-in for the kernel's table."""


def _kernel_stub(strategy: Strategy) -> str:
    """Declarations under which kernel-style text compiles outside a kernel tree.

    The names are the kernel's; the definitions are lzero's own and no more than a compiler needs.
    """
    table = handler_table()
    handlers = sorted({*handlers_used(strategy.root), *handlers_used(table)})
    prototypes = "".join(f"int {name}(struct kvm_vcpu *vcpu);\n" for name in handlers)
    callees = "".join(f"int {name}(struct kvm_vcpu *vcpu);\n" for name in out_of_line_functions(strategy.root))
    emitter = _Emitter(STRATEGIES["table"], _STANDALONE, KERNEL_TABLE_INIT.removesuffix("_init"), barriers=False)
    definition = "\n".join([*emitter.table_definition(table), "", *emitter.init_function()])
    size = "#define kvm_vmx_max_exit_handlers ARRAY_SIZE(kvm_vmx_exit_handlers)\n"
    # With retpolines only the strategies that end in the kernel's table use it, without them all do.
    always = "1" if any(node == table for node in walk(strategy.root)) else "!defined(CONFIG_MITIGATION_RETPOLINE)"
    helpers = f"#if {'1' if has_indirect_table(strategy.root) else always}\n{TABLE_HELPERS}#endif\n"
    kernel_table = f"{helpers}\n#if {always}\n{definition}\n{size}#endif\n"
    return "\n".join((KERNEL_TYPES, reason_constants(), prototypes + callees, kernel_table))
