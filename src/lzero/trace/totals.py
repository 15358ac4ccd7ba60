"""Totals of any input: what the exit table, the costs per exit and the budgets are made from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from lzero.trace.aggregates import Aggregates, add_rows
from lzero.trace.frames import counts_of, frames
from lzero.trace.load import open_recording
from lzero.trace.readers.events import Diagnosis
from lzero.trace.schema import COLUMN_NAMES, numpy_dtype

if TYPE_CHECKING:
    import numpy as np
    import polars as pl

__all__ = ["totals_of"]

_SLICE: Final = 1 << 20


def totals_of(name: str, diagnoses: list[Diagnosis] | None = None, *, strict: bool = False) -> Aggregates:
    """Totals over a trace, another tool's recording or counts, in memory that does not grow with it.

    Parameters
    ----------
    name:
        File or folder; ``-`` is standard input.
    diagnoses:
        What could not be read is appended here.
    strict:
        Whether what cannot be read is an error.

    Raises
    ------
    UsageError
        There is no such file.
    TraceFormatError
        The content is not recognised, or in strict mode, is damaged.
    """
    if counts_of(name):
        recording = open_recording(name, strict=strict)
        if diagnoses is not None:
            diagnoses.append(recording.diagnosis)
        try:
            return recording.aggregates()
        finally:
            recording.close()
    aggregates = Aggregates()
    import polars as pl

    for frame in frames(name, diagnoses, strict=strict):
        rows = frame.select(pl.len()).collect().item()
        for offset in range(0, rows, _SLICE):
            add_rows(aggregates, _rows(frame.slice(offset, _SLICE).collect()))
    return aggregates


def _rows(frame: pl.DataFrame) -> np.ndarray[Any, Any]:
    import numpy as np

    rows = np.empty(len(frame), dtype=numpy_dtype())
    for column in COLUMN_NAMES:
        rows[column] = frame[column].to_numpy()
    return rows
