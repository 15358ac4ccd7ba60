"""The documentation hangs together: pages are found, links lead somewhere, options are described."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lzero.cli import main

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs").glob("**/*.md"))


def links(page: Path) -> list[str]:
    # Code may call what it indexes, which looks like a link.
    prose = re.sub(r"^(```.*?^```|    .*?)$|`[^`\n]*`", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    found = re.findall(r"\]\(([^)\s]+)\)", prose)
    return [link for link in found if not link.startswith(("http:", "https:", "#"))]


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    missing = [link for link in links(page) if not (page.parent / link.partition("#")[0]).exists()]
    assert not missing


def test_every_page_can_be_reached_from_the_index() -> None:
    index = ROOT / "docs/index.md"
    reached, ahead = {index}, [index]
    while ahead:
        page = ahead.pop()
        targets = {(page.parent / link.partition("#")[0]).resolve() for link in links(page)}
        new = {target for target in targets if target.suffix == ".md" and target.exists()} - reached
        reached |= new
        ahead += new
    assert not set(PAGES) - reached


def test_every_option_of_run_is_described(capsys: pytest.CaptureFixture[str]) -> None:
    main(["run", "--help"])
    options = set(re.findall(r"^ +(--[a-z-]+)", capsys.readouterr().out, re.MULTILINE))
    described = set(re.findall(r"^\| `(--[a-z-]+)", (ROOT / "docs/run.md").read_text(), re.MULTILINE))
    assert described == options
