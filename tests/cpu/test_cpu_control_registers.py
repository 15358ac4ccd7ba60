"""Control and debug registers in VMX non-root operation (SDM 3C 26.1.3, 26.3; qualifications: tables 28-3, 28-4)."""

from __future__ import annotations

import pytest
from harness import (
    CODE,
    DATA,
    LONG,
    LONG_USER,
    PAE,
    PAGED,
    PDPT_PAE,
    PML4,
    PROTECTED,
    REAL,
    USER32,
    Bench,
    Exit,
    Guest,
    Mode,
    handler,
)

from lzero.sdm.controls import ProcBased, ProcBased2
from lzero.sdm.exceptions import Vector
from lzero.sdm.exit_reasons import ExitReason as R
from lzero.sdm.formats import CrAccessQualification, CrAccessType, MovDrQualification
from lzero.sdm.registers import Cr0, Cr4, Efer
from lzero.sdm.vmcs_fields import Field

UD, GP = handler(Vector.UD), handler(Vector.GP)
P = ProcBased
RAX, RCX, R12 = 0, 1, 12


def cr_exit(
    register: int, kind: CrAccessType, general: int = 0, at: int = 0, length: int = 3, linear: int = 0, **more: int
) -> Exit:
    """An exit due to a control-register access."""
    qualification = CrAccessQualification(register, kind, general_register=general, **more).pack()
    return Exit(R.CR_ACCESS, qualification, at=at, length=length, linear=linear)


TO, FROM, CLTS, LMSW = CrAccessType.MOV_TO_CR, CrAccessType.MOV_FROM_CR, CrAccessType.CLTS, CrAccessType.LMSW

# --- MOV CR3 and CR8 ---------------------------------------------------------------------------------------------

MOVES = [
    ("mov cr3, rax", P.CR3_LOAD_EXITING, cr_exit(3, TO, RAX)),
    ("mov cr3, r12", P.CR3_LOAD_EXITING, cr_exit(3, TO, R12, length=4)),
    ("mov rcx, cr3", P.CR3_STORE_EXITING, cr_exit(3, FROM, RCX)),
    ("mov cr8, rax", P.CR8_LOAD_EXITING, cr_exit(8, TO, RAX, length=4)),
    ("mov rcx, cr8", P.CR8_STORE_EXITING, cr_exit(8, FROM, RCX, length=4)),
]


@pytest.mark.parametrize(("code", "control", "exit"), MOVES, ids=[m[0] for m in MOVES])
def test_moves_exit_with_their_control(bench: Bench, code: str, control: ProcBased, exit: Exit) -> None:
    """26.1.3, table 28-3."""
    assert bench.guest(LONG, code, control).enter() == exit


@pytest.mark.parametrize(("code", "control", "exit"), MOVES, ids=[m[0] for m in MOVES])
def test_moves_run_without_their_control(bench: Bench, code: str, control: ProcBased, exit: Exit) -> None:
    """26.1.3: nothing exits."""
    guest = bench.guest(LONG, code).off(control)
    guest.gpr[RAX] = guest.gpr[R12] = PML4 if "cr3" in code else 7
    assert guest.enter() == guest.end()


def test_cr3_targets(bench: Bench) -> None:
    """25.6.7: a value among the first CR3-target-count ones does not exit."""
    targets = {
        "CR3_TARGET_COUNT": 2,
        "CR3_TARGET_VALUE_0": 0x5000,
        "CR3_TARGET_VALUE_1": PML4,
        "CR3_TARGET_VALUE_2": 0x77000,
    }
    runs = bench.guest(LONG, f"mov eax, {PML4}; mov cr3, rax", P.CR3_LOAD_EXITING, **targets)
    assert runs.enter() == runs.end()
    beyond_the_count = bench.guest(LONG, "mov eax, 0x77000; mov cr3, rax", P.CR3_LOAD_EXITING, **targets)
    assert beyond_the_count.enter() == cr_exit(3, TO, RAX, at=5)


