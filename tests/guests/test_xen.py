"""Xen, unmodified from Debian, as L1 with Debian's kernel as its dom0: docs/case-studies/2026-11-22-xen.md."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from lzero import Machine
from lzero.result import Ended

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

from guestkit import debian, initramfs  # noqa: E402  (the scripts' package is found through the line above)


def test_xen_boots_a_dom0(tmp_path: Path) -> None:
    try:
        files, xen = debian.fetch(), debian.fetch_xen()
    except debian.FetchError as error:
        pytest.skip(f"no Xen (Debian package xen-hypervisor-4.17-amd64) or no kernel: {error}")
    archive = tmp_path / "initramfs.cpio"
    archive.write_bytes(initramfs.make(files, False))
    console = io.BytesIO()
    result = Machine(
        xen,
        ["com1=115200,8n1", "console=com1", "no-real-mode", "dom0_mem=300M"],
        memory="768M",
        modules=(f"{files.kernel} earlyprintk=xen console=hvc0 panic=-1", str(archive)),
        console=console,
        stdin=io.BytesIO(),
        quiet=True,
        timeout="host:600",
    ).run()
    output = console.getvalue().decode("ascii", "replace")
    assert "Run /init as init process" in output, output[-2000:]
    assert "Hardware Dom0 halted" in output
    assert result.ended is Ended.HALTED
