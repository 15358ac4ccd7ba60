"""Events and timers under L2: one test per rule, named after its section (SDM 3C 26.1, 26.5, 27.5 to 27.7, 28.2)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from l2lab import HANDLERS, L2, READ, VALID, WRITE_BACK
from nestedlab import L2_CODE, L2_STACK

from guestasm import assemble
from lzero.hypervisor.endings import HaltedForever
from lzero.sdm.controls import PinBased, ProcBased, VmExit
from lzero.sdm.exceptions import Vector
from lzero.sdm.exit_reasons import ExitReason as R
from lzero.sdm.formats import ActivityState
from lzero.sdm.vmcs_fields import Field

EVENT, LENGTH = Field.VM_ENTRY_INTERRUPTION_INFORMATION, Field.VM_ENTRY_INSTRUCTION_LENGTH
EXIT_EVENT, VECTORING = Field.VM_EXIT_INTERRUPTION_INFORMATION, Field.IDT_VECTORING_INFORMATION
BLOCKING, ACTIVITY, TIMER = (
    Field.GUEST_INTERRUPTIBILITY_STATE,
    Field.GUEST_ACTIVITY_STATE,
    Field.VMX_PREEMPTION_TIMER_VALUE,
)
BY_STI, BY_MOV_SS, BY_NMI = 1, 2, 8
NMI = VALID | 2 << 8 | 2
ENABLED, DISABLED = 0x202, 2
SPIN = "{eb fe}"


@pytest.fixture
def l2() -> Iterator[L2]:
    made = L2()
    made.use_idt()
    yield made
    made.close()


def virtual_nmis(l2: L2) -> None:
    l2.want(PinBased.NMI_EXITING, PinBased.VIRTUAL_NMIS)


# --- 26.2 external interrupts and NMIs ---


@pytest.mark.parametrize("flags", [ENABLED, DISABLED])
def test_26_2_external_interrupts_exit_whatever_if_says(l2: L2, flags: int) -> None:
    """Not acknowledged: no vector, and the interrupt is still pending for L1."""
    l2.want(PinBased.EXTERNAL_INTERRUPT_EXITING)
    l2[Field.GUEST_RFLAGS] = flags
    l2.interrupt(0x55)
    assert l2.run(SPIN) == R.EXTERNAL_INTERRUPT
    assert l2[EXIT_EVENT] & VALID == 0
    assert l2.lab.pc.interrupt_pending


def test_28_2_2_acknowledge_interrupt_on_exit(l2: L2) -> None:
    l2.want(PinBased.EXTERNAL_INTERRUPT_EXITING, VmExit.ACKNOWLEDGE_INTERRUPT_ON_EXIT)
    l2.interrupt(0x55)
    assert l2.run(SPIN) == R.EXTERNAL_INTERRUPT
    assert l2[EXIT_EVENT] == VALID | 0x55
    assert not l2.lab.pc.interrupt_pending


def test_26_2_an_interrupt_that_arrives_while_l2_runs(l2: L2) -> None:
    l2.want(PinBased.EXTERNAL_INTERRUPT_EXITING, VmExit.ACKNOWLEDGE_INTERRUPT_ON_EXIT)
    l2.soon(lambda: l2.interrupt(0x77))
    assert l2.run(SPIN) == R.EXTERNAL_INTERRUPT
    assert l2[EXIT_EVENT] == VALID | 0x77


def test_26_2_without_the_control_interrupts_are_l2s_own(l2: L2) -> None:
    """Through the IDT of L2, once IF is 1."""
    l2.interrupt(0x55)
    assert l2.run("nop; sti; nop; nop; hlt") == R.VMCALL
    assert l2.delivered == 0x55


def test_26_2_nmis_exit_and_block_further_ones(l2: L2) -> None:
    """28.5.6: after the exit, NMIs are blocked in L1."""
    l2.want(PinBased.NMI_EXITING)
    l2.soon(l2.nmi)
    assert l2.run(SPIN) == R.EXCEPTION_NMI
    assert l2[EXIT_EVENT] == NMI
    assert l2.cpu.vmread(BLOCKING) & BY_NMI


def test_26_2_without_nmi_exiting_nmis_are_l2s_own(l2: L2) -> None:
    l2.soon(l2.nmi)
    assert l2.run(SPIN) == R.VMCALL
    assert l2.delivered == Vector.NMI
    assert l2[BLOCKING] & BY_NMI
    assert l2.cpu.vmread(BLOCKING) & BY_NMI  # 28.5.6: an exit that is no NMI changes nothing


def test_26_3_virtual_nmis(l2: L2) -> None:
    """Blocking is virtual: physical NMIs exit all the same, IRET ends it, and L1 is not blocked."""
    virtual_nmis(l2)
    l2[BLOCKING] = BY_NMI
    assert l2.run("hlt") == R.HLT
    assert l2[BLOCKING] & BY_NMI
    assert not l2.cpu.vmread(BLOCKING) & BY_NMI
    l2.soon(l2.nmi)
    assert l2.run(SPIN) == R.EXCEPTION_NMI
    code = f"mov rax, rsp; push 0x18; push rax; push 2; push 0x10; mov rax, {L2_CODE + 0x40:#x}; push rax; iretq"
    l2.cpu.memory.write(L2_CODE + 0x40, b"\xf4")
    assert l2.run(code) == R.HLT
    assert not l2[BLOCKING] & BY_NMI


# --- 26.2 windows ---


def test_26_2_interrupt_window(l2: L2) -> None:
    l2.want(ProcBased.INTERRUPT_WINDOW_EXITING)
    code = "nop; sti; nop; nop; hlt"
    assert l2.run(code) == R.INTERRUPT_WINDOW
    assert l2.rip == 3  # after the shadow of STI
    l2[Field.GUEST_RFLAGS] = ENABLED
    assert l2.run(code) == R.INTERRUPT_WINDOW
    assert l2.rip == 0  # at once
    l2[BLOCKING] = BY_MOV_SS
    assert l2.run(code) == R.INTERRUPT_WINDOW
    assert l2.rip == 1


def test_26_2_nmi_window(l2: L2) -> None:
    virtual_nmis(l2)
    l2.want(ProcBased.NMI_WINDOW_EXITING)
    assert l2.run("nop; hlt") == R.NMI_WINDOW
    assert l2.rip == 0
    l2[BLOCKING] = BY_NMI
    assert l2.run("nop; hlt") == R.HLT


# --- 27.6 event injection ---


@pytest.mark.parametrize(
    ("info", "vector"),
    [(VALID | 0x40, 0x40), (NMI, 2), (VALID | 3 << 8 | 6, 6), (VALID | 4 << 8 | 0x80, 0x80), (VALID | 6 << 8 | 3, 3)],
)
def test_27_6_1_injected_events_are_delivered(l2: L2, info: int, vector: int) -> None:
    l2.code("nop; nop; hlt")
    l2[Field.GUEST_RFLAGS], l2[EVENT], l2[LENGTH] = ENABLED, info, 2
    assert l2.enter() == R.VMCALL
    assert l2.delivered == vector
    software = info >> 8 & 7 in (4, 6)
    assert l2.memory.read_u64(l2[Field.GUEST_RSP]) == L2_CODE + (2 if software else 0)
    assert not l2[EVENT] & VALID


@pytest.mark.parametrize(("kind", "vector"), [(4, 0x80), (5, 1), (6, 3)])
def test_27_6_1_software_events_of_length_zero(l2: L2, kind: int, vector: int) -> None:
    """IA32_VMX_MISC bit 30: RIP on the stack is where L2 was."""
    l2.code("nop; hlt")
    l2[EVENT], l2[LENGTH] = VALID | kind << 8 | vector, 0
    assert l2.enter() == R.VMCALL
    assert l2.delivered == vector
    assert l2.memory.read_u64(l2[Field.GUEST_RSP]) == L2_CODE


def test_27_6_1_injected_error_code(l2: L2) -> None:
    l2.code("hlt")
    l2[EVENT], l2[Field.VM_ENTRY_EXCEPTION_ERROR_CODE] = VALID | 1 << 11 | 3 << 8 | Vector.GP, 0x1234
    assert l2.enter() == R.VMCALL
    assert l2.delivered == Vector.GP
    assert l2.memory.read_u64(l2[Field.GUEST_RSP]) == 0x1234


def test_27_6_1_the_injected_event_comes_first_then_the_exit(l2: L2) -> None:
    """An interrupt was pending at entry: the exit comes at the first instruction of the handler, with no vectoring."""
    l2.want(PinBased.EXTERNAL_INTERRUPT_EXITING)
    l2.interrupt(0x55)
    l2.code("hlt")
    l2[EVENT] = VALID | 3 << 8 | Vector.UD
    assert l2.enter() == R.EXTERNAL_INTERRUPT
    assert l2[Field.GUEST_RIP] == HANDLERS + 16 * Vector.UD
    assert l2[VECTORING] == 0


@pytest.mark.parametrize("info", [VALID | 0x40, NMI, VALID | 4 << 8 | 0x80, VALID | 1 << 11 | 3 << 8 | Vector.GP])
def test_28_2_4_idt_vectoring_information(l2: L2, info: int) -> None:
    """The stack of L2 is not writable under L1's EPT: the event did not get through, and L1 is told which."""
    ept = l2.use_ept()
    ept.map(L2_STACK, bits=READ | WRITE_BACK)
    virtual_nmis(l2)
    l2.code("nop; nop; hlt")
    l2[Field.GUEST_RFLAGS], l2[EVENT], l2[LENGTH] = ENABLED, info, 2
    l2[Field.VM_ENTRY_EXCEPTION_ERROR_CODE] = 0x77
    assert l2.enter() == R.EPT_VIOLATION
    assert l2[VECTORING] == info
    if info & 1 << 11:
        assert l2[Field.IDT_VECTORING_ERROR_CODE] == 0x77
    if info >> 8 & 7 == 4:
        assert l2[Field.VM_EXIT_INSTRUCTION_LENGTH] == 2
    assert bool(l2[BLOCKING] & BY_NMI) == (info == NMI)
    ept.map(L2_STACK)
    l2.lab.step("invept", rbx=2, operand=bytes(16))
    l2[EVENT] = info
    assert l2.enter() == R.VMCALL
    assert l2.delivered == info & 0xFF


