"""The dynamic programs against brute force, the bounds against the programs."""

from __future__ import annotations

from functools import cache
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lzero.dispatch.plan.bound import entropy_bound, lower_bound, relaxation_bound
from lzero.dispatch.plan.chain import best_chain
from lzero.dispatch.plan.domain import Atom, Domain, build_domain, kvm_outcomes
from lzero.dispatch.plan.evaluate import expected_cost
from lzero.dispatch.plan.exact import best_tree
from lzero.dispatch.plan.model import CostModel
from lzero.dispatch.strategies import handler_table
from lzero.dispatch.tree import Leaf, evaluate
from lzero.errors import PlanError

MODEL = CostModel(comparison=1.0, taken=0.4, range_extra=0.3, misprediction=16.0, indirect=20.0)
MODELS = (
    MODEL,
    CostModel(comparison=0.5, taken=0.1, misprediction=22.0, counter_share=0.9, indirect=30.0),
    CostModel(comparison=0.5, misprediction=20.0, counter_share=1.0, indirect=1.0, indirect_misprediction=25.0),
)


def domain_of(shares: list[float], outcomes: list[int]) -> Domain:
    """Atoms 10, 11, …; the last one reaches to the end of the reasons, as in real domains."""
    total = sum(shares)
    last = len(shares) - 1
    atoms = tuple(
        Atom(0 if i == 0 else 10 + i, 0xFFFF if i == last else (10 if i == 0 else 10 + i), outcome, share / total)
        for i, (share, outcome) in enumerate(zip(shares, outcomes, strict=True))
    )
    return Domain(atoms, tuple(Leaf(f"handler_{n}") for n in range(max(outcomes) + 1)))


def missed(model: CostModel, yes: float, no: float) -> float:
    """Mispredictions of one test, written apart from the model's own formula."""
    p = yes / (yes + no)
    counter = p * (1 - p) / (1 - 2 * p * (1 - p))
    return (yes + no) * ((1 - model.counter_share) * min(p, 1 - p) + model.counter_share * counter)


def brute_force(domain: Domain, model: CostModel, table: bool) -> float:
    """Cost of the best tree of all equality and less-than tests on single reasons, over every subset of the atoms."""
    weights = domain.weights

    @cache
    def best(present: frozenset[int]) -> float:
        if len({domain.atoms[i].outcome for i in present}) <= 1:
            return 0.0
        weight = sum(weights[i] for i in present)
        squares = sum(weights[i] ** 2 for i in present)
        table_price = model.indirect * weight + model.indirect_misprediction * (weight - squares / weight)
        prices = [table_price] if table else []
        single = [i for i in present if domain.atoms[i].first == domain.atoms[i].last]
        cuts = [(frozenset({i}), True) for i in single]
        cuts += [(frozenset(i for i in present if i < bound), False) for bound in sorted(present)[1:]]
        for yes, equality in cuts:
            no = present - yes
            if not no:
                continue
            hit, miss = sum(weights[i] for i in yes), sum(weights[i] for i in no)
            taken = hit if equality else miss
            price = model.comparison * weight + model.taken * taken + model.misprediction * missed(model, hit, miss)
            prices.append(price + best(yes) + best(no))
        return min(prices)

    return best(frozenset(range(len(domain.atoms))))


def tree_cost(domain: Domain, tree: object, model: CostModel) -> float:
    """The cost of a tree by walking it: independent of the program that made it."""
    return expected_cost(tree, {atom.first: atom.weight for atom in domain.atoms}, model).ticks  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 1000), min_size=2, max_size=7).flatmap(
        lambda shares: st.tuples(
            st.just(shares), st.lists(st.integers(0, 4), min_size=len(shares), max_size=len(shares))
        )
    ),
    st.booleans(),
    st.sampled_from(MODELS),
)
def test_program_equals_brute_force_when_every_reason_is_a_candidate(
    case: tuple[list[int], list[int]], table: bool, model: CostModel
) -> None:
    shares, outcomes = case
    domain = domain_of([float(s) for s in shares], outcomes)
    node = handler_table() if table else None
    # The first and last atoms are wide; only single reasons have equality tests, in both.
    found = best_tree(domain, model, heavy=7, ranges=0, table=node)
    assert found.cost == pytest.approx(brute_force(domain, model, table), abs=1e-4)
    assert tree_cost(domain, found.tree, model) == pytest.approx(found.cost, abs=1e-4)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 1000), min_size=3, max_size=7), st.integers(0, 3))
