"""Exceptions: exits by the exception bitmap, delivery through the IDT, double and triple faults, IDT-vectoring
information.

SDM 3C 26.2 (which exit), 28.2.2 (interruption information), 28.2.4 (vectoring), 3A chapter 6 (delivery).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import pytest
from harness import (
    CODE,
    CODE32,
    CODE64,
    COMPATIBILITY,
    DATA,
    DATA0,
    IDT,
    LONG,
    LONG_USER,
    PAE,
    PAGED,
    PROTECTED,
    REAL,
    STACK,
    USER32,
    USER_STACK,
    V86,
    Bench,
    Exit,
    Mode,
    handler,
)

from lzero.sdm.controls import ProcBased2
from lzero.sdm.exceptions import Vector
from lzero.sdm.exit_reasons import ExitReason as R
from lzero.sdm.formats import EventType, InterruptionInformation
from lzero.sdm.registers import Cr0
from lzero.sdm.vmcs_fields import Field

HARDWARE, SOFTWARE, SOFT_INT, PRIVILEGED = (
    EventType.HARDWARE_EXCEPTION,
    EventType.SOFTWARE_EXCEPTION,
    EventType.SOFTWARE_INTERRUPT,
    EventType.PRIVILEGED_SOFTWARE_EXCEPTION,
)
TF = 1 << 8
ALL = 0xFFFF_FFFF


def info(vector: int, kind: EventType = HARDWARE, *, error: bool = False) -> int:
    """Interruption information."""
    return InterruptionInformation(vector, kind, error_code_valid=error, valid=True).pack()


@dataclass(frozen=True)
class Fault:
    """Code that raises an exception."""

    vector: Vector
    mode: Mode
    code: str
    error: int | None = None
    at: int = 0
    qualification: int = 0
    kind: EventType = HARDWARE
    length: int = 0
    fields: tuple[tuple[str, int], ...] = ()

    def __str__(self) -> str:
        return f"{self.vector.name}:{self.mode}:{self.code}"

    def exit(self) -> Exit:
        """The exit when the exception bitmap selects it."""
        return Exit(
            R.EXCEPTION_NMI, self.qualification, at=self.at, length=self.length,
            interruption=info(self.vector, self.kind, error=self.error is not None), error_code=self.error or 0,
        )  # fmt: skip


V = Vector
FAULTS = [
    Fault(V.DE, LONG, "xor ecx, ecx; div ecx", at=2),
    Fault(V.DE, REAL, "xor cx, cx; div cx", at=2),
    Fault(V.BP, LONG, "int3", kind=SOFTWARE, length=1),
    Fault(V.BP, PAGED, "int3", kind=SOFTWARE, length=1),
    Fault(V.BP, REAL, "int3", kind=SOFTWARE, length=1),
    Fault(V.OF, PAGED, "mov al, 0x7f; inc al; {ce}", at=4, kind=SOFTWARE, length=1),
    Fault(V.DB, LONG, "int1", kind=PRIVILEGED, length=1),
    Fault(V.UD, LONG, "ud2"),
    Fault(V.UD, REAL, "ud2"),
    Fault(V.UD, LONG, "{06}"),
    Fault(V.BR, PAGED, f"mov eax, 9; {{62 05 {DATA:08x}}}".replace("0000a000", "00 a0 00 00"), at=5),
    Fault(V.NM, LONG, "fld1", fields=(("GUEST_CR0", LONG.cr0 | Cr0.TS),)),
    Fault(V.GP, LONG, "mov ax, 0x1235; mov ds, ax", error=0x1234, at=4),
    Fault(V.NP, LONG, "mov ax, 0x90; mov ds, ax", error=0x90, at=4),
    Fault(V.GP, LONG, "mov rax, 0x800000000000; mov rax, [rax]", error=0, at=10),
    Fault(V.SS, LONG, "mov rsp, 0x800000000000; pop rax", error=0, at=10),
    Fault(V.GP, LONG_USER, "cli", error=0),
    Fault(V.PF, LONG, "mov eax, [0x300000]", error=0, qualification=0x30_0000),
    Fault(V.PF, LONG, "mov [0x300004], eax", error=2, qualification=0x30_0004),
    Fault(V.PF, LONG_USER, "mov eax, [0x300000]", error=4, qualification=0x30_0000),
    Fault(V.PF, LONG, "mov eax, 0x300000; jmp rax", error=0x10, at=0x30_0000 - CODE, qualification=0x30_0000),
    Fault(V.PF, PAGED, "mov eax, [0x400000]", error=0, qualification=0x40_0000),
    Fault(V.PF, PAE, "mov [0x40000000], eax", error=2, qualification=0x4000_0000),
    Fault(V.AC, LONG_USER, "pushfq; pop rax; or eax, 0x40000; push rax; popfq; mov eax, [0xa001]", error=0, at=9,
          fields=(("GUEST_CR0", LONG.cr0 | Cr0.AM),)),
]  # fmt: skip
GAPS = {
    V.AC: "the engine does not check alignment (EFLAGS.AC)",
}


def _fault_rows() -> list[object]:
    return [
        pytest.param(f, id=str(f), marks=pytest.mark.xfail(reason=GAPS[f.vector]) if f.vector in GAPS else ())
        for f in FAULTS
    ]


def _prepare(bench: Bench, fault: Fault, **fields: int):  # noqa: ANN202
    guest = bench.guest(fault.mode, fault.code, **(dict(fault.fields) | fields))
    guest.write(0x1000 + 0x90, bytes.fromhex("ffff00000013cf00"))  # a data segment that is not present
    if fault.vector is V.SS:  # the handler gets a stack of its own
        guest.gate(V.SS, 0x50C0, ist=1)
        guest.write_u64(0x3000 + 36, STACK)
    if fault.mode.efer:
        guest.write_u64(0x12000 + 8, 0)
    guest.write(DATA, struct.pack("<II", 0, 8))
    return guest


@pytest.mark.parametrize("fault", _fault_rows())
def test_exception_exits(bench: Bench, fault: Fault) -> None:
    """26.2, 28.2.2: information, error code, qualification; RIP on the instruction; CR2 unchanged."""
    guest = _prepare(bench, fault, EXCEPTION_BITMAP=1 << fault.vector)
    assert guest.enter() == fault.exit()
    assert guest.processor.cr2 == 0


@pytest.mark.parametrize("fault", _fault_rows())
def test_exception_is_delivered(bench: Bench, fault: Fault) -> None:
    """Without its bit the handler runs; a page fault's address is in CR2."""
    guest = _prepare(bench, fault, EXCEPTION_BITMAP=ALL & ~(1 << fault.vector))
    assert guest.enter() == handler(fault.vector)
    assert guest.processor.cr2 == (fault.qualification if fault.vector is V.PF else 0)
    width = {64: 8, 32: 4, 16: 2}[fault.mode.bits]
    frame = guest[Field.GUEST_RSP]
    if fault.error is not None and fault.mode is not REAL:
        assert guest.read(frame, width) == fault.error
        frame += width
    assert guest.read(frame, width) == CODE + fault.at + fault.length


