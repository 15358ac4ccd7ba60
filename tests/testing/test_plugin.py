"""The pytest plugin, in a pytest of its own, with a machine whose exits are known."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from xml.etree import ElementTree

import pytest

from exitsmaker import nested
from lzero.options import MachineOptions
from lzero.result import Ended, RunResult

TEST = """
import pytest

@pytest.mark.lzero(image="l1.elf", args="cpuid 5", memory="64M")
def test_cheap(exits):
    assert exits.per("CPUID", level=2).vmreads <= 10
"""


class KnownMachine:
    """A machine that does not run: says what it was asked for on its console and returns known exits."""

    vmreads = 9
    asked: list[MachineOptions] = []

    def __init__(self, *, options: MachineOptions) -> None:
        self.options = options

    def run(self) -> RunResult:
        self.asked.append(self.options)
        assert self.options.console is not None and self.options.record is not None and self.options.stdin is not None
        self.options.console.write(b"hello " + self.options.stdin.read())
        self.options.record.write_bytes(b"trace")
        return RunResult(Ended.DEBUG_EXIT, debug_exit=0, aggregates=nested(vmreads=self.vmreads))


@pytest.fixture
def session(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A directory with a guest and a test of it."""
    # The inner pytest forgets what it imported, and these cannot be imported twice: they are loaded before.
    for package in ("numpy", "polars"):
        import_module(package)
    module = ModuleType("lzero.machine")
    module.Machine = KnownMachine  # type: ignore[attr-defined]  # a stand-in for the real module
    monkeypatch.setitem(sys.modules, "lzero.machine", module)
    monkeypatch.setattr(KnownMachine, "vmreads", 9)
    monkeypatch.setattr(KnownMachine, "asked", [])
    pytester.makeini("[pytest]\naddopts = --strict-markers\n")
    pytester.path.joinpath("l1.elf").write_bytes(b"guest")
    pytester.makepyfile(TEST)
    return pytester


def test_skipped_unless_asked_for(session: pytest.Pytester) -> None:
    result = session.runpytest_inprocess("-rs")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["*runs a guest: pytest --lzero*"])
    assert not KnownMachine.asked


def test_runs_the_marked_guest_with_its_options(session: pytest.Pytester) -> None:
    session.runpytest_inprocess("--lzero").assert_outcomes(passed=1)
    (options,) = KnownMachine.asked
    assert options.image == session.path / "l1.elf"
    assert options.args == ("cpuid", "5")
    assert options.memory_bytes == 64 << 20
    assert (options.timeout_s, options.timeout_kind) == (60.0, "host")


def test_a_failure_shows_table_and_causes(session: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KnownMachine, "vmreads", 33)
    result = session.runpytest_inprocess("--lzero")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*33.0 <= 10*", "*lzero exits*", "* CPUID * 100 * 33.00 *", "hello *"])


def test_a_failure_compares_with_the_last_passing_run(
    session: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    session.runpytest_inprocess("--lzero", "--lzero-traces=kept").assert_outcomes(passed=1)
    (kept,) = (session.path / "kept").iterdir()
    assert kept.name.startswith("test_cheap-") and kept.suffix == ".parquet"
    asked = []
    monkeypatch.setattr("lzero.testing.plugin._difference", lambda before, after: asked.append(before) or "9 to 33")
    monkeypatch.setattr(KnownMachine, "vmreads", 33)
    result = session.runpytest_inprocess("--lzero", "--lzero-traces=kept")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*against those of the last passing run*", "9 to 33"])
    assert [path.name for path in asked] == [kept.name]
    # The failing run does not replace what it was compared with.
    assert len(list((session.path / "kept").iterdir())) == 1


def test_an_unreadable_earlier_trace_hides_nothing(session: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    session.runpytest_inprocess("--lzero").assert_outcomes(passed=1)
    monkeypatch.setattr(KnownMachine, "vmreads", 33)
    result = session.runpytest_inprocess("--lzero")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*lzero exits*", "*cannot compare with *"])


def test_exits_are_properties_in_junit_xml(session: pytest.Pytester) -> None:
    session.runpytest_inprocess("--lzero", "--junitxml=out.xml")
    root = ElementTree.parse(session.path / "out.xml").getroot()
    properties = {entry.get("name"): entry.get("value") for entry in root.iter("property")}
    assert properties["lzero.L2.CPUID"] == "100"
    assert properties["lzero.L1.VMREAD"] == "900"


def test_machine_runs_as_often_as_the_test_likes(session: pytest.Pytester) -> None:
    session.makepyfile(
        """
        import pytest
        from lzero import LzeroError

        @pytest.mark.lzero("l1.elf")
        def test_twice(machine):
            first = machine.run("a", stdin=b"there")
            second = machine.run(nested="off", memory="2M")
            assert first.text == "hello there" and second.console == b"hello "
            assert first.result.exit_status == 1
            assert first.trace != second.trace
            assert machine.last is second

        @pytest.mark.lzero("nobody.elf")
        def test_no_image(machine):
            with pytest.raises(LzeroError, match="nobody.elf"):
                machine.run()
            with pytest.raises(LzeroError, match="has not run"):
                machine.last
        """
    )
    session.runpytest_inprocess("--lzero").assert_outcomes(passed=2)
    assert [(options.args, options.nested) for options in KnownMachine.asked] == [(("a",), True), ((), False)]


@pytest.mark.parametrize("marker", ["", "@pytest.mark.lzero()"])
def test_a_fixture_without_a_guest_says_what_to_write(session: pytest.Pytester, marker: str) -> None:
    session.makepyfile(f"import pytest\n{marker}\ndef test_it(exits): pass")
    result = session.runpytest_inprocess("--lzero")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*@pytest.mark.lzero(image=...)*"])
