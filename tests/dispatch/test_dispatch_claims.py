"""The claims command: what it builds, what it concludes, and what can be wrong with its arguments."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from lzero.cli import main
from lzero.dispatch.claims.answers import Comparison
from lzero.dispatch.claims.build import build_inlining, emitted_path
from lzero.dispatch.measure.mitigations import MITIGATIONS
from lzero.dispatch.measure.stats import Interval
from lzero.dispatch.strategies import STRATEGIES
from lzero.dispatch.toolchain import find_compiler
from lzero.errors import UsageError
from lzero.sdm.exit_reasons import ExitReason

compilers = pytest.mark.parametrize(
    "cc",
    [
        pytest.param(name, marks=pytest.mark.skipif(shutil.which(name) is None, reason=f"{name} is not installed"))
        for name in ("gcc", "clang")
    ],
)
RETPOLINE = MITIGATIONS["retpoline"]


@compilers
def test_path_of_a_table_ends_in_its_thunk(cc: str) -> None:
    text = emitted_path(STRATEGIES["table"], find_compiler(cc), RETPOLINE, ExitReason.VMREAD)
    assert text.splitlines()[-1].split(":")[1].split()[0] == "jmp"
    assert "__x86_indirect_thunk_" in text.splitlines()[-1]


@compilers
def test_second_parse_shows_as_a_second_function(cc: str) -> None:
    text = emitted_path(STRATEGIES["const_table_two_parse"], find_compiler(cc), RETPOLINE, ExitReason.VMREAD)
    assert text.index("__x86_indirect_thunk_") < text.index("\nnested_vmx_handle_vmx_instruction:")
    assert text.endswith("jmp handle_vmread")


@compilers
def test_inlined_handlers_are_inlined(cc: str, tmp_path: Path) -> None:
    build = build_inlining(find_compiler(cc), RETPOLINE, tmp_path, layouts=2)
    extern, inlined = build.machine_code[:2]
    assert extern.endswith("jmp handle_vmclear")
    assert "handle_vmclear" not in inlined and "the inlined handler goes on" in inlined
    assert len({program.path for program in build.programs}) == 2


@pytest.mark.parametrize(
    ("value", "low", "high", "noise"), [(5.0, 4.0, 6.0, False), (0.5, 0.4, 0.6, True), (5.0, -1.0, 9.0, True)]
)
def test_noise_is_an_interval_with_zero_or_less_than_a_tick(value: float, low: float, high: float, noise: bool) -> None:
    ticks = Interval(value, low, high)
    assert Comparison("a", "b", "p", "plain", Interval(1.0, 1.0, 1.0), ticks).noise is noise


@pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")
def test_claims_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "claims.json"
    arguments = ["claims", "c2", "--quick", "--cc", "gcc", "--profile", "nested", "--json", str(output)]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "CPU: " in text and "C2 (gcc" in text and "__x86_indirect_thunk_" in text
    [answer] = json.loads(output.read_text())["answers"]
    pairs = {(row["candidate"], row["reference"], row["mode"]) for row in answer["comparisons"]}
    assert ("const_table_two_parse", "table", "plain") in pairs
    for row in answer["comparisons"]:
        assert row["ratio"]["low"] <= row["ratio"]["value"] <= row["ratio"]["high"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["C3"], "claims C3 and C4 need two recordings"),
        (["C9"], "claim C9 cannot be measured here"),
        (["--cc", "no-such-cc"], "compiler 'no-such-cc' not found"),
        (["--mitigation", "hope"], "no mitigation 'hope'"),
    ],
)
def test_bad_arguments(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["claims", *arguments]) != 0
    assert message in capsys.readouterr().err


def test_unknown_profile(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["claims", "--profile", "absent.parquet"]) == UsageError.exit_status
    assert "absent.parquet" in capsys.readouterr().err
