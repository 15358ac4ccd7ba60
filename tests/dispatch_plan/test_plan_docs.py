"""docs/dispatch-planning.md quotes a plan: it is held to be what the command prints."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from lzero.cli import main

PAGE = Path(__file__).parents[2] / "docs" / "dispatch-planning.md"
QUOTED = re.findall(r"```console\n\$ lzero (.*?)\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize(("command", "output"), QUOTED, ids=[command for command, _ in QUOTED])
def test_quoted_plan_is_what_the_command_prints(command: str, output: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(shlex.split(command)) == 0
    assert capsys.readouterr().out == output
