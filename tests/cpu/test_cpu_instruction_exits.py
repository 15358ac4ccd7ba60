"""Instructions that exit, each with its control on and off (SDM 3C 26.1.2, 26.1.3; fields: 28.2).

A row reads: in this mode, this code exits like this with the control, and does that without.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from harness import (
    COMPATIBILITY,
    DATA,
    LONG,
    LONG_USER,
    MODES,
    PAGED,
    PROTECTED,
    REAL,
    USER32,
    V86,
    Bench,
    Exit,
    Mode,
    handler,
)

from lzero.sdm.controls import ControlFlag, ProcBased, ProcBased2
from lzero.sdm.exceptions import Vector
from lzero.sdm.exit_reasons import ExitReason as R
from lzero.sdm.vmcs_fields import Field

UD, GP = handler(Vector.UD), handler(Vector.GP)
ENDS = None
"""Without the control the code runs through."""


@dataclass(frozen=True)
class Row:
    """One rule."""

    section: str
    mode: Mode
    code: str
    control: ControlFlag | None
    exit: Exit
    without: Exit | None = ENDS
    also: tuple[ControlFlag, ...] = ()
    setup: str = ""

    def __str__(self) -> str:
        return f"{self.section}:{self.mode}:{self.code}"


def _always(code: str, reason: R, length: int, modes: tuple[Mode, ...] = MODES) -> list[Row]:
    return [Row("26.1.2", mode, code, None, Exit(reason, length=length)) for mode in modes]


SUPERVISOR = tuple(mode for mode in MODES if mode.cpl == 0)
USER = tuple(mode for mode in MODES if mode.cpl == 3)
P, P2 = ProcBased, ProcBased2

UNCONDITIONAL = [
    *_always("cpuid", R.CPUID, 2),
    *_always("vmcall", R.VMCALL, 3),
    *_always("invd", R.INVD, 2, SUPERVISOR),
]

CONTROLLED = [
    *(Row("26.1.3 HLT", m, "hlt", P.HLT_EXITING, Exit(R.HLT, length=1), Exit(R.HLT)) for m in ()),
    *(Row("26.1.3 PAUSE", m, "pause", P.PAUSE_EXITING, Exit(R.PAUSE_INSTRUCTION, length=2)) for m in MODES),
    *(Row("26.1.3 RDTSC", m, "rdtsc", P.RDTSC_EXITING, Exit(R.RDTSC, length=2)) for m in MODES),
    *(Row("26.1.3 RDTSCP", m, "rdtscp", P.RDTSC_EXITING, Exit(R.RDTSCP, length=3), also=(P2.ENABLE_RDTSCP,))
      for m in MODES),
    *(Row("26.1.3 RDPMC", m, "rdpmc", P.RDPMC_EXITING, Exit(R.RDPMC, length=2), GP) for m in SUPERVISOR),
    *(Row("26.1.3 MWAIT", m, "mwait", P.MWAIT_EXITING, Exit(R.MWAIT_INSTRUCTION, length=3)) for m in SUPERVISOR),
    *(Row("26.1.3 MONITOR", m, "monitor", P.MONITOR_EXITING, Exit(R.MONITOR_INSTRUCTION, length=3))
      for m in SUPERVISOR),
    *(Row("26.1.3 WBINVD", m, "wbinvd", P2.WBINVD_EXITING, Exit(R.WBINVD, length=2)) for m in SUPERVISOR),
    Row("26.1.3 INVLPG", LONG, "invlpg [rax + 0x123]", P.INVLPG_EXITING, Exit(R.INVLPG, 0x123, length=7)),
    Row("26.1.3 INVLPG", LONG, "mov rax, 0xffff800000000000; invlpg [rax]", P.INVLPG_EXITING,
        Exit(R.INVLPG, 0xFFFF_8000_0000_0000, at=10, length=3)),
    Row("26.1.3 INVLPG", PAGED, "invlpg [0x1234]", P.INVLPG_EXITING, Exit(R.INVLPG, 0x1234, length=7)),
    Row("26.1.3 RDRAND", LONG, "rdrand eax", P2.RDRAND_EXITING, Exit(R.RDRAND, length=3, information=1 << 11), UD),
    Row("26.1.3 RDRAND", LONG, "rdrand r9", P2.RDRAND_EXITING,
        Exit(R.RDRAND, length=4, information=9 << 3 | 2 << 11), UD),
    Row("26.1.3 RDRAND", PAGED, "rdrand ax", P2.RDRAND_EXITING, Exit(R.RDRAND, length=4), UD),
    Row("26.1.3 RDSEED", LONG, "rdseed eax", P2.RDSEED_EXITING, Exit(R.RDSEED, length=3, information=1 << 11), UD),
    Row("26.1.3 RDSEED", LONG, "rdseed r9", P2.RDSEED_EXITING,
        Exit(R.RDSEED, length=4, information=9 << 3 | 2 << 11), UD),
]  # fmt: skip


@pytest.mark.parametrize("row", [*UNCONDITIONAL, *CONTROLLED], ids=str)
def test_exits(bench: Bench, row: Row) -> None:
    """With its control 1 the instruction exits, RIP still on it."""
    controls = row.also if row.control is None else (*row.also, row.control)
    assert bench.guest(row.mode, row.code, *controls).enter() == row.exit


@pytest.mark.parametrize("row", CONTROLLED, ids=str)
def test_does_not_exit_without_its_control(bench: Bench, row: Row) -> None:
    """With its control 0 it executes, or faults if the processor does not offer it."""
    guest = bench.guest(row.mode, row.code, *row.also)
    if row.control is not None:
        guest.off(row.control)
    if row.control in (P2.RDRAND_EXITING, P2.RDSEED_EXITING):
        assert guest.enter() == row.without
    else:
        assert guest.enter() == (guest.end() if row.without is None else row.without)


# --- faults that come before the exit (26.1.1) -------------------------------------------------------------------

PRIVILEGED = [
    ("hlt", P.HLT_EXITING), ("invd", None), ("wbinvd", P2.WBINVD_EXITING), ("invlpg [eax]", P.INVLPG_EXITING),
    ("mov eax, cr0", None), ("mov cr3, eax", P.CR3_LOAD_EXITING), ("clts", None), ("lmsw ax", None),
    ("lgdt [eax]", P2.DESCRIPTOR_TABLE_EXITING), ("lidt [eax]", P2.DESCRIPTOR_TABLE_EXITING),
    ("rdmsr", None), ("wrmsr", None), ("rdpmc", P.RDPMC_EXITING),
]  # fmt: skip


@pytest.mark.parametrize(("code", "control"), PRIVILEGED, ids=[c for c, _ in PRIVILEGED])
@pytest.mark.parametrize("mode", [USER32, LONG_USER], ids=str)
def test_privilege_comes_before_the_exit(bench: Bench, mode: Mode, code: str, control: ControlFlag | None) -> None:
    """26.1.1: #GP(0) at CPL 3, exit control or not."""
    if mode.bits == 64:
        code = code.replace("eax", "rax")
    guest = bench.guest(mode, code, *([control] if control else []))
    assert guest.enter() == GP


