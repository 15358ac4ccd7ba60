"""What each trap of the engine means: a VM exit, or an instruction to carry out (SDM 3C 26.1 to 26.4, 28.1, 28.2).

One function for each cause. A function returns what the engine does next: enter the guest (again) or stop.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from iced_x86 import Register

from lzero.cpu import control_registers
from lzero.cpu.engine import Action, Trap
from lzero.cpu.instruction import Instruction, Mnemonic
from lzero.cpu.instruction_information import displacement_qualification
from lzero.cpu.vmcs import FIELD_POSITION
from lzero.errors import GuestFault
from lzero.sdm.controls import ProcBased, ProcBased2
from lzero.sdm.exceptions import Vector
from lzero.sdm.exit_reasons import ExitReason
from lzero.sdm.formats import ApicAccessQualification, ApicAccessType, EventType
from lzero.sdm.registers import Cr0, Cr4
from lzero.sdm.vmcs_fields import Field

if TYPE_CHECKING:
    from lzero.cpu.processor import Processor

__all__ = ["table"]

_RIP = FIELD_POSITION[Field.GUEST_RIP]
_RFLAGS = FIELD_POSITION[Field.GUEST_RFLAGS]
_CR0, _CR4 = FIELD_POSITION[Field.GUEST_CR0], FIELD_POSITION[Field.GUEST_CR4]
_BLOCKING = FIELD_POSITION[Field.GUEST_INTERRUPTIBILITY_STATE]
_ACTIVITY = FIELD_POSITION[Field.GUEST_ACTIVITY_STATE]
_PENDING_DEBUG = FIELD_POSITION[Field.GUEST_PENDING_DEBUG_EXCEPTIONS]
_VALID = 1 << 31
_SS = 2
_BD, _BS, _RF, _TF = 1 << 13, 1 << 14, 1 << 16, 1 << 8
_NO_FAULTS = (2, 3, 4, 8, 18)
"""Vectors of traps and aborts: RFLAGS.RF is not set in what they save (28.3.3)."""
_DEBUG_REGISTERS = {getattr(Register, f"DR{n}"): n for n in range(8)}
_ENTER = int(Action.ENTER)
# Plain integers where every VMX instruction passes: see docs/performance.md.
_VMCS_SHADOWING = int(ProcBased2.VMCS_SHADOWING)

# Instructions that the engine does not know and that always exit in VMX non-root operation, whatever CPL (26.1.2).
_VMX_INSTRUCTIONS: dict[int, ExitReason] = {
    Mnemonic.VMCALL: ExitReason.VMCALL,
    Mnemonic.VMCLEAR: ExitReason.VMCLEAR,
    Mnemonic.VMLAUNCH: ExitReason.VMLAUNCH,
    Mnemonic.VMPTRLD: ExitReason.VMPTRLD,
    Mnemonic.VMPTRST: ExitReason.VMPTRST,
    Mnemonic.VMREAD: ExitReason.VMREAD,
    Mnemonic.VMRESUME: ExitReason.VMRESUME,
    Mnemonic.VMWRITE: ExitReason.VMWRITE,
    Mnemonic.VMXOFF: ExitReason.VMOFF,
    Mnemonic.VMXON: ExitReason.VMON,
    Mnemonic.INVEPT: ExitReason.INVEPT,
    Mnemonic.INVVPID: ExitReason.INVVPID,
}


def _with_memory_operand(p: Processor, i: Instruction, reason: int) -> int:
    next_rip = p.words[_RIP] + i.length
    return p.instruction_exit(reason, i, displacement_qualification(i, next_rip), information=i.information)


# --- instructions ------------------------------------------------------------------------------------------------


def cpuid(p: Processor) -> int:
    """CPUID always exits."""
    return p.instruction_exit(ExitReason.CPUID, p.instruction())


def hlt(p: Processor) -> int:
    """HLT exits, or puts the processor into the HLT activity state."""
    i = p.instruction()
    if p.configuration.proc & ProcBased.HLT_EXITING:
        return p.instruction_exit(ExitReason.HLT, i)
    p.advance(i)
    p.words[_ACTIVITY] = 1
    return p.enter_halted()


def invd(p: Processor) -> int:
    """INVD always exits; WBINVD shares its trap on this engine."""
    i = p.instruction()
    if i.mnemonic == Mnemonic.INVD:
        return p.instruction_exit(ExitReason.INVD, i)
    return wbinvd(p)


def wbinvd(p: Processor) -> int:
    """WBINVD exits if its control says so; there are no caches to write back."""
    i = p.instruction()
    if i.mnemonic == Mnemonic.INVD:
        return p.instruction_exit(ExitReason.INVD, i)
    if p.configuration.proc2 & ProcBased2.WBINVD_EXITING:
        return p.instruction_exit(ExitReason.WBINVD, i)
    return p.complete(i)


def invlpg(p: Processor) -> int:
    """INVLPG under INVLPG exiting."""
    i = p.instruction()
    return p.instruction_exit(ExitReason.INVLPG, i, p.linear_address(i))


def rdpmc(p: Processor) -> int:
    """RDPMC exits or, since there are no counters, raises #GP; so it does above CPL 0 while CR4.PCE is 0."""
    i = p.instruction()
    if p.cpl and p.words[_CR0] & Cr0.PE and not p.words[_CR4] & Cr4.PCE:
        return p.raise_exception(Vector.GP, 0)
    if p.configuration.proc & ProcBased.RDPMC_EXITING:
        return p.instruction_exit(ExitReason.RDPMC, i)
    return p.raise_exception(Vector.GP, 0)


