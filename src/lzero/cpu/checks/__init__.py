"""The checks of VM entry as a table of named rules (SDM vol. 3, 27.2 and 27.3).

Used twice: the processor applies them to the VMCS that L0 launches, and nested VMX to the VMCS that a guest hypervisor
launches, with the capabilities it was offered. A failure names its rule, which is the most useful thing that can be
said to the developer of that hypervisor.

===========================  ============================================================
``run_checks(context)``      first :class:`Failure`, or None
:class:`CheckPlan`           the same prepared for one set of capabilities, and for runs that
                             re-evaluate only what changed
``CHECKS``                   the table
``check_msr_entry``          rules on entries of the MSR areas (27.4, 28.4, 28.6)
===========================  ============================================================
"""

from __future__ import annotations

from .model import Check, CheckContext, CheckGroup, Failure, Outside, Predicate
from .msr_lists import MSR_LIST_CHECKS, MsrListCheck, MsrListKind, check_msr_entry
from .plan import ALL_DIRTY, FIELD_BIT, PROCESSOR_BIT, CheckPlan, field_mask, run_checks
from .table import CHECKS, CHECKS_BY_ID

__all__ = [
    "ALL_DIRTY",
    "CHECKS",
    "CHECKS_BY_ID",
    "FIELD_BIT",
    "MSR_LIST_CHECKS",
    "PROCESSOR_BIT",
    "Check",
    "CheckContext",
    "CheckGroup",
    "CheckPlan",
    "Failure",
    "MsrListCheck",
    "MsrListKind",
    "Outside",
    "Predicate",
    "check_msr_entry",
    "field_mask",
    "run_checks",
]
