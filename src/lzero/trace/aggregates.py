"""Running totals over exits: what the tables need, in memory that does not grow with the number of exits.

The same object is filled by the recorder (a batch at a time), by the readers, and from a store, so every table is
printed by the same code whatever the rows came from.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lzero.trace.schema import HandledBy

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Aggregates", "Totals", "add_rows"]


@dataclass(slots=True)
class Totals:
    """Count and duration of the exits of one kind. Durations in nanoseconds, over the ``timed`` exits only."""

    count: int = 0
    timed: int = 0
    total_ns: int = 0
    min_ns: int = 0
    max_ns: int = 0
    squares: float = 0.0

    def add(self, count: int, timed: int, total_ns: int, min_ns: int, max_ns: int, squares: float) -> None:
        """Merge the totals of further exits; ``min_ns`` and ``max_ns`` count only when ``timed`` is not 0."""
        self.count += count
        if timed:
            self.min_ns = min(self.min_ns, min_ns) if self.timed else min_ns
            self.max_ns = max(self.max_ns, max_ns)
            self.timed += timed
            self.total_ns += total_ns
            self.squares += squares

    def merge(self, other: Totals) -> None:
        """Add all exits of `other`."""
        self.add(other.count, other.timed, other.total_ns, other.min_ns, other.max_ns, other.squares)

    @property
    def mean_ns(self) -> float:
        """Mean duration in ns, 0.0 when no exit was timed."""
        return self.total_ns / self.timed if self.timed else 0.0

    @property
    def relative_error(self) -> float:
        """Standard error of the mean divided by the mean (0.02 means 2 %), 0.0 with fewer than two timed exits."""
        if self.timed < 2 or not self.total_ns:
            return 0.0
        mean = self.mean_ns
        variance = max(0.0, (self.squares - self.timed * mean * mean) / (self.timed - 1))
        return math.sqrt(variance / self.timed) / mean


@dataclass(slots=True)
class Aggregates:
    """Totals by level and reason, and who caused what.

    Attributes
    ----------
    exits:
        Totals per (level, reason); for SVM the reason has bit 16 set, so the two numberings never mix.
    reflected:
        Number of L2 exits per reason that L1 handled.
    caused:
        Exits of L1 per (reason of the L2 exit, reason of the L1 exit).
    caused_by_processor:
        The same for VMREADs and VMWRITEs that the shadow VMCS served, which are not exits.
    by_processor:
        Events the processor served without an exit, per (level, reason).
    fields:
        Number of accesses per (reason VMREAD or VMWRITE, VMCS field encoding, served by the processor).
    """

    exits: dict[tuple[int, int], Totals] = field(default_factory=dict)
    reflected: Counter[int] = field(default_factory=Counter)
    caused: Counter[tuple[int, int]] = field(default_factory=Counter)
    caused_by_processor: Counter[tuple[int, int]] = field(default_factory=Counter)
    by_processor: Counter[tuple[int, int]] = field(default_factory=Counter)
    fields: Counter[tuple[int, int, bool]] = field(default_factory=Counter)

    def total(self, level: int) -> Totals:
        """Totals over every reason of one level."""
        total = Totals()
        for (row_level, _), totals in self.exits.items():
            if row_level == level:
                total.merge(totals)
        return total

    def levels(self) -> list[int]:
        """The levels that exited, lowest first."""
        return sorted({level for level, _ in self.exits})

    def counts(self, level: int) -> dict[int, int]:
        """Number of exits per reason of one level."""
        return {reason: totals.count for (row_level, reason), totals in self.exits.items() if row_level == level}

    def merge(self, other: Aggregates) -> None:
        """Add everything of `other`."""
        for key, totals in other.exits.items():
            self.exits.setdefault(key, Totals()).merge(totals)
        self.reflected.update(other.reflected)
        self.caused.update(other.caused)
        self.caused_by_processor.update(other.caused_by_processor)
        self.by_processor.update(other.by_processor)
        self.fields.update(other.fields)


def add_rows(aggregates: Aggregates, rows: np.ndarray[Any, Any]) -> None:
    """Add a batch of rows (dtype :func:`lzero.trace.schema.numpy_dtype`) to the totals.

    About 20 ns per row: the batch is sorted by its kind once and reduced in runs.
    """
    import numpy as np

    if not len(rows):
        return
    reason = rows["reason"].astype(np.int64) | (rows["isa"] == 2).astype(np.int64) << 16
    handled = rows["handled_by"]
    kind = rows["level"].astype(np.int64) << 19 | reason << 2 | handled
    duration = rows["duration_ns"]
    order = np.argsort(kind, kind="stable")
    kind, duration = kind[order], duration[order]
    starts = np.flatnonzero(np.concatenate(([True], kind[1:] != kind[:-1])))
    counts = np.diff(np.append(starts, len(kind)))
    timed = np.add.reduceat((duration != 0).astype(np.int64), starts)
    totals = np.add.reduceat(duration, starts)
    lowest = np.minimum.reduceat(np.where(duration == 0, np.uint64(0xFFFFFFFFFFFFFFFF), duration), starts)
    highest = np.maximum.reduceat(duration, starts)
    squares = np.add.reduceat(duration.astype(np.float64) ** 2, starts)
    for index, start in enumerate(starts):
        key = int(kind[start])
        level, code, by = key >> 19, key >> 2 & 0x1FFFF, key & 3
        count = int(counts[index])
        if by == HandledBy.PROCESSOR:
            aggregates.by_processor[level, code] += count
            continue
        entry = aggregates.exits.setdefault((level, code), Totals())
        entry.add(
            count, int(timed[index]), int(totals[index]), int(lowest[index]), int(highest[index]), float(squares[index])
        )
        if level >= 2 and by == HandledBy.L1:
            aggregates.reflected[code] += count
    _add_caused(aggregates, rows, reason)
    _add_fields(aggregates, rows, reason)


def _add_caused(aggregates: Aggregates, rows: np.ndarray[Any, Any], reason: np.ndarray[Any, Any]) -> None:
    import numpy as np

    caused = (rows["parent_reason"] >= 0) & (rows["level"] == 1)
    if not caused.any():
        return
    parents = rows["parent_reason"][caused].astype(np.int64) | reason[caused] & 0x10000
    keys = parents << 19 | reason[caused] << 2 | rows["handled_by"][caused]
    values, counts = np.unique(keys, return_counts=True)
    for value, count in zip(values.tolist(), counts.tolist(), strict=True):
        target = aggregates.caused_by_processor if value & 3 == HandledBy.PROCESSOR else aggregates.caused
        target[value >> 19, value >> 2 & 0x1FFFF] += count


def _add_fields(aggregates: Aggregates, rows: np.ndarray[Any, Any], reason: np.ndarray[Any, Any]) -> None:
    import numpy as np

    known = rows["vmcs_field"] >= 0
    if not known.any():
        return
    keys = rows["vmcs_field"][known].astype(np.int64) << 18 | reason[known] << 1 | (rows["handled_by"][known] == 0)
    values, counts = np.unique(keys, return_counts=True)
    for value, count in zip(values.tolist(), counts.tolist(), strict=True):
        aggregates.fields[value >> 1 & 0x1FFFF, value >> 18, bool(value & 1)] += count
