"""The initramfs: its archive form, what goes into it, and a boot of Debian's kernel on QEMU's TCG."""

from __future__ import annotations

import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

from guestkit import debian, initramfs, newc  # noqa: E402  (the scripts' package is found through the line above)

QEMU = shutil.which("qemu-system-x86_64")
needs_qemu = pytest.mark.skipif(QEMU is None, reason="qemu-system-x86_64 is not installed")


def members(data: bytes) -> dict[str, tuple[int, bytes, tuple[int, int]]]:
    """An independent reader of the newc form: path to mode, content and device numbers."""
    found: dict[str, tuple[int, bytes, tuple[int, int]]] = {}
    at = 0
    while True:
        assert data[at : at + 6] == b"070701"
        field = [int(data[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        _, mode, uid, gid, _, mtime, size, _, _, major, minor, name_size, _ = field
        assert (uid, gid, mtime) == (0, 0, 0)
        name = data[at + 110 : at + 110 + name_size - 1].decode()
        start = (at + 110 + name_size + 3) // 4 * 4
        if name == "TRAILER!!!":
            return found
        found[name] = (mode, data[start : start + size], (major, minor))
        at = (start + size + 3) // 4 * 4


def test_archive_round_trip() -> None:
    data = newc.archive(
        [
            newc.directory("dev"),
            newc.character_device("dev/console", 5, 1),
            newc.regular("init", b"#!/bin/sh\n", executable=True),
            newc.regular("empty", b""),
            newc.symlink("sh", "busybox"),
        ]
    )
    read = members(data)
    assert list(read) == ["dev", "dev/console", "init", "empty", "sh"]
    assert read["init"] == (stat.S_IFREG | 0o755, b"#!/bin/sh\n", (0, 0))
    assert read["dev/console"] == (stat.S_IFCHR | 0o600, b"", (5, 1))
    assert read["sh"] == (stat.S_IFLNK | 0o777, b"busybox", (0, 0))


def test_modules_come_after_what_they_need(tmp_path: Path) -> None:
    for name, needs in (("a-top", "b_mid"), ("b-mid", "c,d"), ("c", ""), ("d", "c")):
        (tmp_path / f"{name}.ko").write_bytes(b"\x7fELF\0license=GPL\0depends=" + needs.encode() + b"\0name=x\0")
    assert list(initramfs.module_order(tmp_path, ("a-top",))) == ["c", "d", "b_mid", "a_top"]


def test_missing_module_is_named(tmp_path: Path) -> None:
    with pytest.raises(initramfs.InitramfsError, match="no module kvm_intel below"):
        initramfs.module_order(tmp_path, ("kvm-intel",))


def test_fetch_without_apt_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(debian.FetchError, match="needs Debian's apt and dpkg-deb"):
        debian.fetch(tmp_path / "cache")


def test_initramfs_is_the_same_each_time(files: debian.DebianFiles) -> None:
    first = initramfs.make(files, with_kvm=True)
    assert first == initramfs.make(files, with_kvm=True)
    read = members(first)
    order = read["lib/modules/order"][1].decode().split()
    assert order.index("kvm") < order.index("kvm_intel")
    assert {"init", "bin/busybox", "bin/tasks", "dev/console"} <= set(read)


def boot_under_qemu(files: debian.DebianFiles, archive: Path, append: str, cpu: str = "qemu64") -> str:
    """Console of Debian's kernel with this initramfs on QEMU without acceleration, until it powers off."""
    command = [QEMU or "", "-accel", "tcg", "-cpu", cpu, "-m", "256", "-display", "none", "-serial", "stdio"]
    command += ["-monitor", "none", "-no-reboot", "-kernel", str(files.kernel), "-initrd", str(archive)]
    command += ["-append", f"console=ttyS0 quiet {append}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, stdin=subprocess.DEVNULL, check=False)
    assert done.returncode == 0
    return "\n" + done.stdout.replace("\r", "")


@needs_qemu
def test_linux_runs_the_tasks_on_another_machine(files: debian.DebianFiles, tmp_path: Path) -> None:
    archive = tmp_path / "initramfs.cpio"
    archive.write_bytes(initramfs.make(files))
    console = boot_under_qemu(files, archive, "lz.task=fork200,syscalls,md5,gzip")
    for line in (
        f"lzero: init on Linux {files.version}",
        "fork: 200 children",
        "syscalls: 100000",
        "2c7ab85a893283e98c931e9511add182  -",  # md5 of 16 MiB of zeros
        "245737",  # the compressed size of the generated text
        "lzero: kernel log clean",
        "lzero: power off",
    ):
        assert f"\n{line}\n" in console


@needs_qemu
def test_kvm_program_runs_its_guests_on_another_machine(files: debian.DebianFiles, tmp_path: Path) -> None:
    """QEMU's TCG has no VMX, but SVM: the same program and initramfs with kvm-amd instead of kvm-intel."""
    archive = tmp_path / "initramfs.cpio"
    archive.write_bytes(initramfs.make(files, with_kvm=True))
    console = boot_under_qemu(files, archive, "lz.task=kvm", cpu="EPYC,+svm")
    for mode, ports in (("real mode", 22), ("64-bit", 24)):
        assert f'\nkvm {mode}: port output "hello from {mode}{" mode" if mode == "64-bit" else ""}"\n' in console
        assert f"\nkvm {mode}: mmio wrote 0x41, read 0x42\n" in console
        assert f"\nkvm {mode}: 10000 cpuid, sum 70000\n" in console
        assert f"\nkvm {mode}: halted after {ports} port, 2 mmio exits\n" in console
    assert "\nkvm_l2: ok\nlzero: kvm end 0\n" in console
    console = boot_under_qemu(files, archive, "lz.task=kvm lz.kvm=loops,100", cpu="EPYC,+svm")
    for loop in ("cpuid", "port", "mmio", "msr", "hlt", "ept"):
        assert f"\nkvm loop {loop}: iterations=100 tsc=" in console
    assert "\nlzero: kernel log clean\n" in console
