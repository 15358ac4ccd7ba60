"""``lzero run`` with real guests: bundled ones, and a few bytes of machine code each."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lzero.cli import main

# The same bytes mean the same in 32-bit and 64-bit mode.
GUESTS = {
    "debug exit": ("mov al, 5; out 0xf4, al", "b005e6f4"),
    "power off": ("mov dx, 0x604; mov ax, 0x2000; out dx, ax", "66ba040666b8002066ef"),
    "reset": ("mov al, 0xfe; out 0x64, al; jmp $", "b0fee664ebfe"),
    "halt": ("cli; hlt", "faf4"),
    "triple fault": ("ud2", "0f0b"),
    "outside memory": ("mov eax, 0xf0000000; jmp rax", "b8000000f0ffe0"),
    "spin": ("jmp $", "ebfe"),
    "say and spin": ("mov dx, 0x3f8; mov al, 10; out dx, al; jmp $", "66baf803b00aeeebfe"),
}


def words(folder: Path, guest: str, mode: str = "long64", *more: str) -> list[str]:
    image = folder / "guest.bin"
    image.write_bytes(bytes.fromhex(GUESTS[guest][1]))
    return ["run", str(image), "--load-address=0x8000", f"--entry-mode={mode}", "--memory=16M", *more]


@pytest.mark.parametrize("mode", ["protected32", "long64"])
@pytest.mark.parametrize(
    ("guest", "status", "said"),
    [
        ("debug exit", 11, ""),
        ("power off", 0, ""),
        ("reset", 84, "reset: the guest asked for a reset"),
        ("halt", 82, "halted: the guest halted with interrupts off"),
        ("triple fault", 80, "triple-fault: "),
        ("outside memory", 68, "0xf0000000, where there is no memory"),
    ],
)
def test_each_ending_has_its_status_and_message(
    guest: str, mode: str, status: int, said: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(words(tmp_path, guest, mode, "--timeout=host:60")) == status
    err = capfd.readouterr().err
    assert said in err
    assert "VM-EXIT" in err
    if status in (68, 80, 82):  # the endings nobody wishes for tell where the guest was
        assert re.search(r"at RIP 0x[0-9a-f]+ .*mode", err)
        assert "rax=" in err and "cr3=" in err


def test_a_guest_that_overwrites_itself_is_ended(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    # In real mode, UD2 leads to address 0, and the zeros there add AL to themselves for ever: the engine translates
    # the code again after every store, so that hardly any guest time passes.
    start = time.monotonic()
    assert main(words(tmp_path, "triple fault", "real16", "--timeout=host:0.5")) == 124
    assert time.monotonic() - start < 20
    assert "real mode" in capfd.readouterr().err


@pytest.mark.parametrize("timeout", ["0.2", "host:0.5"])
def test_a_guest_that_loops_for_ever_is_ended(timeout: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    start = time.monotonic()
    assert main(words(tmp_path, "spin", "long64", f"--timeout={timeout}")) == 124
    assert time.monotonic() - start < 30
    assert "timeout" in capfd.readouterr().err


def test_bundled_guest_console_table_and_summary(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    summary = tmp_path / "summary.json"
    assert main(["run", "guest:hello", "--json", str(summary)]) == 1
    captured = capfd.readouterr()
    assert captured.out.endswith("hello: done\r\n")
    told = json.loads(summary.read_text())
    assert (told["ended"], told["debug_exit"], told["exit_status"]) == ("debug-exit", 0, 1)
    assert told["engine_version"].startswith("unicorn 2.")
    assert told["host_seconds"] > 0 and told["guest_seconds"] > 0
    # The table and the summary count the same exits.
    for reason, count in told["exits_by_reason"]["L1"].items():
        assert re.search(rf"^ +{reason} +{count} ", captured.err, re.MULTILINE)
    assert f"Total Samples:{told['exits']}" in captured.err


def test_the_same_run_makes_the_same_exits(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    told = []
    for number in range(2):
        summary = tmp_path / f"{number}.json"
        main(["run", "guest:hello", "--quiet", "--json", str(summary)])
        told.append({**json.loads(summary.read_text()), "host_seconds": 0.0})
    assert told[0] == told[1]


@pytest.mark.parametrize("strategy", ["chain", "range", "switch"])
def test_the_outcome_is_the_same_under_every_dispatch(
    strategy: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    told = []
    for name in ("table", strategy):
        summary = tmp_path / f"{name}.json"
        main(["run", "guest:hello", "--quiet", "--dispatch", name, "--json", str(summary)])
        told.append({**json.loads(summary.read_text()), "host_seconds": 0.0})
    assert told[0] == told[1]


def test_an_unknown_dispatch_is_said_before_anything_runs(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "guest:hello", "--dispatch=quick"]) in (64, 76)
    captured = capfd.readouterr()
    assert "quick" in captured.err
    assert captured.out == ""


def test_recorded_exits_are_those_of_the_table(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    trace, summary = tmp_path / "x.parquet", tmp_path / "x.json"
    main(["run", "guest:hello", "--record", str(trace), "--json", str(summary)])
    assert f"in {trace}" in capfd.readouterr().err
    assert main(["trace", "show", str(trace)]) == 0
    out = capfd.readouterr().out
    for reason, count in json.loads(summary.read_text())["exits_by_reason"]["L1"].items():
        assert re.search(rf"\b{reason} +{count}\b", out)


def cpu_seconds(pid: int) -> float:
    """Processor time that a running process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_ctrl_c_ends_at_once_with_table_and_record(tmp_path: Path) -> None:
    trace = tmp_path / "x.parquet"
    times = [1.0]
    while min(times) > 0.2 and len(times) < 6:  # the machine is shared: the best says what the program itself takes
        process = subprocess.Popen(
            [sys.executable, "-m", "lzero", *words(tmp_path, "say and spin", "long64", "--record", str(trace))],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.read(1) == b"\n"
        start, used = time.monotonic(), cpu_seconds(process.pid)
        process.send_signal(signal.SIGINT)
        err = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        times.append(time.monotonic() - start)
        if os.getloadavg()[0] > (os.cpu_count() or 1):  # most of that was waiting for a processor
            times.append(usage.ru_utime + usage.ru_stime - used)
        process.stdout.close()
        process.stderr.close()
        assert process.returncode == 130
        assert b"VM-EXIT" in err and b"Traceback" not in err
        # The exit during which it came is recorded like any other.
        assert re.search(rb"IO_INSTRUCTION +1 ", err)
        assert main(["trace", "show", str(trace)]) == 0
    assert min(times) < 0.2


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"MZ", b"\x7fELF", b"not a kernel" * 1000])
def test_a_foreign_image_is_one_message(content: bytes, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    image = tmp_path / "image"
    image.write_bytes(content)
    assert main(["run", str(image)]) == 66
    captured = capfd.readouterr()
    assert captured.err.startswith("lzero: error: ")
    assert "Traceback" not in captured.err
    assert captured.out == ""
