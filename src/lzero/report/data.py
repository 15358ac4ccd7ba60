"""What a report shows of a trace, computed in bounded memory before anything is drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from lzero.trace.aggregates import Aggregates
from lzero.trace.breakdown import Breakdown, break_down
from lzero.trace.causes import Causes, find_causes
from lzero.trace.frames import counts_of, frames, merged_query
from lzero.trace.names import reason_name
from lzero.trace.readers.events import Diagnosis
from lzero.trace.totals import totals_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    import polars as pl

__all__ = ["Line", "TraceData", "collect"]

_BINS: Final = 200
_LINES: Final = 8


@dataclass(frozen=True, slots=True)
class Line:
    """Exits per second over time of one level and reason."""

    name: str
    rates: list[float]


@dataclass(frozen=True, slots=True)
class TraceData:
    """Everything a report says of one trace.

    ``times`` are the middles of the bins in seconds from the trace's start; without times (counts only) there are
    none, and without nested exits there are no causes.
    """

    name: str
    seconds: float
    breakdown: Breakdown
    times: list[float]
    lines: list[Line]
    causes: Causes
    problems: list[str]


def collect(name: str) -> TraceData:
    """Read a trace, a recording, or a source of counts.

    Raises
    ------
    UsageError
        There is no such file, or it is empty.
    TraceFormatError
        The content is not recognised.
    """
    diagnoses: list[Diagnosis] = []
    if counts_of(name):
        breakdown = _of_counts(totals_of(name, diagnoses))
        return TraceData(name, 0.0, breakdown, [], [], Causes([]), _problems(diagnoses))
    breakdown = break_down(frames(name, diagnoses), "reason")
    first, last = _span(frames(name))
    times, lines = _over_time(name, first, last)
    causes = find_causes(frames(name, by_file=True))
    return TraceData(name, (last - first) / 1e9, breakdown, times, lines, causes, _problems(diagnoses))


def _problems(diagnoses: list[Diagnosis]) -> list[str]:
    return [line for diagnosis in diagnoses for line in diagnosis.summary()]


def _of_counts(aggregates: Aggregates) -> Breakdown:
    rows = [(level, reason_name(code), totals) for (level, code), totals in aggregates.exits.items()]
    return Breakdown("reason", rows).sorted("samples")


def _span(inputs: Iterator[pl.LazyFrame]) -> tuple[int, int]:
    import polars as pl

    def query(frame: pl.LazyFrame) -> pl.LazyFrame:
        time = pl.col("host_ns")
        return frame.select(pl.lit(0).alias("key"), time.min().alias("first"), time.max().alias("last"))

    ends = merged_query(inputs, query, ["key"], [pl.col("first").min(), pl.col("last").max()])
    return int(ends["first"][0] or 0), int(ends["last"][0] or 0)


def _over_time(name: str, first: int, last: int) -> tuple[list[float], list[Line]]:
    """Exits per second of the most frequent reasons, the others together."""
    import polars as pl

    width = max(1, -(-(last - first + 1) // _BINS))
    keys = ["level", "isa", "reason", "bin"]

    def query(frame: pl.LazyFrame) -> pl.LazyFrame:
        cut = ((pl.col("host_ns") - first) // width).cast(pl.UInt16).alias("bin")
        exits = frame.filter(pl.col("handled_by") != 0).with_columns(cut)
        return exits.group_by(keys).agg(pl.len().cast(pl.Int64).alias("n"))

    table = merged_query(frames(name), query, keys, [pl.col("n").sum()])
    whole = (
        table.group_by("level", "isa", "reason").agg(pl.col("n").sum()).sort("n", "reason", descending=[True, False])
    )
    shown = {row[:3]: index for index, row in enumerate(whole.iter_rows()) if index < _LINES}
    bins = (last - first) // width + 1
    counts = [[0] * bins for _ in range(len(shown) + 1)]
    for level, isa, reason, cut, count in table.iter_rows():
        counts[shown.get((level, isa, reason), len(shown))][cut] += count
    names = [f"L{level} {reason_name(reason | (0x10000 if isa == 2 else 0))}" for level, isa, reason in shown]
    lines = [
        Line(label, [count * 1e9 / width for count in row])
        for label, row in zip([*names, "others"], counts, strict=True)
        if any(row)
    ]
    return [(index + 0.5) * width / 1e9 for index in range(bins)], lines
