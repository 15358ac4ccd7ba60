"""Which function handles which exit reason in today's KVM: one row per reason.

The rows name the functions of the handler table in Linux's ``arch/x86/kvm/vmx/vmx.c``; they are facts about an
interface, no code. ``nested_handler`` is the function that the nested module's set-up writes over the slot when VMX is
offered to guests (``arch/x86/kvm/vmx/nested.c``); without it the slot keeps ``handler``, which injects #UD for a VMX
instruction.

``since`` is the kernel in which the row appeared where that is after 5.6, so that the table of an older module can be
compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from lzero.dispatch.c_declarations import reason_spelling
from lzero.sdm.exit_reasons import ExitReason

__all__ = ["HANDLERS", "NESTED_INSTRUCTIONS", "HandlerRow", "handler_of"]


@dataclass(frozen=True, slots=True)
class HandlerRow:
    """One slot of KVM's handler table."""

    reason: ExitReason
    handler: str
    nested_handler: str | None = None
    since: str | None = None

    @property
    def macro(self) -> str:
        """The C macro of the reason in the kernel's ``asm/vmx.h``."""
        return reason_spelling(self.reason)


_R = ExitReason
_UD = "handle_vmx_instruction"

_ROWS: tuple[HandlerRow, ...] = (
    HandlerRow(_R.EXCEPTION_NMI, "handle_exception_nmi"),
    HandlerRow(_R.EXTERNAL_INTERRUPT, "handle_external_interrupt"),
    HandlerRow(_R.TRIPLE_FAULT, "handle_triple_fault"),
    HandlerRow(_R.INTERRUPT_WINDOW, "handle_interrupt_window"),
    HandlerRow(_R.NMI_WINDOW, "handle_nmi_window"),
    HandlerRow(_R.TASK_SWITCH, "handle_task_switch"),
    HandlerRow(_R.CPUID, "kvm_emulate_cpuid"),
    HandlerRow(_R.HLT, "kvm_emulate_halt"),
    HandlerRow(_R.INVD, "kvm_emulate_invd"),
    HandlerRow(_R.INVLPG, "handle_invlpg"),
    HandlerRow(_R.RDPMC, "kvm_emulate_rdpmc"),
    HandlerRow(_R.VMCALL, "kvm_emulate_hypercall"),
    HandlerRow(_R.VMCLEAR, _UD, "handle_vmclear"),
    HandlerRow(_R.VMLAUNCH, _UD, "handle_vmlaunch"),
    HandlerRow(_R.VMPTRLD, _UD, "handle_vmptrld"),
    HandlerRow(_R.VMPTRST, _UD, "handle_vmptrst"),
    HandlerRow(_R.VMREAD, _UD, "handle_vmread"),
    HandlerRow(_R.VMRESUME, _UD, "handle_vmresume"),
    HandlerRow(_R.VMWRITE, _UD, "handle_vmwrite"),
    HandlerRow(_R.VMOFF, _UD, "handle_vmxoff"),
    HandlerRow(_R.VMON, _UD, "handle_vmxon"),
    HandlerRow(_R.CR_ACCESS, "handle_cr"),
    HandlerRow(_R.DR_ACCESS, "handle_dr"),
    HandlerRow(_R.IO_INSTRUCTION, "handle_io"),
    HandlerRow(_R.MSR_READ, "kvm_emulate_rdmsr"),
    HandlerRow(_R.MSR_WRITE, "kvm_emulate_wrmsr"),
    HandlerRow(_R.MWAIT_INSTRUCTION, "kvm_emulate_mwait"),
    HandlerRow(_R.MONITOR_TRAP_FLAG, "handle_monitor_trap"),
    HandlerRow(_R.MONITOR_INSTRUCTION, "kvm_emulate_monitor"),
    HandlerRow(_R.PAUSE_INSTRUCTION, "handle_pause"),
    HandlerRow(_R.MCE_DURING_VMENTRY, "handle_machine_check"),
    HandlerRow(_R.TPR_BELOW_THRESHOLD, "handle_tpr_below_threshold"),
    HandlerRow(_R.APIC_ACCESS, "handle_apic_access"),
    HandlerRow(_R.EOI_INDUCED, "handle_apic_eoi_induced"),
    HandlerRow(_R.GDTR_IDTR, "handle_desc"),
    HandlerRow(_R.LDTR_TR, "handle_desc"),
    HandlerRow(_R.EPT_VIOLATION, "handle_ept_violation"),
    HandlerRow(_R.EPT_MISCONFIG, "handle_ept_misconfig"),
    HandlerRow(_R.INVEPT, _UD, "handle_invept"),
    HandlerRow(_R.PREEMPTION_TIMER, "handle_preemption_timer"),
    HandlerRow(_R.INVVPID, _UD, "handle_invvpid"),
    HandlerRow(_R.WBINVD, "kvm_emulate_wbinvd"),
    HandlerRow(_R.XSETBV, "kvm_emulate_xsetbv"),
    HandlerRow(_R.APIC_WRITE, "handle_apic_write"),
    HandlerRow(_R.RDRAND, "kvm_handle_invalid_op"),
    HandlerRow(_R.INVPCID, "handle_invpcid"),
    HandlerRow(_R.VMFUNC, _UD, "handle_vmfunc"),
    HandlerRow(_R.ENCLS, "handle_encls"),
    HandlerRow(_R.RDSEED, "kvm_handle_invalid_op"),
    HandlerRow(_R.PML_FULL, "handle_pml_full"),
    HandlerRow(_R.BUS_LOCK, "handle_bus_lock_vmexit", since="5.12"),
    HandlerRow(_R.NOTIFY, "handle_notify", since="6.0"),
    HandlerRow(_R.SEAMCALL, "handle_tdx_instruction", since="6.18"),
    HandlerRow(_R.TDCALL, "handle_tdx_instruction", since="6.18"),
    HandlerRow(_R.MSR_READ_IMM, "handle_rdmsr_imm", since="6.18"),
    HandlerRow(_R.MSR_WRITE_IMM, "handle_wrmsr_imm", since="6.18"),
)

HANDLERS: Mapping[int, HandlerRow] = MappingProxyType({int(row.reason): row for row in _ROWS})
"""KVM's handler table, by exit reason; a reason that is not in it is an unexpected exit."""

NESTED_INSTRUCTIONS: tuple[HandlerRow, ...] = tuple(row for row in _ROWS if row.nested_handler is not None)
"""The twelve VMX instructions, whose slots depend on whether VMX is offered to guests."""


def handler_of(reason: int, *, nested: bool) -> str | None:
    """Name of the function that handles ``reason``, or ``None`` where KVM has none."""
    row = HANDLERS.get(reason)
    if row is None:
        return None
    return row.nested_handler if nested and row.nested_handler is not None else row.handler
