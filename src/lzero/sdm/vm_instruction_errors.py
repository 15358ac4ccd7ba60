"""VM-instruction error numbers (SDM vol. 3, 31.4, table 31-1)."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from types import MappingProxyType

__all__ = ["SECTION", "VM_INSTRUCTION_ERRORS", "VmInstructionError"]

SECTION = "31.4"
"""Where the manual lists all of these."""


class VmInstructionError(IntEnum):
    """What a VMX instruction that ends in VMfailValid leaves in the VM-instruction error field."""

    VMCALL_IN_VMX_ROOT = 1
    VMCLEAR_INVALID_ADDRESS = 2
    VMCLEAR_VMXON_POINTER = 3
    VMLAUNCH_NONCLEAR_VMCS = 4
    VMRESUME_NONLAUNCHED_VMCS = 5
    VMRESUME_AFTER_VMXOFF = 6
    ENTRY_INVALID_CONTROL_FIELDS = 7
    ENTRY_INVALID_HOST_STATE_FIELDS = 8
    VMPTRLD_INVALID_ADDRESS = 9
    VMPTRLD_VMXON_POINTER = 10
    VMPTRLD_INCORRECT_REVISION_ID = 11
    UNSUPPORTED_VMCS_COMPONENT = 12
    VMWRITE_READ_ONLY_COMPONENT = 13
    VMXON_IN_VMX_ROOT = 15
    ENTRY_INVALID_EXECUTIVE_VMCS_POINTER = 16
    ENTRY_NONLAUNCHED_EXECUTIVE_VMCS = 17
    ENTRY_EXECUTIVE_VMCS_NOT_VMXON_POINTER = 18
    VMCALL_NONCLEAR_VMCS = 19
    VMCALL_INVALID_EXIT_CONTROL_FIELDS = 20
    VMCALL_INCORRECT_MSEG_REVISION_ID = 22
    VMXOFF_UNDER_DUAL_MONITOR = 23
    VMCALL_INVALID_SMM_MONITOR_FEATURES = 24
    ENTRY_INVALID_EXECUTION_CONTROLS_IN_EXECUTIVE_VMCS = 25
    ENTRY_EVENTS_BLOCKED_BY_MOV_SS = 26
    INVALID_OPERAND_TO_INVEPT_INVVPID = 28


_E = VmInstructionError
VM_INSTRUCTION_ERRORS: Mapping[int, str] = MappingProxyType(
    {
        _E.VMCALL_IN_VMX_ROOT: "VMCALL executed in VMX root operation",
        _E.VMCLEAR_INVALID_ADDRESS: "VMCLEAR with invalid physical address",
        _E.VMCLEAR_VMXON_POINTER: "VMCLEAR with VMXON pointer",
        _E.VMLAUNCH_NONCLEAR_VMCS: "VMLAUNCH with non-clear VMCS",
        _E.VMRESUME_NONLAUNCHED_VMCS: "VMRESUME with non-launched VMCS",
        _E.VMRESUME_AFTER_VMXOFF: "VMRESUME after VMXOFF",
        _E.ENTRY_INVALID_CONTROL_FIELDS: "VM entry with invalid control field(s)",
        _E.ENTRY_INVALID_HOST_STATE_FIELDS: "VM entry with invalid host-state field(s)",
        _E.VMPTRLD_INVALID_ADDRESS: "VMPTRLD with invalid physical address",
        _E.VMPTRLD_VMXON_POINTER: "VMPTRLD with VMXON pointer",
        _E.VMPTRLD_INCORRECT_REVISION_ID: "VMPTRLD with incorrect VMCS revision identifier",
        _E.UNSUPPORTED_VMCS_COMPONENT: "VMREAD/VMWRITE from/to unsupported VMCS component",
        _E.VMWRITE_READ_ONLY_COMPONENT: "VMWRITE to read-only VMCS component",
        _E.VMXON_IN_VMX_ROOT: "VMXON executed in VMX root operation",
        _E.ENTRY_INVALID_EXECUTIVE_VMCS_POINTER: "VM entry with invalid executive-VMCS pointer",
        _E.ENTRY_NONLAUNCHED_EXECUTIVE_VMCS: "VM entry with non-launched executive VMCS",
        _E.ENTRY_EXECUTIVE_VMCS_NOT_VMXON_POINTER: "VM entry with executive-VMCS pointer not VMXON pointer",
        _E.VMCALL_NONCLEAR_VMCS: "VMCALL with non-clear VMCS",
        _E.VMCALL_INVALID_EXIT_CONTROL_FIELDS: "VMCALL with invalid VM-exit control fields",
        _E.VMCALL_INCORRECT_MSEG_REVISION_ID: "VMCALL with incorrect MSEG revision identifier",
        _E.VMXOFF_UNDER_DUAL_MONITOR: "VMXOFF under dual-monitor treatment of SMIs and SMM",
        _E.VMCALL_INVALID_SMM_MONITOR_FEATURES: "VMCALL with invalid SMM-monitor features",
        _E.ENTRY_INVALID_EXECUTION_CONTROLS_IN_EXECUTIVE_VMCS: (
            "VM entry with invalid VM-execution control fields in executive VMCS"
        ),
        _E.ENTRY_EVENTS_BLOCKED_BY_MOV_SS: "VM entry with events blocked by MOV SS",
        _E.INVALID_OPERAND_TO_INVEPT_INVVPID: "Invalid operand to INVEPT/INVVPID",
    }
)
"""The manual's words for each number; 14, 21 and 27 are not assigned."""
