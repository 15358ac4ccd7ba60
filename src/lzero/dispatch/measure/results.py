"""Results as tables, JSON, Parquet and a plot."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from lzero.dispatch.measure.bench import REFERENCE, BenchResult, Cell, Row
from lzero.dispatch.measure.build import DIRECT, PGO_SWITCH
from lzero.dispatch.measure.run import MINIMUM_LENGTH, MODES, WARM_UP, chosen_cpu
from lzero.dispatch.measure.stats import Interval
from lzero.errors import ToolError, UsageError
from lzero.output import write_atomically

if TYPE_CHECKING:
    from rich.table import Table

__all__ = [
    "EXIT_SCALE",
    "cell_tables",
    "head_lines",
    "summary_lines",
    "to_json",
    "write_json",
    "write_parquet",
    "write_plot",
]

EXIT_CYCLES = (1300, 2500)
NESTED_EXIT_CYCLES = (7000, 12000)

EXIT_SCALE = (
    f"In scale: a whole exit costs {EXIT_CYCLES[0]:,} to {EXIT_CYCLES[1]:,} cycles, a nested one "
    f"{NESTED_EXIT_CYCLES[0]:,} to {NESTED_EXIT_CYCLES[1]:,}: 10 ticks of dispatch are under 1 % of an exit."
)


def head_lines(result: BenchResult) -> list[str]:
    """What stands before every table: machine, profile, conditions."""
    options = result.options
    effort = options.effort
    return [
        *result.host.lines(),
        f"profile: {result.profile.name} ({result.profile.origin})",
        f"{options.length} exits per pass, the first {WARM_UP} not timed; {effort.layouts} layouts × "
        f"{effort.processes} processes; rounds {', '.join(f'{mode} {n}' for mode, n in effort.rounds.items())}; "
        f"pinned to CPU {chosen_cpu()}",
        "95 % intervals: cluster bootstrap over processes and layouts of ratios paired within a round; "
        "≈ marks what is within noise of S2",
        *_short_recording(result),
        EXIT_SCALE,
    ]


def _short_recording(result: BenchResult) -> list[str]:
    order = result.profile.order
    if order is None or len(order) >= MINIMUM_LENGTH:
        return []
    return [
        f"CAUTION: the recording has only {len(order)} exits, repeated here; predictors learn less than "
        f"{MINIMUM_LENGTH} by heart, so mispredictions are too few"
    ]


def _short(interval: Interval) -> str:
    return f"{interval.value:.3f} [{interval.low:.3f}–{interval.high:.3f}]"


def _ticks(interval: Interval) -> str:
    return f"{interval.value:.1f} [{interval.low:.1f}–{interval.high:.1f}]"


def cell_tables(cell: Cell) -> list[Table]:
    """One table per mode, fastest first."""
    from rich.table import Table

    tables = []
    for mode in dict.fromkeys(row.mode for row in cell.rows):
        title = f"{cell.compiler.version} · {cell.mitigation.name} · {mode}"
        table = Table(title=title, caption=MODES[mode], title_justify="left", caption_justify="left")
        headings = ["strategy", "ticks", "extra over direct", "× direct", "× S2", "", "model", "bytes"]
        for heading in headings:
            table.add_column(heading, justify="left" if heading == "strategy" else "right", no_wrap=True)
        rows = sorted((row for row in cell.rows if row.mode == mode), key=lambda row: row.ticks)
        for row in rows:
            table.add_row(*_cells(cell, row))
        tables.append(table)
    return tables


def _cells(cell: Cell, row: Row) -> list[str]:
    mark = "≈" if row.noise and row.candidate != REFERENCE else ""
    modelled = "" if row.modelled is None else f"{row.modelled:.1f}"
    size = str(cell.text_bytes.get(row.candidate, ""))
    if row.candidate == DIRECT:
        return [row.candidate, f"{row.ticks:.1f}", "", "1", _short(row.over_reference), "", "", size]
    ratios = [_short(row.over_direct), "1" if row.candidate == REFERENCE else _short(row.over_reference)]
    return [row.candidate, f"{row.ticks:.1f}", _ticks(row.extra), *ratios, mark, modelled, size]


def summary_lines(cell: Cell) -> list[str]:
    """What the plans gained, against S2 and each profile-guided switch, and what could not be built."""
    lines = []
    if cell.model is not None:
        lines.append(f"model: {cell.model.describe()}")
    for plan in cell.plans:
        found = [row for row in cell.rows if row.candidate == plan.strategy.name and row.mode == "plain"]
        for row in found:
            against = [f"S2 {_short(row.over_reference)}"]
            against += [f"{name} {_short(ratio)}" for name, ratio in row.ratios.items() if name.startswith(PGO_SWITCH)]
            bound = (
                ""
                if plan.bound is None
                else f"; lower bound {plan.bound:.1f} of expected {plan.expected.ticks:.1f} ticks"
            )
            lines.append(
                f"{row.candidate}, time as a multiple of {', '.join(against)}{bound}{_share_of_exit(cell, row)}"
            )
    lines += [f"not built: {name}: {why}" for name, why in cell.missing.items()]
    lines += [f"tests not in the tree's order: {name}: {fault}" for name, fault in cell.order_faults.items()]
    if cell.counts:
        lines.append("cachegrind, per exit over the direct call (instructions, conditional/missed, indirect/missed):")
        lines += [
            f"  {name:<22} {c.instructions:6.2f}  {c.conditional:5.2f}/{c.conditional_missed:5.3f}  "
            f"{c.indirect:5.3f}/{c.indirect_missed:5.3f}"
            for name, c in cell.counts.items()
        ]
    return lines


def _share_of_exit(cell: Cell, row: Row) -> str:
    """What a plan's saving over S2 is of a whole exit, taking a tick for a cycle."""
    reference = next((r for r in cell.rows if r.candidate == REFERENCE and r.mode == row.mode), None)
    if reference is None:
        return ""
    saved = reference.ticks - row.ticks
    low, high = (100 * saved / cycles for cycles in reversed(EXIT_CYCLES))
    return f"; {saved:.1f} ticks less than S2 are {low:.1f} to {high:.1f} % of an exit"


