"""INS and OUTS that do not exit: one access each time, as between two interrupts of a REP (SDM 2B INS, OUTS)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lzero.cpu.engine import Action
from lzero.cpu.instruction import Instruction
from lzero.cpu.vmcs import FIELD_POSITION
from lzero.sdm.vmcs_fields import Field

if TYPE_CHECKING:
    from lzero.cpu.processor import Processor

__all__ = ["access_absent_port"]

_RFLAGS = FIELD_POSITION[Field.GUEST_RFLAGS]
_DF = 1 << 10
_RCX, _RSI, _RDI = 1, 6, 7


def access_absent_port(p: Processor, i: Instruction, size: int, *, is_in: bool) -> int:
    """One access of `size` bytes to a port where nothing answers; RIP stays while a REP has more to do."""
    linear = p.string_operand(is_in=is_in)
    done = p.write_linear(linear, b"\xff" * size) if is_in else p.read_linear(linear, size) is not None
    if not done:
        return p.after_fault
    step = -size if p.words[_RFLAGS] & _DF else size
    _add(p, i, _RDI if is_in else _RSI, step)
    if i.raw.has_rep_prefix or i.raw.has_repne_prefix:
        _add(p, i, _RCX, -1)
        if p.gpr[_RCX] & _mask(i):
            return int(Action.ENTER)
    return p.complete(i)


def _mask(i: Instruction) -> int:
    return (1 << i.address_bits) - 1


def _add(p: Processor, i: Instruction, number: int, step: int) -> None:
    p.set_gpr(number, (p.gpr[number] + step) & _mask(i), i.address_bits // 8)
