"""Any input as Polars frames: one lazy frame for a stored trace, a frame per batch for another tool's recording.

Queries that can be merged (sums, minima, maxima per key) run over either with the same code and bounded memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lzero.errors import TraceFormatError, UsageError
from lzero.trace.load import open_recording
from lzero.trace.readers.events import Diagnosis
from lzero.trace.schema import numpy_dtype
from lzero.trace.store import is_store, open_trace, part_files, to_frame

if TYPE_CHECKING:
    import polars as pl

__all__ = ["collect", "counts_of", "frames", "input_files", "merged_query"]

_COMPACT = 32  # partial results kept before they are merged


def frames(
    name: str, diagnoses: list[Diagnosis] | None = None, *, strict: bool = False, by_file: bool = False
) -> Iterator[pl.LazyFrame]:
    """The rows of an input, as one or more lazy frames; what could not be read is appended to `diagnoses`.

    With `by_file`, each file of a stored trace is a frame of its own: for those who take rows slice by slice, because
    finding a slice costs opening every file before it.

    Raises
    ------
    UsageError
        There is no such file, or it holds numbers of exits only.
    TraceFormatError
        The content is not recognised, or in strict mode, is damaged.
    """
    if name != "-" and is_store(Path(name)):
        if by_file:
            yield from (open_trace(file) for file in part_files(Path(name)))
        else:
            yield open_trace(Path(name))
        return
    if name != "-" and Path(name).is_dir():
        for file in input_files(name):
            yield from frames(str(file), diagnoses, strict=strict, by_file=by_file)
        return
    import numpy as np

    recording = open_recording(name, strict=strict)
    if diagnoses is not None:
        diagnoses.append(recording.diagnosis)
    empty = True
    try:
        for rows in recording.rows():
            empty = False
            yield to_frame(rows).lazy()
        if empty:  # so that every query has an answer, and that of nothing is nothing
            yield to_frame(np.zeros(0, dtype=numpy_dtype())).lazy()
    finally:
        recording.close()


def input_files(name: str) -> list[Path]:
    """The files of a trace or of a folder of traces and recordings, in the order of their names.

    Raises
    ------
    UsageError
        There is no such file or folder, or the folder is empty.
    """
    path = Path(name)
    if is_store(path):
        return part_files(path)
    if not path.exists():
        raise UsageError(f"cannot open {name}: no such file or folder")
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    if not files:
        raise UsageError(f"{name}: the folder is empty")
    return files


def counts_of(name: str) -> bool:
    """Whether the input (a file) holds numbers of exits only."""
    if name == "-" or is_store(Path(name)) or Path(name).is_dir():
        return False
    recording = open_recording(name)
    recording.close()
    return recording.counts_only


def collect(frame: pl.LazyFrame, *, streaming: bool = False) -> pl.DataFrame:
    """The result of a query.

    Raises
    ------
    TraceFormatError
        A stored file turns out to be damaged behind its header.
    """
    import polars as pl

    try:
        return frame.collect(engine="streaming" if streaming else "auto")
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        raise TraceFormatError(f"a stored trace is damaged: {error}") from error


def merged_query(
    inputs: Iterator[pl.LazyFrame],
    query: Callable[[pl.LazyFrame], pl.LazyFrame],
    keys: Sequence[str],
    merge: Sequence[pl.Expr],
) -> pl.DataFrame:
    """Run `query` on every frame and merge the partial results by `keys` with the `merge` expressions."""
    import polars as pl

    parts: list[pl.DataFrame] = []
    for frame in inputs:
        parts.append(collect(query(frame), streaming=True))
        if len(parts) > _COMPACT:
            parts = [pl.concat(parts).group_by(keys).agg(merge)]
    if not parts:
        raise UsageError("no rows: the input is empty")
    return parts[0] if len(parts) == 1 else pl.concat(parts).group_by(keys).agg(merge)
