"""Traces on disk: Parquet files of the one schema, written whole or not at all.

A trace is a Parquet file, or a directory of Parquet parts. ``FILE.parts`` beside ``FILE`` is a recording
that was killed (or is still running): it is newer than ``FILE`` by construction, since finishing removes it.
"""

from __future__ import annotations

import os
import queue
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from lzero.errors import TraceFormatError, UsageError
from lzero.trace.schema import COLUMN_NAMES, SCHEMA_VERSION, numpy_dtype, polars_schema

if TYPE_CHECKING:
    import numpy as np
    import polars as pl

__all__ = [
    "PartWriter",
    "StreamWriter",
    "export_table",
    "is_store",
    "is_unfinished",
    "open_trace",
    "part_files",
    "row_count",
    "to_frame",
    "to_rows",
]

_VERSION_KEY: Final = "lzero.trace.schema"
_MAGIC: Final = b"PAR1"
_AHEAD: Final = 8  # batches that wait to be written
_PATIENCE: Final = 0.5  # seconds between looks whether the writing thread still lives, when it takes nothing


def to_frame(rows: np.ndarray[Any, Any]) -> pl.DataFrame:
    """A Polars frame of the schema from a structured array of rows."""
    import numpy as np
    import polars as pl

    return pl.DataFrame({name: np.ascontiguousarray(rows[name]) for name in COLUMN_NAMES}, schema=polars_schema())


def to_rows(frame: pl.DataFrame) -> np.ndarray[Any, Any]:
    """The structured array of rows of a frame of the schema."""
    import numpy as np

    rows = np.empty(frame.height, dtype=numpy_dtype())
    for name in COLUMN_NAMES:
        rows[name] = frame[name].to_numpy()
    return rows


class PartWriter:
    """Writes a recording part by part, and puts the finished file in place with one rename.

    What is written so far is found under `path` before it is finished: a recording may be killed any time and is
    wanted then.

    Parameters
    ----------
    path:
        Where the finished trace goes.

    Raises
    ------
    UsageError
        The directory of `path` does not exist or cannot be written.
    """

    def __init__(self, path: Path) -> None:
        # Needed by the first part only, which may be written after a Ctrl-C: nobody waits for the import then.
        import polars  # noqa: F401

        self.path = path
        self._parts = path.with_name(path.name + ".parts")
        self._count = 0
        try:
            if self._parts.exists():
                shutil.rmtree(self._parts)
            self._parts.mkdir()
        except OSError as error:
            raise UsageError(f"cannot write {path}: {error.strerror}: {self._parts}") from error

    def write(self, rows: np.ndarray[Any, Any]) -> None:
        """Write a batch of rows as one complete part."""
        part = self._parts / f"part-{self._count:06d}.parquet"
        temporary = part.with_suffix(".tmp")
        to_frame(rows).write_parquet(temporary, compression="lz4", statistics=False, metadata=_metadata())
        os.replace(temporary, part)
        self._count += 1

    def finish(self) -> None:
        """Merge the parts into one file, put it in place, and remove the parts. Memory is bounded: rows stream
        through.
        """
        import polars as pl

        temporary = self.path.with_name(self.path.name + ".tmp")
        files = sorted(self._parts.glob("*.parquet"))
        if len(files) == 1:
            os.replace(files[0], self.path)
        else:
            if files:
                frame = pl.scan_parquet(files, schema=polars_schema())
                frame.sink_parquet(temporary, compression="lz4", metadata=_metadata())
            else:
                pl.DataFrame(schema=polars_schema()).write_parquet(temporary, metadata=_metadata())
            os.replace(temporary, self.path)
        shutil.rmtree(self._parts)


