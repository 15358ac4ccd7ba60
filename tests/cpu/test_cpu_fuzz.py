"""Random code and random VMCSs: an exit, a refused entry or an error of lzero's; no traceback, crash or hang.

The cases run in a process of their own (``cpufuzz.py``), so that a crash is a failing test that names its case. For
more of them: ``python tests/cpu/cpufuzz.py FIRST COUNT``.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

COUNT = 1_000


@pytest.mark.parametrize("first", [0, COUNT])
def test_random_guests_break_nothing(first: int) -> None:
    """Issue 2, "Bad input"."""
    command = [sys.executable, str(Path(__file__).parent / "cpufuzz.py"), str(first), str(COUNT)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
    lines = result.stdout.split()
    last = next((line for line in reversed(lines) if line.isdigit()), "none")
    assert lines and lines[-1] == "done", (
        f"case {last} ended the process with status {result.returncode}:\n{result.stderr[-3000:]}"
    )


def test_same_case_same_exits() -> None:
    """Two processors in two processes record the same run: nothing depends on where or when it runs."""
    script = (
        "import sys; sys.path[:0] = sys.argv[1:3]\n"
        "import cpufuzz, harness\n"
        "from lzero.errors import LzeroError\n"
        "bench = harness.Bench()\n"
        "for case in range(150):\n"
        "    guest = cpufuzz.prepare(bench, case)\n"
        "    try:\n"
        "        for _ in range(4):\n"
        "            print(case, guest.enter(), bench.processor.clock.tsc(), list(guest.gpr)); guest.skip()\n"
        "    except LzeroError as error:\n"
        "        print(case, type(error).__name__, str(error)[:60])\n"
    )
    here = Path(__file__).parent
    runs = [
        subprocess.run(
            [sys.executable, "-c", script, str(here), str(here.parent)],
            capture_output=True,
            text=True,
            check=True,
            timeout=600,
        )
        for _ in range(2)
    ]
    assert runs[0].stdout == runs[1].stdout
