"""The best tree of equality, less-than and range tests under the cost model, by dynamic programming.

A state is (interval of atoms, set of candidates already tested and found unequal).  Candidates are the heaviest reasons
and the runs of adjacent reasons that share a handler.  Its cost is the least over: nothing, when what is left shares an
outcome; the table, where one is allowed; a less-than test at any boundary; an equality or range test on any candidate
still inside.  Reasons that are no candidates are only ever cut off at the ends of an interval, where the equality test
and the less-than test are the same cut.

So the result is optimal in the class *equality tests on the K heaviest reasons anywhere, on the others at the ends of
their interval; less-than tests anywhere; range tests on the merged runs*, for independent exits and this cost model.
With K at least the number of reasons it is optimal among all two-way comparison trees, which the tests check against
brute force.  The recurrence is the known one for two-way comparison trees with the set of holes kept small (see
Chrobak, Golin, Munro, Young, arXiv 2103.01084, for why heaviest-first makes it smaller still under plain costs, and
`docs/dispatch-planning.md` for why that rule may not be used with a misprediction term).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from lzero.dispatch.plan.domain import Domain
from lzero.dispatch.plan.model import CostModel, Floats
from lzero.dispatch.tree import Eq, Less, Node, Range

__all__ = ["ExactPlan", "best_tree", "merged_runs"]

Ints = npt.NDArray[np.int64]

NODE_PRICE = 1e-5
"""Ticks charged per test whatever its weight: of equally fast trees the one with fewer tests is taken, and where the
table is allowed, reasons that the profile never saw go to it rather than through tests of their own."""

WEIGHT_FLOOR = 1e-7
"""Share of exits every atom is given at least, so that the part of the tree that never runs is balanced too."""


@dataclass(frozen=True)
class ExactPlan:
    """A tree and what it costs per exit.

    Attributes
    ----------
    cost:
        Expected ticks per exit under the model, for independent exits.
    candidates:
        Reasons (first, last) on which equality and range tests were considered anywhere.
    states:
        Number of states the program solved.
    """

    tree: Node
    cost: float
    candidates: tuple[tuple[int, int], ...]
    states: int


def merged_runs(domain: Domain) -> list[tuple[int, int]]:
    """Runs of two or more adjacent atoms with one outcome, as (first atom, last atom), not at the domain's ends."""
    runs: list[tuple[int, int]] = []
    start = 0
    atoms = domain.atoms
    for index in range(1, len(atoms) + 1):
        if index == len(atoms) or atoms[index].outcome != atoms[start].outcome:
            if index - start > 1 and start > 0 and index < len(atoms):
                runs.append((start, index - 1))
            start = index
    return runs


def _candidates(domain: Domain, heavy: int, ranges: int) -> list[tuple[int, int]]:
    weights = domain.weights
    single = [i for i, atom in enumerate(domain.atoms) if atom.first == atom.last and atom.weight > 0]
    single.sort(key=lambda i: -weights[i])
    runs = sorted(merged_runs(domain), key=lambda run: -weights[run[0] : run[1] + 1].sum())
    runs = [run for run in runs[:ranges] if weights[run[0] : run[1] + 1].sum() > 0]
    return sorted([*((i, i) for i in single[:heavy]), *runs])


@cache
def _layers(count: int) -> tuple[tuple[Ints, Ints, Ints], ...]:
    """For sets of ``count`` candidates, largest first: (sets, a member missing in each, the set with it)."""
    layers = []
    everything = range(1 << count)
    for size in range(count - 1, -1, -1):
        sets = [s for s in everything if s.bit_count() == size]
        missing = [[t for t in range(count) if not s >> t & 1] for s in sets]
        larger = [[s | 1 << t for t in row] for s, row in zip(sets, missing, strict=True)]
        layers.append((np.array(sets), np.array(missing), np.array(larger)))
    return tuple(layers)


@cache
def _spread(inside: int, count: int) -> tuple[Ints, Ints]:
    """Subsets of ``inside`` in ascending rank, and for each of the 2**count sets the rank of its part inside."""
    bits = [t for t in range(count) if inside >> t & 1]
    ranks = np.arange(1 << len(bits))
    members = np.zeros_like(ranks)
    for position, bit in enumerate(bits):
        members |= (ranks >> position & 1) << bit
    sets = np.arange(1 << count)
    rank_of = np.zeros_like(sets)
    for position, bit in enumerate(bits):
        rank_of |= (sets >> bit & 1) << position
    return members, rank_of


