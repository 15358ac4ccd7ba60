"""The same totals on a Dask cluster: one task per file of a trace, merged here (optional extra ``lzero[cluster]``).

The workers must see the files under the same paths and have lzero installed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lzero.errors import ToolError, UsageError
from lzero.trace.breakdown import Breakdown, break_down, merge_rows
from lzero.trace.frames import frames, input_files
from lzero.trace.symbols import Symbols

if TYPE_CHECKING:
    import polars as pl

__all__ = ["break_down_on"]


def break_down_on(
    scheduler: str, name: str, by: str, condition: pl.Expr | None = None, symbols: Symbols | None = None
) -> Breakdown:
    """Total the exits of a trace, or of a folder of traces or recordings, on the cluster at `scheduler`.

    Parameters
    ----------
    scheduler:
        Address such as ``tcp://10.0.0.1:8786``.
    name, by, condition, symbols:
        As for :func:`lzero.trace.breakdown.break_down`.

    Raises
    ------
    ToolError
        Dask is not installed, or the scheduler cannot be reached.
    UsageError
        There are no such files.
    """
    try:
        from distributed import Client
    except ImportError as error:
        raise ToolError("a cluster needs Dask: pip install 'lzero[cluster]'") from error
    files = [str(path.resolve()) for path in input_files(name)]
    if not files:
        raise UsageError(f"{name}: no files")
    expression = condition.meta.serialize() if condition is not None else None
    connect: Any = Client  # its signature has no types
    try:
        client = connect(scheduler, timeout="10s", set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        raise ToolError(f"no Dask scheduler at {scheduler}: {error}") from error
    with client:
        parts = client.gather(client.map(_one_file, files, by=by, expression=expression, symbols=symbols, pure=False))
    return merge_rows(by, parts)


def _one_file(name: str, *, by: str, expression: bytes | None, symbols: Symbols | None) -> Breakdown:
    """What one worker does: total one file."""
    import polars as pl

    condition = pl.Expr.deserialize(expression) if expression is not None else None
    return break_down(frames(name), by, condition, symbols)
