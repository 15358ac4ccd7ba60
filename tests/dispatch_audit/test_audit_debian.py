"""The audit against Debian's modules, checked by what binutils shows of the same files."""

from __future__ import annotations

import json
import lzma
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from lzero.cli import main
from lzero.dispatch.audit import BranchKind, ModuleAudit, Shape, audit_module, compare, dispatch_rate
from lzero.errors import UsageError

FindModule = Callable[[str, str], Path]
MODULES = [("6.1", "kvm-intel"), ("6.1", "kvm-amd"), ("6.12", "kvm-intel"), ("6.12", "kvm-amd")]

VMX_CHAIN = ["MSR_WRITE", "PREEMPTION_TIMER", "INTERRUPT_WINDOW", "EXTERNAL_INTERRUPT", "HLT", "EPT_MISCONFIG"]
SVM_CHAIN = [0x7C, 0x64, 0x60, 0x78, 0x400]
"""SVM exit codes MSR, VINTR, INTR, HLT, NPF (APM vol. 2, appendix C)."""


def _listing(path: Path, tmp_path: Path) -> str:
    if shutil.which("objdump") is None:
        pytest.skip("needs objdump")
    if path.suffix == ".xz":
        plain = tmp_path / path.stem
        plain.write_bytes(lzma.decompress(path.read_bytes()))
        path = plain
    command = ["objdump", "-dr", "--no-show-raw-insn", str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _sites_in_listing(listing: str) -> Counter[tuple[str, BranchKind]]:
    """Indirect branches by function and kind as objdump's text shows them."""
    found: Counter[tuple[str, BranchKind]] = Counter()
    function = ""
    indirect = False
    for line in listing.splitlines():
        if label := re.match(r"[0-9a-f]+ <(.*)>:", line):
            function = label[1].removesuffix(".cold")
            continue
        if "R_X86_64" in line:
            if re.search(r"__x86_indirect_thunk_", line):
                found[function, BranchKind.RETPOLINE] += 1
            elif indirect and "pv_ops" in line:
                found[function, BranchKind.PV_OPS] += 1
            continue
        indirect = bool(re.search(r"\t(call|jmp) +\*", line))
    return found


@pytest.mark.parametrize(("series", "name"), MODULES)
def test_branches_agree_with_objdump(debian_module: FindModule, tmp_path: Path, series: str, name: str) -> None:
    path = debian_module(series, name)
    audit = audit_module(path)
    mine = {key: count for key, count in audit.by_function().items() if key[1] is not BranchKind.STATIC_CALL}
    assert mine == _sites_in_listing(_listing(path, tmp_path))
    assert audit.count(BranchKind.PLAIN) == 0
    assert all(branch.patched for branch in audit.branches), "each kind has its own section that lists its sites"


@pytest.mark.parametrize("series", ["6.1", "6.12"])
def test_vmx_dispatch(debian_module: FindModule, series: str) -> None:
    audit = audit_module(debian_module(series, "kvm-intel"))
    assert audit.dispatch.function == "vmx_handle_exit"
    assert audit.dispatch.shape is Shape.CHAIN
    assert [audit.reason_name(test.reason) for test in audit.dispatch.tests] == VMX_CHAIN
    assert (audit.dispatch.bound, audit.dispatch.speculation_clamp, audit.dispatch.null_check) == (75, True, True)
    assert audit.dispatch.unknown == ()
    table = audit.table
    assert table is not None
    assert (table.symbol, table.slots, len(table.handlers), table.writable) == ("kvm_vmx_exit_handlers", 76, 52, True)
    assert table.handlers[10] == "kvm_emulate_cpuid"
    assert table.handlers[48] == "handle_ept_violation"
    assert {table.handlers[reason] for reason in table.overrides} == {"handle_vmx_instruction"}
    assert sorted(table.overrides) == [*range(19, 28), 50, 53, 59]
    assert table.overrides[24] == "handle_vmresume"
    assert table.overridden_by == "nested_vmx_hardware_setup"


@pytest.mark.parametrize(("series", "filled"), [("6.1", 71), ("6.12", 70)])
def test_svm_dispatch(debian_module: FindModule, series: str, filled: int) -> None:
    audit = audit_module(debian_module(series, "kvm-amd"))
    assert audit.dispatch.function == "svm_invoke_exit_handler"
    assert audit.dispatch.shape is Shape.CHAIN
    assert [test.reason for test in audit.dispatch.tests] == SVM_CHAIN
    names = [audit.reason_name(test.reason) for test in audit.dispatch.tests]
    assert names == ["msr", "vintr", "interrupt", "hlt", "npf"]
    assert audit.dispatch.null_check
    table = audit.table
    assert table is not None
    assert (len(table.handlers), table.writable, table.overrides) == (filled, False, {})
    assert table.handlers[0x400] == "npf_interception"


def test_the_dispatch_site_is_a_retpoline_through_the_table(debian_module: FindModule) -> None:
    audit = audit_module(debian_module("6.1", "kvm-intel"))
    (site,) = [branch for branch in audit.branches if branch.offset == audit.dispatch.branch_offset]
    assert (site.function, site.kind, site.through) == (
        "vmx_handle_exit",
        BranchKind.RETPOLINE,
        "kvm_vmx_exit_handlers[]",
    )


def test_against(debian_module: FindModule) -> None:
    older = audit_module(debian_module("6.1", "kvm-intel"))
    newer = audit_module(debian_module("6.12", "kvm-intel"))
    difference = compare(older, newer)
    assert difference.tests == ()
    assert ("vmx_deliver_interrupt", BranchKind.RETPOLINE, 2, 0) in difference.branches
    assert compare(older, older).same


def test_retpolines_per_second(debian_module: FindModule, tmp_path: Path) -> None:
    audit = audit_module(debian_module("6.1", "kvm-intel"))
    counts = tmp_path / "counts.csv"
    counts.write_text("reason,count\nMSR_WRITE,60\nVMREAD,30\nCPUID,10\n")
    rate = dispatch_rate(audit, str(counts), exits_per_second=1000)
    assert (rate.exits, dict(rate.through_table), rate.retpoline) == (100, {23: 30, 10: 10}, True)
    assert rate.per_second == pytest.approx(400)
    assert dispatch_rate(audit, str(counts)).per_second is None
    recording = tmp_path / "trace.parquet"
    _write_recording(recording, reasons=[32, 10, 10, 64], step_ns=1_000_000)
    recorded = dispatch_rate(audit, str(recording))
    assert recorded.per_second == pytest.approx(2 / 0.003)
    assert dict(recorded.without_handler) == {64: 1}


def _write_recording(path: Path, reasons: list[int], step_ns: int) -> None:
    import polars

    polars.DataFrame({"reason": reasons, "host_ns": [step_ns * row for row in range(len(reasons))]}).write_parquet(path)


def test_a_vmx_profile_does_not_fit_an_svm_module(debian_module: FindModule) -> None:
    audit: ModuleAudit = audit_module(debian_module("6.1", "kvm-amd"))
    with pytest.raises(UsageError, match="VT-x exit reasons"):
        dispatch_rate(audit, "skewed")


@pytest.mark.parametrize(("series", "name"), MODULES)
def test_command(debian_module: FindModule, capsys: pytest.CaptureFixture[str], series: str, name: str) -> None:
    path = str(debian_module(series, name))
    assert main(["dispatch", "audit", path, "--against", path]) == 0
    text = capsys.readouterr().out
    assert "chain of equality tests, then the table" in text
    assert "the same branches by function, the same tests, the same table" in text
    assert main(["dispatch", "audit", path, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["dispatch"]["shape"] == "chain"
    assert len(document["branches"]) == sum(document["counts"].values())


def test_command_refuses_what_is_no_module(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "text.ko"
    path.write_text("hello\n")
    assert main(["dispatch", "audit", str(path)]) == 66
    assert capsys.readouterr().err.count("\n") == 1
