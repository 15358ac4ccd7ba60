"""``lzero trace``: read, show, compare and export recorded exits."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from lzero.errors import UsageError

if TYPE_CHECKING:
    import polars as pl

    from lzero.trace.aggregates import Aggregates
    from lzero.trace.breakdown import Breakdown
    from lzero.trace.diff import Profile
    from lzero.trace.readers.events import Diagnosis

app = typer.Typer(
    help="Read, show, compare and export recorded exits.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)

TRACE = typer.Argument(metavar="TRACE", help="A trace or a recording of another tool; `-` reads standard input.")
TRACES = typer.Argument(metavar="TRACE...", help="Traces or recordings; `-` reads standard input.")
STRICT = typer.Option(False, "--strict", help="Treat anything that cannot be read as an error.")
FILTERS = typer.Option(
    [], "--filter", "-f", help="Only these rows: level=2, reason=CPUID,HLT, rip>=0x1000, duration_us>50."
)
SCHEDULER = typer.Option(None, "--scheduler", metavar="tcp://HOST:PORT", help="Work on this Dask cluster.")


class Format(StrEnum):
    """What a trace can be exported as."""

    PERFETTO = "perfetto"
    CSV = "csv"
    PARQUET = "parquet"


TARGET = typer.Option(..., "--output", "-o", help="The file to write.")
SYMBOLS = typer.Option(None, "--symbols", help="ELF file or System.map, for --by rip.")
FORMAT = typer.Option(Format.PERFETTO, "--format", help="perfetto (ui.perfetto.dev), csv or parquet.")


@app.command("import")
def import_command(
    sources: list[str] = TRACES,
    output: Path = TARGET,
    strict: bool = STRICT,
) -> None:
    """Turn recordings of perf, ftrace or trace-cmd into a trace of lzero's own (Parquet)."""
    from lzero.trace.load import import_trace
    from lzero.trace.store import row_count

    diagnoses = import_trace(sources, output, strict=strict)
    _say(diagnoses)
    typer.echo(f"{output}: {row_count(output)} exits", err=True)


@app.command()
def show(
    source: str = TRACE,
    by: str = typer.Option("reason", "--by", help="reason, level, vcpu, cpu, thread, rip, field, handled-by or cause."),
    filters: list[str] = FILTERS,
    sort: str = typer.Option("samples", "--sort", help="samples, time, min, max, avg or name."),
    top: int = typer.Option(0, "--top", min=0, help="Only so many rows of each table; 0 for all."),
    symbols: Path | None = SYMBOLS,
    strict: bool = STRICT,
    scheduler: str | None = SCHEDULER,
) -> None:
    """Print the exits in the columns of `perf kvm stat report`."""
    from lzero.trace.breakdown import break_down
    from lzero.trace.filters import parse_filters
    from lzero.trace.frames import counts_of, frames
    from lzero.trace.store import is_unfinished
    from lzero.trace.symbols import Symbols
    from lzero.trace.table import breakdown_table

    diagnoses: list[Diagnosis] = []
    condition = parse_filters(filters) if filters else None
    table = Symbols.load(symbols) if symbols else None
    if scheduler:
        from lzero.trace.cluster import break_down_on

        result = break_down_on(scheduler, source, by, condition, table)
    elif source != "-" and counts_of(source):
        if by != "reason" or filters:
            raise UsageError(f"{source}: holds numbers of exits per reason only; --by and --filter need the exits")
        result = _by_reason(source, diagnoses, strict)
    elif by == "reason" and not filters and (source == "-" or _is_recording(source)):
        # The usual question has a way of its own, without rows: several times faster than the general one.
        result = _by_reason(source, diagnoses, strict)
    else:
        result = break_down(frames(source, diagnoses, strict=strict), by, condition, table)
    typer.echo(breakdown_table(result.sorted(sort), top), nl=False)
    _say(diagnoses)
    if source != "-" and is_unfinished(Path(source)):
        sys.stderr.write(
            f"{source}: the recording was killed or is still running; these are the parts written so far\n"
        )


