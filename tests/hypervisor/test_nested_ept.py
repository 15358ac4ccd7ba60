"""EPT that L1 makes for L2, and what builds on it: tests named after sections (SDM 3C 26.5, 28.2, 29.3)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from l2lab import (
    ACCESSED,
    AD_FLAGS,
    DATA,
    DIRTY,
    EXECUTE,
    L2,
    LARGE,
    READ,
    SUPPRESS_VE,
    USER_EXECUTE,
    VALID,
    WRITE,
    WRITE_BACK,
    L1Ept,
)
from nestedlab import L2_CODE, L2_STACK

from lzero.cpu.memory import HOST_BASE
from lzero.errors import GuestFault
from lzero.sdm.controls import ProcBased, ProcBased2
from lzero.sdm.exceptions import Vector
from lzero.sdm.exit_reasons import ExitReason as R
from lzero.sdm.vm_instruction_errors import VmInstructionError as E
from lzero.sdm.vmcs_fields import Field

LINEAR_VALID, FINAL = 1 << 7, 1 << 8
READ_DATA, WRITE_DATA = f"mov rax, [{DATA:#x}]; hlt", f"mov [{DATA:#x}], rax; hlt"
PAGE_TABLES = 0x40_8000
"""Page tables of L2's own, inside the region whose pages L1 maps one by one."""


@pytest.fixture
def l2() -> Iterator[L2]:
    made = L2()
    yield made
    made.close()


def own_page_tables(l2: L2, *, user: bool = False) -> None:
    """L2 on page tables inside DATA's region: identity, 2 MiB pages."""
    rights = 7 if user else 3
    l2.memory.write(PAGE_TABLES, (PAGE_TABLES + 0x1000 | rights).to_bytes(8, "little") + bytes(4088))
    l2.memory.write(PAGE_TABLES + 0x1000, (PAGE_TABLES + 0x2000 | rights).to_bytes(8, "little") + bytes(4088))
    entries = b"".join((number << 21 | 0x80 | rights).to_bytes(8, "little") for number in range(8))
    l2.memory.write(PAGE_TABLES + 0x2000, entries.ljust(4096, b"\0"))
    l2[Field.GUEST_CR3] = PAGE_TABLES


# --- 29.3.2 translation ---


@pytest.mark.parametrize("size", [1 << 12, 1 << 21])
def test_29_3_2_pages_of_each_size_translate(l2: L2, size: int) -> None:
    ept = l2.use_ept()
    target = DATA + size
    l2.memory.write_u64(target + 0x568, 0x1122_3344_5566_7788)
    ept.map(DATA, target, size=size, bits=7 | WRITE_BACK)
    assert l2.run(f"mov rax, [{DATA + 0x568:#x}]; mov [{DATA + 0x570:#x}], rax; hlt") == R.HLT
    assert l2.rax == l2.memory.read_u64(target + 0x570) == 0x1122_3344_5566_7788


def test_29_3_2_a_1_gib_page_translates(l2: L2) -> None:
    """The second GiB of L2 is the first of L1."""
    ept = l2.use_ept()
    ept.map(1 << 30, 0, size=1 << 30)
    l2.memory.write_u64(DATA, 77)
    assert l2.run(f"mov eax, {(1 << 30) + DATA:#x}; mov rax, [rax]; hlt") == R.HLT
    assert l2.rax == 77


@pytest.mark.parametrize(("structures", "page"), [(0, 0), (0, 6), (6, 0), (6, 6)])
def test_29_3_2_a_structure_of_either_memory_type(l2: L2, structures: int, page: int) -> None:
    """Uncacheable or write-back, for the tables (bits 2:0 of EPTP) and for the page."""
    ept = l2.use_ept()
    l2[Field.EPT_POINTER] = ept.pointer & ~7 | structures
    ept.map(DATA, bits=7 | page << 3)
    assert l2.run(WRITE_DATA, rax=5) == R.HLT
    assert l2.memory.read_u64(DATA) == 5


