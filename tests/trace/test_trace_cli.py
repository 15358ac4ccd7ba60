"""`lzero trace`: import, show, causes, diff and export, as a user calls them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest

from lzero.cli import main
from lzero.errors import TraceFormatError, UsageError
from textwriter import Event, nested_events, render


@pytest.fixture
def nested(tmp_path: Path) -> Path:
    path = tmp_path / "nested.txt"
    path.write_bytes(render(nested_events(200)))
    return path


def rows_of(text: str) -> dict[str, int]:
    """First word and count of each table row."""
    words = [line.split() for line in text.splitlines()]
    return {word[0]: int(word[1]) for word in words if len(word) > 6 and word[1].isdecimal()}


def test_show_prints_both_levels(nested: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", "show", str(nested)]) == 0
    out = capsys.readouterr().out
    assert rows_of(out) == {"VMREAD": 400, "VMRESUME": 200, "VMWRITE": 200, "CPUID": 200}
    assert "Exits of L1" in out and "Exits of L2" in out


def test_imported_trace_shows_the_same(nested: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "t.parquet"
    assert main(["trace", "import", str(nested), "-o", str(target)]) == 0
    main(["trace", "show", str(nested)])
    raw = capsys.readouterr().out
    main(["trace", "show", str(target)])
    assert capsys.readouterr().out == raw


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--by", "rip"], {"0x1000": 800, "0x2000": 200}),
        (["--by", "level"], {"L1": 800, "L2": 200}),
        (["--by", "vcpu"], {"0": 200}),
        (["--by", "cause"], {"CPUID": 800}),
        (["--by", "handled-by"], {"L0": 800, "L1": 200}),
        (["-f", "level=2"], {"CPUID": 200}),
        (["-f", "reason=VMREAD,VMWRITE"], {"VMREAD": 400, "VMWRITE": 200}),
        (["-f", "reason!=VMREAD", "-f", "level=1"], {"VMRESUME": 200, "VMWRITE": 200}),
        (["-f", "rip>=0x1001"], {"CPUID": 200}),
        (["-f", "duration_us<1"], {}),
        (["--top", "1"], {"VMREAD": 400, "CPUID": 200}),
    ],
)
def test_show_groups_filters_and_limits(
    nested: Path, options: list[str], expected: dict[str, int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["trace", "show", str(nested), *options]) == 0
    assert rows_of(capsys.readouterr().out) == expected


@pytest.mark.parametrize(
    "arguments",
    [
        ["--by", "colour"],
        ["--sort", "size"],
        ["-f", "level"],
        ["-f", "colour=1"],
        ["-f", "reason=NOPE"],
        ["-f", "rip>1,2"],
    ],
)
def test_wrong_options_are_usage_errors(nested: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", "show", str(nested), *arguments]) == UsageError.exit_status
    assert capsys.readouterr().err.startswith("lzero: error:")


def test_sorted_by_name(nested: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["trace", "show", str(nested), "--sort", "name", "-f", "level=1"])
    assert list(rows_of(capsys.readouterr().out)) == ["VMREAD", "VMRESUME", "VMWRITE"]


def test_symbols_name_the_addresses(nested: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "System.map"
    table.write_text("0000000000000ff0 T vmx_l1\n0000000000002000 t guest\n")
    assert main(["trace", "show", str(nested), "--by", "rip", "--symbols", str(table)]) == 0
    assert rows_of(capsys.readouterr().out) == {"vmx_l1+0x10": 800, "guest": 200}


def test_causes_give_mean_and_spread(nested: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", "causes", str(nested)]) == 0
    out = capsys.readouterr().out
    assert "L2 CPUID: 200 exits, 200 reflected to L1; each of these costs 4.00 ± 0.00 exits of L1" in out
    assert "VMREAD      2.00 ± 0.00" in out


def test_what_cannot_be_read_is_summarised_and_strict_refuses(nested: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with nested.open("ab") as file:
        file.write(b"half a li")
    assert main(["trace", "show", str(nested)]) == 0
    assert "line 2601: not a line of a trace: 'half a li'" in capsys.readouterr().err
    assert main(["trace", "show", str(nested), "--strict"]) == TraceFormatError.exit_status


def test_empty_trace_is_an_empty_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "empty"
    path.write_bytes(b"")
    for options in ([], ["--by", "rip"], ["-f", "level=2"]):
        assert main(["trace", "show", str(path), *options]) == 0
        assert "Total Samples:0" in capsys.readouterr().out
    assert main(["trace", "causes", str(path)]) == 0
    assert main(["trace", "diff", str(path), str(path)]) == 0
    assert main(["trace", "import", str(path), "-o", str(tmp_path / "t.parquet")]) == 0
    assert main(["trace", "show", str(tmp_path / "t.parquet")]) == 0


def test_perfetto_export_has_a_track_per_level(nested: Path, tmp_path: Path) -> None:
    target = tmp_path / "t.json"
    assert main(["trace", "export", str(nested), "-o", str(target)]) == 0
    events = json.loads(target.read_text())["traceEvents"]
    tracks = {event["args"]["name"] for event in events if event["name"] == "thread_name"}
    assert tracks == {"VCPU 0 L1", "VCPU 0 L2"}
    slices = [event for event in events if event["ph"] == "X"]
    assert len(slices) == 1000 and {event["dur"] for event in slices} == {2.0}
    assert slices[1]["args"]["caused by"] == "CPUID (seq 0)"


def test_csv_and_parquet_export(nested: Path, tmp_path: Path) -> None:
    for name, read in (("t.csv", pl.read_csv), ("t.parquet", pl.read_parquet)):
        target = tmp_path / name
        assert main(["trace", "export", str(nested), "-o", str(target), "--format", name[2:], "-f", "level=2"]) == 0
        assert read(target).height == 200


def test_live_pipe_ended_by_its_writer_or_by_ctrl_c_shows_what_came(nested: Path) -> None:
    for interrupted in (False, True):
        command = [sys.executable, "-m", "lzero", "trace", "show", "-"]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stdin is not None
        process.stdin.write(nested.read_bytes())
        process.stdin.flush()
        if interrupted:
            time.sleep(3)  # until it waits for more
            process.send_signal(signal.SIGINT)
            process.wait(30)
        out, errors = process.communicate(timeout=60)
        assert (process.returncode, errors) == (0, b"")
        assert rows_of(out.decode())["VMREAD"] == 400


def test_folder_of_recordings_and_of_parts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    parts = tmp_path / "parts"
    parts.mkdir()
    for number in range(3):
        (raw / f"{number}.txt").write_bytes(render(nested_events(10)))
        main(["trace", "import", str(raw / f"{number}.txt"), "-o", str(parts / f"{number}.parquet")])
    for folder in (raw, parts):
        capsys.readouterr()
        assert main(["trace", "show", str(folder)]) == 0
        assert rows_of(capsys.readouterr().out)["CPUID"] == 30


def test_foreign_parquet_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.parquet"
    pl.DataFrame({"a": [1]}).write_parquet(path)
    assert main(["trace", "show", str(path)]) == TraceFormatError.exit_status
    assert "not a trace of lzero" in capsys.readouterr().err
    path.write_bytes(path.read_bytes()[:40])
    assert main(["trace", "show", str(path)]) == TraceFormatError.exit_status


def test_diff_puts_one_sided_exits_first_and_marks_changes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = [Event("kvm_exit", 10**9 + n * 100_000, reason=("HLT", "CPUID")[n % 2]) for n in range(2000)]
    more = [Event("kvm_exit", event.time_ns + 30_000, reason="CPUID") for event in base]
    new = [Event("kvm_exit", 10**9 + 50_000 + n * 10**7, reason="XSETBV") for n in range(20)]
    (tmp_path / "a").write_bytes(render(base))
    (tmp_path / "b").write_bytes(render(sorted([*base, *more, *new], key=lambda event: event.time_ns)))
    assert main(["trace", "diff", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert "On one side only" in out and "only B" in next(line for line in lines if "XSETBV" in line)
    assert lines.index(next(line for line in lines if "XSETBV" in line)) < lines.index(
        next(line for line in lines if "L1 CPUID" in line)
    )
    assert " *" in next(line for line in lines if "L1 CPUID" in line)
    assert " *" not in next(line for line in lines if "L1 HLT" in line)


def test_diff_of_a_trace_with_itself_finds_nothing(nested: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", "diff", str(nested), str(nested)]) == 0
    assert " *" not in capsys.readouterr().out


def test_one_l2_exit_proves_nothing(nested: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    single = tmp_path / "single"
    single.write_bytes(render(nested_events(1)))
    main(["trace", "diff", str(single), str(nested)])
    lines = capsys.readouterr().out.splitlines()
    assert not [line for line in lines if "→" in line and " *" in line]


def test_import_of_a_million_lines_is_not_slow(tmp_path: Path) -> None:
    """A bound ten times above what is measured in benchmarks/trace_import.py, for a busy machine."""
    path = tmp_path / "big"
    path.write_bytes(render(nested_events(1000)) * 20)
    start = time.perf_counter()
    assert main(["trace", "import", str(path), "-o", str(tmp_path / "t.parquet")]) == 0
    assert time.perf_counter() - start < 260_000 / 200_000 + 3
