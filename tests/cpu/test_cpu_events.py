"""Event injection, windows, blocking, preemption timer and monitor trap flag (SDM 3C 26.4.2, 26.5, 27.6, 27.7)."""

from __future__ import annotations

import pytest
from harness import (
    CODE,
    COMPATIBILITY,
    DATA,
    LONG,
    LONG_USER,
    MODES,
    PAGED,
    REAL,
    Bench,
    Exit,
    Guest,
    Mode,
    handler,
)

from lzero.sdm.controls import PinBased, ProcBased, ProcBased2, VmExit
from lzero.sdm.exceptions import Vector
from lzero.sdm.exit_reasons import ExitReason as R
from lzero.sdm.formats import EventType, InterruptionInformation
from lzero.sdm.vmcs_fields import Field

IF, RF, TF = 1 << 9, 1 << 16, 1 << 8
BY_STI, BY_MOV_SS, BY_NMI = 1, 2, 8
INTERRUPT_WINDOW, NMI_WINDOW = ProcBased.INTERRUPT_WINDOW_EXITING, ProcBased.NMI_WINDOW_EXITING
NMIS = (PinBased.NMI_EXITING, PinBased.VIRTUAL_NMIS)
MTF = ProcBased.MONITOR_TRAP_FLAG
TIMER = PinBased.ACTIVATE_VMX_PREEMPTION_TIMER


def inject(guest: Guest, vector: int, kind: EventType, *, error: int | None = None, length: int = 0) -> None:
    """Ask VM entry to deliver an event."""
    information = InterruptionInformation(vector, kind, error_code_valid=error is not None, valid=True)
    guest[Field.VM_ENTRY_INTERRUPTION_INFORMATION] = information.pack()
    guest[Field.VM_ENTRY_EXCEPTION_ERROR_CODE] = error or 0
    guest[Field.VM_ENTRY_INSTRUCTION_LENGTH] = length


E = EventType
INJECTIONS = [
    (0x21, E.EXTERNAL_INTERRUPT, None, 0), (2, E.NMI, None, 0), (Vector.UD, E.HARDWARE_EXCEPTION, None, 0),
    (Vector.GP, E.HARDWARE_EXCEPTION, 0x1230, 0), (Vector.PF, E.HARDWARE_EXCEPTION, 7, 0),
    (0x80, E.SOFTWARE_INTERRUPT, None, 2), (Vector.DB, E.PRIVILEGED_SOFTWARE_EXCEPTION, None, 1),
    (Vector.BP, E.SOFTWARE_EXCEPTION, None, 1),
]  # fmt: skip


@pytest.mark.parametrize(("vector", "kind", "error", "length"), INJECTIONS, ids=lambda v: getattr(v, "name", str(v)))
@pytest.mark.parametrize("mode", MODES, ids=str)
def test_injection(bench: Bench, mode: Mode, vector: int, kind: EventType, error: int | None, length: int) -> None:
    """27.6.1: delivery as if the event had come before the first instruction; the valid bit is cleared (27.6)."""
    if error is not None and mode is REAL:
        pytest.skip("27.2.1.3: no error code is delivered in real mode")
    guest = bench.guest(mode, "nop", EXCEPTION_BITMAP=0xFFFF_FFFF)
    flags = guest[Field.GUEST_RFLAGS] | (IF if kind is E.EXTERNAL_INTERRUPT else 0) | 3 << 12
    guest[Field.GUEST_RFLAGS] = flags
    inject(guest, vector, kind, error=error, length=length)
    exit = guest.enter()
    assert exit == handler(vector)
    assert not guest[Field.VM_ENTRY_INTERRUPTION_INFORMATION] >> 31
    wide = 8 if mode.efer else 2 if mode is REAL else 4
    frame = guest[Field.GUEST_RSP]
    if error is not None:
        assert guest.read(frame, wide) == error
        frame += wide
    assert guest.read(frame, wide) == CODE + length
    assert guest.read(frame + 2 * wide, wide) == flags & (0xFFFF if wide == 2 else ~0)


def test_injected_event_ignores_the_exception_bitmap(bench: Bench) -> None:
    """27.6.1: but a fault met while it is delivered may exit, and records the event."""
    guest = bench.guest(LONG, "nop", EXCEPTION_BITMAP=1 << Vector.NP)
    guest.gate(Vector.UD, 0x5060, rights=0x0E)
    inject(guest, Vector.UD, E.HARDWARE_EXCEPTION)
    assert guest.enter() == Exit(
        R.EXCEPTION_NMI, interruption=0x8000_0B0B, error_code=Vector.UD * 8 + 3, vectoring=0x8000_0306
    )