@pytest.mark.parametrize("pointer", [1, 4, 0x80, 1 << 39])
def test_27_2_1_1_a_bad_ept_pointer_is_refused(l2: L2, pointer: int) -> None:
    ept = l2.use_ept()
    l2[Field.EPT_POINTER] = ept.pointer & ~7 | pointer
    l2.code("hlt")
    l2.lab.step("vmlaunch")
    assert l2.lab.error() == E.ENTRY_INVALID_CONTROL_FIELDS


@pytest.mark.parametrize(
    ("rights", "code", "access"),
    [
        (0, READ_DATA, READ),
        (0, WRITE_DATA, WRITE),
        (READ, WRITE_DATA, WRITE),
        (EXECUTE, READ_DATA, READ),
        (READ | EXECUTE, WRITE_DATA, WRITE),
        (READ | WRITE, f"mov eax, {DATA:#x}; jmp rax", EXECUTE),
        (READ, f"mov eax, {DATA:#x}; jmp rax", EXECUTE),
    ],
)
def test_29_3_3_2_violation_and_28_2_1_its_qualification(l2: L2, rights: int, code: str, access: int) -> None:
    """Access in bits 2:0, the entry's rights in bits 5:3, linear address valid and final in bits 8:7."""
    ept = l2.use_ept()
    ept.map(DATA, bits=rights | (WRITE_BACK if rights else 0))
    assert l2.run(code) == R.EPT_VIOLATION
    assert l2.qualification & 0x1FF == access | rights << 3 | LINEAR_VALID | FINAL
    assert l2[Field.GUEST_PHYSICAL_ADDRESS] == l2[Field.GUEST_LINEAR_ADDRESS] == DATA


def test_29_3_2_the_rights_of_all_levels_count(l2: L2) -> None:
    ept = l2.use_ept()
    ept.map(DATA)
    directory = ept.slot(DATA, 21)
    l2.memory.write_u64(directory, l2.memory.read_u64(directory) & ~WRITE)
    assert l2.run(WRITE_DATA) == R.EPT_VIOLATION
    assert l2.qualification & 0x3F == WRITE | (READ | EXECUTE) << 3


def test_29_3_3_1_execute_only_pages_execute(l2: L2) -> None:
    ept = l2.use_ept()
    ept.map(DATA, bits=EXECUTE | WRITE_BACK)
    l2.code("hlt", at=DATA)
    assert l2.enter() == R.HLT


@pytest.mark.parametrize(
    ("level", "entry"),
    [
        (12, WRITE | WRITE_BACK),
        (12, WRITE | EXECUTE | WRITE_BACK),
        (12, READ | 2 << 3),
        (12, READ | 3 << 3),
        (12, READ | 7 << 3),
        (12, READ | WRITE_BACK | 1 << 40),
        (21, READ | WRITE_BACK | LARGE | 1 << 12),
        (21, READ | 1 << 3),
        (30, READ | WRITE_BACK | LARGE | 1 << 29),
        (39, READ | LARGE),
    ],
)
def test_29_3_3_1_misconfigurations_exit_to_l1(l2: L2, level: int, entry: int) -> None:
    """Write without read, reserved memory types, address bits beyond the width, reserved bits; qualification 0."""
    ept = l2.use_ept()
    address = {12: DATA, 21: DATA, 30: 1 << 30, 39: 0}[level]
    ept.map(address, size=1 << 21 if level > 12 else 1 << 12)
    l2.memory.write_u64(ept.slot(address, level), entry)
    reason = l2.run(f"mov eax, {address:#x}; mov rax, [rax]; hlt")
    assert reason == R.EPT_MISCONFIG
    assert l2.qualification == 0
    expected = l2[Field.GUEST_PHYSICAL_ADDRESS]
    assert expected == address or level == 39  # the first access of all fails when the top level does
    assert l2.lab.vcpu.nested.last_failure is None


def test_28_2_1_a_misconfiguration_is_recorded_as_what_l1_gets(l2: L2) -> None:
    """L0 met a violation of its own tables; the trace has the exit that L1 was given."""
    ept = l2.use_ept()
    ept.map(DATA, bits=WRITE | WRITE_BACK)
    l2.run(READ_DATA)
    counts = {(key[0], key[1]) for key in l2.lab.vcpu.recorder.aggregates.exits}
    assert (2, R.EPT_MISCONFIG) in counts


