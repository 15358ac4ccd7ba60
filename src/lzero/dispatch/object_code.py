"""Functions of a compiled object file: their instructions, and the symbols their operands are relocated against."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lzero.errors import ToolError

if TYPE_CHECKING:
    from iced_x86 import Instruction

__all__ = ["Function", "Line", "ObjectCode"]

THUNK_PREFIX = "__x86_indirect_thunk_"
RETURN_THUNK = "__x86_return_thunk"


@dataclass(frozen=True, slots=True)
class Function:
    """Where a function's code lies in the object."""

    name: str
    section: int
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Line:
    """One instruction with the symbol its branch target or memory operand is relocated against, if any."""

    offset: int
    instruction: Instruction
    symbol: str | None

    @property
    def is_indirect(self) -> bool:
        """Whether it is an indirect jump or call, plain or through a retpoline thunk."""
        from iced_x86 import FlowControl

        plain = self.instruction.flow_control in (FlowControl.INDIRECT_BRANCH, FlowControl.INDIRECT_CALL)
        return plain or self.is_thunk

    @property
    def is_thunk(self) -> bool:
        """Whether it branches to a retpoline thunk."""
        return self.symbol is not None and self.symbol.startswith(THUNK_PREFIX)

    @property
    def text(self) -> str:
        """The instruction as a reader of disassembly expects it, symbols in place of zeros."""
        return f"{self.instruction}" + (f"    # {self.symbol}" if self.symbol else "")


class ObjectCode:
    """An x86-64 ELF object as a compiler of lzero's choice has just written it (not for files from elsewhere)."""

    def __init__(self, path: Path) -> None:
        from elftools.elf.elffile import ELFFile
        from elftools.elf.relocation import RelocationSection
        from elftools.elf.sections import SymbolTableSection

        self.functions: dict[str, Function] = {}
        self._code: dict[int, bytes] = {}
        self._symbols: dict[tuple[int, int], str] = {}
        with path.open("rb") as stream:
            elf = ELFFile(stream)
            table = elf.get_section_by_name(".symtab")
            if not isinstance(table, SymbolTableSection):
                raise ToolError(f"{path}: the compiler wrote no symbol table")
            for symbol in table.iter_symbols():
                if symbol["st_info"]["type"] == "STT_FUNC" and isinstance(symbol["st_shndx"], int):
                    place = Function(symbol.name, symbol["st_shndx"], symbol["st_value"], symbol["st_size"])
                    self.functions[symbol.name] = place
            for section in elf.iter_sections():
                if isinstance(section, RelocationSection):
                    for relocation in section.iter_relocations():
                        target = table.get_symbol(relocation["r_info_sym"])
                        # A local object is relocated against its section, which has no name of its own in the table.
                        name = target.name or elf.get_section(target["st_shndx"]).name
                        self._symbols[section["sh_info"], relocation["r_offset"]] = name
            for function in self.functions.values():
                if function.section not in self._code:
                    self._code[function.section] = elf.get_section(function.section).data()

    def function(self, name: str) -> Function:
        """The function of that name; :class:`ToolError` if the compiler left none."""
        try:
            return self.functions[name]
        except KeyError:
            raise ToolError(f"the compiled dispatcher has no function {name}") from None

    def line_at(self, section: int, offset: int) -> Line:
        """Decode one instruction."""
        from iced_x86 import Decoder

        code = self._code[section]
        decoder = Decoder(64, code[offset : offset + 15], ip=offset)
        instruction = decoder.decode()
        constants = decoder.get_constant_offsets(instruction)
        symbol = None
        if constants.has_displacement:
            symbol = self._symbols.get((section, offset + constants.displacement_offset))
        if symbol is None and constants.has_immediate:
            symbol = self._symbols.get((section, offset + constants.immediate_offset))
        return Line(offset, instruction, symbol)

    def lines(self, function: Function) -> Iterator[Line]:
        """The instructions of a function in the order of addresses."""
        offset = function.offset
        while offset < function.offset + function.size:
            line = self.line_at(function.section, offset)
            yield line
            offset += line.instruction.len

    def rendered(self, function: Function, line: Line) -> str:
        """A line of a listing: offset from the function's start, instruction, with names where code has numbers."""
        from iced_x86 import FlowControl, Formatter, FormatterSyntax

        instruction, text = line.instruction, f"{line.instruction}"
        branches = (FlowControl.UNCONDITIONAL_BRANCH, FlowControl.CONDITIONAL_BRANCH, FlowControl.CALL)
        if instruction.flow_control in branches:
            mnemonic = Formatter(FormatterSyntax.INTEL).format_mnemonic(instruction)
            text = f"{mnemonic} {line.symbol or self._place(function, instruction.near_branch_target)}"
        elif line.symbol is not None and instruction.is_ip_rel_memory_operand:
            text = re.sub(r"\[[^]]*\]", f"[{line.symbol}]", text)
        elif line.symbol is not None:
            text = text.replace("]", f" + {line.symbol}]", 1)
        return f"{line.offset - function.offset:5x}:  {text}"

    def _place(self, function: Function, offset: int) -> str:
        """A branch target within the section: a function's name, or the offset in the function at hand."""
        starts = {f.offset: f.name for f in self.functions.values() if f.section == function.section}
        if offset in starts and offset != function.offset:
            return starts[offset]
        return f"{offset - function.offset:x}"

    def disassembly(self, name: str) -> str:
        """A listing of a function: offsets from its start, instructions, symbols."""
        function = self.function(name)
        return "\n".join([f"{name}:", *(f"  {self.rendered(function, line)}" for line in self.lines(function))])