def test_injected_fault_twice_makes_a_double_fault(bench: Bench) -> None:
    """27.6.1.2: injected #GP meets #NP: #DF."""
    guest = bench.guest(LONG, "nop")
    guest.gate(Vector.GP, 0x50D0, rights=0x0E)
    inject(guest, Vector.GP, E.HARDWARE_EXCEPTION, error=0)
    assert guest.enter() == handler(Vector.DF)


def test_injected_double_fault_that_faults_is_a_triple_fault(bench: Bench) -> None:
    """27.6.1.2."""
    guest = bench.guest(LONG, "nop")
    guest.gate(Vector.DF, 0x5080, rights=0x0E)
    inject(guest, Vector.DF, E.HARDWARE_EXCEPTION, error=0)
    assert guest.enter() == Exit(R.TRIPLE_FAULT)


def test_interrupt_injection_is_external_for_error_codes(bench: Bench) -> None:
    """3A 6.13: EXT."""
    for kind, ext, length in ((E.EXTERNAL_INTERRUPT, 1, 0), (E.SOFTWARE_INTERRUPT, 0, 2)):
        guest = bench.guest(LONG, "nop", EXCEPTION_BITMAP=1 << Vector.NP, GUEST_RFLAGS=2 | IF)
        guest.gate(0x55, 0x5550, rights=0x0E)
        inject(guest, 0x55, kind, length=length)
        assert guest.enter().error_code == 0x55 * 8 + 2 + ext


# --- interrupt window --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_interrupt_window_is_open_at_once(bench: Bench, mode: Mode) -> None:
    """26.2: exits before the first instruction if RFLAGS.IF is 1 and nothing blocks."""
    guest = bench.guest(mode, "nop", INTERRUPT_WINDOW)
    guest[Field.GUEST_RFLAGS] = guest[Field.GUEST_RFLAGS] | IF
    assert guest.enter() == Exit(R.INTERRUPT_WINDOW)


@pytest.mark.parametrize("blocking", [BY_STI, BY_MOV_SS])
def test_interrupt_window_waits_for_the_shadow(bench: Bench, blocking: int) -> None:
    """26.2: one instruction executes first."""
    guest = bench.guest(LONG, "nop; nop", INTERRUPT_WINDOW, GUEST_RFLAGS=2 | IF, GUEST_INTERRUPTIBILITY_STATE=blocking)
    assert guest.enter() == Exit(R.INTERRUPT_WINDOW, at=1)
    assert guest[Field.GUEST_INTERRUPTIBILITY_STATE] == 0


def test_interrupt_window_opens_after_sti_and_its_shadow(bench: Bench) -> None:
    """2B STI."""
    guest = bench.guest(LONG, "nop; sti; nop; nop", INTERRUPT_WINDOW)
    assert guest.enter() == Exit(R.INTERRUPT_WINDOW, at=3)


def test_interrupt_window_opens_with_popf(bench: Bench) -> None:
    """POPF has no shadow."""
    guest = bench.guest(LONG, "pushfq; pop rax; or eax, 0x200; push rax; popfq; nop", INTERRUPT_WINDOW)
    assert guest.enter() == Exit(R.INTERRUPT_WINDOW, at=guest.size - 1)


def test_interrupt_window_stays_shut(bench: Bench) -> None:
    """RFLAGS.IF is 0."""
    guest = bench.guest(LONG, "nop", INTERRUPT_WINDOW)
    assert guest.enter() == guest.end()


def test_interrupt_window_wakes_from_hlt(bench: Bench) -> None:
    """27.7.2: the window also opens in the HLT activity state."""
    guest = bench.guest(LONG, "nop", INTERRUPT_WINDOW, GUEST_RFLAGS=2 | IF, GUEST_ACTIVITY_STATE=1)
    assert guest.enter() == Exit(R.INTERRUPT_WINDOW)
    assert guest[Field.GUEST_ACTIVITY_STATE] == 1


def test_event_goes_before_the_window(bench: Bench) -> None:
    """27.6.2: an injected event is delivered first; its gate turned interrupts off."""
    guest = bench.guest(LONG, "nop", INTERRUPT_WINDOW, GUEST_RFLAGS=2 | IF)
    inject(guest, 0x33, E.EXTERNAL_INTERRUPT)
    assert guest.enter() == handler(0x33)


