"""I/O instructions and MSRs in VMX non-root operation (SDM 3C 26.1.3, 25.6.4, 25.6.9; table 28-5; vol. 1 19.5)."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest
from harness import (
    DATA,
    LONG,
    LONG_USER,
    MODES,
    PAGED,
    PROTECTED,
    REAL,
    TSS,
    USER32,
    V86,
    Bench,
    Exit,
    Guest,
    Mode,
    handler,
)

from lzero.sdm.controls import ProcBased, ProcBased2
from lzero.sdm.exceptions import Vector
from lzero.sdm.exit_reasons import ExitReason as R
from lzero.sdm.formats import IoQualification
from lzero.sdm.msrs import Msr
from lzero.sdm.vmcs_fields import Field

GP = handler(Vector.GP)
P = ProcBased
ALWAYS, BITMAPS = P.UNCONDITIONAL_IO_EXITING, P.USE_IO_BITMAPS
IOPL3 = 3 << 12


def io(
    port: int, size: int, *, length: int = 1, at: int = 0, information: int = 0, linear: int = 0, **bits: bool
) -> Exit:
    """An exit due to an I/O instruction."""
    qualification = IoQualification(size_code=size - 1, port=port, **bits).pack()
    return Exit(R.IO_INSTRUCTION, qualification, length=length, at=at, information=information, linear=linear)


PORTS = [
    ("in al, 0x70", io(0x70, 1, length=2, is_in=True, immediate=True)),
    ("in eax, 0x70", io(0x70, 4, length=2, is_in=True, immediate=True)),
    ("out 0x80, al", io(0x80, 1, length=2, immediate=True)),
    ("in al, dx", io(0x3F8, 1, is_in=True)),
    ("in eax, dx", io(0x3F8, 4, is_in=True)),
    ("out dx, al", io(0x3F8, 1)),
    ("out dx, eax", io(0x3F8, 4)),
]


@pytest.mark.parametrize(("code", "exit"), PORTS, ids=[row[0] for row in PORTS])
@pytest.mark.parametrize("mode", [PROTECTED, PAGED, LONG], ids=str)
def test_port_exits(bench: Bench, mode: Mode, code: str, exit: Exit) -> None:
    """26.1.3, table 28-5."""
    guest = bench.guest(mode, code, ALWAYS)
    guest.gpr[2] = 0xABCD_03F8  # only DX names the port
    assert guest.enter() == exit


def test_word_access(bench: Bench) -> None:
    """Table 28-5: size 2; the operand-size prefix counts to the length."""
    guest = bench.guest(LONG, "out dx, ax", ALWAYS)
    assert guest.enter() == io(0, 2, length=2)


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_unintercepted_port_does_not_exit(bench: Bench, mode: Mode) -> None:
    """26.1.3: neither control: the access goes to the machine, where nothing is."""
    guest = bench.guest(mode, "in al, 0x70; out 0x70, al").off(ALWAYS, BITMAPS)
    guest[Field.GUEST_RFLAGS] = guest[Field.GUEST_RFLAGS] | IOPL3
    if mode is V86:
        guest[Field.GUEST_TR_LIMIT] = 0x2067  # in virtual-8086 mode the bitmap alone decides
        guest.write(TSS + 102, struct.pack("<H", 0x68))
    assert guest.enter() == guest.end()
    assert guest.gpr[0] & 0xFF == 0xFF


# --- I/O bitmaps -------------------------------------------------------------------------------------------------


def _bitmap(guest: Guest, *ports: int) -> None:
    for port in ports:
        page = guest.bench.pages["io_a" if port < 0x8000 else "io_b"] + (port & 0x7FFF) // 8
        guest.write(page, bytes([guest.read(page, 1) | 1 << (port & 7)]))


@pytest.mark.parametrize("port", [0, 7, 0x3F8, 0x7FFF, 0x8000, 0xFFFF])
def test_bitmap_selects_a_port(bench: Bench, port: int) -> None:
    """25.6.4: A for ports below 8000H, B above; "unconditional I/O exiting" is then ignored."""
    for selected, exits in (((port,), True), ((port ^ 1,), False), ((port ^ 0x8000,), False)):
        guest = bench.guest(LONG, "in al, dx", BITMAPS, ALWAYS)
        guest.gpr[2] = port
        _bitmap(guest, *selected)
        assert guest.enter() == (io(port, 1, is_in=True) if exits else guest.end())


@pytest.mark.parametrize(("selected", "exits"), [(0x7FFF, True), (0x8002, True), (0x7FFE, False), (0x8003, False)])
def test_bitmap_of_a_wide_access_spans_both_pages(bench: Bench, selected: int, exits: bool) -> None:
    """26.1.3: any bit of the ports accessed."""
    guest = bench.guest(LONG, "in eax, dx", BITMAPS)
    guest.gpr[2] = 0x7FFF
    _bitmap(guest, selected)
    assert guest.enter() == (io(0x7FFF, 4, is_in=True) if exits else guest.end())


def test_access_that_wraps_around_exits(bench: Bench) -> None:
    """26.1.3: an access beyond port FFFFH exits, whatever the bitmaps."""
    guest = bench.guest(LONG, "in eax, dx", BITMAPS)
    guest.gpr[2] = 0xFFFD
    assert guest.enter() == io(0xFFFD, 4, is_in=True)
    last = bench.guest(LONG, "in eax, dx", BITMAPS)
    last.gpr[2] = 0xFFFC
    assert last.enter() == last.end()


# --- string instructions -----------------------------------------------------------------------------------------

BITS16, BITS32, BITS64 = 0 << 7, 1 << 7, 2 << 7
STRINGS = [
    # mode, code, size, is_in, rep, length, information, registers, linear
    (LONG, "outsb", 1, False, False, 1, BITS64 | 3 << 15, {6: DATA}, DATA),
    (LONG, "insd", 4, True, False, 1, BITS64 | 0 << 15, {7: DATA}, DATA),
    (LONG, "rep outsd", 4, False, True, 2, BITS64 | 3 << 15, {6: DATA, 1: 5}, DATA),
    (LONG, "rep insb", 1, True, True, 2, BITS64 | 0 << 15, {7: DATA, 1: 5}, DATA),
    (PAGED, "outsb", 1, False, False, 1, BITS32 | 3 << 15, {6: DATA}, DATA),
    (PAGED, b"\x67\x6e", 1, False, False, 2, BITS16 | 3 << 15, {6: 0xF0000 + DATA}, DATA),
    (PAGED, b"\x65\x6e", 1, False, False, 2, BITS32 | 5 << 15, {6: DATA}, DATA + 0x100),
    (LONG, b"\x67\x6e", 1, False, False, 2, BITS32 | 3 << 15, {6: 0xF_0000_0000 + DATA}, DATA),
    (REAL, b"\x6e", 1, False, False, 1, BITS16 | 3 << 15, {6: DATA}, DATA),
]


@pytest.mark.parametrize(
    ("mode", "code", "size", "is_in", "rep", "length", "information", "registers", "linear"), STRINGS
)
def test_string_exits(
    bench: Bench, mode: Mode, code: str | bytes, size: int, is_in: bool, rep: bool, length: int, information: int,
    registers: dict[int, int], linear: int,
) -> None:  # fmt: skip
    """28.2.5 table 28-8: address size and segment (undefined for INS); 28.2.1: the linear address."""
    guest = bench.guest(mode, code, ALWAYS, GUEST_GS_BASE=0x100)
    guest.gpr[2] = 0x3F8
    for number, value in registers.items():
        guest.gpr[number] = value
    exit = guest.enter()
    if is_in:
        exit = replace(exit, information=exit.information & ~(7 << 15))
    assert exit == io(
        0x3F8, size, length=length, information=information, linear=linear, is_in=is_in, string=True, rep=rep
    )


def test_rep_with_count_zero_does_nothing(bench: Bench) -> None:
    """2B OUTS, REP: no access, no exit."""
    guest = bench.guest(LONG, "rep outsb", ALWAYS)
    assert guest.enter() == guest.end()


def test_string_without_exit_steps_its_registers(bench: Bench) -> None:
    """2B INS: what is not intercepted reads ones and moves on."""
    guest = bench.guest(LONG, "insb; insb").off(ALWAYS)
    guest.gpr[7] = DATA
    assert guest.enter() == guest.end()
    assert guest.gpr[7] == DATA + 2
    assert guest.read(DATA, 4) == 0xFFFF
    repeated = bench.guest(LONG, "mov ecx, 3; rep outsd").off(ALWAYS)
    repeated.gpr[6] = DATA
    assert repeated.enter() == repeated.end()
    assert (repeated.gpr[1], repeated.gpr[6]) == (0, DATA + 12)


# --- permission: IOPL and the bitmap in the TSS ------------------------------------------------------------------


@pytest.mark.parametrize("mode", [USER32, LONG_USER, V86], ids=str)
def test_iopl_faults_before_the_exit(bench: Bench, mode: Mode) -> None:
    """26.1.1: #GP from the I/O permission bitmap has priority over the exit."""
    guest = bench.guest(mode, "in al, 0x70", ALWAYS)
    assert guest.enter() == GP


