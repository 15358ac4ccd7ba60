"""Extended page tables: violations, misconfigurations, accessed and dirty flags, logging, execute control (SDM 3C
29.3).
"""

from __future__ import annotations

import pytest
from harness import (
    CODE,
    DATA,
    LONG,
    LONG_USER,
    PAE,
    PAGED,
    PML4,
    PROTECTED,
    PT0,
    REAL,
    TSS,
    Bench,
    Exit,
    Guest,
    Mode,
    handler,
)

from lzero.sdm.controls import ProcBased2
from lzero.sdm.exceptions import Vector
from lzero.sdm.exit_reasons import ExitReason as R
from lzero.sdm.formats import EptViolationQualification
from lzero.sdm.vmcs_fields import Field

EPT, MBEC, PML = ProcBased2.ENABLE_EPT, ProcBased2.MODE_BASED_EXECUTE_CONTROL_FOR_EPT, ProcBased2.ENABLE_PML
READ, WRITE, EXECUTE, USER_EXECUTE = 1, 2, 4, 1 << 10
ACCESSED, DIRTY = 1 << 8, 1 << 9
AD_POINTER = 0x5E


def violation(physical: int, linear: int | None = None, *, at: int = 0, final: bool = True, **bits: bool) -> Exit:
    """An EPT violation of an access with a linear address."""
    qualification = EptViolationQualification(linear_address_valid=True, final_translation=final, **bits)
    return Exit(
        R.EPT_VIOLATION, qualification.pack(), at=at, linear=physical if linear is None else linear, physical=physical
    )


ACCESSES = {
    "read": (f"mov al, [{DATA:#x}]", {"data_read": True}, READ),
    "write": (f"mov [{DATA:#x}], al", {"data_write": True}, WRITE),
    "read-modify-write": (f"inc byte ptr [{DATA:#x}]", {"data_read": True, "data_write": True}, READ | WRITE),
    "fetch": (f"mov eax, {DATA:#x}; jmp eax", {"instruction_fetch": True}, EXECUTE),
}


@pytest.mark.parametrize("rights", [0, READ, READ | WRITE, EXECUTE, READ | EXECUTE, READ | WRITE | EXECUTE])
@pytest.mark.parametrize("kind", ACCESSES)
@pytest.mark.parametrize("mode", [REAL, PROTECTED, PAGED, PAE, LONG, LONG_USER], ids=str)
def test_violation(bench: Bench, mode: Mode, kind: str, rights: int) -> None:
    """28.2.1 table 28-7: the access in bits 2:0, the rights of the page in bits 5:3, a linear address (7, 8)."""
    code, access, needed = ACCESSES[kind]
    if kind == "fetch":
        code = code.replace("jmp eax", "jmp rax") if mode.bits == 64 else code
        code = f"mov ax, {DATA:#x}; jmp ax" if mode is REAL else code
    guest = bench.guest(mode, code)
    guest.map(DATA, rights=rights, flags=0x30 if rights else 0)
    guest.write(DATA, b"\x0f\x01\xc1")
    exit = guest.enter()
    if needed & ~rights:
        if kind == "read-modify-write" and rights & READ:
            access = {"data_write": True}
            exit = Exit(**{**exit.__dict__, "qualification": exit.qualification & ~1})
        at = DATA - CODE if kind == "fetch" else 0
        seen = {"readable": bool(rights & 1), "writable": bool(rights & 2), "executable": bool(rights & 4)}
        if kind == "read-modify-write" and not rights & READ:
            exit = Exit(**{**exit.__dict__, "qualification": exit.qualification & ~2})
            access = {"data_read": True}
        assert exit == violation(DATA, at=at, **access, **seen)
    else:
        assert exit.reason == R.VMCALL


MISCONFIGURED = {
    "writable, not readable": DATA | WRITE | 0x30,
    "writable and executable, not readable": DATA | WRITE | EXECUTE | 0x30,
    "reserved memory type 2": DATA | 7 | 2 << 3,
    "reserved memory type 3": DATA | 7 | 3 << 3,
    "reserved memory type 7": DATA | 7 | 7 << 3,
    "address beyond MAXPHYADDR": 1 << 45 | 7 | 0x30,
}


@pytest.mark.parametrize("why", MISCONFIGURED)
def test_misconfiguration(bench: Bench, why: str) -> None:
    """29.3.3.1: no qualification; the guest-physical address is recorded; the linear one is not (28.2.1)."""
    guest = bench.guest(LONG, f"mov al, [{DATA:#x}]", EPT)
    guest.write_u64(guest.ept_slot(DATA), MISCONFIGURED[why])
    assert guest.enter() == Exit(R.EPT_MISCONFIG, physical=DATA)