# --- NMIs --------------------------------------------------------------------------------------------------------


def test_nmi_window(bench: Bench) -> None:
    """26.2: exits unless virtual NMIs are blocked, whatever RFLAGS.IF."""
    assert bench.guest(LONG, "nop", NMI_WINDOW, *NMIS).enter() == Exit(R.NMI_WINDOW)
    blocked = bench.guest(LONG, "nop", NMI_WINDOW, *NMIS, GUEST_INTERRUPTIBILITY_STATE=BY_NMI)
    assert blocked.enter() == blocked.end()
    assert blocked[Field.GUEST_INTERRUPTIBILITY_STATE] == BY_NMI
    shadow = bench.guest(LONG, "nop; nop", NMI_WINDOW, *NMIS, GUEST_INTERRUPTIBILITY_STATE=BY_MOV_SS)
    assert shadow.enter() == Exit(R.NMI_WINDOW, at=1)


def test_nmi_window_opens_with_iret(bench: Bench) -> None:
    """26.3: under virtual NMIs IRET removes virtual-NMI blocking."""
    code = "push 0x10; push 0x7000; push 2; push 8; push 0x8013; iretq; nop; nop"
    guest = bench.guest(LONG, code, NMI_WINDOW, *NMIS, GUEST_INTERRUPTIBILITY_STATE=BY_NMI)
    exit = guest.enter()
    assert (exit.reason, guest[Field.GUEST_INTERRUPTIBILITY_STATE]) == (R.NMI_WINDOW, 0)


def test_injected_nmi_blocks_nmis(bench: Bench) -> None:
    """27.6.1: delivery of an NMI sets the blocking."""
    guest = bench.guest(LONG, "nop", *NMIS)
    inject(guest, 2, E.NMI)
    assert guest.enter() == handler(2)
    assert guest[Field.GUEST_INTERRUPTIBILITY_STATE] == BY_NMI


# --- blocking by STI and by MOV SS -------------------------------------------------------------------------------

SHADOWS = [
    (LONG, "sti; cpuid", BY_STI), (LONG, "mov ss, ax; cpuid", BY_MOV_SS), (PAGED, "push ss; {17}; cpuid", BY_MOV_SS),
    (REAL, "sti; cpuid", BY_STI), (REAL, "mov ss, ax; cpuid", BY_MOV_SS), (LONG, "sti; nop; cpuid", 0),
    (COMPATIBILITY, "mov ss, ax; cpuid", BY_MOV_SS), (LONG, "sti; sti; cpuid", 0),
]  # fmt: skip


@pytest.mark.parametrize(("mode", "code", "blocking"), SHADOWS, ids=[f"{m}:{c}" for m, c, _ in SHADOWS])
def test_blocking_is_saved(bench: Bench, mode: Mode, code: str, blocking: int) -> None:
    """25.4.2, 28.3.4: which instruction blocks; a second STI does not block anew."""
    guest = bench.guest(mode, code)
    guest.gpr[0] = 0x10 if mode is not REAL else 0
    assert guest.enter().reason == R.CPUID
    assert guest[Field.GUEST_INTERRUPTIBILITY_STATE] == blocking


def test_mov_ss_after_the_byte_of_sti(bench: Bench) -> None:
    """The last byte of MOV SS may look like STI: ``mov ss, [rip - 5]`` ends in FB... and still is MOV SS."""
    guest = bench.guest(PAGED, f"mov ss, [{DATA + 0x4B00:#x}]; cpuid")
    address = 0xFB00_0000
    code = b"\x8e\x15" + address.to_bytes(4, "little") + b"\x0f\xa2"
    guest.write(CODE, code)
    guest.write(0x18000 + (address >> 22) * 4, (0x19007).to_bytes(4, "little"))
    guest.write(0, b"\x10\x00")
    assert guest.enter().reason == R.CPUID
    assert guest[Field.GUEST_INTERRUPTIBILITY_STATE] == BY_MOV_SS


def test_exception_delivery_ends_the_shadow(bench: Bench) -> None:
    """25.4.2."""
    guest = bench.guest(LONG, "sti; ud2")
    assert guest.enter() == handler(Vector.UD)
    assert guest[Field.GUEST_INTERRUPTIBILITY_STATE] == 0


# --- preemption timer --------------------------------------------------------------------------------------------


