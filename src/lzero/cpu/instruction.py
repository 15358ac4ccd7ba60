"""Decoded instructions, cached by their bytes.

iced-x86 decodes; this module keeps what VM exits need of the result: length, mnemonic, operands, and the
VM-exit instruction-information field (SDM 3C 28.2.5).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import iced_x86 as iced
from iced_x86 import Mnemonic, OpKind, Register

__all__ = ["GPR_NUMBER", "Instruction", "InstructionCache", "Mnemonic"]

_NAMES_64 = "RAX RCX RDX RBX RSP RBP RSI RDI R8 R9 R10 R11 R12 R13 R14 R15".split()


def _gpr_numbers() -> dict[int, tuple[int, int, int]]:
    """iced register → (number, size in bytes, bit offset)."""
    table: dict[int, tuple[int, int, int]] = {}
    for number, name in enumerate(_NAMES_64):
        legacy = number < 8
        table[getattr(Register, name)] = (number, 8, 0)
        table[getattr(Register, "E" + name[1:] if legacy else name + "D")] = (number, 4, 0)
        table[getattr(Register, name[1:] if legacy else name + "W")] = (number, 2, 0)
        low = {"RAX": "AL", "RCX": "CL", "RDX": "DL", "RBX": "BL"}.get(name) or (
            name[1:] + "L" if legacy else name + "L"
        )
        table[getattr(Register, low)] = (number, 1, 0)
    for number, name in enumerate(("AH", "CH", "DH", "BH")):
        table[getattr(Register, name)] = (number, 1, 8)
    return table


GPR_NUMBER: Final = _gpr_numbers()
SEGMENT_NUMBER: Final = {
    Register.ES: 0,
    Register.CS: 1,
    Register.SS: 2,
    Register.DS: 3,
    Register.FS: 4,
    Register.GS: 5,
}


@dataclass(frozen=True, slots=True)
class Instruction:
    """What lzero needs to know about one instruction.

    ``base`` and ``index`` are GPR numbers or -1; ``displacement`` is relative to the instruction's end when
    ``rip_relative``. ``address_bits`` is the address size, ``segment`` the number of the segment register,
    ``information`` the VM-exit instruction-information field.
    """

    raw: iced.Instruction
    length: int
    mnemonic: int
    has_memory: bool
    base: int
    index: int
    scale: int
    displacement: int
    rip_relative: bool
    segment: int
    address_bits: int
    information: int = 0

    def register(self, operand: int) -> tuple[int, int, int]:
        """GPR number, size in bytes and bit offset of a register operand."""
        return GPR_NUMBER[self.raw.op_register(operand)]

    def is_register(self, operand: int) -> bool:
        """Whether an operand is a register."""
        return bool(self.raw.op_kind(operand) == OpKind.REGISTER)

    def offset(self, gpr: memoryview, rsp: int, next_rip: int) -> int:
        """Effective address (the offset within the segment) of the memory operand."""
        address = self.displacement
        if self.rip_relative:
            address += next_rip
        if self.base >= 0:
            address += rsp if self.base == 4 else gpr[self.base]
        if self.index >= 0:
            address += gpr[self.index] * self.scale
        return int(address & ((1 << self.address_bits) - 1))


def _address_bits(raw: iced.Instruction, code_bits: int) -> int:
    register = raw.memory_base or raw.memory_index
    if register in (Register.RIP, Register.EIP):
        return 64 if register == Register.RIP else 32
    if register in GPR_NUMBER:
        return GPR_NUMBER[register][1] * 8
    if raw.memory_displ_size:
        return {2: 16, 4: 32 if code_bits != 64 else 64, 8: 64}.get(raw.memory_displ_size, code_bits)
    return code_bits


def _string_address_bits(raw: iced.Instruction, code_bits: int) -> int:
    kinds = {raw.op_kind(i) for i in range(raw.op_count)}
    if kinds & {OpKind.MEMORY_SEG_SI, OpKind.MEMORY_ESDI}:
        return 16
    if kinds & {OpKind.MEMORY_SEG_ESI, OpKind.MEMORY_ESEDI}:
        return 32
    if kinds & {OpKind.MEMORY_SEG_RSI, OpKind.MEMORY_ESRDI}:
        return 64
    return code_bits


def _decode(code: bytes, bits: int) -> Instruction | None:
    raw = iced.Decoder(bits, code, ip=0).decode()
    if raw.is_invalid:
        return None
    memory = any(raw.op_kind(i) == OpKind.MEMORY for i in range(raw.op_count))
    rip_relative = raw.is_ip_rel_memory_operand
    displacement = raw.memory_displacement
    if rip_relative:
        displacement -= raw.len  # decoded at address 0, so the target is relative to 0; make it relative to the end
    base = GPR_NUMBER.get(raw.memory_base, (-1, 0, 0))[0] if memory else -1
    index = GPR_NUMBER.get(raw.memory_index, (-1, 0, 0))[0] if memory else -1
    return Instruction(
        raw=raw,
        length=raw.len,
        mnemonic=raw.mnemonic,
        has_memory=memory,
        base=base,
        index=index,
        scale=raw.memory_index_scale,
        displacement=displacement,
        rip_relative=rip_relative,
        segment=SEGMENT_NUMBER.get(raw.memory_segment, 3),
        address_bits=_address_bits(raw, bits) if memory else _string_address_bits(raw, bits),
    )


class InstructionCache:
    """Decoder with memory: the same bytes in the same mode decode once.

    Parameters
    ----------
    describe:
        Gives the VM-exit instruction-information field of an instruction.
    """

    LIMIT = 1 << 16

    def __init__(self, describe: Callable[[Instruction], int]) -> None:
        self._describe = describe
        self._known: dict[tuple[int, int, int], Instruction | None] = {}

    def decode(self, low: int, high: int, bits: int) -> Instruction | None:
        """The instruction in 16 bytes given as two little-endian words, for code of 16, 32 or 64 bits; None if it
        is not a valid one.
        """
        key = (low, high, bits)
        try:
            return self._known[key]
        except KeyError:
            if len(self._known) >= self.LIMIT:
                self._known.clear()
            code = (low | high << 64).to_bytes(16, "little")[:15]
            instruction = _decode(code, bits)
            if instruction is not None:
                instruction = replace(instruction, information=self._describe(instruction))
            self._known[key] = instruction
            return instruction
