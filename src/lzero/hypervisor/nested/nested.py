"""One VCPU's nested VMX, as the run loop sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lzero.cpu.checks import ALL_DIRTY, Failure
from lzero.cpu.entry import eptp_valid
from lzero.cpu.vmcs import FIELD_POSITION, Vmcs
from lzero.hypervisor import mmio
from lzero.hypervisor.endings import VmxAborted
from lzero.hypervisor.nested import exit as l2_exit
from lzero.hypervisor.nested.ept_exits import EptExits
from lzero.hypervisor.nested.merge import merge_tsc
from lzero.hypervisor.nested.on_behalf import HALTED, carry_out, sleep
from lzero.hypervisor.nested.ownership import l0_wants, l1_wants, l1_wants_exception
from lzero.hypervisor.nested.shadow_fields import ShadowFields
from lzero.hypervisor.nested.state import NestedState
from lzero.sdm.controls import PinBased, ProcBased, ProcBased2, VmExit
from lzero.sdm.exceptions import Vector
from lzero.sdm.exit_reasons import ExitReason
from lzero.sdm.formats import VmxAbort
from lzero.sdm.vmcs_fields import Field

if TYPE_CHECKING:
    from lzero.hypervisor.vcpu import Vcpu

__all__ = ["Nested"]

_P = FIELD_POSITION
_PIN, _EXIT = _P[Field.PIN_BASED_VM_EXECUTION_CONTROLS], _P[Field.VM_EXIT_CONTROLS]
_EPTP = _P[Field.EPT_POINTER]
_EVENT = _P[Field.VM_ENTRY_INTERRUPTION_INFORMATION]
_PROC, _RIP, _RFLAGS = (
    _P[Field.PRIMARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS],
    _P[Field.GUEST_RIP],
    _P[Field.GUEST_RFLAGS],
)
_ACTIVITY, _BLOCKING = _P[Field.GUEST_ACTIVITY_STATE], _P[Field.GUEST_INTERRUPTIBILITY_STATE]
_INTERRUPTION = _P[Field.VM_EXIT_INTERRUPTION_INFORMATION]
_VALID, _RF, _BY_NMI, _NMI_TYPE = 1 << 31, 1 << 16, 8, 2
_MONITOR_TRAP_FLAG, _VIRTUAL_NMIS = int(ProcBased.MONITOR_TRAP_FLAG), int(PinBased.VIRTUAL_NMIS)
_BY_L1 = 2
_LAST_VM_FUNCTION = 63
_NMI_EXITING, _EXTERNAL_INTERRUPT_EXITING = int(PinBased.NMI_EXITING), int(PinBased.EXTERNAL_INTERRUPT_EXITING)


class Nested:
    """Nested VMX of one VCPU.

    Parameters
    ----------
    vcpu:
        L1's VCPU.
    shadow_fields:
        The VMCS fields that L1 reads and writes without an exit.
    """

    def __init__(self, vcpu: Vcpu, shadow_fields: ShadowFields) -> None:
        self._vcpu = vcpu
        self.state = NestedState(vcpu)
        self.last_failure: Failure | None = None
        self._ept = EptExits(vcpu, self.state)
        self._shadow = shadow_fields
        self._shadow.install(vcpu)
        self._stepped_from: int | None = None
        self.shadow_vmcs_allowed = self.state.capabilities.allows(ProcBased2.VMCS_SHADOWING)

    # --- exits of L2 ---------------------------------------------------------------------------

    def on_exit(self, exit_reason: int) -> bool | None:
        """An exit of L2: true once L1 or the nested module dealt with it, None if it is for L0's own handler."""
        vcpu, state = self._vcpu, self.state
        reason = exit_reason & 0xFFFF
        assert state.vmcs12 is not None
        stepping = state.vmcs12.words[_PROC] & _MONITOR_TRAP_FLAG
        self._stepped_from = state.vmcs02.words[_RIP] if stepping else None
        if l0_wants(reason):
            return self._deal_with(reason)
        if l1_wants(vcpu, state, reason):
            return self.reflect(exit_reason)
        return carry_out(vcpu, reason)

    def reflect(self, exit_reason: int) -> bool:
        """Give the exit that vmcs02 describes to L1."""
        vcpu = self._vcpu
        vcpu.handled_by = _BY_L1
        vcpu.recorded_reason = exit_reason
        self._stepped_from = None
        blocked = self._nmis_blocked_after(exit_reason)
        l2_exit.save_exit(vcpu, self.state, exit_reason)
        return self.load_host_state(nmi_blocked=blocked)

    def _nmis_blocked_after(self, exit_reason: int) -> bool:
        """An NMI that exits blocks further ones; other exits change nothing, nor does virtual blocking (28.5.6)."""
        vmcs12, w02 = self.state.vmcs12, self.state.vmcs02.words
        assert vmcs12 is not None
        if exit_reason == ExitReason.EXCEPTION_NMI and w02[_INTERRUPTION] >> 8 & 7 == _NMI_TYPE:
            return True
        virtual = vmcs12.words[_PIN] & _VIRTUAL_NMIS
        return bool((self._vcpu.vmcs01.words if virtual else w02)[_BLOCKING] & _BY_NMI)

    def load_host_state(self, *, nmi_blocked: bool) -> bool:
        """L1 goes on at its HOST_RIP."""
        l2_exit.load_host_state(self._vcpu, self.state, nmi_blocked=nmi_blocked)
        self.update_shadow_vmcs()
        self._vcpu.parent = self._vcpu.exits - 1
        return self._vcpu.stop_reason is None

    def leave_l2_unsaved(self) -> None:
        """A failed entry: what was loaded for L2 is dropped."""
        self._vcpu.handled_by = _BY_L1

    def abort(self, indicator: VmxAbort) -> None:
        """VMX abort (28.7): the logical processor shuts down."""
        vmcs12 = self.state.vmcs12
        assert vmcs12 is not None
        vmcs12.abort(int(indicator))
        self._vcpu.stop(VmxAborted(indicator.name))

    def _synthesize(self, reason: int, **fields: int) -> bool:
        """An exit to L1 that L0 makes up."""
        words = self.state.vmcs02.words
        for field in (
            Field.EXIT_QUALIFICATION,
            Field.VM_EXIT_INTERRUPTION_INFORMATION,
            Field.VM_EXIT_INTERRUPTION_ERROR_CODE,
            Field.VM_EXIT_INSTRUCTION_LENGTH,
            Field.VM_EXIT_INSTRUCTION_INFORMATION,
            Field.GUEST_PHYSICAL_ADDRESS,
            Field.GUEST_LINEAR_ADDRESS,
            Field.IDT_VECTORING_INFORMATION,
        ):
            words[_P[field]] = fields.get(field.name, 0)
        return self.reflect(reason)

    # --- what L0 looks at first ----------------------------------------------------------------

    def _deal_with(self, reason: int) -> bool | None:
        if reason == ExitReason.EPT_VIOLATION:
            return self._ept.violation(self)
        if reason == ExitReason.EPT_MISCONFIG:
            return mmio.access(self._vcpu, self._vcpu.cpu.vmread(Field.GUEST_PHYSICAL_ADDRESS))
        if reason == ExitReason.VMFUNC:
            return self._vmfunc()
        return True  # the host's interrupt or L0's timer: prepare_entry sees what is due

    def _vmfunc(self) -> bool:
        """EPTP switching on the tables of L0; anything else exits to L1 (26.5.6)."""
        vcpu, vmcs12 = self._vcpu, self.state.vmcs12
        assert vmcs12 is not None
        words, gpr = vmcs12.words, vcpu.cpu.gpr
        function, index = gpr[0] & 0xFFFF_FFFF, gpr[1] & 0xFFFF_FFFF
        if function > _LAST_VM_FUNCTION:
            return vcpu.inject_exception(Vector.UD)
        enabled = words[_P[Field.VM_FUNCTION_CONTROLS]] & 1
        if function or not enabled or index >= 512:
            return self.reflect(ExitReason.VMFUNC)
        eptp = self.state.memory.read_u64(words[_P[Field.EPTP_LIST_ADDRESS]] + 8 * index)
        if not eptp_valid(eptp, self.state.capabilities):
            return self.reflect(ExitReason.VMFUNC)
        words[_EPTP] = eptp
        words[_P[Field.EPTP_INDEX]] = index
        vcpu.cpu.vmwrite(Field.EPT_POINTER, self.state.ept.tables(eptp).pointer)
        return vcpu.skip_instruction()

    # --- before L2 runs ------------------------------------------------------------------------

    def prepare_entry(self, deadline: int | None, now: int) -> int | None:
        """Interrupts and timers that concern L2; the guest time in ns at which L0 wants control back, if any."""
        vcpu, state = self._vcpu, self.state
        vmcs12 = state.vmcs12
        assert vmcs12 is not None
        pin = vmcs12.words[_PIN]
        if self._stepped_from is not None and not self._event_pending():
            before, self._stepped_from = self._stepped_from, None
            if state.vmcs02.words[_RIP] != before:
                self._synthesize(ExitReason.MONITOR_TRAP_FLAG)
                return deadline
        if state.vmcs02.words[_ACTIVITY] == HALTED and not self._event_pending():
            sleep(vcpu, state)
            now, deadline = 0, vcpu.pc.clock.next_deadline_ns()
        own = state.preemption_deadline
        if own is not None:
            now = now or vcpu.pc.clock.now_ns()
            if own <= now and not self._event_pending():
                self._synthesize(ExitReason.PREEMPTION_TIMER)
                return deadline
            deadline = own if deadline is None else min(deadline, own)
        pc = vcpu.pc
        if pc.nmi_pending and pin & _NMI_EXITING and not self._nmis_blocked(pin):
            return self._leave_for(deadline, now, self._nmi)
        if pc.interrupt_pending and pin & _EXTERNAL_INTERRUPT_EXITING:
            return self._leave_for(deadline, now, self._external_interrupt)
        return deadline

    def tsc_moved(self) -> None:
        """L1's TSC got another value while L2 runs: what L2 reads follows from it."""
        merge_tsc(self._vcpu, self.state)
        self.state.vmcs02.changed = ALL_DIRTY

    def intercepts(self, control: PinBased) -> bool:
        """Whether L1 asked for exits of L2 on events of this kind."""
        vmcs12 = self.state.vmcs12
        return vmcs12 is not None and bool(vmcs12.words[_PIN] & control)

    def _nmis_blocked(self, pin: int) -> bool:
        """NMIs themselves are blocked in L2, not virtual ones."""
        return not pin & _VIRTUAL_NMIS and bool(self.state.vmcs02.words[_BLOCKING] & _BY_NMI)

    def _event_pending(self) -> bool:
        return bool(self.state.vmcs02.words[_EVENT] & _VALID)

    def _leave_for(self, deadline: int | None, now: int, leave: object) -> int | None:
        if self._event_pending():
            # The event that L1 injects comes first: let L2 take it and come back at once.
            self._vcpu.cpu.kick()
            return deadline
        assert callable(leave)
        leave()
        return deadline

    def _nmi(self) -> None:
        self._vcpu.pc.acknowledge_nmi()
        self._synthesize(ExitReason.EXCEPTION_NMI, VM_EXIT_INTERRUPTION_INFORMATION=_VALID | 2 << 8 | 2)

    def _external_interrupt(self) -> None:
        vmcs12 = self.state.vmcs12
        assert vmcs12 is not None
        info = 0
        if vmcs12.words[_EXIT] & VmExit.ACKNOWLEDGE_INTERRUPT_ON_EXIT:
            info = _VALID | self._vcpu.pc.acknowledge_interrupt()
        self._synthesize(ExitReason.EXTERNAL_INTERRUPT, VM_EXIT_INTERRUPTION_INFORMATION=info)

    # --- exceptions that L0 raises in L2 -------------------------------------------------------

    def takes_exception(self, vector: int, error_code: int | None) -> bool:
        """L1 intercepts this exception of L2, which L0 raises: true once it was given to L1."""
        if not l1_wants_exception(self.state, vector, error_code or 0):
            return False
        has_error = error_code is not None
        self.state.vmcs02.words[_RFLAGS] |= _RF
        qualification = self._vcpu.cpu.cr2 if vector == Vector.PF else 0
        self._synthesize(
            ExitReason.EXCEPTION_NMI,
            EXIT_QUALIFICATION=qualification,
            VM_EXIT_INTERRUPTION_INFORMATION=_VALID | (1 << 11 if has_error else 0) | 3 << 8 | vector,
            VM_EXIT_INTERRUPTION_ERROR_CODE=error_code or 0,
        )
        return True

    # --- VMCS shadowing ------------------------------------------------------------------------

    def update_shadow_vmcs(self) -> None:
        """The current VMCS of L1 changed."""
        vmcs: Vmcs | None = self.state.vmcs12
        self._shadow.use(self._vcpu, vmcs)