def test_preemption_timer_of_zero(bench: Bench) -> None:
    """27.7.4: exits before the first instruction."""
    assert bench.guest(LONG, "nop", TIMER, VMX_PREEMPTION_TIMER_VALUE=0).enter() == Exit(R.PREEMPTION_TIMER)


def test_preemption_timer_ends_a_loop(bench: Bench) -> None:
    """26.5.1: counts down at the TSC's rate divided by 2^5 (23.6, IA32_VMX_MISC)."""
    guest = bench.guest(LONG, "jmp 0x8000", TIMER, VMX_PREEMPTION_TIMER_VALUE=1000)
    before = guest.processor.clock.tsc()
    assert guest.enter() == Exit(R.PREEMPTION_TIMER)
    assert 32_000 <= guest.processor.clock.tsc() - before < 33_000


def test_preemption_timer_is_saved(bench: Bench) -> None:
    """28.3.4: what is left, if "save VMX-preemption timer value" is 1; 0 if it expired."""
    for control, saved in (((VmExit.SAVE_VMX_PREEMPTION_TIMER_VALUE,), True), ((), False)):
        guest = bench.guest(
            LONG, "mov ecx, 100; dec ecx; jnz 0x8005; cpuid", TIMER, *control, VMX_PREEMPTION_TIMER_VALUE=100_000
        )
        guest.off(*(() if control else (VmExit.SAVE_VMX_PREEMPTION_TIMER_VALUE,)))
        assert guest.enter().reason == R.CPUID
        left = guest[Field.VMX_PREEMPTION_TIMER_VALUE]
        assert (0 < left < 100_000) if saved else left == 100_000


def test_preemption_timer_wakes_from_hlt(bench: Bench) -> None:
    """26.5.1: it counts in the HLT activity state, which is saved."""
    guest = bench.guest(LONG, "hlt", TIMER, VMX_PREEMPTION_TIMER_VALUE=1000).off(ProcBased.HLT_EXITING)
    assert guest.enter() == Exit(R.PREEMPTION_TIMER, at=1)
    assert guest[Field.GUEST_ACTIVITY_STATE] == 1


def test_injection_wakes_from_hlt(bench: Bench) -> None:
    """27.7.2: after an injected event the processor is active."""
    guest = bench.guest(LONG, "nop", GUEST_RFLAGS=2 | IF, GUEST_ACTIVITY_STATE=1)
    inject(guest, 0x44, E.EXTERNAL_INTERRUPT)
    assert guest.enter() == handler(0x44)
    assert guest[Field.GUEST_ACTIVITY_STATE] == 0


# --- monitor trap flag -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_monitor_trap_flag_after_each_instruction(bench: Bench, mode: Mode) -> None:
    """26.5.2: after one instruction; the guest does not see it in RFLAGS."""
    guest = bench.guest(mode, "nop; mov al, 1; nop", MTF)
    for at in (1, 3, 4):
        assert guest.enter() == Exit(R.MONITOR_TRAP_FLAG, at=at)
        assert not guest[Field.GUEST_RFLAGS] & TF


def test_monitor_trap_flag_after_an_injected_event(bench: Bench) -> None:
    """26.5.2: pending after delivery, before the handler's first instruction."""
    guest = bench.guest(LONG, "nop", MTF)
    inject(guest, Vector.UD, E.HARDWARE_EXCEPTION)
    assert guest.enter() == Exit(R.MONITOR_TRAP_FLAG, at=handler(Vector.UD).at)


def test_monitor_trap_flag_after_a_fault(bench: Bench) -> None:
    """26.5.2: an instruction that faults: the exit follows the delivery."""
    guest = bench.guest(LONG, "ud2", MTF)
    assert guest.enter() == Exit(R.MONITOR_TRAP_FLAG, at=handler(Vector.UD).at)


def test_monitor_trap_flag_after_int_n(bench: Bench) -> None:
    """26.5.2: after the delivery of INT n."""
    guest = bench.guest(LONG, "int 0x80", MTF)
    assert guest.enter() == Exit(R.MONITOR_TRAP_FLAG, at=handler(0x80).at)


def test_monitor_trap_flag_yields_to_other_exits(bench: Bench) -> None:
    """26.5.2: an instruction that exits leaves no monitor trap behind."""
    guest = bench.guest(LONG, "cpuid; nop", MTF)
    assert guest.enter() == Exit(R.CPUID, length=2)
    assert guest.skip().enter() == Exit(R.MONITOR_TRAP_FLAG, at=3)


