"""Plans as a whole: what they mean, what they promise, how long they take."""

from __future__ import annotations

import time

import numpy as np
import pytest

from lzero.dispatch.plan import REFERENCE_MODEL, CostModel, PlanClass, make_plan
from lzero.dispatch.plan import predictor as predictor_module
from lzero.dispatch.plan.evaluate import expected_cost, replayed_cost
from lzero.dispatch.plan.predictor import ReplayPath, replay, replay_gshare_in_python, target_misprediction_rate
from lzero.dispatch.profiles import SYNTHETIC, Profile, load_profile
from lzero.dispatch.strategies import STRATEGIES
from lzero.dispatch.tree import ALL_CONDITIONS, has_indirect_table, regions
from lzero.errors import PlanError, UsageError

HAS_COMPILER = predictor_module.default_predictor() == "tage"


@pytest.mark.parametrize("plan_class", list(PlanClass))
@pytest.mark.parametrize("name", sorted(SYNTHETIC))
def test_plan_means_what_the_table_means(name: str, plan_class: PlanClass) -> None:
    plan = make_plan(load_profile(name), REFERENCE_MODEL, plan_class)
    for conditions in ALL_CONDITIONS:
        assert regions(plan.strategy.root, conditions) == regions(STRATEGIES["table"].root, conditions)
    assert has_indirect_table(plan.strategy.root) <= (plan_class is not PlanClass.TREE)


@pytest.mark.parametrize("name", sorted(SYNTHETIC))
def test_plan_with_the_table_is_never_expected_to_be_worse_than_upstream(name: str) -> None:
    plan = make_plan(load_profile(name), REFERENCE_MODEL, PlanClass.TREE_TABLE)
    assert plan.expected.ticks <= plan.reference.ticks
    if plan.bound is not None:
        assert plan.bound <= plan.expected.ticks + 1e-6


def test_independent_plan_states_its_class_and_a_replayed_one_claims_none() -> None:
    assert "two-way comparison trees" in make_plan(load_profile("skewed"), REFERENCE_MODEL).optimal_in
    assert make_plan(load_profile("bursty"), REFERENCE_MODEL).optimal_in == ""


def test_rare_misconfiguration_is_tested_before_the_most_frequent_reason() -> None:
    """The point of the misprediction term: the test of a 45 % reason is the worst one to begin with."""
    plan = make_plan(load_profile("skewed"), REFERENCE_MODEL)
    assert getattr(plan.strategy.root, "reason", None) == 49


def test_plan_takes_less_than_a_second_for_80_reasons() -> None:
    make_plan(load_profile("skewed"), REFERENCE_MODEL)  # warms the caches
    profile = load_profile("uniform")
    start = time.process_time()
    make_plan(profile, REFERENCE_MODEL)
    assert time.process_time() - start < 1.0


def test_wrong_profile_is_costed_beside_s2_and_its_own_plan() -> None:
    plan = make_plan(load_profile("skewed"), REFERENCE_MODEL, others=[load_profile("nested")])
    (row,) = plan.sensitivity
    assert row.own_plan <= row.planned
    assert row.profile == "nested"
    assert row.reference > 0


def test_a_plan_for_a_mixture_is_a_compromise() -> None:
    skewed, nested = load_profile("skewed"), load_profile("nested")
    mixture = Profile.mixture([skewed, nested])
    assert mixture.frequencies()[23] == pytest.approx(nested.frequencies()[23] / 2, abs=0.001)
    assert mixture.order is not None
    for row in make_plan(mixture, REFERENCE_MODEL, others=[skewed, nested]).sensitivity:
        assert row.own_plan <= row.planned < row.reference


def test_chain_has_at_most_k_tests() -> None:
    for k in (1, 3, 6):
        assert make_plan(load_profile("skewed"), REFERENCE_MODEL, PlanClass.CHAIN, tests=k).tests <= k


def test_counts_only_profile_assumes_independence_and_says_so() -> None:
    counts = Profile("counts", "made here", {48: 10, 32: 30})
    assert make_plan(counts, REFERENCE_MODEL).predictor == "independent"
    with pytest.raises(PlanError, match="counts only"):
        make_plan(counts, REFERENCE_MODEL, predictor="tage")


