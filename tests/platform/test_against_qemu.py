"""Random scripts of register accesses give the same results on our board and on QEMU's PC."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from boardscript import MARKER, run_on_board, run_on_qemu
from devicescripts import QUIET, SCRIPTS
from pcboard import Board

pytestmark = pytest.mark.skipif(
    shutil.which("qemu-system-x86_64") is None, reason="qemu-system-x86_64 is not installed (Debian: qemu-system-x86)"
)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("device", SCRIPTS)
def test_the_same_results(device: str, seed: int, tmp_path: Path) -> None:
    script = [*MARKER, *QUIET, *SCRIPTS[device](random.Random(seed))]
    assert run_on_board(script, Board(64 << 20)) == run_on_qemu(script, tmp_path)
