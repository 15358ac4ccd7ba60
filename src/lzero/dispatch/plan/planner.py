"""Plans: a profile in, a proved-best (in a named class) or best-found dispatcher out, with its bound and its risks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from lzero.dispatch.plan.bound import lower_bound
from lzero.dispatch.plan.chain import CANDIDATES, best_chain
from lzero.dispatch.plan.domain import Domain, build_domain, kvm_outcomes
from lzero.dispatch.plan.evaluate import Expected, expected_cost, replayed_cost
from lzero.dispatch.plan.exact import best_tree
from lzero.dispatch.plan.model import CostModel
from lzero.dispatch.plan.predictor import default_predictor
from lzero.dispatch.profiles.profile import Profile
from lzero.dispatch.strategies import STRATEGIES, Provenance, Strategy, handler_table
from lzero.dispatch.tree import Eq, IndirectTable, Less, Node, OutOfLine, Range, walk
from lzero.errors import PlanError

__all__ = ["Plan", "PlanClass", "Sensitivity", "make_plan"]

PREDICTABILITY = (1.0, 0.6, 0.35, 0.15, 0.05)
"""Shares of the misprediction price under which trees are made for a recorded order; replay chooses among them."""

REFERENCE_STRATEGY = "chain"
"""S2, what every plan is compared with."""


class PlanClass(StrEnum):
    """In which class of dispatchers the plan is sought."""

    TREE = "tree"
    """The whole table: tests only, no indirect branch."""

    TREE_TABLE = "tree-table"
    """Tests in any tree, any part of which may end in the table."""

    CHAIN = "chain"
    """At most k equality tests in a row, then the table: upstream's shape."""


@dataclass(frozen=True)
class Sensitivity:
    """The plan under a profile it was not made from: expected ticks, beside S2's and the plan made for that profile."""

    profile: str
    planned: float
    reference: float
    own_plan: float


@dataclass(frozen=True)
class Plan:
    """A planned dispatcher and everything that must be said with it.

    Attributes
    ----------
    expected:
        Cost per exit under the model; mispredictions counted as ``predictor`` says.
    predictor:
        ``independent`` (`CostModel.mispredicted` at each test) or the name of the replayed predictor model.
    reference:
        The same for S2.
    bound:
        Lower bound in ticks over all trees of two-way tests, for independent exits; None where order was used.
    optimal_in:
        The class in which the tree is the best under the model; empty when it is only the best found.
    """

    strategy: Strategy
    plan_class: PlanClass
    profile: Profile
    model: CostModel
    expected: Expected
    predictor: str
    reference: Expected
    bound: float | None
    optimal_in: str
    sensitivity: tuple[Sensitivity, ...] = ()

    @property
    def tests(self) -> int:
        """Number of tests in the tree."""
        return sum(isinstance(node, Eq | Less | Range) for node in walk(self.strategy.root))


@dataclass(frozen=True)
class _Found:
    tree: Node
    cost: Expected
    optimal_in: str


def make_plan(
    profile: Profile,
    model: CostModel,
    plan_class: PlanClass = PlanClass.TREE,
    *,
    tests: int = 6,
    others: Iterable[Profile] = (),
    predictor: str | None = None,
    name: str = "planned",
    date: str = "",
) -> Plan:
    """Plan a dispatcher for ``profile``.

    Parameters
    ----------
    tests:
        k of the class CHAIN.
    others:
        Profiles under which the plan's cost is reported as well.
    predictor:
        ``independent``, or a predictor model to replay the recorded order through; by default chosen by whether the
        profile's exits are independent.

    Raises
    ------
    PlanError
        When the profile has reasons without a handler, or ``tests`` is not positive.
    """
    if tests < 1 and plan_class is PlanClass.CHAIN:
        raise PlanError(f"a chain of {tests} tests is the table itself; ask for at least one")
    used = predictor or ("independent" if profile.independent else default_predictor())
    if used != "independent" and profile.order is None:
        raise PlanError(f"profile {profile.name} has counts only, no order to replay; use predictor 'independent'")
    found = _search(profile, model, plan_class, tests, used)
    reference = _cost(STRATEGIES[REFERENCE_STRATEGY].root, profile, model, used)
    bound = None
    # Without mispredicted targets the table's price is a constant; with them the bound would be far too low to say.
    if used == "independent" and (plan_class is PlanClass.TREE or not model.indirect_misprediction):
        domain = _domain(profile, separate=True)
        bound = lower_bound(domain.outcome_weights.values(), model, table=plan_class is not PlanClass.TREE)
    sensitivity = tuple(_sensitivity(found.tree, other, model, plan_class, tests) for other in others)
    gain = 1.0 - found.cost.ticks / reference.ticks if reference.ticks else 0.0
    against = f"{found.cost.ticks:.1f} ticks per exit over a direct call, S2 {reference.ticks:.1f} ({gain:.0%} less)"
    strategy = Strategy(
        name,
        "",
        f"planned for {profile.name}, class {plan_class}, {model.mitigation}",
        found.tree,
        provenance=Provenance(
            source=f"{profile.name}: {profile.origin}",
            date=date or profile.recorded,
            samples=profile.total,
            cpu=model.source,
            mitigation=model.mitigation,
            expected_gain=against,
            model=model.describe(),
            details={
                "class": str(plan_class),
                "optimal_in": found.optimal_in,
                "predictor": used,
                "lower_bound": bound,
            },
        ),
    )
    return Plan(strategy, plan_class, profile, model, found.cost, used, reference, bound, found.optimal_in, sensitivity)


