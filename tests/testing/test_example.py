"""The example guards the bundled hypervisor, and says so when its exits grow."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from lzero.cli import main

EXAMPLE = Path(__file__).resolve().parents[2] / "examples/guard_l1"


@pytest.fixture
def copied(pytester: pytest.Pytester) -> pytest.Pytester:
    shutil.copytree(EXAMPLE, pytester.path, dirs_exist_ok=True)
    return pytester


def test_example_passes(copied: pytest.Pytester) -> None:
    copied.runpytest_subprocess("--lzero", "-p", "no:cacheprovider").assert_outcomes(passed=3)


def test_example_fails_with_causes_and_differences(copied: pytest.Pytester) -> None:
    copied.runpytest_subprocess("--lzero", "-k", "cpuid").assert_outcomes(passed=1)
    test = copied.path / "test_l1_exits.py"
    # Another workload, and a budget it does not keep: what a change to the hypervisor would do.
    test.write_text(test.read_text().replace("vmreads <= 10", "vmreads <= 3").replace("count=500", "count=400"))
    result = copied.runpytest_subprocess("--lzero", "-k", "cpuid")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "*lzero exits*",
            "What one exit of L2 that is reflected to L1 costs*",
            "*against those of the last passing run*",
            "*L2 CPUID*",
        ]
    )


def test_budgets_of_the_example_on_the_command_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    trace = tmp_path / "l1.parquet"
    main(["run", "guest:l1", "run=cpuid,io,msr", "count=50", "--quiet", "--record", str(trace)])
    assert main(["budget", "check", str(trace), "--budgets", str(EXAMPLE / "budgets.toml")]) == 0
    assert "0 not" in capfd.readouterr().out
