"""Every indirect branch that a module still holds, by function and by how it is made.

The kinds differ in what they cost and in whether they are there at run time at all:

* a *retpoline thunk* call stays a retpoline unless the kernel patches the sites it lists in ``.retpoline_sites``;
* a *pv_ops* call is replaced by a direct call or by the instruction itself at boot;
* a *static call* is a direct branch that the kernel re-targets; listed because it stands where an indirect call was;
* a *plain* indirect branch is what the compiler or an assembly file left as it is.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass

from iced_x86 import FlowControl, Instruction, Mnemonic, OpKind, Register

from lzero.dispatch.audit.code import Code, SectionCode, full_register, register_name
from lzero.dispatch.audit.module import KernelModule

__all__ = ["BranchKind", "IndirectBranch", "find_indirect_branches", "trace_pointer"]

_THUNK = re.compile(r"__x86_indirect_(?:\w+_)?thunk_(?P<register>r\w+|array)")
_STATIC_CALL = "__SCT__"
_PV_OPS = re.compile(r"pv_(?:cpu_|mmu_|irq_|time_|lock_)?ops")
_POINTER_SEARCH = 16
_BRANCHES = frozenset({FlowControl.CALL, FlowControl.UNCONDITIONAL_BRANCH, FlowControl.CONDITIONAL_BRANCH})
_INDIRECT = frozenset({FlowControl.INDIRECT_CALL, FlowControl.INDIRECT_BRANCH})


class BranchKind(enum.StrEnum):
    """How an indirect branch is made."""

    RETPOLINE = "retpoline thunk"
    RETPOLINE_INLINE = "retpoline inline"
    LFENCE = "lfence; indirect"
    PV_OPS = "pv_ops"
    STATIC_CALL = "static call"
    PLAIN = "plain"


@dataclass(frozen=True, slots=True)
class IndirectBranch:
    """One branch site."""

    function: str | None
    """Function that holds the site; for replacement code the function it is patched into; None where no symbol covers
    it.
    """
    section: str
    offset: int
    """Offset of the instruction in its section."""
    kind: BranchKind
    is_call: bool
    """A call returns here; a jump is a tail call."""
    operand: str
    """Register, memory operand or static call's name."""
    through: str | None
    """Where the pointer was loaded from (``smp_ops+0x28``), when the instructions before the branch show it."""
    patched: bool
    """Listed in the module's own table of sites that the kernel rewrites at load or at boot."""

    @property
    def runs_once(self) -> bool:
        """In code that runs only when the module is loaded or unloaded."""
        return self.section in (".init.text", ".exit.text")


def find_indirect_branches(code: Code) -> tuple[IndirectBranch, ...]:
    """All sites of a module, in order of section and offset."""
    scan = _Scan(code)
    return tuple(site for section in code.sections() for site in scan.section(section))


class _Scan:
    def __init__(self, code: Code) -> None:
        self.code = code
        self.module = code.module
        self.replacement_of = _replacements(code.module)
        self.listed = {
            BranchKind.RETPOLINE: _listed_sites(code.module, ".retpoline_sites"),
            BranchKind.PLAIN: _listed_sites(code.module, ".retpoline_sites"),
            BranchKind.LFENCE: _listed_sites(code.module, ".retpoline_sites"),
            BranchKind.PV_OPS: _listed_sites(code.module, ".parainstructions")
            | _listed_sites(code.module, ".altinstructions"),
            BranchKind.STATIC_CALL: _listed_sites(code.module, ".static_call_sites"),
            BranchKind.RETPOLINE_INLINE: frozenset[tuple[int | None, int]](),
        }

    def section(self, code: SectionCode) -> list[IndirectBranch]:
        sites: list[IndirectBranch] = []
        for position, instruction in enumerate(code.instructions):
            flow = instruction.flow_control
            if flow in _BRANCHES:
                site = self._thunk(code, position)
            elif flow in _INDIRECT:
                site = self._indirect(code, position)
            elif instruction.mnemonic == Mnemonic.RET:
                site = self._inline_retpoline(code, position)
            else:
                continue
            if site is not None:
                sites.append(site)
        return sites

    def _site(
        self, code: SectionCode, instruction: Instruction, kind: BranchKind, operand: str, through: str | None
    ) -> IndirectBranch:
        section = code.section
        return IndirectBranch(
            function=self._function(section.index, section.name, instruction.ip),
            section=section.name,
            offset=instruction.ip,
            kind=kind,
            is_call=instruction.flow_control in (FlowControl.CALL, FlowControl.INDIRECT_CALL),
            operand=operand,
            through=through,
            patched=(section.index, instruction.ip) in self.listed[kind],
        )

    def _function(self, section: int, name: str, offset: int) -> str | None:
        where: tuple[int | None, int] = (section, offset)
        if name == ".altinstr_replacement":
            where = next(((s, o) for start, end, s, o in self.replacement_of if start <= offset < end), where)
        function = self.module.function_at(*where)
        return None if function is None else function.name.removesuffix(".cold")

    def _thunk(self, code: SectionCode, position: int) -> IndirectBranch | None:
        instruction = code.instructions[position]
        relocation = code.relocation(instruction)
        if relocation is None:
            return None
        name = relocation.symbol.name
        if name.startswith(_STATIC_CALL):
            return self._site(code, instruction, BranchKind.STATIC_CALL, name.removeprefix(_STATIC_CALL), None)
        match = _THUNK.fullmatch(name)
        if match is None:
            return None
        register = match["register"]
        through = trace_pointer(self.code, code, position, _REGISTERS.get(register))
        return self._site(code, instruction, BranchKind.RETPOLINE, register, through)

    def _indirect(self, code: SectionCode, position: int) -> IndirectBranch:
        instruction = code.instructions[position]
        relocation = code.relocation(instruction)
        kind = BranchKind.PLAIN
        through = None
        if relocation is not None:
            through = self.module.describe_address(
                *self.code.target(code, instruction, relocation), relocation.symbol.name
            )
            if _PV_OPS.fullmatch(relocation.symbol.name):
                kind = BranchKind.PV_OPS
        if instruction.op0_kind == OpKind.REGISTER:
            operand = register_name(instruction.op0_register)
            through = trace_pointer(self.code, code, position, full_register(instruction.op0_register))
            if position and code.instructions[position - 1].mnemonic == Mnemonic.LFENCE:
                kind = BranchKind.LFENCE
        else:
            operand = through or _memory_text(instruction)
        return self._site(code, instruction, kind, operand, through)

    def _inline_retpoline(self, code: SectionCode, position: int) -> IndirectBranch | None:
        """``mov [rsp], reg; ret`` that a ``call`` over a speculation trap (pause or lfence, then a jump back) leads
        to.
        """
        if position < 1:
            return None
        store = code.instructions[position - 1]
        writes_return = (
            store.mnemonic == Mnemonic.MOV
            and store.op0_kind == OpKind.MEMORY
            and store.memory_base == Register.RSP
            and store.memory_index == Register.NONE
            and store.memory_displacement == 0
            and store.op1_kind == OpKind.REGISTER
        )
        if not writes_return:
            return None
        for source in code.entered_from.get(store.ip, ()):
            call = code.instructions[code.index_of[source]]
            trap = code.index_of.get(call.next_ip)
            if call.flow_control == FlowControl.CALL and trap is not None:
                if code.instructions[trap].mnemonic in (Mnemonic.PAUSE, Mnemonic.LFENCE):
                    return self._site(
                        code,
                        code.instructions[position],
                        BranchKind.RETPOLINE_INLINE,
                        register_name(store.op1_register),
                        None,
                    )
        return None