# --- page faults: mask and match ---------------------------------------------------------------------------------

MATCHES = [
    # bit 14, mask, match, error code: exits
    (1, 0, 0, 0, True), (1, 0, 0, 2, True), (0, 0, 0, 0, False),
    (1, 2, 2, 2, True), (1, 2, 2, 0, False), (0, 2, 2, 0, True), (0, 2, 2, 2, False),
    (1, 0, 1, 0, False), (0, 0, 1, 2, True), (1, 3, 2, 2, True),
]  # fmt: skip


@pytest.mark.parametrize(("bit", "mask", "match", "error", "exits"), MATCHES)
def test_page_fault_error_code_mask_and_match(
    bench: Bench, bit: int, mask: int, match: int, error: int, exits: bool
) -> None:
    """26.2: bit 14 decides if error & mask == match; its opposite decides if not."""
    code = "mov [0x400000], eax" if error & 2 else "mov eax, [0x400000]"
    guest = bench.guest(
        PAGED, code, EXCEPTION_BITMAP=bit << 14, PAGE_FAULT_ERROR_CODE_MASK=mask, PAGE_FAULT_ERROR_CODE_MATCH=match
    )
    exit = guest.enter()
    assert exit == (Fault(V.PF, PAGED, code, error=error, qualification=0x40_0000).exit() if exits else handler(V.PF))
    assert guest.processor.cr2 == (0 if exits else 0x40_0000)


