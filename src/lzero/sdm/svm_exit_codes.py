"""Exit codes of AMD's SVM, for traces recorded on AMD hosts (AMD APM vol. 2, appendix C "SVM Intercept Exit Codes").

Member names are those of Linux's ``SVM_EXIT_*`` macros; ``trace_name`` is what KVM's tracepoints print.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

__all__ = ["SECTION", "SVM_EXIT_CODES", "SvmExitRow", "svm_exit_code_from_name", "svm_exit_name"]

SECTION = "APM vol. 2, appendix C"


@dataclass(frozen=True, slots=True)
class SvmExitRow:
    """One SVM exit code; ``number`` is the VMCB's EXITCODE as an unsigned 64-bit number."""

    number: int
    name: str
    trace_name: str
    section: str


_INVALID = (1 << 64) - 1
_CR = (0, 2, 3, 4, 8)
_EXCEPTIONS = {
    0: "DE",
    1: "DB",
    3: "BP",
    4: "OF",
    5: "BR",
    6: "UD",
    7: "NM",
    8: "DF",
    10: "TS",
    11: "NP",
    12: "SS",
    13: "GP",
    14: "PF",
    16: "MF",
    17: "AC",
    18: "MC",
    19: "XF",
}
_SINGLE: tuple[tuple[int, str, str], ...] = (
    (0x060, "INTR", "interrupt"),
    (0x061, "NMI", "nmi"),
    (0x062, "SMI", "smi"),
    (0x063, "INIT", "init"),
    (0x064, "VINTR", "vintr"),
    (0x065, "CR0_SEL_WRITE", "cr0_sel_write"),
    (0x066, "IDTR_READ", "read_idtr"),
    (0x067, "GDTR_READ", "read_gdtr"),
    (0x068, "LDTR_READ", "read_ldtr"),
    (0x069, "TR_READ", "read_rt"),
    (0x06A, "IDTR_WRITE", "write_idtr"),
    (0x06B, "GDTR_WRITE", "write_gdtr"),
    (0x06C, "LDTR_WRITE", "write_ldtr"),
    (0x06D, "TR_WRITE", "write_rt"),
    (0x06E, "RDTSC", "rdtsc"),
    (0x06F, "RDPMC", "rdpmc"),
    (0x070, "PUSHF", "pushf"),
    (0x071, "POPF", "popf"),
    (0x072, "CPUID", "cpuid"),
    (0x073, "RSM", "rsm"),
    (0x074, "IRET", "iret"),
    (0x075, "SWINT", "swint"),
    (0x076, "INVD", "invd"),
    (0x077, "PAUSE", "pause"),
    (0x078, "HLT", "hlt"),
    (0x079, "INVLPG", "invlpg"),
    (0x07A, "INVLPGA", "invlpga"),
    (0x07B, "IOIO", "io"),
    (0x07C, "MSR", "msr"),
    (0x07D, "TASK_SWITCH", "task_switch"),
    (0x07E, "FERR_FREEZE", "ferr_freeze"),
    (0x07F, "SHUTDOWN", "shutdown"),
    (0x080, "VMRUN", "vmrun"),
    (0x081, "VMMCALL", "hypercall"),
    (0x082, "VMLOAD", "vmload"),
    (0x083, "VMSAVE", "vmsave"),
    (0x084, "STGI", "stgi"),
    (0x085, "CLGI", "clgi"),
    (0x086, "SKINIT", "skinit"),
    (0x087, "RDTSCP", "rdtscp"),
    (0x088, "ICEBP", "icebp"),
    (0x089, "WBINVD", "wbinvd"),
    (0x08A, "MONITOR", "monitor"),
    (0x08B, "MWAIT", "mwait"),
    (0x08C, "MWAIT_COND", "mwait_cond"),
    (0x08D, "XSETBV", "xsetbv"),
    (0x08E, "RDPRU", "rdpru"),
    (0x08F, "EFER_WRITE_TRAP", "write_efer_trap"),
    (0x090, "CR0_WRITE_TRAP", "write_cr0_trap"),
    (0x094, "CR4_WRITE_TRAP", "write_cr4_trap"),
    (0x098, "CR8_WRITE_TRAP", "write_cr8_trap"),
    (0x0A0, "INVLPGB", "invlpgb"),
    (0x0A1, "INVLPGB_ILLEGAL", "invlpgb_illegal"),
    (0x0A2, "INVPCID", "invpcid"),
    (0x0A3, "MCOMMIT", "mcommit"),
    (0x0A4, "TLBSYNC", "tlbsync"),
    (0x0A5, "BUS_LOCK", "buslock"),
    (0x0A6, "IDLE_HLT", "idle-halt"),
    (0x400, "NPF", "npf"),
    (0x401, "AVIC_INCOMPLETE_IPI", "avic_incomplete_ipi"),
    (0x402, "AVIC_UNACCELERATED_ACCESS", "avic_unaccelerated_access"),
    (0x403, "VMGEXIT", "vmgexit"),
    (_INVALID, "ERR", "invalid_guest_state"),
)


def _families() -> list[tuple[int, str, str]]:
    rows = [(n, f"READ_CR{n}", f"read_cr{n}") for n in _CR]
    rows += [(0x10 + n, f"WRITE_CR{n}", f"write_cr{n}") for n in _CR]
    rows += [(0x20 + n, f"READ_DR{n}", f"read_dr{n}") for n in range(8)]
    rows += [(0x30 + n, f"WRITE_DR{n}", f"write_dr{n}") for n in range(8)]
    rows += [(0x40 + n, f"EXCP_{name}", f"{name} excp") for n, name in _EXCEPTIONS.items()]
    return rows


SVM_EXIT_CODES: Mapping[int, SvmExitRow] = MappingProxyType(
    {number: SvmExitRow(number, name, trace, SECTION) for number, name, trace in (*_families(), *_SINGLE)}
)
"""Known SVM exit codes by number."""

_BY_NAME = {
    text.upper(): row.number
    for row in SVM_EXIT_CODES.values()
    for text in (row.name, row.trace_name, f"SVM_EXIT_{row.name}")
}


def svm_exit_name(number: int) -> str:
    """Trace name of an SVM exit code, or the number in hex; -1 is the same as all ones."""
    row = SVM_EXIT_CODES.get(number & _INVALID)
    return row.trace_name if row else f"0x{number:x}"


def svm_exit_code_from_name(name: str) -> int:
    """Number of the exit code that traces or Linux's macros call ``name``.

    Raises
    ------
    KeyError
        No such exit code.
    """
    number = _BY_NAME.get(name.strip().upper())
    if number is None:
        raise KeyError(f"no SVM exit code is called {name!r}")
    return number
