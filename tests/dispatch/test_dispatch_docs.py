"""docs/dispatch.md quotes commands with their output: both are held to be true."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from lzero.cli import main

PAGE = Path(__file__).parents[2] / "docs" / "dispatch.md"
QUOTED = re.findall(r"```console\n\$ lzero (.*?)\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize(("command", "output"), QUOTED, ids=[command for command, _ in QUOTED])
def test_quoted_output_is_what_the_command_prints(
    command: str, output: str, capsys: pytest.CaptureFixture[str]
) -> None:
    main(shlex.split(command))
    assert capsys.readouterr().out == output


def test_something_is_quoted() -> None:
    assert len(QUOTED) >= 4