def test_page_fault_raised_by_the_processor_itself_obeys_the_mask(bench: Bench) -> None:
    """26.2: also where an instruction is carried out outside of the engine (SMSW to a page that is not there)."""
    guest = bench.guest(PAGED, "smsw [0x400000]", EXCEPTION_BITMAP=0, PAGE_FAULT_ERROR_CODE_MASK=2,
                        PAGE_FAULT_ERROR_CODE_MATCH=0, CR0_GUEST_HOST_MASK=8)  # fmt: skip
    assert guest.enter() == Fault(V.PF, PAGED, "", error=2, qualification=0x40_0000).exit()
    assert guest.processor.cr2 == 0


# --- INT n -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [REAL, PROTECTED, PAGED, PAE, USER32, LONG, LONG_USER, COMPATIBILITY], ids=str)
def test_int_n_does_not_exit(bench: Bench, mode: Mode) -> None:
    """26.2: the exception bitmap is for exceptions; INT 0x80 goes through the IDT, with the next RIP on the stack."""
    guest = bench.guest(mode, "int 0x80", EXCEPTION_BITMAP=ALL)
    assert guest.enter() == handler(0x80)
    width = {64: 8, 32: 8 if mode is COMPATIBILITY else 4, 16: 2}[mode.bits]
    assert guest.read(guest[Field.GUEST_RSP], width) == CODE + 2


def test_int_n_of_a_privileged_gate_faults(bench: Bench) -> None:
    """3A 6.12.1.2, 28.2.4: #GP with the gate's index; the fault was met while the software interrupt was delivered."""
    assert bench.guest(LONG_USER, "int 0x21").enter() == handler(V.GP)
    assert bench.guest(LONG_USER, "int 0x21", EXCEPTION_BITMAP=1 << V.GP).enter() == Exit(
        R.EXCEPTION_NMI,
        length=2,
        interruption=info(V.GP, error=True),
        error_code=0x21 * 8 + 2,
        vectoring=info(0x21, SOFT_INT),
    )


def test_int_3_in_its_long_form_is_a_software_interrupt(bench: Bench) -> None:
    """26.2: INT 3 (CD 03) is INT n, not INT3."""
    assert bench.guest(LONG, b"\xcd\x03", EXCEPTION_BITMAP=ALL).enter() == handler(3)
    assert bench.guest(LONG, b"\xcd\x04", EXCEPTION_BITMAP=ALL).enter() == handler(4)
    assert bench.guest(LONG, b"\xcd\x01", EXCEPTION_BITMAP=ALL & ~(1 << 13)).enter() == handler(1)


def test_int_in_virtual_8086_mode_depends_on_iopl(bench: Bench) -> None:
    """3B 21.3: #GP(0) if IOPL is below 3, else through the IDT to ring 0 with all segment registers saved."""
    assert bench.guest(V86, "int 0x80").enter() == handler(V.GP)
    guest = bench.guest(V86, "int 0x80")
    guest[Field.GUEST_RFLAGS] = guest[Field.GUEST_RFLAGS] | 3 << 12
    assert guest.enter() == handler(0x80)
    assert guest[Field.GUEST_RSP] == STACK - 9 * 4
    assert guest.read(guest[Field.GUEST_RSP], 4) == CODE + 2


# --- delivery: frames --------------------------------------------------------------------------------------------


def test_long_mode_frame(bench: Bench) -> None:
    """3A 6.14: SS:RSP always, the stack aligned to 16 bytes, RF set in the image of a fault."""
    guest = bench.guest(LONG, "mov eax, [0x600000]", GUEST_RSP=STACK - 3)
    guest.write_u64(0x12000 + 24, 0)
    assert guest.enter() == handler(V.PF)
    frame = [guest.read(guest[Field.GUEST_RSP] + 8 * n, 8) for n in range(6)]
    assert frame == [0, CODE, CODE64, 2 | 1 << 16, STACK - 3, DATA0]
    assert guest[Field.GUEST_RSP] % 16 == 0
    assert guest[Field.GUEST_RFLAGS] == 2


