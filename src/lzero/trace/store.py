"""Traces on disk: Parquet files of the one schema, written whole or not at all.

A trace is a Parquet file, or a directory of Parquet parts. ``FILE.parts`` beside ``FILE`` is a recording or import
that was killed (or is still running): it is newer than ``FILE`` by construction, since finishing removes it.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from lzero.errors import TraceFormatError, UsageError
from lzero.trace.schema import COLUMN_NAMES, SCHEMA_VERSION, polars_schema

if TYPE_CHECKING:
    import numpy as np
    import polars as pl

__all__ = ["finish_parts", "is_store", "open_trace", "part_files", "write_part"]

_VERSION_KEY: Final = "lzero.trace.schema"
_MAGIC: Final = b"PAR1"


def to_frame(rows: np.ndarray[Any, Any]) -> pl.DataFrame:
    """A Polars frame of the schema from a structured array of rows."""
    import numpy as np
    import polars as pl

    return pl.DataFrame({name: np.ascontiguousarray(rows[name]) for name in COLUMN_NAMES}, schema=polars_schema())


def write_part(rows: np.ndarray[Any, Any], path: Path) -> None:
    """Write one batch as a Parquet file that appears under its name only when complete."""
    temporary = path.with_suffix(".tmp")
    to_frame(rows).write_parquet(temporary, compression="lz4", statistics=False, metadata=_metadata())
    os.replace(temporary, path)


def finish_parts(parts: Path, path: Path) -> None:
    """Merge the parts into one file, put it at `path` by one rename, and remove the parts.

    Memory is bounded: rows stream from the parts into the file.
    """
    import polars as pl

    temporary = path.with_name(path.name + ".tmp")
    files = sorted(parts.glob("*.parquet"))
    if len(files) == 1:
        os.replace(files[0], path)
    else:
        if files:
            pl.scan_parquet(files, schema=polars_schema()).sink_parquet(
                temporary, compression="lz4", metadata=_metadata()
            )
        else:
            pl.DataFrame(schema=polars_schema()).write_parquet(temporary, metadata=_metadata())
        os.replace(temporary, path)
    shutil.rmtree(parts)


def is_store(path: Path) -> bool:
    """Whether `path` is a finished, unfinished or partitioned trace of lzero's own."""
    if path.is_dir() or path.with_name(path.name + ".parts").is_dir():
        return True
    try:
        with path.open("rb") as file:
            return file.read(4) == _MAGIC
    except OSError:
        return False


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


def _check(file: Path) -> None:
    import polars as pl

    try:
        schema = pl.read_parquet_schema(file)
        version = int(pl.read_parquet_metadata(file).get(_VERSION_KEY, "0"))
    except (pl.exceptions.PolarsError, OSError, ValueError) as error:
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
