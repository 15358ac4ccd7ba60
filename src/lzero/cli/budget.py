"""``lzero budget``: hold a recorded trace against the budgets of a TOML file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["OVER_BUDGET", "app"]

OVER_BUDGET = 86
"""Exit status when a budget is not kept: nothing is wrong with lzero or the trace, but with the hypervisor in it."""

app = typer.Typer(help="Check a trace against budgets of exits.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def _budget() -> None:
    """Check a trace against budgets of exits."""


@app.command("check")
def check_trace(
    trace: Annotated[str, typer.Argument(metavar="TRACE", help="Recorded exits: any file that lzero trace reads.")],
    budgets: Annotated[str, typer.Option(metavar="FILE", help="The budgets, a TOML file.")] = "budgets.toml",
    against: Annotated[
        str | None, typer.Option(metavar="TRACE", help="Earlier trace to compare with when a budget is not kept.")
    ] = None,
    xml: Annotated[str | None, typer.Option("--junit", metavar="FILE", help="Write the verdicts as JUnit XML.")] = None,
) -> None:
    """Hold a trace against every budget of the file; exit status 86 when one is not kept.

    docs/testing.md describes the file. With a failing budget the exit table is shown, its causes, and what changed
    since the trace given by --against.
    """
    from lzero.output import write_atomically
    from lzero.testing.budget import check, load_budgets, report
    from lzero.testing.exits import Exits
    from lzero.testing.junit import junit

    limits = load_budgets(Path(budgets))
    exits = Exits.of_trace(Path(trace))
    verdicts = check(exits, limits)
    kept = all(verdict.kept for verdict in verdicts)
    text = report(exits, verdicts, "" if kept or against is None else _difference(against, trace))
    if xml is not None:
        write_atomically(Path(xml), junit(trace, verdicts, text))
    typer.echo(text, nl=False)
    if not kept:
        raise typer.Exit(OVER_BUDGET)


def _difference(before: str, after: str) -> str:
    from lzero.cli.trace import profile_of
    from lzero.trace.diff import compare, diff_table

    return diff_table(compare(profile_of(before, []), profile_of(after, [])))