def test_28_2_1_page_walk_accesses_clear_bit_8(l2: L2) -> None:
    """A violation in the walk of L2's page tables: the linear address is valid, the translation not final."""
    ept = l2.use_ept()
    own_page_tables(l2)
    ept.map(PAGE_TABLES + 0x2000, bits=0)
    assert l2.run(READ_DATA) == R.EPT_VIOLATION
    assert l2.qualification & 0x1FF == READ | LINEAR_VALID
    assert l2[Field.GUEST_PHYSICAL_ADDRESS] & ~0xFFF == PAGE_TABLES + 0x2000


def test_28_2_1_page_walk_accesses_are_writes_with_accessed_and_dirty_flags(l2: L2) -> None:
    """29.3.3.2: with EPT's accessed and dirty flags they set bits 0 and 1."""
    ept = l2.use_ept(flags=AD_FLAGS)
    own_page_tables(l2)
    ept.map(PAGE_TABLES + 0x2000, bits=READ | WRITE_BACK)
    assert l2.run(READ_DATA) == R.EPT_VIOLATION
    assert l2.qualification & 0x1FF == READ | WRITE | READ << 3 | LINEAR_VALID


def test_29_3_5_accessed_and_dirty_flags(l2: L2) -> None:
    ept = l2.use_ept(flags=AD_FLAGS)
    ept.map(DATA)
    ept.map(DATA + 0x1000)
    assert l2.run(f"mov rax, [{DATA:#x}]; mov rax, [{DATA + 0x1000:#x}]; mov [{DATA + 0x1000:#x}], rax; hlt") == R.HLT
    assert ept.entry(DATA) & (ACCESSED | DIRTY) == ACCESSED
    assert ept.entry(DATA + 0x1000) & (ACCESSED | DIRTY) == ACCESSED | DIRTY
    for shift in (21, 30, 39):
        assert ept.entry(DATA, shift) & (ACCESSED | DIRTY) == ACCESSED


def test_29_3_5_without_bit_6_of_eptp_no_flag_is_set(l2: L2) -> None:
    ept = l2.use_ept()
    ept.map(DATA)
    assert l2.run(WRITE_DATA) == R.HLT
    assert not ept.entry(DATA) & (ACCESSED | DIRTY)


def test_29_4_3_1_a_changed_entry_counts_after_invept(l2: L2) -> None:
    ept = l2.use_ept()
    ept.map(DATA)
    assert l2.run(WRITE_DATA) == R.HLT
    ept.map(DATA, bits=READ | WRITE_BACK)
    l2.lab.step("invept", rbx=1, operand=ept.pointer.to_bytes(16, "little"))
    assert l2.run(WRITE_DATA) == R.EPT_VIOLATION


def test_28_2_4_a_violation_while_an_event_is_delivered(l2: L2) -> None:
    """The IDT-vectoring information holds the event that L1 injected."""
    ept = l2.use_ept()
    l2.use_idt()
    ept.map(L2_STACK, bits=READ | WRITE_BACK)
    l2.code("hlt")
    l2[Field.GUEST_RFLAGS] = 0x202
    l2[Field.VM_ENTRY_INTERRUPTION_INFORMATION] = VALID | 0x40
    assert l2.enter() == R.EPT_VIOLATION
    assert l2[Field.IDT_VECTORING_INFORMATION] == VALID | 0x40
    assert l2.rip == 0


# --- mode-based execute control ---


