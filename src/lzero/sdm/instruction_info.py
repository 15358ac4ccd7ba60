"""VM-exit instruction information (SDM vol. 3, 28.2.5, tables 28-8 to 28-17).

Fields whose meaning the manual leaves undefined for an operand kind (a scale without an index) are decoded as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from .bitformat import BitFormat, bits

__all__ = [
    "AddressSize",
    "DescriptorTableInstruction",
    "DescriptorTableInstructionInformation",
    "InsOutsInformation",
    "InvalidateInformation",
    "LdtrTrInstruction",
    "LdtrTrInstructionInformation",
    "MemoryOperandInformation",
    "RdrandInformation",
    "SegmentRegister",
    "VmreadVmwriteInformation",
    "WaitInformation",
]


class SegmentRegister(IntEnum):
    """Segment register numbers; 6 and 7 are not used."""

    ES = 0
    CS = 1
    SS = 2
    DS = 3
    FS = 4
    GS = 5


class AddressSize(IntEnum):
    """Address-size codes; also the operand-size codes of RDRAND and RDSEED."""

    BITS_16 = 0
    BITS_32 = 1
    BITS_64 = 2


class DescriptorTableInstruction(IntEnum):
    """Instruction identity of GDTR and IDTR accesses (table 28-10)."""

    SGDT = 0
    SIDT = 1
    LGDT = 2
    LIDT = 3


class LdtrTrInstruction(IntEnum):
    """Instruction identity of LDTR and TR accesses (table 28-11)."""

    SLDT = 0
    STR = 1
    LLDT = 2
    LTR = 3


@dataclass(frozen=True)
class InsOutsInformation(BitFormat):
    """INS and OUTS (table 28-8)."""

    address_size: int = bits(9, 7)
    segment: int = bits(17, 15)


@dataclass(frozen=True)
class MemoryOperandInformation(BitFormat):
    """VMCLEAR, VMPTRLD, VMPTRST, VMXON, XRSTORS, XSAVES (table 28-13): a memory operand only."""

    scaling: int = bits(1, 0)
    address_size: int = bits(9, 7)
    segment: int = bits(17, 15)
    index_register: int = bits(21, 18)
    index_invalid: bool = bits(22, 22)
    base_register: int = bits(26, 23)
    base_invalid: bool = bits(27, 27)


@dataclass(frozen=True)
class InvalidateInformation(MemoryOperandInformation):
    """INVEPT, INVPCID, INVVPID (table 28-9): a memory operand and ``register2``, which holds the type."""

    register2: int = bits(31, 28)


@dataclass(frozen=True)
class DescriptorTableInstructionInformation(MemoryOperandInformation):
    """LGDT, LIDT, SGDT, SIDT (table 28-10). ``operand_size``: 0 is 16 bits, 1 is 32 bits, undefined in 64-bit mode."""

    operand_size: bool = bits(11, 11)
    instruction: DescriptorTableInstruction = bits(29, 28, DescriptorTableInstruction.SGDT)


@dataclass(frozen=True)
class LdtrTrInstructionInformation(MemoryOperandInformation):
    """LLDT, LTR, SLDT, STR (table 28-11): ``register1`` when ``is_register``, else the memory operand."""

    register1: int = bits(6, 3)
    is_register: bool = bits(10, 10)
    instruction: LdtrTrInstruction = bits(29, 28, LdtrTrInstruction.SLDT)


@dataclass(frozen=True)
class VmreadVmwriteInformation(MemoryOperandInformation):
    """VMREAD and VMWRITE (table 28-14): ``register2`` holds the encoding, ``register1`` a register operand."""

    register1: int = bits(6, 3)
    is_register: bool = bits(10, 10)
    register2: int = bits(31, 28)


@dataclass(frozen=True)
class RdrandInformation(BitFormat):
    """RDRAND and RDSEED (table 28-12)."""

    register: int = bits(6, 3)
    operand_size: int = bits(12, 11)


@dataclass(frozen=True)
class WaitInformation(BitFormat):
    """TPAUSE and UMWAIT (table 28-12): the operand register."""

    register: int = bits(6, 3)
