"""The audit of one module as data, and the comparison of two."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lzero.dispatch.audit.branches import BranchKind, IndirectBranch, find_indirect_branches
from lzero.dispatch.audit.chain import DispatchShape, ReasonTest, recover_dispatch
from lzero.dispatch.audit.code import Code
from lzero.dispatch.audit.module import load_module
from lzero.dispatch.audit.names import reason_name
from lzero.dispatch.audit.table import HandlerTable, find_handler_table

__all__ = ["AuditDifference", "ModuleAudit", "audit_module", "compare"]


@dataclass(frozen=True, slots=True)
class ModuleAudit:
    """What one kernel module holds."""

    path: Path
    name: str
    version_magic: str | None
    compilers: tuple[str, ...]
    function_count: int
    branches: tuple[IndirectBranch, ...]
    table: HandlerTable | None
    dispatch: DispatchShape

    @property
    def vendor(self) -> str:
        """``"vmx"`` or ``"svm"``, by the handler table; ``""`` without one."""
        return self.table.vendor if self.table is not None else ""

    def of_kind(self, *kinds: BranchKind) -> tuple[IndirectBranch, ...]:
        """The branches of the given kinds, in order of address."""
        return tuple(branch for branch in self.branches if branch.kind in kinds)

    def count(self, kind: BranchKind) -> int:
        """Number of branches of one kind."""
        return len(self.of_kind(kind))

    def by_function(self) -> Mapping[tuple[str, BranchKind], int]:
        """Number of branches per function and kind."""
        return Counter((branch.function or f"({branch.section}, no symbol)", branch.kind) for branch in self.branches)

    def reason_name(self, reason: int) -> str:
        """Name of an exit reason in this module's numbering."""
        return reason_name(self.vendor, reason)

    def to_json(self) -> dict[str, Any]:
        """A plain structure for :mod:`json`; the keys are documented in ``docs/dispatch-audit.md``."""
        return {
            "module": {
                "file": str(self.path),
                "name": self.name,
                "vermagic": self.version_magic,
                "compilers": list(self.compilers),
                "functions": self.function_count,
            },
            "counts": {kind.value: self.count(kind) for kind in BranchKind},
            "branches": [
                {
                    "function": branch.function,
                    "section": branch.section,
                    "offset": branch.offset,
                    "kind": branch.kind.value,
                    "call": branch.is_call,
                    "operand": branch.operand,
                    "through": branch.through,
                    "patched": branch.patched,
                    "init_only": branch.runs_once,
                }
                for branch in self.branches
            ],
            "dispatch": {
                "function": self.dispatch.function,
                "shape": self.dispatch.shape.name.lower(),
                "tests": [self._test(test) for test in self.dispatch.tests],
                "bound": self.dispatch.bound,
                "speculation_clamp": self.dispatch.speculation_clamp,
                "null_check": self.dispatch.null_check,
                "unknown": list(self.dispatch.unknown),
            },
            "table": None if self.table is None else self._table(self.table),
        }

    def _test(self, test: ReasonTest) -> dict[str, Any]:
        return {
            "offset": test.offset,
            "relation": test.relation,
            "reason": test.reason,
            "name": self.reason_name(test.reason),
            "leads_to": test.leads_to,
        }

    def _table(self, table: HandlerTable) -> dict[str, Any]:
        return {
            "symbol": table.symbol,
            "section": table.section,
            "slots": table.slots,
            "writable": table.writable,
            "handlers": {str(reason): handler for reason, handler in sorted(table.handlers.items())},
            "overrides": {str(reason): handler for reason, handler in sorted(table.overrides.items())},
            "overridden_by": table.overridden_by,
        }


def audit_module(path: Path) -> ModuleAudit:
    """Audit the kernel module at ``path``.

    Raises
    ------
    ImageError
        The file is not a readable x86-64 kernel module; see :func:`lzero.dispatch.audit.module.load_module`.
    """
    module = load_module(path)
    code = Code(module)
    table = find_handler_table(code)
    return ModuleAudit(
        path=path,
        name=module.name,
        version_magic=module.version_magic,
        compilers=module.compilers,
        function_count=module.function_count,
        branches=find_indirect_branches(code),
        table=table,
        dispatch=recover_dispatch(code, table),
    )


@dataclass(frozen=True, slots=True)
class AuditDifference:
    """Two audits side by side; only what differs is listed."""

    branches: tuple[tuple[str, BranchKind, int, int], ...]
    """Function, kind, count in the first, count in the second."""
    tests: tuple[tuple[ReasonTest | None, ReasonTest | None], ...]
    """The two chains position by position, when they are not the same; empty when they are."""
    handlers: tuple[tuple[int, str | None, str | None], ...]
    """Reason, handler in the first, handler in the second (None: empty slot or no table)."""

    @property
    def same(self) -> bool:
        """Whether the audits agree in branches, tests and table."""
        return not (self.branches or self.tests or self.handlers)


def compare(first: ModuleAudit, second: ModuleAudit) -> AuditDifference:
    """What differs between two modules, by function, by position in the chain and by table slot."""
    left, right = first.by_function(), second.by_function()
    branches = tuple(
        (function, kind, left.get((function, kind), 0), right.get((function, kind), 0))
        for function, kind in sorted({*left, *right})
        if left.get((function, kind), 0) != right.get((function, kind), 0)
    )
    tests: tuple[tuple[ReasonTest | None, ReasonTest | None], ...] = ()
    if [(t.relation, t.reason) for t in first.dispatch.tests] != [
        (t.relation, t.reason) for t in second.dispatch.tests
    ]:
        length = max(len(first.dispatch.tests), len(second.dispatch.tests))
        pad: tuple[None, ...] = (None,) * length
        tests = tuple(zip((*first.dispatch.tests, *pad)[:length], (*second.dispatch.tests, *pad)[:length], strict=True))
    one = first.table.handlers if first.table is not None else {}
    two = second.table.handlers if second.table is not None else {}
    handlers = tuple(
        (reason, one.get(reason), two.get(reason))
        for reason in sorted({*one, *two})
        if one.get(reason) != two.get(reason)
    )
    return AuditDifference(branches, tests, handlers)