@pytest.mark.parametrize("rights", [EXECUTE, USER_EXECUTE])
@pytest.mark.parametrize("user", [False, True])
def test_29_3_2_mode_based_execute_control(l2: L2, rights: int, user: bool) -> None:
    """Bit 2 is for supervisor-mode linear addresses, bit 10 for user-mode ones; 28.2.1: bit 6 reports bit 10."""
    ept = l2.use_ept()
    l2.want(ProcBased2.MODE_BASED_EXECUTE_CONTROL_FOR_EPT)
    own_page_tables(l2, user=user)
    for number in range(8):
        slot = ept.slot(number << 21, 21)
        entry = l2.memory.read_u64(slot)
        l2.memory.write_u64(slot, entry | USER_EXECUTE)
    for shift in (30, 39):
        slot = ept.slot(DATA, shift)
        l2.memory.write_u64(slot, l2.memory.read_u64(slot) | USER_EXECUTE)
    ept.map(DATA, bits=READ | WRITE | rights | WRITE_BACK)
    slot = ept.slot(DATA, 21)
    l2.memory.write_u64(slot, l2.memory.read_u64(slot) | USER_EXECUTE)
    l2.code("hlt", at=DATA)
    for page in range(PAGE_TABLES, PAGE_TABLES + 0x3000, 0x1000):
        ept.map(page, bits=7 | USER_EXECUTE | WRITE_BACK)
    reason = l2.enter()
    if (rights == USER_EXECUTE) == user:
        assert reason == R.HLT
    else:
        assert reason == R.EPT_VIOLATION
        shown = (READ | WRITE) << 3 | (0x40 if rights == USER_EXECUTE else EXECUTE << 3)
        assert l2.qualification & 0x7F == EXECUTE | shown


# --- page-modification logging ---


def log(l2: L2, index: int) -> int:
    l2.want(ProcBased2.ENABLE_PML)
    page = l2.page()
    l2[Field.PML_ADDRESS], l2[Field.PML_INDEX] = page, index
    return page


def test_29_3_6_writes_are_logged_once(l2: L2) -> None:
    ept = l2.use_ept(flags=AD_FLAGS)
    ept.map(DATA)
    page = log(l2, 511)
    assert l2.run(f"mov [{DATA + 8:#x}], rax; mov [{DATA + 16:#x}], rax; hlt") == R.HLT
    logged = [l2.memory.read_u64(page + 8 * number) for number in range(l2[Field.PML_INDEX] + 1, 512)]
    assert logged.count(DATA) == 1


def test_29_3_6_a_full_log_exits(l2: L2) -> None:
    ept = l2.use_ept(flags=AD_FLAGS)
    ept.map(DATA)
    ept.map(DATA + 0x1000)
    for address in range(0, l2.memory.size, 1 << 21):  # the rest is dirty already
        if address != DATA:
            ept.map(address, size=1 << 21, bits=7 | WRITE_BACK | ACCESSED | DIRTY)
    page = log(l2, 0)
    assert l2.run(f"mov [{DATA:#x}], rax; mov [{DATA + 0x1008:#x}], rax; hlt") == R.PML_FULL
    assert l2[Field.PML_INDEX] == 0xFFFF
    assert l2.memory.read_u64(page) == DATA
    assert l2.rip == 10  # the second store was not done
    assert not ept.entry(DATA + 0x1000) & DIRTY
    l2[Field.PML_INDEX] = 511
    assert l2.enter() == R.HLT
    assert l2.memory.read_u64(page + 8 * 511) == DATA + 0x1000


# --- VM functions ---


def other_view(l2: L2) -> tuple[L1Ept, int]:
    """EPTP switching with a second set of tables, in which DATA is another page, as number 1 of the list."""
    first = l2.use_ept()
    second = L1Ept(l2.lab, 0x80_0000)
    second.map(DATA, DATA + 0x1000)
    l2.want(ProcBased2.ENABLE_VM_FUNCTIONS)
    eptps = l2.page()
    l2[Field.VM_FUNCTION_CONTROLS], l2[Field.EPTP_LIST_ADDRESS] = 1, eptps
    l2.memory.write_u64(eptps, first.pointer)
    l2.memory.write_u64(eptps + 8, second.pointer)
    l2.memory.write_u64(eptps + 16, second.pointer | 1)
    l2.memory.write_u64(DATA, 1)
    l2.memory.write_u64(DATA + 0x1000, 2)
    return second, eptps


