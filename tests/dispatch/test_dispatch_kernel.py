"""Emitted text inside a real kernel's vmx.c, built by the kernel's own build system."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "emit-in-kernel"
SOURCE = ROOT / ".cache" / "kernel-build" / "source" / "arch" / "x86" / "kvm" / "vmx" / "vmx.c"


@pytest.mark.slow
@pytest.mark.skipif(not SOURCE.exists(), reason="scripts/emit-in-kernel has not fetched the kernel's source (170 MB)")
def test_range_in_vmx_c() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), "range"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "range: built without warnings, indirect branches in vmx_handle_exit: 0\n"
