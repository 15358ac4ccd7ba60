"""The bundled guests and Debian's kernel on lzero itself."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

import pytest

from lzero import Machine
from lzero.result import Ended

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


@pytest.mark.parametrize(
    ("name", "options", "iterations"),
    [
        ("bench_cpuid", ("count=1000",), 1000),
        ("bench_integer", ("count=1000",), 1000),
        ("bench_memory", ("count=3", "kib=64"), 3 * 64 * 128),
        ("bench_stores", ("count=1000",), 1000),
        ("bench_syscall", ("count=1000",), 1000),
    ],
)
def test_benchmark_guests_reach_their_end(name: str, options: tuple[str, ...], iterations: int) -> None:
    value, console = run(name, *options)
    assert value == 0
    assert f"bench {name.removeprefix('bench_')} iterations={iterations} tsc=" in console


@pytest.fixture(scope="module")
def files() -> debian.DebianFiles:
    try:
        return debian.fetch()
    except debian.FetchError as error:
        pytest.skip(f"no Debian kernel: {error}")


def test_debian_kernel_boots_works_and_powers_off(files: debian.DebianFiles, tmp_path: Path) -> None:
    archive = tmp_path / "initramfs.cpio"
    archive.write_bytes(initramfs.make(files))
    console = io.BytesIO()
    result = Machine(
        files.kernel,
        append="console=ttyS0 lz.task=fork200,syscalls,md5,gzip",
        initrd=archive,
        memory="256M",
        quiet=True,
        console=console,
        timeout="host:300",
    ).run()
    text = "\n" + console.getvalue().decode(errors="replace").replace("\r", "")
    assert result.ended is Ended.POWER_OFF, result.message + text[-2000:]
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
