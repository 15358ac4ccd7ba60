"""What L0 does about each exit of its guest: one function per reason, by KVM's names for them.

A handler returns true to enter the guest again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from lzero.dispatch.handlers import NESTED_INSTRUCTIONS
from lzero.errors import GuestFault
from lzero.hypervisor import mmio, port_io
from lzero.hypervisor.cpuid_policy import cpuid
from lzero.hypervisor.endings import halted_forever, triple_fault
from lzero.hypervisor.msr_policy import MsrFault
from lzero.hypervisor.nested import handle_vmx_instruction
from lzero.sdm.controls import ProcBased
from lzero.sdm.exceptions import Vector
from lzero.sdm.exit_reasons import exit_reason_name
from lzero.sdm.registers import Cr0, Cr4
from lzero.sdm.vmcs_fields import Field

if TYPE_CHECKING:
    from lzero.hypervisor.vcpu import Vcpu

__all__ = ["HANDLERS", "unexpected_exit"]

_M32 = 0xFFFF_FFFF


def kvm_emulate_cpuid(vcpu: Vcpu) -> bool:
    """CPUID: the policy's table."""
    gpr = vcpu.cpu.gpr
    gpr[0], gpr[3], gpr[1], gpr[2] = cpuid(vcpu, gpr[0] & _M32, gpr[1] & _M32)
    return vcpu.skip_instruction()


def kvm_emulate_halt(vcpu: Vcpu) -> bool:
    """HLT: guest time goes on at once to the next event."""
    vcpu.skip_instruction()
    return wait_for_interrupt(vcpu)


def wait_for_interrupt(vcpu: Vcpu) -> bool:
    """Let time pass until an interrupt is pending that the guest can take."""
    pc, clock = vcpu.pc, vcpu.cpu.clock
    enabled = vcpu.cpu.vmread(Field.GUEST_RFLAGS) & 1 << 9
    while not (pc.nmi_pending or (pc.interrupt_pending and enabled)):
        deadline = pc.clock.next_deadline_ns()
        if deadline is None or not enabled:
            if enabled and vcpu.wait_for_input():
                continue
            return halted_forever(vcpu)
        if not vcpu.idle_until(deadline):
            return False
        clock.skip(max(0, deadline - clock.now_ns()))
        pc.clock.run_due()
    return True


def kvm_emulate_rdmsr(vcpu: Vcpu) -> bool:
    """RDMSR: the policy's table, else #GP."""
    gpr = vcpu.cpu.gpr
    try:
        value = vcpu.msrs.read(gpr[1] & _M32)
    except MsrFault:
        return vcpu.inject_exception(Vector.GP, 0)
    gpr[0], gpr[2] = value & _M32, value >> 32
    return vcpu.skip_instruction()


def kvm_emulate_wrmsr(vcpu: Vcpu) -> bool:
    """WRMSR: the policy's table, else #GP."""
    gpr = vcpu.cpu.gpr
    try:
        vcpu.msrs.write(gpr[1] & _M32, (gpr[0] & _M32) | (gpr[2] & _M32) << 32)
    except MsrFault:
        return vcpu.inject_exception(Vector.GP, 0)
    return vcpu.skip_instruction()


def handle_cr(vcpu: Vcpu) -> bool:
    """Moves to CR8 and from it, and writes of the CR0 and CR4 bits that L0 owns."""
    cpu = vcpu.cpu
    qualification = cpu.vmread(Field.EXIT_QUALIFICATION)
    register, access, general = qualification & 15, qualification >> 4 & 3, qualification >> 8 & 15
    if register == 8:
        if access == 0:
            priority = cpu.gpr_value(general)
            if priority >> 4:  # bits 63:4 are reserved (SDM 3A 11.8.6)
                return vcpu.inject_exception(Vector.GP, 0)
            vcpu.pc.lapic.cr8 = priority
        else:
            cpu.set_gpr(general, vcpu.pc.lapic.cr8)
        return vcpu.skip_instruction()
    if register == 0:
        return _write_cr0(vcpu, _written_cr0(vcpu, qualification))
    return _write_cr4(vcpu, cpu.gpr_value(general))


def _written_cr0(vcpu: Vcpu, qualification: int) -> int:
    cpu = vcpu.cpu
    if qualification >> 4 & 3 == 3:
        source = qualification >> 16 & 0xFFFF
        return (cpu.vmread(Field.GUEST_CR0) & ~0xE) | (source & 0xF)
    return cpu.gpr_value(qualification >> 8 & 15)


def _write_cr0(vcpu: Vcpu, value: int) -> bool:
    """The guest changed CR0.NE, which must stay 1 in VMX operation; it sees its own value."""
    in_vmx = vcpu.nested.state.in_vmx_operation
    needed = Cr0.PE | Cr0.NE | Cr0.PG if in_vmx else 0
    if needed & ~value or not vcpu.cpu.load_control_register(0, value | int(Cr0.NE)):
        return vcpu.inject_exception(Vector.GP, 0)
    vcpu.cpu.vmwrite(Field.CR0_READ_SHADOW, value)
    return vcpu.skip_instruction()


def _write_cr4(vcpu: Vcpu, value: int) -> bool:
    """The guest changed CR4.VMXE, which must stay 1 in VMX operation; it sees its own value."""
    forbidden = not vcpu.may_write_vmxe(bool(value & Cr4.VMXE))
    if forbidden or not vcpu.cpu.load_control_register(4, value | int(Cr4.VMXE)):
        return vcpu.inject_exception(Vector.GP, 0)
    vcpu.cpu.vmwrite(Field.CR4_READ_SHADOW, value)
    return vcpu.skip_instruction()


