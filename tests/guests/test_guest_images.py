"""The shipped images: complete, what their sources say, and right on another machine (QEMU's TCG)."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from benchruns import BENCH_RUNS

from lzero import guests
from lzero.errors import ImageError

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

from guestkit import images  # noqa: E402  (the scripts' package is found through the line above)

QEMU = shutil.which("qemu-system-x86_64")
needs_qemu = pytest.mark.skipif(QEMU is None, reason="qemu-system-x86_64 is not installed")


def run_under_qemu(name: str, *options: str) -> tuple[int, str]:
    """Debug-exit value and console of one image on QEMU without acceleration."""
    command = [QEMU or "", "-accel", "tcg", "-m", "64", "-display", "none", "-serial", "stdio", "-monitor", "none"]
    command += ["-no-reboot", "-device", "isa-debug-exit,iobase=0xf4,iosize=4"]
    command += ["-kernel", str(guests.path(name)), "-append", " ".join(options)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL, check=False)
    return done.returncode >> 1, done.stdout


def test_manifest_lists_what_the_build_makes() -> None:
    assert [guest.name for guest in guests.available()] == [image.name for image in images.IMAGES]
    assert [guest.description for guest in guests.available()] == [image.description for image in images.IMAGES]


@pytest.mark.parametrize("guest", guests.available(), ids=lambda guest: guest.name)
def test_shipped_file_is_the_recorded_one(guest: guests.Guest) -> None:
    assert hashlib.sha256(guests.path(guest.name).read_bytes()).hexdigest() == guest.sha256


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ImageError, match=r"no bundled guest 'nix'.*hello\.elf"):
        guests.path("nix")


def test_rebuild_gives_the_shipped_bytes(tmp_path: Path) -> None:
    try:
        present = images.toolchain()
    except images.BuildError as error:
        pytest.skip(str(error))
    if present != images.recorded_toolchain():
        pytest.skip(f"images were built by {images.recorded_toolchain()}, this machine has {present}")
    different = [
        path.name for path in images.build(tmp_path) if path.read_bytes() != guests.path(path.name).read_bytes()
    ]
    assert different == []


@needs_qemu
@pytest.mark.parametrize("name", ["hello", "hello32"])
def test_hello_runs_on_another_machine(name: str) -> None:
    value, console = run_under_qemu(name, "ticks=3", "exit=5")
    assert value == 5
    assert "exceptions: 4 taken (4 expected), #PF error code 0x2, cr2 0x1234567000" in console
    assert "pit: 3 ticks at 100 Hz" in console
    assert console.endswith("hello: done\n")


@needs_qemu
@pytest.mark.parametrize(("name", "options", "iterations"), BENCH_RUNS)
def test_benchmarks_report_their_iterations(name: str, options: tuple[str, ...], iterations: int) -> None:
    value, console = run_under_qemu(name, *options)
    assert value == 0
    assert f"bench {name.removeprefix('bench_')} iterations={iterations} tsc=" in console


@needs_qemu
def test_bad_option_ends_with_a_message() -> None:
    value, console = run_under_qemu("bench_cpuid", "count=12x")
    assert (value, console) == (2, "count: not a number\n")
