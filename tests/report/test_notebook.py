"""Objects that show themselves in a notebook."""

from __future__ import annotations

from pathlib import Path

from lzero.report.notebook import Trace
from textwriter import nested_events, render


def test_trace_and_its_tables_show_themselves(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(render(nested_events(50)))
    trace = Trace(path)
    assert "<td>CPUID</td><td>50</td>" in trace._repr_html_()
    assert trace.frame().collect().height == 250
    assert "0x1000" in str(trace.by("rip", ["level=1"]))
    assert "CPUID" not in str(trace.by("reason", ["level=1"]))
    assert "L2 CPUID: 50 exits" in str(trace.causes())
    assert "VMREAD 2.00 ± 0.00" in trace.causes()._repr_html_()
    assert "B/A" in str(trace.compared_with(trace))
    assert "diff-table" in trace.compared_with(trace)._repr_html_()
    assert repr(trace).startswith("Trace(")
