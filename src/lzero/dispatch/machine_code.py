"""The decision tree recovered from compiled code: which tests are made, in what order, and what is reached.

The walker runs the function for all 65,536 reasons at once: a register holds an array with its value for each reason,
a conditional branch splits the set of reasons that got there. What comes out is a tree of splits that ends in calls,
to be compared with the tree the C was made from. Nothing is guessed: an instruction outside the small set that
compilers use in a dispatcher ends the walk with :class:`UnknownShape`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from lzero.dispatch.object_code import RETURN_THUNK, THUNK_PREFIX, Function, Line, ObjectCode
from lzero.dispatch.tree import REASON_COUNT, ConditionName, Conditions

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Mask: TypeAlias = npt.NDArray[np.bool_]
    Values: TypeAlias = npt.NDArray[np.uint64]

__all__ = [
    "End",
    "IndirectBranch",
    "Recovered",
    "Split",
    "TABLE",
    "UnknownShape",
    "indirect_branches",
    "recover",
    "trace",
]

TABLE = "<table>"
"""What a path ends in when it loads a function pointer from an array."""

MAX_STEPS = 100_000
"""Instructions after which a walk is given up; a dispatcher has a few hundred per path and no loops."""

UNEXPECTED_SYMBOLS = frozenset({"handle_unexpected_exit", "vmx_handle_unexpected_exit"})


class UnknownShape(Exception):
    """The code does something the walker does not model; says what and where."""


@dataclass(frozen=True, slots=True)
class End:
    """A path ends in a call: of a handler, a further function, :data:`TABLE`, or ``None`` for an unexpected exit."""

    target: str | None


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """A conditional branch that separates the reasons reaching it."""

    taken: Mask
    fallen: Mask
    if_taken: Recovered
    if_fallen: Recovered
    line: str


Recovered: TypeAlias = End | Split


@dataclass(frozen=True, slots=True)
class IndirectBranch:
    """An indirect jump or call, plain or through a retpoline thunk."""

    function: str
    offset: int
    text: str
    thunk: bool


def indirect_branches(code: ObjectCode, name: str) -> Iterator[IndirectBranch]:
    """Every indirect branch in a function, in the order of addresses."""
    function = code.function(name)
    for line in code.lines(function):
        if line.is_indirect:
            yield IndirectBranch(name, line.offset - function.offset, line.text, line.is_thunk)


class _Vcpu:
    """The value of a register that holds the VCPU's address."""


class _Slot:
    """The value of a register that holds what was loaded from a table."""


_VCPU, _SLOT = _Vcpu(), _Slot()


@dataclass(slots=True)
class _State:
    """Registers and flags for every reason; ``left``/``right`` of the last comparison stand for the flags."""

    registers: dict[int, Any]
    mask: Mask
    low_bytes: dict[int, int] = field(default_factory=dict)
    """How many low bytes are known, for registers last written by an 8- or 16-bit instruction."""
    left: Any = None
    right: Any = None
    width: int = 32
    carry: Any = None

    def fork(self, mask: Mask) -> _State:
        return replace(self, registers=dict(self.registers), low_bytes=dict(self.low_bytes), mask=mask)


