"""The bundled guests and Debian's kernel on lzero itself."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

import pytest
from benchruns import BENCH_RUNS

from lzero import Machine
from lzero.result import Ended, RunResult

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

from guestkit import debian, initramfs  # noqa: E402  (the scripts' package is found through the line above)


def run(name: str, *options: str) -> tuple[int | None, str]:
    """Debug-exit value and console of one bundled guest."""
    console = io.BytesIO()
    result = Machine(f"guest:{name}", options, memory="64M", quiet=True, console=console, timeout="host:120").run()
    assert result.ended is Ended.DEBUG_EXIT, result.message
    return result.debug_exit, console.getvalue().decode().replace("\r", "")


@pytest.mark.parametrize("name", ["hello", "hello32"])
def test_hello_runs_as_on_another_machine(name: str) -> None:
    value, console = run(name, "ticks=3", "exit=5")
    assert value == 5
    assert "msr: unknown 0x12345678 raises #GP" in console
    assert "exceptions: 4 taken (4 expected), #PF error code 0x2, cr2 0x1234567000" in console
    assert "pit: 3 ticks at 100 Hz" in console
    assert console.endswith("hello: done\n")


@pytest.mark.parametrize(("name", "options", "iterations"), BENCH_RUNS)
def test_benchmark_guests_reach_their_end(name: str, options: tuple[str, ...], iterations: int) -> None:
    value, console = run(name, *options)
    assert value == 0
    assert f"bench {name.removeprefix('bench_')} iterations={iterations} tsc=" in console


def test_every_l2_guest_of_the_bundled_l1_runs_right() -> None:
    value, console = run("l1")
    assert value == 0
    assert console.endswith("l1: 13 right, 0 wrong, 0 skipped\n")


@pytest.mark.parametrize("shadow_vmcs", ["off", "default"])
def test_round_trip_needs_two_reads_one_write_one_resume(shadow_vmcs: str) -> None:
    result = Machine(
        "guest:l1_roundtrip", ("count=1000",), memory="64M", quiet=True, console=io.BytesIO(), shadow_vmcs=shadow_vmcs
    ).run()
    assert result.debug_exit == 0
    assert result.exits_by_reason[2]["CPUID"] == 1000
    if shadow_vmcs == "off":
        assert result.exits_by_reason[1]["VMREAD"] >= 2000
        assert result.exits_by_reason[1]["VMRESUME"] == 1000
    else:
        assert result.exits_by_reason[1].get("VMREAD", 0) < 100


def test_rules_of_the_manual() -> None:
    value, console = run("vmx_rules")
    assert re.findall(r"^rule (\S+) WRONG.*", console, re.MULTILINE) == []
    assert value == 0


def boot(files: debian.DebianFiles, archive: Path, append: str) -> tuple[RunResult, str]:
    """Result and console of Debian's kernel with this initramfs; it must power off."""
    console = io.BytesIO()
    result = Machine(
        files.kernel,
        append=f"console=ttyS0 {append}",
        initrd=archive,
        memory="256M",
        quiet=True,
        console=console,
        timeout="host:300",
    ).run()
    text = "\n" + console.getvalue().decode(errors="replace").replace("\r", "")
    assert result.ended is Ended.POWER_OFF, result.message + text[-2000:]
    return result, text


def test_debian_kernel_boots_works_and_powers_off(files: debian.DebianFiles, tmp_path: Path) -> None:
    archive = tmp_path / "initramfs.cpio"
    archive.write_bytes(initramfs.make(files))
    _, text = boot(files, archive, "lz.task=fork200,syscalls,md5,gzip")
    for line in (
        f"lzero: init on Linux {files.version}",
        "fork: 200 children",
        "syscalls: 100000",
        "2c7ab85a893283e98c931e9511add182  -",
        "245737",
        "lzero: kernel log clean",
        "lzero: power off",
    ):
        assert f"\n{line}\n" in text, text[-3000:]
    ticks = re.search(r"^LOC: +(\d+)", text, re.MULTILINE)
    assert ticks is not None and int(ticks[1]) > 10


def test_debian_kvm_runs_its_guests(files: debian.DebianFiles, tmp_path: Path) -> None:
    archive = tmp_path / "initramfs.cpio"
    archive.write_bytes(initramfs.make(files, with_kvm=True))
    result, text = boot(files, archive, "lz.task=kvm")
    assert "vmx" in re.search(r"^flags.*", text, re.MULTILINE)[0].split()  # type: ignore[index]  # None fails as well
    for line in (
        "loaded kvm_intel",
        'kvm real mode: port output "hello from real mode"',
        "kvm real mode: mmio wrote 0x41, read 0x42",
        "kvm real mode: 10000 cpuid, sum 70000",
        "kvm real mode: halted after 22 port, 2 mmio exits",
        'kvm 64-bit: port output "hello from 64-bit mode"',
        "kvm 64-bit: mmio wrote 0x41, read 0x42",
        "kvm 64-bit: 10000 cpuid, sum 70000",
        "kvm 64-bit: halted after 24 port, 2 mmio exits",
        "lzero: kvm end 0",
        "lzero: kernel log clean",
    ):
        assert f"\n{line}\n" in text, text[-3000:]
    assert result.exits_by_reason[2]["CPUID"] == 20_000
