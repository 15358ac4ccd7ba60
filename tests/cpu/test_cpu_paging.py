"""Native translation against :mod:`lzero.cpu.paging` on random tables: outcome, error codes, accessed, dirty."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from harness import LONG, LONG_USER, PAE, PAGED, PD32, PD_PAE, PML4, PT0, PT32, RAM, USER32, Bench, Exit, Guest, Mode
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from guestasm import assemble
from lzero.cpu import paging as oracle
from lzero.sdm.controls import ProcBased2
from lzero.sdm.exceptions import Vector
from lzero.sdm.exit_reasons import ExitReason as R
from lzero.sdm.registers import Cr0, Cr4, Efer
from lzero.sdm.vmcs_fields import Field

TABLES = (0x40000, 0x41000, 0x42000)
"""Where the random tables of the three lower levels live."""
PAGES = tuple(0x80000 + (n << 12) for n in range(8))
AREA = range(0x40000, 0x90000, 0x1000)
LONG_LINEAR, PAE_LINEAR, SHORT_LINEAR = 1 << 39, 0x80_0000, 0x40_0000
OFFSET = 0x5A8


@dataclass
class Case:
    """Registers, the chain of entries on the way to one address, and EPT entries of the pages that it uses."""

    mode: Mode
    access: oracle.Access
    wp: bool
    nxe: bool
    smep: bool
    smap: bool
    alignment_check: bool
    pse: bool
    entries: list[int]
    target: int
    index: int
    ept: int
    ept_entries: dict[int, int]
    mbec: bool


_LOW = st.sampled_from([0x7, 0x27, 0x67, 0x1, 0x5, 0x3, 0x63, 0x25, 0x0, 0x2, 0x65])
_FLAGS = st.builds(
    lambda low, large, nx, junk: low | (0x80 if large else 0) | (1 << 63 if nx else 0) | junk,
    _LOW,
    st.sampled_from([False, False, False, True]),
    st.sampled_from([False, False, False, True]),
    st.sampled_from([0] * 12 + [1 << 39, 1 << 51, 1 << 52, 1 << 62, 1 << 13, 1 << 21, 1 << 20, 1 << 11, 0x18]),
)
_EPT_ENTRY = st.builds(
    lambda rights, memory_type, junk: rights | memory_type << 3 | junk,
    st.sampled_from([7, 7, 7, 3, 1, 5, 4, 0, 2, 6, 0x400, 0x407, 0x401, 0x403]),
    st.sampled_from([6, 6, 6, 6, 0, 2, 7]),
    st.sampled_from([0] * 8 + [1 << 40, 0x300, 0x100]),
)
CASES = st.builds(
    Case,
    mode=st.sampled_from([LONG, LONG, LONG_USER, LONG_USER, PAE, PAGED, USER32]),
    access=st.sampled_from(list(oracle.Access)),
    wp=st.booleans(),
    nxe=st.booleans(),
    smep=st.booleans(),
    smap=st.booleans(),
    alignment_check=st.booleans(),
    pse=st.booleans(),
    entries=st.lists(_FLAGS, min_size=4, max_size=4),
    target=st.sampled_from(PAGES),
    index=st.integers(0, 7),
    ept=st.sampled_from([0, 0, 0x1E, 0x5E]),
    ept_entries=st.dictionaries(st.sampled_from([*TABLES, *PAGES, 0]), _EPT_ENTRY, max_size=3),
    mbec=st.booleans(),
)


class Copy:
    """A copy of memory that the oracle may change."""

    def __init__(self, guest: Guest) -> None:
        self._read = guest.processor.memory.read
        self.changes: dict[int, int] = {}

    def read(self, address: int, size: int) -> bytes:
        """Bytes, as changed so far."""
        data = bytearray(self._read(address, size))
        for n in range(size):
            data[n] = self.changes.get(address + n, data[n])
        return bytes(data)

    def write(self, address: int, data: bytes) -> None:
        """Remember a change."""
        for n, byte in enumerate(data):
            self.changes[address + n] = byte


def _code(case: Case, linear: int) -> str:
    a, c = ("rax", "rcx") if case.mode.bits == 64 else ("eax", "ecx")
    action = {1: f"mov bl, [{a}]", 2: f"mov [{a}], {c}", 4: f"jmp {a}"}[int(case.access)]
    return f"mov {a}, {linear:#x}; {action}"


def _tables(guest: Guest, case: Case) -> int:
    """Write the chain; returns the linear address that it maps."""
    flags = iter(case.entries)
    index = case.index
    if case.mode.efer:
        guest.write_u64(PML4 + 8, TABLES[0] | next(flags) & ~0x80)
        guest.write_u64(TABLES[0], TABLES[1] | next(flags) if not case.entries[1] & 0x80 else case.entries[1])
        linear = LONG_LINEAR
    elif case.mode.cr4 & Cr4.PAE:
        linear = PAE_LINEAR
    else:
        linear = SHORT_LINEAR
        entry = next(flags) & 0xFFFF_FFFF
        guest.write(PD32 + 4, struct.pack("<I", entry if entry & 0x80 and case.pse else entry | TABLES[2]))
        guest.write(TABLES[2] + 4 * index, struct.pack("<I", (next(flags) & ~0x80 | case.target) & 0xFFFF_FFFF))
        return linear + (index << 12) + OFFSET
    entry = case.entries[2]
    slot = TABLES[1] if case.mode.efer else PD_PAE + 8 * (linear >> 21)
    guest.write_u64(slot, entry if entry & 0x80 else entry | TABLES[2])
    guest.write_u64(TABLES[2] + 8 * index, case.entries[3] & ~0x80 | case.target)
    return linear + (index << 12) + OFFSET


def _prepare(bench: Bench, case: Case) -> tuple[Guest, int, oracle.Paging]:
    guest = bench.guest(case.mode, "", EXCEPTION_BITMAP=1 << Vector.PF)
    linear = _tables(guest, case)
    code = _code(case, linear)
    guest.bytes = assemble(code, case.mode.bits, 0x8000)
    guest.size = len(guest.bytes)
    guest.write(0x8000, guest.bytes + b"\x0f\x01\xc1")
    if case.mode.cpl == 0:  # so that SMEP and SMAP leave the code alone
        for n in range(0x30):
            if case.mode.cr4 & Cr4.PAE:
                guest.write_u64(PT0 + 8 * n, n << 12 | 0x63)
            else:
                guest.write(PT32 + 4 * n, struct.pack("<I", n << 12 | 0x63))
    for page in range(0, RAM, 0x1000):
        if page >= 0x20_0000 or page in PAGES:
            guest.write(page + OFFSET, b"\x0f\x01\xc1" + struct.pack("<I", page))
    for page in range(8):
        guest.write((page << 12) + OFFSET, b"\x0f\x01\xc1" + struct.pack("<I", page << 12))
    cr0 = case.mode.cr0 | (Cr0.WP if case.wp else 0)
    cr4 = (
        case.mode.cr4
        | (Cr4.SMEP if case.smep else 0)
        | (Cr4.SMAP if case.smap else 0)
        | (Cr4.PSE if case.pse else 0)
        | Cr4.VMXE
    )
    efer = case.mode.efer & ~Efer.NXE | (Efer.NXE if case.nxe else 0)
    guest[Field.GUEST_CR0], guest[Field.GUEST_CR4], guest[Field.GUEST_IA32_EFER] = cr0, cr4, efer
    guest[Field.GUEST_RFLAGS] = 2 | (1 << 18 if case.alignment_check else 0)
    pointer = 0
    if case.ept:
        guest.on(ProcBased2.ENABLE_EPT)
        if case.mbec:
            guest.on(ProcBased2.MODE_BASED_EXECUTE_CONTROL_FOR_EPT)
            for name, entry in (("pml4", "pdpt"), ("pdpt", "pd"), ("pd", "pt0")):
                guest.write_u64(guest.bench.pages[name], guest.bench.pages[entry] | 0x407)
            for page in range(0, 0x20_0000, 0x1000):
                guest.write_u64(guest.ept_slot(page), page | 0x437)
        for page, entry in case.ept_entries.items():
            guest.write_u64(guest.ept_slot(page), page | entry)
        pointer = guest.bench.pages["pml4"] | case.ept
        guest[Field.EPT_POINTER] = pointer
    guest.processor.invept()
    pdptes = tuple(guest.read(case.mode.cr3 + 8 * n, 8) for n in range(4)) if case.mode is PAE else (0, 0, 0, 0)
    regs = oracle.Paging(
        cr0, case.mode.cr3, cr4, efer, pdptes, case.alignment_check, pointer, case.mbec and bool(case.ept)
    )
    return guest, linear, regs


def _expected(guest: Guest, case: Case, linear: int, failure: oracle.Failure) -> Exit:
    at = linear - 0x8000 if case.access is oracle.Access.FETCH else guest.size - len_of_access(guest)
    match failure:
        case oracle.PageFault(error_code):
            return Exit(R.EXCEPTION_NMI, linear, at=at, interruption=0x8000_0B0E, error_code=error_code)
        case oracle.EptViolation(qualification, physical):
            return Exit(R.EPT_VIOLATION, qualification, at=at, linear=linear, physical=physical)
        case oracle.EptMisconfiguration(physical):
            return Exit(R.EPT_MISCONFIG, at=at, physical=physical)
    raise AssertionError(failure)


def len_of_access(guest: Guest) -> int:
    """Bytes of the instruction that accesses: all but the first MOV."""
    return guest.size - {64: 10 if guest.bytes[:1] == b"\x48" else 5, 32: 5}[guest.mode.bits]


@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(case=CASES)
def test_native_walk_agrees_with_the_manual(bench: Bench, case: Case) -> None:
    """Same outcome, same error code or qualification, same flags in the tables."""
    guest, linear, regs = _prepare(bench, case)
    memory = Copy(guest)
    try:
        physical = oracle.translate(memory, regs, linear, case.access, user=case.mode.cpl == 3)
    except oracle.Failure as failure:
        assert guest.enter() == _expected(guest, case, linear, failure)
    else:
        if physical >= RAM:
            return  # no memory there: L0's EPT never leads to it
        before = guest.processor.memory.read(physical, 1)[0]
        if case.access is oracle.Access.FETCH and guest.processor.memory.read(physical, 3) != b"\x0f\x01\xc1":
            return  # a page that the tables reach but the test put no code into
        exit = guest.enter()
        assert exit.reason == R.VMCALL
        if case.access is oracle.Access.READ:
            assert guest.gpr[3] & 0xFF == before
        elif case.access is oracle.Access.FETCH:
            assert exit.at == linear - 0x8000
        else:
            assert guest.read(physical, 4) == 0
    for address, byte in memory.changes.items():
        assert guest.read(address, 1) == byte, hex(address)
    for table in (*TABLES, PML4, PD_PAE, PD32):
        for n in range(16):
            where = table + n
            assert guest.read(where, 1) == memory.read(where, 1)[0], hex(where)