class _Solver:
    """One run of the dynamic program; every array's last axis is the set of removed candidates."""

    def __init__(self, domain: Domain, model: CostModel, candidates: list[tuple[int, int]], table: bool) -> None:
        self.domain = domain
        self.model = model
        self.candidates = candidates
        self.table = table
        self.size = len(domain.atoms)
        self.sets = 1 << len(candidates)
        self.states = 0
        self.present = self._present()
        weights = np.maximum(domain.weights, WEIGHT_FLOOR)
        weights /= weights.sum()
        self.below = np.zeros((self.size + 1, self.sets))
        np.cumsum(self.present * weights[:, None], axis=0, out=self.below[1:])
        self.squares_below = np.zeros((self.size + 1, self.sets))
        np.cumsum(self.present * (weights**2)[:, None], axis=0, out=self.squares_below[1:])
        self.uniform_to = self._uniform_to()
        self.cost = np.zeros((self.size, self.size, self.sets))

    def _present(self) -> npt.NDArray[np.bool_]:
        present = np.ones((self.size, self.sets), dtype=np.bool_)
        sets = np.arange(self.sets)
        for t, (first, last) in enumerate(self.candidates):
            present[first : last + 1] &= ~(sets >> t & 1).astype(np.bool_)
        return present

    def _uniform_to(self) -> Ints:
        """For each first atom and set: the last atom up to which everything present has one outcome."""
        result = np.full((self.size, self.sets), self.size - 1)
        outcome = np.full(self.sets, -1)
        next_present = np.full(self.sets, self.size)
        for i in range(self.size - 1, -1, -1):
            here = self.domain.atoms[i].outcome
            if i + 1 < self.size:
                result[i] = result[i + 1]
            differs = self.present[i] & (outcome != -1) & (outcome != here)
            result[i][differs] = next_present[differs] - 1
            outcome[self.present[i]] = here
            next_present[self.present[i]] = i
        return result

    def inside(self, i: int, j: int) -> int:
        """Candidates that lie inside atoms ``i``..``j`` and do not fill them, as a bit set."""
        return sum(1 << t for t, (a, b) in enumerate(self.candidates) if i <= a and b <= j and (a, b) != (i, j))

    def _weight(self, i: int, j: int, sets: Ints | int) -> Floats:
        weight: Floats = self.below[j + 1, sets] - self.below[i, sets]
        return weight

    def solve(self) -> None:
        """Fill ``cost``, short intervals before long ones."""
        for length in range(2, self.size + 1):
            for i in range(self.size - length + 1):
                self._interval(i, i + length - 1)

    def _interval(self, i: int, j: int) -> None:
        inside = self.inside(i, j)
        sets, rank_of = _spread(inside, len(self.candidates))
        weight = self._weight(i, j, sets)
        best = self._split(i, j, sets, weight)
        if self.table:
            np.minimum(best, self._table_price(i, j, sets, weight), out=best)
        best[self.uniform_to[i, sets] >= j] = 0.0
        self._equalities(i, j, inside, weight, best)
        self.cost[i, j] = best[rank_of]
        self.states += len(sets)

    def _table_price(self, i: int, j: int, sets: Ints | int, weight: Floats) -> Floats:
        """The table for everything left: its price, and the targets that a plain indirect branch guesses wrong."""
        squares = self.squares_below[j + 1, sets] - self.squares_below[i, sets]
        wrong = np.maximum(weight - squares / np.maximum(weight, 1e-12), 0.0)
        price: Floats = self.model.indirect * weight + self.model.indirect_misprediction * wrong + NODE_PRICE
        return price

    def _split(self, i: int, j: int, sets: Ints, weight: Floats) -> Floats:
        """Least cost of a less-than test, for every set."""
        whole = len(sets) == self.sets
        columns = slice(None) if whole else sets
        left = self.cost[i, i:j][:, columns]
        right = self.cost[i + 1 : j + 1, j][:, columns]
        low = self.below[i + 1 : j + 1][:, columns] - self.below[i, columns]
        high = weight - low
        price = self.model.mispredicted(low, high)
        price *= self.model.misprediction
        price += left
        price += right
        price += self.model.taken * high
        best: Floats = price.min(axis=0)
        best += self.model.comparison * weight + NODE_PRICE
        return best

    def _equalities(self, i: int, j: int, inside: int, weight: Floats, best: Floats) -> None:
        """Lower ``best`` by equality and range tests; sets with more candidates removed are final first."""
        bits = [t for t in range(len(self.candidates)) if inside >> t & 1]
        if not bits:
            return
        extra = np.array([self._extra(t) for t in bits])
        model = self.model
        for ranks, missing, larger in _layers(len(bits)):
            here = weight[ranks][:, None]
            rest = np.minimum(weight[larger], here)
            hit = here - rest
            price = model.misprediction * model.mispredicted(hit, rest)
            price += best[larger]
            price += model.taken * hit
            price += (model.comparison + extra[missing]) * here
            lowest = price.min(axis=1) + NODE_PRICE
            best[ranks] = np.minimum(best[ranks], lowest)

    def _extra(self, t: int) -> float:
        first, last = self.candidates[t]
        return self.model.range_extra if first != last else 0.0

    def rebuild(self, i: int, j: int, removed: int, table: Node | None) -> Node:
        """The tree of one state, by taking the least choice again on the way down."""
        domain, model = self.domain, self.model
        if self.uniform_to[i, removed] >= j:
            present = [k for k in range(i, j + 1) if self.present[k, removed]]
            return domain.outcomes[domain.atoms[present[0] if present else i].outcome]
        weight = self._weight(i, j, removed)
        options: list[tuple[float, int, int]] = []
        if table is not None:
            options.append((float(self._table_price(i, j, removed, weight)), 0, 0))
        for split in range(i + 1, j + 1):
            low = self._weight(i, split - 1, removed)
            price = model.comparison * weight + model.misprediction * model.mispredicted(low, weight - low)
            price += model.taken * (weight - low) + NODE_PRICE
            price += self.cost[i, split - 1, removed] + self.cost[split, j, removed]
            options.append((float(price), 1, split))
        inside = self.inside(i, j)
        for t in range(len(self.candidates)):
            if not inside >> t & 1 or removed >> t & 1:
                continue
            larger = removed | 1 << t
            rest = np.minimum(self._weight(i, j, larger), weight)
            price = (model.comparison + self._extra(t)) * weight
            price += model.misprediction * model.mispredicted(weight - rest, rest)
            price += model.taken * (weight - rest) + NODE_PRICE + self.cost[i, j, larger]
            options.append((float(price), 2, t))
        _, kind, argument = min(options)
        if kind == 0:
            assert table is not None
            return table
        if kind == 1:
            return Less(
                domain.atoms[argument].first,
                self.rebuild(i, argument - 1, removed, table),
                self.rebuild(argument, j, removed, table),
            )
        first, last = self.candidates[argument]
        hit = domain.outcomes[domain.atoms[first].outcome]
        rest_tree = self.rebuild(i, j, removed | 1 << argument, table)
        low_reason, high_reason = domain.atoms[first].first, domain.atoms[last].last
        if low_reason == high_reason:
            return Eq(low_reason, hit, rest_tree)
        return Range(low_reason, high_reason, hit, rest_tree)


def best_tree(
    domain: Domain, model: CostModel, *, heavy: int = 8, ranges: int = 2, table: Node | None = None
) -> ExactPlan:
    """Find the cheapest tree.

    Parameters
    ----------
    heavy, ranges:
        How many of the heaviest reasons, and of the heaviest merged runs, are candidates for tests anywhere.
    table:
        The node that finishes any part of the tree at ``model.indirect`` ticks, or None for a tree without it.
    """
    candidates = _candidates(domain, heavy, ranges)
    solver = _Solver(domain, model, candidates, table is not None)
    solver.solve()
    last = solver.size - 1
    tree = solver.rebuild(0, last, 0, table)
    reasons = tuple((domain.atoms[a].first, domain.atoms[b].last) for a, b in candidates)
    return ExactPlan(tree, float(solver.cost[0, last, 0]), reasons, solver.states)
