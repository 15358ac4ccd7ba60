"""All VM-entry checks in the manual's order."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from .execution_controls import EXECUTION_CONTROL_CHECKS
from .exit_entry_controls import ENTRY_CONTROL_CHECKS, EXIT_CONTROL_CHECKS
from .guest_nonregister import NON_REGISTER_CHECKS, PDPTE_CHECKS
from .guest_registers import DESCRIPTOR_TABLE_CHECKS, GUEST_REGISTER_CHECKS, RIP_RFLAGS_CHECKS
from .guest_segments import SEGMENT_CHECKS
from .host_state import HOST_STATE_CHECKS
from .model import Check

__all__ = ["CHECKS", "CHECKS_BY_ID"]

CHECKS: tuple[Check, ...] = (
    *EXECUTION_CONTROL_CHECKS,
    *EXIT_CONTROL_CHECKS,
    *ENTRY_CONTROL_CHECKS,
    *HOST_STATE_CHECKS,
    *GUEST_REGISTER_CHECKS,
    *SEGMENT_CHECKS,
    *DESCRIPTOR_TABLE_CHECKS,
    *RIP_RFLAGS_CHECKS,
    *NON_REGISTER_CHECKS,
    *PDPTE_CHECKS,
)
"""Every rule; the first that fails decides how the entry fails."""

CHECKS_BY_ID: Mapping[str, Check] = MappingProxyType({check.id: check for check in CHECKS})
"""The same by identifier."""
