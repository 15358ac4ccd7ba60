"""The report: one HTML file with everything in it, Plotly's script included, so that it opens without a network."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from html import escape
from importlib import resources
from typing import Any, Final

from lzero.report.data import TraceData
from lzero.report.figures import bench_figure, causes_figure, diff_figure, fields_figure, time_figure, totals_figure
from lzero.report.tables import breakdown_html, causes_html, diff_html
from lzero.trace.diff import Diff

__all__ = ["build_page"]

_STYLE: Final = """
:root { color-scheme: light dark; --line: #8884; --text: #223; --back: #fff; --head: #f3f4f8; }
@media (prefers-color-scheme: dark) { :root { --text: #dde; --back: #16181d; --head: #22252d; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--text); background: var(--back); max-width: 1100px;
       margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; } h3 { font-size: 1rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; margin: .8rem 0; }
th, td { padding: .2rem .6rem; border-bottom: 1px solid var(--line); text-align: right; }
th { background: var(--head); } th:first-child, td:first-child, #causes-table td:last-child { text-align: left; }
.figure { width: 100%; overflow-x: auto; } .note { opacity: .75; } .scroll { overflow-x: auto; }
"""


def build_page(
    data: TraceData, other: TraceData | None = None, diff: Diff | None = None, bench: Mapping[str, Any] | None = None
) -> str:
    """The whole page as text.

    Parameters
    ----------
    data:
        The trace the report is about.
    other, diff:
        A second trace and the comparison with it.
    bench:
        What ``lzero dispatch bench --json`` wrote.
    """
    figures: dict[str, dict[str, Any]] = {}
    body = [f"<h1>VM exits of {escape(data.name)}</h1>", _head(data)]
    body += _section(figures, "totals", "Totals", totals_figure(data), breakdown_html(data.breakdown))
    if data.lines:
        body += _section(figures, "time", "Over time", time_figure(data))
    if any(cause.reflected for cause in data.causes.rows):
        body += _section(figures, "causes", "Causes", causes_figure(data), causes_html(data.causes))
        body += _section(figures, "fields", "VMCS fields", fields_figure(data))
    if diff is not None:
        comparison = f"A is {escape(diff.before.name)}, B is {escape(diff.after.name)}."
        body += _section(figures, "diff", "Compared", diff_figure(diff), f"<p>{comparison}</p>" + diff_html(diff))
    if other is not None:
        body.append(f"<h2>Totals of {escape(other.name)}</h2>{_head(other)}{breakdown_html(other.breakdown)}")
    if bench is not None:
        body += _section(figures, "bench", "Dispatch strategies", bench_figure(bench))
    return _document(data.name, "\n".join(body), figures)


def _head(data: TraceData) -> str:
    whole = sum(totals.count for _, _, totals in data.breakdown.rows)
    span = f" in {data.seconds:.3f} s" if data.seconds else " (numbers only: no times, no causes)"
    notes = "".join(f"<br>{escape(line)}" for line in data.problems)
    return f'<p class="note"><span id="whole">{whole}</span> exits{span}.{notes}</p>'


def _section(
    figures: dict[str, dict[str, Any]], name: str, title: str, figure: dict[str, Any] | None, table: str = ""
) -> list[str]:
    parts = [f'<h2 id="{name}">{escape(title)}</h2>']
    if figure is not None:
        figures[name] = figure
        parts.append(f'<div class="figure" id="figure-{name}"></div>')
    else:
        parts.append('<p class="note">Nothing to draw: the trace does not say.</p>')
    return [*parts, f'<div class="scroll">{table}</div>' if table else ""]


def _document(title: str, body: str, figures: Mapping[str, Any]) -> str:
    # "</" inside a script would end it: JSON lets the slash be escaped.
    content = json.dumps(figures, separators=(",", ":")).replace("</", "<\\/")
    made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>VM exits of {escape(title)}</title>
<style>{_STYLE}</style>
<script>{_plotly()}</script>
</head>
<body>
{body}
<p class="note">Written by lzero, {made}.</p>
<script>
const figures = {content};
for (const [name, figure] of Object.entries(figures)) {{
  Plotly.newPlot("figure-" + name, figure.data, figure.layout, {{responsive: true, displaylogo: false}});
}}
document.body.dataset.drawn = Object.keys(figures).length;
</script>
</body>
</html>
"""


def _plotly() -> str:
    return resources.files("plotly").joinpath("package_data", "plotly.min.js").read_text("utf-8")
