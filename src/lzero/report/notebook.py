"""Traces and tables for a notebook: objects that show themselves (``_repr_html_``) and as text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lzero.report.tables import breakdown_html, causes_html, diff_html
from lzero.trace.breakdown import Breakdown, break_down
from lzero.trace.causes import Causes, causes_table, find_causes
from lzero.trace.diff import Diff, compare, diff_table, profile_rows
from lzero.trace.filters import parse_filters
from lzero.trace.frames import frames
from lzero.trace.store import is_store, open_trace
from lzero.trace.symbols import Symbols
from lzero.trace.table import breakdown_table

if TYPE_CHECKING:
    import polars as pl

__all__ = ["Shown", "Trace"]


class Shown:
    """A result with its two faces: ``str()`` is the command's table, a notebook shows HTML; `data` is the result
    itself.
    """

    def __init__(self, data: Breakdown | Causes | Diff) -> None:
        self.data = data

    def __str__(self) -> str:
        if isinstance(self.data, Breakdown):
            return breakdown_table(self.data)
        return causes_table(self.data) if isinstance(self.data, Causes) else diff_table(self.data)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        if isinstance(self.data, Breakdown):
            return breakdown_html(self.data)
        return causes_html(self.data) if isinstance(self.data, Causes) else diff_html(self.data)


class Trace:
    """A recording, by name: a trace of lzero's, or what perf, trace-cmd or ftrace wrote.

    Nothing is read before it is asked for, and memory stays bounded; each question reads the file.

    Raises
    ------
    UsageError, TraceFormatError
        By each method, when there is no such file or it cannot be read.
    """

    def __init__(self, name: str | Path) -> None:
        self.name = str(name)

    def _frames(self, *, by_file: bool = False) -> Iterator[pl.LazyFrame]:
        return frames(self.name, by_file=by_file)

    def frame(self) -> pl.LazyFrame:
        """The rows as one Polars frame: lazy for a stored trace; another tool's recording is read whole."""
        import polars as pl

        if is_store(Path(self.name)):
            return open_trace(Path(self.name))
        return pl.concat([frame.collect() for frame in self._frames()]).lazy()

    def by(self, key: str = "reason", where: Sequence[str] = (), symbols: Path | None = None) -> Shown:
        """The exits totalled as ``lzero trace show --by KEY --filter …`` does."""
        table = Symbols.load(symbols) if symbols else None
        return Shown(break_down(self._frames(), key, parse_filters(where), table))

    def causes(self) -> Shown:
        """What L2's exits cost L1, as ``lzero trace causes``."""
        return Shown(find_causes(self._frames(by_file=True)))

    def compared_with(self, other: Trace) -> Shown:
        """This trace as A and `other` as B, as ``lzero trace diff``."""
        return Shown(compare(profile_rows(self.name, self._frames), profile_rows(other.name, other._frames)))

    def __repr__(self) -> str:
        return f"Trace({self.name!r})"

    def _repr_html_(self) -> str:
        return self.by()._repr_html_()
