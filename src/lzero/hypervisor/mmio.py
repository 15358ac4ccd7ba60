"""Accesses to devices in memory: decode the instruction at RIP and carry it out on the bus.

One row per kind of instruction. Compilers and kernels reach devices with moves; read-modify-write and string forms are
here because bare-metal code uses them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from iced_x86 import MemorySizeExt, Mnemonic, OpKind, RegisterExt

from lzero.cpu.instruction import GPR_NUMBER, Instruction
from lzero.errors import GuestFault
from lzero.sdm.vmcs_fields import Field

if TYPE_CHECKING:
    from lzero.hypervisor.vcpu import Vcpu

__all__ = ["access"]

_PAGE = 4096
_ARITHMETIC_FLAGS = 0x8D5
_IMMEDIATES = {
    OpKind.IMMEDIATE8,
    OpKind.IMMEDIATE16,
    OpKind.IMMEDIATE32,
    OpKind.IMMEDIATE64,
    OpKind.IMMEDIATE8TO16,
    OpKind.IMMEDIATE8TO32,
    OpKind.IMMEDIATE8TO64,
    OpKind.IMMEDIATE32TO64,
}


class _Operands:
    """The operands of the instruction at RIP, its memory operand being a device register."""

    def __init__(self, vcpu: Vcpu, i: Instruction, address: int) -> None:
        self.vcpu, self.i, self.address = vcpu, i, address
        self.size = _memory_size(i)

    def load(self) -> int:
        return self.vcpu.bus_read(self.address, self.size)

    def store(self, value: int) -> None:
        self.vcpu.bus_write(self.address, self.size, value & ((1 << 8 * self.size) - 1))

    def value(self, operand: int) -> int:
        """A register, an immediate, or the device register."""
        kind = self.i.raw.op_kind(operand)
        if kind == OpKind.MEMORY:
            return self.load()
        if kind in _IMMEDIATES:
            return int(self.i.raw.immediate(operand)) & 0xFFFF_FFFF_FFFF_FFFF
        number, size, shift = self._register(operand)
        return (self.vcpu.cpu.gpr_value(number) >> shift) & ((1 << 8 * size) - 1)

    def put(self, operand: int, value: int) -> None:
        """Write a register or the device register."""
        if self.i.raw.op_kind(operand) == OpKind.MEMORY:
            self.store(value)
            return
        number, size, shift = self._register(operand)
        cpu = self.vcpu.cpu
        if shift:
            cpu.set_gpr(number, (cpu.gpr_value(number) & ~0xFF00) | (value & 0xFF) << 8)
        else:
            cpu.set_gpr(number, value, size)

    def _register(self, operand: int) -> tuple[int, int, int]:
        register = self.i.raw.op_register(operand)
        found = GPR_NUMBER.get(register)
        if found is None:
            raise _unsupported(self.vcpu, self.i)
        return found


def _memory_size(i: Instruction) -> int:
    return int(MemorySizeExt.size(i.raw.memory_size)) or 4


def _unsupported(vcpu: Vcpu, i: Instruction) -> GuestFault:
    address = vcpu.cpu.vmread(Field.GUEST_PHYSICAL_ADDRESS)
    rip = vcpu.cpu.vmread(Field.GUEST_RIP)
    return GuestFault(
        f"the guest uses {i.raw} at RIP {rip:#x} on device memory at {address:#x}; lzero carries out moves, logic and "
        "arithmetic on integer registers, and string moves there"
    )


def _move(o: _Operands) -> None:
    o.put(0, o.value(1))


def _move_sign_extended(o: _Operands) -> None:
    value = o.value(1)
    size = o.size if o.i.raw.op1_kind == OpKind.MEMORY else RegisterExt.size(o.i.raw.op1_register)
    sign = 1 << (8 * size - 1)
    o.put(0, (value ^ sign) - sign)


def _exchange(o: _Operands) -> None:
    first, second = o.value(0), o.value(1)
    o.put(0, second)
    o.put(1, first)


def _flags(o: _Operands, result: int, carry: bool, overflow: bool, adjust: bool) -> None:
    bits = 8 * o.size
    masked = result & ((1 << bits) - 1)
    flags = int(carry) | int(adjust) << 4 | int(overflow) << 11
    flags |= 0x40 if masked == 0 else 0
    flags |= 0x80 if masked >> (bits - 1) else 0
    flags |= 0x04 if (masked & 0xFF).bit_count() % 2 == 0 else 0
    cpu = o.vcpu.cpu
    cpu.vmwrite(Field.GUEST_RFLAGS, (cpu.vmread(Field.GUEST_RFLAGS) & ~_ARITHMETIC_FLAGS) | flags)


def _logic(operation: Callable[[int, int], int], *, keep: bool = True) -> Callable[[_Operands], None]:
    def execute(o: _Operands) -> None:
        result = operation(o.value(0), o.value(1))
        if keep:
            o.put(0, result)
        _flags(o, result, False, False, False)

    return execute


def _add(*, negative: bool, keep: bool = True, one: bool = False) -> Callable[[_Operands], None]:
    def execute(o: _Operands) -> None:
        bits = 8 * o.size
        mask = (1 << bits) - 1
        first, second = o.value(0) & mask, 1 if one else o.value(1) & mask
        result = first - second if negative else first + second
        signs = (first ^ second) & (first ^ result) if negative else ~(first ^ second) & (first ^ result)
        carry = bool(result & ~mask)
        if one:
            carry = bool(o.vcpu.cpu.vmread(Field.GUEST_RFLAGS) & 1)
        if keep:
            o.put(0, result & mask)
        _flags(o, result, carry, bool(signs >> (bits - 1) & 1), bool((first ^ second ^ result) & 0x10))

    return execute


_OPERATIONS: dict[int, Callable[[_Operands], None]] = {
    Mnemonic.MOV: _move,
    Mnemonic.MOVZX: _move,
    Mnemonic.MOVNTI: _move,
    Mnemonic.MOVSX: _move_sign_extended,
    Mnemonic.MOVSXD: _move_sign_extended,
    Mnemonic.XCHG: _exchange,
    Mnemonic.AND: _logic(lambda a, b: a & b),
    Mnemonic.OR: _logic(lambda a, b: a | b),
    Mnemonic.XOR: _logic(lambda a, b: a ^ b),
    Mnemonic.TEST: _logic(lambda a, b: a & b, keep=False),
    Mnemonic.ADD: _add(negative=False),
    Mnemonic.SUB: _add(negative=True),
    Mnemonic.CMP: _add(negative=True, keep=False),
    Mnemonic.INC: _add(negative=False, one=True),
    Mnemonic.DEC: _add(negative=True, one=True),
}
_STRINGS: dict[int, int] = {
    Mnemonic.STOSB: 1, Mnemonic.STOSW: 2, Mnemonic.STOSD: 4, Mnemonic.STOSQ: 8,
    Mnemonic.MOVSB: 1, Mnemonic.MOVSW: 2, Mnemonic.MOVSD: 4, Mnemonic.MOVSQ: 8,
    Mnemonic.LODSB: 1, Mnemonic.LODSW: 2, Mnemonic.LODSD: 4, Mnemonic.LODSQ: 8,
}  # fmt: skip
_STORES = {Mnemonic.STOSB, Mnemonic.STOSW, Mnemonic.STOSD, Mnemonic.STOSQ}
_LOADS = {Mnemonic.LODSB, Mnemonic.LODSW, Mnemonic.LODSD, Mnemonic.LODSQ}


def access(vcpu: Vcpu, address: int) -> bool:
    """Carry out the instruction at RIP, whose memory operand is at this guest-physical address.

    Raises
    ------
    GuestFault
        It is not one of the instructions that can be carried out on devices.
    """
    cpu = vcpu.cpu
    i = cpu.try_instruction()
    if i is None:
        raise GuestFault(f"undecodable access to device memory {address:#x} at RIP {cpu.vmread(Field.GUEST_RIP):#x}")
    cpu.vmwrite(Field.VM_EXIT_INSTRUCTION_LENGTH, i.length)
    if i.mnemonic in _STRINGS and not i.has_memory:
        return _string(vcpu, i, address)
    operation = _OPERATIONS.get(i.mnemonic)
    if operation is None or not i.has_memory:
        raise _unsupported(vcpu, i)
    operation(_Operands(vcpu, i, address))
    return vcpu.finish_access()


def _string(vcpu: Vcpu, i: Instruction, address: int) -> bool:
    """STOS, MOVS or LODS: one item at a time, each against the bus or memory as its address says."""
    cpu, gpr = vcpu.cpu, vcpu.cpu.gpr
    size = _STRINGS[i.mnemonic]
    mask = (1 << i.address_bits) - 1
    step = -size if cpu.vmread(Field.GUEST_RFLAGS) >> 10 & 1 else size
    rep = i.raw.has_rep_prefix or i.raw.has_repne_prefix
    if rep and not gpr[1] & mask:
        return vcpu.skip_instruction()
    value = gpr[0] if i.mnemonic in _STORES else vcpu.read_anywhere(cpu.string_operand(is_in=False), size)
    if value is None:
        return True
    if i.mnemonic in _LOADS:
        cpu.set_gpr(0, value, size)
    elif not vcpu.write_anywhere(cpu.string_operand(is_in=True), size, value & ((1 << 8 * size) - 1)):
        return True
    for register, used in ((6, i.mnemonic not in _STORES), (7, i.mnemonic not in _LOADS)):
        if used:
            gpr[register] = (gpr[register] & ~mask) | (gpr[register] + step & mask)
    if rep:
        gpr[1] = (gpr[1] & ~mask) | (gpr[1] - 1 & mask)
        if gpr[1] & mask:
            return True
    return vcpu.finish_access()
