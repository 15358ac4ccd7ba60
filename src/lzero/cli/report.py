"""``lzero report``: one HTML page about one or two traces, readable without a network."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import typer

from lzero.errors import UsageError

app = typer.Typer(add_completion=False, rich_markup_mode=None)

TRACES = typer.Argument(metavar="TRACE [OTHER]", help="A trace or recording, and another to compare it with.")
OUTPUT = typer.Option(..., "--output", "-o", help="The HTML file to write.")
BENCH = typer.Option(None, "--bench", help="JSON of `lzero dispatch bench --json`, shown beside the exits.")


@app.command()
def report(traces: list[str] = TRACES, output: Path = OUTPUT, bench: Path | None = BENCH) -> None:
    """Write a self-contained HTML page: totals, exits over time, causes, VMCS fields, comparison, dispatch bench."""
    from lzero.cli.trace import profile_of
    from lzero.output import write_atomically
    from lzero.report.data import collect
    from lzero.report.page import build_page
    from lzero.trace.diff import compare

    if len(traces) > 2:
        raise UsageError(f"a report is about one or two traces, not {len(traces)}")
    if "-" in traces:
        raise UsageError("a report reads a trace more than once: give a file, not standard input")
    measured = _read_bench(bench) if bench else None
    data = [collect(name) for name in traces]
    other = data[1] if len(data) == 2 else None
    comparison = compare(*(profile_of(name, []) for name in traces)) if other else None
    write_atomically(output, build_page(data[0], other, comparison, measured))
    for part in data:
        for line in part.problems:
            sys.stderr.write(line + "\n")


def _read_bench(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {path}: {error}") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path}: not what `lzero dispatch bench --json` writes")
    return content