def test_long_mode_frame_from_user(bench: Bench) -> None:
    """3A 6.14.2: RSP0 from the TSS, SS null."""
    guest = bench.guest(LONG_USER, "ud2")
    assert guest.enter() == handler(V.UD)
    frame = [guest.read(guest[Field.GUEST_RSP] + 8 * n, 8) for n in range(5)]
    assert frame[0] == CODE
    assert frame[3] == USER_STACK
    assert guest[Field.GUEST_SS_SELECTOR] == 0
    assert guest[Field.GUEST_CS_SELECTOR] == CODE64


def test_interrupt_stack_table(bench: Bench) -> None:
    """3A 6.14.5."""
    guest = bench.guest(LONG, "ud2")
    guest.gate(V.UD, 0x5060, ist=3)
    guest.write_u64(0x3000 + 36 + 16, 0x7F00)
    assert guest.enter() == handler(V.UD)
    assert guest[Field.GUEST_RSP] == 0x7F00 - 40


def test_real_mode_frame(bench: Bench) -> None:
    """3A 20.1.4: FLAGS, CS, IP; no error code."""
    guest = bench.guest(REAL, "sti; ud2")
    guest[Field.GUEST_RFLAGS] = 2
    assert guest.enter() == handler(V.UD)
    assert [guest.read(STACK - n, 2) for n in (2, 4, 6)] == [0x202, 0, CODE + 1]
    assert not guest[Field.GUEST_RFLAGS] & 1 << 9


def test_trap_gate_keeps_interrupts_on(bench: Bench) -> None:
    """3A 6.12.1.3."""
    for rights, kept in ((0x8E, False), (0x8F, True)):
        guest = bench.guest(PAGED, "ud2", GUEST_RFLAGS=0x202)
        guest.gate(V.UD, 0x5060, rights=rights)
        assert guest.enter() == handler(V.UD)
        assert bool(guest[Field.GUEST_RFLAGS] & 0x200) is kept


# --- debug exceptions --------------------------------------------------------------------------------------------


def test_single_step_exits_after_the_instruction(bench: Bench) -> None:
    """28.2.1 table 28-1: #DB with BS; RIP after the instruction; DR6 and RFLAGS.TF stay."""
    guest = bench.guest(LONG, "nop; nop", EXCEPTION_BITMAP=1 << V.DB, GUEST_RFLAGS=2 | TF)
    exit = guest.enter()
    assert exit == Exit(R.EXCEPTION_NMI, 1 << 14, at=1, interruption=info(V.DB))
    assert guest[Field.GUEST_RFLAGS] & TF
    assert guest.processor.rdmsr("dr6") & 0x600F == 0
    assert guest.enter() == Exit(R.EXCEPTION_NMI, 1 << 14, at=2, interruption=info(V.DB))


def test_single_step_is_delivered(bench: Bench) -> None:
    """3B 17.3.1.4: DR6.BS, TF cleared in the handler and set in the frame."""
    guest = bench.guest(LONG, "nop; nop", GUEST_RFLAGS=2 | TF)
    assert guest.enter() == handler(V.DB)
    assert guest.processor.rdmsr("dr6") & 0x4000
    assert not guest[Field.GUEST_RFLAGS] & TF
    frame = guest[Field.GUEST_RSP]
    assert guest.read(frame, 8) == CODE + 1
    assert guest.read(frame + 16, 8) & TF


def test_instruction_breakpoint(bench: Bench) -> None:
    """3B 17.3.1.1: a fault with B0, loaded with DR7 from the VMCS; RFLAGS.RF lets the instruction run."""
    state, dr0 = bench.processor.engine.state, bench.processor.engine.word("dr0")
    guest = bench.guest(LONG, "nop; nop; nop", EXCEPTION_BITMAP=1 << V.DB, GUEST_DR7=0x402)
    state[dr0] = CODE + 1
    guest[Field.GUEST_DR7] = 0x402
    assert guest.enter() == Exit(R.EXCEPTION_NMI, 1, at=1, interruption=info(V.DB))
    guest[Field.GUEST_RFLAGS] = guest[Field.GUEST_RFLAGS] | 1 << 16
    assert guest.enter() == guest.end()
    assert not guest[Field.GUEST_RFLAGS] & 1 << 16


