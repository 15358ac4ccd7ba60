"""The best ``k tests, then the table``: upstream's shape, with the tests and their order chosen by the profile."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from lzero.dispatch.plan.domain import Domain
from lzero.dispatch.plan.model import CostModel
from lzero.dispatch.tree import Eq, Node

__all__ = ["CANDIDATES", "ChainPlan", "best_chain"]

CANDIDATES = 12
"""How many of the heaviest reasons are considered; the program is over their 2**12 subsets."""


@dataclass(frozen=True)
class ChainPlan:
    """A chain of equality tests and what it costs per exit (ticks, independent exits)."""

    tree: Node
    reasons: tuple[int, ...]
    cost: float
    candidates: tuple[int, ...]


@cache
def _sets_by_size(count: int) -> tuple[npt.NDArray[np.int64], ...]:
    sets = np.arange(1 << count)
    sizes = np.bitwise_count(sets)
    return tuple(sets[sizes == size] for size in range(count + 1))


def best_chain(domain: Domain, model: CostModel, table: Node, tests: int) -> ChainPlan:
    """Choose at most ``tests`` equality tests among the `CANDIDATES` heaviest reasons, and their order.

    Exact within that class by a program over the subsets already tested; the last test is followed by the table.
    """
    atoms = [atom for atom in domain.atoms if atom.weight > 0 and atom.first == atom.last]
    atoms = sorted(atoms, key=lambda atom: -atom.weight)[:CANDIDATES]
    count = len(atoms)
    shares = np.array([atom.weight for atom in atoms])
    members = (np.arange(1 << count)[:, None] >> np.arange(count) & 1).astype(np.float64)
    rest = np.maximum(1.0 - members @ shares, 0.0)
    # What the table costs beyond its price: targets guessed wrong among the reasons still left.
    squares = np.maximum(sum(atom.weight**2 for atom in domain.atoms) - members @ shares**2, 0.0)
    wrong = np.maximum(rest - squares / np.maximum(rest, 1e-12), 0.0)
    cost = model.indirect * rest + model.indirect_misprediction * wrong
    choice = np.full(1 << count, -1)
    for sets in reversed(_sets_by_size(count)[: min(tests, count)]):
        for t in range(count):
            open_sets = sets[sets >> t & 1 == 0]
            here = rest[open_sets]
            after = np.maximum(here - shares[t], 0.0)
            price = model.comparison * here + model.taken * shares[t] + cost[open_sets | 1 << t]
            price += model.misprediction * model.mispredicted(np.full_like(after, shares[t]), after)
            better = price < cost[open_sets]
            cost[open_sets[better]] = price[better]
            choice[open_sets[better]] = t
    order: list[int] = []
    removed = 0
    while choice[removed] >= 0:
        order.append(int(choice[removed]))
        removed |= 1 << order[-1]
    tree = table
    for t in reversed(order):
        tree = Eq(atoms[t].first, domain.outcomes[atoms[t].outcome], tree)
    reasons = tuple(atoms[t].first for t in order)
    return ChainPlan(tree, reasons, float(cost[0]), tuple(atom.first for atom in atoms))
