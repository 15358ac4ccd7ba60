"""What a built kernel module really does with an exit reason: its indirect branches, its tests, its handler table.

Facts come from the module's own relocations, section tables and machine code; a shape that is not understood is
reported as such.
"""

from lzero.dispatch.audit.branches import BranchKind, IndirectBranch
from lzero.dispatch.audit.chain import DispatchShape, ReasonTest, Shape
from lzero.dispatch.audit.rates import DispatchRate, dispatch_rate
from lzero.dispatch.audit.report import AuditDifference, ModuleAudit, audit_module, compare
from lzero.dispatch.audit.table import HandlerTable

__all__ = [
    "AuditDifference",
    "BranchKind",
    "DispatchRate",
    "DispatchShape",
    "HandlerTable",
    "IndirectBranch",
    "ModuleAudit",
    "ReasonTest",
    "Shape",
    "audit_module",
    "compare",
    "dispatch_rate",
]
