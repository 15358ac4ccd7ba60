"""The processor: executes a guest under a VMCS until the next VM exit (SDM 3C chapters 26 to 28).

L0 drives it through VMX only: it fills a VMCS with :meth:`Processor.vmwrite`, enters with :meth:`Processor.run` and is
called at each VM exit, as hardware jumps to HOST_RIP; returning true is VMRESUME (or VMLAUNCH) of the then current
VMCS. The guest's general-purpose registers stay where the guest left them, in :attr:`Processor.gpr`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from lzero.cpu import control_registers, intercepts
from lzero.cpu.checks import Failure, field_mask
from lzero.cpu.clock import ProcessorClock
from lzero.cpu.configuration import SLOT_NAMES, Configuration, configure
from lzero.cpu.engine import Action, Engine
from lzero.cpu.entry import EntryChecker, VmFailure, eptp_valid
from lzero.cpu.guest_view import GuestView
from lzero.cpu.instruction import Instruction
from lzero.cpu.memory import PhysicalMemory
from lzero.cpu.shadow import shadow_access
from lzero.cpu.string_io import access_absent_port
from lzero.cpu.virtual_apic import VirtualApic
from lzero.cpu.vmcs import CONTROL_FIELDS, FIELD_POSITION, WRITE_PLAN, Vmcs
from lzero.errors import EngineError, GuestFault
from lzero.sdm.capabilities import VmxCapabilities
from lzero.sdm.controls import PinBased, ProcBased, ProcBased2, VmEntry, VmExit
from lzero.sdm.exceptions import Vector
from lzero.sdm.exit_reasons import ExitReason
from lzero.sdm.formats import EventType
from lzero.sdm.registers import Cr4, Efer
from lzero.sdm.vmcs_fields import Field

__all__ = ["ExitHandler", "Processor"]

_P = FIELD_POSITION
_RIP, _RSP, _RFLAGS = _P[Field.GUEST_RIP], _P[Field.GUEST_RSP], _P[Field.GUEST_RFLAGS]
_REASON, _QUALIFICATION = _P[Field.EXIT_REASON], _P[Field.EXIT_QUALIFICATION]
_LENGTH, _INFORMATION = _P[Field.VM_EXIT_INSTRUCTION_LENGTH], _P[Field.VM_EXIT_INSTRUCTION_INFORMATION]
_INTERRUPTION = _P[Field.VM_EXIT_INTERRUPTION_INFORMATION]
_INTERRUPTION_ERROR = _P[Field.VM_EXIT_INTERRUPTION_ERROR_CODE]
_VECTORING, _VECTORING_ERROR = _P[Field.IDT_VECTORING_INFORMATION], _P[Field.IDT_VECTORING_ERROR_CODE]
_LINEAR, _PHYSICAL = _P[Field.GUEST_LINEAR_ADDRESS], _P[Field.GUEST_PHYSICAL_ADDRESS]
_ENTRY_EVENT = _P[Field.VM_ENTRY_INTERRUPTION_INFORMATION]
_ENTRY_ERROR = _P[Field.VM_ENTRY_EXCEPTION_ERROR_CODE]
_ENTRY_LENGTH = _P[Field.VM_ENTRY_INSTRUCTION_LENGTH]
_ENTRY_CONTROLS = _P[Field.VM_ENTRY_CONTROLS]
_ACTIVITY, _BLOCKING = _P[Field.GUEST_ACTIVITY_STATE], _P[Field.GUEST_INTERRUPTIBILITY_STATE]
_TIMER = _P[Field.VMX_PREEMPTION_TIMER_VALUE]
_EFER, _CS_RIGHTS = _P[Field.GUEST_IA32_EFER], _P[Field.GUEST_CS_ACCESS_RIGHTS]
_DR7 = _P[Field.GUEST_DR7]
_GD, _RF, _TF, _BS, _BD = 1 << 13, 1 << 16, 1 << 8, 1 << 14, 1 << 13
_ENABLED_BREAKPOINT = 1 << 12
_PENDING_DEBUG = _P[Field.GUEST_PENDING_DEBUG_EXCEPTIONS]
_MONITOR_TRAP_FLAG = int(ProcBased.MONITOR_TRAP_FLAG)
_VALID = 1 << 31
_M64 = (1 << 64) - 1
_STOP, _ENTER = int(Action.STOP), int(Action.ENTER)
_TIMER_SHIFT = 5
_GUEST_MODE_FIELDS = field_mask((Field.GUEST_CR0, Field.GUEST_CR4, Field.GUEST_IA32_EFER))
_IF = 1 << 9
_INTERRUPT_WINDOW = int(ProcBased.INTERRUPT_WINDOW_EXITING)
_NMI_WINDOW = int(ProcBased.NMI_WINDOW_EXITING)
_ENABLE_EPT = int(ProcBased2.ENABLE_EPT)
_VIRTUALIZE_APIC_ACCESSES = int(ProcBased2.VIRTUALIZE_APIC_ACCESSES)
_SPECIAL_ENTRY = _ENABLE_EPT | _VIRTUALIZE_APIC_ACCESSES
_IA32E_MODE = int(VmEntry.IA32E_MODE_GUEST)
# Plain integers: an operation on a flag enumeration costs more than the rest of a VM exit's bookkeeping.
_VPID, _ENABLE_VPID = _P[Field.VPID], int(ProcBased2.ENABLE_VPID)
_PREEMPTION_TIMER = int(PinBased.ACTIVATE_VMX_PREEMPTION_TIMER)
_SAVE_PREEMPTION_TIMER = int(VmExit.SAVE_VMX_PREEMPTION_TIMER_VALUE)


class ExitHandler(Protocol):
    """L0's entry point; see :meth:`Processor.run`."""

    def __call__(self, exit_reason: int, /) -> bool:
        """Handle the exit; true to enter the current VMCS again, false to stop."""
        ...


