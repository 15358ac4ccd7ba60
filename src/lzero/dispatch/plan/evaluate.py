"""What any dispatcher costs under a profile by the model: for independent exits, or with replayed prediction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lzero.dispatch.plan.model import CostModel
from lzero.dispatch.plan.predictor import ReplayPath, replay, target_misprediction_rate
from lzero.dispatch.profiles.profile import Profile
from lzero.dispatch.tree import (
    Condition,
    ConditionName,
    Conditions,
    Eq,
    IndirectTable,
    Leaf,
    Less,
    Node,
    OutOfLine,
    Patch,
    Range,
    Slot,
    Switch,
    Unexpected,
    holds,
)

__all__ = ["NESTED_ON", "Expected", "expected_cost", "lowered", "replayed_cost"]

NESTED_ON: Conditions = frozenset({ConditionName.NESTED})
"""The conditions under which plans are costed: VMX is offered, and the entry did not fail."""

CALL_PRICE_IN_COMPARISONS = 2.0
"""A call into another module that parses the reason again: call and return, on top of the tests it makes."""


@dataclass(frozen=True)
class Expected:
    """Expected cost per exit.

    Attributes
    ----------
    ticks:
        Total under the model.
    comparisons, taken, mispredictions, table_calls:
        Number of each per exit.
    """

    ticks: float
    comparisons: float
    taken: float
    mispredictions: float
    table_calls: float


@dataclass
class _Sums:
    comparisons: float = 0.0
    taken: float = 0.0
    mispredictions: float = 0.0
    table_calls: float = 0.0
    extra: float = 0.0

    def total(self, model: CostModel) -> Expected:
        ticks = self.comparisons * model.comparison + self.taken * model.taken + self.extra
        ticks += self.mispredictions * model.misprediction + self.table_calls * model.indirect
        return Expected(ticks, self.comparisons, self.taken, self.mispredictions, self.table_calls)


def lowered(root: Node) -> Node:
    """The tree with each ``switch`` as the balanced tests a compiler without jump tables and profile would make of it.

    Compilers differ; so what is computed for a switch is an estimate, and only measurement decides.
    """
    return _lowered(root, {})


def _lowered(node: Node, functions: dict[str, OutOfLine]) -> Node:
    match node:
        case Switch():
            cases = sorted(node.cases, key=lambda case: case.first)
            tests = [(case.first, case.last, _lowered(case.then, functions)) for case in cases]
            return _balanced(tests, _lowered(node.default, functions))
        case Eq():
            return Eq(node.reason, _lowered(node.then, functions), _lowered(node.otherwise, functions))
        case Less():
            return Less(node.bound, _lowered(node.then, functions), _lowered(node.otherwise, functions))
        case Range():
            then, otherwise = _lowered(node.then, functions), _lowered(node.otherwise, functions)
            return Range(node.first, node.last, then, otherwise)
        case Condition():
            return Condition(node.test, _lowered(node.then, functions), _lowered(node.otherwise, functions))
        case OutOfLine():
            return _lowered_function(node, functions)
        case IndirectTable():
            slots = tuple(_lowered_slot(slot, functions) for slot in node.slots)
            patches = tuple(
                Patch(patch.condition, tuple(_lowered_slot(slot, functions) for slot in patch.slots))
                for patch in node.patches
            )
            return IndirectTable(slots, patches, node.const)
        case Leaf() | Unexpected():
            return node


def _lowered_function(node: OutOfLine, functions: dict[str, OutOfLine]) -> OutOfLine:
    """One object per function, however often it is called: its branches are the same branches to a predictor."""
    if node.function not in functions:
        functions[node.function] = OutOfLine(node.function, _lowered(node.body, functions))
    return functions[node.function]


def _lowered_slot(slot: Slot, functions: dict[str, OutOfLine]) -> Slot:
    if isinstance(slot.target, OutOfLine):
        return Slot(slot.reason, _lowered_function(slot.target, functions))
    return slot


def _balanced(cases: list[tuple[int, int, Node]], default: Node) -> Node:
    if not cases:
        return default
    if len(cases) == 1:
        first, last, then = cases[0]
        return Eq(first, then, default) if first == last else Range(first, last, then, default)
    middle = len(cases) // 2
    return Less(cases[middle][0], _balanced(cases[:middle], default), _balanced(cases[middle:], default))


def _is_taken(node: Eq | Less | Range, held: bool) -> bool:
    """Which way jumps: emitted code falls through past an equality that fails and into the lower half of a split."""
    return not held if isinstance(node, Less) else held


def expected_cost(root: Node, frequencies: Mapping[int, float], model: CostModel) -> Expected:
    """Cost per exit for independent exits, mispredicted as `CostModel.mispredicted` says."""
    sums = _Sums()
    _visit(lowered(root), dict(frequencies), model, sums)
    return sums.total(model)


def _visit(node: Node, shares: dict[int, float], model: CostModel, sums: _Sums) -> None:
    weight = sum(shares.values())
    if not shares:
        return
    match node:
        case Leaf() | Unexpected():
            return
        case IndirectTable():
            sums.table_calls += weight
            if weight:
                squares = sum(share**2 for share in shares.values())
                sums.extra += model.indirect_misprediction * (weight - squares / weight)
            targets = node.contents(NESTED_ON)
            for function in {target for target in targets.values() if isinstance(target, OutOfLine)}:
                inside = {reason: share for reason, share in shares.items() if targets.get(reason) == function}
                _visit(function.body, inside, model, sums)
        case OutOfLine():
            sums.extra += CALL_PRICE_IN_COMPARISONS * model.comparison * weight
            _visit(node.body, shares, model, sums)
        case Condition():
            sums.comparisons += weight
            _visit(node.then if node.test in NESTED_ON else node.otherwise, shares, model, sums)
        case Eq() | Less() | Range():
            yes = {reason: share for reason, share in shares.items() if holds(node, reason, NESTED_ON)}
            no = {reason: share for reason, share in shares.items() if reason not in yes}
            hit, miss = sum(yes.values()), sum(no.values())
            sums.comparisons += weight
            sums.mispredictions += float(model.mispredicted(np.array(hit), np.array(miss)))
            sums.taken += hit if _is_taken(node, True) else miss
            if isinstance(node, Range):
                sums.extra += model.range_extra * weight
            _visit(node.then, yes, model, sums)
            _visit(node.otherwise, no, model, sums)
        case Switch():
            raise AssertionError("switches are lowered before costing")


def replayed_cost(
    root: Node, profile: Profile, model: CostModel, predictor: str = "tage", limit: int = 32768
) -> Expected:
    """Cost per exit with mispredictions counted by replaying up to ``limit`` exits through a predictor model.

    The first quarter of the replay trains the predictor and is not counted.
    """
    tree = lowered(root)
    order = profile.excerpt(limit)
    sums = _Sums()
    paths: dict[int, ReplayPath] = {}
    branch_numbers: dict[int, int] = {}
    for reason, share in profile.frequencies().items():
        branches = _walk_path(tree, reason, share, model, sums, branch_numbers)
        paths[reason] = ReplayPath(tuple(branches), reason)
    rates = replay(paths, order, predictor)
    sums.mispredictions = rates.conditional
    if model.indirect_misprediction and sums.table_calls:
        sums.extra += model.indirect_misprediction * target_misprediction_rate(order) * sums.table_calls
    return sums.total(model)


def _walk_path(
    tree: Node, reason: int, share: float, model: CostModel, sums: _Sums, numbers: dict[int, int]
) -> list[tuple[int, bool]]:
    """Branches (number, outcome) on the way of one reason; adds their static cost."""
    branches: list[tuple[int, bool]] = []
    node = tree
    while True:
        match node:
            case Leaf() | Unexpected() | Switch():
                return branches
            case IndirectTable():
                sums.table_calls += share
                target = node.contents(NESTED_ON).get(reason)
                node = target if isinstance(target, OutOfLine) else Unexpected()
            case OutOfLine():
                sums.extra += CALL_PRICE_IN_COMPARISONS * model.comparison * share
                node = node.body
            case Condition():
                sums.comparisons += share
                node = node.then if node.test in NESTED_ON else node.otherwise
            case Eq() | Less() | Range():
                held = holds(node, reason, NESTED_ON)
                taken = _is_taken(node, held)
                sums.comparisons += share
                sums.taken += share * taken
                sums.extra += model.range_extra * share * isinstance(node, Range)
                # Nodes are equal by value; two of them are two branches, told apart by identity.
                branches.append((numbers.setdefault(id(node), len(numbers)), taken))
                node = node.then if held else node.otherwise
