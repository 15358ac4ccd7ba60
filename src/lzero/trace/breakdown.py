"""Exits totalled by any column: the question behind every table of ``lzero trace show``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from lzero.errors import UsageError
from lzero.trace.aggregates import Totals
from lzero.trace.frames import merged_query
from lzero.trace.names import field_name, reason_name
from lzero.trace.schema import HandledBy
from lzero.trace.symbols import Symbols

if TYPE_CHECKING:
    import polars as pl

__all__ = ["KEYS", "Breakdown", "break_down", "merge_rows", "merge_totals", "totals_expressions"]

KEYS: Final = {
    "reason": "reason",
    "level": "level",
    "vcpu": "vcpu",
    "cpu": "cpu",
    "thread": "thread",
    "rip": "rip",
    "field": "vmcs_field",
    "handled-by": "handled_by",
    "cause": "parent_reason",
}
"""What ``--by`` can name, and the column it groups by."""


@dataclass(frozen=True, slots=True)
class Breakdown:
    """Totals per level and key.

    Attributes
    ----------
    by:
        A name of :data:`KEYS`.
    rows:
        (level, key as printed, totals), most exits first.
    """

    by: str
    rows: list[tuple[int, str, Totals]]

    def sorted(self, order: str) -> Breakdown:
        """The same rows in another order: one of ``samples``, ``time``, ``min``, ``max``, ``avg``, ``name``.

        Raises
        ------
        UsageError
            `order` is none of these.
        """
        keys: dict[str, Any] = {
            "samples": lambda row: (-row[2].count, row[1]),
            "time": lambda row: (-row[2].total_ns, row[1]),
            "min": lambda row: (-row[2].min_ns, row[1]),
            "max": lambda row: (-row[2].max_ns, row[1]),
            "avg": lambda row: (-row[2].mean_ns, row[1]),
            "name": lambda row: row[1],
        }
        if order not in keys:
            raise UsageError(f"cannot sort by {order!r}; choose from {', '.join(keys)}")
        return Breakdown(self.by, sorted(self.rows, key=keys[order]))


def totals_expressions() -> list[pl.Expr]:
    """Expressions that total the exits of a group, in the order of the fields of :class:`Totals`."""
    import polars as pl

    # An unknown duration becomes a null, which every aggregation passes over: quicker than a filter for the minimum.
    known = pl.when(pl.col("duration_ns") > 0).then(pl.col("duration_ns"))
    real = known.cast(pl.Float64)
    return [
        pl.len().cast(pl.Int64).alias("count"),
        known.count().cast(pl.Int64).alias("timed"),
        known.sum().alias("total_ns"),
        known.min().alias("min_ns"),
        known.max().alias("max_ns"),
        (real * real).sum().alias("squares"),
    ]


def merge_totals() -> list[pl.Expr]:
    """Expressions that merge partial totals."""
    import polars as pl

    sums = [pl.col(name).sum() for name in ("count", "timed", "total_ns")]
    return [*sums, pl.col("min_ns").min(), pl.col("max_ns").max(), pl.col("squares").sum()]


def break_down(
    inputs: Iterator[pl.LazyFrame], by: str, condition: pl.Expr | None = None, symbols: Symbols | None = None
) -> Breakdown:
    """Total the exits of the inputs by level and `by`.

    Parameters
    ----------
    inputs:
        Frames of rows, see :func:`lzero.trace.frames.frames`.
    by:
        A name of :data:`KEYS`.
    condition:
        Which rows count; all exits by default (what the processor served is no exit, except by field).
    symbols:
        Names for guest addresses.

    Raises
    ------
    UsageError
        `by` is no key, or there are no inputs.
    """
    import polars as pl

    if by not in KEYS:
        raise UsageError(f"cannot group by {by!r}; choose from {', '.join(KEYS)}")
    chosen = pl.lit(True) if condition is None else condition
    if by == "field":
        chosen = chosen & (pl.col("vmcs_field") >= 0)
    else:
        chosen = chosen & (pl.col("handled_by") != int(HandledBy.PROCESSOR))
    if by == "cause":
        chosen = chosen & (pl.col("parent_reason") >= 0)
    extra = ["isa", "reason", "handled_by"] if by == "field" else ["isa"]
    keys = list(dict.fromkeys(["level", *extra, KEYS[by]]))

    def query(frame: pl.LazyFrame) -> pl.LazyFrame:
        return frame.filter(chosen).group_by(keys).agg(totals_expressions())

    table = merged_query(inputs, query, keys, merge_totals())
    rows = [(int(row["level"]), _label(by, row, symbols), _totals(row)) for row in table.iter_rows(named=True)]
    return Breakdown(by, rows).sorted("samples")


def merge_rows(by: str, parts: Sequence[Breakdown]) -> Breakdown:
    """One breakdown out of those of several inputs."""
    merged: dict[tuple[int, str], Totals] = {}
    for part in parts:
        for level, key, totals in part.rows:
            merged.setdefault((level, key), Totals()).merge(totals)
    return Breakdown(by, [(level, key, totals) for (level, key), totals in merged.items()]).sorted("samples")


def _totals(row: dict[str, Any]) -> Totals:
    return Totals(row["count"], row["timed"], row["total_ns"], row["min_ns"] or 0, row["max_ns"] or 0, row["squares"])


def _label(by: str, row: dict[str, Any], symbols: Symbols | None) -> str:
    value = int(row[KEYS[by]])
    if by in ("reason", "cause"):
        return reason_name(value | (0x10000 if row["isa"] == 2 else 0))
    if by == "rip":
        return symbols.name(value) if symbols else f"0x{value:x}"
    if by == "field":
        served = " (shadow)" if row["handled_by"] == HandledBy.PROCESSOR else ""
        return f"{reason_name(row['reason'])} {field_name(value)}{served}"
    if by == "handled-by":
        return HandledBy(value).name
    if by == "level":
        return f"L{value}"
    return "unknown" if value < 0 else str(value)