def test_mov_to_cr3_of_too_wide_an_address_faults(bench: Bench) -> None:
    """3A 4.5: bits of CR3 beyond MAXPHYADDR are reserved in IA-32e mode."""
    assert bench.guest(LONG, "mov rax, 0x100000000010000; mov cr3, rax").enter() == GP


def test_mov_to_cr8_of_reserved_bits_faults(bench: Bench) -> None:
    """3A 2.5: CR8 holds four bits; #GP(0) precedes the exit as any fault of the instruction (26.1.1)."""
    assert bench.guest(LONG, "mov eax, 0x10; mov cr8, rax").enter() == GP


def test_tpr_shadow(bench: Bench) -> None:
    """30.1.2, 30.1.3: MOV CR8 reads and writes the virtual TPR; falling below the threshold exits after the move."""
    guest = bench.guest(LONG, "mov eax, 5; mov cr8, rax; mov rcx, cr8; mov eax, 2; mov cr8, rax; nop", P.USE_TPR_SHADOW)
    guest[Field.TPR_THRESHOLD] = 3
    guest.write(guest.bench.pages["apic"] + 0x80, b"\x40")
    assert guest.enter() == Exit(R.TPR_BELOW_THRESHOLD, at=guest.size - 1)
    assert guest.gpr[RCX] == 5
    assert guest.read(guest.bench.pages["apic"] + 0x80, 4) == 0x20


# --- CR0 and CR4: guest/host masks and read shadows --------------------------------------------------------------


def test_read_of_cr0_and_cr4_mixes_register_and_shadow(bench: Bench) -> None:
    """26.3: bits owned by the host read from the shadow."""
    guest = bench.guest(
        LONG, "mov rax, cr0; mov rcx, cr4; smsw rdx; smsw [0xa000]",
        CR0_GUEST_HOST_MASK=0x8, CR0_READ_SHADOW=0xFFFF_FFFF, CR4_GUEST_HOST_MASK=int(Cr4.VMXE | Cr4.DE),
        CR4_READ_SHADOW=int(Cr4.DE),
    )  # fmt: skip
    assert guest.enter() == guest.end()
    assert guest.gpr[RAX] == LONG.cr0 | 8
    assert guest.gpr[RCX] == Cr4.PAE | Cr4.DE
    assert guest.gpr[2] == LONG.cr0 | 8
    assert guest.read(DATA, 4) == (LONG.cr0 | 8) & 0xFFFF


def test_smsw_of_a_word(bench: Bench) -> None:
    """2B SMSW: a 16-bit register keeps its upper part."""
    guest = bench.guest(LONG, "mov rax, -1; smsw ax", CR0_GUEST_HOST_MASK=0x8, CR0_READ_SHADOW=8)
    assert guest.enter() == guest.end()
    assert guest.gpr[RAX] == (1 << 64) - 0x10000 | (LONG.cr0 | 8) & 0xFFFF


@pytest.mark.parametrize(("number", "bit"), [(0, Cr0.TS), (0, Cr0.CD), (4, Cr4.DE), (4, Cr4.PGE)])
def test_change_of_a_host_owned_bit_exits(bench: Bench, number: int, bit: int) -> None:
    """26.1.3: MOV to CR0 or CR4 exits if a host-owned bit would differ from the shadow; else owned bits stay."""
    code = f"mov rax, cr{number}; xor rax, {int(bit)}; mov cr{number}, rax"
    prefix = "CR0" if number == 0 else "CR4"
    shadow = {f"{prefix}_READ_SHADOW": LONG.cr0 if number == 0 else LONG.cr4 | Cr4.VMXE}
    owned = bench.guest(LONG, code, **{f"{prefix}_GUEST_HOST_MASK": int(bit)}, **shadow)
    assert owned.enter() == cr_exit(number, TO, RAX, at=owned.size - 3)
    free = bench.guest(LONG, code, **shadow)
    assert free.enter() == free.end()
    register = Field.GUEST_CR0 if number == 0 else Field.GUEST_CR4
    assert free[register] & bit
    kept = bench.guest(LONG, f"mov rax, cr{number}; mov cr{number}, rax", **{f"{prefix}_GUEST_HOST_MASK": int(bit)})
    kept[Field.CR0_READ_SHADOW if number == 0 else Field.CR4_READ_SHADOW] = bit
    assert kept.enter() == kept.end()
    assert not kept[register] & bit


