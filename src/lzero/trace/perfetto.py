"""A timeline for ui.perfetto.dev: the Trace Event JSON format, a track per VCPU and level."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from lzero.trace.frames import collect
from lzero.trace.names import field_name, reason_name
from lzero.trace.schema import HandledBy

if TYPE_CHECKING:
    import polars as pl

__all__ = ["export_perfetto"]

_SLICE: Final = 200_000
_SHORTEST_NS: Final = 1  # a slice without a width is not drawn


def export_perfetto(inputs: Iterator[pl.LazyFrame], target: Path) -> int:
    """Write the exits as a timeline; the file appears when it is complete.

    Each exit is a slice from the exit to the entry, on the track of its VCPU and level, with its fields as arguments.

    Returns
    -------
    int
        Number of exits written.
    """
    temporary = target.with_name(target.name + ".tmp")
    count = 0
    tracks: set[tuple[int, int, int]] = set()
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write('{"displayTimeUnit":"ns","traceEvents":[\n')
            separator = ""
            for row in _rows(inputs):
                thread = max(row["thread"], 0)
                track = (thread, row["vcpu"], row["level"])
                if track not in tracks:
                    tracks.add(track)
                    for event in _track(*track):
                        file.write(separator + json.dumps(event, separators=(",", ":")))
                        separator = ",\n"
                file.write(separator + json.dumps(_event(row, thread), separators=(",", ":")))
                separator = ",\n"
                count += 1
            file.write("\n]}\n")
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    return count


def _rows(inputs: Iterator[pl.LazyFrame]) -> Iterator[dict[str, Any]]:
    import polars as pl

    for frame in inputs:
        rows = collect(frame.select(pl.len())).item()
        for offset in range(0, rows, _SLICE):
            part = collect(frame.slice(offset, _SLICE).filter(pl.col("handled_by") != int(HandledBy.PROCESSOR)))
            yield from part.iter_rows(named=True)


def _identity(vcpu: int, level: int) -> int:
    return vcpu * 10 + level


def _track(thread: int, vcpu: int, level: int) -> list[dict[str, Any]]:
    identity = _identity(vcpu, level)
    machine = f"machine of thread {thread}" if thread else "machine"
    return [
        {"ph": "M", "name": "process_name", "pid": thread, "args": {"name": machine}},
        {"ph": "M", "name": "thread_name", "pid": thread, "tid": identity, "args": {"name": f"VCPU {vcpu} L{level}"}},
        {"ph": "M", "name": "thread_sort_index", "pid": thread, "tid": identity, "args": {"sort_index": identity}},
    ]


def _event(row: dict[str, Any], thread: int) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "seq": row["seq"],
        "rip": f"0x{row['rip']:x}",
        "qualification": f"0x{row['qualification']:x}",
        "handled by": HandledBy(row["handled_by"]).name,
    }
    if row["parent"] >= 0:
        arguments["caused by"] = f"{reason_name(row['parent_reason'])} (seq {row['parent']})"
    if row["vmcs_field"] >= 0:
        arguments["field"] = field_name(row["vmcs_field"])
    return {
        "ph": "X",
        "name": reason_name(row["reason"] | (0x10000 if row["isa"] == 2 else 0)),
        "cat": f"L{row['level']}",
        "ts": row["host_ns"] / 1000,
        "dur": max(row["duration_ns"], _SHORTEST_NS) / 1000,
        "pid": thread,
        "tid": _identity(row["vcpu"], row["level"]),
        "args": arguments,
    }
