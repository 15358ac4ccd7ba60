"""`lzero top`: from a pipe and from a recording under way, ended by the source or by Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lzero.cli import main
from lzero.errors import UsageError
from lzero.trace.aggregates import Aggregates, Totals
from lzero.trace.live import Follower, follow_recording, rates
from lzero.trace.recorder import Recorder
from textwriter import nested_events, render

COMMAND = [sys.executable, "-m", "lzero", "top", "--interval", "0.2"]


def test_rates_are_differences_over_time() -> None:
    before = Aggregates({(1, 10): Totals(100, 100, 1000), (1, 12): Totals(5)})
    after = Aggregates({(1, 10): Totals(300, 300, 5000), (1, 12): Totals(5), (2, 10): Totals(50)})
    found = [(rate.level, rate.name, rate.per_second, rate.count, rate.mean_ns) for rate in rates(before, after, 2.0)]
    assert found == [(1, "CPUID", 100.0, 300, 20.0), (2, "CPUID", 25.0, 50, 0.0), (1, "HLT", 0.0, 5, 0.0)]


def test_pipe_that_ends_gives_the_table() -> None:
    result = subprocess.run(COMMAND, input=render(nested_events(100)), capture_output=True, timeout=60, check=True)
    assert b"CPUID        100" in result.stdout


def test_interrupt_ends_it_cleanly_with_the_totals() -> None:
    process = subprocess.Popen(COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(render(nested_events(100)))
    process.stdin.flush()
    seen = b""
    while b"exits/s" not in seen or b"CPUID" not in seen:
        seen += os.read(process.stdout.fileno(), 4096)
    start = time.monotonic()
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=30)
    assert process.returncode == 0
    assert time.monotonic() - start < 5
    assert b"CPUID" in out and b"Total Samples" in out and errors == b""


def test_recording_under_way_is_followed_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    recorder = Recorder(path, batch=10)
    follower = Follower(follow_recording(path))
    for seq in range(100):
        recorder.record(seq, -1, 0, 1, 10, 0, 0, 2, 0, 0, 0, -1, 0, seq, 5, 1)
    deadline = time.monotonic() + 20
    while follower.totals().counts(1) != {10: 100} and time.monotonic() < deadline:
        time.sleep(0.01)
    assert follower.totals().counts(1) == {10: 100}
    recorder.close()
    assert follower.wait(20)
    assert follower.error is None


def test_nothing_recorded_there_is_a_usage_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top", str(tmp_path / "t.parquet")]) == UsageError.exit_status
    assert "nothing is being recorded there" in capsys.readouterr().err


def test_slow_recording_is_on_disk_after_two_seconds_of_its_time(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "t.parquet")
    for seq in range(5):
        recorder.record(seq, -1, 0, 1, 10, 0, 0, 2, 0, 0, 0, -1, 0, seq * 10**9, 5, 1)
    assert [part.name for part in (tmp_path / "t.parquet.parts").iterdir()] != []
    recorder.close()