def test_28_2_4_an_event_that_l0_delivers_again_is_not_l1s_business(l2: L2) -> None:
    """The first push of the delivery meets a page that only L0 has not mapped yet."""
    l2.use_ept()
    l2.code("hlt")
    l2[EVENT] = VALID | 3 << 8 | Vector.UD
    assert l2.enter() == R.VMCALL
    assert l2.delivered == Vector.UD
    assert l2[VECTORING] == 0


# --- 26.5.2 monitor trap flag ---


def test_26_5_2_monitor_trap_flag(l2: L2) -> None:
    l2.want(ProcBased.MONITOR_TRAP_FLAG)
    l2.code("nop; mov eax, 1; hlt")
    for rip in (1, 6):
        assert l2.enter() == R.MONITOR_TRAP_FLAG
        assert l2.rip == rip


@pytest.mark.parametrize("code", ["mov ecx, 0x277; rdmsr; hlt", "in al, 0x71; hlt", "wbinvd; hlt", "mov rax, cr8; hlt"])
def test_26_5_2_after_instructions_that_l0_carries_out(l2: L2, code: str) -> None:
    l2.want(ProcBased.USE_MSR_BITMAPS)
    l2[Field.MSR_BITMAPS_ADDRESS] = l2.page()
    last = len(assemble(code.removesuffix("; hlt"), 64, L2_CODE))
    l2.code(code)
    if "mov ecx" in code:
        l2[Field.GUEST_RIP] += 5
        l2.cpu.gpr[1] = 0x277
    l2.want(ProcBased.MONITOR_TRAP_FLAG)
    assert l2.enter(rcx=0x277) == R.MONITOR_TRAP_FLAG
    assert l2.rip == last