def rdtsc(p: Processor) -> int:
    """RDTSC and RDTSCP; the latter is #UD unless enabled."""
    i = p.instruction()
    is_rdtscp = i.mnemonic == Mnemonic.RDTSCP
    if is_rdtscp and not p.configuration.proc2 & ProcBased2.ENABLE_RDTSCP:
        return undefined(p)
    if p.configuration.proc & ProcBased.RDTSC_EXITING:
        return p.instruction_exit(ExitReason.RDTSCP if is_rdtscp else ExitReason.RDTSC, i)
    tsc = p.guest_tsc()
    p.set_gpr(0, tsc & 0xFFFF_FFFF)
    p.set_gpr(2, tsc >> 32 & 0xFFFF_FFFF)
    return p.complete(i)


def msr(p: Processor) -> int:
    """RDMSR or WRMSR that the MSR bitmaps select."""
    i = p.instruction()
    return p.instruction_exit(ExitReason.MSR_WRITE if i.mnemonic == Mnemonic.WRMSR else ExitReason.MSR_READ, i)


def pause(p: Processor) -> int:
    """PAUSE under PAUSE exiting or PAUSE-loop exiting."""
    i = p.instruction()
    if p.configuration.proc & ProcBased.PAUSE_EXITING or p.in_pause_loop():
        return p.instruction_exit(ExitReason.PAUSE_INSTRUCTION, i)
    return p.complete(i)


def monitor(p: Processor) -> int:
    """MONITOR."""
    i = p.instruction()
    if p.configuration.proc & ProcBased.MONITOR_EXITING:
        return p.instruction_exit(ExitReason.MONITOR_INSTRUCTION, i)
    return p.complete(i)


def mwait(p: Processor) -> int:
    """MWAIT; without exiting it returns at once, as an implementation may."""
    i = p.instruction()
    if p.configuration.proc & ProcBased.MWAIT_EXITING:
        return p.instruction_exit(ExitReason.MWAIT_INSTRUCTION, i)
    return p.complete(i)


# The engine's CPU model lacks them, so that they arrive as undefined.
_WAITS: dict[int, Callable[[Processor], int]] = {Mnemonic.MONITOR: monitor, Mnemonic.MWAIT: mwait}


def descriptor_table(p: Processor) -> int:
    """LGDT, LIDT, SGDT, SIDT, LLDT, LTR, SLDT, STR under descriptor-table exiting."""
    i = p.instruction()
    gdtr_or_idtr = (Mnemonic.LGDT, Mnemonic.LIDT, Mnemonic.SGDT, Mnemonic.SIDT)
    reason = ExitReason.GDTR_IDTR if i.mnemonic in gdtr_or_idtr else ExitReason.LDTR_TR
    return _with_memory_operand(p, i, reason)