def handle_interrupt_window(vcpu: Vcpu) -> bool:
    """The guest can take an interrupt: the loop injects it."""
    vcpu.close_window(ProcBased.INTERRUPT_WINDOW_EXITING)
    return True


def handle_nmi_window(vcpu: Vcpu) -> bool:
    """The guest can take an NMI: the loop injects it."""
    vcpu.close_window(ProcBased.NMI_WINDOW_EXITING)
    return True


def handle_preemption_timer(vcpu: Vcpu) -> bool:
    """A deadline of the platform's clock: the loop fires it."""
    return True


def handle_external_interrupt(vcpu: Vcpu) -> bool:
    """Somebody outside wanted attention; the loop has a look."""
    return True


def handle_triple_fault(vcpu: Vcpu) -> bool:
    """The guest is gone."""
    return triple_fault(vcpu)


def handle_exception_nmi(vcpu: Vcpu) -> bool:
    """L0 asks for no exceptions: give it to the guest."""
    cpu = vcpu.cpu
    info = cpu.vmread(Field.VM_EXIT_INTERRUPTION_INFORMATION)
    if info & 0xFF == Vector.PF:
        cpu.cr2 = cpu.vmread(Field.EXIT_QUALIFICATION)
    cpu.vmwrite(Field.VM_ENTRY_INTERRUPTION_INFORMATION, info & ~(1 << 12))
    cpu.vmwrite(Field.VM_ENTRY_EXCEPTION_ERROR_CODE, cpu.vmread(Field.VM_EXIT_INTERRUPTION_ERROR_CODE))
    cpu.vmwrite(Field.VM_ENTRY_INSTRUCTION_LENGTH, cpu.vmread(Field.VM_EXIT_INSTRUCTION_LENGTH))
    return True


def handle_ept_violation(vcpu: Vcpu) -> bool:
    """Guest-physical memory that is neither RAM nor a known device: an absent device, unless code is fetched there."""
    cpu = vcpu.cpu
    address = cpu.vmread(Field.GUEST_PHYSICAL_ADDRESS)
    qualification = cpu.vmread(Field.EXIT_QUALIFICATION)
    if qualification & 4:
        raise GuestFault(
            f"the guest fetched an instruction from guest-physical address {address:#x}, where there is no memory "
            f"(RIP {cpu.vmread(Field.GUEST_RIP):#x})"
        )
    return mmio.access(vcpu, address)


def handle_ept_misconfig(vcpu: Vcpu) -> bool:
    """A device's page."""
    return mmio.access(vcpu, vcpu.cpu.vmread(Field.GUEST_PHYSICAL_ADDRESS))


def undefined(vcpu: Vcpu) -> bool:
    """An instruction this machine does not offer."""
    return vcpu.inject_exception(Vector.UD)


def general_protection(vcpu: Vcpu) -> bool:
    """An instruction whose operands cannot be right on this machine."""
    return vcpu.inject_exception(Vector.GP, 0)


def skip(vcpu: Vcpu) -> bool:
    """An instruction with no effect here: there are no caches to write back, and time passes anyway."""
    return vcpu.skip_instruction()


def unexpected_exit(vcpu: Vcpu, reason: int) -> bool:
    """An exit that no control of L0 asks for."""
    if vcpu.cpu.vmread(Field.EXIT_REASON) >> 31:
        raise GuestFault(f"VM entry failed: {exit_reason_name(reason)}; {vcpu.describe_entry_failure()}")
    raise GuestFault(f"no handler for VM exit {exit_reason_name(reason)}")


HANDLERS: Mapping[str, Callable[[Vcpu], bool]] = {
    "handle_exception_nmi": handle_exception_nmi,
    "handle_external_interrupt": handle_external_interrupt,
    "handle_triple_fault": handle_triple_fault,
    "handle_interrupt_window": handle_interrupt_window,
    "handle_nmi_window": handle_nmi_window,
    "handle_task_switch": general_protection,
    "kvm_emulate_cpuid": kvm_emulate_cpuid,
    "kvm_emulate_halt": kvm_emulate_halt,
    "kvm_emulate_invd": skip,
    "handle_invlpg": undefined,
    "kvm_emulate_rdpmc": general_protection,
    "kvm_emulate_hypercall": handle_vmx_instruction,
    "handle_vmx_instruction": handle_vmx_instruction,
    "handle_cr": handle_cr,
    "handle_dr": undefined,
    "handle_io": port_io.handle_io,
    "kvm_emulate_rdmsr": kvm_emulate_rdmsr,
    "kvm_emulate_wrmsr": kvm_emulate_wrmsr,
    "kvm_emulate_mwait": undefined,
    "kvm_emulate_monitor": undefined,
    "handle_pause": skip,
    "handle_ept_violation": handle_ept_violation,
    "handle_ept_misconfig": handle_ept_misconfig,
    "handle_preemption_timer": handle_preemption_timer,
    "kvm_emulate_wbinvd": skip,
    "kvm_emulate_xsetbv": undefined,
    "kvm_handle_invalid_op": undefined,
    "handle_invpcid": undefined,
    "handle_encls": undefined,
    "handle_desc": undefined,
    **{row.nested_handler: handle_vmx_instruction for row in NESTED_INSTRUCTIONS if row.nested_handler is not None},
}
"""Handlers by the names that :mod:`lzero.dispatch.handlers` gives to exit reasons."""
