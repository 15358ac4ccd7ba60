"""``lzero dispatch list, show, prove, emit`` and plan files, with what can be wrong about them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lzero.cli import main
from lzero.dispatch.plan_file import load_strategy, read_plan, strategy_from_json, strategy_to_json, write_plan
from lzero.dispatch.strategies import STRATEGIES, Provenance, Strategy
from lzero.errors import PlanError, ToolError, UsageError


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dispatch", "list", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == list(STRATEGIES)
    assert {row["label"] for row in rows} == {f"S{number}" for number in range(1, 8)}


@pytest.mark.parametrize("form", ["tree", "c", "python", "json"])
@pytest.mark.parametrize("name", list(STRATEGIES))
def test_show(form: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dispatch", "show", name, "--as", form]) == 0
    assert "handle_vmread" in capsys.readouterr().out or (
        form == "c" and name in ("table", "chain", "chain_today", "small_switch")
    )


def test_path_of_a_reason(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dispatch", "show", "chain", "--reason", "HLT"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "12 (HLT):",
        "  reason == EXIT_REASON_MSR_WRITE? no",
        "  reason == EXIT_REASON_PREEMPTION_TIMER? no",
        "  reason == EXIT_REASON_INTERRUPT_WINDOW? no",
        "  reason == EXIT_REASON_EXTERNAL_INTERRUPT? no",
        "  reason == EXIT_REASON_HLT? yes",
        "  kvm_emulate_halt",
    ]


def test_path_that_depends_on_nested(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dispatch", "show", "range", "--reason", "vmread"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("23 (VMREAD), not nested:\n  switch\n  call nested_vmx_handle_vmx_instruction")
    assert text.endswith("  nested? yes\n  switch\n  handle_vmread\n")


@pytest.mark.parametrize(
    ("reason", "message"), [("VMRAED", "did you mean VMREAD"), ("65536", "does not fit the 16 bits")]
)
def test_unknown_reason(reason: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dispatch", "show", "chain", "--reason", reason]) == UsageError.exit_status
    assert message in capsys.readouterr().err


def test_prove_equal(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dispatch", "prove", "table", "range", "--trees-only"]) == 0
    assert "agree on all 65,536 exit reasons under all 4" in capsys.readouterr().out


def test_prove_different(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dispatch", "prove", "table", "range_as_written", "--trees-only", "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["equal"] is False
    assert {row["first"] for row in document["differences"]} == {18, 50, 53, 59}


def test_emit_writes_a_checked_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "dispatch.c"
    assert main(["dispatch", "emit", "chain", "--cc", "gcc", "-o", str(output)]) == 0
    assert "OPTIMIZER_HIDE_VAR(reason);" in output.read_text()
    assert "order of tests kept, 1 retpoline" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [output]


def test_emit_without_permission_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["dispatch", "emit", "chain", "--no-check", "-o", str(tmp_path / "absent" / "x.c")])
        == UsageError.exit_status
    )
    assert re.search(r"cannot write \S*x\.c: No such file or directory", capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


def test_emit_with_a_missing_compiler_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "x.c"
    assert main(["dispatch", "emit", "chain", "--cc", "no-such-cc", "-o", str(output)]) == ToolError.exit_status
    assert "compiler 'no-such-cc' not found" in capsys.readouterr().err
    assert not output.exists()


def test_unknown_strategy_suggests(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dispatch", "show", "chian"]) == UsageError.exit_status
    assert "unknown dispatch strategy 'chian': did you mean 'chain'?" in capsys.readouterr().err


@pytest.mark.parametrize(("label", "name"), [("S1", "table"), ("s2", "chain"), ("S7", "range")])
def test_a_label_of_the_debate_is_its_first_strategy(label: str, name: str) -> None:
    assert load_strategy(label).name == name


def test_an_empty_name_is_no_strategy() -> None:
    with pytest.raises(UsageError):
        load_strategy("")


def test_absent_plan() -> None:
    with pytest.raises(UsageError, match=r"PLAN.json: no such plan file"):
        load_strategy("PLAN.json")


def plan() -> dict:
    provenance = Provenance(source="x", date="2026-11-22", samples=5, details={"bound": 1.5})
    return strategy_to_json(Strategy("p", "", "s", STRATEGIES["range_tests"].root, provenance=provenance))


def test_plan_round_trip(tmp_path: Path) -> None:
    for strategy in STRATEGIES.values():
        write_plan(tmp_path / "PLAN.json", strategy)
        assert load_strategy(tmp_path / "PLAN.json") == strategy
    assert [path.name for path in tmp_path.iterdir()] == ["PLAN.json"]


def spoil(path: str, value: object) -> str:
    """The plan with one place replaced (or removed, for ``...``)."""
    document: object = plan()
    *parents, last = path.split(".")
    place = document
    for key in parents:
        place = place[int(key)] if isinstance(place, list) else place[key]  # type: ignore[index]  # JSON
    if value is ...:
        del place[last]  # type: ignore[attr-defined]
    else:
        place[last] = value  # type: ignore[index]
    return json.dumps(document)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON: line 1"),
        ("{", "not JSON"),
        ("[]", "not a dispatch plan"),
        ("[" * 100_000, "nested too deeply|not JSON"),
        (spoil("format", "else"), "not a dispatch plan"),
        (spoil("version", 2), "version 2, this lzero reads version 1"),
        (spoil("tree", ...), "'tree' is missing"),
        (spoil("tree", 3), "tree.tree: expected dict, found int"),
        (spoil("tree.node", "maybe"), "tree.node: unknown kind 'maybe'"),
        (spoil("tree.first", ...), "tree: 'first' is missing"),
        (spoil("tree.first", "19"), "tree.first: expected int, found str"),
        (spoil("tree.first", True), "tree.first: expected int, found bool"),
        (spoil("tree.first", 70000), "tree: start of range is 70000, outside 0..65535"),
        (spoil("tree.first", -1), "tree: start of range is -1, outside"),
        (spoil("tree.then.function", "a b"), "tree.then: function 'a b' is no C identifier"),
        (spoil("tree.then.body.test", "full moon"), "tree.then.body.test: unknown condition 'full moon'"),
        (spoil("tree.then.body.then.cases.0.first", 25), "case 25 ... 19 is empty|two cases"),
        (spoil("provenance.samples", "many"), "provenance.samples: expected int, found str"),
    ],
)
def test_bad_plans_say_what_and_where(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "PLAN.json"
    path.write_text(text)
    with pytest.raises(PlanError, match=message) as caught:
        read_plan(path)
    assert str(caught.value).startswith(f"{path}: ")


KEYS = "node handler reason bound first last then otherwise cases default slots target patches condition test const"
KINDS = "leaf unexpected eq less range condition switch table out_of_line nested failed_entry handle_a"
scalars = st.none() | st.booleans() | st.integers(-1, 70_000) | st.floats() | st.sampled_from(KINDS.split())
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*KEYS.split(), "function", "body"]), inner, max_size=6)
    ),
    max_leaves=20,
)


@given(values, st.sampled_from(["tree", "provenance", "name", "keeps_order", "tree.then", "tree.then.body"]))
@settings(max_examples=300, deadline=None)
def test_no_plan_breaks_the_reader(value: object, place: str) -> None:
    """Whatever stands in a plan file, the answer is a strategy or a PlanError."""
    document = plan()
    *parents, last = place.split(".")
    target = document
    for key in parents:
        target = target[key]
    target[last] = value
    try:
        strategy_from_json(document)
    except PlanError as error:
        assert str(error)


def test_plan_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "PLAN.json"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PlanError, match="not text"):
        read_plan(path)


def test_import_is_light() -> None:
    heavy = "unicorn polars plotly numpy iced_x86 elftools rich"
    code = f"import sys, lzero.dispatch, lzero.cli.dispatch; print([m for m in '{heavy}'.split() if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
