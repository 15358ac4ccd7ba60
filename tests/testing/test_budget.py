"""Budgets: read from TOML, held against exits, told as text and JUnit XML."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exitsmaker import nested
from lzero.cli import main
from lzero.errors import UsageError
from lzero.sdm.exit_reasons import ExitReason
from lzero.testing import Budget, Exits, Verdict, check, load_budgets
from lzero.testing.budget import METRICS, report
from lzero.testing.junit import junit
from lzero.trace.recorder import Recorder

FILE = """
[L2.CPUID]
vmreads = 10
exits = { min = 2, max = 20 }
count = { min = 1 }

[L2.CPUID.caused]
WRMSR = 1
INVEPT = 0

[L1.total]
count = 5_000

[L2.EPT_VIOLATION]
count = 0
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "budgets.toml"
    path.write_text(FILE)
    return path


def verdicts_of(exits: Exits, file: Path) -> dict[str, Verdict]:
    return {verdict.budget.name: verdict for verdict in check(exits, load_budgets(file))}


def test_all_kept(file: Path) -> None:
    verdicts = verdicts_of(Exits(nested()), file)
    assert {name: verdict.value for name, verdict in verdicts.items()} == {
        "L2.CPUID.vmreads": 9.0,
        "L2.CPUID.exits": 15.0,
        "L2.CPUID.count": 100.0,
        "L2.CPUID.caused.WRMSR": 1.0,
        "L2.CPUID.caused.INVEPT": 0.0,
        "L1.total.count": 1500.0,
        "L2.EPT_VIOLATION.count": 0.0,
    }
    assert all(verdict.kept for verdict in verdicts.values())


def test_limits_are_inclusive_and_one_more_is_over(file: Path) -> None:
    assert verdicts_of(Exits(nested(vmreads=10)), file)["L2.CPUID.vmreads"].kept
    over = verdicts_of(Exits(nested(vmreads=11)), file)["L2.CPUID.vmreads"]
    assert not over.kept
    assert str(over) == "OVER L2.CPUID.vmreads: 11 (at most 10)"


def test_too_few_is_over_too(file: Path) -> None:
    few = verdicts_of(Exits(nested(vmreads=0, vmwrites=0, others=0)), file)["L2.CPUID.exits"]
    assert str(few) == "OVER L2.CPUID.exits: 1 (2 to 20)"


def test_a_mean_of_exits_that_never_happened_guards_nothing(file: Path) -> None:
    verdicts = verdicts_of(Exits(nested(cpuid=0)), file)
    assert str(verdicts["L2.CPUID.vmreads"]) == "OVER L2.CPUID.vmreads: no such exit in the trace (at most 10)"
    assert str(verdicts["L2.CPUID.count"]) == "OVER L2.CPUID.count: 0 (at least 1)"
    assert verdicts["L2.EPT_VIOLATION.count"].kept


@pytest.mark.parametrize("metric", METRICS)
def test_every_metric_is_a_figure(metric: str) -> None:
    verdict = check(Exits(nested()), [Budget(2, "CPUID", metric, 0, 1e9)])[0]
    assert verdict.kept


MISTAKES = {
    "L2.CPUID.vmread = 1": "L2.CPUID.vmread: no such figure; there are count",
    "L3.CPUID.count = 1": r"table \[L3\] names no level",
    "L2 = 1": "L2 is 1: a table such as",
    "L2.CPUID = 1": "L2.CPUID is 1: a table such as",
    "L2.CPUID.caused = 1": "L2.CPUID.caused is 1: a table such as",
    "L2.CPUID.count = 'few'": "'few' is no number",
    "L2.CPUID.count = true": "True is no number",
    "L2.CPUID.count = nan": "nan is no number",
    "L2.CPUID.count = { most = 1 }": "write a number",
    "L2.CPUID.count = { }": "write a number",
    "L2.CPUID.count = { min = 2, max = 1 }": "at least 2 and at most 1",
    "L1.total.vmreads = 1": "only the count can be limited",
    "": "has no budget",
    "L2.CPUID.count": "is no TOML file",
}


@pytest.mark.parametrize("text", MISTAKES)
def test_a_mistake_in_the_file_names_its_key(text: str, file: Path) -> None:
    file.write_text(text)
    with pytest.raises(UsageError, match=MISTAKES[text]) as refusal:
        load_budgets(file)
    assert str(file) in str(refusal.value)


def test_no_file() -> None:
    with pytest.raises(UsageError, match="cannot read the budgets /nowhere: No such file"):
        load_budgets(Path("/nowhere"))


