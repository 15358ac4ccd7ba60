"""Files that cannot be audited: one error each, which names the file and says what to do."""

from __future__ import annotations

import bz2
import gzip
import lzma
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lzero.dispatch.audit import BranchKind, audit_module, dispatch_rate
from lzero.dispatch.audit.render import render_audit
from lzero.errors import ImageError, LzeroError, PlanError

Compile = Callable[..., Path]
SOURCE = """
int (*kvm_vmx_exit_handlers[76])(struct vcpu *) = { [0] = handle_a, [10] = local_handler };
int vmx_handle_exit(struct vcpu *v) {
    if (v->exit_reason >= 76) return unexpected(v);
    return kvm_vmx_exit_handlers[v->exit_reason](v);
}
"""
THUNK = "-mindirect-branch=thunk-extern"


@pytest.fixture
def module(compiled: Compile) -> bytes:
    """The bytes of a good module."""
    return compiled(SOURCE, THUNK).read_bytes()


def _refused(tmp_path: Path, data: bytes, match: str, name: str = "bad.ko") -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(ImageError, match=match) as caught:
        audit_module(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("suffix", "pack"),
    [
        (".xz", lambda data: lzma.compress(data, check=lzma.CHECK_CRC32)),
        (".gz", gzip.compress),
        (".zst", zstandard.ZstdCompressor().compress),
    ],
)
def test_packed_modules_read_the_same(
    tmp_path: Path, module: bytes, suffix: str, pack: Callable[[bytes], bytes]
) -> None:
    plain, packed = tmp_path / "m.ko", tmp_path / f"m.ko{suffix}"
    plain.write_bytes(module)
    packed.write_bytes(pack(module))
    assert audit_module(packed).branches == audit_module(plain).branches
    assert audit_module(packed).count(BranchKind.RETPOLINE) == 1
    _refused(tmp_path, pack(module)[:-20], "damaged or cut short")


def test_missing_and_empty(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="cannot be read: No such file"):
        audit_module(tmp_path / "absent.ko")
    _refused(tmp_path, b"", "empty")


def test_unknown_compression(tmp_path: Path, module: bytes) -> None:
    _refused(tmp_path, bz2.compress(module), "packed with bzip2.*unpack it")
    _refused(tmp_path, b"\x04\x22\x4d\x18" + module, "packed with lz4")


def test_not_elf(tmp_path: Path) -> None:
    _refused(tmp_path, b"#!/bin/sh\nexit 0\n", "not an ELF file")
    _refused(tmp_path, gzip.compress(b"hello, this is no module"), "not an ELF file", "text.ko.gz")


def test_other_machine(tmp_path: Path, module: bytes) -> None:
    _refused(tmp_path, module[:18] + (183).to_bytes(2, "little") + module[20:], "EM_AARCH64")


def test_not_relocatable(tmp_path: Path, module: bytes) -> None:
    _refused(tmp_path, module[:16] + (3).to_bytes(2, "little") + module[18:], "ET_DYN, not a kernel module")


def test_truncated_everywhere(tmp_path: Path, module: bytes) -> None:
    for length in range(1, len(module), 61):
        _refused(tmp_path, module[:length], "truncated|damaged|not an ELF")


def test_stripped(tmp_path: Path, compiled: Compile) -> None:
    path = compiled(SOURCE, THUNK)
    stripped = tmp_path / "stripped.ko"
    command = [
        "objcopy",
        "--strip-all",
        "--remove-relocations=.text",
        "--remove-relocations=.data",
        str(path),
        str(stripped),
    ]
    subprocess.run(command, check=True, capture_output=True)
    _refused(tmp_path, stripped.read_bytes(), "stripped.*distribution")


def test_rate_needs_a_recovered_dispatcher(tmp_path: Path, compiled: Compile) -> None:
    audit = audit_module(compiled("int f(int (*g)(void)) { return g() + 1; }", THUNK))
    with pytest.raises(PlanError, match="dispatcher was not recovered"):
        dispatch_rate(audit, "skewed")


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=12))
def test_damaged_bytes_never_break_it(tmp_path: Path, module: bytes, edits: list[tuple[float, int]]) -> None:
    data = bytearray(module)
    for where, value in edits:
        data[int(where * len(data))] = value
    path = tmp_path / "damaged.ko"
    path.write_bytes(data)
    try:
        audit = audit_module(path)
    except LzeroError:
        return
    render_audit(audit)