_REGISTERS = {name.lower(): value for name, value in vars(Register).items() if isinstance(value, int)}


def trace_pointer(code: Code, section: SectionCode, position: int, register: int | None) -> str | None:
    """Where the code just before ``position`` loads ``register`` from, or None when it does not show.

    The search goes back over straight-line code only: it ends at a call, at an unconditional branch, and at any
    address that another branch enters, since the register may come from there.
    """
    if register is None:
        return None
    suffix = ""

    def partial() -> str | None:
        return f"{register_name(register)}{suffix}" if suffix and register is not None else None

    for index in range(position - 1, max(position - 1 - _POINTER_SEARCH, -1), -1):
        if section.instructions[index + 1].ip in section.entered_from:
            return partial()
        instruction = section.instructions[index]
        if instruction.flow_control not in (FlowControl.NEXT, FlowControl.CONDITIONAL_BRANCH):
            return partial()
        if instruction.op_count == 0 or instruction.op0_kind != OpKind.REGISTER:
            continue
        if full_register(instruction.op0_register) != register:
            continue
        if instruction.mnemonic in _READS_ONLY:
            continue
        if instruction.mnemonic != Mnemonic.MOV:
            return partial()
        if instruction.op1_kind == OpKind.REGISTER:
            register = full_register(instruction.op1_register)
            continue
        if instruction.op1_kind != OpKind.MEMORY:
            return partial()
        relocation = section.relocation(instruction)
        if relocation is not None:
            name = code.module.describe_address(*code.target(section, instruction, relocation), relocation.symbol.name)
            indexed = "[]" if instruction.memory_index != Register.NONE else ""
            return f"{name}{indexed}{suffix}"
        if instruction.memory_index != Register.NONE or instruction.memory_base in (Register.RSP, Register.RBP):
            return _memory_text(instruction)
        suffix = f"->[{instruction.memory_displacement:#x}]{suffix}"
        register = full_register(instruction.memory_base)
    return partial()


_READS_ONLY = frozenset({Mnemonic.CMP, Mnemonic.TEST, Mnemonic.PUSH, Mnemonic.BT})


def _memory_text(instruction: Instruction) -> str:
    parts: list[str] = [register_name(instruction.memory_base)] if instruction.memory_base != Register.NONE else []
    if instruction.memory_index != Register.NONE:
        parts.append(f"{register_name(instruction.memory_index)}*{instruction.memory_index_scale}")
    displacement = instruction.memory_displacement
    if displacement >= 1 << 63:
        displacement -= 1 << 64
    text = "+".join(parts)
    return f"[{text}{displacement:+#x}]" if displacement else f"[{text}]"


def _listed_sites(module: KernelModule, name: str) -> frozenset[tuple[int | None, int]]:
    section = module.section(name)
    return frozenset(relocation.target for relocation in section.relocations) if section is not None else frozenset()


def _replacements(module: KernelModule) -> list[tuple[int, int, int | None, int]]:
    """``(start, end, section, offset)``: replacement bytes and the place they are patched into.

    The records of ``.altinstructions`` have grown over the years; in all of them the original's and the replacement's
    address are neighbouring 4-byte fields, so the relocations tell the pairs without the record's size.
    """
    table = module.section(".altinstructions")
    replacement = module.section(".altinstr_replacement")
    if table is None or replacement is None:
        return []
    pairs = [
        (second.target[1], first.target)
        for first, second in zip(table.relocations, table.relocations[1:], strict=False)
        if second.offset == first.offset + 4 and second.symbol.section == replacement.index
    ]
    pairs.sort(key=lambda pair: pair[0])
    ends = [start for start, _ in pairs[1:]] + [replacement.size]
    return [(start, end, section, offset) for (start, (section, offset)), end in zip(pairs, ends, strict=True)]
