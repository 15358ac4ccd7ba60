"""Totals of any input: from its rows in bounded memory, or read as they are from a source of counts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from lzero.trace.aggregates import Aggregates, add_rows
from lzero.trace.frames import collect, counts_of, frames
from lzero.trace.load import open_recording
from lzero.trace.readers.events import Diagnosis
from lzero.trace.schema import numpy_dtype

if TYPE_CHECKING:
    import polars as pl

__all__ = ["totals_of"]

_SLICE: Final = 1_000_000
_NEEDED: Final = ("level", "reason", "isa", "handled_by", "duration_ns", "parent_reason", "vmcs_field")


def totals_of(name: str, diagnoses: list[Diagnosis] | None = None, *, strict: bool = False) -> Aggregates:
    """Everything :class:`Aggregates` holds, of a trace, a recording, or a source of counts.

    Raises
    ------
    UsageError
        There is no such file.
    TraceFormatError
        The content is not recognised, or in strict mode, is damaged.
    """
    if name != "-" and counts_of(name):
        recording = open_recording(name, strict=strict)
        if diagnoses is not None:
            diagnoses.append(recording.diagnosis)
        try:
            return recording.aggregates()
        finally:
            recording.close()
    aggregates = Aggregates()
    for frame in frames(name, diagnoses, strict=strict, by_file=True):
        _add(aggregates, frame)
    return aggregates


def _add(aggregates: Aggregates, frame: pl.LazyFrame) -> None:
    import numpy as np
    import polars as pl

    rows = collect(frame.select(pl.len())).item()
    for offset in range(0, rows, _SLICE):
        part = collect(frame.select(_NEEDED).slice(offset, _SLICE))
        batch = np.zeros(part.height, dtype=numpy_dtype())
        for column in _NEEDED:
            batch[column] = part[column].to_numpy()
        add_rows(aggregates, batch)