def rdrand(p: Processor) -> int:
    """RDRAND exits or, since it is not offered, is undefined; RDSEED comes here too."""
    i = p.instruction()
    if i.mnemonic == Mnemonic.RDRAND and p.configuration.proc2 & ProcBased2.RDRAND_EXITING:
        return p.instruction_exit(ExitReason.RDRAND, i, information=i.information)
    return undefined(p)


def xsetbv(p: Processor) -> int:
    """XSETBV exits if CR4.OSXSAVE makes it known and the guest is in ring 0."""
    if not p.words[_CR4] & Cr4.OSXSAVE:
        return p.raise_exception(Vector.UD)
    if p.cpl:
        return p.raise_exception(Vector.GP, 0)
    return p.instruction_exit(ExitReason.XSETBV, p.instruction())


def move_dr(p: Processor, number: int, *, from_dr: bool) -> int:
    """MOV DR under MOV-DR exiting, or with DR7.GD set (3B 17.2.4)."""
    i = p.instruction()
    if not p.configuration.proc & ProcBased.MOV_DR_EXITING:
        return p.raise_debug(_BD)
    general = i.register(0 if from_dr else 1)[0]
    return p.instruction_exit(ExitReason.DR_ACCESS, i, number | (0x10 if from_dr else 0) | general << 8)


def port(p: Processor) -> int:
    """IN, OUT, INS and OUTS; the trap's parameter already has direction, size and port."""
    qualification = p.trap_parameter()
    i = p.instruction()
    if not p.port_exits(qualification >> 16, (qualification & 7) + 1):
        return p.unintercepted_port(i, qualification)
    raw = i.raw
    if raw.is_string_instruction:
        qualification |= 0x10 | (0x20 if raw.has_rep_prefix or raw.has_repne_prefix else 0)
        return p.instruction_exit(
            ExitReason.IO_INSTRUCTION,
            i,
            qualification,
            information=i.information,
            guest_linear_address=p.string_operand(is_in=bool(qualification & 8)),
        )
    if raw.immediate8 == qualification >> 16 and raw.op_count == 2 and _has_immediate(i):
        qualification |= 0x40
    return p.instruction_exit(ExitReason.IO_INSTRUCTION, i, qualification)


def _has_immediate(i: Instruction) -> bool:
    return not (i.is_register(0) and i.is_register(1))


def undefined(p: Processor) -> int:
    """An instruction the engine does not know: one of VMX, one that is not offered, or none."""
    i = p.try_instruction()
    if i is not None:
        reason = _VMX_INSTRUCTIONS.get(i.mnemonic)
        if reason is not None and p.vmx_instruction_defined(i):
            return _vmx_instruction(p, i, reason)
        if i.mnemonic == Mnemonic.INT1:
            return p.software_event(Vector.DB, EventType.PRIVILEGED_SOFTWARE_EXCEPTION, i)
        if i.mnemonic == Mnemonic.INVPCID:
            return _invpcid(p, i)
        if i.mnemonic == Mnemonic.RDSEED and p.configuration.proc2 & ProcBased2.RDSEED_EXITING:
            return p.instruction_exit(ExitReason.RDSEED, i, information=i.information)
        if i.mnemonic in _WAITS and p.cpl == 0:
            return _WAITS[i.mnemonic](p)
        if i.mnemonic == Mnemonic.VMFUNC and p.configuration.proc2 & ProcBased2.ENABLE_VM_FUNCTIONS:
            return p.vmfunc(i)
    return p.raise_exception(Vector.UD)


def _vmx_instruction(p: Processor, i: Instruction, reason: int) -> int:
    if p.configuration.proc2 & _VMCS_SHADOWING and reason in (ExitReason.VMREAD, ExitReason.VMWRITE):
        done = p.shadow_access(i, reason)
        if done is not None:
            return done
    return _with_memory_operand(p, i, reason)


def _invpcid(p: Processor, i: Instruction) -> int:
    if not p.configuration.proc2 & ProcBased2.ENABLE_INVPCID:
        return p.raise_exception(Vector.UD)
    if p.cpl:
        return p.raise_exception(Vector.GP, 0)
    if p.configuration.proc & ProcBased.INVLPG_EXITING:
        return _with_memory_operand(p, i, ExitReason.INVPCID)
    descriptor = p.read_linear(p.linear_address(i), 16)
    if descriptor is None:
        return p.after_fault
    kind = p.gpr_value(i.register(0)[0])
    if kind > 3 or int.from_bytes(descriptor[:8], "little") >> 12 or not p.pcid_valid(kind, descriptor):
        return p.raise_exception(Vector.GP, 0)
    p.flush_translations()
    return p.complete(i)


