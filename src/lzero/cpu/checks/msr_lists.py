"""Checks on entries of the VM-entry and VM-exit MSR areas (SDM vol. 3, 27.4, 28.4 and 28.6).

An entry is 16 bytes: MSR number in bits 31:0, reserved in 63:32, value in 127:64. A bad entry of the VM-entry MSR-load
area fails the entry with exit reason 34 and its number, counted from 1, as the exit qualification; a bad entry of a
VM-exit area is a VMX abort.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from lzero.sdm.msrs import Msr

__all__ = ["MSR_LIST_CHECKS", "MsrListCheck", "MsrListKind", "check_msr_entry"]


class MsrListKind(Enum):
    """The three MSR areas, with the section on each."""

    ENTRY_LOAD = "27.4"
    EXIT_STORE = "28.4"
    EXIT_LOAD = "28.6"


@dataclass(frozen=True, slots=True)
class MsrListCheck:
    """One rule: ``predicate(msr, reserved, in_smm)`` is True when the entry obeys it."""

    id: str
    kinds: frozenset[MsrListKind]
    rule: str
    predicate: Callable[[int, int, bool], bool]


_LOADS = frozenset({MsrListKind.ENTRY_LOAD, MsrListKind.EXIT_LOAD})
_ALL = frozenset(MsrListKind)
_SEGMENT_BASES = frozenset({int(Msr.IA32_FS_BASE), int(Msr.IA32_GS_BASE)})
_MICROCODE = frozenset({int(Msr.IA32_BIOS_UPDT_TRIG), int(Msr.IA32_BIOS_SIGN_ID)})
_SMM_MONITOR_CTL, _SMBASE = int(Msr.IA32_SMM_MONITOR_CTL), int(Msr.IA32_SMBASE)

MSR_LIST_CHECKS: tuple[MsrListCheck, ...] = (
    MsrListCheck(
        "msr_list.segment_base",
        _LOADS,
        "IA32_FS_BASE and IA32_GS_BASE are not loaded: the segment state holds them",
        lambda msr, _, __: msr not in _SEGMENT_BASES,
    ),
    MsrListCheck(
        "msr_list.x2apic",
        _ALL,
        "the MSR is not an x2APIC register (bits 31:8 are not 8)",
        lambda msr, _, __: msr >> 8 != 8,
    ),
    MsrListCheck(
        "msr_list.smm_monitor_ctl",
        _LOADS,
        "IA32_SMM_MONITOR_CTL is loaded in SMM only",
        lambda msr, _, in_smm: msr != _SMM_MONITOR_CTL or in_smm,
    ),
    MsrListCheck(
        "msr_list.microcode",
        _LOADS,
        "the microcode-update MSRs are not loaded",
        lambda msr, _, __: msr not in _MICROCODE,
    ),
    MsrListCheck(
        "msr_list.smbase",
        frozenset({MsrListKind.EXIT_STORE}),
        "IA32_SMBASE is stored in SMM only",
        lambda msr, _, in_smm: msr != _SMBASE or in_smm,
    ),
    MsrListCheck(
        "msr_list.reserved",
        _ALL,
        "bits 63:32 of the entry are 0",
        lambda _, reserved, __: reserved == 0,
    ),
)
"""Rules on one entry; WRMSR or RDMSR of the MSR must besides not fault, which the caller knows."""

_BY_KIND = {kind: tuple(check for check in MSR_LIST_CHECKS if kind in check.kinds) for kind in MsrListKind}


def check_msr_entry(kind: MsrListKind, msr: int, reserved: int, *, in_smm: bool = False) -> MsrListCheck | None:
    """First rule that an entry breaks, None if it obeys them all.

    ``msr`` is the entry's bits 31:0 and ``reserved`` its bits 63:32.
    """
    for check in _BY_KIND[kind]:
        if not check.predicate(msr, reserved, in_smm):
            return check
    return None