@dataclass
class _Walker:
    code: ObjectCode
    conditions: Conditions
    visited: list[Line] = field(default_factory=list)

    def value_of_reason(self) -> Values:
        import numpy as np

        return np.arange(REASON_COUNT, dtype=np.uint64)

    def exit_reason_field(self) -> Values:
        import numpy as np

        failed = np.uint64(1 << 31 if ConditionName.FAILED_ENTRY in self.conditions else 0)
        return self.value_of_reason() | failed

    # -- control flow -------------------------------------------------------------------------------------------

    def walk(self, function: Function, offset: int, state: _State) -> Recovered:
        from iced_x86 import FlowControl

        while True:
            if len(self.visited) > MAX_STEPS:
                raise UnknownShape(f"{function.name} does not end")
            if not function.offset <= offset < function.offset + function.size:
                raise UnknownShape(f"{function.name} continues outside itself at {offset:#x}")
            line = self.code.line_at(function.section, offset)
            self.visited.append(line)
            instruction = line.instruction
            following = offset + instruction.len
            match instruction.flow_control:
                case FlowControl.NEXT:
                    self.execute(line, state)
                    offset = following
                case FlowControl.CONDITIONAL_BRANCH:
                    if state.left is _SLOT:
                        return End(TABLE)  # the check for an empty slot belongs to the table
                    condition = self.condition(line, state)
                    taken, fallen = state.mask & condition, state.mask & ~condition
                    if not fallen.any() and line.symbol is not None:
                        return self.end(line.symbol)
                    if not fallen.any():
                        offset = instruction.near_branch_target
                    elif not taken.any():
                        offset = following
                    else:
                        if line.symbol is not None:
                            if_taken: Recovered = self.end(line.symbol)
                        else:
                            if_taken = self.walk(function, instruction.near_branch_target, state.fork(taken))
                        if_fallen = self.walk(function, following, state.fork(fallen))
                        return Split(taken, fallen, if_taken, if_fallen, line.text)
                case FlowControl.UNCONDITIONAL_BRANCH if line.symbol is None:
                    target = instruction.near_branch_target
                    local = self.function_at(function.section, target)
                    if local is not None and local != function.name:
                        return self.end(local)
                    offset = target
                case FlowControl.UNCONDITIONAL_BRANCH | FlowControl.CALL:
                    return self.end(line.symbol or self.function_at(function.section, instruction.near_branch_target))
                case FlowControl.INDIRECT_BRANCH | FlowControl.INDIRECT_CALL:
                    return End(TABLE)
                case _:
                    raise UnknownShape(f"{function.name}+{offset - function.offset:#x}: {line.text}")

    def function_at(self, section: int, offset: int) -> str | None:
        found = [f.name for f in self.code.functions.values() if f.section == section and f.offset == offset]
        return found[0] if found else None

    def end(self, symbol: str | None) -> End:
        if symbol is None or symbol == RETURN_THUNK:
            raise UnknownShape("a path returns without having called a handler")
        if symbol.startswith(THUNK_PREFIX):
            return End(TABLE)
        return End(None if symbol in UNEXPECTED_SYMBOLS else symbol)

    # -- values -------------------------------------------------------------------------------------------------

    def operand(self, line: Line, index: int, state: _State) -> Any:
        """Value of an operand, zero-extended to 64 bits; ``None`` where unknown."""
        import numpy as np
        from iced_x86 import OpKind, RegisterExt

        instruction = line.instruction
        kind = instruction.op_kind(index)
        if kind == OpKind.REGISTER:
            register = instruction.op_register(index)
            full, size = RegisterExt.full_register(register), RegisterExt.size(register)
            value: Any = state.registers.get(full)
            if _is_high_byte(register) or size > state.low_bytes.get(full, 8):
                return None
            if not _known(value) or size == 8:
                return value
            return value & np.uint64((1 << 8 * size) - 1)
        if kind == OpKind.MEMORY:
            return self.memory(line, state)
        if line.symbol is not None and instruction.op_kind(0) != OpKind.MEMORY:
            return _SLOT  # the address of a function: a table entry that the compiler already knows
        width = self.width(line)
        return np.full(REASON_COUNT, instruction.immediate(index) & ((1 << width) - 1), dtype=np.uint64)

    def memory(self, line: Line, state: _State) -> Any:
        import numpy as np
        from iced_x86 import MemorySizeExt, Register, RegisterExt

        instruction = line.instruction
        size = MemorySizeExt.size(instruction.memory_size)
        if line.symbol is not None:
            if line.symbol == "nested":
                return np.full(REASON_COUNT, int(ConditionName.NESTED in self.conditions), dtype=np.uint64)
            return _SLOT
        base = state.registers.get(RegisterExt.full_register(instruction.memory_base))
        displacement = instruction.memory_displacement
        if base is _VCPU and instruction.memory_index == Register.NONE and displacement + size <= 4:
            return (self.exit_reason_field() >> np.uint64(8 * displacement)) & np.uint64((1 << 8 * size) - 1)
        if isinstance(base, _Slot) or instruction.memory_index != Register.NONE:
            return _SLOT
        return None

    def width(self, line: Line) -> int:
        """Operand size in bits of the first operand."""
        from iced_x86 import MemorySizeExt, OpKind, RegisterExt

        if line.instruction.op_kind(0) == OpKind.REGISTER:
            return 8 * int(RegisterExt.size(line.instruction.op_register(0)))
        return 8 * int(MemorySizeExt.size(line.instruction.memory_size))

    def store(self, line: Line, value: Any, state: _State) -> None:
        """Write the first operand; a 32-bit write clears the upper half (SDM volume 1, section 3.4.1.1)."""
        import numpy as np
        from iced_x86 import OpKind, Register, RegisterExt

        if line.instruction.op_kind(0) != OpKind.REGISTER:
            if line.instruction.memory_base == Register.RSP:
                return  # a spill; should it be read back and matter, the value is unknown and the walk ends
            raise UnknownShape(f"a dispatcher that writes memory: {line.text}")
        register = line.instruction.op_register(0)
        full, size = RegisterExt.full_register(register), RegisterExt.size(register)
        state.low_bytes.pop(full, None)
        if not _known(value) or _is_high_byte(register):
            state.registers[full] = value if size >= 4 else None
            return
        # A narrow write keeps the bits above, which are not tracked: the register is known in its low bytes only.
        if size < 4:
            state.low_bytes[full] = size
        state.registers[full] = value & np.uint64((1 << 8 * size) - 1)

    # -- instructions -------------------------------------------------------------------------------------------

    def execute(self, line: Line, state: _State) -> None:
        """Run one instruction that does not branch."""
        from iced_x86 import Mnemonic, Register, RegisterExt

        m = line.instruction.mnemonic
        if m in (Mnemonic.NOP, Mnemonic.ENDBR64, Mnemonic.INT3, Mnemonic.PUSH):
            return
        if m == Mnemonic.POP:
            state.registers[RegisterExt.full_register(line.instruction.op0_register)] = None
            return
        if m in (Mnemonic.MOV, Mnemonic.MOVZX):
            self.store(line, self.operand(line, 1, state), state)
            return
        if m == Mnemonic.LEA:
            self.store(line, self.address(line, state), state)
            return
        if m in (Mnemonic.CMP, Mnemonic.TEST):
            self.compare(line, state, m == Mnemonic.TEST)
            return
        if m == Mnemonic.BT:
            self.bit_test(line, state)
            return
        if line.instruction.op0_register == Register.RSP and m in (Mnemonic.ADD, Mnemonic.SUB):
            return
        self.arithmetic(line, state)

    def address(self, line: Line, state: _State) -> Any:
        import numpy as np
        from iced_x86 import Register, RegisterExt

        instruction = line.instruction
        if line.symbol is not None or instruction.is_ip_rel_memory_operand:
            return _SLOT
        total = np.full(REASON_COUNT, instruction.memory_displacement & ((1 << 64) - 1), dtype=np.uint64)
        for register, scale in (
            (instruction.memory_base, 1),
            (instruction.memory_index, instruction.memory_index_scale),
        ):
            if register == Register.NONE:
                continue
            full = RegisterExt.full_register(register)
            value: Any = state.registers.get(full)
            if not _known(value) or full in state.low_bytes:
                return None
            total = total + value * np.uint64(scale)
        return total

    def compare(self, line: Line, state: _State, test: bool) -> None:
        left, right = self.operand(line, 0, state), self.operand(line, 1, state)
        state.width, state.carry = self.width(line), None
        if left is _SLOT or right is _SLOT:
            state.left, state.right = _SLOT, None
        elif left is None or right is None or isinstance(left, _Vcpu) or isinstance(right, _Vcpu):
            state.left = state.right = None
        elif test:
            state.left, state.right = left & right, left & ~left
        else:
            state.left, state.right = left, right

    def bit_test(self, line: Line, state: _State) -> None:
        import numpy as np

        bits, index = self.operand(line, 0, state), self.operand(line, 1, state)
        if bits is None or index is None:
            raise UnknownShape(f"bit test of an unknown value: {line.text}")
        state.left = state.right = None
        state.carry = (bits >> (index % np.uint64(self.width(line)))) & np.uint64(1) == 1

    def arithmetic(self, line: Line, state: _State) -> None:
        import numpy as np
        from iced_x86 import Mnemonic

        m = line.instruction.mnemonic
        left: Any = self.operand(line, 0, state)
        right: Any = self.operand(line, 1, state) if line.instruction.op_count > 1 else None
        same = m in (Mnemonic.XOR, Mnemonic.SBB) and line.instruction.op0_register == line.instruction.op1_register
        ones = np.full(REASON_COUNT, (1 << 64) - 1, dtype=np.uint64)
        if same and m == Mnemonic.XOR:
            result: Any = ones & ~ones
        elif same:
            result = np.where(self.below(state, line), ones, ones & ~ones)
        elif not _known(left) or not _known(right):
            result = None
        elif m == Mnemonic.ADD:
            result = left + right
        elif m == Mnemonic.SUB:
            result = left - right
        elif m == Mnemonic.AND:
            result = left & right
        elif m == Mnemonic.OR:
            result = left | right
        elif m == Mnemonic.XOR:
            result = left ^ right
        elif m == Mnemonic.SHR:
            result = left >> (right & np.uint64(63 if self.width(line) == 64 else 31))
        elif m in (Mnemonic.SHL, Mnemonic.SAL):
            result = left << (right & np.uint64(63 if self.width(line) == 64 else 31))
        else:
            raise UnknownShape(f"an instruction no dispatcher needs: {line.text}")
        width = self.width(line)
        state.width, state.carry = width, None
        if m == Mnemonic.SUB:
            state.left, state.right = left, right
        elif result is None or m == Mnemonic.ADD:
            state.left = state.right = None
        else:
            state.left, state.right = result & np.uint64((1 << width) - 1), ones & ~ones
        self.store(line, result, state)

    # -- flags --------------------------------------------------------------------------------------------------

    def below(self, state: _State, line: Line) -> Mask:
        """The carry flag."""
        if state.carry is not None:
            carry: Mask = state.carry
            return carry
        left, right = self.compared(state, line)
        below: Mask = left < right
        return below

    def compared(self, state: _State, line: Line) -> tuple[Values, Values]:
        if state.left is None or state.right is None:
            raise UnknownShape(f"a branch on something other than the exit reason: {line.text}")
        return state.left, state.right

    def condition(self, line: Line, state: _State) -> Mask:
        """For which reasons a conditional branch is taken."""
        import numpy as np
        from iced_x86 import ConditionCode as Cc

        code = line.instruction.condition_code
        if code == Cc.B:
            return self.below(state, line)
        if code == Cc.AE:
            return ~self.below(state, line)
        left, right = self.compared(state, line)
        sign = np.uint64(1 << (state.width - 1))
        # Flipping the sign bit turns signed order into unsigned order.
        signed_left, signed_right = left ^ sign, right ^ sign
        results: dict[int, Callable[[], Mask]] = {
            Cc.E: lambda: left == right,
            Cc.NE: lambda: left != right,
            Cc.BE: lambda: left <= right,
            Cc.A: lambda: left > right,
            Cc.L: lambda: signed_left < signed_right,
            Cc.GE: lambda: signed_left >= signed_right,
            Cc.LE: lambda: signed_left <= signed_right,
            Cc.G: lambda: signed_left > signed_right,
            Cc.S: lambda: ((left - right) & sign) != 0,
            Cc.NS: lambda: ((left - right) & sign) == 0,
        }
        if code not in results:
            raise UnknownShape(f"a branch on a flag no dispatcher needs: {line.text}")
        return results[code]()