def test_26_5_2_after_an_injected_event(l2: L2) -> None:
    """Pending at the first instruction of the handler."""
    l2.want(ProcBased.MONITOR_TRAP_FLAG)
    l2.code("hlt")
    l2[EVENT] = VALID | 3 << 8 | Vector.UD
    assert l2.enter() == R.MONITOR_TRAP_FLAG
    assert l2[Field.GUEST_RIP] == HANDLERS + 16 * Vector.UD


# --- 26.5.1 preemption timer ---


def test_26_5_1_preemption_timer(l2: L2) -> None:
    l2.want(PinBased.ACTIVATE_VMX_PREEMPTION_TIMER)
    l2[TIMER] = 300  # 9.6 µs
    before = l2.lab.clock.now_ns()
    assert l2.run(SPIN) == R.PREEMPTION_TIMER
    assert 9_600 <= l2.lab.clock.now_ns() - before < 20_000
    assert l2[TIMER] == 300  # 28.3: not saved


def test_26_5_1_a_timer_of_0_exits_before_the_first_instruction(l2: L2) -> None:
    l2.want(PinBased.ACTIVATE_VMX_PREEMPTION_TIMER)
    l2[TIMER] = 0
    assert l2.run("nop; hlt") == R.PREEMPTION_TIMER
    assert l2.rip == 0
    exits = l2.lab.vcpu.recorder.aggregates.exits
    assert exits[2, R.PREEMPTION_TIMER].count == 1  # recorded, though L2 did not run
    assert exits[1, R.VMLAUNCH].count == 1


def test_26_5_1_an_injected_event_comes_before_the_timer(l2: L2) -> None:
    l2.want(PinBased.ACTIVATE_VMX_PREEMPTION_TIMER)
    l2[TIMER], l2[EVENT] = 0, VALID | 3 << 8 | Vector.UD
    l2.code("nop; hlt")
    assert l2.enter() == R.PREEMPTION_TIMER
    assert l2[Field.GUEST_RIP] == HANDLERS + 16 * Vector.UD