def to_json(result: BenchResult) -> dict[str, object]:
    """The reduced results; every number with its unit in the key or in the docs."""
    options = result.options
    cells: list[dict[str, object]] = []
    for cell in result.cells:
        cells.append(
            {
                "compiler": asdict(cell.compiler),
                "mitigation": cell.mitigation.name,
                "absent": cell.absent,
                "model": None if cell.model is None else asdict(cell.model),
                "plans": [
                    {
                        "name": plan.strategy.name,
                        "expected_ticks": plan.expected.ticks,
                        "lower_bound_ticks": plan.bound,
                        "predictor": plan.predictor,
                        "optimal_in": plan.optimal_in,
                    }
                    for plan in cell.plans
                ],
                "rows": [asdict(row) for row in cell.rows],
                "text_bytes": dict(cell.text_bytes),
                "not_built": dict(cell.missing),
                "order_faults": dict(cell.order_faults),
                "cachegrind": {name: asdict(counts) for name, counts in cell.counts.items()},
            }
        )
    return {
        "format": "lzero-dispatch-bench",
        "version": 1,
        "host": result.host.as_dict(),
        "profile": {
            "name": result.profile.name,
            "origin": result.profile.origin,
            "exits": result.profile.total,
            "independent": result.profile.independent,
        },
        "length": options.length,
        "effort": asdict(options.effort),
        "cells": cells,
    }


def write_json(result: BenchResult, path: Path) -> None:
    """Write `to_json`, whole or not at all."""
    write_atomically(path, json.dumps(to_json(result), indent=1) + "\n")


def write_parquet(result: BenchResult, path: Path) -> None:
    """Write every pass: one row per compiler, mitigation, mode, layout, process, round and candidate."""
    import polars

    frames = []
    for cell in result.cells:
        if cell.measured is None:
            continue
        for (mode, name), samples in cell.measured.samples.items():
            for (layout, process), values in zip(cell.measured.clusters, samples, strict=True):
                frames.append(
                    polars.DataFrame(
                        {
                            "compiler": cell.compiler.version,
                            "mitigation": cell.mitigation.name,
                            "mode": mode,
                            "candidate": name,
                            "layout": layout,
                            "process": process,
                            "round": list(range(len(values))),
                            "ticks_per_exit": values,
                        }
                    )
                )
    if not frames:
        raise ToolError(f"{path} was not written: nothing could be measured, see the reasons above")
    scratch = path.with_name(f".{path.name}.part")
    try:
        polars.concat(frames).write_parquet(scratch)
        scratch.replace(path)
    except OSError as error:
        scratch.unlink(missing_ok=True)
        raise UsageError(f"{path}: cannot be written: {error}") from error


def write_plot(result: BenchResult, path: Path) -> None:
    """Write one self-contained HTML page: time as a multiple of S2's, with intervals, a panel per cell and mode."""
    from plotly.graph_objects import Bar, Figure
    from plotly.subplots import make_subplots

    panels = [(cell, mode) for cell in result.cells for mode in dict.fromkeys(row.mode for row in cell.rows)]
    titles = [f"{cell.compiler.family} · {cell.mitigation.name} · {mode}" for cell, mode in panels]
    figure: Figure = make_subplots(
        rows=max(len(panels), 1), cols=1, subplot_titles=titles, vertical_spacing=0.25 / max(len(panels), 1)
    )
    for number, (cell, mode) in enumerate(panels, start=1):
        rows = sorted((r for r in cell.rows if r.mode == mode), key=lambda r: r.over_reference.value)
        values = [r.over_reference for r in rows]
        bars = Bar(
            x=[r.candidate for r in rows],
            y=[v.value for v in values],
            error_y={
                "type": "data",
                "array": [v.high - v.value for v in values],
                "arrayminus": [v.value - v.low for v in values],
            },
            marker_color=["#999999" if r.noise else "#3366aa" for r in rows],
            showlegend=False,
        )
        figure.add_trace(bars, row=number, col=1)
        figure.add_hline(y=1.0, line_dash="dot", row=number, col=1)
    title = (
        f"Time per exit as a multiple of S2 · {result.profile.name} · {result.host.short()}<br><sub>{EXIT_SCALE}</sub>"
    )
    figure.update_layout(title=title, height=120 + 330 * max(len(panels), 1), template="plotly_white")
    write_atomically(path, figure.to_html(include_plotlyjs=True, full_html=True))
