"""Debian's own kernel and busybox from its archive, unpacked without root into a cache."""

from __future__ import annotations

import gzip
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache" / "debian"
META_PACKAGE = "linux-image-cloud-amd64"


class FetchError(Exception):
    """A package could not be had; the message says what was tried and what to do."""


@dataclass(frozen=True)
class DebianFiles:
    """Where the unpacked files lie."""

    version: str
    """Kernel release, as `uname -r` prints it."""
    kernel: Path
    modules: Path
    """The folder lib/modules/RELEASE."""
    busybox: Path


def _run(command: list[str], cwd: Path | None = None) -> str:
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise FetchError(f"{command[0]} is not installed: this needs Debian's apt and dpkg-deb") from None
    if done.returncode:
        reason = (done.stderr or done.stdout).strip()
        raise FetchError(f"{' '.join(command)} failed: {reason} (is the package list fresh? apt-get update)")
    return done.stdout


def real_package(meta: str = META_PACKAGE) -> str:
    """The versioned kernel package that the meta package depends on now."""
    for line in _run(["apt-cache", "depends", meta]).splitlines():
        found = re.match(r"\s*Depends: (linux-image-\d\S*)", line)
        if found:
            return found[1]
    raise FetchError(f"{meta} depends on no linux-image package: give one with --package")


def cached(cache: Path = CACHE) -> DebianFiles | None:
    """What an earlier fetch left in the cache; None if there is no complete kernel and busybox."""
    kernels = sorted((cache / "kernel" / "boot").glob("vmlinuz-*"))
    busybox = cache / "busybox" / "bin" / "busybox"
    if not kernels or not busybox.exists():
        return None
    version = kernels[-1].name.removeprefix("vmlinuz-")
    for base in ("lib/modules", "usr/lib/modules"):
        modules = cache / "kernel" / base / version
        if modules.is_dir():
            return DebianFiles(version, kernels[-1], modules, busybox)
    return None


def _download(package: str, cache: Path) -> Path:
    # As root, apt would drop to its own user, who may not write here.
    sandbox = ["-o", "APT::Sandbox::User=root"] if os.geteuid() == 0 else []
    _run(["apt-get", *sandbox, "-qq", "download", package], cwd=cache)
    archives = sorted(cache.glob(f"{package}_*.deb"), key=lambda path: path.stat().st_mtime)
    if not archives:
        raise FetchError(f"apt-get download {package} left no archive in {cache}")
    return archives[-1]


def _unpack(archive: Path, into: Path) -> None:
    # Into a folder beside it first: an interrupted run must not look complete.
    scratch = into.with_name(into.name + ".partial")
    shutil.rmtree(scratch, ignore_errors=True)
    _run(["dpkg-deb", "-x", str(archive), str(scratch)])
    shutil.rmtree(into, ignore_errors=True)
    scratch.rename(into)


def fetch(cache: Path = CACHE, package: str | None = None, refresh: bool = False) -> DebianFiles:
    """The kernel and busybox, from the cache if they are there, else from the archive.

    Raises
    ------
    FetchError
        No apt on this machine, no network, or no such package.
    """
    found = cached(cache)
    if found and not refresh and package in (None, f"linux-image-{found.version}"):
        return found
    cache.mkdir(parents=True, exist_ok=True)
    _unpack(_download(package or real_package(), cache), cache / "kernel")
    _unpack(_download("busybox-static", cache), cache / "busybox")
    found = cached(cache)
    if found is None:
        raise FetchError(f"the packages in {cache} hold no kernel, modules or busybox where Debian puts them")
    return found


def fetch_xen(cache: Path = CACHE, package: str = "xen-hypervisor-4.17-amd64") -> Path:
    """Xen as Debian ships it, unpacked to a multiboot kernel; from the cache if it is there. Raises FetchError."""
    target = cache / "xen.elf"
    if not target.exists():
        cache.mkdir(parents=True, exist_ok=True)
        _unpack(_download(package, cache), cache / "xen")
        packed = sorted((cache / "xen" / "boot").glob("xen-*.gz"))
        if not packed:
            raise FetchError(f"{package} holds no boot/xen-*.gz")
        target.write_bytes(gzip.decompress(packed[0].read_bytes()))
    return target
