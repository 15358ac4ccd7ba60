"""What L0 carries out for L2 where L1 wants no exit, and L0's own handlers for its guest would get it wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lzero.cpu.vmcs import FIELD_POSITION
from lzero.hypervisor.endings import halted_forever
from lzero.sdm.controls import PinBased, ProcBased
from lzero.sdm.exit_reasons import ExitReason
from lzero.sdm.formats import ActivityState
from lzero.sdm.msrs import Msr
from lzero.sdm.vmcs_fields import Field

if TYPE_CHECKING:
    from lzero.hypervisor.nested.state import NestedState
    from lzero.hypervisor.vcpu import Vcpu

__all__ = ["HALTED", "carry_out", "sleep"]

_P = FIELD_POSITION
_PIN, _PROC = _P[Field.PIN_BASED_VM_EXECUTION_CONTROLS], _P[Field.PRIMARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS]
_ACTIVITY, _BLOCKING = _P[Field.GUEST_ACTIVITY_STATE], _P[Field.GUEST_INTERRUPTIBILITY_STATE]
_RFLAGS = _P[Field.GUEST_RFLAGS]
_NMI_EXITING, _INTERRUPT_EXITING = int(PinBased.NMI_EXITING), int(PinBased.EXTERNAL_INTERRUPT_EXITING)
_WINDOWS = int(ProcBased.INTERRUPT_WINDOW_EXITING), int(ProcBased.NMI_WINDOW_EXITING)
_TSC, _M32 = int(Msr.IA32_TIME_STAMP_COUNTER), 0xFFFF_FFFF
_IF, _BY_NMI = 1 << 9, 8
HALTED = int(ActivityState.HLT)


def carry_out(vcpu: Vcpu, reason: int) -> bool | None:
    """The instruction that exited, if it is one of those that need L2's view; None if it is for L0's own handler."""
    if reason == ExitReason.HLT:
        vcpu.skip_instruction()
        vcpu.cpu.words[_ACTIVITY] = HALTED
        return True
    if reason == ExitReason.MSR_READ and vcpu.cpu.gpr[1] & _M32 == _TSC:
        return _read_tsc(vcpu)
    return None


def _read_tsc(vcpu: Vcpu) -> bool:
    """RDMSR of the TSC is offset and scaled as RDTSC is (26.3)."""
    gpr = vcpu.cpu.gpr
    value = vcpu.cpu.guest_tsc()
    gpr[0], gpr[2] = value & _M32, value >> 32
    return vcpu.skip_instruction()


def _awake(vcpu: Vcpu, state: NestedState, w12: memoryview, w02: memoryview) -> bool:
    """Something is there that ends the HLT state of L2, by an exit or by an event."""
    pc, own = vcpu.pc, state.preemption_deadline
    enabled, unblocked = w02[_RFLAGS] & _IF, not w02[_BLOCKING] & _BY_NMI
    interrupt_window, nmi_window = (w12[_PROC] & control for control in _WINDOWS)
    return bool(
        (own is not None and own <= pc.clock.now_ns())
        or (pc.nmi_pending and (w12[_PIN] & _NMI_EXITING or unblocked))
        or (pc.interrupt_pending and (w12[_PIN] & _INTERRUPT_EXITING or enabled))
        or (interrupt_window and enabled)
        or (nmi_window and unblocked)
    )


def sleep(vcpu: Vcpu, state: NestedState) -> None:
    """L2 is in the HLT activity state: let time pass until something concerns it (27.7.2)."""
    vmcs12 = state.vmcs12
    assert vmcs12 is not None
    w12, w02 = vmcs12.words, state.vmcs02.words
    clock = vcpu.pc.clock
    interruptible = w12[_PIN] & _INTERRUPT_EXITING or w02[_RFLAGS] & _IF
    while vcpu.stop_reason is None and not _awake(vcpu, state, w12, w02):
        times = [state.preemption_deadline, clock.next_deadline_ns() if interruptible else None]
        deadlines = [time for time in times if time is not None]
        if not deadlines:
            if not (interruptible and vcpu.wait_for_input()):
                halted_forever(vcpu)
            continue
        if not vcpu.idle_until(min(deadlines)):
            return
        vcpu.cpu.clock.skip(max(0, min(deadlines) - clock.now_ns()))
        clock.run_due()