def test_misconfiguration_of_a_table(bench: Bench) -> None:
    """29.3.3.1: reserved bits of an entry that refers to a table; a PML4 entry must not map a page."""
    for name, entry in (("pml4", "pdpt"), ("pd", "pt0")):
        guest = bench.guest(LONG, "nop", EPT)
        guest.write_u64(guest.bench.pages[name], guest.bench.pages[entry] | 7 | (0x80 if name == "pml4" else 0x8))
        assert guest.enter().reason == R.EPT_MISCONFIG


def test_execute_only(bench: Bench) -> None:
    """29.3.3.1: allowed by IA32_VMX_EPT_VPID_CAP bit 0."""
    guest = bench.guest(LONG, "mov eax, 1")
    guest.map(CODE, rights=EXECUTE)
    assert guest.enter() == guest.end()
    reads = bench.guest(LONG, f"mov al, [{CODE:#x}]")
    reads.map(CODE, rights=EXECUTE)
    assert reads.enter() == violation(CODE, data_read=True, executable=True)


def test_access_to_a_paging_structure(bench: Bench) -> None:
    """Table 28-7: bit 8 is 0 for accesses of the page walk; the linear address is that of the access."""
    guest = bench.guest(LONG, f"mov al, [{DATA:#x}]")
    guest.map(PT0, rights=0, flags=0)
    exit = guest.enter()
    assert exit == violation(PT0 + (CODE >> 12) * 8, CODE, data_read=True, final=False)


def test_setting_the_accessed_flag_writes_to_a_table(bench: Bench) -> None:
    """29.3.3.2: updates of accessed and dirty flags are writes (and reads: 29.3.2 lets either be reported)."""
    guest = bench.guest(LONG, f"mov al, [{DATA:#x}]", EPT)
    guest.page(DATA, DATA | 7)
    guest.map(PT0, rights=READ)
    exit = guest.enter()
    assert (exit.reason, exit.physical, exit.linear) == (R.EPT_VIOLATION, PT0 + (DATA >> 12) * 8, DATA)
    assert EptViolationQualification.unpack(exit.qualification).data_write
    assert not EptViolationQualification.unpack(exit.qualification).final_translation
    assert guest.read(PT0 + (DATA >> 12) * 8, 8) == DATA | 7


def test_accessed_and_dirty_flags_of_ept(bench: Bench) -> None:
    """29.3.5: reads set accessed, writes set dirty as well; page-walk accesses count as writes."""
    guest = bench.guest(LONG, f"mov al, [{DATA:#x}]; mov [{DATA + 0x1000:#x}], al", EPT)
    guest[Field.EPT_POINTER] = guest[Field.EPT_POINTER] & ~0xFFF | AD_POINTER
    assert guest.enter() == guest.end()
    pages = {"code": CODE, "read": DATA, "written": DATA + 0x1000, "table": PML4, "other": DATA + 0x2000}
    flags = {name: guest.read(guest.ept_slot(a), 8) & (ACCESSED | DIRTY) for name, a in pages.items()}
    both = ACCESSED | DIRTY
    assert flags == {"code": ACCESSED, "read": ACCESSED, "written": both, "table": both, "other": 0}


def test_accessed_and_dirty_flags_are_off(bench: Bench) -> None:
    """25.6.11: bit 6 of the EPT pointer."""
    guest = bench.guest(LONG, f"mov [{DATA:#x}], al", EPT)
    assert guest.enter() == guest.end()
    assert not guest.read(guest.ept_slot(DATA), 8) & (ACCESSED | DIRTY)


def test_page_walk_needs_write_access_under_accessed_and_dirty(bench: Bench) -> None:
    """29.3.3.2: with EPT's own flags, accesses to paging structures are treated as writes."""
    guest = bench.guest(LONG, "nop", EPT)
    guest[Field.EPT_POINTER] = guest[Field.EPT_POINTER] & ~0xFFF | AD_POINTER
    guest.map(PML4, rights=READ)
    exit = guest.enter()
    assert exit == violation(PML4, CODE, data_read=True, data_write=True, readable=True, final=False)


def test_page_modification_log(bench: Bench) -> None:
    """29.3.6: each dirty flag that becomes set logs the page's address and counts the index down."""
    guest = bench.guest(PROTECTED, f"mov [{DATA + 8:#x}], al; mov [{DATA + 0x1004:#x}], al; mov [{DATA:#x}], al", PML)
    guest[Field.EPT_POINTER] = guest[Field.EPT_POINTER] & ~0xFFF | AD_POINTER
    guest[Field.PML_INDEX] = 511
    assert guest.enter() == guest.end()
    assert guest[Field.PML_INDEX] == 509
    log = guest.bench.pages["pml"]
    assert [guest.read(log + 8 * n, 8) for n in (511, 510)] == [DATA, DATA + 0x1000]


