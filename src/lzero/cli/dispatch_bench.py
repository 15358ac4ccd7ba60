"""``lzero dispatch bench``: dispatchers timed on this machine."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from lzero.dispatch.measure.bench import BenchResult, Progress
    from lzero.dispatch.strategies import Strategy
    from lzero.dispatch.toolchain import Compiler

__all__ = ["app", "bench"]

app = typer.Typer(add_completion=False, rich_markup_mode=None)

NOT_MEASURED = ("range_as_written", "chain_today")
"""Left out unless named: one is wrong, the other differs from S2 by a reason that no profile here has."""


@app.command()
def bench(
    strategies: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME|PLAN.json]...", help="What to measure; default: all strategies."),
    ] = None,
    profile: Annotated[
        str, typer.Option(metavar="TRACE|NAME", help="Recording, CSV of counts, or the name of a shipped profile.")
    ] = "skewed",
    mitigation: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="May be repeated; 'all' for every one. Default: retpoline.")
    ] = None,
    cc: Annotated[
        list[str] | None, typer.Option("--cc", metavar="CC", help="Compiler; may be repeated. Default: gcc.")
    ] = None,
    mode: Annotated[
        list[str] | None, typer.Option(metavar="MODE", help="plain, serialised or polluted; default: all three.")
    ] = None,
    layouts: Annotated[int, typer.Option(help="Link orders.")] = 4,
    processes: Annotated[int, typer.Option(help="Fresh processes per link order.")] = 3,
    rounds: Annotated[int, typer.Option(help="Passes per process in plain mode; half and a third in the others.")] = 15,
    length: Annotated[int, typer.Option(help="Exits per pass, at least 32768.")] = 65536,
    plans: Annotated[bool, typer.Option(help="Measure plans made for the profile as well.")] = True,
    pgo: Annotated[bool, typer.Option(help="Measure the installed compilers' profile-guided switches as well.")] = True,
    nested: Annotated[bool, typer.Option(help="VMX is offered to guests.")] = True,
    cachegrind: Annotated[bool, typer.Option(help="Count branches with valgrind too, if it is installed.")] = False,
    recalibrate: Annotated[bool, typer.Option("--recalibrate", help="Measure the prices of the model anew.")] = False,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the results as JSON.")] = None,
    parquet: Annotated[Path | None, typer.Option(metavar="FILE", help="Write every pass as Parquet.")] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a plot as an HTML page.")] = None,
    keep: Annotated[Path | None, typer.Option(metavar="DIR", help="Keep generated C, objects and programs.")] = None,
) -> None:
    """Measure dispatchers: build each for every compiler and mitigation, replay the profile's order, compare."""
    from lzero.dispatch.measure.bench import BenchOptions, run_bench
    from lzero.dispatch.measure.mitigations import MITIGATIONS, mitigation_named
    from lzero.dispatch.measure.run import MODES, Effort
    from lzero.dispatch.plan_file import load_strategy
    from lzero.dispatch.profiles import load_profile
    from lzero.dispatch.strategies import STRATEGIES
    from lzero.dispatch.toolchain import find_compiler
    from lzero.errors import UsageError

    chosen: list[Strategy] = [load_strategy(name) for name in strategies or ()]
    if not chosen:
        chosen = [strategy for name, strategy in STRATEGIES.items() if name not in NOT_MEASURED]
    wanted = list(MITIGATIONS) if mitigation and "all" in mitigation else mitigation or ["retpoline"]
    modes = mode or list(MODES)
    unknown = [name for name in modes if name not in MODES]
    if unknown:
        raise UsageError(f"no mode {unknown[0]!r}; there are {', '.join(MODES)}")
    divisor = {"plain": 1, "serialised": 2, "polluted": 3}
    effort = Effort(layouts, processes, {name: max(rounds // divisor[name], 1) for name in modes})
    base = BenchOptions()
    options = BenchOptions(
        length=length,
        effort=effort,
        plans=base.plans if plans else (),
        pgo=tuple(_installed()) if pgo else (),
        nested=nested,
        calibrate_again=recalibrate,
        cachegrind=cachegrind,
        keep=keep,
    )
    for path in (json, parquet, plot):
        # Before the measurement, not after it.
        if path is not None and not path.parent.is_dir():
            raise UsageError(f"{path}: cannot be written: {path.parent} is no directory")
    compilers = [find_compiler(name) for name in cc or ["gcc"]]
    mitigations = [mitigation_named(name) for name in wanted]
    exits = load_profile(profile)
    with _progress(len(compilers) * len(mitigations) * effort.runs) as progress:
        result = run_bench(exits, chosen, compilers, mitigations, options, progress)
    _show(result)
    _write(result, json, parquet, plot)


def _installed() -> Iterator[Compiler]:
    from lzero.dispatch.toolchain import find_compiler

    for name in ("gcc", "clang"):
        if shutil.which(name):
            yield find_compiler(name)


@contextmanager
def _progress(runs: int) -> Iterator[Progress]:
    """A bar on standard error that advances with each process; silent where that is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("starting", total=runs)

        def report(text: str) -> None:
            bar.update(task, description=text, advance=1 if ": process " in text else 0)

        yield report


def _show(result: BenchResult) -> None:
    from rich.console import Console

    from lzero.dispatch.measure.results import cell_tables, head_lines, summary_lines

    console = Console()
    # A redirected table must not be cut at 80 columns.
    if not console.is_terminal:
        console.width = 140
    for line in head_lines(result):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    for cell in result.cells:
        console.print()
        if cell.absent:
            console.print(f"{cell.compiler.version} · {cell.mitigation.name}: absent: {cell.absent}", markup=False)
            continue
        for table in cell_tables(cell):
            console.print(table)
        for line in summary_lines(cell):
            console.print(line, markup=False, highlight=False, soft_wrap=True)


def _write(result: BenchResult, json: Path | None, parquet: Path | None, plot: Path | None) -> None:
    from lzero.dispatch.measure.results import write_json, write_parquet, write_plot

    for path, write in ((json, write_json), (parquet, write_parquet), (plot, write_plot)):
        if path is not None:
            write(result, path)
            typer.echo(f"wrote {path}", err=True)
