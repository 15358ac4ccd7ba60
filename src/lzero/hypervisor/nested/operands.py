"""Operands of VMX instructions in L1's memory (SDM 3C 31.3; 3A chapters 5 and 6 for the checks).

A function that cannot get its operand injects the exception that the processor would raise and answers None.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lzero.cpu.instruction import Instruction
from lzero.sdm.exceptions import Vector
from lzero.sdm.registers import is_canonical, is_unusable
from lzero.sdm.vmcs_fields import Field

if TYPE_CHECKING:
    from lzero.hypervisor.vcpu import Vcpu

__all__ = ["memory_address", "read_memory", "write_memory"]

_SS = 2
_CODE, _WRITABLE_OR_READABLE, _EXPAND_DOWN = 8, 2, 4


def _segment_allows(vcpu: Vcpu, segment: int, offset: int, size: int, *, write: bool) -> bool:
    """Type and limit checks outside of 64-bit mode."""
    read = vcpu.cpu.vmread
    rights = read(Field.GUEST_ES_ACCESS_RIGHTS + 2 * segment)
    limit = read(Field.GUEST_ES_LIMIT + 2 * segment)
    if is_unusable(rights):
        return False
    is_code = bool(rights & _CODE)
    if write and (is_code or not rights & _WRITABLE_OR_READABLE):
        return False
    if not write and is_code and not rights & _WRITABLE_OR_READABLE:
        return False
    if not is_code and rights & _EXPAND_DOWN:
        top = 0xFFFF_FFFF if rights >> 14 & 1 else 0xFFFF
        return offset > limit and offset + size - 1 <= top
    return offset + size - 1 <= limit


def memory_address(vcpu: Vcpu, i: Instruction, size: int, *, write: bool) -> int | None:
    """Linear address of the memory operand of `size` bytes after the segment checks; None after #GP or #SS."""
    cpu = vcpu.cpu
    linear = cpu.linear_address(i)
    if cpu.long_mode_code:
        allowed = is_canonical(linear) and is_canonical(linear + size - 1 & (1 << 64) - 1)
    else:
        offset = i.offset(cpu.gpr, cpu.gpr_value(4), cpu.vmread(Field.GUEST_RIP) + i.length)
        allowed = _segment_allows(vcpu, i.segment, offset, size, write=write)
    if not allowed:
        vcpu.inject_exception(Vector.SS if i.segment == _SS else Vector.GP, 0)
        return None
    return linear


def read_memory(vcpu: Vcpu, i: Instruction, size: int) -> bytes | None:
    """The memory operand."""
    linear = memory_address(vcpu, i, size, write=False)
    return None if linear is None else vcpu.read_guest(linear, size)


def write_memory(vcpu: Vcpu, i: Instruction, data: bytes) -> bool:
    """Store into the memory operand."""
    linear = memory_address(vcpu, i, len(data), write=True)
    return linear is not None and vcpu.write_guest(linear, data)