def test_28_3_saving_the_timer(l2: L2) -> None:
    l2.want(PinBased.ACTIVATE_VMX_PREEMPTION_TIMER, VmExit.SAVE_VMX_PREEMPTION_TIMER_VALUE)
    l2[TIMER] = 1 << 20
    assert l2.run("nop; hlt") == R.HLT
    assert (1 << 20) - 1000 < l2[TIMER] < 1 << 20
    l2[TIMER] = 100
    assert l2.run(SPIN) == R.PREEMPTION_TIMER
    assert l2[TIMER] == 0


# --- 27.7.2 activity state ---


def quiet(l2: L2) -> None:
    """HLT of L2 does not exit."""
    l2.refuse(ProcBased.HLT_EXITING)


def test_26_1_3_hlt_without_exiting_waits_for_l2s_interrupt(l2: L2) -> None:
    quiet(l2)
    l2.soon(lambda: l2.interrupt(0x66))
    assert l2.run("sti; hlt; nop") == R.VMCALL
    assert l2.delivered == 0x66
    assert l2.memory.read_u64(l2[Field.GUEST_RSP]) == L2_CODE + 2


@pytest.mark.parametrize("flags", [ENABLED, DISABLED])
def test_27_7_2_an_interrupt_that_exits_ends_it_whatever_if_says(l2: L2, flags: int) -> None:
    """The activity state saved is HLT, RIP is after the instruction."""
    quiet(l2)
    l2.want(PinBased.EXTERNAL_INTERRUPT_EXITING)
    l2[Field.GUEST_RFLAGS] = flags
    l2.soon(lambda: l2.interrupt(0x66))
    assert l2.run("hlt; nop") == R.EXTERNAL_INTERRUPT
    assert (l2.rip, l2[ACTIVITY]) == (1, ActivityState.HLT)


def test_27_7_2_the_preemption_timer_runs_in_hlt(l2: L2) -> None:
    quiet(l2)
    l2.want(PinBased.ACTIVATE_VMX_PREEMPTION_TIMER)
    l2[TIMER] = 600
    assert l2.run("hlt; nop") == R.PREEMPTION_TIMER
    assert (l2.rip, l2[ACTIVITY]) == (1, ActivityState.HLT)


def test_27_7_2_entry_into_the_hlt_state(l2: L2) -> None:
    """Nothing runs until an event; an event injected with it ends it (27.6.2)."""
    l2.want(PinBased.ACTIVATE_VMX_PREEMPTION_TIMER)
    l2[TIMER], l2[ACTIVITY] = 600, ActivityState.HLT
    assert l2.run("cpuid") == R.PREEMPTION_TIMER
    assert (l2.rip, l2[ACTIVITY]) == (0, ActivityState.HLT)
    l2.refuse(PinBased.ACTIVATE_VMX_PREEMPTION_TIMER)
    l2[EVENT], l2[Field.GUEST_RFLAGS] = VALID | 0x40, ENABLED
    assert l2.enter() == R.VMCALL
    assert l2.delivered == 0x40
    assert l2[ACTIVITY] == ActivityState.ACTIVE


@pytest.mark.parametrize(
    ("control", "reason"),
    [
        (ProcBased.INTERRUPT_WINDOW_EXITING, R.INTERRUPT_WINDOW),
        (ProcBased.NMI_WINDOW_EXITING, R.NMI_WINDOW),
    ],
)
def test_27_7_5_windows_open_in_the_hlt_state(l2: L2, control: ProcBased, reason: R) -> None:
    virtual_nmis(l2)
    l2.want(control)
    l2[ACTIVITY], l2[Field.GUEST_RFLAGS] = ActivityState.HLT, ENABLED
    assert l2.run("cpuid") == reason


def test_an_l2_that_nothing_wakes_ends_the_run(l2: L2) -> None:
    quiet(l2)
    l2.code("cli; hlt")
    l2.lab.step("vmlaunch")
    assert l2.lab.vcpu.stop_reason == HaltedForever(L2_CODE + 2, interrupts_enabled=False)


# --- 28.2.1 debug exceptions ---


def test_28_2_1_debug_exception_qualification(l2: L2) -> None:
    """Single step: BS in the qualification; DR6 is L1's business."""
    l2[Field.EXCEPTION_BITMAP] = 1 << Vector.DB
    l2[Field.GUEST_RFLAGS] = 0x102
    assert l2.run("nop; nop") == R.EXCEPTION_NMI
    assert l2.qualification == 1 << 14
    assert l2.rip == 1


def test_27_7_3_pending_debug_exceptions_are_delivered(l2: L2) -> None:
    l2[Field.GUEST_PENDING_DEBUG_EXCEPTIONS], l2[Field.GUEST_RFLAGS] = 1 << 14, 0x102
    assert l2.run("nop; hlt") == R.VMCALL
    assert l2.delivered == Vector.DB
    assert l2.memory.read_u64(l2[Field.GUEST_RSP]) == L2_CODE
