"""The session in the README is what really comes out, but for the times."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LEFT_OUT = "[…]"


def without_times(line: str) -> str:
    return " ".join(re.sub(r"\d+\.\d+(us|%)", "…", line).split())


def test_session_is_true(tmp_path: Path) -> None:
    blocks = re.findall(r"^```\n\$ (lzero .*?)\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert blocks
    for command, quoted in blocks:
        done = subprocess.run(
            [sys.executable, "-m", *shlex.split(command)],
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
        )
        printed = iter([without_times(line) for line in done.stdout.splitlines()])
        for line in quoted.splitlines():
            # In the order of the page; where it leaves something out, what is left out is skipped.
            assert line == LEFT_OUT or without_times(line) in printed, f"{command}: not printed: {line}"
