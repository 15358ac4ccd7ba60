"""Any recording, by name: rows in batches, or totals where the recording holds no rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lzero.errors import TraceFormatError, UsageError
from lzero.trace.aggregates import Aggregates, add_rows
from lzero.trace.readers.detect import COUNTS_ONLY, Input, Kind, open_input
from lzero.trace.readers.events import Diagnosis
from lzero.trace.store import is_store

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Recording", "import_trace", "open_recording"]


@dataclass(slots=True)
class Recording:
    """A recording of another tool, opened: read it once, by :meth:`rows` or :meth:`aggregates`."""

    input: Input
    diagnosis: Diagnosis

    @property
    def counts_only(self) -> bool:
        """Whether there are totals but no rows."""
        return self.input.kind in COUNTS_ONLY or self.input.kind is Kind.CSV

    def rows(self) -> Iterator[np.ndarray[Any, Any]]:
        """Batches of rows (dtype of :mod:`lzero.trace.schema`).

        Raises
        ------
        UsageError
            The recording holds totals only.
        TraceFormatError
            In strict mode, for the first problem; else only if nothing can be read at all.
        """
        if self.counts_only:
            raise UsageError(
                f"{self.input.name}: {self.input.kind.value} holds numbers of exits, not the exits; "
                "`lzero trace show` and `diff` read it as it is"
            )
        if self.input.kind is Kind.EMPTY:
            return
        from lzero.trace.assemble import Assembler

        assembler = Assembler(self.diagnosis)
        for events in self._events():
            rows = assembler.feed(events)
            if len(rows):
                yield rows
        rows = assembler.finish()
        if len(rows):
            yield rows

    def _events(self) -> Iterator[np.ndarray[Any, Any]]:
        stream = self.input.stream
        if self.input.kind is Kind.TEXT:
            from lzero.trace.readers.text import read_text

            return read_text(stream, self.diagnosis, live=self.input.live)
        if self.input.kind is Kind.PERF_DATA:
            from lzero.trace.readers.perf_data import read_perf_data

            return read_perf_data(stream, self.diagnosis)
        if self.input.kind is Kind.TRACE_DAT:
            from lzero.trace.readers.trace_dat import read_trace_dat

            return read_trace_dat(stream, self.diagnosis)
        raise TraceFormatError(
            f"{self.input.name}: {self.input.kind.value} cannot be read from a pipe; give the file's name"
        )

    def aggregates(self) -> Aggregates:
        """Totals over the whole recording, in memory that does not grow with it."""
        if self.counts_only:
            from lzero.trace.readers.counts import read_counts

            return read_counts(self.input.kind, self.input.stream, self.diagnosis)
        from lzero.trace.readers.binary.native import native_totals

        if self.input.kind is not Kind.EMPTY:
            totals = native_totals(self._events, self.diagnosis)
            if totals is not None:
                return totals
        aggregates = Aggregates()
        for rows in self.rows():
            add_rows(aggregates, rows)
        return aggregates

    def close(self) -> None:
        """Close the input."""
        self.input.close()


def open_recording(name: str, *, strict: bool = False) -> Recording:
    """Open another tool's recording; ``-`` is standard input.

    Raises
    ------
    UsageError
        There is no such file.
    TraceFormatError
        The content is not recognised.
    """
    return Recording(open_input(name), Diagnosis("standard input" if name == "-" else name, strict))


def import_trace(names: list[str], target: Path, *, strict: bool = False) -> list[Diagnosis]:
    """Write recordings, one after the other, as one trace of lzero at `target`.

    The file appears under its name only when it is complete; a killed import leaves an old file as it was. Rows of
    the second and later recordings are numbered on from the first.

    Returns
    -------
    list of Diagnosis
        What could not be read, per recording.
    """
    from lzero.trace.store import StreamWriter

    diagnoses = []
    with StreamWriter(target) as writer:
        first_seq = 0
        for name in names:
            if name != "-" and is_store(Path(name)):
                raise UsageError(f"{name}: is a trace of lzero already")
            recording = open_recording(name, strict=strict)
            try:
                highest = first_seq
                for rows in recording.rows():
                    rows["seq"] += first_seq
                    rows["parent"] += (rows["parent"] >= 0) * first_seq
                    highest = max(highest, int(rows["seq"].max()) + 1)
                    writer.write(rows)
                first_seq = highest
            finally:
                recording.close()
            diagnoses.append(recording.diagnosis)
    return diagnoses