@pytest.mark.xfail(reason="the engine has no data breakpoints")
def test_data_breakpoint(bench: Bench) -> None:
    """3B 17.3.1.2: a trap after the access."""
    state, dr0 = bench.processor.engine.state, bench.processor.engine.word("dr0")
    state[dr0] = DATA
    guest = bench.guest(LONG, f"mov [{DATA}], al; nop", EXCEPTION_BITMAP=1 << V.DB, GUEST_DR7=0x402 | 1 << 16)
    assert guest.enter().qualification == 1


# --- faults during delivery (3A 6.15 #DF, 26.2, 28.2.4) ----------------------------------------------------------


def test_benign_then_contributory_is_served_in_turn(bench: Bench) -> None:
    """Table 6-5: #UD whose gate is not present gives #NP, with the gate in its error code."""
    guest = bench.guest(LONG, "ud2")
    guest.gate(V.UD, 0x5060, rights=0x0E)
    assert guest.enter() == handler(V.NP)
    assert guest.read(guest[Field.GUEST_RSP], 8) == V.UD * 8 + 3


def test_contributory_twice_is_a_double_fault(bench: Bench) -> None:
    """Table 6-5: #GP whose gate is not present; error code 0, RIP on the first instruction."""
    guest = bench.guest(LONG, "mov ax, 0x1235; mov ds, ax")
    guest.gate(V.GP, 0x50D0, rights=0x0E)
    assert guest.enter() == handler(V.DF)
    assert guest.read(guest[Field.GUEST_RSP], 8) == 0
    assert guest.read(guest[Field.GUEST_RSP] + 8, 8) == CODE + 4


def test_page_fault_twice_is_a_double_fault(bench: Bench) -> None:
    """Table 6-5: a page fault while one is delivered (its handler's stack is not there)."""
    guest = bench.guest(PAGED, "mov eax, [0x500000]")
    guest.gate(V.PF, 0x50E0, rights=0x0E)
    assert guest.enter() == handler(V.DF)


def test_double_fault_that_exits_is_no_vectoring(bench: Bench) -> None:
    """28.2.4: the event resulted in a double fault that exits directly: the vectoring information is invalid."""
    guest = bench.guest(LONG, "mov ax, 0x1235; mov ds, ax", EXCEPTION_BITMAP=1 << V.DF)
    guest.gate(V.GP, 0x50D0, rights=0x0E)
    assert guest.enter() == Exit(R.EXCEPTION_NMI, at=4, interruption=info(V.DF, error=True))


def test_exception_during_delivery_exits_with_vectoring(bench: Bench) -> None:
    """28.2.4: the original event, its error code, in the vectoring fields; the new one in the interruption fields."""
    guest = bench.guest(LONG, "ud2", EXCEPTION_BITMAP=1 << V.NP)
    guest.gate(V.UD, 0x5060, rights=0x0E)
    assert guest.enter() == Exit(
        R.EXCEPTION_NMI, interruption=info(V.NP, error=True), error_code=V.UD * 8 + 3, vectoring=info(V.UD)
    )
    second = bench.guest(LONG, "mov ax, 0x1235; mov ds, ax", EXCEPTION_BITMAP=1 << V.NP)
    second.gate(V.GP, 0x50D0, rights=0x0E)
    assert second.enter() == Exit(
        R.EXCEPTION_NMI, at=4, interruption=info(V.NP, error=True), error_code=V.GP * 8 + 3,
        vectoring=info(V.GP, error=True), vectoring_error=0x1234,
    )  # fmt: skip


def test_software_interrupt_during_delivery(bench: Bench) -> None:
    """28.2.4, 28.2.5: the type is software interrupt, and the instruction's length is recorded."""
    guest = bench.guest(LONG, "int 0x80", EXCEPTION_BITMAP=1 << V.NP)
    guest.gate(0x80, 0x5800, rights=0x6E)
    assert guest.enter() == Exit(
        R.EXCEPTION_NMI,
        length=2,
        interruption=info(V.NP, error=True),
        error_code=0x80 * 8 + 2,
        vectoring=info(0x80, SOFT_INT),
    )
    breakpoint_ = bench.guest(LONG, "int3", EXCEPTION_BITMAP=1 << V.NP)
    breakpoint_.gate(3, 0x5030, rights=0x6E)
    assert breakpoint_.enter() == Exit(
        R.EXCEPTION_NMI,
        length=1,
        interruption=info(V.NP, error=True),
        error_code=3 * 8 + 2,
        vectoring=info(3, SOFTWARE),
    )


