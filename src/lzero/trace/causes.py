"""Who caused what: for each reason of a reflected L2 exit, the exits of L1 before L2 runs again, their mean and
spread.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from lzero.trace.frames import collect
from lzero.trace.names import field_name, reason_name

if TYPE_CHECKING:
    import numpy as np
    import polars as pl

    Array = np.ndarray[Any, Any]

__all__ = ["Cause", "Causes", "causes_table", "find_causes"]

_SLICE: Final = 2_000_000  # rows looked at together; memory is about 150 bytes per row
_COLUMNS: Final = ("parent", "parent_reason", "reason", "isa", "level", "vcpu", "thread", "handled_by", "vmcs_field")


@dataclass(slots=True)
class Cause:
    """What one reason of L2 exits triggers.

    Attributes
    ----------
    reason:
        Code of the L2 exits' reason (bit 16: SVM).
    exits, reflected:
        Number of L2 exits, and of those that L1 handled.
    children:
        Per reason of L1's exits: how many, and the sum of the squares of their number per reflected exit.
    whole:
        The same over all reasons together.
    served:
        VMREADs and VMWRITEs that the shadow VMCS served.
    fields:
        Number of accesses that exited, per (VMREAD or VMWRITE, field).
    """

    reason: int
    exits: int = 0
    reflected: int = 0
    children: dict[int, tuple[int, int]] = field(default_factory=dict)
    whole: tuple[int, int] = (0, 0)
    served: int = 0
    fields: dict[tuple[int, int], int] = field(default_factory=dict)

    def mean(self, child: int | None = None) -> float:
        """Mean number of L1's exits of a reason (all by default) for one reflected L2 exit."""
        count, _ = self.whole if child is None else self.children.get(child, (0, 0))
        return count / self.reflected if self.reflected else 0.0

    def deviation(self, child: int | None = None) -> float:
        """Standard deviation of that number from one L2 exit to the next."""
        count, squares = self.whole if child is None else self.children.get(child, (0, 0))
        if self.reflected < 2:
            return 0.0
        mean = count / self.reflected
        return math.sqrt(max(0.0, (squares - self.reflected * mean * mean) / (self.reflected - 1)))


@dataclass(slots=True)
class Causes:
    """All causes of a trace, most L2 exits first."""

    rows: list[Cause]

    def of(self, reason: int) -> Cause | None:
        """The cause of an L2 exit reason, ``None`` if L2 never exited so."""
        return next((row for row in self.rows if row.reason == reason), None)


def find_causes(inputs: Iterator[pl.LazyFrame]) -> Causes:
    """Count L1's exits per reflected L2 exit, in one pass and bounded memory.

    The exits caused by one L2 exit lie close together, so the trace is taken slice by slice; an L2 exit whose exits
    may go on in the next slice is carried over.
    """
    import polars as pl

    found: dict[int, Cause] = {}
    carried = _Children.none()
    newest: dict[tuple[int, int], int] = {}  # by VCPU and thread: the L2 exit that may go on, even after long silence
    for part in _slices(inputs):
        part = part.with_columns(_code("reason").alias("code"), _code("parent_reason").alias("cause"))
        _count_l2(found, part)
        caused = part.filter((pl.col("parent") >= 0) & (pl.col("level") == 1))
        _count_fields(found, caused)
        exits = caused.filter(pl.col("handled_by") != 0)
        last = exits.group_by("vcpu", "thread").agg(pl.col("parent").last())
        newest.update({(vcpu, thread): parent for vcpu, thread, parent in last.iter_rows()})
        children = carried.followed_by(_Children(*(exits[name].to_numpy() for name in ("parent", "cause", "code"))))
        carried, complete = children.split(list(newest.values()))
        complete.count(found)
    carried.count(found)
    return Causes(sorted(found.values(), key=lambda row: (-row.exits, row.reason)))


def _code(column: str) -> pl.Expr:
    """A reason with bit 16 for SVM."""
    import polars as pl

    return pl.col(column).cast(pl.Int64) + (pl.col("isa") == 2).cast(pl.Int64) * 0x10000


