"""What trees mean, and that every strategy but the wrong one means the same."""

from __future__ import annotations

import pytest
from dispatchtrees import HANDLER_NAMES, out_of_line, trees
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lzero.dispatch.compile_python import compile_python
from lzero.dispatch.handlers import HANDLERS, NESTED_INSTRUCTIONS, handler_of
from lzero.dispatch.plan_file import strategy_from_json, strategy_to_json
from lzero.dispatch.strategies import STRATEGIES, Strategy
from lzero.dispatch.tree import (
    ALL_CONDITIONS,
    Case,
    ConditionName,
    Conditions,
    Eq,
    IndirectTable,
    Leaf,
    Less,
    Node,
    Patch,
    Range,
    Slot,
    Switch,
    Unexpected,
    evaluate,
    handlers_used,
    regions,
    validate,
)
from lzero.errors import PlanError, UsageError
from lzero.sdm.exit_reasons import ExitReason

# Where something can change in the small random trees, and the edges of the field.
PROBES = sorted({*range(90), 254, 255, 256, 257, 32766, 32767, 32768, 65533, 65534, 65535})

conditions = st.sampled_from(ALL_CONDITIONS)


def compiled(tree: Node | Strategy, held: Conditions, *, ask: bool):
    root = tree.root if isinstance(tree, Strategy) else tree
    handlers = {name: (lambda vcpu, name=name: name) for name in handlers_used(root)}
    nested, failed = ConditionName.NESTED in held, ConditionName.FAILED_ENTRY in held
    return compile_python(
        tree,
        handlers,
        unexpected=lambda vcpu, reason: None,
        nested=(lambda vcpu: nested) if ask else nested,
        failed_entry=(lambda vcpu: failed) if ask else failed,
    )


def test_table_is_the_one_of_built_kernels() -> None:
    # Read from Debian's kvm-intel.ko: 76 slots, 52 of them filled; later kernels only appended.
    old = [row for row in HANDLERS.values() if row.since != "6.18"]
    assert (1 + max(row.reason for row in old), len(old)) == (76, 52)
    assert all(row.macro == f"EXIT_REASON_{row.reason.name}" for row in HANDLERS.values())
    names = "VMCLEAR VMLAUNCH VMPTRLD VMPTRST VMREAD VMRESUME VMWRITE VMOFF VMON INVEPT INVVPID VMFUNC"
    assert [row.reason.name for row in NESTED_INSTRUCTIONS] == names.split()


@pytest.mark.parametrize("name", [name for name in STRATEGIES if name != "range_as_written"])
@pytest.mark.parametrize("held", ALL_CONDITIONS, ids=lambda held: "+".join(sorted(held)) or "none")
def test_strategy_finds_the_handler_of_every_reason(name: str, held: Conditions) -> None:
    nested = ConditionName.NESTED in held
    for region in regions(STRATEGIES[name].root, held):
        for reason in range(region.first, region.last + 1):
            assert region.outcome == handler_of(reason, nested=nested)


def test_range_as_written_takes_vmcall_and_misses_three() -> None:
    wrong, right = STRATEGIES["range_as_written"].root, STRATEGIES["table"].root
    nested = frozenset({ConditionName.NESTED})
    differ = [reason for reason in range(90) if evaluate(wrong, reason, nested) != evaluate(right, reason, nested)]
    assert differ == [ExitReason.VMCALL, ExitReason.INVEPT, ExitReason.INVVPID, ExitReason.VMFUNC]
    assert evaluate(wrong, ExitReason.VMCALL) == "handle_vmx_instruction"
    assert evaluate(wrong, ExitReason.INVEPT) is None


@given(trees, conditions)
def test_regions_cover_every_reason_once_and_agree_with_the_walk(tree: Node, held: Conditions) -> None:
    found = regions(tree, held)
    assert found[0].first == 0 and found[-1].last == 65535
    for before, after in zip(found, found[1:], strict=False):
        assert after.first == before.last + 1 and after.outcome != before.outcome
    for region in found:
        for reason in {region.first, region.last, *(p for p in PROBES if region.first <= p <= region.last)}:
            assert evaluate(tree, reason, held) == region.outcome


@given(trees, conditions, st.booleans())
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_python_function_does_what_the_tree_says(tree: Node, held: Conditions, ask: bool) -> None:
    for root in (tree, out_of_line(tree)):
        dispatch = compiled(root, held, ask=ask)
        assert [dispatch(None, reason) for reason in PROBES] == [evaluate(tree, reason, held) for reason in PROBES]


def test_deep_trees_compile() -> None:
    tree: Node = Unexpected()
    for reason in range(250):
        tree = Less(500 - reason, tree, Leaf(HANDLER_NAMES[reason % 8]))
    dispatch = compiled(tree, frozenset(), ask=False)
    assert [dispatch(None, reason) for reason in range(600)] == [evaluate(tree, reason) for reason in range(600)]


@given(trees)
def test_json_round_trip(tree: Node) -> None:
    strategy = Strategy("random", "", "", tree)
    assert strategy_from_json(strategy_to_json(strategy)) == strategy


def test_missing_handler_is_named() -> None:
    with pytest.raises(UsageError, match="no handler given for handle_apic_access"):
        compile_python(STRATEGIES["chain"], {}, unexpected=lambda vcpu, reason: None)


def test_handlers_cannot_hide_the_generators_names() -> None:
    with pytest.raises(PlanError, match="collides"):
        compile_python(Eq(1, Leaf("reason"), Unexpected()), {"reason": id}, unexpected=lambda vcpu, reason: 0)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Eq(65536, Leaf("a"), Leaf("a")), "outside 0..65535"),
        (lambda: Eq(-1, Leaf("a"), Leaf("a")), "outside 0..65535"),
        (lambda: Eq(True, Leaf("a"), Leaf("a")), "an integer"),
        (lambda: Less(0, Leaf("a"), Leaf("a")), "no reason is below"),
        (lambda: Range(4, 3, Leaf("a"), Leaf("a")), "is empty"),
        (lambda: Case(4, 3, Leaf("a")), "is empty"),
        (lambda: Leaf("a b"), "no C identifier"),
        (lambda: Leaf("switch"), "no C identifier"),
        (lambda: Leaf("a; system(\"x\")"), "no C identifier"),
        (lambda: Switch((Case(1, 5, Leaf("a")), Case(5, 5, Leaf("b"))), Leaf("c")), "two cases for exit reason 5"),
        (lambda: IndirectTable(()), "without slots"),
        (lambda: IndirectTable((Slot(1, Leaf("a")), Slot(1, Leaf("b")))), "two entries"),
        (lambda: Slot(4096, Leaf("a")), "outside 0..4095"),
        (lambda: IndirectTable((Slot(1, Leaf("a")),), (Patch(ConditionName.NESTED, ()),), const=True), "const table"),
        (lambda: Patch(ConditionName.FAILED_ENTRY, ()), "known at initialisation"),
        (lambda: validate(Eq(1, out_of_line(Leaf("a")), out_of_line(Leaf("b")))), "two different bodies"),
        (lambda: validate(Eq(1, out_of_line(Leaf("a")), Leaf("handle_elsewhere"))), "both a handler and a function"),
    ],
)  # fmt: skip
def test_impossible_nodes_are_refused(build, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        build()


def test_too_deep_a_tree_is_refused() -> None:
    tree: Node = Unexpected()
    for _ in range(400):
        tree = Eq(1, Leaf("a"), tree)
    with pytest.raises(PlanError, match="nodes deep"):
        Strategy("deep", "", "", tree)
