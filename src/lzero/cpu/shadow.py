"""VMCS shadowing: VMREAD and VMWRITE in VMX non-root operation that do not exit (SDM 3C 26.1.3, 31.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lzero.cpu.checks import FIELD_BIT
from lzero.cpu.instruction import Instruction
from lzero.cpu.vmcs import FIELD_POSITION, WRITE_PLAN, Vmcs
from lzero.sdm.exceptions import Vector
from lzero.sdm.exit_reasons import ExitReason
from lzero.sdm.vm_instruction_errors import VmInstructionError
from lzero.sdm.vmcs_fields import Field

if TYPE_CHECKING:
    from lzero.cpu.processor import Processor

__all__ = ["shadow_access"]

_ARITHMETIC, _CARRY, _ZERO = 0x8D5, 0x01, 0x40
_ERROR = FIELD_POSITION[Field.VM_INSTRUCTION_ERROR]
_RFLAGS = FIELD_POSITION[Field.GUEST_RFLAGS]
_SS_RIGHTS = FIELD_POSITION[Field.GUEST_SS_ACCESS_RIGHTS]
_CR0 = FIELD_POSITION[Field.GUEST_CR0]


def _selected(p: Processor, reason: int, encoding: int) -> bool:
    """Whether the bitmap makes the access exit."""
    if encoding >> 15:
        return True
    field = Field.VMREAD_BITMAP_ADDRESS if reason == ExitReason.VMREAD else Field.VMWRITE_BITMAP_ADDRESS
    return bool(p.memory.read(p.vmread(field) + encoding // 8, 1)[0] >> (encoding & 7) & 1)


def shadow_access(p: Processor, i: Instruction, reason: int, shadow: Vmcs | None) -> int | None:
    """Carry out a VMREAD or VMWRITE on the shadow VMCS; None if it exits instead.

    Parameters
    ----------
    shadow:
        The VMCS that the link pointer refers to, or None if it refers to none.
    """
    is_read = reason == ExitReason.VMREAD
    encoding = p.gpr_value(i.register(1 if is_read else 0)[0])
    if not p.long_mode_code:
        encoding &= 0xFFFF_FFFF
    if _selected(p, reason, encoding):
        return None
    if p.words[_SS_RIGHTS] >> 5 & 3:
        return p.raise_exception(Vector.GP, 0)
    if shadow is None:
        return _fail(p, i, _CARRY)
    if encoding & ~1 not in p.capabilities.existing_fields or (encoding & 1 and (encoding >> 13 & 3) != 1):
        shadow.words[_ERROR] = int(VmInstructionError.UNSUPPORTED_VMCS_COMPONENT)
        return _fail(p, i, _ZERO)
    done = _read(p, i, shadow, encoding) if is_read else _write(p, i, shadow, encoding)
    if not done:
        return p.after_fault
    p.words[_RFLAGS] &= ~_ARITHMETIC
    p.shadow_accessed(reason, encoding)
    return p.complete(i)


def _fail(p: Processor, i: Instruction, flag: int) -> int:
    """VMfailInvalid (CF) or VMfailValid (ZF)."""
    p.words[_RFLAGS] = (p.words[_RFLAGS] & ~_ARITHMETIC) | flag
    return p.complete(i)


def _read(p: Processor, i: Instruction, shadow: Vmcs, encoding: int) -> bool:
    value = shadow.words[FIELD_POSITION[encoding & ~1]]
    if encoding & 1:
        value >>= 32
    width = 8 if p.long_mode_code else 4
    if i.is_register(0):
        p.set_gpr(i.register(0)[0], value if width == 8 else value & 0xFFFF_FFFF)
        return True
    return p.write_linear(p.linear_address(i), value.to_bytes(8, "little")[:width])


def _write(p: Processor, i: Instruction, shadow: Vmcs, encoding: int) -> bool:
    if i.is_register(1):
        value = p.gpr_value(i.register(1)[0])
    else:
        data = p.read_linear(p.linear_address(i), 8 if p.long_mode_code else 4)
        if data is None:
            return False
        value = int.from_bytes(data, "little")
    where, mask, _ = WRITE_PLAN[encoding & ~1]
    shadow.changed |= FIELD_BIT[encoding]
    if encoding & 1:
        value = (shadow.words[where] & 0xFFFF_FFFF) | (value & 0xFFFF_FFFF) << 32
    shadow.words[where] = value & mask
    return True
