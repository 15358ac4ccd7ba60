"""Claims C3 and C4 from recordings whose exits are known by construction."""

from __future__ import annotations

from pathlib import Path

import pytest

from lzero.errors import PlanError
from lzero.sdm.exit_reasons import ExitReason as R
from lzero.trace.nested_claims import claim_lines, nested_shares
from lzero.trace.recorder import Recorder

L0, L1, PROCESSOR = 1, 2, 0


def record(path: Path, caused: list[tuple[int, int]], times: int = 3) -> Path:
    """`times` exits of L2 (CPUID) that L1 handles, each followed by exits of L1 (reason, handled by)."""
    recorder = Recorder(path)
    sequence = 0

    def row(level: int, reason: int, parent: int, handled_by: int) -> None:
        nonlocal sequence
        recorder.record(sequence, parent, 0, level, reason, 0, 0, 2, 0, 0, 0, -1, 0, 0, 100, handled_by)
        sequence += 1

    for _ in range(times):
        cause = sequence
        row(2, R.CPUID, -1, L1)
        for reason, handled_by in caused:
            row(1, reason, cause, handled_by)
    recorder.close()
    return path


def test_shares_without_shadow_vmcs(tmp_path: Path) -> None:
    """One L2 exit, two VMREADs, one VMRESUME, one RDMSR: three of five exits to L0."""
    path = record(tmp_path / "off.parquet", [(R.VMREAD, L0), (R.VMREAD, L0), (R.MSR_READ, L0), (R.VMRESUME, L0)])
    [shares] = nested_shares(path)
    assert (shares.reason, shares.count, shares.exits) == (R.CPUID, 3, 5.0)
    assert (shares.vmreads, shares.vmwrites, shares.vmresumes, shares.share) == (2.0, 0.0, 1.0, 0.6)


def test_shadowed_accesses_are_no_exits(tmp_path: Path) -> None:
    off = record(tmp_path / "off.parquet", [(R.VMREAD, L0), (R.VMWRITE, L0), (R.VMRESUME, L0)])
    on = record(tmp_path / "on.parquet", [(R.VMREAD, PROCESSOR), (R.VMWRITE, L0), (R.VMRESUME, L0)])
    [shares] = nested_shares(on)
    assert (shares.exits, shares.vmreads, shares.shadowed) == (3.0, 0.0, 1.0)
    lines = claim_lines(off, on)
    assert lines[0].startswith("C3: 75.0% of the exits to L0")
    assert any(line.startswith("C4: with a shadow VMCS 50.0%") for line in lines)


def test_a_recording_without_l2(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "plain.parquet")
    recorder.record(0, -1, 0, 1, R.CPUID, 0, 0, 2, 0, 0, 0, -1, 0, 0, 100, L0)
    recorder.close()
    with pytest.raises(PlanError, match="no exit of L2 that L1 handled"):
        nested_shares(tmp_path / "plain.parquet")