def test_26_5_6_3_eptp_switching(l2: L2) -> None:
    second, _ = other_view(l2)
    code = f"mov edi, {DATA:#x}; mov rdx, [rdi]; vmfunc; mov rsi, [rdi]; hlt"
    assert l2.run(code, rax=0, rcx=1) == R.HLT
    assert (l2.cpu.gpr[2], l2.cpu.gpr[6]) == (1, 2)
    assert l2[Field.EPT_POINTER] == second.pointer
    assert l2.run(code, rax=0, rcx=0) == R.HLT
    assert (l2.cpu.gpr[2], l2.cpu.gpr[6]) == (2, 1)


@pytest.mark.parametrize(("function", "index"), [(0, 512), (0, 2), (0, 1 << 31), (1, 1), (63, 0)])
def test_26_5_6_2_vmfunc_that_fails_exits(l2: L2, function: int, index: int) -> None:
    """An index beyond the list, an EPTP that entry would refuse, a function that is not enabled."""
    other_view(l2)
    assert l2.run("vmfunc", rax=function, rcx=index) == R.VMFUNC
    assert (l2.rip, l2[Field.VM_EXIT_INSTRUCTION_LENGTH]) == (0, 3)


def test_26_5_6_2_vmfunc_above_63_or_not_enabled_is_undefined(l2: L2) -> None:
    other_view(l2)
    l2[Field.EXCEPTION_BITMAP] = 1 << Vector.UD
    assert l2.run("vmfunc", rax=64, rcx=1) == R.EXCEPTION_NMI
    assert l2[Field.VM_EXIT_INTERRUPTION_INFORMATION] & 0xFF == Vector.UD
    l2.refuse(ProcBased2.ENABLE_VM_FUNCTIONS)
    assert l2.run("vmfunc", rax=0, rcx=1) == R.EXCEPTION_NMI


# --- virtualization exceptions ---


def exceptions(l2: L2) -> int:
    l2.want(ProcBased2.EPT_VIOLATION_VE)
    area = l2.page()
    l2[Field.VIRTUALIZATION_EXCEPTION_INFORMATION_ADDRESS] = area
    l2[Field.EPTP_INDEX] = 0x1234
    return area


def test_26_5_7_2_the_information_area(l2: L2) -> None:
    ept = l2.use_ept()
    l2.use_idt()
    area = exceptions(l2)
    ept.map(DATA, bits=READ | WRITE_BACK)
    assert l2.run(f"mov [{DATA + 0x18:#x}], rax; hlt") == R.VMCALL
    assert l2.delivered == Vector.VE
    read = l2.memory.read
    assert read(area, 8) == int(R.EPT_VIOLATION).to_bytes(4, "little") + b"\xff" * 4
    words = [l2.memory.read_u64(area + offset) for offset in (8, 16, 24)]
    assert words[0] & 0x1FF == WRITE | READ << 3 | LINEAR_VALID | FINAL
    assert words[1:] == [DATA + 0x18, DATA + 0x18]
    assert read(area + 32, 2) == b"\x34\x12"


def test_26_5_7_1_a_busy_area_exits(l2: L2) -> None:
    ept = l2.use_ept()
    area = exceptions(l2)
    l2.memory.write(area + 4, b"\1")
    ept.map(DATA, bits=READ | WRITE_BACK)
    assert l2.run(WRITE_DATA) == R.EPT_VIOLATION


@pytest.mark.parametrize("entry", [READ | WRITE_BACK | SUPPRESS_VE, SUPPRESS_VE])
def test_26_5_7_1_bit_63_of_the_entry_suppresses_it(l2: L2, entry: int) -> None:
    ept = l2.use_ept()
    exceptions(l2)
    ept.map(DATA, bits=entry)
    assert l2.run(WRITE_DATA) == R.EPT_VIOLATION


def test_26_5_7_1_not_while_an_event_is_delivered(l2: L2) -> None:
    ept = l2.use_ept()
    l2.use_idt()
    exceptions(l2)
    ept.map(L2_STACK, bits=READ | WRITE_BACK)
    l2.code("hlt")
    l2[Field.GUEST_RFLAGS] = 0x202
    l2[Field.VM_ENTRY_INTERRUPTION_INFORMATION] = VALID | 0x40
    assert l2.enter() == R.EPT_VIOLATION