CLTS_ROWS = [
    # mask of TS, shadow of TS, CR0.TS before: exits, CR0.TS after
    (0, 0, 1, False, 0),
    (0, 1, 1, False, 0),
    (1, 0, 1, False, 1),
    (1, 1, 1, True, 1),
    (1, 1, 0, True, 0),
]


@pytest.mark.parametrize(("mask", "shadow", "before", "exits", "after"), CLTS_ROWS)
def test_clts(bench: Bench, mask: int, shadow: int, before: int, exits: bool, after: int) -> None:
    """26.1.3, 26.3: CLTS exits if TS is set in mask and shadow; it clears TS only if the guest owns it."""
    guest = bench.guest(
        LONG, "clts", CR0_GUEST_HOST_MASK=mask * 8, CR0_READ_SHADOW=shadow * 8, GUEST_CR0=LONG.cr0 | before * 8
    )
    assert guest.enter() == (cr_exit(0, CLTS, length=2) if exits else guest.end())
    assert guest[Field.GUEST_CR0] >> 3 & 1 == after


LMSW_ROWS = [
    # code, mask, shadow: exits?
    ("mov ax, 0xa; lmsw ax", 0x8, 0, True),
    ("mov ax, 0x2; lmsw ax", 0x8, 0, False),
    ("mov ax, 0x1; lmsw ax", 0x1, 0, True),
    ("mov ax, 0x0; lmsw ax", 0x1, 1, False),
    ("mov ax, 0x10; lmsw ax", 0x10, 0, False),
]


@pytest.mark.parametrize(("code", "mask", "shadow", "exits"), LMSW_ROWS)
def test_lmsw(bench: Bench, code: str, mask: int, shadow: int, exits: bool) -> None:
    """26.1.3: LMSW looks at bits 3:1, and at PE only when it would set it."""
    guest = bench.guest(LONG, code, CR0_GUEST_HOST_MASK=mask, CR0_READ_SHADOW=shadow)
    source = int(code[8:].split(";")[0], 16)
    expected = cr_exit(0, LMSW, at=4, lmsw_source=source) if exits else guest.end()
    assert guest.enter() == expected


def test_lmsw_of_memory(bench: Bench) -> None:
    """Table 28-3: bit 6, the source in bits 31:16, and the guest-linear address (28.2.1)."""
    guest = bench.guest(PAGED, f"lmsw [{DATA}]", CR0_GUEST_HOST_MASK=8)
    guest.write(DATA, b"\x08\x12")
    assert guest.enter() == cr_exit(0, LMSW, length=7, linear=DATA, lmsw_source=0x1208, lmsw_memory_operand=True)


def test_lmsw_cannot_clear_pe(bench: Bench) -> None:
    """2A LMSW."""
    guest = bench.guest(PROTECTED, "xor eax, eax; lmsw ax")
    assert guest.enter() == guest.end()
    assert guest[Field.GUEST_CR0] & Cr0.PE


INVALID_CR0 = [
    (LONG, Cr0.PG, "clears PG in 64-bit mode"),
    (LONG, Cr0.PE, "clears PE with PG"),
    (LONG, Cr0.NW, "sets NW without CD"),
    (LONG, Cr0.NE, "clears a fixed bit"),
    (LONG, 1 << 32, "sets a high bit"),
]