def test_page_modification_log_full(bench: Bench) -> None:
    """29.3.6: exits before the access if the index is not in 0 to 511; index 0 still logs."""
    guest = bench.guest(PROTECTED, f"mov [{DATA:#x}], al; mov [{DATA + 0x1000:#x}], al", PML)
    guest[Field.EPT_POINTER] = guest[Field.EPT_POINTER] & ~0xFFF | AD_POINTER
    guest[Field.PML_INDEX] = 0
    assert guest.enter() == Exit(R.PML_FULL, at=guest.size // 2)
    assert guest[Field.PML_INDEX] == 0xFFFF
    assert not guest.read(guest.ept_slot(DATA + 0x1000), 8) & DIRTY
    guest[Field.PML_INDEX] = 511
    assert guest.enter() == guest.end()
    assert guest.read(guest.bench.pages["pml"] + 8 * 511, 8) == DATA + 0x1000


@pytest.mark.parametrize(("rights", "mode", "runs"), [
    (READ | EXECUTE, LONG, True), (READ | EXECUTE, LONG_USER, False),
    (READ | USER_EXECUTE, LONG, False), (READ | USER_EXECUTE, LONG_USER, True),
])  # fmt: skip
def test_mode_based_execute_control(bench: Bench, rights: int, mode: Mode, runs: bool) -> None:
    """29.3.3.2: bit 2 for supervisor-mode, bit 10 for user-mode linear addresses; table 28-7 bit 6."""
    guest = bench.guest(mode, "nop", EPT, MBEC)
    if mode is LONG:
        for page in range(0x20):  # a supervisor-mode linear address
            guest.page(page << 12, page << 12 | 0x63)
    for name, entry in (("pml4", "pdpt"), ("pdpt", "pd"), ("pd", "pt0")):
        guest.write_u64(guest.bench.pages[name], guest.bench.pages[entry] | 7 | USER_EXECUTE)
    guest.map(CODE, rights=rights)
    exit = guest.enter()
    if runs:
        assert exit == guest.end()
    else:
        assert exit == violation(CODE, instruction_fetch=True, readable=True, executable=bool(rights & EXECUTE),
                                 user_executable=bool(rights & USER_EXECUTE))  # fmt: skip


def test_large_pages(bench: Bench) -> None:
    """29.3.2: a 2 MiB page; bits 20:12 of its entry are reserved."""
    guest = bench.guest(LONG, f"mov al, [{DATA:#x}]", EPT)
    guest.write_u64(guest.bench.pages["pd"], 0xB7)
    guest.write(DATA, b"\x5a")
    assert guest.enter() == guest.end()
    assert guest.gpr[0] & 0xFF == 0x5A
    bad = bench.guest(LONG, "nop", EPT)
    bad.write_u64(bad.bench.pages["pd"], 0xB7 | 1 << 13)
    assert bad.enter().reason == R.EPT_MISCONFIG


def test_remapped_page(bench: Bench) -> None:
    """29.3: guest-physical is not physical."""
    guest = bench.guest(PAGED, f"mov al, [{DATA:#x}]; mov [{DATA + 1:#x}], al")
    guest.map(DATA, to=0x20_0000)
    guest.write(0x20_0000, b"\x77")
    assert guest.enter() == guest.end()
    assert guest.read(0x20_0000, 2) == 0x7777
    assert guest.read(DATA, 2) == 0


def test_violation_in_an_instruction_carried_out_here(bench: Bench) -> None:
    """28.2.1: SMSW is not the engine's when CR0 has host-owned bits; its store exits like any other."""
    guest = bench.guest(PAGED, f"smsw [{DATA:#x}]", CR0_GUEST_HOST_MASK=8)
    guest.map(DATA, rights=READ)
    assert guest.enter() == violation(DATA, data_write=True, readable=True)


def test_instructions_carried_out_here_respect_user_pages(bench: Bench) -> None:
    """3A 4.6: SMSW at CPL 3 may not write a supervisor page."""
    guest: Guest = bench.guest(LONG_USER, f"smsw [{DATA:#x}]", CR0_GUEST_HOST_MASK=8)
    guest.page(DATA, DATA | 0x63)
    assert guest.enter() == handler(Vector.PF)
    assert guest.read(guest[Field.GUEST_RSP], 8) == 7


def test_tss_under_ept(bench: Bench) -> None:
    """28.2.4: the read of the TSS's stack pointer while #UD is delivered."""
    guest = bench.guest(LONG_USER, "ud2")
    guest.map(TSS, rights=0, flags=0)
    exit = guest.enter()
    assert (exit.physical, exit.vectoring) == (TSS + 4, 0x8000_0306)