@pytest.mark.parametrize("code", ["monitor", "mwait"])
def test_monitor_and_mwait_are_undefined_above_ring_0(bench: Bench, code: str) -> None:
    """2B MONITOR, MWAIT: #UD if CPL is not 0, before any exit."""
    assert bench.guest(LONG_USER, code, P.MONITOR_EXITING, P.MWAIT_EXITING).enter() == UD


def test_rdtsc_faults_before_it_exits(bench: Bench) -> None:
    """26.1.1: CR4.TSD and CPL 3 make #GP, not an exit."""
    guest = bench.guest(LONG_USER, "rdtsc", P.RDTSC_EXITING)
    guest[Field.GUEST_CR4] = guest[Field.GUEST_CR4] | 4
    assert guest.enter() == GP


def test_rdtscp_needs_its_control(bench: Bench) -> None:
    """25.6.2: #UD while "enable RDTSCP" is 0, RDTSC exiting or not."""
    assert bench.guest(LONG, "rdtscp").enter() == UD
    assert bench.guest(LONG, "rdtscp", P.RDTSC_EXITING).enter() == UD


# --- VMX instructions --------------------------------------------------------------------------------------------

VMX = {
    "vmclear [rax + 0x10]": (R.VMCLEAR, 5, 0x10),
    "vmptrld [rax + 0x10]": (R.VMPTRLD, 4, 0x10),
    "vmptrst [rax + 0x10]": (R.VMPTRST, 4, 0x10),
    "vmlaunch": (R.VMLAUNCH, 3, 0),
    "vmresume": (R.VMRESUME, 3, 0),
    "vmxoff": (R.VMOFF, 3, 0),
    "vmxon [rax + 0x10]": (R.VMON, 5, 0x10),
}
DS_BASE_RAX = 2 << 7 | 3 << 15 | 1 << 22 | 0 << 23
"""Instruction information of ``[rax]``: 64-bit address, DS, no index, base RAX."""


