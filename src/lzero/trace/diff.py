"""Two traces compared: rates of exits and what L2 exits cost L1, with the chance that a difference is only noise.

Exits come in bursts, so counting errors (the square root of the count) would call everything significant. Each
trace with times is cut into equal time slices, and the spread of a rate over the slices gives its error. Sources
with counts only are compared by shares, with counting errors, and say so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from lzero.trace.aggregates import Aggregates
from lzero.trace.frames import merged_query
from lzero.trace.names import reason_name

if TYPE_CHECKING:
    import polars as pl

__all__ = ["Diff", "DiffRow", "Profile", "compare", "diff_table", "profile_counts", "profile_rows"]

_SLICES: Final = 64
_SIGNIFICANT: Final = 0.01
_FEWEST_SLICES: Final = 8
_FEW_PARENTS: Final = 30

Key = tuple[str, int, int]
"""("exit", level, reason code), or ("cause", reason code of the L2 exit, reason code of L1's exit)."""


@dataclass(slots=True)
class Profile:
    """What is compared of one trace: per key a value and its standard error.

    For exits the value is a rate (exits per second of the trace), or a share of all exits where there are no times;
    for causes it is the number of L1's exits for one reflected L2 exit.
    """

    name: str
    seconds: float
    values: dict[Key, tuple[float, float]] = field(default_factory=dict)
    counts: dict[Key, int] = field(default_factory=dict)
    mean_ns: dict[Key, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DiffRow:
    """One key in both traces: the values, B over A, and the chance of such a difference without a cause
    (Holm-corrected).
    """

    key: Key
    before: float
    after: float
    probability: float
    mean_before_ns: float
    mean_after_ns: float

    @property
    def ratio(self) -> float:
        """B divided by A; infinite when A has none."""
        return self.after / self.before if self.before else math.inf

    @property
    def one_sided(self) -> bool:
        """Whether only one of the traces has such exits."""
        return not self.before or not self.after

    @property
    def significant(self) -> bool:
        """Whether the difference is more than chance (under 1 % after correction for the number of rows)."""
        return self.probability < _SIGNIFICANT

    @property
    def name(self) -> str:
        """The key in words."""
        kind, first, second = self.key
        if kind == "exit":
            return f"L{first} {reason_name(second)}"
        return f"L2 {reason_name(first)} → L1 {reason_name(second)}"


@dataclass(frozen=True, slots=True)
class Diff:
    """Two profiles compared; rows that only one side has come first, then the most certain and largest changes."""

    before: Profile
    after: Profile
    rows: list[DiffRow]


def profile_rows(name: str, inputs: Callable[[], Iterator[pl.LazyFrame]]) -> Profile:
    """Profile of a trace with rows; `inputs` is called twice (time span, then counts)."""
    import polars as pl

    def span(frame: pl.LazyFrame) -> pl.LazyFrame:
        times = pl.col("host_ns")
        return frame.select(pl.lit(0).alias("key"), times.min().alias("first"), times.max().alias("last"))

    ends = merged_query(inputs(), span, ["key"], [pl.col("first").min(), pl.col("last").max()])
    first, last = (int(ends[column][0] or 0) for column in ("first", "last"))
    width = max(1, -(-(last - first + 1) // _SLICES))
    keys = ["slice", "level", "isa", "reason", "parent_reason", "reflected"]

    def query(frame: pl.LazyFrame) -> pl.LazyFrame:
        exits = frame.filter(pl.col("handled_by") != 0)
        cut = ((pl.col("host_ns") - first) // width).cast(pl.UInt8).alias("slice")
        reflected = (pl.col("handled_by") == 2).alias("reflected")
        duration = pl.col("duration_ns")
        return (
            exits.with_columns(cut, reflected)
            .group_by(keys)
            .agg(
                pl.len().cast(pl.Int64).alias("n"),
                (duration > 0).sum().cast(pl.Int64).alias("timed"),
                duration.sum().alias("total_ns"),
                (duration.cast(pl.Float64) ** 2).sum().alias("squares"),
            )
        )

    merge = [pl.col(column).sum() for column in ("n", "timed", "total_ns", "squares")]
    table = merged_query(inputs(), query, keys, merge)
    svm = (pl.col("isa") == 2).cast(pl.Int64) * 0x10000
    code, cause = (pl.col(column).cast(pl.Int64) + svm for column in ("reason", "parent_reason"))
    table = table.with_columns(code.alias("code"), cause.alias("cause"))
    profile = Profile(name, (last - first) / 1e9)
    _add_rates(profile, table, width)
    _add_causes(profile, table)
    return profile


def _add_rates(profile: Profile, table: pl.DataFrame, width: int) -> None:
    import polars as pl

    per_slice = table.group_by("level", "code", "slice").agg(pl.col("n").sum())
    per_key = table.group_by("level", "code").agg(pl.col("n", "timed", "total_ns", "squares").sum())
    squares = {(level, code): total for level, code, total in _sum_squares(per_slice, ["level", "code"])}
    slices = max(1, min(_SLICES, math.ceil(profile.seconds * 1e9 / width)))
    for level, code, count, timed, total_ns, square in per_key.iter_rows():
        key: Key = ("exit", level, code)
        mean = count / slices
        variance = max(0.0, squares[level, code] / slices - mean * mean) * slices / max(1, slices - 1)
        # With too few slices for a spread, and where there happens to be none, the error is at least that of a count.
        error = max(math.sqrt(variance * slices) if slices >= _FEWEST_SLICES else 0.0, math.sqrt(count))
        seconds = profile.seconds or 1.0
        profile.counts[key] = count
        profile.values[key] = (count / seconds, error / seconds)
        if timed:
            average = total_ns / timed
            spread = max(0.0, square / timed - average * average)
            profile.mean_ns[key] = (average, math.sqrt(spread / timed))


def _sum_squares(table: pl.DataFrame, keys: list[str]) -> Iterator[Any]:
    import polars as pl

    return table.group_by(keys).agg((pl.col("n") ** 2).sum()).iter_rows()


def _add_causes(profile: Profile, table: pl.DataFrame) -> None:
    """L1's exits per reflected L2 exit: a ratio over all, its error from the residuals of the slices."""
    import polars as pl

    reflected = {
        (code, cut): count
        for code, cut, count in table.filter((pl.col("level") >= 2) & pl.col("reflected"))
        .group_by("code", "slice")
        .agg(pl.col("n").sum())
        .iter_rows()
    }
    children: dict[tuple[int, int], dict[int, int]] = {}
    caused = table.filter((pl.col("level") == 1) & (pl.col("parent_reason") >= 0))
    for cause, code, cut, count in caused.group_by("cause", "code", "slice").agg(pl.col("n").sum()).iter_rows():
        children.setdefault((cause, code), {})[cut] = count
    for (cause, code), by_slice in children.items():
        parents = {cut: count for (reason, cut), count in reflected.items() if reason == cause}
        total_parents, total = sum(parents.values()), sum(by_slice.values())
        if not total_parents:
            continue
        ratio = total / total_parents
        residuals = sum((by_slice.get(cut, 0) - ratio * parents.get(cut, 0)) ** 2 for cut in {*parents, *by_slice})
        # An L2 exit at a slice's end counts its children in the next: the error is never under half an exit per slice.
        error = math.sqrt(residuals + 0.25 * len(parents)) / total_parents
        if total_parents < _FEW_PARENTS:
            # The spread of a handful says little: with one L2 exit the next may cost nothing, or twice as much.
            error = max(error, ratio / math.sqrt(total_parents))
        key: Key = ("cause", cause, code)
        profile.values[key] = (ratio, error)
        profile.counts[key] = total


def profile_counts(name: str, aggregates: Aggregates) -> Profile:
    """Profile of a source that has counts only: shares of all exits, with counting errors."""
    profile = Profile(name, 0.0)
    whole = sum(totals.count for totals in aggregates.exits.values()) or 1
    for (level, code), totals in aggregates.exits.items():
        key: Key = ("exit", level, code)
        share = totals.count / whole
        profile.values[key] = (share, math.sqrt(share * (1 - share) / whole))
        profile.counts[key] = totals.count
        if totals.timed:
            profile.mean_ns[key] = (totals.mean_ns, totals.mean_ns * totals.relative_error)
    return profile


def as_shares(profile: Profile) -> Profile:
    """The same profile with shares of all exits instead of rates, to compare with a source that has no times."""
    whole = sum(count for key, count in profile.counts.items() if key[0] == "exit") or 1
    shares = Profile(profile.name, 0.0, {}, profile.counts, profile.mean_ns)
    for key, (value, error) in profile.values.items():
        factor = profile.counts[key] / whole / value if key[0] == "exit" and value else 1.0
        shares.values[key] = (value * factor, error * factor)
    return shares


def compare(before: Profile, after: Profile) -> Diff:
    """Compare two profiles key by key."""
    if not before.seconds or not after.seconds:
        before, after = as_shares(before), as_shares(after)
    keys = sorted({*before.values, *after.values})
    chances = {key: _chance(before.values.get(key), after.values.get(key)) for key in keys}
    corrected = _holm(chances)
    rows = [
        DiffRow(
            key,
            before.values.get(key, (0.0, 0.0))[0],
            after.values.get(key, (0.0, 0.0))[0],
            corrected[key],
            before.mean_ns.get(key, (0.0, 0.0))[0],
            after.mean_ns.get(key, (0.0, 0.0))[0],
        )
        for key in keys
    ]

    def order(row: DiffRow) -> tuple[bool, bool, float, str]:
        size = max(row.before, row.after) if row.one_sided else abs(math.log(row.ratio))
        return (not row.one_sided, not row.significant, -size, row.name)

    return Diff(before, after, sorted(rows, key=order))


def _chance(before: tuple[float, float] | None, after: tuple[float, float] | None) -> float:
    """Two-sided chance of the difference under the normal distribution."""
    a, a_error = before or (0.0, 0.0)
    b, b_error = after or (0.0, 0.0)
    error = math.hypot(a_error, b_error)
    if not error:
        return 1.0 if a == b else 0.0
    return math.erfc(abs(b - a) / error / math.sqrt(2))


def _holm(chances: dict[Key, float]) -> dict[Key, float]:
    """Correct for the number of comparisons: the smallest chance counts n times, the next n − 1 times, and so on."""
    corrected: dict[Key, float] = {}
    worst = 0.0
    for rank, key in enumerate(sorted(chances, key=lambda key: chances[key])):
        worst = max(worst, min(1.0, chances[key] * (len(chances) - rank)))
        corrected[key] = worst
    return corrected


def diff_table(diff: Diff) -> str:
    """The comparison as text."""
    rated = diff.before.seconds > 0
    unit = "exits/s" if rated else "share"
    lines = [
        f"A: {diff.before.name}" + (f" ({diff.before.seconds:.3f} s)" if rated else ""),
        f"B: {diff.after.name}" + (f" ({diff.after.seconds:.3f} s)" if rated else ""),
    ]
    if not rated:
        lines.append(
            "One of them has no times: shares of all exits are compared, and independence of the exits is assumed."
        )
    sections = (
        ("On one side only", [row for row in diff.rows if row.one_sided]),
        (f"Exits ({unit})", [row for row in diff.rows if not row.one_sided and row.key[0] == "exit"]),
        ("L1's exits per reflected L2 exit", [row for row in diff.rows if not row.one_sided and row.key[0] == "cause"]),
    )
    width = max([20, *(len(row.name) for row in diff.rows)])
    for title, rows in sections:
        if not rows:
            continue
        lines += [
            "",
            f"{title + ':':<{width}} {'A':>12} {'B':>12} {'B/A':>8} {'chance':>8}   {'avg A':>9} {'avg B':>9}",
        ]
        lines += [_line(row, width, rated) for row in rows]
    return "\n".join(lines) + "\n"


def _line(row: DiffRow, width: int, rated: bool) -> str:
    def number(value: float) -> str:
        if not rated and row.key[0] == "exit":
            return f"{100 * value:.3f}%"
        return f"{value:.2f}"

    def micro(value: float) -> str:
        return f"{value / 1000:.2f}us" if value else "-"

    ratio = "only A" if not row.after else "only B" if not row.before else f"{row.ratio:.3f}"
    chance = "<0.0001" if row.probability < 1e-4 else f"{row.probability:.4f}"
    verdict = " *" if row.significant else "  "
    return (
        f"{row.name:<{width}} {number(row.before):>12} {number(row.after):>12} {ratio:>8} {chance:>8}{verdict}"
        f" {micro(row.mean_before_ns):>9} {micro(row.mean_after_ns):>9}"
    )