@pytest.mark.parametrize(("mode", "toggle", "why"), INVALID_CR0, ids=[row[2] for row in INVALID_CR0])
def test_invalid_cr0_faults(bench: Bench, mode: Mode, toggle: int, why: str) -> None:
    """2B MOV to CR, 23.8."""
    assert bench.guest(mode, f"mov rax, cr0; mov rcx, {int(toggle)}; xor rax, rcx; mov cr0, rax").enter() == GP


INVALID_CR4 = [
    (LONG, Cr4.PAE), (LONG, Cr4.PCIDE), (LONG, Cr4.VMXE), (LONG, 1 << 31), (LONG, Cr4.LA57), (LONG, 1 << 40),
]  # fmt: skip


@pytest.mark.parametrize(("mode", "toggle"), INVALID_CR4, ids=[hex(row[1]) for row in INVALID_CR4])
def test_invalid_cr4_faults(bench: Bench, mode: Mode, toggle: int) -> None:
    """2B MOV to CR, 23.8."""
    assert bench.guest(mode, f"mov rax, cr4; mov rcx, {int(toggle)}; xor rax, rcx; mov cr4, rax").enter() == GP


@pytest.mark.parametrize("register", [1, 5, 6, 7, 9, 15])
def test_other_control_registers_do_not_exist(bench: Bench, register: int) -> None:
    """2B MOV to and from CR: #UD."""
    modrm = 0xC0 | (register & 7) << 3
    prefix = b"\x44" if register > 7 else b""
    assert bench.guest(LONG, prefix + bytes((0x0F, 0x22, modrm))).enter() == UD
    assert bench.guest(LONG, prefix + bytes((0x0F, 0x20, modrm))).enter() == UD


def test_paging_can_be_turned_on_and_off(bench: Bench) -> None:
    """3A 9.9.1 and 25.6.2: an unrestricted guest goes from real mode to paging and back by itself."""
    guest = bench.guest(PROTECTED, f"mov eax, {PAGED.cr3}; mov cr3, eax; mov eax, cr0; or eax, 0x80000000; "
                        "mov cr0, eax; mov ecx, [0xa000]; and eax, 0x7fffffff; mov cr0, eax")  # fmt: skip
    guest.write(DATA, b"\x01\x02\x03\x04")
    assert guest.enter() == guest.end()
    assert guest.gpr[RCX] == 0x04030201


def test_long_mode_is_entered_by_the_guest(bench: Bench) -> None:
    """3A 9.8.5: PAE, EFER.LME, then PG: EFER.LMA becomes 1, and the entry control follows at the exit (28.2)."""
    paging = "mov eax, cr4; or eax, 0x20; mov cr4, eax; mov eax, cr0; or eax, 0x80000000; mov cr0, eax"
    code = f"mov eax, {PML4}; mov cr3, eax; {paging}"
    guest = bench.guest(PROTECTED, code, GUEST_IA32_EFER=int(Efer.LME))
    assert guest.enter() == guest.end()
    assert guest[Field.GUEST_IA32_EFER] & Efer.LMA
    assert guest[Field.VM_ENTRY_CONTROLS] >> 9 & 1


def test_pae_loads_its_pointers_when_cr3_is_written(bench: Bench) -> None:
    """3A 4.4.1: PDPTEs are loaded by MOV to CR3, #GP(0) if a reserved bit is set."""
    code = "mov eax, 0x1e000; mov cr3, eax; mov ecx, [0xa000]"
    good = bench.guest(PAE, code)
    good.write_u64(0x1E000, good.read(PDPT_PAE, 8), 0, 0, 0)
    good.write(DATA, b"\x11")
    assert good.enter() == good.end()
    assert good.gpr[RCX] == 0x11
    bad = bench.guest(PAE, code)
    bad.write_u64(0x1E000, bad.read(PDPT_PAE, 8) | 2, 0, 0, 0)
    assert bad.enter() == GP