@pytest.mark.parametrize("code", VMX)
@pytest.mark.parametrize("mode", [LONG, LONG_USER], ids=str)
def test_vmx_instruction(bench: Bench, mode: Mode, code: str) -> None:
    """26.1.2: VMX instructions exit at any privilege level; the displacement is the qualification (28.2.1)."""
    reason, length, displacement = VMX[code]
    information = DS_BASE_RAX if displacement else 0
    assert bench.guest(mode, code).enter() == Exit(reason, displacement, length=length, information=information)


@pytest.mark.parametrize("code", VMX)
@pytest.mark.parametrize("mode", [REAL, V86, COMPATIBILITY], ids=str)
def test_vmx_instruction_is_undefined_here(bench: Bench, mode: Mode, code: str) -> None:
    """Chapter 31: #UD in real mode, virtual-8086 mode and compatibility mode, before the exit."""
    code = code.replace("rax", "eax" if mode.bits == 32 else "si")
    assert bench.guest(mode, code).enter() == UD


def test_vmcall_exits_in_every_mode(bench: Bench) -> None:
    """2D VMCALL: VMX non-root operation is looked at before the mode."""
    for mode in MODES:
        assert bench.guest(mode, "vmcall").enter() == Exit(R.VMCALL, length=3)


def test_vmxon_needs_cr4_vmxe(bench: Bench) -> None:
    """2D VMXON: #UD while CR4.VMXE is 0 (here: as the shadow is not consulted, VMXE is fixed to 1 and it exits)."""
    assert bench.guest(PROTECTED, "vmxon [eax]").enter().reason == R.VMON


INVALIDATE = DS_BASE_RAX & ~(0xF << 23) | 3 << 23


@pytest.mark.parametrize(("code", "reason"), [("invept rax, [rbx]", R.INVEPT), ("invvpid rax, [rbx]", R.INVVPID)])
def test_invept_and_invvpid(bench: Bench, code: str, reason: R) -> None:
    """26.1.2; the register operand is in bits 31:28 of the information (table 28-9)."""
    assert bench.guest(LONG, code).enter() == Exit(reason, length=5, information=INVALIDATE)


def test_invpcid(bench: Bench) -> None:
    """26.1.3: INVPCID exits if it is enabled and INVLPG exiting is 1; without "enable INVPCID" it is #UD."""
    code = "xor rax, rax; lea rbx, [rip + 0x1000]; invpcid rax, [rbx]"
    assert bench.guest(LONG, code).enter() == UD
    assert bench.guest(LONG, code, P.INVLPG_EXITING).enter() == UD
    exits = bench.guest(LONG, code, P.INVLPG_EXITING, P2.ENABLE_INVPCID)
    assert exits.enter() == Exit(R.INVPCID, at=10, length=5, information=INVALIDATE)
    runs = bench.guest(LONG, code, P2.ENABLE_INVPCID)
    assert runs.enter() == runs.end()


def test_invpcid_privilege_comes_first(bench: Bench) -> None:
    """2A INVPCID: #GP(0) if CPL is not 0."""
    assert bench.guest(LONG_USER, "invpcid rax, [rbx]", P.INVLPG_EXITING, P2.ENABLE_INVPCID).enter() == GP


def test_invpcid_type_and_descriptor_are_checked(bench: Bench) -> None:
    """2A INVPCID: #GP(0) for a type above 3 and for reserved descriptor bits."""
    assert bench.guest(LONG, f"mov eax, 4; mov ebx, {DATA}; invpcid rax, [rbx]", P2.ENABLE_INVPCID).enter() == GP
    guest = bench.guest(LONG, f"mov eax, 0; mov ebx, {DATA}; invpcid rax, [rbx]", P2.ENABLE_INVPCID)
    guest.write_u64(DATA, 1 << 12, 0)
    assert guest.enter() == GP