def test_fewer_candidates_never_beat_brute_force(shares: list[int], heavy: int) -> None:
    domain = domain_of([float(s) for s in shares], list(range(len(shares))))
    assert best_tree(domain, MODEL, heavy=heavy, ranges=0).cost >= brute_force(domain, MODEL, False) - 1e-6


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 1000), min_size=2, max_size=7), st.booleans(), st.sampled_from(MODELS))
def test_no_tree_beats_the_bounds(shares: list[int], table: bool, model: CostModel) -> None:
    domain = domain_of([float(s) for s in shares], list(range(len(shares))))
    best = brute_force(domain, model, table)
    for bound in (entropy_bound, relaxation_bound):
        assert bound(domain.outcome_weights.values(), model, table=table) <= best + 1e-9


def test_relaxation_is_exact_for_two_equal_handlers() -> None:
    assert relaxation_bound([0.5, 0.5], MODEL) == pytest.approx(1.0 + 8.0)
    assert lower_bound([1.0], MODEL) == 0.0


def test_a_range_test_takes_merged_handlers_out_of_the_middle() -> None:
    # 11..13 share a handler and sit in the middle; one range test at the top is cheaper than two less-than tests.
    domain = domain_of([1, 20, 30, 25, 1, 1], [0, 1, 1, 1, 2, 0])
    with_range = best_tree(domain, MODEL, heavy=6, ranges=1)
    without = best_tree(domain, MODEL, heavy=6, ranges=0)
    assert with_range.cost < without.cost
    assert tree_cost(domain, with_range.tree, MODEL) == pytest.approx(with_range.cost, abs=1e-4)


def test_the_tree_decides_every_reason_as_kvm_does() -> None:
    shares = {48: 0.3, 32: 0.4, 24: 0.2, 1: 0.1}
    outcome_of = kvm_outcomes(shares, None)
    tree = best_tree(build_domain("test", shares, outcome_of), MODEL).tree
    for reason in range(1 << 16):
        node = outcome_of(reason)
        assert evaluate(tree, reason) == evaluate(node, reason)


def test_chain_equals_trying_every_order() -> None:
    generator = np.random.default_rng(7)
    for _ in range(20):
        shares = generator.dirichlet(np.full(5, 0.6))
        domain = domain_of([1e-9, *shares.tolist(), 1e-9], [0, 1, 2, 3, 4, 5, 0])
        table = handler_table()
        for k in (1, 2, 3):
            orders = [order for n in range(k + 1) for order in permutations(range(1, 6), n)]
            for model in MODELS:
                best = min(_chain_cost(domain, order, model) for order in orders)
                found = best_chain(domain, model, table, k)
                assert found.cost == pytest.approx(best, abs=1e-6)
                assert tree_cost(domain, found.tree, model) == pytest.approx(best, abs=1e-6)


def _chain_cost(domain: Domain, order: tuple[int, ...], model: CostModel) -> float:
    rest, cost = 1.0, 0.0
    squares = float((domain.weights**2).sum())
    for i in order:
        share = float(domain.weights[i])
        cost += model.comparison * rest + model.taken * share
        cost += model.misprediction * missed(model, share, max(rest - share, 0.0))
        rest -= share
        squares -= share**2
    return cost + model.indirect * rest + model.indirect_misprediction * (rest - squares / rest)


def test_profile_with_unhandled_reasons_is_refused() -> None:
    with pytest.raises(PlanError, match=r"profile odd: no handler for exit reason 17;"):
        build_domain("odd", {17: 1.0}, kvm_outcomes({17: 1.0}, None))