def test_page_fault_during_delivery_exits_with_cr2_unchanged(bench: Bench) -> None:
    """26.2: the linear address is the qualification."""
    guest = bench.guest(PAGED, "ud2", EXCEPTION_BITMAP=1 << V.PF)
    guest[Field.GUEST_IDTR_BASE] = 0x40_0000
    assert guest.enter() == Exit(
        R.EXCEPTION_NMI, 0x40_0000 + 48, interruption=info(V.PF, error=True), error_code=0, vectoring=info(V.UD)
    )
    assert guest.processor.cr2 == 0


@pytest.mark.parametrize("mode", [REAL, PROTECTED, PAGED, LONG, LONG_USER], ids=str)
def test_triple_fault(bench: Bench, mode: Mode) -> None:
    """26.2: a fault while #DF is delivered; 28.2.4: no vectoring information."""
    guest = bench.guest(mode, "ud2", GUEST_IDTR_LIMIT=0)
    assert guest.enter() == Exit(R.TRIPLE_FAULT)


def test_ept_violation_during_delivery(bench: Bench) -> None:
    """28.2.4: EPT violations while the IDT is read record the event; so does one on the stack."""
    guest = bench.guest(LONG, "mov ax, 0x1235; mov ds, ax", ProcBased2.ENABLE_EPT)
    guest.map(IDT, rights=0)
    exit = guest.enter()
    assert (exit.reason, exit.at, exit.vectoring, exit.vectoring_error) == (
        R.EPT_VIOLATION,
        4,
        info(V.GP, error=True),
        0x1234,
    )
    assert (exit.linear, exit.physical) == (IDT + 16 * V.GP, IDT + 16 * V.GP)
    guest.map(IDT)
    guest.map(STACK - 0x1000, rights=1)
    guest[Field.VM_ENTRY_INTERRUPTION_INFORMATION] = info(V.GP, error=True)
    guest[Field.VM_ENTRY_EXCEPTION_ERROR_CODE] = 0x1234
    exit = guest.enter()
    assert (exit.reason, exit.at, exit.vectoring, exit.vectoring_error) == (
        R.EPT_VIOLATION,
        4,
        info(V.GP, error=True),
        0x1234,
    )
    assert guest[Field.GUEST_RSP] == STACK


def test_fault_in_the_handlers_first_instruction_is_no_vectoring(bench: Bench) -> None:
    """28.2.4: delivery is over when the handler's first instruction is fetched."""
    guest = bench.guest(LONG, "ud2", ProcBased2.ENABLE_EPT)
    guest.map(0x5000, rights=3)
    exit = guest.enter()
    assert (exit.reason, exit.vectoring, exit.physical) == (R.EPT_VIOLATION, 0, 0x5060)


def test_task_register_without_a_tss_is_an_invalid_tss(bench: Bench) -> None:
    """3A 6.15 #TS: the stack of an inner ring comes from a TSS that is not there."""
    guest = bench.guest(USER32, "ud2", EXCEPTION_BITMAP=1 << V.TS)
    guest.gate(V.UD, 0x5060, selector=CODE32)
    guest[Field.GUEST_TR_LIMIT] = 3
    assert guest.enter().interruption == info(V.TS, error=True)


def test_stack_of_an_inner_ring_must_be_canonical(bench: Bench) -> None:
    """3A 6.14.4: #SS... of a non-canonical RSP0; here contributory after #UD: served in turn."""
    guest = bench.guest(LONG_USER, "ud2", EXCEPTION_BITMAP=1 << V.SS | 1 << V.GP)
    guest.write_u64(0x3004, 0x9000_0000_0000)
    exit = guest.enter()
    assert (exit.reason, exit.vectoring) == (R.EXCEPTION_NMI, info(V.UD))