class Processor(GuestView):
    """One logical processor in VMX root operation.

    Parameters
    ----------
    capabilities:
        The VMX features it has; they drive the VM-entry checks.
    tsc_hz:
        Frequency of the TSC.
    host_clock:
        Let time follow the host's clock instead of the blocks executed.

    Raises
    ------
    EngineError
        The engine is missing or not the supported version.
    """

    def __init__(self, capabilities: VmxCapabilities, *, tsc_hz: int = 1_000_000_000, host_clock: bool = False) -> None:
        self.capabilities = capabilities
        engine = Engine(self._on_trap)
        super().__init__(engine, PhysicalMemory(engine), ProcessorClock(engine, tsc_hz, host=host_clock))
        self._checker = EntryChecker(capabilities, self.memory.read)
        self.poll: Callable[[], None] | None = None
        self.watch: Callable[[], None] | None = None
        self.shadow_vmcs: Vmcs | None = None
        self.on_shadow_access: Callable[[int, int], None] | None = None
        self.apic = VirtualApic(self)
        self.after_fault = _ENTER
        slot = engine.slot
        self._slots[slot["maxphyaddr"]] = capabilities.physical_address_width
        first = slot[SLOT_NAMES[0]]
        self._configured = slice(first, first + len(SLOT_NAMES))
        if [slot[name] - first for name in SLOT_NAMES] != list(range(len(SLOT_NAMES))):
            raise EngineError(
                "lzero's native library does not fit its Python side; rebuild it (pip install --force-reinstall)"
            )
        self._eptp, self._space = slot["eptp"], slot["space"]
        self._traps = intercepts.table(self)
        self._host: ExitHandler = _no_host
        self._raised: BaseException | None = None
        self.last_failure: Failure | None = None
        self._timer_deadline: int | None = None
        self._spaces: dict[tuple[int, int], int] = {}
        self._flushes = 0
        self.current = Vmcs()
        self.vmptrld(self.current)

    # --- VMX instructions ------------------------------------------------------------------------------------

    def vmclear(self, vmcs: Vmcs) -> None:
        """VMCLEAR: the launch state becomes clear."""
        vmcs.launched = False

    def vmptrld(self, vmcs: Vmcs) -> None:
        """VMPTRLD: make a VMCS current."""
        self.current = vmcs
        self.words = vmcs.words
        self.engine.set_vmcs(vmcs.buffer)
        if isinstance(vmcs.configuration, Configuration):
            self.configuration = vmcs.configuration
            self._apply(vmcs.configuration)
        else:
            self.configuration = configure(vmcs.words)

    def vmread(self, field: int) -> int:
        """VMREAD of a field of the current VMCS, by encoding."""
        return self.words[FIELD_POSITION[field]]

    def vmwrite(self, field: int, value: int) -> None:
        """VMWRITE of a field of the current VMCS; bits beyond the field's width are dropped."""
        where, mask, changes = WRITE_PLAN[field]
        self.words[where] = value & mask
        if changes:
            self.current.changed |= changes

    def invept(self) -> None:
        """INVEPT, INVVPID: drop cached translations."""
        self._flushes += 1
        self._spaces.clear()
        self._set_space()

    flush_translations = invept

    def run(self, host: ExitHandler) -> None:
        """VMLAUNCH or VMRESUME the current VMCS, and again after each exit until `host` returns false.

        Parameters
        ----------
        host:
            Called with the EXIT_REASON field at each VM exit.

        Raises
        ------
        VmFailure
            An entry failed the checks on controls or host state.
        EngineError
            The engine broke down.
        """
        self._host, self._raised = host, None
        if self._enter() == _ENTER:
            self.engine.run()
        if self._raised is not None:
            raise self._raised

    def close(self) -> None:
        """Release the engine."""
        self.engine.close()

    def rdmsr(self, name: str) -> int:
        """RDMSR of a register that the guest shares with L0, by its name in ``engine/native/layout.def``."""
        if name == "tsc_aux":
            return self._slots[self._slot["tsc_aux"]]
        return self.engine.state[self.engine.word(name)]

    def wrmsr(self, name: str, value: int) -> None:
        """WRMSR of a register that the guest shares with L0."""
        if name == "tsc_aux":
            self._slots[self._slot["tsc_aux"]] = value
        else:
            self.engine.state[self.engine.word(name)] = value & _M64

    # --- VM entry ----------------------------------------------------------------------------------------------

    def _enter(self) -> int:
        """Check and load; on failed guest-state checks the host sees exit reason 33 at once."""
        vmcs, words = self.current, self.words
        if vmcs.changed:
            failure = self._checker.check(vmcs)
            if failure is not None:
                return self._entry_failed(failure)
            if vmcs.changed & CONTROL_FIELDS:
                vmcs.configuration = self.configuration = configure(words)
                self._apply(self.configuration)
            vmcs.changed = 0
        vmcs.launched = True
        event = words[_ENTRY_EVENT]
        slots, slot = self._slots, self._slot
        if event & _VALID:
            slots[slot["entry_event"]] = event
            slots[slot["entry_error"]] = words[_ENTRY_ERROR]
            slots[slot["entry_length"]] = words[_ENTRY_LENGTH]
            words[_ENTRY_EVENT] = event & ~_VALID
            words[_ACTIVITY] = 0
        elif words[_PENDING_DEBUG] and not words[_BLOCKING] & 3 and not words[_ACTIVITY]:
            return self._raise_pending_debug()
        proc2 = self.configuration.proc2
        if proc2 & _SPECIAL_ENTRY != _ENABLE_EPT:
            if not proc2 & _ENABLE_EPT:
                self._load_pdptes_from_memory()
            if proc2 & _VIRTUALIZE_APIC_ACCESSES and not event & _VALID and self.apic.below_threshold():
                return self.vm_exit(ExitReason.TPR_BELOW_THRESHOLD)
        self._arm_timer()
        if words[_ACTIVITY]:
            return self._halted()
        return _ENTER

    def _raise_pending_debug(self) -> int:
        """Debug exceptions that were pending at the last exit come before the first instruction (27.7.3)."""
        pending = self.words[_PENDING_DEBUG]
        self.words[_PENDING_DEBUG] = 0
        self._arm_timer()
        if not pending & (_BS | _ENABLED_BREAKPOINT):
            return _ENTER  # breakpoints that were met but are not enabled
        return self.raise_debug(pending & (_BS | 0xF))

    def _load_pdptes_from_memory(self) -> None:
        """Without EPT, PAE paging starts from the PDPTEs that CR3 refers to (27.3.2.4)."""
        words = self.words
        cr0, cr4 = words[_P[Field.GUEST_CR0]], words[_P[Field.GUEST_CR4]]
        if cr0 >> 31 and cr4 & Cr4.PAE and not words[_EFER] & Efer.LMA:
            self.load_pdptes(words[_P[Field.GUEST_CR3]])

    def _entry_failed(self, failure: Failure) -> int:
        self.last_failure = failure
        if failure.exit_reason is None:
            raise VmFailure(failure)
        self.words[_REASON] = failure.exit_reason
        self.words[_QUALIFICATION] = failure.exit_qualification
        return self._to_host(self.words[_REASON])

    def _apply(self, configuration: Configuration) -> None:
        self._slots[self._configured] = configuration.slots
        self._set_space()

    def _set_space(self) -> None:
        """Translations cached for one EPT pointer and VPID serve no other; see native/state.c."""
        slots = self._slots
        key = (slots[self._eptp], self.words[_VPID] if self.configuration.proc2 & _ENABLE_VPID else 0)
        space = self._spaces.get(key)
        if space is None:
            self._flushes += 1
            space = self._spaces[key] = self._flushes
        slots[self._space] = space

    def _arm_timer(self) -> None:
        if self.configuration.pin & _PREEMPTION_TIMER:
            clock = self.clock
            nanoseconds = (self.words[_TIMER] << _TIMER_SHIFT) * 1_000_000_000 // clock.tsc_hz
            self._timer_deadline = clock.now_ns() + nanoseconds
            clock.arm(nanoseconds)
        elif self._timer_deadline is not None:
            self._timer_deadline = None
            self.clock.arm(None)

    def _halted(self) -> int:
        """The HLT activity state: nothing runs until an event; time passes at once (SDM 3C 27.7.2)."""
        proc, words = self.configuration.proc, self.words
        if proc & _NMI_WINDOW and not words[_BLOCKING] & 0xB:
            return self.vm_exit(ExitReason.NMI_WINDOW)
        if proc & _INTERRUPT_WINDOW and words[_RFLAGS] & _IF and not words[_BLOCKING] & 3:
            return self.vm_exit(ExitReason.INTERRUPT_WINDOW)
        if self._slots[self._slot["kick"]]:
            self.clear_kick()
            return self.vm_exit(ExitReason.EXTERNAL_INTERRUPT)
        if self._timer_deadline is not None:
            self.clock.skip(max(0, self._timer_deadline - self.clock.now_ns()))
            return self.vm_exit(ExitReason.PREEMPTION_TIMER)
        raise GuestFault(
            f"the guest waits for an event that cannot come (activity state {self.words[_ACTIVITY]}, no preemption "
            f"timer) at RIP {self.words[_RIP]:#x}"
        )

    # --- traps and VM exits -------------------------------------------------------------------------------------

    def _on_trap(self, code: int) -> int:
        """Called by the engine; must not raise."""
        try:
            action = self._traps[code]()
            return _STOP if self._raised is not None else int(action)
        except BaseException as error:  # noqa: BLE001 - nothing may unwind through the engine's frames
            self._raised = error
            return _STOP

    def vm_exit(
        self,
        reason: int,
        qualification: int = 0,
        *,
        length: int = 0,
        information: int = 0,
        interruption: int = 0,
        interruption_error: int = 0,
        guest_linear_address: int = 0,
        guest_physical_address: int = 0,
    ) -> int:
        """Record a VM exit in the current VMCS (SDM 3C 28.2) and give control to the host."""
        words, slots = self.words, self._slots
        words[_REASON] = reason
        words[_QUALIFICATION] = qualification
        words[_LENGTH] = length
        words[_INFORMATION] = information
        words[_INTERRUPTION] = interruption
        words[_INTERRUPTION_ERROR] = interruption_error
        words[_LINEAR] = guest_linear_address
        words[_PHYSICAL] = guest_physical_address
        delivering = slots[self._delivering]
        words[_VECTORING] = delivering
        if delivering:
            self._record_vectoring(delivering)
        if words[_BLOCKING] & 3:
            self._refine_blocking()
        self._save_controls()
        return self._to_host(reason)

    def _record_vectoring(self, delivering: int) -> None:
        slots, slot = self._slots, self._slot
        self.words[_VECTORING_ERROR] = slots[slot["delivering_error"]]
        if delivering >> 8 & 7 in (4, 5, 6):
            self.words[_LENGTH] = slots[slot["delivering_length"]]

    def _refine_blocking(self) -> None:
        """The engine knows that there was an STI, but not whether a MOV SS came after: look before RIP."""
        words = self.words
        sti = False
        if words[_BLOCKING] & 1:
            sti = self.read_linear(self.segment_base(1) + words[_RIP] - 1, 1, fault=False) == b"\xfb"
        words[_BLOCKING] = (words[_BLOCKING] & ~3) | (1 if sti else 2)

    def _save_controls(self) -> None:
        words, configuration = self.words, self.configuration
        self._save_ia32e_mode()
        if configuration.exit & _SAVE_PREEMPTION_TIMER and self._timer_deadline is not None:
            left = max(0, self._timer_deadline - self.clock.now_ns())
            words[_TIMER] = min(0xFFFF_FFFF, (left * self.clock.tsc_hz // 1_000_000_000) >> _TIMER_SHIFT)

    def _save_ia32e_mode(self) -> None:
        """The IA-32e mode guest control follows IA32_EFER.LMA (SDM 3C 28.2)."""
        words = self.words
        entry = words[_ENTRY_CONTROLS]
        if (entry >> 9 ^ words[_EFER] >> 10) & 1:
            words[_ENTRY_CONTROLS] = entry ^ _IA32E_MODE

    def _to_host(self, reason: int) -> int:
        if not self._host(reason):
            return _STOP
        return self._enter()

    def instruction_exit(
        self,
        reason: int,
        i: Instruction,
        qualification: int = 0,
        *,
        information: int = 0,
        guest_linear_address: int = 0,
    ) -> int:
        """VM exit due to an instruction: RIP stays on it, its length is recorded, RF is 0 (SDM 3C 28.3.3)."""
        self.words[_RFLAGS] &= ~_RF
        return self.vm_exit(
            reason,
            qualification,
            length=i.length,
            information=information,
            guest_linear_address=guest_linear_address,
        )

    # --- completing instructions without a VM exit ----------------------------------------------------------------

    def advance(self, i: Instruction) -> None:
        """Move RIP past an instruction; the shadow of STI or MOV SS ends."""
        words = self.words
        rip = words[_RIP] + i.length
        words[_RIP] = rip & (_M64 if self._slots[self._bits] == 64 else 0xFFFF_FFFF)
        words[_BLOCKING] &= ~3

    def complete(self, i: Instruction) -> int:
        """The instruction was carried out: go on after it, unless a trap is due (RFLAGS.TF, monitor trap flag)."""
        self.advance(i)
        words = self.words
        if self.configuration.proc & _MONITOR_TRAP_FLAG:
            if words[_RFLAGS] & _TF:
                words[_P[Field.GUEST_PENDING_DEBUG_EXCEPTIONS]] |= _BS
            return self.vm_exit(ExitReason.MONITOR_TRAP_FLAG)
        if words[_RFLAGS] & _TF:
            return self.raise_debug(_BS)
        return self.resume()

    def resume(self) -> int:
        """Go on in the guest without a VM exit."""
        self._rearm()
        return _ENTER

    def _rearm(self) -> None:
        if self._timer_deadline is not None:
            self.clock.arm(max(0, self._timer_deadline - self.clock.now_ns()))

    def raise_exception(self, vector: int, error_code: int | None = None) -> int:
        """Raise an exception at RIP: a VM exit if the exception bitmap says so, else delivery through the IDT."""
        if self.words[_P[Field.EXCEPTION_BITMAP]] >> vector & 1:
            event = _VALID | 3 << 8 | (1 << 11 if error_code is not None else 0) | vector
            self.words[_RFLAGS] |= _RF
            return self.vm_exit(ExitReason.EXCEPTION_NMI, interruption=event, interruption_error=error_code or 0)
        return self._deliver_exception(vector, error_code)

    def _deliver_exception(self, vector: int, error_code: int | None, *, fault: bool = True) -> int:
        event = _VALID | 3 << 8 | (1 << 11 if error_code is not None else 0) | vector
        if fault:
            self.words[_RFLAGS] |= _RF
        slots, slot = self._slots, self._slot
        slots[slot["entry_event"]] = event
        slots[slot["entry_error"]] = error_code or 0
        slots[slot["entry_length"]] = 0
        return self.resume()

    def software_event(self, vector: int, kind: EventType, i: Instruction) -> int:
        """INT1, which the engine does not know: a VM exit or delivery, with RIP after it on the stack."""
        event = _VALID | kind << 8 | vector
        if self.words[_P[Field.EXCEPTION_BITMAP]] >> vector & 1:
            return self.vm_exit(ExitReason.EXCEPTION_NMI, interruption=event, length=i.length)
        slots, slot = self._slots, self._slot
        slots[slot["entry_event"]], slots[slot["entry_error"]], slots[slot["entry_length"]] = event, 0, i.length
        return self.resume()

    def raise_page_fault(self, linear: int, error_code: int) -> int:
        """Raise #PF: a VM exit that leaves CR2 alone if bitmap, mask and match say so (SDM 3C 26.2), else delivery."""
        words = self.words
        selected = words[_P[Field.EXCEPTION_BITMAP]] >> Vector.PF & 1
        mask, match = (words[_P[f]] for f in (Field.PAGE_FAULT_ERROR_CODE_MASK, Field.PAGE_FAULT_ERROR_CODE_MATCH))
        if bool(selected) == (error_code & mask == match):
            event = _VALID | 3 << 8 | 1 << 11 | Vector.PF
            words[_RFLAGS] |= _RF
            return self.vm_exit(ExitReason.EXCEPTION_NMI, linear, interruption=event, interruption_error=error_code)
        self.cr2 = linear
        return self._deliver_exception(Vector.PF, error_code)

    # --- registers and memory as an instruction sees them ------------------------------------------------------------

    def load_control_register(self, number: int, value: int) -> bool:
        """Give CR0 or CR4 a value by the rules of MOV; False if MOV would raise #GP(0)."""
        load = control_registers.load_cr0 if number == 0 else control_registers.load_cr4
        if not load(self, value):
            return False
        self._save_ia32e_mode()
        self.current.changed |= _GUEST_MODE_FIELDS
        return True

    def take_trap(self, code: int) -> int:
        """Do what a trap asks for that the engine did not report by itself."""
        return self._traps[code]()

    def read_linear(self, linear: int, size: int, *, fault: bool = True) -> bytes | None:
        """Read guest memory; None after a fault.

        With `fault` it is an access of the instruction at RIP, at the guest's privilege, and the fault was raised: what
        the engine does next is :attr:`after_fault`. Otherwise it is L0's own, made as by a supervisor.
        """
        return self.memory.read_linear(self, linear, size, fault=fault)

    def write_linear(self, linear: int, data: bytes, *, fault: bool = True) -> bool:
        """Write guest memory; False after a fault: see :meth:`read_linear`."""
        return self.memory.write_linear(self, linear, data, fault=fault)

    def load_pdptes(self, cr3: int) -> bool:
        """Load the four PDPTEs of PAE paging; False if one has a reserved bit set (SDM 3A 4.4.1)."""
        reserved = 0x1E6 | (_M64 & ~((1 << self.capabilities.physical_address_width) - 1))
        data = self.memory.read_guest_physical(self, cr3 & 0xFFFF_FFE0, 32)
        if data is None:
            return False
        values = [int.from_bytes(data[n : n + 8], "little") for n in range(0, 32, 8)]
        if any(value & 1 and value & reserved for value in values):
            return False
        for number, value in enumerate(values):
            self.words[_P[Field.GUEST_PDPTE0] + number] = value
        return True

    # --- what the trap handlers ask for -------------------------------------------------------------------------------

    def end_delivery(self) -> None:
        """The exit that follows is not taken for one met while an event was being delivered."""
        self._slots[self._delivering] = 0

    def raise_debug(self, causes: int) -> int:
        """Raise #DB at RIP: a VM exit that leaves DR6 and DR7 alone, or delivery that notes the causes in DR6."""
        if self.words[_P[Field.EXCEPTION_BITMAP]] >> Vector.DB & 1:
            if causes & _BD:
                self.words[_RFLAGS] |= _RF
            return self.vm_exit(ExitReason.EXCEPTION_NMI, causes, interruption=_VALID | 3 << 8 | Vector.DB)
        state, dr6 = self.engine.state, self.engine.word("dr6")
        state[dr6] = (state[dr6] & ~0xF) | causes
        self.words[_DR7] &= ~_GD
        return self._deliver_exception(Vector.DB, None, fault=bool(causes & _BD))

    def clear_kick(self) -> None:
        """The request was seen."""
        self._slots[self._slot["kick"]] = 0

    def kick(self) -> None:
        """Make the guest exit at its next block with an external interrupt of the host."""
        self._slots[self._slot["kick"]] = 1
        self.clock.arm(0)

    def enter_halted(self) -> int:
        """The guest executed HLT without an exit."""
        return self._halted()

    def unintercepted_port(self, i: Instruction, qualification: int) -> int:
        """A port access without exit goes to the bus of the processor itself, where nothing answers."""
        is_in, size = bool(qualification & 8), (qualification & 7) + 1
        if i.raw.is_string_instruction:
            return access_absent_port(self, i, size, is_in=is_in)
        if is_in:
            self.set_gpr(0, _M64, size)
        return self.complete(i)

    def shadow_access(self, i: Instruction, reason: int) -> int | None:
        """VMREAD or VMWRITE of the shadow VMCS; None if it exits."""
        return shadow_access(self, i, reason, self.shadow_vmcs)

    def shadow_accessed(self, reason: int, encoding: int) -> None:
        """A VMREAD or VMWRITE was carried out without an exit."""
        if self.on_shadow_access is not None:
            self.on_shadow_access(reason, encoding)

    def vmfunc(self, i: Instruction) -> int:
        """VMFUNC: EPTP switching; everything else exits (SDM 3C 26.5.6)."""
        function, index = self.gpr[0] & 0xFFFF_FFFF, self.gpr[1] & 0xFFFF_FFFF
        enabled = self.vmread(Field.VM_FUNCTION_CONTROLS)
        if function > 63:
            return self.raise_exception(Vector.UD)
        if function or not enabled & 1 or index >= 512:
            return self.instruction_exit(ExitReason.VMFUNC, i)
        eptp = self.memory.read_u64(self.vmread(Field.EPTP_LIST_ADDRESS) + 8 * index)
        if not eptp_valid(eptp, self.capabilities):
            return self.instruction_exit(ExitReason.VMFUNC, i)
        self.vmwrite(Field.EPT_POINTER, eptp)
        self._slots[self._slot["eptp"]] = eptp
        self.flush_translations()
        return self.complete(i)

    def expired(self) -> int:
        """The block budget ran out: the preemption timer, or just time to look around."""
        if self._timer_deadline is not None and self.clock.now_ns() >= self._timer_deadline:
            self._timer_deadline = None
            self.words[_TIMER] = 0
            return self.vm_exit(ExitReason.PREEMPTION_TIMER)
        self.clock.arm(None if self._timer_deadline is None else self._timer_deadline - self.clock.now_ns())
        if self.poll is not None:
            self.poll()
        return _ENTER

    def look_around(self) -> int:
        """Some of the host's time has passed, at no exact point of the guest's: nothing of the guest may change."""
        if self.watch is not None:
            self.watch()
        return _ENTER


def _no_host(exit_reason: int, /) -> bool:
    raise EngineError(f"VM exit {exit_reason:#x} without a host: use Processor.run")
