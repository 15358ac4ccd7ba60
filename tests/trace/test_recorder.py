"""The recorder: rows, totals, causes, parts that survive a kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lzero.errors import UsageError
from lzero.trace.recorder import Recorder
from lzero.trace.schema import COLUMN_NAMES
from lzero.trace.store import open_trace
from lzero.trace.table import causes_lines, exit_table

CPUID, VMREAD, VMWRITE, VMRESUME, HLT = 10, 23, 25, 24, 12


def record_round_trips(recorder: Recorder, count: int, first_seq: int = 0) -> None:
    """L2 CPUID reflected to L1, which does two VMREADs, one shadowed VMREAD, one VMWRITE and a VMRESUME."""
    seq = first_seq
    for _ in range(count):
        parent = seq
        recorder.record(seq, -1, 0, 2, CPUID, 0, 0x1000, 2, 0, 0, 0, -1, seq, seq * 1000, 500, 2)
        for reason, field, by in (
            (VMREAD, 0x4402, 1), (VMREAD, 0x681E, 1), (VMREAD, 0x440C, 0), (VMWRITE, 0x681E, 1), (VMRESUME, -1, 1),
        ):  # fmt: skip
            seq += 1
            recorder.record(seq, parent, 0, 1, reason, 0, 0x2000, 3, 0, 0, 0, field, seq, seq * 1000, 100 + reason, by)
        seq += 1


@pytest.mark.parametrize("batch", [1, 3, 4, 7, 65536])
def test_totals_and_causes_do_not_depend_on_the_batch_size(batch: int) -> None:
    with Recorder(batch=batch) as recorder:
        record_round_trips(recorder, 20)
        aggregates = recorder.aggregates
    assert {key: totals.count for key, totals in aggregates.exits.items()} == {
        (2, CPUID): 20, (1, VMREAD): 40, (1, VMWRITE): 20, (1, VMRESUME): 20,
    }  # fmt: skip
    assert aggregates.by_processor == {(1, VMREAD): 20}
    assert aggregates.reflected == {CPUID: 20}
    assert aggregates.caused == {(CPUID, VMREAD): 40, (CPUID, VMWRITE): 20, (CPUID, VMRESUME): 20}
    assert aggregates.caused_by_processor == {(CPUID, VMREAD): 20}
    assert aggregates.fields[VMREAD, 0x4402, False] == 20
    assert aggregates.fields[VMREAD, 0x440C, True] == 20
    totals = aggregates.exits[1, VMREAD]
    assert (totals.total_ns, totals.min_ns, totals.max_ns) == (40 * 123, 123, 123)


def test_table_prints_both_levels_and_the_causes_line() -> None:
    recorder = Recorder()
    record_round_trips(recorder, 10)
    text = exit_table(recorder.aggregates)
    assert "Exits of L1:" in text and "Exits of L2:" in text
    assert "Samples%" in text and "Avg time" in text
    lines = causes_lines(recorder.aggregates)
    assert lines[2].split() == ["VM-EXIT", "Reflected", "VMREADs", "VMWRITEs", "VMRESUMEs", "others", "shadowed"]
    assert [line.split() for line in lines[4:]] == [["CPUID", "10", "2.00", "1.00", "1.00", "0.00", "1.00"]]
    assert text.endswith("\n".join(lines) + "\n")
    assert max(map(len, lines)) <= 80


def test_empty_recording_prints_an_empty_table(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    with Recorder(path) as recorder:
        assert "Total Samples:0" in exit_table(recorder.aggregates)
    assert open_trace(path).collect().height == 0


def test_rows_come_back_from_the_file(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    with Recorder(path, batch=4) as recorder:
        record_round_trips(recorder, 3)
    frame = open_trace(path).collect()
    assert tuple(frame.columns) == COLUMN_NAMES
    assert frame["seq"].to_list() == list(range(18))
    assert frame["parent"].to_list()[:8] == [-1, 0, 0, 0, 0, 0, -1, 6]
    assert frame["parent_reason"].to_list()[:8] == [-1, 10, 10, 10, 10, 10, -1, 10]
    assert sorted(os.listdir(tmp_path)) == ["t.parquet"]


def test_failed_entry_is_bit_31_and_values_out_of_range_are_clamped(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    with Recorder(path) as recorder:
        recorder.record(0, -1, 0, 1, 0x80000021, 0, 0, 300, 0, 0, 0, -1, 0, 0, -5, 1)
    row = open_trace(path).collect().row(0, named=True)
    assert (row["reason"], row["failed_entry"], row["duration_ns"], row["instruction_length"]) == (33, True, 0, 255)


def test_killed_recording_leaves_readable_rows(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    code = (
        "import sys; from pathlib import Path; from lzero.trace.recorder import Recorder\n"
        "r = Recorder(Path(sys.argv[1]), batch=10)\n"
        "for n in range(95): r.record(n, -1, 0, 1, 10, 0, 0, 2, 0, 0, 0, -1, 0, n, 5, 1)\n"
        "print('ready', flush=True)\n"
        "import time; time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not path.exists()
    assert open_trace(path).collect()["seq"].to_list() == list(range(90))
    shown = subprocess.run([sys.executable, "-m", "lzero", "trace", "show", str(path)], capture_output=True, check=True)
    assert b"Total Samples:90" in shown.stdout and b"was killed or is still running" in shown.stderr


def test_unwritable_place_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot write"):
        Recorder(tmp_path / "missing" / "t.parquet")


def test_record_is_cheap() -> None:
    """A generous bound for a shared machine; benchmarks/trace_recorder.py measures the figure."""
    recorder = Recorder()
    start = time.perf_counter()
    for n in range(50_000):
        recorder.record(n, -1, 0, 1, 10, 0, 0xFFFFFFFF81000000, 2, 0, 0, 0, -1, n, n, 5000, 1)
    assert (time.perf_counter() - start) / 50_000 < 5e-6


def test_importing_the_package_loads_neither_numpy_nor_polars() -> None:
    heavy = {"numpy", "polars", "plotly", "unicorn"}
    code = f"import sys, lzero.trace, lzero.report; print(sorted({heavy} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert result.stdout.strip() == b"[]"
