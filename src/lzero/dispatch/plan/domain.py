"""The planner's view of all 65,536 reasons: a row of *atoms*, each a reason or a run of reasons nobody needs to split.

An atom is one reason that occurs in the profile, or a maximal run of adjacent reasons that do not occur and share an
outcome.  Splitting such a run could only add tests, so no plan is lost.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lzero.dispatch.handlers import HANDLERS
from lzero.dispatch.tree import Condition, ConditionName, Leaf, Node, OutOfLine, Unexpected
from lzero.errors import PlanError

__all__ = ["Atom", "Domain", "build_domain", "kvm_outcomes"]

LAST_REASON = 0xFFFF


@dataclass(frozen=True)
class Atom:
    """Reasons ``first``..``last``, both included, which share an outcome."""

    first: int
    last: int
    outcome: int
    weight: float


@dataclass(frozen=True)
class Domain:
    """All reasons as atoms in ascending order, with the outcomes they index."""

    atoms: tuple[Atom, ...]
    outcomes: tuple[Node, ...]

    @property
    def weights(self) -> npt.NDArray[np.float64]:
        """Share of exits per atom."""
        return np.array([atom.weight for atom in self.atoms])

    @property
    def outcome_weights(self) -> dict[int, float]:
        """Share of exits per outcome."""
        shares: dict[int, float] = {}
        for atom in self.atoms:
            shares[atom.outcome] = shares.get(atom.outcome, 0.0) + atom.weight
        return shares


def kvm_outcomes(frequencies: Mapping[int, float], nested_module: OutOfLine | None) -> Callable[[int], Node]:
    """What KVM does with each reason, as a leaf of the tree.

    A VMX instruction that occurs in the profile gets its own leaf, decided by whether VMX is offered.  One that
    does not occur goes to ``nested_module``, one function which reads the reason again, so that the rare ones
    merge into a range; with None each has its own leaf.
    """

    def outcome(reason: int) -> Node:
        row = HANDLERS.get(reason)
        if row is None:
            return Unexpected()
        if row.nested_handler is None:
            return Leaf(row.handler)
        if nested_module is not None and not frequencies.get(reason):
            return nested_module
        return Condition(ConditionName.NESTED, Leaf(row.nested_handler), Leaf(row.handler))

    return outcome


def build_domain(name: str, frequencies: Mapping[int, float], outcome_of: Callable[[int], Node]) -> Domain:
    """Cut 0..65535 into atoms.

    Raises
    ------
    PlanError
        When the profile called ``name`` holds reasons whose outcome is an unexpected exit: such an exit ends the
        virtual machine, so no working profile has one.
    """
    strays = [reason for reason, share in frequencies.items() if share and isinstance(outcome_of(reason), Unexpected)]
    if strays:
        listed = ", ".join(str(reason) for reason in strays[:8])
        raise PlanError(
            f"profile {name}: no handler for exit reason {listed}{', …' if len(strays) > 8 else ''}; "
            "remove these rows, or add the handler to lzero.dispatch.handlers"
        )
    outcomes: list[Node] = []
    index: dict[Node, int] = {}
    atoms: list[Atom] = []
    interesting = max((*HANDLERS, *frequencies)) + 1
    for reason in range(interesting + 1):
        node = outcome_of(reason) if reason < interesting else Unexpected()
        number = index.setdefault(node, len(index))
        if number == len(outcomes):
            outcomes.append(node)
        weight = frequencies.get(reason, 0.0)
        last = reason if reason < interesting else LAST_REASON
        before = atoms[-1] if atoms else None
        if before is not None and not weight and not before.weight and before.outcome == number:
            atoms[-1] = Atom(before.first, last, number, 0.0)
        else:
            atoms.append(Atom(reason, last, number, weight))
    return Domain(tuple(atoms), tuple(outcomes))
