"""VMX basic exit reasons (SDM vol. 3, appendix C, table C-1).

Member names are the names that KVM's tracepoints print today; the manual's wording, the KVM macro and older names
(traces of old kernels say ``PENDING_INTERRUPT``) are in the rows.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from types import MappingProxyType

__all__ = [
    "EXIT_REASONS",
    "FAILED_VM_ENTRY",
    "RESERVED_EXIT_REASONS",
    "ExitReason",
    "ExitReasonRow",
    "exit_reason_from_name",
    "exit_reason_name",
]

FAILED_VM_ENTRY = 1 << 31
"""Bit 31 of the exit-reason field: the exit is a failed VM entry (25.9.1)."""


class ExitReason(IntEnum):
    """Bits 15:0 of the exit-reason field (appendix C)."""

    EXCEPTION_NMI = 0
    EXTERNAL_INTERRUPT = 1
    TRIPLE_FAULT = 2
    INIT_SIGNAL = 3
    SIPI_SIGNAL = 4
    IO_SMI = 5
    OTHER_SMI = 6
    INTERRUPT_WINDOW = 7
    NMI_WINDOW = 8
    TASK_SWITCH = 9
    CPUID = 10
    GETSEC = 11
    HLT = 12
    INVD = 13
    INVLPG = 14
    RDPMC = 15
    RDTSC = 16
    RSM = 17
    VMCALL = 18
    VMCLEAR = 19
    VMLAUNCH = 20
    VMPTRLD = 21
    VMPTRST = 22
    VMREAD = 23
    VMRESUME = 24
    VMWRITE = 25
    VMOFF = 26
    VMON = 27
    CR_ACCESS = 28
    DR_ACCESS = 29
    IO_INSTRUCTION = 30
    MSR_READ = 31
    MSR_WRITE = 32
    INVALID_STATE = 33
    MSR_LOAD_FAIL = 34
    MWAIT_INSTRUCTION = 36
    MONITOR_TRAP_FLAG = 37
    MONITOR_INSTRUCTION = 39
    PAUSE_INSTRUCTION = 40
    MCE_DURING_VMENTRY = 41
    TPR_BELOW_THRESHOLD = 43
    APIC_ACCESS = 44
    EOI_INDUCED = 45
    GDTR_IDTR = 46
    LDTR_TR = 47
    EPT_VIOLATION = 48
    EPT_MISCONFIG = 49
    INVEPT = 50
    RDTSCP = 51
    PREEMPTION_TIMER = 52
    INVVPID = 53
    WBINVD = 54
    XSETBV = 55
    APIC_WRITE = 56
    RDRAND = 57
    INVPCID = 58
    VMFUNC = 59
    ENCLS = 60
    RDSEED = 61
    PML_FULL = 62
    XSAVES = 63
    XRSTORS = 64
    PCONFIG = 65
    SPP_EVENT = 66
    UMWAIT = 67
    TPAUSE = 68
    LOADIWKEY = 69
    ENCLV = 70
    ENQCMD_PASID = 72
    ENQCMDS_PASID = 73
    BUS_LOCK = 74
    NOTIFY = 75
    SEAMCALL = 76
    TDCALL = 77
    RDMSRLIST = 78
    WRMSRLIST = 79
    URDMSR = 80
    UWRMSR = 81
    MSR_READ_IMM = 84
    MSR_WRITE_IMM = 85


RESERVED_EXIT_REASONS = frozenset({35, 38, 42, 71, 82, 83})
"""Numbers below the highest known one that table C-1 does not assign."""


@dataclass(frozen=True, slots=True)
class ExitReasonRow:
    """One basic exit reason.

    ``section`` says where the manual describes the exit's cause; the number itself is from appendix C.
    ``kvm_macro`` is the name in Linux's ``asm/vmx.h``, None where KVM has none.
    ``aliases`` are names that older traces and other hypervisors print.
    """

    number: int
    name: str
    sdm_name: str
    kvm_macro: str | None
    aliases: tuple[str, ...]
    section: str


_R = ExitReason
# reason, the manual's words, KVM knows it, aliases, section of the cause
_TABLE: tuple[tuple[ExitReason, str, bool, tuple[str, ...], str], ...] = (
    (_R.EXCEPTION_NMI, "Exception or non-maskable interrupt (NMI)", True, ("EXCEPTION",), "26.2"),
    (_R.EXTERNAL_INTERRUPT, "External interrupt", True, (), "26.2"),
    (_R.TRIPLE_FAULT, "Triple fault", True, (), "26.2"),
    (_R.INIT_SIGNAL, "INIT signal", True, ("INIT",), "26.2"),
    (_R.SIPI_SIGNAL, "Start-up IPI (SIPI)", True, ("SIPI",), "26.2"),
    (_R.IO_SMI, "I/O system-management interrupt (SMI)", False, (), "32.15.2"),
    (_R.OTHER_SMI, "Other SMI", True, ("SMI",), "32.15.2"),
    (_R.INTERRUPT_WINDOW, "Interrupt window", True, ("PENDING_INTERRUPT", "VIRTUAL_INTR_PENDING"), "26.2"),
    (_R.NMI_WINDOW, "NMI window", True, (), "26.2"),
    (_R.TASK_SWITCH, "Task switch", True, (), "26.4.2"),
    (_R.CPUID, "CPUID", True, (), "26.1.2"),
    (_R.GETSEC, "GETSEC", False, (), "26.1.2"),
    (_R.HLT, "HLT", True, (), "26.1.3"),
    (_R.INVD, "INVD", True, (), "26.1.2"),
    (_R.INVLPG, "INVLPG", True, (), "26.1.3"),
    (_R.RDPMC, "RDPMC", True, (), "26.1.3"),
    (_R.RDTSC, "RDTSC", True, (), "26.1.3"),
    (_R.RSM, "RSM", False, (), "26.1.3"),
    (_R.VMCALL, "VMCALL", True, (), "26.1.2"),
    (_R.VMCLEAR, "VMCLEAR", True, (), "26.1.2"),
    (_R.VMLAUNCH, "VMLAUNCH", True, (), "26.1.2"),
    (_R.VMPTRLD, "VMPTRLD", True, (), "26.1.2"),
    (_R.VMPTRST, "VMPTRST", True, (), "26.1.2"),
    (_R.VMREAD, "VMREAD", True, (), "26.1.3"),
    (_R.VMRESUME, "VMRESUME", True, (), "26.1.2"),
    (_R.VMWRITE, "VMWRITE", True, (), "26.1.3"),
    (_R.VMOFF, "VMXOFF", True, (), "26.1.2"),
    (_R.VMON, "VMXON", True, (), "26.1.2"),
    (_R.CR_ACCESS, "Control-register accesses", True, (), "26.1.3"),
    (_R.DR_ACCESS, "MOV DR", True, ("MOV_DR",), "26.1.3"),
    (_R.IO_INSTRUCTION, "I/O instruction", True, ("IO",), "26.1.3"),
    (_R.MSR_READ, "RDMSR", True, (), "26.1.3"),
    (_R.MSR_WRITE, "WRMSR", True, (), "26.1.3"),
    (_R.INVALID_STATE, "VM-entry failure due to invalid guest state", True, ("INVALID_GUEST_STATE",), "27.3.1"),
    (_R.MSR_LOAD_FAIL, "VM-entry failure due to MSR loading", True, (), "27.4"),
    (_R.MWAIT_INSTRUCTION, "MWAIT", True, (), "26.1.3"),
    (_R.MONITOR_TRAP_FLAG, "Monitor trap flag", True, ("MTF",), "26.5.2"),
    (_R.MONITOR_INSTRUCTION, "MONITOR", True, (), "26.1.3"),
    (_R.PAUSE_INSTRUCTION, "PAUSE", True, (), "26.1.3"),
    (_R.MCE_DURING_VMENTRY, "VM-entry failure due to machine-check event", True, (), "27.9"),
    (_R.TPR_BELOW_THRESHOLD, "TPR below threshold", True, (), "30.1.2"),
    (_R.APIC_ACCESS, "APIC access", True, (), "30.4"),
    (_R.EOI_INDUCED, "Virtualized EOI", True, ("VIRTUALIZED_EOI",), "30.1.4"),
    (_R.GDTR_IDTR, "Access to GDTR or IDTR", True, (), "26.1.3"),
    (_R.LDTR_TR, "Access to LDTR or TR", True, (), "26.1.3"),
    (_R.EPT_VIOLATION, "EPT violation", True, (), "29.3.3.2"),
    (_R.EPT_MISCONFIG, "EPT misconfiguration", True, ("EPT_MISCONFIGURATION",), "29.3.3.1"),
    (_R.INVEPT, "INVEPT", True, (), "26.1.2"),
    (_R.RDTSCP, "RDTSCP", True, (), "26.1.3"),
    (_R.PREEMPTION_TIMER, "VMX-preemption timer expired", True, (), "26.5.1"),
    (_R.INVVPID, "INVVPID", True, (), "26.1.2"),
    (_R.WBINVD, "WBINVD or WBNOINVD", True, (), "26.1.3"),
    (_R.XSETBV, "XSETBV", True, (), "26.1.2"),
    (_R.APIC_WRITE, "APIC write", True, (), "30.4.3.3"),
    (_R.RDRAND, "RDRAND", True, (), "26.1.3"),
    (_R.INVPCID, "INVPCID", True, (), "26.1.3"),
    (_R.VMFUNC, "VMFUNC", True, (), "26.5.6"),
    (_R.ENCLS, "ENCLS", True, (), "26.1.3"),
    (_R.RDSEED, "RDSEED", True, (), "26.1.3"),
    (_R.PML_FULL, "Page-modification log full", True, (), "29.3.6"),
    (_R.XSAVES, "XSAVES", True, (), "26.1.3"),
    (_R.XRSTORS, "XRSTORS", True, (), "26.1.3"),
    (_R.PCONFIG, "PCONFIG", False, (), "26.1.3"),
    (_R.SPP_EVENT, "SPP-related event", False, ("SPP",), "29.3.4"),
    (_R.UMWAIT, "UMWAIT", True, (), "26.1.3"),
    (_R.TPAUSE, "TPAUSE", True, (), "26.1.3"),
    (_R.LOADIWKEY, "LOADIWKEY", False, (), "26.1.3"),
    (_R.ENCLV, "ENCLV", False, (), "26.1.3"),
    (_R.ENQCMD_PASID, "ENQCMD PASID translation failure", False, (), "26.5.8"),
    (_R.ENQCMDS_PASID, "ENQCMDS PASID translation failure", False, (), "26.5.8"),
    (_R.BUS_LOCK, "Bus lock", True, (), "26.2"),
    (_R.NOTIFY, "Instruction timeout", True, ("INSTRUCTION_TIMEOUT", "NOTIFY_WINDOW"), "26.2"),
    (_R.SEAMCALL, "SEAMCALL", True, (), "C"),
    (_R.TDCALL, "TDCALL", True, (), "C"),
    (_R.RDMSRLIST, "RDMSRLIST", False, (), "26.1.3"),
    (_R.WRMSRLIST, "WRMSRLIST", False, (), "26.1.3"),
    (_R.URDMSR, "URDMSR", False, (), "26.1.3"),
    (_R.UWRMSR, "UWRMSR", False, (), "26.1.3"),
    (_R.MSR_READ_IMM, "RDMSR with immediate operand", True, ("RDMSR_IMM",), "26.1.3"),
    (_R.MSR_WRITE_IMM, "WRMSRNS with immediate operand", True, ("WRMSRNS_IMM",), "26.1.3"),
)

EXIT_REASONS: Mapping[int, ExitReasonRow] = MappingProxyType(
    {
        int(reason): ExitReasonRow(
            int(reason), reason.name, words, f"EXIT_REASON_{reason.name}" if kvm else None, aliases, section
        )
        for reason, words, kvm, aliases, section in _TABLE
    }
)
"""All known basic exit reasons by number."""


def _fold(name: str) -> str:
    return "".join(c for c in name.upper() if c.isalnum())


def _names_of(row: ExitReasonRow) -> tuple[str, ...]:
    return (row.name, row.sdm_name, f"EXIT_REASON_{row.name}", *row.aliases, *(f"EXIT_REASON_{a}" for a in row.aliases))


_BY_NAME = {_fold(name): row.number for row in EXIT_REASONS.values() for name in _names_of(row)}


def exit_reason_name(number: int) -> str:
    """Name of a basic exit reason; the number as text when it is unknown."""
    row = EXIT_REASONS.get(number)
    return row.name if row else str(number)


def exit_reason_from_name(name: str) -> int:
    """Number of the exit reason called ``name``: KVM's trace name or macro, the manual's words, an older alias.

    Case and punctuation do not count. A decimal number stands for itself.

    Raises
    ------
    KeyError
        No such exit reason; the message suggests the nearest names.
    """
    text = name.strip()
    if text.isdecimal():
        return int(text)
    number = _BY_NAME.get(_fold(text))
    if number is None:
        near = difflib.get_close_matches(text.upper(), [row.name for row in EXIT_REASONS.values()], n=3)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise KeyError(f"no VMX exit reason is called {name!r}{hint}")
    return number
