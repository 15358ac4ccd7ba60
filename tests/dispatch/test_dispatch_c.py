"""Emitted C, compiled: warnings, order of tests, indirect branches, and what it calls for every reason."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from dispatchtrees import out_of_line, trees
from hypothesis import HealthCheck, given, settings

from lzero.dispatch import emit_c as emit_module
from lzero.dispatch import toolchain
from lzero.dispatch.emit_c import STYLES, Style, emit_c
from lzero.dispatch.plan.model import REFERENCE_MODEL
from lzero.dispatch.plan.planner import PlanClass, make_plan
from lzero.dispatch.plan_file import read_plan, write_plan
from lzero.dispatch.profiles import load_profile
from lzero.dispatch.prove import check_by_running, differences, outcomes_of_c, outcomes_of_tree
from lzero.dispatch.strategies import STRATEGIES, Provenance, Strategy
from lzero.dispatch.strategies import tests_then_table as front_of_table
from lzero.dispatch.toolchain import find_compiler
from lzero.dispatch.tree import ALL_CONDITIONS, ConditionName, Eq, Leaf, Less, Node, Range, Unexpected
from lzero.dispatch.verify_c import verify_c
from lzero.errors import ToolError, UsageError
from lzero.sdm.exit_reasons import ExitReason

COMPILERS = [
    pytest.param(name, marks=pytest.mark.skipif(shutil.which(name) is None, reason=f"{name} is not installed"))
    for name in ("gcc", "clang")
]
compilers = pytest.mark.parametrize("cc", COMPILERS)
styles = pytest.mark.parametrize("style", STYLES)

PLANNED = Strategy(
    "planned */ by\nsomebody",
    "",
    "a small tree with every kind of test",
    Less(
        ExitReason.MSR_WRITE,
        Eq(ExitReason.CPUID, Leaf("kvm_emulate_cpuid"), Eq(ExitReason.HLT, Leaf("kvm_emulate_halt"), Unexpected())),
        Eq(
            ExitReason.EPT_MISCONFIG,
            Leaf("handle_ept_misconfig"),
            Range(46, 47, Leaf("handle_desc"), front_of_table([ExitReason.MSR_WRITE, ExitReason.VMREAD])),
        ),
    ),
    provenance=Provenance(source="a trace */ with a comment's end /* and \N{SNOWMAN}", samples=1000, cpu="a CPU"),
)
EVERY = [*STRATEGIES.values(), PLANNED]


@compilers
@styles
@pytest.mark.parametrize("strategy", EVERY, ids=lambda strategy: strategy.name.split()[0])
def test_machine_code_keeps_its_promises(strategy: Strategy, style: Style, cc: str) -> None:
    result = verify_c(strategy, find_compiler(cc), style)
    assert result.problems == ()
    assert bool(result.indirect) is not strategy.promises_no_indirect_branch
    assert 0 < result.text_bytes < 4096


@compilers
@pytest.mark.parametrize("strategy", EVERY, ids=lambda strategy: strategy.name.split()[0])
def test_compiled_c_calls_what_the_tree_says(strategy: Strategy, cc: str) -> None:
    assert len(check_by_running(strategy, [find_compiler(cc)])) == 3


@compilers
@pytest.mark.parametrize("plan_class", list(PlanClass))
@pytest.mark.parametrize("profile", ["skewed", "nested-bursty"])
def test_plans_keep_their_promises(profile: str, plan_class: PlanClass, cc: str, tmp_path: Path) -> None:
    """From a profile through PLAN.json to machine code; and a plan means what the table means."""
    plan = make_plan(load_profile(profile), REFERENCE_MODEL, plan_class, name="planned")
    write_plan(tmp_path / "PLAN.json", plan.strategy)
    strategy = read_plan(tmp_path / "PLAN.json")
    assert differences(strategy, STRATEGIES["table"]) == ()
    for style in STYLES:
        result = verify_c(strategy, find_compiler(cc), style)
        assert result.problems == ()
        assert bool(result.indirect) is not strategy.promises_no_indirect_branch


@compilers
@styles
@given(tree=trees)
@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_random_trees_in_c(style: Style, cc: str, tree: Node) -> None:
    """Also the trees no strategy has: contradictory tests, ranges inside switches, conditions and tables anywhere."""
    strategy = Strategy("random", "", "", out_of_line(tree))
    found = outcomes_of_c(strategy, find_compiler(cc), style)
    for conditions in ALL_CONDITIONS:
        assert found[conditions] == outcomes_of_tree(strategy, conditions)


@compilers
@styles
@given(tree=trees)
@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_random_trees_in_machine_code(style: Style, cc: str, tree: Node) -> None:
    assert verify_c(Strategy("random", "", "", tree), find_compiler(cc), style).problems == ()


@compilers
def test_without_retpolines_the_kernel_style_is_the_kernels_table(cc: str) -> None:
    found = outcomes_of_c(STRATEGIES["range_as_written"], find_compiler(cc), "kernel", retpoline=False)
    nested = frozenset({ConditionName.NESTED})
    assert found[nested] == outcomes_of_tree(STRATEGIES["table"], nested)


@pytest.mark.parametrize("cc", COMPILERS[1:])  # gcc leaves a chain alone where it may not build jump tables
def test_without_barriers_the_order_is_lost_and_noticed(cc: str, monkeypatch: pytest.MonkeyPatch) -> None:
    chain = STRATEGIES["switch"].root
    tests: Node = Unexpected()
    for case in reversed(chain.then.cases[:12]):  # type: ignore[union-attr]  # a Condition over two switches
        tests = Eq(case.first, case.then, tests)
    strategy = Strategy("long_chain", "", "", tests)
    assert verify_c(strategy, find_compiler(cc), "standalone").kept
    plain = emit_module.emit_c(strategy, "standalone", barriers=False)
    monkeypatch.setattr("lzero.dispatch.verify_c.emit_c", lambda *arguments: plain)
    result = verify_c(strategy, find_compiler(cc), "standalone")
    assert any("the code tests something else" in problem for problem in result.problems)


@compilers
def test_wrong_c_is_found_by_running_it_and_in_its_machine_code(cc: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(strategy: Strategy, style: Style) -> str:
        return emit_c(strategy, style).replace("== EXIT_REASON_HLT", "== EXIT_REASON_INVD")

    monkeypatch.setattr("lzero.dispatch.verify_c.emit_c", wrong)
    monkeypatch.setattr("lzero.dispatch.prove.emit_c", wrong)
    assert not verify_c(STRATEGIES["chain"], find_compiler(cc), "standalone").kept
    with pytest.raises(
        ToolError, match="calls kvm_emulate_invd for exit reason 12|calls kvm_emulate_halt for exit reason 13"
    ):
        check_by_running(STRATEGIES["chain"], [find_compiler(cc)])


def test_prove_finds_exactly_what_is_wrong_with_the_range_as_written() -> None:
    found = differences(STRATEGIES["table"], STRATEGIES["range_as_written"])
    assert {reason for d in found for reason in range(d.first, d.last + 1)} == {18, 50, 53, 59}
    assert {(d.left, d.right) for d in found if d.first == 18} == {("kvm_emulate_hypercall", "handle_vmx_instruction")}
    assert {d.right for d in found if d.first != 18} == {None}


def test_head_names_the_origin_and_cannot_be_closed_by_it() -> None:
    text = emit_c(PLANNED, "kernel")
    head = text[: text.index("*/")]
    assert "strategy planned * / by somebody, made by lzero" in head
    assert "Profile: a trace * / with a comment's end / * and ?" in head
    assert "Samples: 1,000" in head and "CPU: a CPU" in head and "Date: not given" in head
    assert "\n#ifdef CONFIG_MITIGATION_RETPOLINE\n" in text


def test_kernel_style_indents_with_tabs_and_fits() -> None:
    for strategy in EVERY:
        for line in emit_c(strategy, "kernel").splitlines():
            assert not line.startswith("  ") and len(line.expandtabs(8)) <= 100 and line == line.rstrip()


def test_unknown_style() -> None:
    with pytest.raises(UsageError, match="unknown style 'pretty'"):
        emit_c(STRATEGIES["chain"], "pretty")  # type: ignore[arg-type]  # what a caller might do


# -- compilers that are not what they should be -------------------------------------------------------------------


def fake(directory: Path, name: str, script: str) -> str:
    path = directory / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def test_missing_compiler() -> None:
    with pytest.raises(ToolError, match="'no-such-cc' not found: install gcc or clang"):
        find_compiler("no-such-cc")


def test_program_that_is_no_compiler(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match="neither gcc nor clang"):
        find_compiler(fake(tmp_path, "cc1", "echo hello"))


def test_compiler_for_another_machine(tmp_path: Path) -> None:
    script = 'test "$1" = --version && echo "gcc 12 Free Software Foundation" || echo aarch64-linux-gnu'
    with pytest.raises(ToolError, match="makes code for aarch64-linux-gnu"):
        find_compiler(fake(tmp_path, "cc2", script))


OLD_GCC = """case "$1" in
--version) echo "gcc (old) 4.8 Free Software Foundation";;
-dumpmachine) echo x86_64-linux-gnu;;
*) echo "cc: error: something is wrong" >&2; exit 1;;
esac"""


def test_compiler_that_lacks_an_option(tmp_path: Path) -> None:
    compiler = find_compiler(fake(tmp_path, "cc3", OLD_GCC))
    with pytest.raises(ToolError, match=r"lacks -mindirect-branch=thunk-extern .* no retpoline build"):
        toolchain.retpoline_flags(compiler)


def test_compiler_that_fails(tmp_path: Path) -> None:
    compiler = find_compiler(fake(tmp_path, "cc4", OLD_GCC))
    with pytest.raises(ToolError, match="failed with status 1\ncc: error: something is wrong"):
        toolchain.compile_object(compiler, "int x;", (), tmp_path / "x.o")
    assert not (tmp_path / "x.o").exists()
