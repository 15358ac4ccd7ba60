"""Decoded code of a module: instructions joined with their relocations."""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from iced_x86 import Decoder, FlowControl, Instruction, OpKind, Register, RegisterExt

from lzero.dispatch.audit.module import R_X86_64_PC32, R_X86_64_PLT32, KernelModule, Relocation, Section, Symbol

__all__ = ["Code", "SectionCode", "full_register", "register_name"]


def full_register(register: int) -> int:
    """The 64-bit register that ``register`` is a part of."""
    # The stubs call registers an enumeration; at run time they are plain numbers.
    return RegisterExt.full_register(register)  # type: ignore[arg-type]


def register_name(register: int) -> str:
    """Lower-case name of a register, as an assembler writes it."""
    return _REGISTER_NAMES[register]


_REGISTER_NAMES: dict[int, str] = {
    value: name.lower() for name, value in vars(Register).items() if isinstance(value, int) and not name.startswith("_")
}


@dataclass(frozen=True)
class SectionCode:
    """The instructions of one section, in order of address (addresses are offsets into the section)."""

    section: Section
    instructions: tuple[Instruction, ...]

    @cached_property
    def index_of(self) -> dict[int, int]:
        """Position in :attr:`instructions` by offset."""
        return {instruction.ip: position for position, instruction in enumerate(self.instructions)}

    @cached_property
    def entered_from(self) -> dict[int, list[int]]:
        """Offsets of the branches inside this section, by the offset they go to."""
        entered: dict[int, list[int]] = {}
        for instruction in self.instructions:
            if instruction.flow_control in _NEAR_FLOW and instruction.op0_kind == OpKind.NEAR_BRANCH64:
                if not self.section.relocations_in(instruction.ip, instruction.next_ip):
                    entered.setdefault(instruction.near_branch_target, []).append(instruction.ip)
        return entered

    def relocation(self, instruction: Instruction) -> Relocation | None:
        """The first relocation inside the instruction, or None."""
        found = self.section.relocations_in(instruction.ip, instruction.next_ip)
        return found[0] if found else None

    def between(self, start: int, end: int) -> tuple[Instruction, ...]:
        """The instructions that start in ``start <= offset < end``."""
        first = bisect.bisect_left(self.instructions, start, key=lambda instruction: instruction.ip)
        last = bisect.bisect_left(self.instructions, end, key=lambda instruction: instruction.ip)
        return self.instructions[first:last]


_NEAR_FLOW = frozenset({FlowControl.CONDITIONAL_BRANCH, FlowControl.UNCONDITIONAL_BRANCH, FlowControl.CALL})


class Code:
    """All executable sections of a module, decoded on first use."""

    def __init__(self, module: KernelModule) -> None:
        self.module = module
        self._decoded: dict[int, SectionCode] = {}

    def section(self, index: int) -> SectionCode:
        """The code of section number ``index``."""
        if index not in self._decoded:
            self._decoded[index] = self._decode(self.module.sections[index])
        return self._decoded[index]

    def sections(self) -> Iterator[SectionCode]:
        """Every executable section."""
        for section in self.module.sections:
            if section.executable and section.data:
                yield self.section(section.index)

    def function(self, symbol: Symbol) -> tuple[Instruction, ...]:
        """The instructions of one function."""
        if symbol.section is None:
            return ()
        return self.section(symbol.section).between(symbol.offset, symbol.offset + symbol.size)

    def target(self, code: SectionCode, instruction: Instruction, relocation: Relocation) -> tuple[int | None, int]:
        """Section and offset that a relocated operand or branch refers to.

        A pc-relative field counts from itself, the processor from the end of the instruction: the difference is added
        back.
        """
        offset = relocation.symbol.offset + relocation.addend
        if relocation.type in (R_X86_64_PC32, R_X86_64_PLT32):
            offset += instruction.next_ip - relocation.offset
        return relocation.symbol.section, offset

    def _decode(self, section: Section) -> SectionCode:
        # Decoding restarts at every function, so that data between functions cannot put the sweep out of step.
        starts = sorted({0, *(symbol.offset for symbol in self.module.functions.get(section.index, ()))})
        instructions: list[Instruction] = []
        for start, end in zip(starts, [*starts[1:], len(section.data)], strict=True):
            if start < end <= len(section.data):
                instructions.extend(Decoder(64, section.data[start:end], ip=start))
        return SectionCode(section, tuple(instructions))
