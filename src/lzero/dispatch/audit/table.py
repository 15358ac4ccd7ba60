"""The exit-handler table of a module, read from its relocations, and what the module's own code puts into it later."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from iced_x86 import FlowControl, Instruction, Mnemonic, OpKind, Register

from lzero.dispatch.audit.code import Code, SectionCode, full_register
from lzero.dispatch.audit.module import R_X86_64_64, KernelModule, Symbol

__all__ = ["HandlerTable", "TABLE_SYMBOLS", "Vendor", "find_handler_table"]

_CALL_DISTANCE = 12
"""Instructions after the table's address is loaded within which the call that it is passed to must come."""

Vendor = str
"""``"vmx"`` or ``"svm"``."""

TABLE_SYMBOLS: Mapping[str, Vendor] = {"kvm_vmx_exit_handlers": "vmx", "svm_exit_handlers": "svm"}
"""Names of the handler tables, with the exit-code numbering that indexes them."""


@dataclass(frozen=True, slots=True)
class HandlerTable:
    """A function-pointer table indexed by exit reason."""

    symbol: str
    vendor: Vendor
    section: str
    section_index: int
    offset: int
    slots: int
    writable: bool
    """The section is mapped writable, so a stray write could redirect an exit."""
    handlers: Mapping[int, str]
    """Reason to handler, as the file has them; a reason that is missing is an empty slot."""
    overrides: Mapping[int, str]
    """Reason to handler for slots that the module's code overwrites at load (nested virtualisation enabled)."""
    overridden_by: str | None
    """The function that does so."""

    @property
    def end(self) -> int:
        """First offset after the table."""
        return self.offset + 8 * self.slots

    def holds(self, section: int | None, offset: int) -> bool:
        """Whether an address lies in the table."""
        return section == self.section_index and self.offset <= offset < self.end


def find_handler_table(code: Code) -> HandlerTable | None:
    """The module's exit-handler table, or None when it defines none of :data:`TABLE_SYMBOLS`."""
    module = code.module
    for name, vendor in TABLE_SYMBOLS.items():
        symbol = module.symbol(name)
        if symbol is not None and symbol.section is not None and symbol.size >= 8:
            return _read(code, symbol, symbol.section, vendor)
    return None


def _read(code: Code, symbol: Symbol, section_index: int, vendor: Vendor) -> HandlerTable:
    module = code.module
    section = module.sections[section_index]
    slots = symbol.size // 8
    handlers: dict[int, str] = {}
    for relocation in section.relocations_in(symbol.offset, symbol.offset + 8 * slots):
        slot, misaligned = divmod(relocation.offset - symbol.offset, 8)
        if relocation.type == R_X86_64_64 and not misaligned:
            handlers[slot] = module.describe_address(*relocation.target, relocation.symbol.name)
    overrides, function = _overrides(code, section_index, symbol.offset, slots)
    return HandlerTable(
        symbol=symbol.name,
        vendor=vendor,
        section=section.name,
        section_index=section_index,
        offset=symbol.offset,
        slots=slots,
        writable=section.writable,
        handlers=handlers,
        overrides=overrides,
        overridden_by=function,
    )


def _overrides(code: Code, section: int, offset: int, slots: int) -> tuple[dict[int, str], str | None]:
    """Slots stored to by a function that the table's address is passed to."""
    for receiver in _receivers(code, section, offset):
        stores = _stores(code, receiver, slots)
        if stores:
            return stores, receiver.name
    return {}, None


def _receivers(code: Code, section: int, offset: int) -> list[Symbol]:
    found: list[Symbol] = []
    for part in code.sections():
        for position, instruction in enumerate(part.instructions):
            if not _loads_address(instruction):
                continue
            relocation = part.relocation(instruction)
            if relocation is None or code.target(part, instruction, relocation) != (section, offset):
                continue
            callee = _next_callee(code.module, code, part, position)
            if callee is not None and callee not in found:
                found.append(callee)
    return found


def _loads_address(instruction: Instruction) -> bool:
    return instruction.mnemonic in (Mnemonic.MOV, Mnemonic.LEA) and (
        instruction.op0_kind == OpKind.REGISTER and instruction.memory_index == Register.NONE
    )


def _next_callee(module: KernelModule, code: Code, part: SectionCode, position: int) -> Symbol | None:
    for instruction in part.instructions[position + 1 : position + 1 + _CALL_DISTANCE]:
        if instruction.flow_control != FlowControl.CALL:
            continue
        relocation = part.relocation(instruction)
        if relocation is None:
            return module.function_at(part.section.index, instruction.near_branch_target)
        return module.function_at(*code.target(part, instruction, relocation))
    return None


def _stores(code: Code, function: Symbol, slots: int) -> dict[int, str]:
    """Function addresses stored at multiples of 8 from one register: ``{slot: handler}``, empty when bases are
    mixed.
    """
    if function.section is None:
        return {}
    part = code.section(function.section)
    stores: dict[int, str] = {}
    bases: set[int] = set()
    for instruction in code.function(function):
        slot, misaligned = divmod(instruction.memory_displacement, 8)
        is_store = (
            instruction.mnemonic == Mnemonic.MOV
            and instruction.op0_kind == OpKind.MEMORY
            and instruction.op1_kind == OpKind.IMMEDIATE32TO64
            and instruction.memory_index == Register.NONE
            and instruction.memory_base not in (Register.NONE, Register.RIP, Register.RSP)
        )
        if not is_store or misaligned or slot >= slots:
            continue
        relocation = part.relocation(instruction)
        if relocation is None:
            continue
        section, offset = code.target(part, instruction, relocation)
        handler = code.module.function_at(section, offset)
        if handler is not None and handler.offset == offset:
            stores[slot] = handler.name
            bases.add(full_register(instruction.memory_base))
    return stores if len(bases) == 1 else {}