@dataclass(frozen=True, slots=True)
class _Children:
    """Exits of L1 as three columns: seq of the L2 exit, its reason code, own reason code."""

    parent: Array
    cause: Array
    code: Array

    @classmethod
    def none(cls) -> _Children:
        import numpy as np

        empty = np.zeros(0, dtype=np.int64)
        return cls(empty, empty, empty)

    def followed_by(self, other: _Children) -> _Children:
        import numpy as np

        pairs = ((self.parent, other.parent), (self.cause, other.cause), (self.code, other.code))
        return _Children(*(np.concatenate(pair) for pair in pairs))

    def split(self, parents: list[int]) -> tuple[_Children, _Children]:
        """Those of the given parents, and the others."""
        import numpy as np

        inside = np.isin(self.parent, parents)
        columns = (self.parent, self.cause, self.code)
        return _Children(*(column[inside] for column in columns)), _Children(*(column[~inside] for column in columns))

    def count(self, found: dict[int, Cause]) -> None:
        """Add to each cause the number of its children and the sum of its squares per parent.

        One sort of packed keys makes equal (parent, cause, code) neighbours; that is an order of magnitude quicker
        than a hash of as many groups.
        """
        import numpy as np

        if not len(self.parent):
            return
        causes, cause = np.unique(self.cause, return_inverse=True)
        codes, code = np.unique(self.code, return_inverse=True)
        parent = self.parent - self.parent.min()
        width = len(causes) * len(codes)
        if int(parent.max()) > (1 << 62) // width:
            _, parent = np.unique(parent, return_inverse=True)
        keys = np.sort(parent * width + cause * len(codes) + code)
        starts, counts = _runs(keys)
        kinds = keys[starts] % width
        for kind, (total, squares) in _sums(kinds, counts).items():
            entry = found.setdefault(int(causes[kind // len(codes)]), Cause(int(causes[kind // len(codes)])))
            old = entry.children.get(int(codes[kind % len(codes)]), (0, 0))
            entry.children[int(codes[kind % len(codes)])] = (old[0] + total, old[1] + squares)
        keys = keys // len(codes)
        starts, counts = _runs(keys)
        for kind, (total, squares) in _sums(keys[starts] % len(causes), counts).items():
            entry = found.setdefault(int(causes[kind]), Cause(int(causes[kind])))
            entry.whole = (entry.whole[0] + total, entry.whole[1] + squares)


def _runs(keys: Array) -> tuple[Array, Array]:
    """Where runs of equal keys start, and how long they are."""
    import numpy as np

    starts = np.flatnonzero(np.concatenate(([True], keys[1:] != keys[:-1])))
    return starts, np.diff(np.append(starts, len(keys)))


def _sums(kinds: Array, counts: Array) -> dict[int, tuple[int, int]]:
    """Per kind, the sum of the counts and of their squares."""
    import numpy as np

    totals = np.bincount(kinds, weights=counts)
    squares = np.bincount(kinds, weights=counts.astype(np.float64) ** 2)
    return {int(kind): (int(totals[kind]), int(squares[kind])) for kind in np.flatnonzero(totals)}


def _slices(inputs: Iterator[pl.LazyFrame]) -> Iterator[pl.DataFrame]:
    import polars as pl

    for frame in inputs:
        rows = collect(frame.select(pl.len())).item()
        for offset in range(0, rows, _SLICE):
            yield collect(frame.select(_COLUMNS).slice(offset, _SLICE))


def _count_l2(found: dict[int, Cause], part: pl.DataFrame) -> None:
    import polars as pl

    exits = part.filter((pl.col("level") >= 2) & (pl.col("handled_by") != 0))
    counts = exits.group_by("code").agg(pl.len().alias("n"), (pl.col("handled_by") == 2).sum().alias("reflected"))
    for code, count, reflected in counts.iter_rows():
        cause = found.setdefault(code, Cause(code))
        cause.exits += count
        cause.reflected += reflected


def _count_fields(found: dict[int, Cause], caused: pl.DataFrame) -> None:
    import polars as pl

    named = caused.filter((pl.col("handled_by") == 0) | (pl.col("vmcs_field") >= 0))
    counts = named.group_by("cause", "code", "vmcs_field", pl.col("handled_by") == 0).agg(pl.len().alias("n"))
    for reason, code, vmcs_field, served, count in counts.iter_rows():
        cause = found.setdefault(reason, Cause(reason))
        if served:
            cause.served += count
        else:
            cause.fields[code, vmcs_field] = cause.fields.get((code, vmcs_field), 0) + count


def causes_table(causes: Causes, fields: int = 5) -> str:
    """The causes as text: a block per L2 exit reason, with the `fields` most used VMCS fields."""
    if not any(cause.reflected for cause in causes.rows):
        return "No exit of L2 was reflected to L1: nothing was caused.\n"
    blocks = []
    for cause in causes.rows:
        lines = [
            f"L2 {reason_name(cause.reason)}: {cause.exits} exits, {cause.reflected} reflected to L1; each of these"
            f" costs {cause.mean():.2f} ± {cause.deviation():.2f} exits of L1 (1 exit becomes {1 + cause.mean():.2f})"
        ]
        for child in sorted(cause.children, key=lambda code: (-cause.children[code][0], code)):
            lines.append(f"  {reason_name(child):>24} {cause.mean(child):>9.2f} ± {cause.deviation(child):.2f}")
        if cause.served and cause.reflected:
            lines.append(f"  {'VMREAD/VMWRITE, no exit':>24} {cause.served / cause.reflected:>9.2f}   (shadow VMCS)")
        top = sorted(cause.fields.items(), key=lambda item: (-item[1], item[0]))[:fields]
        if top and cause.reflected:
            lines.append("  most used fields:")
            lines += [
                f"  {reason_name(code):>24} {count / cause.reflected:>9.2f}   {field_name(encoding)}"
                for (code, encoding), count in top
            ]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"
