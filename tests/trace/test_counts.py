"""Recordings that hold counts only."""

from __future__ import annotations

from pathlib import Path

import pytest

from lzero.cli import main
from lzero.errors import UsageError
from lzero.trace.aggregates import Aggregates
from lzero.trace.load import open_recording
from lzero.trace.readers.detect import Kind
from lzero.trace.readers.events import Diagnosis
from lzero.trace.recorder import Recorder
from lzero.trace.table import exit_table

BPFTRACE = b"""Attaching 1 probe...

@exits[48]: 1234
@exits[EPT_VIOLATION]: 6
@exits[12]: 77
"""
PERF_KVM = b"""
Analyze events for all VMs, all VCPUs:

             VM-EXIT    Samples  Samples%     Time%    Min Time    Max Time         Avg time

           MSR_WRITE       1000    50.00%     1.20%      0.50us     12.34us      1.25us ( +-   0.50% )
                 HLT       1000    50.00%    98.80%    100.00us    999.00us    200.00us ( +-   2.00% )

Total Samples:2000, Total events handled time:201250.00us.
"""
BCC = b"""Display kvm exit reasons and statistics for all threads... Hit Ctrl-C to end.
PID      TID      KVM_EXIT_REASON                     COUNT
1273551  1273568  EXIT_REASON_HLT                     12
1273551  1273568  EXIT_REASON_MSR_WRITE               6
1273551  1273569  EXIT_REASON_HLT                     3
"""
KVM_STAT = b""" Event                                         Total %Total CurAvg/s
 kvm_exit                                       100   50.0       10
 kvm_exit(HLT)                                   60   30.0        6
 kvm_exit(CPUID)                                 40   20.0        4
 kvm_entry                                      100   50.0       10
"""
CSV = b"reason,count\nCPUID,10\nHLT,5\n"


def read(tmp_path: Path, content: bytes) -> tuple[Kind, Aggregates, Diagnosis]:
    path = tmp_path / "counts"
    path.write_bytes(content)
    recording = open_recording(str(path))
    aggregates = recording.aggregates()
    recording.close()
    return recording.input.kind, aggregates, recording.diagnosis


@pytest.mark.parametrize(
    ("content", "kind", "counts"),
    [
        (BPFTRACE, Kind.BPFTRACE, {48: 1240, 12: 77}),
        (PERF_KVM, Kind.PERF_KVM_STAT, {32: 1000, 12: 1000}),
        (BCC, Kind.BCC, {12: 15, 32: 6}),
        (KVM_STAT, Kind.KVM_STAT, {12: 60, 10: 40}),
        (CSV, Kind.CSV, {10: 10, 12: 5}),
        (b'"vm-exit";"samples"\nHLT;4\n', Kind.CSV, {12: 4}),
    ],
)
def test_counts_are_read(tmp_path: Path, content: bytes, kind: Kind, counts: dict[int, int]) -> None:
    found, aggregates, diagnosis = read(tmp_path, content)
    assert found is kind
    assert aggregates.counts(1) == counts
    assert not diagnosis.problems


def test_times_of_perf_kvm_stat_come_back(tmp_path: Path) -> None:
    _, aggregates, _ = read(tmp_path, PERF_KVM)
    totals = aggregates.exits[1, 12]
    assert (totals.min_ns, totals.max_ns, totals.total_ns) == (100_000, 999_000, 200_000_000)
    assert totals.relative_error == pytest.approx(0.02, rel=1e-6)


def test_our_own_table_is_such_a_table_too(tmp_path: Path) -> None:
    recorder = Recorder()
    for n in range(100):
        recorder.record(n, -1, 0, 1, 10 + n % 2 * 2, 0, 0, 2, 0, 0, 0, -1, 0, n, 1000 + n, 1)
    _, aggregates, diagnosis = read(tmp_path, exit_table(recorder.aggregates).encode())
    assert aggregates.counts(1) == {10: 50, 12: 50}
    assert not diagnosis.problems


def test_what_is_no_count_is_located(tmp_path: Path) -> None:
    _, aggregates, diagnosis = read(tmp_path, BPFTRACE + b"@exits[WHAT]: 5\nrubbish here\n")
    assert aggregates.counts(1) == {48: 1240, 12: 77}
    assert diagnosis.problems == {"unknown reason": 1, "unreadable line": 1}
    assert [problem.where for problem in diagnosis.located] == ["line 6", "line 7"]


def test_show_and_diff_take_counts_and_import_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a").write_bytes(BPFTRACE)
    (tmp_path / "b").write_bytes(PERF_KVM)
    assert main(["trace", "show", str(tmp_path / "a")]) == 0
    assert "EPT_VIOLATION       1240" in capsys.readouterr().out
    assert main(["trace", "diff", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    out = capsys.readouterr().out
    assert "shares of all exits are compared" in out and "only A" in out and "only B" in out
    assert main(["trace", "import", str(tmp_path / "a"), "-o", str(tmp_path / "t")]) == UsageError.exit_status