# --- events ------------------------------------------------------------------------------------------------------


def exception(p: Processor, vector: int) -> int:
    """A hardware exception that the exception bitmap selects."""
    error = p.trap_parameter() & 0xFFFF_FFFF
    has_error = vector in (8, 10, 11, 12, 13, 14, 17, 21)
    info = _VALID | 3 << 8 | vector | (1 << 11 if has_error else 0)
    qualification = 0
    if vector == Vector.PF:
        qualification = p.fault_address()
    elif vector == Vector.DB:
        qualification, error = error, 0
    elif vector == Vector.GP and p.configuration.proc & ProcBased.MOV_DR_EXITING and not p.delivering:
        return _general_protection(p, error)
    if vector not in _NO_FAULTS and not (vector == Vector.DB and qualification & _BS):
        p.words[_RFLAGS] |= _RF
    return p.vm_exit(
        ExitReason.EXCEPTION_NMI, qualification, interruption=info, interruption_error=error if has_error else 0
    )


def _general_protection(p: Processor, error: int) -> int:
    """#GP under MOV-DR exiting: MOV DR exits before its privilege is checked (26.1.3)."""
    i = p.try_instruction()
    if i is not None and i.mnemonic == Mnemonic.MOV:
        for operand in range(i.raw.op_count):
            number = _DEBUG_REGISTERS.get(i.raw.op_register(operand))
            if number is not None:
                return move_dr(p, number, from_dr=operand == 1)
    return p.raise_exception(Vector.GP, error)


def non_canonical(p: Processor) -> int:
    """An access to a non-canonical address: #SS if it goes through the stack, else #GP (vol. 1 3.3.7.1)."""
    i = p.try_instruction()
    stack = False
    if i is not None:
        operand = i.has_memory and p.linear_address(i) == p.fault_address()
        stack = i.segment == _SS if operand else i.raw.is_stack_instruction
    return p.raise_exception(Vector.SS if stack else Vector.GP, 0)


def software_exception(p: Processor) -> int:
    """INT3, INTO or INT1 whose vector the exception bitmap selects."""
    parameter = p.trap_parameter()
    return p.vm_exit(ExitReason.EXCEPTION_NMI, interruption=parameter & 0xFFFF_FFFF, length=parameter >> 32)


def shutdown(p: Processor) -> int:
    """Triple fault; what was being delivered is not recorded (28.2.4)."""
    p.end_delivery()
    return p.vm_exit(ExitReason.TRIPLE_FAULT)


def _set_rf(p: Processor) -> None:
    """Faults of the second translation save RF as 1, unless an event was being delivered (28.3.3)."""
    if not p.delivering:
        p.words[_RFLAGS] |= _RF


def ept_violation(p: Processor) -> int:
    """EPT violation; the native walk recorded what it saw."""
    qualification, physical, linear = p.translation_fault()
    _set_rf(p)
    return p.vm_exit(
        ExitReason.EPT_VIOLATION, qualification, guest_physical_address=physical, guest_linear_address=linear
    )


def ept_misconfig(p: Processor) -> int:
    """EPT misconfiguration."""
    _, physical, _ = p.translation_fault()
    _set_rf(p)
    return p.vm_exit(ExitReason.EPT_MISCONFIG, guest_physical_address=physical)


def pml_full(p: Processor) -> int:
    """The page-modification log is full."""
    _set_rf(p)
    return p.vm_exit(ExitReason.PML_FULL)


_APIC_ACCESS_TYPE = {1: ApicAccessType.LINEAR_READ, 2: ApicAccessType.LINEAR_WRITE, 4: ApicAccessType.LINEAR_FETCH}


