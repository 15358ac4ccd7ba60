"""The whole machine gives a script the results that the bare board gives: L0's port, MMIO and interrupt paths add and
lose nothing.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from boardscript import MARKER, run_on_board, run_on_machine
from devicescripts import QUIET, SCRIPTS
from pcboard import Board


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("device", ["8259A", "APIC", "RTC"])
def test_the_same_results(device: str, seed: int, tmp_path: Path) -> None:
    script = [*MARKER, *QUIET, *SCRIPTS[device](random.Random(seed))]
    assert run_on_machine(script, tmp_path) == run_on_board(script, Board(64 << 20))
