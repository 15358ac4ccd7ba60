"""Timers fire in order, once, at their time."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lzero.platform.clock import VirtualClock


class Time:
    """A settable time source."""

    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        return self.now


@given(st.lists(st.integers(0, 1000)))
def test_timers_fire_in_order_and_only_when_due(deadlines: list[int]) -> None:
    time = Time()
    clock = VirtualClock(time)
    fired: list[int] = []
    for deadline in deadlines:
        clock.call_at(deadline, lambda d=deadline: fired.append(d))
    time.now = 500
    clock.run_due()
    assert fired == sorted(d for d in deadlines if d <= 500)
    time.now = 1000
    clock.run_due()
    assert fired == sorted(deadlines)
    assert clock.next_deadline_ns() is None


def test_a_cancelled_timer_neither_fires_nor_counts_as_the_next() -> None:
    clock = VirtualClock(Time())
    first = clock.call_at(10, lambda: None)
    clock.call_at(20, lambda: None)
    first.cancel()
    assert not first.pending
    assert clock.next_deadline_ns() == 20


def test_cancelled_timers_do_not_pile_up() -> None:
    clock = VirtualClock(Time())
    kept = [clock.call_at(10**9 + i, lambda: None) for i in range(100)]
    for i in range(10_000):
        clock.call_at(10**12 + i, lambda: None).cancel()
    assert len(clock._heap) < 1000
    assert all(timer.pending for timer in kept)
    assert clock.next_deadline_ns() == 10**9


def test_a_timer_that_rearms_itself_at_once_does_not_keep_run_due_busy() -> None:
    time = Time()
    clock = VirtualClock(time)
    fired = []

    def again() -> None:
        fired.append(time.now)
        clock.call_at(time.now + 1, again)

    clock.call_at(0, again)
    clock.run_due()
    assert fired == [0]


def test_the_engine_hears_of_earlier_deadlines_only() -> None:
    heard: list[int | None] = []
    clock = VirtualClock(Time(), on_deadline_changed=lambda: heard.append(clock.next_deadline_ns()))
    clock.call_at(100, lambda: None)
    clock.call_at(200, lambda: None)
    clock.call_at(50, lambda: None)
    assert heard == [100, 50]


def test_the_tsc_follows_its_frequency_and_can_be_set() -> None:
    time = Time()
    clock = VirtualClock(time, tsc_hz=3_000_000_000)
    time.now = 1000
    assert clock.tsc() == 3000
    moved: list[bool] = []
    clock.add_tsc_listener(lambda: moved.append(True))
    clock.set_tsc(7)
    assert moved == [True]
    time.now = 1010
    assert clock.tsc() == 37


@given(st.integers(1, 1 << 62), st.sampled_from([1_000_000_000, 2_445_000_000, 999_999_937]))
def test_at_the_time_of_a_tsc_value_the_tsc_has_reached_it(tsc: int, hz: int) -> None:
    time = Time()
    clock = VirtualClock(time, tsc_hz=hz)
    time.now = clock.tsc_to_ns(tsc)
    assert clock.tsc() >= tsc
    time.now -= 1
    assert clock.tsc() < tsc
