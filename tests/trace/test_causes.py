"""Causes over slices: the same whatever the slice, spread included."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import lzero.trace.causes
from lzero.trace.aggregates import Aggregates, add_rows
from lzero.trace.causes import causes_table, find_causes
from lzero.trace.frames import frames
from lzero.trace.recorder import Recorder
from lzero.trace.schema import numpy_dtype
from lzero.trace.store import StreamWriter
from lzero.trace.totals import totals_of

CPUID, HLT, VMREAD, VMWRITE, VMRESUME = 10, 12, 23, 25, 24


@pytest.fixture
def trace(tmp_path: Path) -> str:
    """Two VCPUs in turn; L2 CPUID with 1 to 4 VMREADs, one shadowed, a VMRESUME; L2 HLT that L0 keeps for itself."""
    path = tmp_path / "t.parquet"
    seq = 0
    with Recorder(path) as recorder:
        for number in range(40):
            vcpu, parent = number % 2, seq
            recorder.record(seq, -1, vcpu, 2, CPUID, 0, 0, 2, 0, 0, 0, -1, 0, seq, 5, 2)
            for reason, field, by in (
                *[(VMREAD, 0x4402, 1)] * (1 + number % 4), (VMREAD, 0x440C, 0), (VMRESUME, -1, 1),
            ):  # fmt: skip
                seq += 1
                recorder.record(seq, parent, vcpu, 1, reason, 0, 0, 2, 0, 0, 0, field, 0, seq, 5, by)
            seq += 1
            recorder.record(seq, -1, vcpu, 2, HLT, 0, 0, 1, 0, 0, 0, -1, 0, seq, 5, 1)
            seq += 1
    return str(path)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50, 10**6])
def test_means_spread_and_fields(trace: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lzero.trace.causes, "_SLICE", size)
    causes = find_causes(frames(trace))
    cause = causes.of(CPUID)
    assert cause is not None
    assert (cause.exits, cause.reflected, cause.served) == (40, 40, 40)
    assert cause.children[VMREAD] == (100, 10 * (1 + 4 + 9 + 16))
    assert cause.mean(VMREAD) == 2.5
    assert cause.deviation(VMREAD) == pytest.approx(1.1323, abs=1e-3)
    assert cause.mean() == 3.5 and cause.deviation(VMRESUME) == 0.0
    assert cause.fields == {(VMREAD, 0x4402): 100}
    hlt = causes.of(HLT)
    assert hlt is not None and (hlt.exits, hlt.reflected, hlt.mean()) == (40, 0, 0.0)


def test_table_names_fields(trace: str) -> None:
    text = causes_table(find_causes(frames(trace)))
    assert "2.50   EXIT_REASON" in text
    assert "VMREAD/VMWRITE, no exit      1.00" in text
    assert "L2 HLT: 40 exits, 0 reflected" in text


def test_nothing_nested_says_so(tmp_path: Path) -> None:
    with Recorder(tmp_path / "t.parquet") as recorder:
        recorder.record(0, -1, 0, 1, CPUID, 0, 0, 2, 0, 0, 0, -1, 0, 0, 5, 1)
    assert "nothing was caused" in causes_table(find_causes(frames(str(tmp_path / "t.parquet"))))


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_a_vcpu_silent_for_whole_slices_keeps_its_cause(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lzero.trace.causes, "_SLICE", size)
    path = tmp_path / "t.parquet"
    with Recorder(path) as recorder:
        for seq, (vcpu, level, reason, parent) in enumerate([
            (0, 2, CPUID, -1), (0, 1, VMREAD, 0),
            (1, 2, HLT, -1), (1, 1, VMREAD, 2), (1, 1, VMRESUME, 2), (1, 2, HLT, -1),
            (1, 1, VMREAD, 5), (1, 1, VMREAD, 5),
            (0, 1, VMREAD, 0), (0, 1, VMRESUME, 0), (0, 2, CPUID, -1), (0, 1, VMREAD, 10),
        ]):  # fmt: skip
            recorder.record(seq, parent, vcpu, level, reason, 0, 0, 2, 0, 0, 0, -1, 0, seq, 5, 2 if level == 2 else 1)
    cause = find_causes(frames(str(path))).of(CPUID)
    assert cause is not None
    assert cause.children == {VMREAD: (3, 5), VMRESUME: (1, 1)}  # 2 and 1 of the two exits: 4 + 1
    assert cause.whole == (4, 10)


def test_totals_of_a_store_are_those_of_its_rows(tmp_path: Path) -> None:
    random = np.random.default_rng(5)
    rows = np.zeros(5000, numpy_dtype())
    for column, values in (
        ("level", [1, 2]), ("reason", [CPUID, VMREAD, VMWRITE]), ("isa", [1, 1, 2]), ("handled_by", [0, 1, 2]),
        ("parent_reason", [-1, CPUID]), ("vmcs_field", [-1, 0x4402, 0x6820]), ("duration_ns", [0, 3, 90]),
    ):  # fmt: skip
        rows[column] = random.choice(values, len(rows))
    expected = Aggregates()
    add_rows(expected, rows)
    with StreamWriter(tmp_path / "t.parquet") as writer:
        writer.write(rows[:3000])
        writer.write(rows[3000:])
    assert totals_of(str(tmp_path / "t.parquet")) == expected
