"""The local APIC's timer: one-shot, periodic and TSC-deadline (SDM Vol. 3, 11.5.4)."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum

from lzero.platform.clock import NS_PER_SECOND, Clock, Timer, ticks_to_ns

__all__ = ["APIC_TIMER_HZ", "ApicTimer", "TimerMode"]

APIC_TIMER_HZ = 1_000_000_000
"""Input clock of the timer before its divider. CPUID leaf 0x15, where offered, must report the same crystal clock."""


class TimerMode(IntEnum):
    """Bits 18:17 of the timer's LVT entry."""

    ONE_SHOT = 0
    PERIODIC = 1
    TSC_DEADLINE = 2
    RESERVED = 3


class ApicTimer:
    """The counter, without its LVT entry.

    Parameters
    ----------
    clock:
        Guest time.
    expired:
        Called whenever the timer reaches its end.
    """

    def __init__(self, clock: Clock, expired: Callable[[], None]) -> None:
        self._clock = clock
        self._expired = expired
        self._timer: Timer | None = None
        self._end_ns: int | None = None
        self.mode = TimerMode.ONE_SHOT
        self.initial_count = 0
        self.divide = 0
        self._deadline = 0
        clock.add_tsc_listener(self._rearm_deadline)

    def reset(self) -> None:
        """Power-up state: stopped, one-shot."""
        self._stop()
        self.mode = TimerMode.ONE_SHOT
        self.initial_count = self.divide = 0

    @property
    def divisor(self) -> int:
        """What the input clock is divided by: 1 to 128."""
        shift = (self.divide & 3 | self.divide >> 1 & 4) + 1 & 7
        return 1 << shift

    def _ticks_to_ns(self, ticks: int) -> int:
        return ticks_to_ns(ticks * self.divisor, APIC_TIMER_HZ)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._end_ns = None
        self._deadline = 0

    def _arm(self, deadline_ns: int) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._clock.call_at(deadline_ns, self._due)

    def set_mode(self, mode: TimerMode) -> None:
        """The LVT entry's timer mode changed. Going to or from TSC-deadline mode disarms; the other two share one
        count.
        """
        if mode is not self.mode:
            if TimerMode.TSC_DEADLINE in (mode, self.mode):
                self._stop()
                self.initial_count = 0
            self.mode = mode

    # One-shot and periodic

    def set_initial_count(self, value: int) -> None:
        """Start (or with 0 stop) the count-down; ignored in TSC-deadline mode."""
        if self.mode is TimerMode.TSC_DEADLINE:
            return
        self._stop()
        self.initial_count = value
        if value:
            self._end_ns = self._clock.now_ns() + self._ticks_to_ns(value)
            self._arm(self._end_ns)

    def set_divide(self, value: int) -> None:
        """Change the divider; a running count goes on from where it is."""
        remaining = self.current_count()
        self.divide = value
        if self._end_ns is not None and remaining:
            self._end_ns = self._clock.now_ns() + self._ticks_to_ns(remaining)
            self._arm(self._end_ns)

    def current_count(self) -> int:
        """What the count-down shows: 0 when stopped or in TSC-deadline mode."""
        if self._end_ns is None:
            return 0
        remaining_ns = self._end_ns - self._clock.now_ns()
        if remaining_ns <= 0:
            if self.mode is not TimerMode.PERIODIC:
                return 0
            remaining_ns = remaining_ns % self._ticks_to_ns(self.initial_count)
        count = -(-remaining_ns * APIC_TIMER_HZ // (NS_PER_SECOND * self.divisor))
        return min(count, self.initial_count)

    # TSC deadline

    @property
    def tsc_deadline(self) -> int:
        """IA32_TSC_DEADLINE: 0 when disarmed or in another mode."""
        return self._deadline

    @tsc_deadline.setter
    def tsc_deadline(self, value: int) -> None:
        if self.mode is not TimerMode.TSC_DEADLINE:
            return
        self._stop()
        self._deadline = value
        self._rearm_deadline()

    def _rearm_deadline(self) -> None:
        if self._deadline:
            self._arm(self._clock.tsc_to_ns(self._deadline))

    # Expiry

    def _due(self) -> None:
        self._timer = None
        if self.mode is TimerMode.PERIODIC and self._end_ns is not None:
            # Periods that nobody could have served coalesce: the next end lies in the future.
            period = self._ticks_to_ns(self.initial_count)
            late = self._clock.now_ns() - self._end_ns
            self._end_ns += (late // period + 1) * period
            self._arm(self._end_ns)
        else:
            self._end_ns = None
            self._deadline = 0
        self._expired()
