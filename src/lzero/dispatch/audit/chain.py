"""Recover, from machine code, the tests on the exit reason that come before the handler table is used.

The table's indexed load is the anchor. From there the code is walked back along straight-line predecessors to the
bound check (the range test against the table's size), and forward to the indirect branch; every comparison of the
exit reason with a constant on that way, followed by a conditional branch, is one test. What does not fit (bit tests,
reasons computed in a way that is not followed, no load at all) is said so in :attr:`DispatchShape.unknown`, never
guessed.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from iced_x86 import ConditionCode, FlowControl, Instruction, Mnemonic, OpKind, Register

from lzero.dispatch.audit.code import Code, SectionCode, full_register, register_name
from lzero.dispatch.audit.module import Symbol
from lzero.dispatch.audit.table import HandlerTable

__all__ = ["DispatchShape", "ReasonTest", "Shape", "recover_dispatch"]

_WALK_LIMIT = 400
_ACTION_LIMIT = 24


class Shape(enum.StrEnum):
    """What the code in front of the table looks like."""

    CHAIN = "chain of equality tests, then the table"
    TABLE_ONLY = "the table alone"
    TREE = "comparison tree, then the table"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class ReasonTest:
    """One test of the exit reason."""

    offset: int
    relation: str
    """``==``, or ``<``, ``<=``, ``>``, ``>=`` for the branch that leaves the way to the table."""
    reason: int
    leads_to: str
    """First function that the taken branch calls or jumps to, or ``inline code``."""


@dataclass(frozen=True, slots=True)
class DispatchShape:
    """How one function dispatches exits."""

    function: str | None
    shape: Shape
    tests: tuple[ReasonTest, ...] = ()
    """In the order in which they run."""
    bound: int | None = None
    """Largest reason that may index the table."""
    speculation_clamp: bool = False
    """The index is masked against a mispredicted bound check (``cmp; sbb; and``)."""
    null_check: bool = False
    """An empty slot is tested for."""
    branch_offset: int | None = None
    """Offset of the indirect branch through the table."""
    unknown: tuple[str, ...] = field(default=())
    """What was met that is not understood, with its offset."""

    @property
    def direct_reasons(self) -> frozenset[int]:
        """Reasons that reach their handler without the table."""
        return frozenset(test.reason for test in self.tests if test.relation == "==")


def recover_dispatch(code: Code, table: HandlerTable | None) -> DispatchShape:
    """Recover the dispatch in front of ``table``; :attr:`Shape.UNKNOWN` with the reason when it cannot be."""
    if table is None:
        return DispatchShape(None, Shape.UNKNOWN, unknown=("the module defines no known handler table",))
    loads = _table_loads(code, table)
    if not loads:
        return DispatchShape(None, Shape.UNKNOWN, unknown=(f"no instruction loads from {table.symbol} by index",))
    if len(loads) > 1:
        places = ", ".join(
            f"{function.name}+{part.instructions[at].ip - function.offset:#x}" for part, function, at in loads
        )
        return DispatchShape(None, Shape.UNKNOWN, unknown=(f"{table.symbol} is indexed in several places: {places}",))
    return _Recovery(code, *loads[0]).recover()


def _table_loads(code: Code, table: HandlerTable) -> list[tuple[SectionCode, Symbol, int]]:
    found: list[tuple[SectionCode, Symbol, int]] = []
    for part in code.sections():
        for position, instruction in enumerate(part.instructions):
            if instruction.memory_index == Register.NONE or instruction.memory_index_scale != 8:
                continue
            relocation = part.relocation(instruction)
            if relocation is None or not table.holds(*code.target(part, instruction, relocation)):
                continue
            function = code.module.function_at(part.section.index, instruction.ip)
            if function is not None:
                found.append((part, function, position))
    return found


class _Recovery:
    """Walks one function around its table load."""

    def __init__(self, code: Code, part: SectionCode, function: Symbol, load: int) -> None:
        self.code = code
        self.part = part
        self.function = function
        self.load = load
        self.reason_registers: set[int] = {full_register(part.instructions[load].memory_index)}
        self.bound: int | None = None
        self.clamp = False
        self.unknown: list[str] = []

    def recover(self) -> DispatchShape:
        before = self._walk_back()
        after, null_check, branch = self._walk_forward()
        tests = [*reversed(before), *after]
        if branch is None:
            self.unknown.append("the loaded handler is not branched to on the straight way after the load")
        return DispatchShape(
            function=self.function.name,
            shape=self._shape(tests),
            tests=tuple(tests),
            bound=self.bound,
            speculation_clamp=self.clamp,
            null_check=null_check,
            branch_offset=branch,
            unknown=tuple(self.unknown),
        )

    def _shape(self, tests: list[ReasonTest]) -> Shape:
        if self.unknown:
            return Shape.UNKNOWN
        if not tests:
            return Shape.TABLE_ONLY
        return Shape.CHAIN if all(test.relation == "==" for test in tests) else Shape.TREE

    def _where(self, instruction: Instruction) -> str:
        return f"{self.function.name}+{instruction.ip - self.function.offset:#x}"

    def _predecessor(self, position: int) -> tuple[int, bool] | None:
        """``(position, by_jump)`` of the instruction that control comes from, the fall-through first; None at a join
        or the entry.
        """
        instruction = self.part.instructions[position]
        entered = self.part.entered_from.get(instruction.ip, [])
        falls_through = (
            position > 0
            and instruction.ip > self.function.offset
            and self.part.instructions[position - 1].flow_control in (FlowControl.NEXT, FlowControl.CONDITIONAL_BRANCH)
        )
        if falls_through:
            return position - 1, False
        if len(entered) == 1 and entered[0] in self.part.index_of:
            return self.part.index_of[entered[0]], True
        return None

    def _walk_back(self) -> list[ReasonTest]:
        """Tests from the load back to the bound check, last one first."""
        tests: list[ReasonTest] = []
        position = self.load
        branch: tuple[Instruction, bool] | None = None
        for _ in range(_WALK_LIMIT):
            step = self._predecessor(position)
            if step is None:
                self._stop(position, "control comes from several places")
                return tests
            position, jumped = step
            instruction = self.part.instructions[position]
            if instruction.flow_control == FlowControl.CONDITIONAL_BRANCH:
                if branch is not None:
                    self._stop(position, "two branches on one comparison")
                    return tests
                branch = (instruction, jumped)
            elif instruction.flow_control == FlowControl.UNCONDITIONAL_BRANCH and jumped:
                continue
            elif branch is not None and instruction.mnemonic in (Mnemonic.CMP, Mnemonic.TEST):
                if not self._compares_reason(instruction):
                    self._check_bound(instruction)
                    return tests
                test = self._test(instruction, *branch)
                if test is None:
                    return tests
                tests.append(test)
                branch = None
            elif branch is not None and _sets_flags(instruction):
                self._check_bound(instruction)
                return tests
            elif not self._follow(instruction):
                self._check_bound(instruction)
                return tests
        self._stop(position, f"no bound check within {_WALK_LIMIT} instructions")
        return tests

    def _check_bound(self, instruction: Instruction) -> None:
        if self.bound is None:
            self.unknown.append(f"no bound check before {self._where(instruction)} ({_text(instruction)})")

    def _stop(self, position: int, why: str) -> None:
        if self.bound is None:
            self.unknown.append(f"{why} at {self._where(self.part.instructions[position])}")

    def _compares_reason(self, instruction: Instruction) -> bool:
        if instruction.op0_kind != OpKind.REGISTER:
            return False
        register = full_register(instruction.op0_register)
        if register not in self.reason_registers:
            return False
        if instruction.mnemonic == Mnemonic.TEST:
            return _is_register(instruction, register)
        return instruction.op1_kind in _IMMEDIATES

    def _test(self, compare: Instruction, branch: Instruction, jumped: bool) -> ReasonTest | None:
        """The test that a compare and its branch make; None when it is the bound check (kept apart) or not
        understood.
        """
        value = _compared_with(compare)
        condition = branch.condition_code
        relation = _RELATIONS.get(condition)
        if relation is None:
            self.unknown.append(f"branch {_text(branch)} on the exit reason at {self._where(branch)}")
            return None
        if jumped:
            relation = _INVERSE[relation]
        leaves_at = branch.next_ip if jumped else branch.near_branch_target
        if relation in (">", ">=") and self.bound is None and self._is_bound(value, relation):
            self.bound = value if relation == ">" else value - 1
            return None
        if relation == "!=":
            self.unknown.append(f"only reason {value:#x} reaches the table past {self._where(branch)}")
            return None
        return ReasonTest(compare.ip, relation, value, self._action(leaves_at))

    def _is_bound(self, value: int, relation: str) -> bool:
        """A branch away for everything above a value is the bound check when the clamp, or the table's size, agrees."""
        limit = value if relation == ">" else value - 1
        return limit >= self._table_slots() - 1

    def _table_slots(self) -> int:
        relocation = self.part.relocation(self.part.instructions[self.load])
        if relocation is None:
            return 1 << 16
        section, offset = self.code.target(self.part, self.part.instructions[self.load], relocation)
        symbol = next(
            (s for s in self.code.module.symbols if s.section == section and s.offset == offset and s.size), None
        )
        return symbol.size // 8 if symbol is not None else 1 << 16

    def _follow(self, instruction: Instruction) -> bool:
        """Keep track of the registers that hold the reason; False for an instruction that cannot belong to the
        tests.
        """
        mnemonic = instruction.mnemonic
        if mnemonic in _HARMLESS:
            return True
        if (
            instruction.flow_control != FlowControl.NEXT
            or instruction.op_count == 0
            or instruction.op0_kind != OpKind.REGISTER
        ):
            return False
        target = full_register(instruction.op0_register)
        if mnemonic == Mnemonic.SBB:
            # cmp; sbb r,r; and: the mask of array_index_nospec.
            self.clamp = True
            return True
        if mnemonic == Mnemonic.CMP:
            return self._compares_reason(instruction)
        if target not in self.reason_registers:
            return mnemonic in (Mnemonic.MOV, Mnemonic.MOVZX, Mnemonic.XOR, Mnemonic.LEA)
        if mnemonic in (Mnemonic.MOV, Mnemonic.MOVZX, Mnemonic.MOVSXD, Mnemonic.AND):
            if instruction.op1_kind == OpKind.REGISTER:
                self.reason_registers.add(full_register(instruction.op1_register))
                return True
        return False

    def _walk_forward(self) -> tuple[list[ReasonTest], bool, int | None]:
        """Tests between the load and the indirect branch, whether the slot is tested for NULL, and the branch's
        offset.
        """
        load = self.part.instructions[self.load]
        if load.op0_kind != OpKind.REGISTER:
            # The branch itself reads the table: call *table(,%rax,8).
            return [], False, load.ip if load.flow_control in _INDIRECT else None
        handler = full_register(load.op0_register)
        tests: list[ReasonTest] = []
        null_check = False
        pending: Instruction | None = None
        position = self.load
        for _ in range(_WALK_LIMIT):
            position += 1
            if position >= len(self.part.instructions):
                break
            instruction = self.part.instructions[position]
            flow = instruction.flow_control
            if flow == FlowControl.CONDITIONAL_BRANCH:
                if pending is not None and not self._forward_test(pending, instruction, tests):
                    break
                pending = None
            elif flow in (FlowControl.CALL, FlowControl.UNCONDITIONAL_BRANCH):
                relocation = self.part.relocation(instruction)
                expected = f"thunk_{register_name(handler)}"
                if relocation is not None and relocation.symbol.name.endswith(expected):
                    return tests, null_check, instruction.ip
                if relocation is not None or flow == FlowControl.CALL:
                    break
                following = self.part.index_of.get(instruction.near_branch_target)
                if following is None:
                    break
                position = following - 1
            elif flow in _INDIRECT:
                if instruction.op0_kind == OpKind.REGISTER and full_register(instruction.op0_register) == handler:
                    return tests, null_check, instruction.ip
                break
            elif flow != FlowControl.NEXT:
                break
            elif instruction.mnemonic == Mnemonic.TEST and _is_register(instruction, handler):
                null_check = True
                pending = None
            elif instruction.mnemonic in (Mnemonic.CMP, Mnemonic.TEST):
                if not self._compares_reason(instruction):
                    self.unknown.append(
                        f"{_text(instruction)} at {self._where(instruction)}, between the load and the branch"
                    )
                    break
                pending = instruction
            elif instruction.mnemonic == Mnemonic.BT:
                self.unknown.append(
                    f"{_text(instruction)} at {self._where(instruction)}, between the load and the branch"
                )
                break
        return tests, null_check, None

    def _forward_test(self, compare: Instruction, branch: Instruction, tests: list[ReasonTest]) -> bool:
        relation = _RELATIONS.get(branch.condition_code)
        if relation is None or relation == "!=":
            self.unknown.append(f"branch {_text(branch)} on the exit reason at {self._where(branch)}")
            return False
        value = _compared_with(compare)
        tests.append(ReasonTest(compare.ip, relation, value, self._action(branch.near_branch_target)))
        return True

    def _action(self, offset: int) -> str:
        """The first function that the code at ``offset`` calls or jumps to, if it is near."""
        position = self.part.index_of.get(offset)
        for _ in range(_ACTION_LIMIT):
            if position is None or position >= len(self.part.instructions):
                break
            instruction = self.part.instructions[position]
            position += 1
            if instruction.flow_control in (FlowControl.CALL, FlowControl.UNCONDITIONAL_BRANCH):
                name, inside = self._callee(instruction)
                if inside is not None:
                    position = self.part.index_of.get(inside)
                    continue
                return "inline code" if name is None or name == "__x86_return_thunk" else name
            if instruction.flow_control != FlowControl.NEXT:
                break
        return "inline code"

    def _callee(self, instruction: Instruction) -> tuple[str | None, int | None]:
        """Name of the function gone to, or the offset when it stays inside this one."""
        relocation = self.part.relocation(instruction)
        if relocation is not None:
            section, offset = self.code.target(self.part, instruction, relocation)
            return self.code.module.describe_address(section, offset, relocation.symbol.name), None
        target = instruction.near_branch_target
        function = self.code.module.function_at(self.part.section.index, target)
        if function is not None and function == self.function:
            return None, target
        return (function.name if function is not None else None), None