def test_a_reason_that_is_none(file: Path) -> None:
    file.write_text("L2.CPUIT.count = 1")
    with pytest.raises(UsageError, match="CPUIT"):
        check(Exits(nested()), load_budgets(file))


@given(st.text() | st.binary())
def test_any_file_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, text: str | bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    try:
        check(Exits(nested()), load_budgets(path))
    except UsageError as refusal:
        assert str(path) in str(refusal)


def test_report_of_kept_budgets_is_short(file: Path) -> None:
    exits = Exits(nested())
    text = report(exits, check(exits, load_budgets(file)))
    assert text.splitlines()[-1] == "7 budgets kept, 0 not"
    assert "VM-EXIT" not in text


def test_report_of_a_broken_budget_shows_table_causes_and_change(file: Path) -> None:
    exits = Exits(nested(vmreads=33))
    text = report(exits, check(exits, load_budgets(file)), change="VMREAD: 9 to 33")
    assert "OVER L2.CPUID.vmreads: 33 (at most 10)" in text
    assert "VM-EXIT" in text
    assert re.search(r"^ +CPUID +100 +33\.00 ", text, re.MULTILINE)
    assert text.endswith("Against the trace recorded before:\n\nVMREAD: 9 to 33\n")


def test_junit_has_a_case_for_each_budget(file: Path) -> None:
    exits = Exits(nested(vmreads=33))
    suite = ElementTree.fromstring(junit("a.parquet", check(exits, load_budgets(file)), "why\x1b"))
    assert (suite.get("name"), suite.get("tests"), suite.get("failures")) == ("lzero budget: a.parquet", "7", "2")
    failed = suite.findall("testcase[failure]")
    assert [(case.get("classname"), case.get("name")) for case in failed] == [
        ("budget.L2.CPUID", "vmreads"),
        ("budget.L2.CPUID", "exits"),
    ]
    assert failed[0].find("failure").text == "why?"  # type: ignore[union-attr]  # found by the predicate above


def recorded(path: Path, vmreads: int) -> str:
    """A trace of ten CPUID exits of L2, each with so many VMREADs and a VMRESUME of L1."""
    with Recorder(path) as recorder:
        for number in range(10):
            first = number * (vmreads + 2)
            record(recorder, first, -1, 2, ExitReason.CPUID, handled_by=2)
            for child in range(vmreads):
                record(recorder, first + 1 + child, first, 1, ExitReason.VMREAD)
            record(recorder, first + 1 + vmreads, first, 1, ExitReason.VMRESUME)
    return str(path)


def record(recorder: Recorder, seq: int, parent: int, level: int, reason: int, handled_by: int = 1) -> None:
    recorder.record(seq, parent, 0, level, reason, 0, 0x1000, 2, 0, 0, 0, -1, seq, seq * 1000, 500, handled_by)


COMMAND_FILE = "L2.CPUID.vmreads = 10\nL2.CPUID.exits = 20\n"


def test_command_ends_with_0_when_all_is_kept(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text(COMMAND_FILE)
    trace = recorded(tmp_path / "now.parquet", 9)
    assert main(["budget", "check", trace, "--budgets", str(file), "--against", "/nowhere"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "2 budgets kept, 0 not"


def test_command_ends_with_86_and_says_why(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text(COMMAND_FILE)
    before, now = recorded(tmp_path / "then.parquet", 9), recorded(tmp_path / "now.parquet", 33)
    xml = tmp_path / "budgets.xml"
    assert main(["budget", "check", now, "--budgets", str(file), "--against", before, "--junit", str(xml)]) == 86
    out = capsys.readouterr().out
    assert "OVER L2.CPUID.vmreads: 33 (at most 10)" in out
    assert re.search(r"^ +CPUID +10 +33\.00 ", out, re.MULTILINE)
    assert re.search(r"L2 CPUID → L1 VMREAD +9\.00 +33\.00", out)
    assert ElementTree.parse(xml).getroot().get("failures") == "2"


def test_command_reads_another_tools_counts(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text("L1.CPUID.count = 5\n")
    counts = tmp_path / "bpftrace.txt"
    counts.write_text("@[10]: 7\n@[12]: 3\n")
    assert main(["budget", "check", str(counts), "--budgets", str(file)]) == 86
    assert "OVER L1.CPUID.count: 7 (at most 5)" in capsys.readouterr().out


def test_command_without_a_trace(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["budget", "check", "/nowhere.parquet", "--budgets", str(file)]) == 64
    assert "/nowhere.parquet" in capsys.readouterr().err