def test_pae_keeps_its_pointers_while_cr3_stays(bench: Bench) -> None:
    """3A 4.4.1: memory behind a loaded PDPTE may change without effect."""
    guest = bench.guest(PAE, f"mov dword ptr [{PDPT_PAE}], 0; mov ecx, [0xa000]")
    assert guest.enter() == guest.end()


def test_pdptes_come_from_the_vmcs_under_ept(bench: Bench) -> None:
    """27.3.2.4: with EPT the four fields are loaded, whatever memory says."""
    guest = bench.guest(PAE, "mov ecx, [0xa000]", ProcBased2.ENABLE_EPT)
    guest.write_u64(PDPT_PAE, 0, 0, 0, 0)
    assert guest.enter() == guest.end()


def test_pdptes_come_from_memory_without_ept(bench: Bench) -> None:
    """27.3.2.4: without EPT they are read from where CR3 points; the VMCS fields do not exist for the guest."""
    guest = bench.guest(PAE, "mov ecx, [0xa000]", GUEST_PDPTE0=0)
    assert guest.enter() == guest.end()


# --- MOV DR ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [LONG, LONG_USER, PAGED, USER32], ids=str)
@pytest.mark.parametrize("number", range(8))
def test_mov_dr_exits_before_any_fault(bench: Bench, mode: Mode, number: int) -> None:
    """26.1.3: MOV DR under MOV-DR exiting exits even at CPL 3 and for DR4 and DR5 under CR4.DE."""
    to, from_ = bytes((0x0F, 0x23, 0xC1 | number << 3)), bytes((0x0F, 0x21, 0xC1 | number << 3))
    for code, is_read in ((to, False), (from_, True)):
        guest = bench.guest(mode, code, P.MOV_DR_EXITING)
        guest[Field.GUEST_CR4] = guest[Field.GUEST_CR4] | Cr4.DE
        assert guest.enter() == Exit(R.DR_ACCESS, MovDrQualification(number, is_read, RCX).pack(), length=3)


@pytest.mark.parametrize("mode", [LONG, PAGED, REAL], ids=str)
def test_mov_dr_without_exiting(bench: Bench, mode: Mode) -> None:
    """DR0 holds what is written."""
    name = "rax" if mode.bits == 64 else "eax"
    guest = bench.guest(mode, f"mov {name}, 0x1234; mov dr0, {name}; xor {name}, {name}; mov {name}, dr0")
    assert guest.enter() == guest.end()
    assert guest.gpr[RAX] == 0x1234


def test_mov_dr_faults_without_exiting(bench: Bench) -> None:
    """2B MOV DR: #GP at CPL 3, #UD for DR4 under CR4.DE."""
    assert bench.guest(LONG_USER, "mov dr0, rax").enter() == GP
    guest: Guest = bench.guest(LONG, b"\x0f\x23\xe0")
    guest[Field.GUEST_CR4] = guest[Field.GUEST_CR4] | Cr4.DE
    assert guest.enter() == UD


def test_dr7_is_saved_and_loaded(bench: Bench) -> None:
    """27.3.2.1, 28.3.1: "load debug controls" and "save debug controls"."""
    guest = bench.guest(LONG, "mov rax, dr7; mov ecx, 0x700; mov dr7, rcx", GUEST_DR7=0x600)
    assert guest.enter() == guest.end()
    assert guest.gpr[RAX] == 0x600
    assert guest[Field.GUEST_DR7] == 0x700


def test_general_detect_is_a_debug_exception(bench: Bench) -> None:
    """3B 17.2.4: DR7.GD makes MOV DR a #DB with DR6.BD."""
    guest = bench.guest(LONG, "mov rax, dr0", GUEST_DR7=0x2400, EXCEPTION_BITMAP=1 << Vector.DB)
    exit = guest.enter()
    assert (exit.reason, exit.qualification, exit.at) == (R.EXCEPTION_NMI, 1 << 13, 0)
    assert CODE + exit.at == guest[Field.GUEST_RIP]