_INDIRECT = frozenset({FlowControl.INDIRECT_CALL, FlowControl.INDIRECT_BRANCH})
_IMMEDIATES = frozenset(
    {OpKind.IMMEDIATE8, OpKind.IMMEDIATE8TO16, OpKind.IMMEDIATE8TO32, OpKind.IMMEDIATE8TO64, OpKind.IMMEDIATE16}
    | {OpKind.IMMEDIATE32, OpKind.IMMEDIATE32TO64}
)
_RELATIONS = {
    ConditionCode.E: "==",
    ConditionCode.NE: "!=",
    ConditionCode.A: ">",
    ConditionCode.AE: ">=",
    ConditionCode.B: "<",
    ConditionCode.BE: "<=",
    ConditionCode.G: ">",
    ConditionCode.GE: ">=",
    ConditionCode.L: "<",
    ConditionCode.LE: "<=",
}
_INVERSE = {"==": "!=", "!=": "==", ">": "<=", ">=": "<", "<": ">=", "<=": ">"}
_HARMLESS = frozenset({Mnemonic.NOP, Mnemonic.LFENCE, Mnemonic.ENDBR64, Mnemonic.POP, Mnemonic.PUSH})
_FLAGS_KEPT = frozenset(
    {Mnemonic.MOV, Mnemonic.MOVZX, Mnemonic.MOVSXD, Mnemonic.LEA, Mnemonic.NOP, Mnemonic.POP, Mnemonic.PUSH}
)


def _sets_flags(instruction: Instruction) -> bool:
    return instruction.mnemonic not in _FLAGS_KEPT


def _is_register(instruction: Instruction, register: int) -> bool:
    return (
        instruction.op0_kind == OpKind.REGISTER
        and instruction.op1_kind == OpKind.REGISTER
        and full_register(instruction.op0_register) == register
        and full_register(instruction.op1_register) == register
    )


def _compared_with(compare: Instruction) -> int:
    """The constant of ``cmp reg, imm``; ``test reg, reg`` compares with 0."""
    return 0 if compare.mnemonic == Mnemonic.TEST else compare.immediate(1) & 0xFFFF_FFFF


def _text(instruction: Instruction) -> str:
    return f"{instruction}"
