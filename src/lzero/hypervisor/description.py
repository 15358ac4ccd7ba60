"""The state of a guest in words, for the message that ends a run."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from lzero.sdm.exit_reasons import exit_reason_name
from lzero.sdm.vmcs_fields import Field

if TYPE_CHECKING:
    from lzero.hypervisor.vcpu import Vcpu

__all__ = ["LastExits", "describe_guest"]

_NAMES = "rax rcx rdx rbx rsp rbp rsi rdi r8 r9 r10 r11 r12 r13 r14 r15".split()


class LastExits:
    """The most recent exits: reason and RIP."""

    def __init__(self, count: int = 8) -> None:
        self._exits: deque[tuple[int, int]] = deque(maxlen=count)
        self.note = self._exits.append

    def __str__(self) -> str:
        return ", ".join(f"{exit_reason_name(reason & 0xFFFF)}@{rip:#x}" for reason, rip in self._exits)


def _mode(vcpu: Vcpu) -> str:
    read = vcpu.cpu.vmread
    cr0, efer, rights = read(Field.GUEST_CR0), read(Field.GUEST_IA32_EFER), read(Field.GUEST_CS_ACCESS_RIGHTS)
    if not cr0 & 1:
        return "real mode"
    if read(Field.GUEST_RFLAGS) >> 17 & 1:
        return "virtual-8086 mode"
    if efer >> 10 & 1:
        return "64-bit mode" if rights >> 13 & 1 else "compatibility mode"
    paging = "paged" if cr0 >> 31 else "unpaged"
    return f"{32 if rights >> 14 & 1 else 16}-bit protected mode, {paging}"


def describe_guest(vcpu: Vcpu, what: str) -> str:
    """What happened, then where the guest was: mode, registers, last exits."""
    cpu = vcpu.cpu
    read = cpu.vmread
    values = [cpu.gpr_value(number) for number in range(16)]
    lines = [
        what,
        f"  at RIP {read(Field.GUEST_RIP):#x} (CS {read(Field.GUEST_CS_SELECTOR):#x}), {_mode(vcpu)}, "
        f"RFLAGS {read(Field.GUEST_RFLAGS):#x}",
        f"  cr0={read(Field.GUEST_CR0):#x} cr2={cpu.cr2:#x} cr3={read(Field.GUEST_CR3):#x} cr4={vcpu.guest_cr4:#x} "
        f"efer={read(Field.GUEST_IA32_EFER):#x}",
    ]
    for start in range(0, 16, 4):
        lines.append("  " + " ".join(f"{_NAMES[n]:>3}={values[n]:016x}" for n in range(start, start + 4)))
    lines.append(f"  last exits: {vcpu.last_exits}")
    return "\n".join(lines)
