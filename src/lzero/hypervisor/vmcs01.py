"""The VMCS that L0 runs its own guest with."""

from __future__ import annotations

from lzero.cpu.processor import Processor
from lzero.hypervisor.ept import ExtendedPageTables
from lzero.platform.loaders.entry import EntryState
from lzero.sdm.controls import PinBased, ProcBased, ProcBased2, VmEntry, VmExit
from lzero.sdm.msrs import Msr
from lzero.sdm.registers import Cr0, Cr4, Efer
from lzero.sdm.vmcs_fields import Field

__all__ = ["PASSED_THROUGH_MSRS", "build_vmcs01", "load_entry_state", "msr_bitmap"]

_PIN = PinBased.EXTERNAL_INTERRUPT_EXITING | PinBased.NMI_EXITING | PinBased.VIRTUAL_NMIS
_PROC = (
    ProcBased.HLT_EXITING
    | ProcBased.USE_TSC_OFFSETTING
    | ProcBased.MWAIT_EXITING
    | ProcBased.MONITOR_EXITING
    | ProcBased.RDPMC_EXITING
    | ProcBased.CR8_LOAD_EXITING
    | ProcBased.CR8_STORE_EXITING
    | ProcBased.UNCONDITIONAL_IO_EXITING
    | ProcBased.USE_MSR_BITMAPS
    | ProcBased.ACTIVATE_SECONDARY_CONTROLS
)
_PROC2 = (
    ProcBased2.ENABLE_EPT
    | ProcBased2.ENABLE_VPID
    | ProcBased2.ENABLE_RDTSCP
    | ProcBased2.UNRESTRICTED_GUEST
    | ProcBased2.WBINVD_EXITING
    | ProcBased2.RDRAND_EXITING
    | ProcBased2.RDSEED_EXITING
)
_EXIT = (
    VmExit.HOST_ADDRESS_SPACE_SIZE
    | VmExit.SAVE_IA32_EFER
    | VmExit.LOAD_IA32_EFER
    | VmExit.SAVE_IA32_PAT
    | VmExit.LOAD_IA32_PAT
    | VmExit.SAVE_DEBUG_CONTROLS
)
_ENTRY = VmEntry.LOAD_IA32_EFER | VmEntry.LOAD_IA32_PAT | VmEntry.LOAD_DEBUG_CONTROLS

PASSED_THROUGH_MSRS = (
    Msr.IA32_FS_BASE,
    Msr.IA32_GS_BASE,
    Msr.IA32_KERNEL_GS_BASE,
    Msr.IA32_SYSENTER_CS,
    Msr.IA32_SYSENTER_ESP,
    Msr.IA32_SYSENTER_EIP,
)
"""MSRs that the guest reads and writes without an exit, as under KVM."""

CR4_HOST_OWNED = int(Cr4.VMXE)
"""Must be 1 while the processor is in VMX operation; what the guest reads comes from the shadow."""
_HOST_CR0 = int(Cr0.PE | Cr0.MP | Cr0.ET | Cr0.NE | Cr0.WP | Cr0.PG)
_HOST_CR4 = int(Cr4.PAE | Cr4.VMXE)
_HOST_CODE, _HOST_TASK = 0x08, 0x18


def msr_bitmap() -> bytes:
    """The 4 KiB of MSR bitmaps (SDM 3C 25.6.9): everything exits but the MSRs passed through."""
    bitmap = bytearray(b"\xff" * 4096)
    for index in PASSED_THROUGH_MSRS:
        offset = (0x400 if index >= 0xC000_0000 else 0) + (index & 0x1FFF) // 8
        for start in (0, 0x800):
            bitmap[start + offset] &= ~(1 << (index & 7)) & 0xFF
    return bytes(bitmap)


def _write_controls(cpu: Processor) -> None:
    caps = cpu.capabilities
    for field, wanted, allowed in (
        (Field.PIN_BASED_VM_EXECUTION_CONTROLS, _PIN, caps.pin),
        (Field.PRIMARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS, _PROC, caps.proc),
        (Field.SECONDARY_PROCESSOR_BASED_VM_EXECUTION_CONTROLS, _PROC2, caps.proc2),
        (Field.VM_EXIT_CONTROLS, _EXIT, caps.exit),
        (Field.VM_ENTRY_CONTROLS, _ENTRY, caps.entry),
    ):
        cpu.vmwrite(field, int(wanted) | allowed.allowed0)


