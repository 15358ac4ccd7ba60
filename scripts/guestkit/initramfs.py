"""An initramfs of busybox, an /init of our own, small static programs and, if wanted, kernel modules."""

from __future__ import annotations

import gzip
import lzma
import re
from collections.abc import Iterator
from pathlib import Path

from guestkit import newc
from guestkit.debian import DebianFiles

ROOT = Path(__file__).resolve().parents[2]
INIT = ROOT / "guests" / "initramfs" / "init"
PROGRAMS = ROOT / "src" / "lzero" / "guests"

APPLETS = "cat dd dmesg echo grep gunzip gzip insmod ls md5sum mount poweroff sh tr uname wc".split()
KVM_MODULES = ("kvm-intel", "kvm-amd")


class InitramfsError(Exception):
    """A module or program that should go into the archive is missing or unreadable."""


def _module_files(modules: Path) -> dict[str, Path]:
    """Modules by name; the kernel treats - and _ as the same."""
    return {path.name.split(".ko")[0].replace("-", "_"): path for path in sorted(modules.rglob("*.ko*"))}


def _module_bytes(path: Path) -> bytes:
    data = path.read_bytes()
    if path.suffix == ".xz":
        return lzma.decompress(data)
    if path.suffix == ".gz":
        return gzip.decompress(data)
    if path.suffix == ".ko":
        return data
    raise InitramfsError(f"{path}: do not know how to unpack a {path.suffix} module")


def _depends(module: bytes) -> list[str]:
    """The modules this one names in its .modinfo section (depmod has not run on an unpacked package)."""
    found = re.search(rb"\0depends=([^\0]*)\0", module)
    return [name.replace("-", "_") for name in found[1].decode().split(",") if name] if found else []


def module_order(modules: Path, wanted: tuple[str, ...]) -> dict[str, bytes]:
    """The wanted modules and all they depend on, in an order in which insmod accepts them."""
    files = _module_files(modules)
    ordered: dict[str, bytes] = {}

    def add(name: str) -> None:
        if name in ordered:
            return
        if name not in files:
            raise InitramfsError(f"no module {name} below {modules}")
        data = _module_bytes(files[name])
        for dependency in _depends(data):
            add(dependency)
        ordered[name] = data

    for name in wanted:
        add(name.replace("-", "_"))
    return ordered


def _entries(files: DebianFiles, with_kvm: bool) -> Iterator[newc.Entry]:
    for folder in ("bin", "dev", "lib", "lib/modules", "proc", "sys", "tmp"):
        yield newc.directory(folder)
    # The kernel opens /dev/console before /init can mount anything.
    yield newc.character_device("dev/console", 5, 1)
    yield newc.regular("init", INIT.read_bytes(), executable=True)
    yield newc.regular("bin/busybox", files.busybox.read_bytes(), executable=True)
    for applet in APPLETS:
        yield newc.symlink(f"bin/{applet}", "busybox")
    for program in sorted(PROGRAMS.glob("*.elf")):
        if program.stem in ("tasks", "kvm_l2"):
            yield newc.regular(f"bin/{program.stem}", program.read_bytes(), executable=True)
    if with_kvm:
        ordered = module_order(files.modules, KVM_MODULES)
        for name, data in ordered.items():
            yield newc.regular(f"lib/modules/{name}.ko", data)
        yield newc.regular("lib/modules/order", "".join(f"{name}\n" for name in ordered).encode())


def make(files: DebianFiles, with_kvm: bool = False) -> bytes:
    """The archive, uncompressed: nothing to unpack for a slow guest, and the same bytes each time."""
    return newc.archive(_entries(files, with_kvm))