@app.command()
def causes(
    source: str = TRACE,
    filters: list[str] = FILTERS,
    fields: int = typer.Option(5, "--fields", min=0, help="How many VMCS fields to list for each reason."),
    strict: bool = STRICT,
) -> None:
    """For each reason of an L2 exit: the exits of L1 it triggers, mean and spread, and the VMCS fields used."""
    from lzero.trace.causes import causes_table, find_causes
    from lzero.trace.filters import parse_filters
    from lzero.trace.frames import frames

    diagnoses: list[Diagnosis] = []
    inputs = frames(source, diagnoses, strict=strict, by_file=True)
    if filters:
        condition = parse_filters(filters)
        inputs = (frame.filter(condition) for frame in inputs)
    typer.echo(causes_table(find_causes(inputs), fields), nl=False)
    _say(diagnoses)


@app.command()
def diff(
    before: str = typer.Argument(metavar="A"), after: str = typer.Argument(metavar="B"), strict: bool = STRICT
) -> None:
    """Compare two traces: rates per reason, what L2 exits cost L1, and whether a change is more than chance."""
    from lzero.trace.diff import compare, diff_table

    diagnoses: list[Diagnosis] = []
    profiles = [profile_of(name, diagnoses, strict) for name in (before, after)]
    typer.echo(diff_table(compare(*profiles)), nl=False)
    _say(diagnoses)


@app.command()
def export(
    source: str = TRACE,
    output: Path = TARGET,
    form: Format = FORMAT,
    filters: list[str] = FILTERS,
    strict: bool = STRICT,
) -> None:
    """Write a trace as a Perfetto timeline, CSV or Parquet."""
    from lzero.trace.filters import parse_filters
    from lzero.trace.frames import frames
    from lzero.trace.perfetto import export_perfetto
    from lzero.trace.store import export_table

    diagnoses: list[Diagnosis] = []
    condition = parse_filters(filters)
    inputs = (frame.filter(condition) for frame in frames(source, diagnoses, strict=strict, by_file=True))
    if form is Format.PERFETTO:
        count = export_perfetto(inputs, output)
    else:
        count = export_table(inputs, output, csv=form is Format.CSV)
    _say(diagnoses)
    typer.echo(f"{output}: {count} exits", err=True)


def profile_of(name: str, diagnoses: list[Diagnosis], strict: bool = False) -> Profile:
    """What `diff` compares of a trace, recording or counts."""
    from lzero.trace.diff import profile_counts, profile_rows
    from lzero.trace.frames import counts_of, frames

    if name == "-":
        raise UsageError("a diff reads its inputs twice: give files, not standard input")
    if counts_of(name):
        return profile_counts(name, _counts(name, diagnoses, strict))
    passes: list[list[Diagnosis]] = []

    def inputs() -> Iterator[pl.LazyFrame]:
        passes.append([])
        return frames(name, passes[-1], strict=strict)

    profile = profile_rows(name, inputs)
    diagnoses += passes[-1]
    return profile


def _by_reason(name: str, diagnoses: list[Diagnosis], strict: bool) -> Breakdown:
    """The exits of a recording by reason, from its totals."""
    from lzero.trace.breakdown import Breakdown
    from lzero.trace.names import reason_name

    totals = _counts(name, diagnoses, strict).exits
    return Breakdown("reason", [(level, reason_name(code), item) for (level, code), item in totals.items()])


def _is_recording(name: str) -> bool:
    """Whether the input is one file of another tool."""
    from lzero.trace.store import is_store

    return not is_store(Path(name)) and not Path(name).is_dir()


def _counts(name: str, diagnoses: list[Diagnosis], strict: bool) -> Aggregates:
    from lzero.trace.load import open_recording

    recording = open_recording(name, strict=strict)
    diagnoses.append(recording.diagnosis)
    try:
        return recording.aggregates()
    finally:
        recording.close()


def _say(diagnoses: Sequence[Diagnosis]) -> None:
    """What could not be read, on standard error."""
    for diagnosis in diagnoses:
        for line in diagnosis.summary():
            sys.stderr.write(line + "\n")
