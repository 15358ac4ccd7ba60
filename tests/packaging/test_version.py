"""One version, said in three places."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import lzero

ROOT = Path(__file__).resolve().parents[2]


def test_version_is_that_of_the_newest_entry_in_the_changelog() -> None:
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert newest[1] == lzero.__version__


def test_version_is_that_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == lzero.__version__
