"""Kernel modules to audit: Debian's own, and small ones compiled here."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

CACHE = Path(__file__).resolve().parents[2] / ".cache" / "kernels"
APT_TIMEOUT = 300


def _output(*command: str, cwd: Path | None = None) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=APT_TIMEOUT, cwd=cwd, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def _package(series: str) -> str | None:
    """Name of the newest signed cloud kernel package of a series that apt knows here."""
    pattern = rf"linux-image-{re.escape(series)}\.[0-9][^\s]*-cloud-amd64$"
    names = [name for name in _output("apt-cache", "pkgnames", "linux-image-").split() if re.fullmatch(pattern, name)]
    return max(names, key=lambda name: [int(number) for number in re.findall(r"\d+", name)], default=None)


def _extract(package: str) -> Path | None:
    """Folder with the package's KVM modules, downloaded with apt at most once."""
    target = CACHE / package
    if not any(target.glob("kvm*.ko*")):
        CACHE.mkdir(parents=True, exist_ok=True)
        if not any(CACHE.glob(f"{package}_*.deb")):
            _output("apt-get", "download", package, cwd=CACHE)
        archive = next(CACHE.glob(f"{package}_*.deb"), None)
        if archive is None:
            return None
        unpacked = CACHE / f"{package}.unpacked"
        _output("dpkg-deb", "-x", str(archive), str(unpacked))
        target.mkdir(exist_ok=True)
        for module in unpacked.rglob("kvm*.ko*"):
            shutil.copy(module, target / module.name)
        shutil.rmtree(unpacked, ignore_errors=True)
    return target


@pytest.fixture(scope="session")
def debian_module() -> Callable[[str, str], Path]:
    """``debian_module("6.1", "kvm-intel")``: path of the module of Debian's cloud kernel; skips where it cannot be
    had.
    """
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        pytest.skip("needs apt-get and dpkg-deb to fetch Debian's linux-image-*-cloud-amd64")

    def find(series: str, name: str) -> Path:
        package = _package(series)
        if package is None:
            pytest.skip(f"apt knows no linux-image-{series}.*-cloud-amd64 here")
        folder = _extract(package)
        path = next(folder.glob(f"{name}.ko*"), None) if folder is not None else None
        if path is None:
            pytest.skip(f"package {package} cannot be downloaded here")
        return path

    return find


PRELUDE = """
struct vcpu { unsigned int exit_reason; };
int handle_a(struct vcpu *v); int handle_b(struct vcpu *v); int handle_c(struct vcpu *v); int unexpected(struct vcpu
*v); int local_handler(struct vcpu *v) { return v->exit_reason + 3; }
"""


@pytest.fixture
def compiled(tmp_path: Path) -> Callable[..., Path]:
    """``compiled(source, *options)``: a relocatable object made from C, as the kernel's compiler flags make one."""
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc")

    def build(source: str, *options: str, name: str = "kvm-test.ko") -> Path:
        (tmp_path / "source.c").write_text(PRELUDE + source)
        target = tmp_path / name
        flags = [
            "-O2",
            "-mcmodel=kernel",
            "-fno-pic",
            "-fno-jump-tables",
            "-fcf-protection=none",
            "-fno-stack-protector",
        ]
        command = ["gcc", *flags, *options, "-c", str(tmp_path / "source.c"), "-o", str(target)]
        subprocess.run(command, check=True, capture_output=True, text=True)
        return target

    return build
