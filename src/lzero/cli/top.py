"""``lzero top``: exits as they happen."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from lzero.errors import UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from lzero.trace.live import Follower, Rate
    from lzero.trace.readers.events import Diagnosis

app = typer.Typer(add_completion=False, rich_markup_mode=None)

SOURCE = typer.Argument(
    "-",
    metavar="[TRACE]",
    help="A pipe from trace_pipe or perf script (`-`), or the file that `lzero run --record` writes.",
)
INTERVAL = typer.Option(1.0, "--interval", "-i", min=0.05, help="Seconds between refreshes.")
ROWS = typer.Option(20, "--rows", "-n", min=1, help="How many reasons to show.")


@app.command()
def top(source: str = SOURCE, interval: float = INTERVAL, rows: int = ROWS) -> None:
    """Show rates per reason, refreshed, the most frequent first, until the source ends or Ctrl-C."""
    from lzero.trace.live import Follower, follow_pipe, follow_recording
    from lzero.trace.table import exit_table

    if source == "-" and sys.stdin.isatty():
        raise UsageError("nothing is piped in: try `cat /sys/kernel/tracing/trace_pipe | lzero top`")
    diagnoses: list[Diagnosis] = []
    follow = follow_pipe(source, diagnoses) if source == "-" or _is_pipe(source) else follow_recording(Path(source))
    follower = Follower(follow)
    try:
        _refresh(follower, interval, rows)
    except KeyboardInterrupt:
        pass  # the way to end it: the totals are printed and the status is 0
    finally:
        follower.stop()
    if follower.error is not None:
        raise follower.error
    typer.echo(exit_table(follower.totals()), nl=False)
    for diagnosis in diagnoses:
        for line in diagnosis.summary():
            sys.stderr.write(line + "\n")


def _is_pipe(name: str) -> bool:
    return Path(name).is_fifo() or Path(name).name == "trace_pipe"


def _refresh(follower: Follower, interval: float, rows: int) -> None:
    from rich.console import Console
    from rich.live import Live

    from lzero.trace.live import rates

    console = Console()
    before, moment = follower.totals(), time.monotonic()
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while not follower.wait(interval):
            after, now = follower.totals(), time.monotonic()
            found = rates(before, after, now - moment)
            before, moment = after, now
            if console.is_terminal:
                live.update(_table(found, rows), refresh=True)
            else:
                console.print(_table(found, rows))


def _table(found: list[Rate], rows: int) -> Table:
    from rich.table import Table

    table = Table(title=f"{sum(rate.per_second for rate in found):,.0f} exits/s (Ctrl-C ends)", title_justify="left")
    for heading in ("level", "reason", "exits/s", "mean us", "exits"):
        table.add_column(heading, justify="left" if heading in ("level", "reason") else "right")
    for rate in found[:rows]:
        mean = f"{rate.mean_ns / 1000:.2f}" if rate.mean_ns else "-"
        table.add_row(f"L{rate.level}", rate.name, f"{rate.per_second:,.0f}", mean, f"{rate.count:,}")
    return table
