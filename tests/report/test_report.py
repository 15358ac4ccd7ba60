"""The HTML report: self-contained, right numbers, drawn by a real browser without an error."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import pytest

from lzero.cli import main
from lzero.errors import UsageError
from lzero.trace.recorder import Recorder
from textwriter import Event, nested_events, render

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
BENCH = {
    "cells": [
        {
            "compiler": {"version": "gcc 12"},
            "mitigation": "retpoline",
            "rows": [
                {"candidate": "table", "mode": "plain", "extra": {"value": 20.0, "low": 19.0, "high": 21.5}},
                {"candidate": "chain", "mode": "plain", "extra": {"value": 18.0, "low": 17.0, "high": 18.5}},
            ],
        }
    ]
}


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """A machine's recording: L2 CPUIDs with VMREADs of two fields, one VMRESUME each."""
    path = tmp_path / "<b>&.parquet"
    seq = 0
    with Recorder(path) as recorder:
        for _ in range(300):
            parent = seq
            recorder.record(seq, -1, 0, 2, 10, 0, 0x2000, 2, 0, 0, 0, -1, 0, seq * 1000, 400, 2)
            for reason, field in ((23, 0x4402), (23, 0x681E), (24, -1)):
                seq += 1
                recorder.record(seq, parent, 0, 1, reason, 0, 0x1000, 3, 0, 0, 0, field, 0, seq * 1000, 100, 1)
            seq += 1
    return path


def numbers_of(page: str, level: int) -> dict[str, list[str]]:
    """Rows of a level's table in the page: name to cells."""
    table = re.search(rf'<table id="level-{level}">.*?</table>', page, re.DOTALL)
    assert table is not None
    rows = re.findall(r"<tr>(.*?)</tr>", table[0], re.DOTALL)
    cells = [[unescape(cell) for cell in re.findall(r"<td>(.*?)</td>", row)] for row in rows]
    return {row[0]: row[1:] for row in cells if row}


def test_page_is_self_contained_and_its_numbers_are_the_tables(
    trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "out.html"
    assert main(["report", str(trace), "-o", str(target)]) == 0
    page = target.read_text()
    assert not re.search(r'<(?:script|link|img)[^>]+(?:src|href)="(?!data:)', page)
    main(["trace", "show", str(trace)])
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    shown = {line[0]: line[1:7] for line in printed if len(line) > 7 and line[1].isdecimal()}
    inside = {name: cells[:6] for level in (1, 2) for name, cells in numbers_of(page, level).items()}
    assert inside == shown and set(shown) == {"CPUID", "VMREAD", "VMRESUME"}


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_browser_draws_every_figure_without_an_error(trace: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_bytes(render([*nested_events(200), Event("kvm_exit", 3 * 10**9, reason="</script>")]))
    bench = tmp_path / "bench.json"
    bench.write_text(json.dumps(BENCH))
    target = tmp_path / "out.html"
    assert main(["report", str(trace), str(other), "--bench", str(bench), "-o", str(target)]) == 0
    assert CHROMIUM is not None
    browser = subprocess.run(
        [
            *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"),
            *("--virtual-time-budget=20000", f"--user-data-dir={tmp_path / 'profile'}"),
            *("--host-resolver-rules=MAP * ~NOTFOUND", "--dump-dom", target.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    errors = [line for line in browser.stderr.splitlines() if "CONSOLE" in line]
    assert errors == []
    assert 'data-drawn="6"' in browser.stdout
    tags = re.findall(r"<div[^>]*js-plotly-plot[^>]*>", browser.stdout)
    drawn = {match[1] for tag in tags if (match := re.search(r'id="figure-(\w+)"', tag))}
    assert drawn == {"totals", "time", "causes", "fields", "diff", "bench"}
    assert numbers_of(browser.stdout, 2)["CPUID"][0] == "300"
    assert browser.stdout.count("<svg") >= 6


def test_counts_only_source_gives_a_page_without_causes(tmp_path: Path) -> None:
    source = tmp_path / "counts"
    source.write_bytes(b"@[48]: 10\n@[12]: 5\n")
    assert main(["report", str(source), "-o", str(tmp_path / "out.html")]) == 0
    page = (tmp_path / "out.html").read_text()
    assert numbers_of(page, 1)["EPT_VIOLATION"][0] == "10"
    assert "numbers only" in page and 'id="causes"' not in page


def test_wrong_inputs_are_usage_errors(trace: Path, tmp_path: Path) -> None:
    target = str(tmp_path / "out.html")
    assert main(["report", "-", "-o", target]) == UsageError.exit_status
    assert main(["report", *[str(trace)] * 3, "-o", target]) == UsageError.exit_status
    assert main(["report", str(trace), "--bench", str(tmp_path / "missing"), "-o", target]) == UsageError.exit_status
    assert main(["report", str(trace), "-o", str(tmp_path / "missing" / "x.html")]) == UsageError.exit_status
    assert not Path(target).exists()
