"""The tables of :mod:`lzero.trace` as HTML, for reports and notebooks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from lzero.trace.aggregates import Totals
from lzero.trace.breakdown import Breakdown
from lzero.trace.causes import Causes
from lzero.trace.diff import Diff
from lzero.trace.names import reason_name

__all__ = ["breakdown_html", "causes_html", "diff_html"]

_TOTALS = ("Samples", "Samples%", "Time%", "Min Time", "Max Time", "Avg time", "±")


def breakdown_html(breakdown: Breakdown) -> str:
    """A table per level, in the columns of ``perf kvm stat report``; times in microseconds."""
    parts = []
    for level in sorted({level for level, _, _ in breakdown.rows}):
        rows = [(name, totals) for row_level, name, totals in breakdown.rows if row_level == level]
        whole = Totals()
        for _, totals in rows:
            whole.merge(totals)
        body = [[name, *_cells(totals, whole)] for name, totals in rows]
        parts.append(f"<h3>L{level}: {whole.count} exits</h3>" + _table(["VM-EXIT", *_TOTALS], body, f"level-{level}"))
    return "".join(parts)


def _cells(totals: Totals, whole: Totals) -> list[str]:
    samples = 100 * totals.count / whole.count if whole.count else 0.0
    time = 100 * totals.total_ns / whole.total_ns if whole.total_ns else 0.0
    times = (f"{value / 1000:.2f}us" for value in (totals.min_ns, totals.max_ns, totals.mean_ns))
    return [str(totals.count), f"{samples:.2f}%", f"{time:.2f}%", *times, f"{100 * totals.relative_error:.2f}%"]


def causes_html(causes: Causes) -> str:
    """For each reason of L2's exits, mean and standard deviation of L1's exits by reason."""
    rows = []
    for cause in causes.rows:
        ordered = sorted(cause.children, key=lambda code: -cause.children[code][0])
        detail = ", ".join(
            f"{reason_name(code)} {cause.mean(code):.2f} ± {cause.deviation(code):.2f}" for code in ordered
        )
        whole = f"{cause.mean():.2f} ± {cause.deviation():.2f}"
        rows.append([f"L2 {reason_name(cause.reason)}", str(cause.exits), str(cause.reflected), whole, detail])
    return _table(["L2 exit", "exits", "reflected", "L1 exits for each", "of these"], rows, "causes-table")


def diff_html(diff: Diff) -> str:
    """Every row of a comparison; what only one side has comes first."""
    rows = []
    for row in diff.rows:
        ratio = "only A" if not row.after else "only B" if not row.before else f"{row.ratio:.3f}"
        mark = " *" if row.significant else ""
        rows.append([row.name, f"{row.before:.4g}", f"{row.after:.4g}", ratio, f"{row.probability:.4f}{mark}"])
    return _table(["", "A", "B", "B/A", "chance"], rows, "diff-table")


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], identity: str) -> str:
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<table id="{identity}"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>'