def _nested_module() -> OutOfLine:
    """S7's call into the nested module, where the VMX instructions that the profile never saw end up."""
    return next(node for node in walk(STRATEGIES["range"].root) if isinstance(node, OutOfLine))


def _domain(profile: Profile, *, separate: bool) -> Domain:
    frequencies = profile.frequencies()
    outcome_of = kvm_outcomes(frequencies, None if separate else _nested_module())
    return build_domain(profile.name, frequencies, outcome_of)


def _cost(tree: Node, profile: Profile, model: CostModel, predictor: str) -> Expected:
    if predictor == "independent":
        return expected_cost(tree, profile.frequencies(), model)
    return replayed_cost(tree, profile, model, predictor)


def _search(profile: Profile, model: CostModel, plan_class: PlanClass, tests: int, predictor: str) -> _Found:
    # Where there is a table, the VMX instructions the profile never saw go there; else they merge in one function.
    domain = _domain(profile, separate=plan_class is not PlanClass.TREE)
    independent = predictor == "independent"
    shares = (1.0,) if independent else PREDICTABILITY
    best: _Found | None = None
    for share in shares:
        priced = replace(model, misprediction=model.misprediction * share)
        for tree, optimal_in in _trees(domain, priced, plan_class, tests):
            cost = _cost(tree, profile, model, predictor)
            if best is None or cost.ticks < best.cost.ticks:
                best = _Found(tree, cost, optimal_in if independent else "")
    assert best is not None
    return best


def _trees(domain: Domain, model: CostModel, plan_class: PlanClass, tests: int) -> Sequence[tuple[Node, str]]:
    table: IndirectTable = handler_table()
    if plan_class is PlanClass.CHAIN:
        chain = best_chain(domain, model, table, tests)
        text = f"chains of at most {tests} equality tests on the {CANDIDATES} most frequent reasons, then the table"
        return [(chain.tree, text)]
    exact = best_tree(domain, model, table=table if plan_class is PlanClass.TREE_TABLE else None)
    # Members of the class that matter only where a replayed order, not the model, has the last word.
    others = [(best_chain(domain, model, table, tests).tree, ""), (STRATEGIES[REFERENCE_STRATEGY].root, "")]
    singles = sum(first == last for first, last in exact.candidates)
    text = (
        f"two-way comparison trees with equality tests on the {singles} most frequent reasons anywhere and on the "
        "others at the ends of their interval, less-than tests anywhere"
    )
    if len(exact.candidates) > singles:
        text += ", range tests on merged handlers"
    if plan_class is PlanClass.TREE_TABLE:
        text += ", any part ending in the table"
    return [(exact.tree, text), *(others if plan_class is PlanClass.TREE_TABLE else [])]


def _sensitivity(tree: Node, other: Profile, model: CostModel, plan_class: PlanClass, tests: int) -> Sensitivity:
    predictor = "independent" if other.independent else default_predictor()
    return Sensitivity(
        other.name,
        _cost(tree, other, model, predictor).ticks,
        _cost(STRATEGIES[REFERENCE_STRATEGY].root, other, model, predictor).ticks,
        _search(other, model, plan_class, tests, predictor).cost.ticks,
    )
