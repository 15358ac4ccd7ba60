"""VM-exit instruction information and the exit qualification of memory operands (SDM 3C 28.2.1, 28.2.5)."""

from __future__ import annotations

from typing import Any

from iced_x86 import Code

from lzero.cpu.instruction import GPR_NUMBER, Instruction, Mnemonic
from lzero.sdm.instruction_info import (
    AddressSize,
    DescriptorTableInstruction,
    DescriptorTableInstructionInformation,
    InsOutsInformation,
    InvalidateInformation,
    LdtrTrInstruction,
    LdtrTrInstructionInformation,
    MemoryOperandInformation,
    RdrandInformation,
    VmreadVmwriteInformation,
)

__all__ = ["displacement_qualification", "instruction_information"]

_ADDRESS_SIZE = {16: AddressSize.BITS_16, 32: AddressSize.BITS_32, 64: AddressSize.BITS_64}
_SCALING = {1: 0, 2: 1, 4: 2, 8: 3}
_DESCRIPTOR_TABLES: dict[int, DescriptorTableInstruction] = {
    Mnemonic.SGDT: DescriptorTableInstruction.SGDT,
    Mnemonic.SIDT: DescriptorTableInstruction.SIDT,
    Mnemonic.LGDT: DescriptorTableInstruction.LGDT,
    Mnemonic.LIDT: DescriptorTableInstruction.LIDT,
}
_OPERAND_SIZE_16 = {Code.SGDT_M1632_16, Code.SIDT_M1632_16, Code.LGDT_M1632_16, Code.LIDT_M1632_16}
_LDTR_TR: dict[int, LdtrTrInstruction] = {
    Mnemonic.SLDT: LdtrTrInstruction.SLDT,
    Mnemonic.STR: LdtrTrInstruction.STR,
    Mnemonic.LLDT: LdtrTrInstruction.LLDT,
    Mnemonic.LTR: LdtrTrInstruction.LTR,
}
_MEMORY_ONLY = {Mnemonic.VMCLEAR, Mnemonic.VMPTRLD, Mnemonic.VMPTRST, Mnemonic.VMXON, Mnemonic.XSAVES, Mnemonic.XRSTORS}
_INVALIDATE = {Mnemonic.INVEPT, Mnemonic.INVVPID, Mnemonic.INVPCID}
_STRING_IO = {Mnemonic.INSB, Mnemonic.INSW, Mnemonic.INSD, Mnemonic.OUTSB, Mnemonic.OUTSW, Mnemonic.OUTSD}


def _memory(i: Instruction) -> dict[str, Any]:
    if not i.has_memory:
        return {}
    fields: dict[str, Any] = {"address_size": int(_ADDRESS_SIZE[i.address_bits]), "segment": i.segment}
    if i.index >= 0:
        fields |= {"scaling": _SCALING[i.scale], "index_register": i.index}
    else:
        fields["index_invalid"] = True
    fields |= {"base_register": i.base} if i.base >= 0 else {"base_invalid": True}
    return fields


def _first_register(i: Instruction) -> dict[str, Any]:
    return {"is_register": True, "register1": i.register(0)[0]} if i.is_register(0) else _memory(i)


def instruction_information(i: Instruction) -> int:
    """The VM-exit instruction-information field; 0 for instructions for which it is undefined."""
    m = i.mnemonic
    if m in _MEMORY_ONLY:
        return MemoryOperandInformation(**_memory(i)).pack()
    if m in _INVALIDATE:
        return InvalidateInformation(**_memory(i), register2=i.register(0)[0]).pack()
    if m == Mnemonic.VMREAD:
        return VmreadVmwriteInformation(**_first_register(i), register2=i.register(1)[0]).pack()
    if m == Mnemonic.VMWRITE:
        operand: dict[str, Any] = (
            {"is_register": True, "register1": i.register(1)[0]} if i.is_register(1) else _memory(i)
        )
        return VmreadVmwriteInformation(**operand, register2=i.register(0)[0]).pack()
    if m in _DESCRIPTOR_TABLES:
        wide = i.raw.code not in _OPERAND_SIZE_16
        return DescriptorTableInstructionInformation(
            **_memory(i), operand_size=wide, instruction=_DESCRIPTOR_TABLES[m]
        ).pack()
    if m in _LDTR_TR:
        return LdtrTrInstructionInformation(**_first_register(i), instruction=_LDTR_TR[m]).pack()
    if m in (Mnemonic.RDRAND, Mnemonic.RDSEED):
        number, size, _ = GPR_NUMBER[i.raw.op0_register]
        return RdrandInformation(register=number, operand_size={2: 0, 4: 1, 8: 2}[size]).pack()
    if m in _STRING_IO:
        return InsOutsInformation(address_size=int(_ADDRESS_SIZE[i.address_bits]), segment=i.segment).pack()
    return 0


def displacement_qualification(i: Instruction, next_rip: int) -> int:
    """Exit qualification of instructions with a memory operand: its displacement, sign-extended; with RIP-relative
    addressing the sum with the next instruction's address.
    """
    if not i.has_memory:
        return 0
    displacement = i.displacement
    if i.rip_relative:
        return (displacement + next_rip) & 0xFFFF_FFFF_FFFF_FFFF
    bits = i.address_bits
    if displacement >> (bits - 1) & 1:
        displacement |= -1 << bits
    return displacement & 0xFFFF_FFFF_FFFF_FFFF