def test_26_5_7_3_the_exception_bitmap_selects_vector_20(l2: L2) -> None:
    ept = l2.use_ept()
    exceptions(l2)
    l2[Field.EXCEPTION_BITMAP] = 1 << Vector.VE
    ept.map(DATA, bits=READ | WRITE_BACK)
    assert l2.run(WRITE_DATA) == R.EXCEPTION_NMI
    assert l2[Field.VM_EXIT_INTERRUPTION_INFORMATION] == VALID | 3 << 8 | Vector.VE


# --- bad input ---


def test_ept_that_maps_a_device_reaches_the_device(l2: L2) -> None:
    """Version register of L1's I/O APIC through L2's address 0x400000."""
    ept = l2.use_ept()
    ept.map(DATA, 0xFEC0_0000)
    assert l2.run(f"mov eax, 1; mov [{DATA:#x}], eax; mov eax, [{DATA + 0x10:#x}]; hlt") == R.HLT
    assert l2.rax & 0xFF == l2.lab.pc.bus.mmio_read(0xFEC0_0010, 4) & 0xFF != 0


def test_ept_that_maps_nothing_reads_all_ones(l2: L2) -> None:
    ept = l2.use_ept()
    ept.map(DATA, 0x10_0000_0000)
    assert l2.run(READ_DATA) == R.HLT
    assert l2.rax == (1 << 64) - 1


def test_ept_that_maps_l0s_own_memory_finds_nothing_there(l2: L2) -> None:
    ept = l2.use_ept()
    ept.map(DATA, HOST_BASE)
    before = l2.cpu.memory.read(HOST_BASE, 4096)
    assert l2.run(f"{WRITE_DATA.removesuffix('; hlt')}; {READ_DATA}") == R.HLT
    assert l2.rax == (1 << 64) - 1
    assert l2.cpu.memory.read(HOST_BASE, 4096) == before


@pytest.mark.parametrize("what", ["code", "page tables"])
def test_code_and_page_tables_in_device_memory_end_the_run_with_a_message(l2: L2, what: str) -> None:
    ept = l2.use_ept()
    if what == "code":
        ept.map(DATA, 0xFEC0_0000)
        l2.code("hlt")
        l2[Field.GUEST_RIP] = DATA
    else:
        own_page_tables(l2)
        ept.map(PAGE_TABLES, 0xFEC0_0000)
        l2.code("hlt")
    with pytest.raises(GuestFault, match="0xfec00000 of L1"):
        l2.enter()


def test_self_referencing_ept(l2: L2) -> None:
    """The top table is its own directory, page table and page: L2 reads the entry it goes through."""
    root = l2.page()
    l2.memory.write_u64(root, root | 7)
    l2.memory.write_u64(root + 8 * (L2_CODE >> 12 & 511), L2_CODE & ~0xFFF | 7 | WRITE_BACK)
    l2.want(ProcBased2.ENABLE_EPT, ProcBased2.UNRESTRICTED_GUEST)
    l2[Field.EPT_POINTER] = root | 3 << 3 | 6
    assert l2.run("hlt") in {R.EPT_MISCONFIG, R.EPT_VIOLATION}


@pytest.mark.parametrize("root", [0xFEC0_0000, 0x10_0000_0000, HOST_BASE])
def test_ept_tables_outside_of_ram(l2: L2, root: int) -> None:
    """Entries there read as all ones or are absent: an exit to L1, whatever it is."""
    l2.want(ProcBased2.ENABLE_EPT)
    l2[Field.EPT_POINTER] = root | 3 << 3 | 6
    assert l2.run("hlt") in {R.EPT_MISCONFIG, R.EPT_VIOLATION}


def test_a_log_and_an_information_area_outside_of_ram_are_dropped(l2: L2) -> None:
    ept = l2.use_ept(flags=AD_FLAGS)
    ept.map(DATA)
    l2.want(ProcBased2.ENABLE_PML, ProcBased.HLT_EXITING)
    l2[Field.PML_ADDRESS], l2[Field.PML_INDEX] = HOST_BASE, 511
    before = l2.cpu.memory.read(HOST_BASE, 4096)
    assert l2.run(WRITE_DATA) == R.HLT
    assert l2.cpu.memory.read(HOST_BASE, 4096) == before