def test_unknown_predictor_and_bad_prices_are_refused() -> None:
    with pytest.raises(UsageError, match="no predictor model 'perceptron'"):
        make_plan(load_profile("bursty"), REFERENCE_MODEL, predictor="perceptron")
    with pytest.raises(PlanError, match="misprediction is -1"):
        CostModel(misprediction=-1)


@pytest.mark.skipif(not HAS_COMPILER, reason="no C compiler: only the Python model exists")
def test_compiled_gshare_equals_the_python_one() -> None:
    order = load_profile("bursty").sequence(6000)
    paths = {
        int(reason): ReplayPath(tuple((k, bool(reason >> k & 1)) for k in range(1 + reason % 5)), int(reason))
        for reason in np.unique(order)
    }
    assert replay(paths, order, "gshare").conditional == replay_gshare_in_python(paths, order).conditional


def test_planning_works_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictor_module, "_library", lambda: None)
    profile = SYNTHETIC["bursty"].make(4000)
    assert make_plan(profile, REFERENCE_MODEL, PlanClass.CHAIN).predictor == "gshare"


def test_every_strategy_can_be_costed_under_every_profile() -> None:
    for name in SYNTHETIC:
        profile = load_profile(name)
        for strategy in STRATEGIES.values():
            if strategy.name == "range_as_written" and 18 in profile.counts:
                continue
            independent = expected_cost(strategy.root, profile.frequencies(), REFERENCE_MODEL)
            replayed = replayed_cost(strategy.root, profile, REFERENCE_MODEL, limit=4096)
            assert replayed.comparisons == pytest.approx(independent.comparisons)
            assert replayed.taken == pytest.approx(independent.taken)
            assert replayed.table_calls == pytest.approx(independent.table_calls)


def test_predictors_learn_a_period_and_not_a_coin() -> None:
    chain = STRATEGIES["chain"].root
    periodic, skewed = load_profile("periodic"), load_profile("skewed")
    assert replayed_cost(chain, periodic, REFERENCE_MODEL).mispredictions < 0.02
    independent = expected_cost(chain, skewed.frequencies(), REFERENCE_MODEL).mispredictions
    replayed = replayed_cost(chain, skewed, REFERENCE_MODEL).mispredictions
    assert replayed > 0.9 * independent


def test_plain_indirect_branch_is_predicted_on_a_period_only() -> None:
    assert target_misprediction_rate(load_profile("periodic").sequence(8000)) < 0.4
    assert target_misprediction_rate(load_profile("skewed").sequence(8000)) > 0.5


@pytest.mark.parametrize("plan_class", list(PlanClass))
def test_a_profile_of_one_reason_is_planned_too(plan_class: PlanClass) -> None:
    plan = make_plan(Profile("one", "made here", {48: 7}), REFERENCE_MODEL, plan_class)
    assert plan.expected.mispredictions == 0
    assert plan.bound == 0.0
    assert regions(plan.strategy.root) == regions(STRATEGIES["table"].root)


def test_a_plain_table_is_dear_when_its_targets_are_not_predictable() -> None:
    plain = CostModel(indirect=1.0, indirect_misprediction=27.0, mitigation="none")
    skewed = load_profile("skewed")
    shares = skewed.frequencies().values()
    table = expected_cost(STRATEGIES["table"].root, skewed.frequencies(), plain)
    assert table.ticks == pytest.approx(1.0 + 27.0 * (1 - sum(share**2 for share in shares)))
    plan = make_plan(skewed, plain, PlanClass.TREE_TABLE)
    assert plan.expected.ticks < table.ticks
    assert plan.bound is None


def test_misprediction_law_lies_between_the_ideal_guess_and_the_counter() -> None:
    p = np.linspace(0.0, 1.0, 101)
    ideal = CostModel().mispredicted(p, 1 - p)
    counter = CostModel(counter_share=1.0).mispredicted(p, 1 - p)
    assert np.array_equal(ideal, np.minimum(p, 1 - p))
    assert (counter >= ideal - 1e-12).all()
    assert counter[50] == pytest.approx(0.5)
    assert counter[30] == pytest.approx(0.21 / 0.58)
    with pytest.raises(PlanError, match="counter_share"):
        CostModel(counter_share=1.5)