def _is_high_byte(register: int) -> bool:
    from iced_x86 import Register

    return register in (Register.AH, Register.BH, Register.CH, Register.DH)


def _known(value: Any) -> bool:
    return value is not None and not isinstance(value, _Vcpu | _Slot)


def recover(code: ObjectCode, name: str, conditions: Conditions, *, takes_reason: bool) -> Recovered:
    """Walk a function and return its decisions.

    Parameters
    ----------
    takes_reason:
        The reason is the second argument; otherwise the function reads it from the VCPU.

    Raises
    ------
    UnknownShape
        The code is nothing the walker models.
    """
    import numpy as np

    walker = _Walker(code, conditions)
    everything = np.ones(REASON_COUNT, dtype=np.bool_)
    function = code.function(name)
    return walker.walk(function, function.offset, _start(walker, everything, takes_reason))


def trace(
    code: ObjectCode, name: str, reason: int, conditions: Conditions, *, takes_reason: bool
) -> tuple[list[Line], str | None]:
    """The instructions that one exit reason runs through in a function, and what it then calls.

    ``None`` for what is called means that code begins which is no dispatch: a handler that was inlined.
    """
    import numpy as np

    walker = _Walker(code, conditions)
    only = np.arange(REASON_COUNT) == reason
    function = code.function(name)
    try:
        found = walker.walk(function, function.offset, _start(walker, only, takes_reason))
    except UnknownShape:
        return walker.visited[:-1], None
    return walker.visited, found.target if isinstance(found, End) else None


def _start(walker: _Walker, mask: Mask, takes_reason: bool) -> _State:
    from iced_x86 import Register

    # System V ABI: first argument in RDI, second in RSI.
    registers: dict[int, Any] = {int(Register.RDI): _VCPU}
    if takes_reason:
        registers[int(Register.RSI)] = walker.value_of_reason()
    return _State(registers, mask)
