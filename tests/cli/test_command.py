"""The ``lzero`` command itself: what it lists, loads, and says when something goes wrong."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import lzero.errors
from lzero.cli import SUB_COMMANDS, main
from lzero.cli.budget import OVER_BUDGET
from lzero.errors import LzeroError
from lzero.result import EXIT_STATUS

ROOT = Path(__file__).resolve().parents[2]


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^  run +Run a guest image", out, re.MULTILINE)


@pytest.mark.parametrize("row", SUB_COMMANDS, ids=lambda row: row.name)
def test_every_command_explains_itself(row: object, capsys: pytest.CaptureFixture[str]) -> None:
    name = getattr(row, "name")  # noqa: B009  # the parameter is typed for pytest's ids
    assert main([name, "--help"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"Usage: lzero {name} ")
    assert "--install-completion" not in out


def test_no_command_is_a_usage_error_that_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 64
    assert "Commands:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["rum"], "No such command 'rum'. Did you mean 'run'?"),
        (["--fast"], "No such option: --fast"),
        (["run", "--memroy", "1G", "image"], "No such option: --memroy"),
        (["run", "--memory"], "Option '--memory' requires an argument"),
    ],
)
def test_a_typing_error_is_said_once_with_where_to_look(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 64
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("error:") == 1
    assert said in captured.err
    assert "--help')" in captured.err


def raising(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def run_machine(options: object) -> None:
        raise error

    monkeypatch.setattr("lzero.cli.run.run_machine", run_machine)


ERRORS = [getattr(lzero.errors, name) for name in lzero.errors.__all__]


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
def test_an_error_is_one_message_and_its_status(
    kind: type[LzeroError], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    error = kind("guest.cs.type", "type 4") if kind is lzero.errors.ConsistencyError else kind("what, where")  # type: ignore[call-arg]  # each kind as it is raised
    raising(monkeypatch, error)
    assert main(["run", sys.executable]) == kind.exit_status
    assert capsys.readouterr().err == f"lzero: error: {error}\n"


def test_a_defect_is_a_message_and_not_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("LZERO_TRACEBACK", raising=False)
    raising(monkeypatch, KeyError("rax"))
    assert main(["run", sys.executable]) == 70
    err = capsys.readouterr().err
    assert "internal error: KeyError: 'rax' (test_command.py:" in err
    assert "Traceback" not in err


def test_a_defect_shows_its_traceback_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LZERO_TRACEBACK", "1")
    raising(monkeypatch, KeyError("rax"))
    with pytest.raises(KeyError):
        main(["run", sys.executable])


def test_ctrl_c_ends_quietly_with_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    raising(monkeypatch, KeyboardInterrupt())
    assert main(["run", sys.executable]) == 130
    assert capsys.readouterr().err == ""


def test_a_reader_that_leaves_is_no_error() -> None:
    # head has left before the first byte: the pipe is broken from the start.
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m lzero --help | true; exit ${{PIPESTATUS[0]}}"],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
    )
    assert done.returncode in (0, 141)
    assert done.stderr == ""


def test_statuses_are_even_and_mean_one_thing() -> None:
    # A debug exit gives an odd status: nothing else may.
    statuses = {kind.exit_status for kind in ERRORS} | set(EXIT_STATUS.values())
    assert all(status % 2 == 0 and 0 <= status < 256 for status in statuses)
    # A status of a run equals that of an error only where both say the same.
    shared = {kind.exit_status for kind in ERRORS} & set(EXIT_STATUS.values())
    assert shared == {68, 70}


def test_documentation_lists_every_status() -> None:
    page = (ROOT / "docs/exit-status.md").read_text()
    listed = {int(status) for status in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)}
    own = {64, 130, 141, OVER_BUDGET}
    assert listed == {kind.exit_status for kind in ERRORS} | set(EXIT_STATUS.values()) | own
