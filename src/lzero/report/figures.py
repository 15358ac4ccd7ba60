"""The figures of a report as Plotly's JSON: data and layout, nothing drawn yet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lzero.report.data import TraceData
from lzero.trace.diff import Diff
from lzero.trace.names import field_name, reason_name

__all__ = ["bench_figure", "causes_figure", "diff_figure", "fields_figure", "time_figure", "totals_figure"]

Figure = dict[str, Any]

_MOST_FIELDS = 40


def _layout(title: str, **more: Any) -> Figure:
    return {
        "title": {"text": title, "font": {"size": 15}},
        "margin": {"l": 60, "r": 20, "t": 45, "b": 45},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, sans-serif", "color": "#556"},
        "height": 400,
        **more,
    }


def totals_figure(data: TraceData) -> Figure:
    """Bars: exits per reason, a colour per level."""
    traces = []
    for level in sorted({level for level, _, _ in data.breakdown.rows}):
        rows = [(name, totals) for row_level, name, totals in data.breakdown.rows if row_level == level]
        bars = {
            "type": "bar",
            "name": f"L{level}",
            "x": [name for name, _ in rows],
            "y": [item.count for _, item in rows],
        }
        traces.append(bars)
    layout = _layout("Exits by reason", barmode="group", yaxis={"type": "log", "title": {"text": "exits"}})
    layout["xaxis"] = {"automargin": True}
    return {"data": traces, "layout": layout}


def time_figure(data: TraceData) -> Figure:
    """Stacked areas: exits per second over the trace."""
    traces = [
        {"type": "scatter", "mode": "lines", "stackgroup": "all", "name": line.name, "x": data.times, "y": line.rates}
        for line in data.lines
    ]
    axes = {"xaxis": {"title": {"text": "seconds"}}, "yaxis": {"title": {"text": "exits per second"}}}
    return {"data": traces, "layout": _layout("Exits over time", **axes)}


def causes_figure(data: TraceData) -> Figure | None:
    """A flow from the reasons of L2's exits to the exits of L1 they caused; ``None`` when nothing was nested."""
    causes = [cause for cause in data.causes.rows if cause.children]
    if not causes:
        return None
    children = sorted({child for cause in causes for child in cause.children})
    labels = [f"L2 {reason_name(cause.reason)}" for cause in causes] + [f"L1 {reason_name(code)}" for code in children]
    links = [
        (index, len(causes) + children.index(child), count)
        for index, cause in enumerate(causes)
        for child, (count, _) in cause.children.items()
    ]
    sources, targets, values = (list(column) for column in zip(*links, strict=True))
    flow = {
        "type": "sankey",
        "node": {"label": labels, "pad": 14, "thickness": 14},
        "link": {"source": sources, "target": targets, "value": values, "color": "rgba(110,130,170,0.35)"},
    }
    return {"data": [flow], "layout": _layout("What L2's exits cost L1", height=460)}


def fields_figure(data: TraceData) -> Figure | None:
    """A heat map: accesses per reflected L2 exit, of each VMCS field for each reason; ``None`` if no field is
    known.
    """
    causes = [cause for cause in data.causes.rows if cause.reflected and any(field >= 0 for _, field in cause.fields)]
    if not causes:
        return None
    totals: dict[tuple[int, int], int] = {}
    for cause in causes:
        for key, count in cause.fields.items():
            if key[1] >= 0:
                totals[key] = totals.get(key, 0) + count
    keys = sorted(totals, key=lambda key: -totals[key])[:_MOST_FIELDS][::-1]
    heat = {
        "type": "heatmap",
        "x": [f"L2 {reason_name(cause.reason)}" for cause in causes],
        "y": [f"{reason_name(code)} {field_name(field)}" for code, field in keys],
        "z": [[cause.fields.get(key, 0) / cause.reflected for cause in causes] for key in keys],
        "colorscale": [[0, "rgba(120,140,180,0.08)"], [1, "rgb(8,70,160)"]],
    }
    layout = _layout("VMCS accesses that exited, per L2 exit", height=160 + 18 * len(keys))
    layout["margin"]["l"] = 320
    return {"data": [heat], "layout": layout}


def diff_figure(diff: Diff) -> Figure:
    """Bars: B over A per reason and cause, for what both sides have."""
    rows = [row for row in diff.rows if not row.one_sided][::-1]
    bars = {
        "type": "bar",
        "orientation": "h",
        "y": [row.name for row in rows],
        "x": [row.ratio for row in rows],
        "marker": {"color": ["#c33" if row.significant else "#99a" for row in rows]},
    }
    layout = _layout("B divided by A (red: more than chance)", height=160 + 22 * len(rows))
    layout["margin"]["l"] = 280
    layout["xaxis"] = {"type": "log"}
    return {"data": [bars], "layout": layout}


def bench_figure(bench: Mapping[str, Any]) -> Figure | None:
    """Bars with intervals: extra ticks per dispatch of each strategy, a colour per compiler, mitigation and mode.

    `bench` is the JSON that ``lzero dispatch bench --json`` writes; ``None`` when it holds no measurement.
    """
    traces = []
    for cell in bench.get("cells", ()):
        modes: dict[str, list[Mapping[str, Any]]] = {}
        for row in cell.get("rows", ()):
            modes.setdefault(str(row.get("mode")), []).append(row)
        for mode, rows in modes.items():
            points = [(str(row["candidate"]), row["extra"]) for row in rows if isinstance(row.get("extra"), Mapping)]
            if not points:
                continue
            compiler, mitigation = cell.get("compiler"), cell.get("mitigation")
            traces.append(
                {
                    "type": "bar",
                    "name": f"{_label(compiler, 'version')} · {_label(mitigation, 'name')} · {mode}",
                    "x": [name for name, _ in points],
                    "y": [extra["value"] for _, extra in points],
                    "error_y": {
                        "type": "data",
                        "symmetric": False,
                        "array": [extra["high"] - extra["value"] for _, extra in points],
                        "arrayminus": [extra["value"] - extra["low"] for _, extra in points],
                    },
                }
            )
    if not traces:
        return None
    layout = _layout(
        "Dispatch: extra ticks over a direct call", barmode="group", yaxis={"title": {"text": "TSC ticks"}}
    )
    return {"data": traces, "layout": layout}


def _label(value: Any, key: str) -> str:
    return str(value.get(key, value)) if isinstance(value, Mapping) else str(value)
