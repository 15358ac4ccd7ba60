"""The exit table, in the columns of ``perf kvm stat report``, and the table of causes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lzero.trace.aggregates import Aggregates, Totals
from lzero.trace.names import reason_name

if TYPE_CHECKING:
    from lzero.trace.breakdown import Breakdown

__all__ = ["breakdown_table", "causes_lines", "exit_table"]

_SINGLE_COLUMNS = ("VMREAD", "VMWRITE", "VMRESUME")


def exit_table(aggregates: Aggregates) -> str:
    """The exits per reason, a part for each level that exited, then the causes: what ``lzero run`` prints at its end.

    Times are host microseconds from the exit to the next entry. Events that the processor served without an exit
    (shadow VMCS) are listed under the table they would have been in.
    """
    levels = aggregates.levels() or [1]
    parts = [_level_table(aggregates, level) for level in levels]
    causes = causes_lines(aggregates)
    if causes:
        parts.append("\n".join(causes))
    return "\n\n".join(parts) + "\n"


def breakdown_table(breakdown: Breakdown, top: int = 0) -> str:
    """The totals of a breakdown, a part per level; only the first `top` rows of each when `top` is not 0."""
    parts = []
    for level in sorted({level for level, _, _ in breakdown.rows}) or [1]:
        rows = [(name, totals) for row_level, name, totals in breakdown.rows if row_level == level]
        whole = Totals()
        for _, totals in rows:
            whole.merge(totals)
        shown = rows[:top] if top else rows
        hidden = f" ({len(rows) - len(shown)} more rows)" if len(shown) < len(rows) else ""
        parts.append("\n".join(_table(f"Exits of L{level} by {breakdown.by}:{hidden}", shown, whole)))
    return "\n\n".join(parts) + "\n"


def _level_table(aggregates: Aggregates, level: int) -> str:
    whole = aggregates.total(level)
    rows = sorted(
        ((reason_name(code), totals) for (row_level, code), totals in aggregates.exits.items() if row_level == level),
        key=lambda row: (-row[1].count, row[0]),
    )
    lines = _table(f"Exits of L{level}:", rows, whole)
    served = sorted(
        (reason_name(code), count) for (row_level, code), count in aggregates.by_processor.items() if row_level == level
    )
    lines += [f"{name}: {count} more served by the processor without an exit (shadow VMCS)." for name, count in served]
    return "\n".join(lines)


def _table(title: str, rows: Sequence[tuple[str, Totals]], whole: Totals) -> list[str]:
    width = max([20, *(len(name) for name, _ in rows)])
    return [
        title,
        "",
        f"{'VM-EXIT':>{width}} {'Samples':>10} {'Samples%':>9} {'Time%':>9}"
        f" {'Min Time':>11} {'Max Time':>11} {'Avg time':>11}",
        "",
        *(_line(name, totals, whole, width) for name, totals in rows),
        "",
        f"Total Samples:{whole.count}, Total events handled time:{whole.total_ns / 1000:.2f}us.",
    ]


def _line(name: str, totals: Totals, whole: Totals, width: int) -> str:
    samples = 100 * totals.count / whole.count if whole.count else 0.0
    time = 100 * totals.total_ns / whole.total_ns if whole.total_ns else 0.0
    return (
        f"{name:>{width}} {totals.count:>10} {samples:>8.2f}% {time:>8.2f}%"
        f" {totals.min_ns / 1000:>9.2f}us {totals.max_ns / 1000:>9.2f}us "
        f"{totals.mean_ns / 1000:>9.2f}us ( +- {100 * totals.relative_error:>6.2f}% )"
    )


def causes_lines(aggregates: Aggregates) -> list[str]:
    """A table with one line per reason of a reflected L2 exit: the mean number of L1's exits before L2 runs again, and
    of its VMREADs and VMWRITEs that the processor served without an exit; no line when nothing was nested.
    """
    if not aggregates.reflected:
        return []
    rows = []
    for reason, reflected in sorted(aggregates.reflected.items(), key=lambda item: (-item[1], item[0])):
        exits = {reason_name(child): count for (parent, child), count in aggregates.caused.items() if parent == reason}
        served = sum(count for (parent, _), count in aggregates.caused_by_processor.items() if parent == reason)
        counts = [*(exits.pop(name, 0) for name in _SINGLE_COLUMNS), sum(exits.values()), served]
        means = " ".join(f"{count / reflected:>9.2f}" for count in counts)
        rows.append(f"{reason_name(reason):>20} {reflected:>9} {means}")
    heads = (*(f"{name}s" for name in _SINGLE_COLUMNS), "others", "shadowed")
    return [
        "What one exit of L2 that is reflected to L1 costs, in exits of L1 (means):",
        "",
        f"{'VM-EXIT':>20} {'Reflected':>9} {' '.join(f'{head:>9}' for head in heads)}",
        "",
        *rows,
    ]