def apic_access(p: Processor) -> int:
    """An access to the APIC-access page: virtualized, or a VM exit (30.4)."""
    access, physical, _ = p.translation_fault()
    if access & 0x100 and not p.delivering:
        done = p.apic.access(physical & 0xFFF, access & 7)
        if done is not None:
            return done
    _set_rf(p)
    if access & 0x100:
        kind = ApicAccessType.LINEAR_EVENT_DELIVERY if p.delivering else _APIC_ACCESS_TYPE[access & 7]
        return p.vm_exit(ExitReason.APIC_ACCESS, ApicAccessQualification(physical & 0xFFF, kind).pack())
    kind = ApicAccessType.PHYSICAL_EVENT_DELIVERY if p.delivering else ApicAccessType.PHYSICAL_FETCH_OR_EXECUTION
    return p.vm_exit(ExitReason.APIC_ACCESS, ApicAccessQualification(0, kind).pack())


def unbacked(p: Processor) -> int:
    """A translation led to physical memory that does not exist."""
    _, physical, linear = p.translation_fault()
    raise GuestFault(
        f"the guest at RIP {p.words[_RIP]:#x} reached physical address {physical:#x} (linear {linear:#x}), where there "
        "is no memory and no EPT that could tell L0"
    )


def monitor_trap(p: Processor) -> int:
    """Monitor trap flag; a single step that is due as well stays pending (26.5.2)."""
    if p.words[_RFLAGS] & _TF:
        p.words[_PENDING_DEBUG] |= _BS
    return p.vm_exit(ExitReason.MONITOR_TRAP_FLAG)


def interrupt_window(p: Processor) -> int:
    """The guest can take an interrupt now."""
    return p.vm_exit(ExitReason.INTERRUPT_WINDOW)


def nmi_window(p: Processor) -> int:
    """The guest can take an NMI now."""
    return p.vm_exit(ExitReason.NMI_WINDOW)


def kick(p: Processor) -> int:
    """Somebody outside wants the processor's attention: an external interrupt of the host."""
    p.clear_kick()
    return p.vm_exit(ExitReason.EXTERNAL_INTERRUPT)


def table(p: Processor) -> dict[int, Callable[[], int]]:
    """Trap code → what to do, for one processor."""
    plain: dict[int, Callable[[Processor], int]] = {
        Trap.CPUID: cpuid,
        Trap.HLT: hlt,
        Trap.INVD: invd,
        Trap.WBINVD: wbinvd,
        Trap.INVLPG: invlpg,
        Trap.RDPMC: rdpmc,
        Trap.RDTSC: rdtsc,
        Trap.MSR: msr,
        Trap.PAUSE: pause,
        Trap.MONITOR: monitor,
        Trap.MWAIT: mwait,
        Trap.RSM: undefined,
        Trap.IO: port,
        Trap.SHUTDOWN: shutdown,
        Trap.RDRAND: rdrand,
        Trap.XSETBV: xsetbv,
        Trap.SOFTWARE_EXCEPTION: software_exception,
        Trap.EPT_VIOLATION: ept_violation,
        Trap.EPT_MISCONFIG: ept_misconfig,
        Trap.UNBACKED: unbacked,
        Trap.PML_FULL: pml_full,
        Trap.NON_CANONICAL: non_canonical,
        Trap.APIC_ACCESS: apic_access,
        Trap.MTF: monitor_trap,
        Trap.INTERRUPT_WINDOW: interrupt_window,
        Trap.NMI_WINDOW: nmi_window,
        Trap.KICK: kick,
        Trap.EXCEPTION + Vector.UD: undefined,
    }
    traps: dict[int, Callable[[], int]] = {int(code): partial(function, p) for code, function in plain.items()}
    traps[int(Trap.EXPIRED)] = p.expired
    traps[int(Trap.LOOK)] = p.look_around
    for code in range(Trap.IDTR_READ, Trap.TR_WRITE + 1):
        traps[code] = partial(descriptor_table, p)
    for number in range(16):
        traps[Trap.CR_READ + number] = partial(control_registers.read_control_register, p, number)
        traps[Trap.CR_WRITE + number] = partial(control_registers.write_control_register, p, number)
        traps[Trap.DR_READ + number] = partial(move_dr, p, number, from_dr=True)
        traps[Trap.DR_WRITE + number] = partial(move_dr, p, number, from_dr=False)
    for vector in range(32):
        traps.setdefault(Trap.EXCEPTION + vector, partial(exception, p, vector))
    return traps
