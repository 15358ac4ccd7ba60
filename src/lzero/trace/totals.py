"""Totals of any input: from its rows in bounded memory, or read as they are from a source of counts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from lzero.trace.aggregates import Aggregates, Totals
from lzero.trace.frames import collect, counts_of, frames
from lzero.trace.load import open_recording
from lzero.trace.readers.events import Diagnosis
from lzero.trace.schema import HandledBy, Isa

if TYPE_CHECKING:
    import polars as pl

__all__ = ["totals_of"]

_KEYS: Final = ("level", "reason", "isa", "handled_by", "parent_reason", "vmcs_field")


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
    for frame in frames(name, diagnoses, strict=strict):
        _add(aggregates, frame)
    return aggregates


def _add(aggregates: Aggregates, frame: pl.LazyFrame) -> None:
    """Add the rows of a frame: totalled by what tells them apart, then the few totals one by one."""
    import polars as pl

    duration = pl.col("duration_ns")
    timed = duration.filter(duration > 0)
    totals = (
        pl.len().alias("n"),
        timed.len().alias("timed"),
        timed.sum().alias("total"),
        timed.min().fill_null(0).alias("least"),
        timed.max().fill_null(0).alias("most"),
        (duration.cast(pl.Float64) ** 2).sum().alias("squares"),
    )
    table = collect(frame.group_by(_KEYS).agg(totals), streaming=True)
    for level, reason, isa, handled, parent, vmcs_field, *values in table.iter_rows():
        svm = (isa == Isa.SVM) << 16
        code, by_processor, count = reason | svm, handled == HandledBy.PROCESSOR, values[0]
        if by_processor:
            aggregates.by_processor[level, code] += count
        else:
            aggregates.exits.setdefault((level, code), Totals()).add(*values)
        if level >= 2 and handled == HandledBy.L1:
            aggregates.reflected[code] += count
        if parent >= 0 and level == 1:
            caused = aggregates.caused_by_processor if by_processor else aggregates.caused
            caused[parent | svm, code] += count
        if vmcs_field >= 0:
            aggregates.fields[code, vmcs_field, by_processor] += count