@pytest.mark.parametrize("code", ["mov cr8, rax", "mov rcx, cr0", "rdtscp", "wbinvd", "syscall"])
def test_monitor_trap_flag_after_instructions_carried_out_here(bench: Bench, code: str) -> None:
    """26.5.2: wherever an instruction is executed."""
    guest = bench.guest(LONG, code, MTF, ProcBased2.ENABLE_RDTSCP, CR0_GUEST_HOST_MASK=8)
    assert guest.enter().reason == R.MONITOR_TRAP_FLAG


# --- external events ---------------------------------------------------------------------------------------------


def test_kick_is_an_external_interrupt(bench: Bench) -> None:
    """26.2: external-interrupt exiting."""
    guest = bench.guest(LONG, "jmp 0x8000")
    guest.processor.kick()
    assert guest.enter() == Exit(R.EXTERNAL_INTERRUPT)


# --- pending debug exceptions -------------------------------------------------------------------------------------

BS, ENABLED = 1 << 14, 1 << 12


@pytest.mark.parametrize(("pending", "qualification"), [(BS, BS), (ENABLED | 1, 1), (BS | ENABLED | 4, BS | 4)])
def test_pending_debug_exception_comes_first(bench: Bench, pending: int, qualification: int) -> None:
    """27.7.3: a trap before the first instruction; RF stays 0; the field is cleared."""
    flags = 2 | (TF if pending & BS else 0)
    guest = bench.guest(
        LONG, "nop", EXCEPTION_BITMAP=1 << Vector.DB, GUEST_PENDING_DEBUG_EXCEPTIONS=pending, GUEST_RFLAGS=flags
    )
    assert guest.enter() == Exit(R.EXCEPTION_NMI, qualification, interruption=0x8000_0301)
    assert guest[Field.GUEST_RFLAGS] == flags
    assert guest[Field.GUEST_PENDING_DEBUG_EXCEPTIONS] == 0


def test_pending_debug_exception_is_delivered(bench: Bench) -> None:
    """27.7.3."""
    guest = bench.guest(LONG, "nop", GUEST_PENDING_DEBUG_EXCEPTIONS=BS, GUEST_RFLAGS=2 | TF)
    assert guest.enter() == handler(Vector.DB)


def test_monitor_trap_leaves_the_single_step_pending(bench: Bench) -> None:
    """26.5.2, 28.3.4: the trap of RFLAGS.TF waits behind the monitor trap."""
    guest = bench.guest(LONG, "mov rcx, cr0; nop", MTF, GUEST_RFLAGS=2 | TF, CR0_GUEST_HOST_MASK=8)
    assert guest.enter() == Exit(R.MONITOR_TRAP_FLAG, at=3)
    assert guest[Field.GUEST_PENDING_DEBUG_EXCEPTIONS] == BS
    native = bench.guest(LONG, "nop; nop", MTF, GUEST_RFLAGS=2 | TF)
    assert native.enter() == Exit(R.MONITOR_TRAP_FLAG, at=1)
    assert native[Field.GUEST_PENDING_DEBUG_EXCEPTIONS] == BS


# --- RF ----------------------------------------------------------------------------------------------------------


def test_rf_is_saved_as_the_manual_says(bench: Bench) -> None:
    """28.3.3: 0 for instructions, 1 for faults, as it was for the rest."""
    instruction = bench.guest(LONG, "cpuid", GUEST_RFLAGS=2 | RF)
    instruction.enter()
    assert instruction[Field.GUEST_RFLAGS] == 2
    fault = bench.guest(LONG, "ud2", EXCEPTION_BITMAP=1 << Vector.UD)
    fault.enter()
    assert fault[Field.GUEST_RFLAGS] == 2 | RF
    page_fault = bench.guest(PAGED, "mov eax, [0x400000]", EXCEPTION_BITMAP=1 << Vector.PF)
    page_fault.enter()
    assert page_fault[Field.GUEST_RFLAGS] == 2 | RF
    trap = bench.guest(LONG, "nop; nop", EXCEPTION_BITMAP=1 << Vector.DB, GUEST_RFLAGS=2 | TF)
    trap.enter()
    assert trap[Field.GUEST_RFLAGS] == 2 | TF
    violation = bench.guest(LONG_USER, f"mov eax, [{DATA}]", ProcBased2.ENABLE_EPT)
    violation.map(DATA, rights=0)
    violation.enter()
    assert violation[Field.GUEST_RFLAGS] == 2 | RF
