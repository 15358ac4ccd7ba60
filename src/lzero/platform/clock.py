"""Guest time: one clock feeds the TSC and every timer of the board.

The clock is a heap of timers over a time source that somebody else owns: the engine's count of executed guest code
(virtual, deterministic) or the host's monotonic clock. Nothing in ``platform`` looks at the host's time itself.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Protocol

__all__ = ["Clock", "NS_PER_SECOND", "Timer", "VirtualClock", "ticks_to_ns"]

NS_PER_SECOND = 1_000_000_000
SMALLEST_SWEEP = 64
"""Entries of the heap below which cancelled timers are not worth sweeping out."""


def ticks_to_ns(ticks: int, hz: int) -> int:
    """Nanoseconds after which ``ticks`` of a ``hz`` counter have surely passed (rounded up)."""
    return -(-ticks * NS_PER_SECOND // hz)


class Timer:
    """A callback that waits for its time; made by :meth:`Clock.call_at`."""

    __slots__ = ("_callback", "deadline_ns")

    def __init__(self, deadline_ns: int, callback: Callable[[], None]) -> None:
        self.deadline_ns = deadline_ns
        self._callback: Callable[[], None] | None = callback

    @property
    def pending(self) -> bool:
        """Whether the timer will still fire."""
        return self._callback is not None

    def cancel(self) -> None:
        """Forget the callback; harmless when it has fired already."""
        self._callback = None

    def fire(self) -> None:
        """Call back once, unless cancelled."""
        callback, self._callback = self._callback, None
        if callback is not None:
            callback()


class Clock(Protocol):
    """What devices need of time."""

    @property
    def tsc_hz(self) -> int:
        """Frequency of the time-stamp counter."""
        ...

    def now_ns(self) -> int:
        """Guest nanoseconds since the machine started."""
        ...

    def tsc(self) -> int:
        """The guest's time-stamp counter, now."""
        ...

    def set_tsc(self, value: int) -> None:
        """Move the time-stamp counter."""
        ...

    def tsc_to_ns(self, tsc: int) -> int:
        """Guest time at which the time-stamp counter reaches a value."""
        ...

    def call_at(self, deadline_ns: int, callback: Callable[[], None]) -> Timer:
        """Call back from :meth:`run_due` once guest time has reached ``deadline_ns``."""
        ...

    def next_deadline_ns(self) -> int | None:
        """The earliest pending deadline."""
        ...

    def run_due(self) -> None:
        """Fire every timer whose deadline has come, earliest first."""
        ...

    def add_tsc_listener(self, listener: Callable[[], None]) -> None:
        """Be called when software moved the time-stamp counter."""
        ...


class VirtualClock:
    """A clock over any source of nanoseconds.

    Parameters
    ----------
    read_ns:
        Guest nanoseconds since start; must never go back.
    tsc_hz:
        Frequency of the time-stamp counter.
    on_deadline_changed:
        Called when the earliest deadline becomes earlier than it was (the engine must stop sooner), and when it is
        removed.
    """

    def __init__(
        self,
        read_ns: Callable[[], int],
        tsc_hz: int = 2_000_000_000,
        on_deadline_changed: Callable[[], None] | None = None,
    ) -> None:
        self.now_ns = read_ns
        self.tsc_hz = tsc_hz
        self.tsc_offset = 0
        self.on_deadline_changed = on_deadline_changed
        self._heap: list[tuple[int, int, Timer]] = []
        self._sweep_at = SMALLEST_SWEEP
        self._sequence = 0
        self._tsc_listeners: list[Callable[[], None]] = []

    def tsc(self) -> int:
        """The guest's time-stamp counter, now."""
        return (self.now_ns() * self.tsc_hz // NS_PER_SECOND + self.tsc_offset) & 0xFFFF_FFFF_FFFF_FFFF

    def set_tsc(self, value: int) -> None:
        """Move the time-stamp counter (WRMSR to IA32_TIME_STAMP_COUNTER); armed TSC deadlines are re-evaluated."""
        self.tsc_offset = value - self.now_ns() * self.tsc_hz // NS_PER_SECOND
        for listener in self._tsc_listeners:
            listener()

    def tsc_to_ns(self, tsc: int) -> int:
        """Guest time at which the time-stamp counter reaches ``tsc`` (in the past if it has already)."""
        return ticks_to_ns(tsc - self.tsc_offset, self.tsc_hz)

    def add_tsc_listener(self, listener: Callable[[], None]) -> None:
        """Be called after :meth:`set_tsc`."""
        self._tsc_listeners.append(listener)

    def call_at(self, deadline_ns: int, callback: Callable[[], None]) -> Timer:
        """Call back from :meth:`run_due` once guest time has reached ``deadline_ns``; equal deadlines fire in the
        order asked for.
        """
        timer = Timer(deadline_ns, callback)
        before = self.next_deadline_ns()
        self._sequence += 1
        if len(self._heap) >= self._sweep_at:
            self._sweep()
        heapq.heappush(self._heap, (deadline_ns, self._sequence, timer))
        if self.on_deadline_changed is not None and (before is None or deadline_ns < before):
            self.on_deadline_changed()
        return timer

    def _sweep(self) -> None:
        """Drop cancelled timers: a guest that keeps re-arming a far deadline must not fill the host's memory."""
        # In place: run_due may be walking this list.
        self._heap[:] = [entry for entry in self._heap if entry[2].pending]
        heapq.heapify(self._heap)
        self._sweep_at = max(SMALLEST_SWEEP, 2 * len(self._heap))

    def next_deadline_ns(self) -> int | None:
        """The earliest pending deadline; None if nothing waits."""
        heap = self._heap
        while heap and not heap[0][2].pending:
            heapq.heappop(heap)
        return heap[0][0] if heap else None

    def run_due(self) -> None:
        """Fire every timer whose deadline has come, earliest first.

        Time is read once: a timer that re-arms itself for a moment after that fires at the next call, so a guest that
        asks for an absurd rate cannot keep this loop busy.
        """
        heap = self._heap
        if not heap:
            return
        now = self.now_ns()
        fired = False
        while heap and heap[0][0] <= now:
            heapq.heappop(heap)[2].fire()
            fired = True
        if fired and self.on_deadline_changed is not None:
            self.on_deadline_changed()
