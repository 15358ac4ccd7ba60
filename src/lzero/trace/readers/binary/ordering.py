"""Put events of several CPUs into the order of their times, with bounded memory."""

from __future__ import annotations

import bisect

import numpy as np

from lzero.trace.readers.binary.fields import Rows, take_rows
from lzero.trace.readers.binary.native import order_rows

__all__ = ["TimeOrder"]


class TimeOrder:
    """Holds events back until no earlier one can come.

    Parameters
    ----------
    limit:
        Number of held-back events above which the older half is let go whatever may still come, so that memory stays
        bounded.
    """

    def __init__(self, limit: int = 2_000_000) -> None:
        self._limit = limit
        self._held: list[Rows] = []
        self._count = 0
        self._last = 0
        self.late = 0
        """Events that came later than one already let go: the order is not kept for them."""

    @property
    def held(self) -> int:
        """Number of events held back."""
        return self._count

    def add(self, rows: Rows) -> None:
        """Take events in any order."""
        if rows.size:
            self._held.append(rows)
            self._count += rows.size

    def release(self, until_ns: int) -> Rows | None:
        """The held events up to a time, in order; None when there are none."""
        return self._release(until_ns)

    def overflow(self) -> Rows | None:
        """The older half of what is held, when it is more than the limit."""
        if self._count <= self._limit:
            return None
        rows = self._sorted()
        return self._release(int(rows["time_ns"][rows.size // 2]))

    def drain(self) -> Rows | None:
        """Everything held, in order."""
        return self._release(None)

    def _sorted(self) -> Rows:
        ordered = order_rows(self._held)
        if ordered is not None:
            self._held = [ordered]
            return ordered
        rows = self._held[0] if len(self._held) == 1 else np.concatenate(self._held)
        times = np.ascontiguousarray(rows["time_ns"])
        if rows.size > 1 and bool((times[1:] < times[:-1]).any()):
            rows = take_rows(rows, np.argsort(times, kind="stable"))
        self._held = [rows]
        return rows

    def _release(self, until: int | None) -> Rows | None:
        if not self._count:
            return None
        rows = self._sorted()
        count = rows.size if until is None else bisect.bisect_right(rows["time_ns"], until)
        if count == 0:
            return None
        out = rows[:count]
        self._held = [rows[count:]] if count < rows.size else []
        self._count = rows.size - count
        if int(out["time_ns"][0]) < self._last:
            self.late += int(np.count_nonzero(out["time_ns"] < np.uint64(self._last)))
        self._last = max(self._last, int(out["time_ns"][-1]))
        return out
