"""L0's virtual processor: the run loop.

Each VM exit comes in at :meth:`Vcpu.on_exit`: the reason is dispatched to its handler, then pending interrupts are
injected and the guest is entered again. That is one pass through the house:
trap → processor → here → ``dispatch`` → handler → record → VMRESUME.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter_ns

from lzero.cpu.processor import Processor
from lzero.cpu.vmcs import FIELD_POSITION, Vmcs
from lzero.hypervisor.description import LastExits
from lzero.hypervisor.endings import exit_requested
from lzero.hypervisor.ept import ExtendedPageTables
from lzero.hypervisor.features import NESTED
from lzero.hypervisor.msr_policy import MsrPolicy
from lzero.hypervisor.nested import Nested
from lzero.hypervisor.nested.shadow_fields import ShadowFields
from lzero.hypervisor.vmcs01 import build_vmcs01, load_entry_state
from lzero.platform.loaders.entry import EntryState
from lzero.platform.pc import Pc
from lzero.sdm.controls import PinBased, ProcBased
from lzero.sdm.exceptions import Vector
from lzero.sdm.registers import Cr0
from lzero.sdm.vmcs_fields import Field
from lzero.trace.recorder import Recorder

__all__ = ["EXIT_COST_NS", "Vcpu"]

EXIT_COST_NS = 500
"""Guest nanoseconds that a VM exit with its entry takes on the virtual clock."""

_P = FIELD_POSITION
_RIP, _RFLAGS = _P[Field.GUEST_RIP], _P[Field.GUEST_RFLAGS]
_BLOCKING = _P[Field.GUEST_INTERRUPTIBILITY_STATE]
_QUALIFICATION, _LENGTH = _P[Field.EXIT_QUALIFICATION], _P[Field.VM_EXIT_INSTRUCTION_LENGTH]
_INTERRUPTION, _ERROR = _P[Field.VM_EXIT_INTERRUPTION_INFORMATION], _P[Field.VM_EXIT_INTERRUPTION_ERROR_CODE]
_PHYSICAL = _P[Field.GUEST_PHYSICAL_ADDRESS]
_VECTORING, _VECTORING_ERROR = _P[Field.IDT_VECTORING_INFORMATION], _P[Field.IDT_VECTORING_ERROR_CODE]
_ENTRY_EVENT = _P[Field.VM_ENTRY_INTERRUPTION_INFORMATION]
_CS_RIGHTS, _EFER = _P[Field.GUEST_CS_ACCESS_RIGHTS], _P[Field.GUEST_IA32_EFER]
_VALID = 1 << 31
_NMI = _VALID | 2 << 8 | 2
_PIN, _PROC = Field.PIN_BASED_VM_EXECUTION_CONTROLS, Field.PRIMARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS
_TIMER_CONTROL = int(PinBased.ACTIVATE_VMX_PREEMPTION_TIMER)
_IF = 1 << 9
_VMX_CR0 = int(Cr0.PE | Cr0.NE | Cr0.PG)

Dispatch = Callable[["Vcpu", int], bool]


class Vcpu:
    """One VCPU under L0.

    Parameters
    ----------
    cpu:
        The processor it runs on.
    pc:
        The board around it.
    ept:
        L0's mapping of guest-physical memory.
    recorder:
        Where exits go.
    ignore_msrs, warn:
        See :class:`lzero.hypervisor.msr_policy.MsrPolicy`.
    offers_vmx:
        The guest may use VMX.
    shadow_fields:
        VMCS fields that the guest, as L1, accesses without an exit.
    """

    def __init__(
        self,
        cpu: Processor,
        pc: Pc,
        ept: ExtendedPageTables,
        recorder: Recorder,
        *,
        ignore_msrs: bool,
        warn: Callable[[str], None],
        offers_vmx: bool = False,
        shadow_fields: ShadowFields | None = None,
    ) -> None:
        self.cpu = cpu
        self.pc = pc
        pc.memory.on_write = cpu.memory.changed
        self.ept = ept
        self.recorder = recorder
        self.msrs = MsrPolicy(self, ignore_unknown=ignore_msrs, warn=warn)
        self.warn = warn
        self.physical_address_bits = cpu.capabilities.physical_address_width
        self.offers_vmx = False
        self.vmcs01 = Vmcs()
        self.stop_reason: object = None
        self.level = 1
        self.parent = -1
        self.exits = 0
        self.last_exits = LastExits()
        self.host_deadline_ns = 1 << 63
        self.host_timeout: object = None
        self.handled_by = 1
        self.vmcs_field = -1
        self.recorded_reason = 0
        self.start_ns = perf_counter_ns()
        self._dispatch: Dispatch | None = None
        self.on_idle: Callable[[int], bool] = lambda deadline: True
        self.on_wait: Callable[[], bool] = lambda: False
        cpu.vmptrld(self.vmcs01)
        build_vmcs01(cpu, ept)
        self.nested = Nested(self, shadow_fields or ShadowFields())
        if offers_vmx:
            self.offers_vmx = True
            self.msrs.more.update(NESTED.to_msrs())

    # --- start and stop ----------------------------------------------------------------------------------------

    def reset_to(self, state: EntryState) -> None:
        """Start from the state a loader asks for."""
        load_entry_state(self.cpu, state)

    def run(self, dispatch: Dispatch) -> None:
        """Run until a handler sets :attr:`stop_reason`."""
        self._dispatch = dispatch
        self.prepare_entry()
        self.cpu.run(self.on_exit)

    def stop(self, reason: object) -> bool:
        """End the run for this reason; the value to return from a handler."""
        if self.stop_reason is None:
            self.stop_reason = reason
        return False

    # --- the loop ------------------------------------------------------------------------------------------------

    def on_exit(self, exit_reason: int) -> bool:
        """One VM exit: dispatch, record, prepare the next entry."""
        start = perf_counter_ns()
        cpu = self.cpu
        words = cpu.words
        sequence = self.exits
        self.exits = sequence + 1
        level, parent = self.level, self.parent
        row = (
            words[_QUALIFICATION],
            words[_RIP],
            words[_LENGTH],
            words[_INTERRUPTION],
            words[_ERROR],
            words[_PHYSICAL],
        )
        self.last_exits.note((exit_reason, row[1]))
        self.handled_by = 1
        self.vmcs_field = -1
        self.recorded_reason = exit_reason
        tsc = self.pc.clock.tsc()
        cpu.clock.skip(EXIT_COST_NS)
        if words[_VECTORING]:
            self._reinject(words)
        if start > self.host_deadline_ns:
            self.stop(self.host_timeout)
        go_on = self._handle(exit_reason)
        if go_on:
            self.prepare_entry()
        at_once = None
        if level == 2:
            exit_reason = self.recorded_reason  # L1 may be given another exit than vmcs02 had
        elif self.recorded_reason != exit_reason:
            at_once, self.handled_by = self.recorded_reason, 1
        self.recorder.record(
            sequence, parent, 0, level, exit_reason, row[0], row[1], row[2], row[3], row[4], row[5],
            self.vmcs_field, tsc, start - self.start_ns, perf_counter_ns() - start, self.handled_by,
        )  # fmt: skip
        if at_once is not None:
            self._note_exit_at_once(at_once, tsc)
        return go_on and self.stop_reason is None

    def _note_exit_at_once(self, reason: int, tsc: int) -> None:
        """L1 entered L2, and an event made L2 exit to L1 before its first instruction."""
        self.recorder.record(
            self.exits, -1, 0, 2, reason, 0, self.nested.state.vmcs02.words[_RIP], 0, 0, 0, 0, -1,
            tsc, perf_counter_ns() - self.start_ns, 0, 2,
        )  # fmt: skip
        self.parent = self.exits
        self.exits += 1

    def _handle(self, exit_reason: int) -> bool:
        """Let the nested module have its say about exits of L2, then dispatch to the handler."""
        if self.level == 2:
            done = self.nested.on_exit(exit_reason)
            if done is not None:
                return done
        assert self._dispatch is not None
        return self._dispatch(self, exit_reason & 0xFFFF)

    def note_shadow_access(self, reason: int, encoding: int) -> None:
        """The processor carried out a VMREAD or VMWRITE of L1 on the shadow VMCS: recorded, though it is no exit."""
        words = self.cpu.words
        now = perf_counter_ns()
        self.recorder.record(
            self.exits, self.parent, 0, self.level, reason, 0, words[_RIP], 0, 0, 0, 0, encoding,
            self.pc.clock.tsc(), now - self.start_ns, 0, 0,
        )  # fmt: skip
        self.exits += 1

    def prepare_entry(self) -> None:
        """Fire timers that are due, inject what is pending, set the preemption timer to the next deadline."""
        clock = self.pc.clock
        deadline = clock.next_deadline_ns()
        now = 0
        if deadline is not None:
            now = clock.now_ns()
            if deadline <= now:
                clock.run_due()
                deadline = clock.next_deadline_ns()
        if self.level == 2:
            deadline = self.nested.prepare_entry(deadline, now)
        pc = self.pc
        if pc.nmi_pending and not self._nested_takes(PinBased.NMI_EXITING):
            self._inject_nmi()
        if pc.interrupt_pending and not self._nested_takes(PinBased.EXTERNAL_INTERRUPT_EXITING):
            self._inject_interrupt()
        self._set_timer(deadline, now or clock.now_ns() if deadline is not None else 0)

    def _nested_takes(self, control: PinBased) -> bool:
        """L2 runs and L1 wants such events for itself."""
        return self.level == 2 and self.nested.intercepts(control)

    def _set_timer(self, deadline: int | None, now: int) -> None:
        """Program the preemption timer of the VMCS that is entered next."""
        cpu = self.cpu
        controls = cpu.vmread(_PIN)
        if deadline is None:
            if controls & _TIMER_CONTROL:
                cpu.vmwrite(_PIN, controls & ~_TIMER_CONTROL)
            return
        if not controls & _TIMER_CONTROL:
            cpu.vmwrite(_PIN, controls | _TIMER_CONTROL)
        ticks = max(0, deadline - now) * cpu.clock.tsc_hz // 1_000_000_000 + 31 >> 5
        cpu.vmwrite(Field.VMX_PREEMPTION_TIMER_VALUE, min(ticks, 0xFFFF_FFFF))

    # --- events --------------------------------------------------------------------------------------------------

    def _inject_interrupt(self) -> None:
        words = self.cpu.words
        if words[_ENTRY_EVENT] & _VALID or not words[_RFLAGS] & _IF or words[_BLOCKING] & 3:
            self.open_window(ProcBased.INTERRUPT_WINDOW_EXITING)
            return
        words[_ENTRY_EVENT] = _VALID | self.pc.acknowledge_interrupt()
        if self.pc.interrupt_pending:
            self.open_window(ProcBased.INTERRUPT_WINDOW_EXITING)

    def _inject_nmi(self) -> None:
        words = self.cpu.words
        if words[_ENTRY_EVENT] & _VALID or words[_BLOCKING] & 0xB:
            self.open_window(ProcBased.NMI_WINDOW_EXITING)
            return
        self.pc.acknowledge_nmi()
        words[_ENTRY_EVENT] = _NMI

    def open_window(self, control: ProcBased) -> None:
        """Ask to exit as soon as the guest can take the event."""
        self.cpu.vmwrite(_PROC, self.cpu.vmread(_PROC) | int(control))

    def close_window(self, control: ProcBased) -> None:
        """The window was reached."""
        self.cpu.vmwrite(_PROC, self.cpu.vmread(_PROC) & ~int(control))

    def inject_exception(self, vector: int, error_code: int | None = None) -> bool:
        """Raise an exception in the guest at the instruction that exited; in L2, L1 may intercept it."""
        if self.level == 2 and self.nested.takes_exception(vector, error_code):
            return True
        cpu = self.cpu
        info = _VALID | 3 << 8 | vector | (1 << 11 if error_code is not None else 0)
        cpu.vmwrite(Field.VM_ENTRY_INTERRUPTION_INFORMATION, info)
        cpu.vmwrite(Field.VM_ENTRY_EXCEPTION_ERROR_CODE, error_code or 0)
        return True

    def _reinject(self, words: memoryview) -> None:
        """The exit came while an event was being delivered: deliver it again (SDM 3C 28.2.4)."""
        info = words[_VECTORING]
        kind = info >> 8 & 7
        words[_ENTRY_EVENT] = info
        words[_P[Field.VM_ENTRY_EXCEPTION_ERROR_CODE]] = words[_VECTORING_ERROR]
        if kind in (4, 5, 6):
            words[_P[Field.VM_ENTRY_INSTRUCTION_LENGTH]] = words[_LENGTH]
        elif kind == 2:
            words[_BLOCKING] &= ~8

    # --- what handlers use -----------------------------------------------------------------------------------------

    def skip_instruction(self) -> bool:
        """Advance RIP past the instruction that exited; the shadow of STI or MOV SS ends."""
        words = self.cpu.words
        rip = words[_RIP] + words[_LENGTH]
        if not words[_CS_RIGHTS] & 0x2000:
            rip &= 0xFFFF_FFFF
        words[_RIP] = rip & 0xFFFF_FFFF_FFFF_FFFF
        if words[_BLOCKING] & 3:
            words[_BLOCKING] &= ~3
        return True

    def finish_access(self) -> bool:
        """An access to a device was carried out: go on, unless the device asked to stop."""
        self.skip_instruction()
        return exit_requested(self) if self.pc.exit_request is not None else True

    def bus_read(self, address: int, size: int) -> int:
        """Read a device register or, where none is, all ones."""
        return self.pc.bus.mmio_read(address, size)

    def bus_write(self, address: int, size: int, value: int) -> None:
        """Write a device register; dropped where none is."""
        self.pc.bus.mmio_write(address, size, value)

    def read_anywhere(self, linear: int, size: int) -> int | None:
        """Read memory or a device by linear address; None after a page fault, which the guest gets."""
        physical = self.cpu.guest_physical(linear, write=False)
        if physical is None:
            self.inject_page_fault(linear)
            return None
        if self.pc.memory.contains(physical, size):
            return int.from_bytes(self.pc.memory.read(physical, size), "little")
        return self.bus_read(physical, size)

    def write_anywhere(self, linear: int, size: int, value: int) -> bool:
        """Write memory or a device by linear address; False after a page fault, which the guest gets."""
        physical = self.cpu.guest_physical(linear, write=True)
        if physical is None:
            self.inject_page_fault(linear)
            return False
        if self.pc.memory.contains(physical, size):
            self.cpu.memory.write(physical, value.to_bytes(size, "little"))
        else:
            self.bus_write(physical, size, value)
        return True

    def read_guest(self, linear: int, size: int) -> bytes | None:
        """Read guest memory; None after a page fault, which the guest gets."""
        data = self.cpu.read_linear(linear, size, fault=False)
        if data is None:
            self.inject_page_fault(linear)
        return data

    def write_guest(self, linear: int, data: bytes) -> bool:
        """Write guest memory; False after a page fault, which the guest gets."""
        if self.cpu.write_linear(linear, data, fault=False):
            return True
        self.inject_page_fault(linear)
        return False

    def inject_page_fault(self, linear: int) -> bool:
        """Raise the page fault that the last failed walk found."""
        vector, error_code = self.cpu.walk_failure()
        if vector == Vector.PF:
            self.cpu.cr2 = linear
        return self.inject_exception(vector, error_code)

    def enter_vmx_operation(self) -> None:
        """L1 executed VMXON: it may no longer clear the control-register bits that VMX operation needs."""
        self.vmcs01.write(Field.CR0_GUEST_HOST_MASK, _VMX_CR0)
        self.vmcs01.write(Field.CR0_READ_SHADOW, self.cpu.vmread(Field.GUEST_CR0))

    def leave_vmx_operation(self) -> None:
        """L1 executed VMXOFF."""
        self.vmcs01.write(Field.CR0_GUEST_HOST_MASK, int(Cr0.NE))

    @property
    def guest_cr0(self) -> int:
        """CR0 as the guest sees it."""
        cpu = self.cpu
        mask = cpu.vmread(Field.CR0_GUEST_HOST_MASK)
        return (cpu.vmread(Field.GUEST_CR0) & ~mask) | (cpu.vmread(Field.CR0_READ_SHADOW) & mask)

    @property
    def guest_cr4(self) -> int:
        """CR4 as the guest sees it."""
        cpu = self.cpu
        mask = cpu.vmread(Field.CR4_GUEST_HOST_MASK)
        return (cpu.vmread(Field.GUEST_CR4) & ~mask) | (cpu.vmread(Field.CR4_READ_SHADOW) & mask)

    def may_write_vmxe(self, value: bool) -> bool:
        """Whether the guest may give CR4.VMXE this value now."""
        return self.offers_vmx if value else not self.nested.state.in_vmx_operation

    def idle_until(self, deadline: int) -> bool:
        """The guest idles until this guest time (ns); false to stop instead."""
        return self.on_idle(deadline)

    def wait_for_input(self) -> bool:
        """Nothing but input can wake the guest: true once there was some."""
        return self.on_wait()

    def describe_entry_failure(self) -> str:
        """What the last failed VM entry broke."""
        failure = self.cpu.last_failure
        return str(failure) if failure is not None else "no rule recorded"

    def set_tsc(self, value: int) -> None:
        """Give the guest's TSC this value from now on."""
        clock = self.pc.clock
        clock.set_tsc(value)
        offset = (value - self.cpu.clock.tsc()) & 0xFFFF_FFFF_FFFF_FFFF
        self.vmcs01.write(Field.TSC_OFFSET, offset)
        if self.level == 2:
            self.nested.tsc_moved()

    def place_apic(self) -> None:
        """The guest moved its local APIC: its page must exit, the old one is RAM or nothing."""
        lapic = self.pc.lapic
        page = lapic.base & ((1 << self.physical_address_bits) - 1) & ~0xFFF
        if lapic.enabled and not lapic.x2apic and not self.pc.memory.contains(page):
            self.ept.mark_devices([page])
            self.cpu.invept()