class StreamWriter:
    """Writes an import or export as one file, which is at `path` only when it is complete: an old file stays until
    then. A thread encodes and writes while further frames are made; memory is that of a few of them and a row group.

    Used as a context manager; leaving it by an exception abandons the file.

    Raises
    ------
    UsageError
        The file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._temporary = path.with_name(path.name + ".tmp")
        self._waiting: queue.Queue[np.ndarray[Any, Any] | pl.DataFrame | None] = queue.Queue(_AHEAD)
        try:
            self._temporary.open("wb").close()
        except OSError as error:
            raise UsageError(f"cannot write {path}: {error.strerror}: {self._temporary}") from error
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="lzero-parquet")
        self._sinking = self._pool.submit(self._sink)

    def write(self, rows: np.ndarray[Any, Any] | pl.DataFrame) -> None:
        """Take a batch of rows, or a frame of the schema."""
        if not self._put(rows):
            self._sinking.result()

    def _put(self, rows: np.ndarray[Any, Any] | pl.DataFrame | None) -> bool:
        """Hand over a batch, None at the end; False when there is nobody to take it, since writing failed."""
        while not self._sinking.done():
            try:
                self._waiting.put(rows, timeout=_PATIENCE)
            except queue.Full:
                continue
            return True
        return False

    def _sink(self) -> None:
        import polars as pl
        from polars.io.plugins import register_io_source

        def source(
            _columns: list[str] | None, _predicate: pl.Expr | None, _rows: int | None, _batch: int | None
        ) -> Iterator[pl.DataFrame]:
            yield pl.DataFrame(schema=polars_schema())
            while (rows := self._waiting.get()) is not None:
                yield rows if isinstance(rows, pl.DataFrame) else to_frame(rows)

        frame = register_io_source(source, schema=pl.Schema(polars_schema()))
        try:
            frame.sink_parquet(self._temporary, compression="lz4", metadata=_metadata())
        except (pl.exceptions.PolarsError, OSError) as error:
            raise UsageError(f"cannot write {self._path}: {error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._put(None)
            self._pool.shutdown()
            if kind is None:
                self._sinking.result()
                os.replace(self._temporary, self._path)
        finally:
            self._temporary.unlink(missing_ok=True)


def is_store(path: Path) -> bool:
    """Whether `path` is a trace of lzero's own: a file, a killed recording, or a folder with Parquet parts."""
    if is_unfinished(path) or path.is_dir() and any(path.rglob("*.parquet")):
        return True
    try:
        with path.open("rb") as file:
            return file.read(4) == _MAGIC
    except OSError:
        return False


def is_unfinished(path: Path) -> bool:
    """Whether a recording to `path` was killed, or is under way."""
    return path.with_name(path.name + ".parts").is_dir()


def part_files(path: Path) -> list[Path]:
    """The Parquet files that make up the trace at `path`, in order.

    Raises
    ------
    UsageError
        There is no trace at `path`.
    """
    unfinished = path.with_name(path.name + ".parts")
    if unfinished.is_dir():
        return sorted(unfinished.glob("*.parquet"))
    if path.is_dir():
        return sorted(path.rglob("*.parquet"))
    if path.exists():
        return [path]
    raise UsageError(f"{path}: no such trace")


def open_trace(path: Path) -> pl.LazyFrame:
    """The rows of a stored trace, lazily.

    Raises
    ------
    UsageError
        There is no trace at `path`.
    TraceFormatError
        A file is not Parquet, lacks a column of the schema, or was written by a newer lzero.
    """
    import polars as pl

    files = part_files(path)
    if not files:
        return pl.DataFrame(schema=polars_schema()).lazy()
    for file in files:
        _check(file)
    return pl.scan_parquet(files).select(COLUMN_NAMES)


def row_count(path: Path) -> int:
    """Number of rows of a stored trace."""
    import polars as pl

    return int(open_trace(path).select(pl.len()).collect().item())


def export_table(inputs: Iterator[pl.LazyFrame], target: Path, *, csv: bool) -> int:
    """Write rows as CSV or Parquet; the file appears when it is complete. Returns the number of rows."""
    import polars as pl

    temporary = target.with_name(target.name + ".tmp")
    count = 0
    try:
        if csv:
            with temporary.open("wb") as file:
                for frame in inputs:
                    for part in frame.collect_batches(maintain_order=True):
                        part.write_csv(file, include_header=not file.tell())
                        count += part.height
            os.replace(temporary, target)
        else:
            with StreamWriter(target) as writer:
                for frame in inputs:
                    for part in frame.collect_batches(maintain_order=True):
                        writer.write(part.cast(polars_schema()))
                        count += part.height
    except pl.exceptions.PolarsError as error:
        raise UsageError(f"cannot write {target}: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)
    return count


def _check(file: Path) -> None:
    import polars as pl

    try:
        schema = pl.read_parquet_schema(file)
        version = int(pl.read_parquet_metadata(file).get(_VERSION_KEY, "0"))
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, ValueError) as error:
        raise TraceFormatError(f"{file}: not a readable Parquet file: {error}") from error
    if version > SCHEMA_VERSION:
        raise TraceFormatError(
            f"{file}: schema {version} is newer than this lzero reads ({SCHEMA_VERSION}); update lzero"
        )
    for name, expected in polars_schema().items():
        if schema.get(name) != expected:
            raise TraceFormatError(
                f"{file}: column {name} is {schema.get(name)}, expected {expected}; not a trace of lzero"
            )


def _metadata() -> dict[str, str]:
    return {_VERSION_KEY: str(SCHEMA_VERSION)}