def test_vmread_and_vmwrite_information(bench: Bench) -> None:
    """Table 28-14: operands of VMREAD and VMWRITE."""
    assert bench.guest(LONG, "vmread rcx, rdx").enter() == Exit(
        R.VMREAD, length=3, information=1 << 3 | 1 << 10 | 2 << 28
    )
    assert bench.guest(LONG, "vmwrite r9, r10").enter() == Exit(
        R.VMWRITE, length=4, information=10 << 3 | 1 << 10 | 9 << 28
    )
    memory = 2 << 7 | 4 << 15 | 2 << 18 | 3 << 23 | 1
    assert bench.guest(LONG, "vmread fs:[rbx + rdx*2 - 8], rsi").enter() == Exit(
        R.VMREAD, (1 << 64) - 8, length=6, information=memory | 6 << 28
    )


@pytest.mark.parametrize("code", ["xsetbv"])
def test_xsetbv(bench: Bench, code: str) -> None:
    """26.1.2: XSETBV exits; #UD while CR4.OSXSAVE is 0."""
    assert bench.guest(LONG, code).enter() == UD


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_getsec_is_undefined_without_smx(bench: Bench, mode: Mode) -> None:
    """26.1.2: GETSEC exits only where CR4.SMXE can be 1."""
    assert bench.guest(mode, "getsec").enter() == UD


# --- HLT and the activity state ----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", SUPERVISOR, ids=str)
def test_hlt_exits(bench: Bench, mode: Mode) -> None:
    """26.1.3: HLT exiting."""
    assert bench.guest(mode, "hlt", P.HLT_EXITING).enter() == Exit(R.HLT, length=1)


# --- descriptor tables -------------------------------------------------------------------------------------------

_NO_INDEX_RAX = 2 << 7 | 3 << 15 | 1 << 22
DESCRIPTOR_TABLES = [
    ("sgdt [rax]", R.GDTR_IDTR, 0, 3, _NO_INDEX_RAX | 1 << 11 | 0 << 28),
    ("sidt [rax]", R.GDTR_IDTR, 0, 3, _NO_INDEX_RAX | 1 << 11 | 1 << 28),
    ("lgdt [rax + 8]", R.GDTR_IDTR, 8, 4, _NO_INDEX_RAX | 1 << 11 | 2 << 28),
    ("lidt [rax + rcx*4 - 1]", R.GDTR_IDTR, (1 << 64) - 1, 5, 2 | 2 << 7 | 3 << 15 | 1 << 18 | 1 << 11 | 3 << 28),
    ("sldt rdx", R.LDTR_TR, 0, 4, 2 << 3 | 1 << 10 | 0 << 28),
    ("str word ptr [rax]", R.LDTR_TR, 0, 4, _NO_INDEX_RAX | 1 << 28),
    ("lldt r9w", R.LDTR_TR, 0, 4, 9 << 3 | 1 << 10 | 2 << 28),
    ("ltr word ptr [rax]", R.LDTR_TR, 0, 3, _NO_INDEX_RAX | 3 << 28),
]


@pytest.mark.parametrize(("code", "reason", "displacement", "length", "information"), DESCRIPTOR_TABLES)
def test_descriptor_table_exiting(
    bench: Bench, code: str, reason: R, displacement: int, length: int, information: int
) -> None:
    """26.1.3, tables 28-10 and 28-11."""
    guest = bench.guest(LONG, code, P2.DESCRIPTOR_TABLE_EXITING)
    exit = guest.enter()
    undefined = 0x3 << 8 if exit.information >> 10 & 1 else 0
    assert exit == Exit(reason, displacement, length=guest.size, information=information & ~undefined)


def test_rip_relative_displacement(bench: Bench) -> None:
    """28.2.1: with RIP-relative addressing the qualification is the sum with the next instruction's address."""
    guest = bench.guest(LONG, "lgdt [rip + 0x20]", P2.DESCRIPTOR_TABLE_EXITING)
    assert guest.enter().qualification == 0x8000 + 7 + 0x20