@pytest.mark.parametrize("mode", [USER32, LONG_USER], ids=str)
def test_iopl_allows(bench: Bench, mode: Mode) -> None:
    """Vol. 1 19.5.1: CPL not above IOPL."""
    guest = bench.guest(mode, "in al, 0x70", ALWAYS)
    guest[Field.GUEST_RFLAGS] = guest[Field.GUEST_RFLAGS] | IOPL3
    assert guest.enter() == io(0x70, 1, length=2, is_in=True, immediate=True)


@pytest.mark.parametrize(("denied", "allowed"), [(0x70, False), (0x71, False), (0x6F, True), (0x72, True)])
def test_tss_bitmap(bench: Bench, denied: int, allowed: bool) -> None:
    """Vol. 1 19.5.2: every bit of the ports accessed must be 0."""
    guest = bench.guest(USER32, "in ax, 0x70", ALWAYS, GUEST_TR_LIMIT=0x200)
    guest.write(TSS + 102, struct.pack("<H", 0x68))
    guest.write(TSS + 0x68 + denied // 8, bytes([1 << (denied & 7)]))
    assert guest.enter() == (io(0x70, 2, length=3, is_in=True, immediate=True) if allowed else GP)


@pytest.mark.parametrize(("limit", "allowed"), [(0x68 + 14, False), (0x68 + 15, True)])
def test_tss_bitmap_ends_at_the_limit(bench: Bench, limit: int, allowed: bool) -> None:
    """Vol. 1 19.5.2: two bytes are read; beyond the limit the access is denied."""
    guest = bench.guest(USER32, "in al, 0x70", ALWAYS, GUEST_TR_LIMIT=limit)
    guest.write(TSS + 102, struct.pack("<H", 0x68))
    assert guest.enter() == (io(0x70, 1, length=2, is_in=True, immediate=True) if allowed else GP)


# --- MSRs --------------------------------------------------------------------------------------------------------

MSRS = [0, 0x10, 0x174, 0x1FFF, 0x2000, 0xBFFF_FFFF, 0xC000_0000, 0xC000_0100, 0xC000_1FFF, 0xC000_2000, 0xFFFF_FFFF]


@pytest.mark.parametrize("index", MSRS, ids=hex)
@pytest.mark.parametrize(("code", "reason"), [("rdmsr", R.MSR_READ), ("wrmsr", R.MSR_WRITE)])
def test_every_msr_exits_without_bitmaps(bench: Bench, index: int, code: str, reason: R) -> None:
    """26.1.3."""
    guest = bench.guest(LONG, code).off(P.USE_MSR_BITMAPS)
    guest.gpr[1] = index
    assert guest.enter() == Exit(reason, length=2)


@pytest.mark.parametrize("index", MSRS, ids=hex)
@pytest.mark.parametrize(("code", "reason"), [("rdmsr", R.MSR_READ), ("wrmsr", R.MSR_WRITE)])
def test_msr_bitmaps(bench: Bench, index: int, code: str, reason: R) -> None:
    """25.6.9: four bitmaps of 1 KiB: reads low and high, writes low and high; MSRs outside always exit."""
    low, high = index < 0x2000, 0xC000_0000 <= index < 0xC000_2000
    guest = bench.guest(LONG, code, P.USE_MSR_BITMAPS)
    guest.write(guest.bench.pages["msr"], b"\xff" * 4096)
    start = (0 if reason is R.MSR_READ else 0x800) + (0x400 if high else 0)
    if low or high:
        where = guest.bench.pages["msr"] + start + (index & 0x1FFF) // 8
        guest.write(where, bytes([0xFF & ~(1 << (index & 7))]))
    guest.gpr[1] = index
    if low or high:
        assert guest.enter().reason != reason
    else:
        assert guest.enter() == Exit(reason, length=2)


NATIVE = [Msr.IA32_FS_BASE, Msr.IA32_GS_BASE, Msr.IA32_KERNEL_GS_BASE, Msr.IA32_SYSENTER_CS, Msr.IA32_SYSENTER_ESP,
          Msr.IA32_SYSENTER_EIP, Msr.IA32_STAR, Msr.IA32_LSTAR, Msr.IA32_CSTAR]  # fmt: skip


@pytest.mark.parametrize("msr", NATIVE, ids=lambda msr: msr.name)
def test_msr_without_exit_is_the_register(bench: Bench, msr: Msr) -> None:
    """26.1.3: not selected by the bitmaps, RDMSR gives back what WRMSR wrote."""
    guest = bench.guest(
        LONG, f"mov ecx, {int(msr)}; mov eax, 0x1234; mov edx, 0x10; wrmsr; xor eax, eax; rdmsr", P.USE_MSR_BITMAPS
    )
    assert guest.enter() == guest.end()
    assert guest.gpr[0] == 0x1234


@pytest.mark.parametrize("msr", [Msr.IA32_FS_BASE, Msr.IA32_GS_BASE, Msr.IA32_KERNEL_GS_BASE, Msr.IA32_SYSENTER_ESP,
                                 Msr.IA32_SYSENTER_EIP, Msr.IA32_LSTAR, Msr.IA32_CSTAR],
                         ids=lambda msr: msr.name)  # fmt: skip
def test_non_canonical_address_in_an_msr_faults(bench: Bench, msr: Msr) -> None:
    """2C WRMSR: #GP(0) for a non-canonical address."""
    guest = bench.guest(LONG, f"mov ecx, {int(msr)}; mov eax, 0; mov edx, 0x800000; wrmsr", P.USE_MSR_BITMAPS)
    assert guest.enter() == GP


# --- the time-stamp counter --------------------------------------------------------------------------------------


@pytest.mark.parametrize("control", [ProcBased.RDTSC_EXITING, None], ids=["never exits here", "native"])
@pytest.mark.parametrize(
    ("offset", "multiplier"), [(0, 1 << 48), (1 << 40, 1 << 48), (1 << 40, 3 << 47), (-1 & (1 << 64) - 1, 1 << 48)]
)
def test_tsc_offset_and_scaling(bench: Bench, control: ProcBased | None, offset: int, multiplier: int) -> None:
    """26.3: TSC × multiplier / 2^48 + offset, for RDTSC and RDTSCP."""
    code = "rdtsc" if control is None else "rdtscp"
    guest = bench.guest(LONG, code, P.USE_TSC_OFFSETTING, ProcBased2.USE_TSC_SCALING, ProcBased2.ENABLE_RDTSCP,
                        TSC_OFFSET=offset, TSC_MULTIPLIER=multiplier)  # fmt: skip
    before = guest.processor.clock.tsc()
    assert guest.enter() == guest.end()
    after = guest.processor.clock.tsc()
    value = guest.gpr[0] | guest.gpr[2] << 32
    signed = offset - (1 << 64) if offset >> 63 else offset
    assert (before * multiplier >> 48) + signed <= value <= (after * multiplier >> 48) + signed


def test_offset_needs_its_control(bench: Bench) -> None:
    """25.6.5: TSC_OFFSET is ignored without "use TSC offsetting"; scaling needs it too (26.3)."""
    guest = bench.guest(LONG, "rdtsc", ProcBased2.USE_TSC_SCALING, TSC_OFFSET=1 << 60, TSC_MULTIPLIER=1 << 60).off(
        P.USE_TSC_OFFSETTING
    )
    before = guest.processor.clock.tsc()
    assert replace(guest.enter(), at=0) == replace(guest.end(), at=0)
    assert before <= guest.gpr[0] | guest.gpr[2] << 32 <= guest.processor.clock.tsc()