def _write_host_state(cpu: Processor) -> None:
    """Nominal values that pass the checks: L0 itself runs outside of the processor."""
    for field, value in (
        (Field.HOST_CR0, _HOST_CR0),
        (Field.HOST_CR4, _HOST_CR4),
        (Field.HOST_CS_SELECTOR, _HOST_CODE),
        (Field.HOST_TR_SELECTOR, _HOST_TASK),
        (Field.HOST_IA32_EFER, int(Efer.LME | Efer.LMA | Efer.NXE)),
        (Field.HOST_IA32_PAT, 0x0007_0406_0007_0406),
    ):
        cpu.vmwrite(field, value)


def build_vmcs01(cpu: Processor, ept: ExtendedPageTables) -> None:
    """Fill the current VMCS with L0's controls and host state."""
    _write_controls(cpu)
    _write_host_state(cpu)
    bitmap = cpu.memory.allocate_page()
    cpu.memory.write(bitmap, msr_bitmap())
    cpu.vmwrite(Field.MSR_BITMAPS_ADDRESS, bitmap)
    cpu.vmwrite(Field.EPT_POINTER, ept.pointer)
    cpu.vmwrite(Field.VPID, 1)
    cpu.vmwrite(Field.VMCS_LINK_POINTER, (1 << 64) - 1)
    cpu.vmwrite(Field.CR4_GUEST_HOST_MASK, CR4_HOST_OWNED)
    cpu.vmwrite(Field.CR0_GUEST_HOST_MASK, int(Cr0.NE))
    cpu.vmwrite(Field.GUEST_IA32_PAT, 0x0007_0406_0007_0406)
    cpu.vmwrite(Field.GUEST_DR7, 0x400)


def load_entry_state(cpu: Processor, state: EntryState) -> None:
    """Write the state a loader asks for into the guest-state area and the general-purpose registers."""
    for name, segment in state.segments.items():
        prefix = f"GUEST_{name.upper()}_"
        cpu.vmwrite(Field[prefix + "SELECTOR"], segment.selector)
        cpu.vmwrite(Field[prefix + "BASE"], segment.base)
        cpu.vmwrite(Field[prefix + "LIMIT"], segment.limit)
        cpu.vmwrite(Field[prefix + "ACCESS_RIGHTS"], segment.access_rights)
    for field, value in (
        (Field.GUEST_CR0, state.cr0 | Cr0.NE | Cr0.ET),
        (Field.CR0_READ_SHADOW, state.cr0),
        (Field.GUEST_CR3, state.cr3),
        (Field.GUEST_CR4, state.cr4 | CR4_HOST_OWNED),
        (Field.CR4_READ_SHADOW, state.cr4),
        (Field.GUEST_IA32_EFER, state.efer),
        (Field.GUEST_GDTR_BASE, state.gdt_base),
        (Field.GUEST_GDTR_LIMIT, state.gdt_limit),
        (Field.GUEST_IDTR_BASE, state.idt_base),
        (Field.GUEST_IDTR_LIMIT, state.idt_limit),
        (Field.GUEST_RIP, state.rip),
        (Field.GUEST_RSP, state.rsp),
        (Field.GUEST_RFLAGS, state.rflags),
    ):
        cpu.vmwrite(field, int(value))
    entry = cpu.vmread(Field.VM_ENTRY_CONTROLS) & ~int(VmEntry.IA32E_MODE_GUEST)
    cpu.vmwrite(Field.VM_ENTRY_CONTROLS, entry | (int(VmEntry.IA32E_MODE_GUEST) if state.efer & Efer.LMA else 0))
    names = "rax rcx rdx rbx rsp rbp rsi rdi r8 r9 r10 r11 r12 r13 r14 r15".split()
    for number, name in enumerate(names):
        if name != "rsp":
            cpu.gpr[number] = state.registers.get(name, 0)
